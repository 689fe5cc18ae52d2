/*
 * Chains: built by crypt32's engine, judged by its trust status, by the
 * policy for TLS, and by us for what crypt32 leaves open.
 *
 * An engine with exclusive roots trusts those alone. Its configuration
 * grew: with the size of Windows 8 an intermediate may be an anchor, with
 * that of Windows 7 it may not, and an older system refuses the larger.
 * Roots besides the system's are a second try with an exclusive engine.
 *
 * Errors are read off every element's trust status and the worst that is
 * not to be ignored becomes the verdict, in the same order on every engine
 * here. The policy is asked as well, with the same exceptions: it knows
 * rules that the status does not show (weak or distrusted roots). Usages
 * of the leaf and host names are compared by us: roots of our own bring no
 * usage with them, and crypt32 compares no IP addresses.
 *
 * Building may use the network for issuers and CRLs only when the caller
 * said so, and then within a time-out; nobody else waits for it, as all
 * that is needed of the caller's stores is copied before.
 */
#define CERT_CHAIN_PARA_HAS_EXTRA_FIELDS 1
#include "sspi/schannel_internal.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef CERT_CHAIN_DISABLE_AIA
#define CERT_CHAIN_DISABLE_AIA 0x00002000
#endif
#ifndef CERT_CHAIN_DISABLE_AUTH_ROOT_AUTO_UPDATE
#define CERT_CHAIN_DISABLE_AUTH_ROOT_AUTO_UPDATE 0x00000100
#endif
#ifndef CERT_TRUST_IS_EXPLICIT_DISTRUST
#define CERT_TRUST_IS_EXPLICIT_DISTRUST 0x04000000
#endif
#ifndef CERT_TRUST_HAS_WEAK_SIGNATURE
#define CERT_TRUST_HAS_WEAK_SIGNATURE 0x00100000
#endif

#define FETCH_TIMEOUT_MS 15000 /* when none is given */

/* In the order of their weight: the first is the one to report. */
static const struct trouble {
    DWORD bits;      /* CERT_TRUST_... */
    int32_t code;    /* what it is called */
    uint32_t ignore; /* TW_IGNORE_... that forgive it */
    const char *text;
} troubles[] = {
    {CERT_TRUST_IS_NOT_SIGNATURE_VALID | CERT_TRUST_HAS_WEAK_SIGNATURE,
     (int32_t)TRUST_E_CERT_SIGNATURE, 0, "a signature is wrong or too weak"},
    {CERT_TRUST_IS_EXPLICIT_DISTRUST, (int32_t)CERT_E_UNTRUSTEDROOT, 0,
     "distrusted on this machine"},
    {CERT_TRUST_IS_REVOKED, (int32_t)CRYPT_E_REVOKED, TW_IGNORE_REVOCATION,
     "certificate revoked"},
    {CERT_TRUST_IS_UNTRUSTED_ROOT, (int32_t)CERT_E_UNTRUSTEDROOT,
     TW_IGNORE_UNKNOWN_CA, "not a trusted root"},
    {CERT_TRUST_IS_PARTIAL_CHAIN | CERT_TRUST_IS_CYCLIC,
     (int32_t)CERT_E_CHAINING, TW_IGNORE_UNKNOWN_CA,
     "the issuer's certificate is missing"},
    {CERT_TRUST_INVALID_BASIC_CONSTRAINTS,
     (int32_t)TRUST_E_BASIC_CONSTRAINTS, TW_IGNORE_BASIC_CONSTRAINTS,
     "not an authority's certificate, or its path is too long"},
    {CERT_TRUST_HAS_NOT_SUPPORTED_CRITICAL_EXT | CERT_TRUST_INVALID_EXTENSION,
     (int32_t)CERT_E_CRITICAL, TW_IGNORE_CRITICAL,
     "a critical extension is not understood"},
    {CERT_TRUST_INVALID_NAME_CONSTRAINTS
         | CERT_TRUST_HAS_NOT_SUPPORTED_NAME_CONSTRAINT
         | CERT_TRUST_HAS_NOT_DEFINED_NAME_CONSTRAINT
         | CERT_TRUST_HAS_NOT_PERMITTED_NAME_CONSTRAINT
         | CERT_TRUST_HAS_EXCLUDED_NAME_CONSTRAINT,
     (int32_t)CERT_E_INVALID_NAME, 0, "a name is not permitted"},
    {CERT_TRUST_INVALID_POLICY_CONSTRAINTS
         | CERT_TRUST_NO_ISSUANCE_CHAIN_POLICY,
     (int32_t)CERT_E_INVALID_POLICY, TW_IGNORE_POLICY,
     "a required policy is not met"},
    {CERT_TRUST_IS_NOT_TIME_VALID, (int32_t)CERT_E_EXPIRED, TW_IGNORE_TIME,
     "expired or not yet valid"},
    {CERT_TRUST_IS_NOT_VALID_FOR_USAGE, (int32_t)CERT_E_WRONG_USAGE,
     TW_IGNORE_USAGE, "not meant for this use"},
    {CERT_TRUST_IS_OFFLINE_REVOCATION, (int32_t)CRYPT_E_REVOCATION_OFFLINE,
     TW_IGNORE_REVOCATION | TW_IGNORE_REVOCATION_OFFLINE,
     "the revocation list cannot be had"},
    {CERT_TRUST_REVOCATION_STATUS_UNKNOWN,
     (int32_t)CERT_E_REVOCATION_FAILURE,
     TW_IGNORE_REVOCATION | TW_IGNORE_REVOCATION_OFFLINE,
     "nothing tells whether it was revoked"},
};
#define TROUBLES (sizeof(troubles) / sizeof(troubles[0]))
/* where the comparison with the host name stands: before revocation that
   could not be settled */
#define NAME_RANK (TROUBLES - 2)
#define OTHER_RANK TROUBLES

struct trial {
    const struct tw_verify_config *config;
    PCCERT_CONTEXT leaf;    /* owned */
    HCERTSTORE extra;       /* owned: what may stand between, and CRLs */
    HCERTSTORE roots;       /* owned: exclusive; NULL with the system's */
    HCERTSTORE more_roots;  /* owned: besides the system's; or NULL */
    HCERTCHAINENGINE engine; /* owned if own_engine, else the system's */
    bool own_engine;
    PCCERT_CHAIN_CONTEXT chain; /* owned */
    size_t rank;            /* of the worst; above all: none yet */
    uint32_t forgiven;      /* a bit for each of troubles */
    struct tw_verdict *out;
};

#define NO_RANK ((size_t)-1)

/* What one attempt left. */
static void drop_attempt(struct trial *t)
{
    if (t->chain != NULL) {
        CertFreeCertificateChain(t->chain);
        t->chain = NULL;
    }
    if (t->own_engine) {
        CertFreeCertificateChainEngine(t->engine);
        t->own_engine = false;
    }
}

static void close_store(HCERTSTORE store)
{
    if (store != NULL) {
        (void)CertCloseStore(store, 0);
    }
}

static void trial_fini(struct trial *t)
{
    drop_attempt(t);
    close_store(t->extra);
    close_store(t->roots);
    close_store(t->more_roots);
    if (t->leaf != NULL) {
        (void)CertFreeCertificateContext(t->leaf);
    }
}

static void trial_reset(struct trial *t)
{
    drop_attempt(t);
    t->engine = t->config->flags & TW_VERIFY_MACHINE ? HCCE_LOCAL_MACHINE
                                                     : HCCE_CURRENT_USER;
    t->rank = NO_RANK;
    t->forgiven = 0;
    t->out->code = 0;
    t->out->depth = 0;
    t->out->detail[0] = '\0';
}

/* --- what is wrong --- */

static void note(struct trial *t, size_t rank, int32_t code, int depth,
                 const char *text, PCCERT_CONTEXT cert)
{
    WCHAR name[128] = L"";
    char *narrow;

    if (rank >= t->rank) {
        return;
    }
    t->rank = rank;
    t->out->code = code;
    t->out->depth = depth;
    if (cert != NULL) {
        (void)CertGetNameStringW(cert, CERT_NAME_SIMPLE_DISPLAY_TYPE, 0,
                                 NULL, name, 128);
    }
    narrow = name[0] != L'\0' ? tw_crypt32_narrow(name) : NULL;
    (void)snprintf(t->out->detail, sizeof(t->out->detail), "%s%s%.200s",
                   text, narrow != NULL ? ": " : "",
                   narrow != NULL ? narrow : "");
    free(narrow);
}

static void note_bits(struct trial *t, DWORD bits, int depth,
                      PCCERT_CONTEXT cert)
{
    size_t i;

    if ((bits & CERT_TRUST_IS_OFFLINE_REVOCATION) && !t->config->fetch) {
        /* nobody went to look: that is not "could not be reached" */
        bits &= ~(DWORD)CERT_TRUST_IS_OFFLINE_REVOCATION;
        bits |= CERT_TRUST_REVOCATION_STATUS_UNKNOWN;
    }
    for (i = 0; i < TROUBLES; i++) {
        if ((bits & troubles[i].bits) == 0) {
            continue;
        }
        if ((troubles[i].ignore & t->config->ignore) == 0) {
            note(t, i, troubles[i].code, depth, troubles[i].text, cert);
            return;
        }
        t->forgiven |= 1u << i;
    }
}

static void read_status(struct trial *t)
{
    const CERT_SIMPLE_CHAIN *simple;
    DWORD seen = 0;
    DWORD i;

    if (t->chain->cChain == 0 || t->chain->rgpChain[0]->cElement == 0) {
        note_bits(t, CERT_TRUST_IS_PARTIAL_CHAIN, 0, t->leaf);
        return;
    }
    simple = t->chain->rgpChain[0];
    for (i = 0; i < simple->cElement; i++) {
        const CERT_CHAIN_ELEMENT *e = simple->rgpElement[i];
        DWORD bits = e->TrustStatus.dwErrorStatus;

        seen |= bits;
        note_bits(t, bits, (int)i, e->pCertContext);
    }
    /* what the chain has as a whole belongs to its end */
    note_bits(t, t->chain->TrustStatus.dwErrorStatus & ~seen,
              (int)simple->cElement - 1,
              simple->rgpElement[simple->cElement - 1]->pCertContext);
}

/* --- usages and names --- */

static bool allows_usage(PCCERT_CONTEXT cert, const char *oid)
{
    CERT_INFO *info = cert->pCertInfo;
    CERT_EXTENSION *found =
        CertFindExtension(szOID_ENHANCED_KEY_USAGE, info->cExtension,
                          info->rgExtension);
    CERT_ENHKEY_USAGE *usage;
    bool allowed = false;
    DWORD i;

    if (found == NULL) {
        return true;
    }
    usage = tw_crypt32_decode(X509_ENHANCED_KEY_USAGE, found->Value.pbData,
                              found->Value.cbData);
    for (i = 0; usage != NULL && !allowed && i < usage->cUsageIdentifier;
         i++) {
        const char *has = usage->rgpszUsageIdentifier[i];
        allowed = strcmp(has, oid) == 0
                  || strcmp(has, szOID_ANY_ENHANCED_KEY_USAGE) == 0;
    }
    if (usage != NULL) {
        (void)LocalFree(usage);
    }
    return allowed;
}

/* The depth of the first certificate that does not allow oid, or -1. The
   anchor is not asked, unless it is the leaf: trusting it was a decision,
   not a matter of what it says. */
static int usage_refused(const struct trial *t, const char *oid)
{
    const CERT_SIMPLE_CHAIN *simple =
        t->chain->cChain > 0 ? t->chain->rgpChain[0] : NULL;
    bool broken = (t->chain->TrustStatus.dwErrorStatus
                   & CERT_TRUST_IS_PARTIAL_CHAIN)
                  != 0;
    DWORD n = simple != NULL ? simple->cElement : 0;
    DWORD i;

    if (!allows_usage(t->leaf, oid)) {
        return 0;
    }
    for (i = 1; i < (broken ? n : n - 1) && n > 0; i++) {
        if (!allows_usage(simple->rgpElement[i]->pCertContext, oid)) {
            return (int)i;
        }
    }
    return -1;
}

/* serverAuth or clientAuth, unless the caller has a list. */
static void wanted_usages(const struct tw_verify_config *config,
                          const char *const **usages, size_t *count)
{
    static const char *const server_auth[] = {szOID_PKIX_KP_SERVER_AUTH};
    static const char *const client_auth[] = {szOID_PKIX_KP_CLIENT_AUTH};

    *usages = config->usages;
    *count = config->usage_count;
    if (*usages == NULL) {
        *usages = config->server != NULL ? server_auth : client_auth;
        *count = 1;
    }
}

/* RFC 5280, 4.2.1.12 and 4.2.1.3. */
static void check_usages(struct trial *t)
{
    const struct tw_verify_config *config = t->config;
    const char *const *usages;
    size_t count;
    size_t i;
    int refused = -1;
    BYTE bits[2] = {0, 0};
    BYTE needed = CERT_DIGITAL_SIGNATURE_KEY_USAGE
                  | CERT_KEY_AGREEMENT_KEY_USAGE;

    if (config->ignore & TW_IGNORE_USAGE) {
        return;
    }
    wanted_usages(config, &usages, &count);
    for (i = 0; i < count; i++) {
        refused = usage_refused(t, usages[i]);
        if ((refused < 0) == config->usage_any) {
            break; /* one of any is found, or one of all is not */
        }
    }
    if (refused >= 0) {
        note_bits(t, CERT_TRUST_IS_NOT_VALID_FOR_USAGE, refused, t->leaf);
    }
    if (config->server != NULL) {
        needed |= CERT_KEY_ENCIPHERMENT_KEY_USAGE; /* TLS 1.2's RSA */
    }
    if (config->usages == NULL
        && CertGetIntendedKeyUsage(X509_ASN_ENCODING, t->leaf->pCertInfo,
                                   bits, sizeof(bits))
        && (bits[0] & needed) == 0) {
        note_bits(t, CERT_TRUST_IS_NOT_VALID_FOR_USAGE, 0, t->leaf);
    }
}

static void check_name(struct trial *t, struct tw_cert *cert)
{
    const struct tw_verify_config *config = t->config;
    char text[200];

    if (!config->check_name || config->server == NULL
        || (config->ignore & TW_IGNORE_NAME)
        || tw_crypt32_cert_matches(cert, config->server,
                                   config->common_name)) {
        return;
    }
    (void)snprintf(text, sizeof(text), "not issued for '%.120s'",
                   config->server);
    note(t, NAME_RANK, (int32_t)CERT_E_CN_NO_MATCH, 0, text, t->leaf);
}

/* --- the policy --- */

static DWORD policy_exceptions(uint32_t ignore)
{
    DWORD flags = CERT_CHAIN_POLICY_IGNORE_NOT_TIME_NESTED_FLAG;

    if (ignore & TW_IGNORE_TIME) {
        flags |= CERT_CHAIN_POLICY_IGNORE_ALL_NOT_TIME_VALID_FLAGS;
    }
    if (ignore & TW_IGNORE_UNKNOWN_CA) {
        flags |= CERT_CHAIN_POLICY_ALLOW_UNKNOWN_CA_FLAG;
    }
    if (ignore & TW_IGNORE_USAGE) {
        flags |= CERT_CHAIN_POLICY_IGNORE_WRONG_USAGE_FLAG;
    }
    if (ignore & TW_IGNORE_BASIC_CONSTRAINTS) {
        flags |= CERT_CHAIN_POLICY_IGNORE_INVALID_BASIC_CONSTRAINTS_FLAG;
    }
    if (ignore & TW_IGNORE_POLICY) {
        flags |= CERT_CHAIN_POLICY_IGNORE_INVALID_POLICY_FLAG;
    }
    if (ignore & TW_IGNORE_CRITICAL) {
        flags |= CERT_CHAIN_POLICY_IGNORE_NOT_SUPPORTED_CRITICAL_EXT_FLAG;
    }
    if (ignore & (TW_IGNORE_REVOCATION | TW_IGNORE_REVOCATION_OFFLINE)) {
        flags |= CERT_CHAIN_POLICY_IGNORE_ALL_REV_UNKNOWN_FLAGS;
    }
    return flags;
}

/*
 * No flag makes the policy overlook a revocation, and Wine's heeds few of
 * them. What the status showed and the caller forgives stays forgiven, but
 * for an unknown root, whose flag is heeded everywhere: a distrusted one has
 * the same code.
 */
static bool was_forgiven(const struct trial *t, int32_t code)
{
    size_t i;

    for (i = 0; i < TROUBLES; i++) {
        if ((t->forgiven & (1u << i)) != 0 && troubles[i].code == code
            && troubles[i].ignore != TW_IGNORE_UNKNOWN_CA) {
            return true;
        }
    }
    return false;
}

/* The last word, where nothing was found so far. */
static void ask_policy(struct trial *t)
{
    SSL_EXTRA_CERT_CHAIN_POLICY_PARA tls;
    CERT_CHAIN_POLICY_PARA para;
    CERT_CHAIN_POLICY_STATUS status;

    if (t->rank != NO_RANK) {
        return;
    }
    memset(&tls, 0, sizeof(tls));
    tls.cbSize = sizeof(tls);
    tls.dwAuthType = t->config->server != NULL ? AUTHTYPE_SERVER
                                               : AUTHTYPE_CLIENT;
    memset(&para, 0, sizeof(para));
    para.cbSize = sizeof(para);
    para.dwFlags = policy_exceptions(t->config->ignore);
    para.pvExtraPolicyPara = &tls;
    memset(&status, 0, sizeof(status));
    status.cbSize = sizeof(status);
    if (!CertVerifyCertificateChainPolicy(CERT_CHAIN_POLICY_SSL, t->chain,
                                          &para, &status)) {
        note(t, OTHER_RANK, (int32_t)SEC_E_CERT_UNKNOWN, 0,
             "the policy for TLS could not be asked", t->leaf);
    } else if (status.dwError != 0
               && !was_forgiven(t, (int32_t)status.dwError)) {
        note(t, OTHER_RANK, (int32_t)status.dwError,
             status.lElementIndex > 0 ? (int)status.lElementIndex : 0,
             "refused by the policy for TLS", t->leaf);
    }
}

/* --- building --- */

/* An engine that trusts these anchors alone. */
static bool make_engine(struct trial *t, HCERTSTORE anchors)
{
    HCERTSTORE stores[] = {t->extra, anchors};
    CERT_CHAIN_ENGINE_CONFIG config;
    HCERTCHAINENGINE made = NULL;

    memset(&config, 0, sizeof(config));
    config.cbSize = sizeof(config);
    config.dwFlags = t->config->flags & TW_VERIFY_MACHINE
                         ? CERT_CHAIN_USE_LOCAL_MACHINE_STORE
                         : 0;
    config.hExclusiveRoot = anchors;
    /* For the CRLs among them, on every system: Wine looks for these in
       the engine's own stores only. */
    config.cAdditionalStore = 2;
    config.rghAdditionalStore = stores;
    config.dwExclusiveFlags = CERT_CHAIN_EXCLUSIVE_ENABLE_CA_FLAG;
    if (!CertCreateCertificateChainEngine(&config, &made)) {
        config.cbSize = offsetof(CERT_CHAIN_ENGINE_CONFIG, dwExclusiveFlags);
        if (!CertCreateCertificateChainEngine(&config, &made)) {
            return false;
        }
    }
    t->engine = made;
    t->own_engine = true;
    return true;
}

static DWORD chain_flags(const struct tw_verify_config *config)
{
    DWORD flags = 0;

    if ((config->ignore & TW_IGNORE_REVOCATION) == 0) {
        switch (config->revocation) {
        case TW_REVOKE_NONE:
            break;
        case TW_REVOKE_LEAF:
            flags |= CERT_CHAIN_REVOCATION_CHECK_END_CERT;
            break;
        case TW_REVOKE_CHAIN:
            flags |= CERT_CHAIN_REVOCATION_CHECK_CHAIN;
            break;
        case TW_REVOKE_CHAIN_NO_ROOT:
            flags |= CERT_CHAIN_REVOCATION_CHECK_CHAIN_EXCLUDE_ROOT;
            break;
        }
    }
    if (!config->fetch) {
        flags |= CERT_CHAIN_CACHE_ONLY_URL_RETRIEVAL
                 | CERT_CHAIN_REVOCATION_CHECK_CACHE_ONLY
                 | CERT_CHAIN_DISABLE_AIA;
    } else {
        flags |= CERT_CHAIN_REVOCATION_ACCUMULATIVE_TIMEOUT;
    }
    if (config->flags & TW_VERIFY_CACHE_END_CERT) {
        flags |= CERT_CHAIN_CACHE_END_CERT;
    }
    if (config->flags & TW_VERIFY_NO_ROOT_UPDATE) {
        flags |= CERT_CHAIN_DISABLE_AUTH_ROOT_AUTO_UPDATE;
    }
    return flags;
}

static bool build(struct trial *t)
{
    const struct tw_verify_config *config = t->config;
    const char *const *usages;
    CERT_CHAIN_PARA para;
    size_t count;

    memset(&para, 0, sizeof(para));
    para.cbSize = sizeof(para);
    if ((config->ignore & TW_IGNORE_USAGE) == 0) {
        wanted_usages(config, &usages, &count);
        para.RequestedUsage.dwType =
            config->usage_any ? USAGE_MATCH_TYPE_OR : USAGE_MATCH_TYPE_AND;
        para.RequestedUsage.Usage.cUsageIdentifier = (DWORD)count;
        para.RequestedUsage.Usage.rgpszUsageIdentifier =
            (LPSTR *)(uintptr_t)usages;
    }
    para.dwUrlRetrievalTimeout = config->fetch_timeout_ms > 0
                                     ? (DWORD)config->fetch_timeout_ms
                                     : FETCH_TIMEOUT_MS;
    return CertGetCertificateChain(t->engine, t->leaf, NULL, t->extra, &para,
                                   chain_flags(config), NULL, &t->chain)
           != FALSE;
}

/* Builds and judges with the system's roots, or with these alone. */
static enum tw_status attempt(struct trial *t, struct tw_cert *cert,
                              HCERTSTORE anchors, struct tw_error *err)
{
    trial_reset(t);
    if ((anchors != NULL && !make_engine(t, anchors)) || !build(t)) {
        return tw_crypt32_fail(err, TW_E_TLS, GetLastError(),
                               "the verification could not run");
    }
    read_status(t);
    check_usages(t);
    check_name(t, cert);
    ask_policy(t);
    return TW_DONE;
}

/* A copy of the caller's store; true with *out NULL if there is none. */
static bool copy_store(struct tw_store *from, HCERTSTORE *out)
{
    if (from == NULL) {
        return true;
    }
    *out = tw_crypt32_memory_store();
    return *out != NULL && tw_crypt32_store_pour(from, *out);
}

/* Everything of the caller's that the verification needs. */
static bool gather(struct trial *t, struct tw_cert *cert)
{
    const struct tw_verify_config *config = t->config;
    CRYPT_DATA_BLOB staple;
    PCCERT_CONTEXT at = NULL;
    bool good;

    t->extra = tw_crypt32_memory_store();
    good = t->extra != NULL
           && tw_crypt32_store_pour(config->extra, t->extra)
           && copy_store(config->roots, &t->roots)
           && copy_store(config->more_roots, &t->more_roots);
    while (good && cert->chain != NULL
           && (at = CertEnumCertificatesInStore(cert->chain, at)) != NULL) {
        good = tw_crypt32_put(t->extra, at);
        if (!good) {
            (void)CertFreeCertificateContext(at);
        }
    }
    /* A context without a store of its own, whose certificates the engine
       would take as well: all that counts is in `extra`. */
    if (good) {
        t->leaf = CertCreateCertificateContext(X509_ASN_ENCODING,
                                               cert->ctx->pbCertEncoded,
                                               cert->ctx->cbCertEncoded);
        good = t->leaf != NULL;
    }
    if (good && config->ocsp != NULL && config->ocsp_len > 0) {
        /* the revocation provider looks for a staple on the leaf itself */
        staple.cbData = (DWORD)config->ocsp_len;
        staple.pbData = (BYTE *)(uintptr_t)config->ocsp;
        good = CertSetCertificateContextProperty(
                   t->leaf, CERT_OCSP_RESPONSE_PROP_ID, 0, &staple)
               != FALSE;
    }
    return good;
}

static enum tw_status chain_store(struct trial *t, struct tw_cert *cert,
                                  struct tw_store **out,
                                  struct tw_error *err)
{
    struct tw_store *store = NULL;
    struct tw_cert *item;
    enum tw_status st = tw_crypt32_store_new(&store, err);
    DWORD i;

    if (st == TW_DONE) {
        st = tw_crypt32_store_add(store, cert, err);
    }
    for (i = 1; st == TW_DONE && t->chain->cChain > 0
                && i < t->chain->rgpChain[0]->cElement;
         i++) {
        item = tw_crypt32_cert_new(
            CertDuplicateCertificateContext(
                t->chain->rgpChain[0]->rgpElement[i]->pCertContext),
            NULL, NULL);
        st = item == NULL ? tw_crypt32_nomem(err)
                          : tw_crypt32_store_add(store, item, err);
        tw_crypt32_cert_free(item);
    }
    if (st != TW_DONE) {
        tw_crypt32_store_free(store);
        return st;
    }
    *out = store;
    return TW_DONE;
}

static bool unknown_root(int32_t code)
{
    return code == (int32_t)CERT_E_UNTRUSTEDROOT
           || code == (int32_t)CERT_E_CHAINING;
}

enum tw_status tw_crypt32_cert_verify(struct tw_cert *cert,
                                      const struct tw_verify_config *config,
                                      struct tw_verdict *out,
                                      struct tw_error *err)
{
    struct trial t;
    enum tw_status st;
    DWORD failure;
    bool gathered;

    memset(out, 0, sizeof(*out));
    memset(&t, 0, sizeof(t));
    t.config = config;
    t.out = out;
    gathered = gather(&t, cert);
    failure = GetLastError();
    if (config->gathered != NULL) {
        config->gathered(config->gathered_arg);
    }
    if (!gathered) {
        st = tw_crypt32_fail(err, TW_E_TLS, failure,
                             "the verification could not run");
    } else {
        st = attempt(&t, cert, t.roots, err);
        if (st == TW_DONE && t.roots == NULL && t.more_roots != NULL
            && unknown_root(out->code)) {
            st = attempt(&t, cert, t.more_roots, err);
        }
    }
    if (st == TW_DONE && config->want_path) {
        st = chain_store(&t, cert, &out->path, err);
    }
    trial_fini(&t);
    return st;
}
