/*
 * Verification: a chain to an anchor, then usage, name and revocation.
 *
 * X509_verify_cert runs to its end, whatever it finds: the callback notes
 * every error that is not to be ignored, and the worst one becomes the
 * verdict. Revocation is noted by depth and judged last, when a stapled OCSP
 * answer, or a CRL that was fetched (revoke_openssl.c), had its say.
 */

#include <stdio.h>
#include <string.h>

#include <openssl/x509v3.h>

#include "sspi/cert_openssl.h"

#define PATHS_MAX 1024 /* intermediates to sort by where they lead */

static const struct {
    int32_t code;
    uint32_t ignore; /* TW_IGNORE_... */
} troubles[] = {
    [TW_TROUBLE_SIGNATURE] = {TRUST_E_CERT_SIGNATURE, 0},
    [TW_TROUBLE_REVOKED] = {CRYPT_E_REVOKED, TW_IGNORE_REVOCATION},
    [TW_TROUBLE_ROOT] = {CERT_E_UNTRUSTEDROOT, TW_IGNORE_UNKNOWN_CA},
    [TW_TROUBLE_CHAINING] = {CERT_E_CHAINING, TW_IGNORE_UNKNOWN_CA},
    [TW_TROUBLE_CONSTRAINTS] = {TRUST_E_BASIC_CONSTRAINTS,
                             TW_IGNORE_BASIC_CONSTRAINTS},
    [TW_TROUBLE_CRITICAL] = {CERT_E_CRITICAL, TW_IGNORE_CRITICAL},
    [TW_TROUBLE_NAME_SPACE] = {CERT_E_INVALID_NAME, 0},
    [TW_TROUBLE_POLICY] = {CERT_E_INVALID_POLICY, TW_IGNORE_POLICY},
    [TW_TROUBLE_OTHER] = {SEC_E_CERT_UNKNOWN, 0},
    [TW_TROUBLE_TIME] = {CERT_E_EXPIRED, TW_IGNORE_TIME},
    [TW_TROUBLE_USAGE] = {CERT_E_WRONG_USAGE, TW_IGNORE_USAGE},
    [TW_TROUBLE_NAME] = {CERT_E_CN_NO_MATCH, TW_IGNORE_NAME},
    [TW_TROUBLE_UNCHECKED] = {CERT_E_REVOCATION_FAILURE,
                           TW_IGNORE_REVOCATION
                               | TW_IGNORE_REVOCATION_OFFLINE},
    [TW_TROUBLE_OFFLINE] = {CRYPT_E_REVOCATION_OFFLINE,
                         TW_IGNORE_REVOCATION
                             | TW_IGNORE_REVOCATION_OFFLINE},
    [TW_TROUBLE_NONE] = {0, 0},
};

static enum tw_trouble trouble_of(int error)
{
    switch (error) {
    case X509_V_OK:
        return TW_TROUBLE_NONE;
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_UNABLE_TO_DECRYPT_CERT_SIGNATURE:
    case X509_V_ERR_UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY:
    case X509_V_ERR_SIGNATURE_ALGORITHM_MISMATCH:
    case X509_V_ERR_EE_KEY_TOO_SMALL:
    case X509_V_ERR_CA_KEY_TOO_SMALL:
    case X509_V_ERR_CA_MD_TOO_WEAK:
        return TW_TROUBLE_SIGNATURE;
    case X509_V_ERR_CERT_REVOKED:
        return TW_TROUBLE_REVOKED;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_UNTRUSTED:
    case X509_V_ERR_CERT_REJECTED:
        return TW_TROUBLE_ROOT;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_CHAIN_TOO_LONG:
    case X509_V_ERR_SUBJECT_ISSUER_MISMATCH:
    case X509_V_ERR_AKID_SKID_MISMATCH:
    case X509_V_ERR_AKID_ISSUER_SERIAL_MISMATCH:
        return TW_TROUBLE_CHAINING;
    case X509_V_ERR_INVALID_CA:
    case X509_V_ERR_INVALID_NON_CA:
    case X509_V_ERR_PATH_LENGTH_EXCEEDED:
    case X509_V_ERR_PROXY_PATH_LENGTH_EXCEEDED:
    case X509_V_ERR_PROXY_CERTIFICATES_NOT_ALLOWED:
    case X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA:
    case X509_V_ERR_PATHLEN_WITHOUT_KU_KEY_CERT_SIGN:
    case X509_V_ERR_KU_KEY_CERT_SIGN_INVALID_FOR_NON_CA:
    case X509_V_ERR_CA_BCONS_NOT_CRITICAL:
        return TW_TROUBLE_CONSTRAINTS;
    case X509_V_ERR_UNHANDLED_CRITICAL_EXTENSION:
        return TW_TROUBLE_CRITICAL;
    case X509_V_ERR_PERMITTED_VIOLATION:
    case X509_V_ERR_EXCLUDED_VIOLATION:
    case X509_V_ERR_SUBTREE_MINMAX:
    case X509_V_ERR_UNSUPPORTED_CONSTRAINT_TYPE:
    case X509_V_ERR_UNSUPPORTED_CONSTRAINT_SYNTAX:
    case X509_V_ERR_UNSUPPORTED_NAME_SYNTAX:
    case X509_V_ERR_PROXY_SUBJECT_NAME_VIOLATION:
        return TW_TROUBLE_NAME_SPACE;
    case X509_V_ERR_INVALID_POLICY_EXTENSION:
    case X509_V_ERR_NO_EXPLICIT_POLICY:
        return TW_TROUBLE_POLICY;
    case X509_V_ERR_CERT_NOT_YET_VALID:
    case X509_V_ERR_CERT_HAS_EXPIRED:
    case X509_V_ERR_ERROR_IN_CERT_NOT_BEFORE_FIELD:
    case X509_V_ERR_ERROR_IN_CERT_NOT_AFTER_FIELD:
        return TW_TROUBLE_TIME;
    case X509_V_ERR_INVALID_PURPOSE:
    case X509_V_ERR_KEYUSAGE_NO_CERTSIGN:
    case X509_V_ERR_KEYUSAGE_NO_DIGITAL_SIGNATURE:
        return TW_TROUBLE_USAGE;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
    case X509_V_ERR_EMAIL_MISMATCH:
        return TW_TROUBLE_NAME;
    case X509_V_ERR_CRL_HAS_EXPIRED:
    case X509_V_ERR_CRL_NOT_YET_VALID:
        return TW_TROUBLE_OFFLINE;
    case X509_V_ERR_UNABLE_TO_GET_CRL:
    case X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER:
    case X509_V_ERR_UNABLE_TO_DECRYPT_CRL_SIGNATURE:
    case X509_V_ERR_CRL_SIGNATURE_FAILURE:
    case X509_V_ERR_ERROR_IN_CRL_LAST_UPDATE_FIELD:
    case X509_V_ERR_ERROR_IN_CRL_NEXT_UPDATE_FIELD:
    case X509_V_ERR_KEYUSAGE_NO_CRL_SIGN:
    case X509_V_ERR_UNHANDLED_CRITICAL_CRL_EXTENSION:
    case X509_V_ERR_DIFFERENT_CRL_SCOPE:
    case X509_V_ERR_CRL_PATH_VALIDATION_ERROR:
    case X509_V_ERR_OCSP_VERIFY_NEEDED:
    case X509_V_ERR_OCSP_VERIFY_FAILED:
    case X509_V_ERR_OCSP_CERT_UNKNOWN:
        return TW_TROUBLE_UNCHECKED;
    default:
        return TW_TROUBLE_OTHER;
    }
}

int32_t tw_openssl_verify_code(int x509_error)
{
    return troubles[trouble_of(x509_error)].code;
}

void tw_trial_note(struct tw_trial *t, enum tw_trouble trouble, int depth,
                   const char *text, const X509 *x509)
{
    BIO *bio;
    char *name = NULL;
    long len;
    size_t at;

    if (trouble >= t->worst || (troubles[trouble].ignore & t->ignore) != 0) {
        return;
    }
    t->worst = trouble;
    t->depth = depth;
    tw_openssl_copy_text(t->detail, sizeof t->detail, text, strlen(text));
    bio = x509 != NULL
        ? tw_openssl_name_text(X509_get_subject_name(x509)) : NULL;
    len = bio != NULL ? BIO_get_mem_data(bio, &name) : 0;
    at = strlen(t->detail);
    if (len > 0 && at + 8 < sizeof t->detail) {
        memcpy(t->detail + at, ": ", 2);
        tw_openssl_copy_text(t->detail + at + 2, sizeof t->detail - at - 2,
                             name, (size_t)len);
    }
    BIO_free(bio);
}

/*
 * Revocation of one certificate could not be settled. The anchor is the
 * exception: no one stands above it who could revoke it, and roots do not
 * name a CRL for themselves.
 */
static void note_open(struct tw_trial *t, X509_STORE_CTX *ctx,
                      enum tw_trouble trouble, int depth)
{
    STACK_OF(X509) *path = X509_STORE_CTX_get0_chain(ctx);
    int top = sk_X509_num(path) - 1;
    bool anchor = depth == top
        && (!t->broken || X509_self_signed(sk_X509_value(path, top), 0) == 1);

    if (depth < 0 || depth >= TW_DEPTH_MAX
        || (anchor && (trouble == TW_TROUBLE_UNCHECKED
                       || t->config->revocation
                           == TW_REVOKE_CHAIN_NO_ROOT))) {
        return;
    }
    if (t->open[depth] == 0 || trouble == TW_TROUBLE_OFFLINE) {
        t->open[depth] = (unsigned char)trouble;
    }
}

static int on_verify(int ok, X509_STORE_CTX *ctx)
{
    struct tw_trial *t = X509_STORE_CTX_get_app_data(ctx);
    int error = X509_STORE_CTX_get_error(ctx);
    int depth = X509_STORE_CTX_get_error_depth(ctx);
    enum tw_trouble trouble;

    if (ok || t == NULL) {
        return ok; /* t is NULL in a path of its own, for a CRL's signer */
    }
    if (error == X509_V_ERR_OUT_OF_MEM || error == X509_V_ERR_INVALID_CALL
        || error == X509_V_ERR_STORE_LOOKUP) {
        return 0;
    }
    trouble = trouble_of(error);
    if (trouble == TW_TROUBLE_UNCHECKED || trouble == TW_TROUBLE_OFFLINE) {
        /* Nothing of an unsound CRL is to be believed. */
        if (error != X509_V_ERR_UNABLE_TO_GET_CRL
            && trouble == TW_TROUBLE_UNCHECKED) {
            t->bad_crl = X509_STORE_CTX_get0_current_crl(ctx);
        }
        note_open(t, ctx, trouble, depth);
        return 1;
    }
    if (trouble == TW_TROUBLE_REVOKED
        && ((t->bad_crl != NULL
             && t->bad_crl == X509_STORE_CTX_get0_current_crl(ctx))
            || (t->config->revocation == TW_REVOKE_CHAIN_NO_ROOT
                && depth == sk_X509_num(X509_STORE_CTX_get0_chain(ctx)) - 1
                && depth > 0))) {
        return 1;
    }
    if (trouble == TW_TROUBLE_ROOT || trouble == TW_TROUBLE_CHAINING) {
        t->broken = true;
    }
    tw_trial_note(t, trouble, depth, X509_verify_cert_error_string(error),
                  X509_STORE_CTX_get_current_cert(ctx));
    return 1;
}

static CRYPTO_ONCE level_once = CRYPTO_ONCE_STATIC_INIT;
static int level;

/* A fresh SSL_CTX has read openssl.cnf. */
static void level_init(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());

    level = ctx != NULL ? SSL_CTX_get_security_level(ctx)
                        : TW_SECURITY_LEVEL;
    SSL_CTX_free(ctx);
    ERR_clear_error();
}

int tw_openssl_security_level(void)
{
    return CRYPTO_THREAD_run_once(&level_once, level_init)
        ? level : TW_SECURITY_LEVEL;
}

/* Runs X509_verify_cert over what there is; false if it could not run. */
static bool build_path(struct tw_trial *t)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    X509_VERIFY_PARAM *param;
    /* requireExplicitPolicy is to be heeded (RFC 5280, 6.1). */
    unsigned long flags = X509_V_FLAG_POLICY_CHECK;
    int error;
    bool ok = false;

    t->worst = TW_TROUBLE_NONE;
    t->depth = 0;
    t->detail[0] = '\0';
    t->broken = false;
    t->bad_crl = NULL;
    memset(t->open, 0, sizeof t->open);
    sk_X509_pop_free(t->path, X509_free);
    t->path = NULL;

    if (ctx == NULL
        || !X509_STORE_CTX_init(ctx, t->trust, t->leaf, t->extra)) {
        goto done;
    }
    if (t->revocation) {
        flags |= X509_V_FLAG_CRL_CHECK;
        if (t->config->revocation != TW_REVOKE_LEAF) {
            flags |= X509_V_FLAG_CRL_CHECK_ALL;
        }
    }
    param = X509_STORE_CTX_get0_param(ctx);
    (void)X509_VERIFY_PARAM_set_flags(param, flags);
    X509_VERIFY_PARAM_set_auth_level(param, tw_openssl_security_level());
    /* What "TRUSTED CERTIFICATE" says; the usages are seen to below. */
    (void)X509_VERIFY_PARAM_set_trust(param, t->config->server != NULL
                                                 ? X509_TRUST_SSL_SERVER
                                                 : X509_TRUST_SSL_CLIENT);
    X509_STORE_CTX_set0_crls(ctx, t->crls);
    X509_STORE_CTX_set_verify_cb(ctx, on_verify);
    if (!X509_STORE_CTX_set_app_data(ctx, t)) {
        goto done;
    }
    ok = X509_verify_cert(ctx) == 1;
    if (!ok) {
        error = X509_STORE_CTX_get_error(ctx);
        ok = error != X509_V_OK && error != X509_V_ERR_OUT_OF_MEM
            && error != X509_V_ERR_INVALID_CALL
            && error != X509_V_ERR_STORE_LOOKUP;
        if (ok && t->worst == TW_TROUBLE_NONE) {
            /* It gave up without asking: no flag may turn that to good. */
            t->ignore = 0;
            tw_trial_note(t, trouble_of(error), 0,
                          X509_verify_cert_error_string(error), t->leaf);
        }
    }
    if (ok) {
        t->path = X509_STORE_CTX_get1_chain(ctx);
        ok = t->path != NULL;
    }
done:
    X509_STORE_CTX_free(ctx);
    return ok;
}

/* --- usages --- */

static bool allows_usage(X509 *x509, const char *oid)
{
    EXTENDED_KEY_USAGE *eku;
    char text[128];
    bool allowed = false;
    int at = -1, i;

    eku = X509_get_ext_d2i(x509, NID_ext_key_usage, &at, NULL);
    if (eku == NULL) {
        return at == -1; /* no such extension; otherwise it is damaged */
    }
    for (i = 0; !allowed && i < sk_ASN1_OBJECT_num(eku); i++) {
        const ASN1_OBJECT *object = sk_ASN1_OBJECT_value(eku, i);
        int len = OBJ_obj2txt(text, sizeof text, object, 1);
        allowed = OBJ_obj2nid(object) == NID_anyExtendedKeyUsage
            || (len > 0 && (size_t)len < sizeof text
                && strcmp(text, oid) == 0);
    }
    EXTENDED_KEY_USAGE_free(eku);
    return allowed;
}

/* The depth of the first certificate that does not allow oid, or -1. The
   anchor is not asked, unless it is the leaf itself: trusting it was a
   decision, not a matter of what it says. */
static int usage_refused(const struct tw_trial *t, const char *oid)
{
    int n = sk_X509_num(t->path), i;

    if (!allows_usage(t->leaf, oid)) {
        return 0;
    }
    for (i = 1; i < (t->broken ? n : n - 1); i++) {
        if (!allows_usage(sk_X509_value(t->path, i), oid)) {
            return i;
        }
    }
    return -1;
}

/* RFC 5280, 4.2.1.12 and 4.2.1.3. */
static void check_usages(struct tw_trial *t)
{
    static const char *const server_auth[] = {"1.3.6.1.5.5.7.3.1"};
    static const char *const client_auth[] = {"1.3.6.1.5.5.7.3.2"};
    const struct tw_verify_config *config = t->config;
    const char *const *usages = config->usages;
    size_t count = config->usage_count, i;
    uint32_t bits = KU_DIGITAL_SIGNATURE | KU_KEY_AGREEMENT;
    int refused = -1;

    if (usages == NULL) {
        usages = config->server != NULL ? server_auth : client_auth;
        count = 1;
    }
    for (i = 0; i < count; i++) {
        refused = usage_refused(t, usages[i]);
        if ((refused < 0) == config->usage_any) {
            break; /* one of any is found, or one of all is not */
        }
    }
    if (refused >= 0) {
        tw_trial_note(t, TW_TROUBLE_USAGE, refused,
                      "not meant for this use (extendedKeyUsage)",
                      sk_X509_value(t->path, refused));
    }
    if (config->server != NULL) {
        bits |= KU_KEY_ENCIPHERMENT; /* RSA key exchange of TLS 1.2 */
    }
    if (config->usages == NULL
        && (X509_get_key_usage(t->leaf) & bits) == 0) {
        tw_trial_note(t, TW_TROUBLE_USAGE, 0,
                      "not meant for this use (keyUsage)", t->leaf);
    }
}

static void check_name(struct tw_trial *t)
{
    const struct tw_verify_config *config = t->config;
    char text[200];

    if (!config->check_name || config->server == NULL
        || tw_openssl_x509_matches(t->leaf, config->server,
                                   config->common_name)) {
        return;
    }
    (void)snprintf(text, sizeof text, "not issued for '%.120s'",
                   config->server);
    tw_trial_note(t, TW_TROUBLE_NAME, 0, text, t->leaf);
}

/* --- revocation: what is left open --- */

static void judge_open(struct tw_trial *t)
{
    int i;

    for (i = 0; i < sk_X509_num(t->path) && i < TW_DEPTH_MAX; i++) {
        if (t->open[i] == TW_TROUBLE_OFFLINE) {
            tw_trial_note(t, TW_TROUBLE_OFFLINE, i,
                          "revocation information is stale",
                          sk_X509_value(t->path, i));
        } else if (t->open[i] != 0) {
            tw_trial_note(t, TW_TROUBLE_UNCHECKED, i,
                          "nothing tells whether it was revoked",
                          sk_X509_value(t->path, i));
        }
    }
}

static void check_all(struct tw_trial *t)
{
    check_usages(t);
    check_name(t);
    if (t->revocation) {
        tw_trial_check_stapled(t);
    }
}

/* --- putting it together --- */

/* Which anchors these are: read before the anchors, so that a set that
   changes meanwhile is never taken for the older one's. */
static bool name_trust(struct tw_trial *t)
{
    const struct tw_verify_config *config = t->config;

    t->anchors[1] = tw_openssl_store_edition(config->more_roots);
    if (config->roots != NULL) {
        t->anchors[0] = tw_openssl_store_edition(config->roots);
        return true;
    }
    return tw_openssl_system_roots(NULL, NULL, &t->anchors[0]);
}

/* The anchors: given ones, the system's, or the system's and more. */
static bool gather_trust(struct tw_trial *t)
{
    const struct tw_verify_config *config = t->config;
    STACK_OF(X509) *certs = NULL;
    bool ok = false;

    if (config->roots == NULL && config->more_roots == NULL) {
        return tw_openssl_system_roots(&t->trust, NULL, NULL);
    }
    if (config->roots != NULL) {
        certs = sk_X509_new_null();
    } else if (!tw_openssl_system_roots(NULL, &certs, NULL)) {
        return false;
    }
    t->trust = X509_STORE_new();
    ok = t->trust != NULL && certs != NULL
        && tw_openssl_store_snapshot(config->roots, certs, t->crls)
        && tw_openssl_store_snapshot(config->more_roots, certs, t->crls)
        && tw_openssl_trust_all(t->trust, certs)
        && X509_STORE_set_flags(t->trust, X509_V_FLAG_PARTIAL_CHAIN);
    sk_X509_pop_free(certs, X509_free);
    return ok;
}

static bool gather(struct tw_trial *t, struct tw_cert *cert)
{
    int i;

    t->extra = sk_X509_new_null();
    t->crls = sk_X509_CRL_new_null();
    if (t->extra == NULL || t->crls == NULL
        || !tw_openssl_store_snapshot(t->config->extra, t->extra, t->crls)) {
        return false;
    }
    for (i = 0; i < sk_X509_num(cert->chain); i++) {
        X509 *x509 = sk_X509_value(cert->chain, i);
        if (sk_X509_push(t->extra, x509) == 0) {
            return false;
        }
        (void)X509_up_ref(x509);
    }
    return true;
}

/* --- the other paths --- */

/* Marks those of extra that lead to an anchor, nearest first, in order. */
static bool mark_anchored(X509_STORE_CTX *ctx, STACK_OF(X509) *extra,
                          bool *marked, STACK_OF(X509) *order)
{
    int n = sk_X509_num(extra), i, k;
    X509 *issuer = NULL;

    for (i = 0; i < n; i++) {
        X509 *x509 = sk_X509_value(extra, i);
        if (X509_STORE_CTX_get1_issuer(&issuer, ctx, x509) == 1) {
            X509_free(issuer);
            marked[i] = true;
            if (sk_X509_push(order, x509) == 0) {
                return false;
            }
        }
    }
    for (k = 0; k < sk_X509_num(order); k++) {
        for (i = 0; i < n; i++) {
            X509 *x509 = sk_X509_value(extra, i);
            if (marked[i]
                || X509_check_issued(sk_X509_value(order, k), x509)
                    != X509_V_OK) {
                continue;
            }
            marked[i] = true;
            if (sk_X509_push(order, x509) == 0) {
                return false;
            }
        }
    }
    return true;
}

/*
 * X509_verify_cert takes the first issuer that fits and never turns back
 * (RFC 4158 calls for more where CAs sign each other). Here those that
 * lead to an anchor are moved to the front. False if that changes nothing,
 * or out of memory.
 */
static bool anchored_first(struct tw_trial *t)
{
    int n = sk_X509_num(t->extra), i;
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    STACK_OF(X509) *order = sk_X509_new_null();
    bool *marked = n > 1 && n <= PATHS_MAX
        ? OPENSSL_zalloc((size_t)n * sizeof *marked) : NULL;
    bool ok = ctx != NULL && order != NULL && marked != NULL
        && X509_STORE_CTX_init(ctx, t->trust, t->leaf, NULL) == 1
        && mark_anchored(ctx, t->extra, marked, order)
        && sk_X509_num(order) > 0;

    for (i = 0; ok && i < n; i++) {
        ok = marked[i]
            || sk_X509_push(order, sk_X509_value(t->extra, i)) != 0;
    }
    if (ok) {
        sk_X509_free(t->extra); /* the references moved */
        t->extra = order;
        order = NULL;
    }
    OPENSSL_free(marked);
    sk_X509_free(order);
    X509_STORE_CTX_free(ctx);
    ERR_clear_error();
    return ok;
}

/* A path; another one where the first does not end at an anchor. */
static bool build_best_path(struct tw_trial *t)
{
    uint32_t ignore = t->ignore;

    if (!build_path(t)) {
        return false;
    }
    if (t->broken && anchored_first(t)) {
        t->ignore = ignore;
        return build_path(t);
    }
    return true;
}

enum tw_status tw_openssl_cert_verify(struct tw_cert *cert,
                                      const struct tw_verify_config *config,
                                      struct tw_verdict *out,
                                      struct tw_error *err)
{
    struct tw_trial t;
    enum tw_status status = TW_DONE;
    bool gathered, known;

    memset(out, 0, sizeof *out);
    memset(&t, 0, sizeof t);
    ERR_clear_error();
    t.config = config;
    t.leaf = cert->x509;
    t.ignore = config->ignore;
    t.revocation = config->revocation != TW_REVOKE_NONE
        && (config->ignore & TW_IGNORE_REVOCATION) == 0;

    t.now = time(NULL);
    t.worst = TW_TROUBLE_NONE;
    gathered = gather(&t, cert) && name_trust(&t);
    known = gathered && tw_trial_recall(&t);
    gathered = gathered && (known || gather_trust(&t));
    if (config->gathered != NULL) {
        config->gathered(config->gathered_arg);
    }
    if (!gathered || !(known || build_best_path(&t))) {
        status = tw_openssl_fail(err, TW_E_NOMEM, SEC_E_INTERNAL_ERROR,
                                 "the verification could not run");
        goto done;
    }
    if (!known) {
        tw_trial_remember(&t);
    }
    check_all(&t);
    /* URLs are followed only of a path that is good so far. */
    if (t.revocation && config->fetch && t.worst == TW_TROUBLE_NONE
        && tw_trial_fetch_crls(&t)) {
        if (!build_path(&t)) {
            status = tw_openssl_fail(err, TW_E_NOMEM, SEC_E_INTERNAL_ERROR,
                                     "the verification could not run");
            goto done;
        }
        check_all(&t);
    }
    judge_open(&t);
    if (config->want_path) {
        status = tw_openssl_store_of(cert, t.path, &out->path, err);
    }
    out->code = troubles[t.worst].code;
    out->depth = t.depth;
    memcpy(out->detail, t.detail, sizeof out->detail);
done:
    X509_STORE_free(t.trust);
    sk_X509_pop_free(t.extra, X509_free);
    sk_X509_CRL_pop_free(t.crls, X509_CRL_free);
    sk_X509_pop_free(t.path, X509_free);
    ERR_clear_error();
    return status;
}
