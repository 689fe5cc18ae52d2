/*
 * What tells whether a certificate was revoked, beyond the CRLs at hand: the
 * OCSP answer that the server stapled, and CRLs fetched over HTTP.
 *
 * A stapled answer is believed when the certificate's own issuer signed it, or
 * a responder that the issuer delegated to (RFC 6960, 4.2.2.2), and while it
 * is fresh. Fetching happens only when it was asked for, follows only what
 * certificates of an otherwise good path say, and ends at its deadline; what
 * was fetched is judged by verify_openssl.c like any other CRL.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <string.h>
#include <strings.h>
#include <time.h>

#include <openssl/http.h>
#include <openssl/ocsp.h>
#include <openssl/x509v3.h>

#include "sspi/cert_openssl.h"

#define CRL_URLS_MAX 4                /* tried per certificate */
#define OCSP_SKEW 300                 /* seconds a clock may be off */
#define OCSP_AGE_MAX (7L * 24 * 3600) /* of an answer without nextUpdate */
#define FETCH_TIMEOUT_MS 15000        /* when none is given */

/* --- revocation: the stapled answer --- */

/* The answer about leaf among those of bs, NULL if there is none. */
static OCSP_SINGLERESP *find_answer(OCSP_BASICRESP *bs, X509 *leaf,
                                    X509 *issuer)
{
    OCSP_SINGLERESP *found = NULL;
    int i;

    for (i = 0; found == NULL && i < OCSP_resp_count(bs); i++) {
        OCSP_SINGLERESP *single = OCSP_resp_get0(bs, i);
        const OCSP_CERTID *theirs = OCSP_SINGLERESP_get0_id(single);
        ASN1_OBJECT *algorithm = NULL;
        const EVP_MD *md;
        OCSP_CERTID *ours;

        (void)OCSP_id_get0_info(NULL, &algorithm, NULL, NULL,
                                (OCSP_CERTID *)(uintptr_t)theirs);
        md = algorithm != NULL ? EVP_get_digestbyobj(algorithm) : NULL;
        ours = md != NULL ? OCSP_cert_to_id(md, leaf, issuer) : NULL;
        if (ours != NULL && OCSP_id_cmp(ours, theirs) == 0) {
            found = single;
        }
        OCSP_CERTID_free(ours);
    }
    return found;
}

/*
 * Is bs signed by the issuer, or by whom it delegated to (RFC 6960,
 * 4.2.2.2)? The issuer is taken from the path that was built, and is the
 * only anchor here, so that no other CA can speak for it.
 */
static bool answer_is_genuine(OCSP_BASICRESP *bs, X509 *issuer)
{
    X509_STORE *trust = X509_STORE_new();
    STACK_OF(X509) *known = sk_X509_new_null();
    bool genuine = false;

    if (trust != NULL && known != NULL && sk_X509_push(known, issuer) != 0
        && X509_STORE_add_cert(trust, issuer)
        && X509_STORE_set_flags(trust, X509_V_FLAG_PARTIAL_CHAIN)) {
        X509_VERIFY_PARAM_set_auth_level(X509_STORE_get0_param(trust),
                                         tw_openssl_security_level());
        genuine = OCSP_basic_verify(bs, known, trust, 0) == 1;
    }
    sk_X509_free(known);
    X509_STORE_free(trust);
    return genuine;
}

/* TW_TROUBLE_NONE: good; TW_TROUBLE_REVOKED; TW_TROUBLE_OFFLINE: stale;
   TW_TROUBLE_UNCHECKED: it does not help. */
static enum tw_trouble judge_answer(const struct tw_trial *t)
{
    const unsigned char *p = t->config->ocsp;
    X509 *issuer = sk_X509_value(t->path, 1);
    OCSP_RESPONSE *response = NULL;
    OCSP_BASICRESP *bs = NULL;
    OCSP_SINGLERESP *single;
    ASN1_GENERALIZEDTIME *from = NULL, *until = NULL;
    enum tw_trouble trouble = TW_TROUBLE_UNCHECKED;
    int status, reason;

    if (p == NULL || t->config->ocsp_len > TW_CRL_MAX || issuer == NULL) {
        return TW_TROUBLE_UNCHECKED;
    }
    response = d2i_OCSP_RESPONSE(NULL, &p, (long)t->config->ocsp_len);
    if (response == NULL
        || OCSP_response_status(response)
            != OCSP_RESPONSE_STATUS_SUCCESSFUL) {
        goto done;
    }
    bs = OCSP_response_get1_basic(response);
    single = bs != NULL ? find_answer(bs, t->leaf, issuer) : NULL;
    if (single == NULL || !answer_is_genuine(bs, issuer)) {
        goto done;
    }
    status = OCSP_single_get0_status(single, &reason, NULL, &from, &until);
    if (status == V_OCSP_CERTSTATUS_REVOKED
        && reason != OCSP_REVOKED_STATUS_CERTIFICATEHOLD) {
        trouble = TW_TROUBLE_REVOKED; /* however old: there is no way back */
    } else if (!OCSP_check_validity(from, until, OCSP_SKEW,
                                    until != NULL ? -1 : OCSP_AGE_MAX)) {
        trouble = TW_TROUBLE_OFFLINE;
    } else if (status == V_OCSP_CERTSTATUS_REVOKED) {
        trouble = TW_TROUBLE_REVOKED;
    } else if (status == V_OCSP_CERTSTATUS_GOOD) {
        trouble = TW_TROUBLE_NONE;
    }
done:
    OCSP_BASICRESP_free(bs);
    OCSP_RESPONSE_free(response);
    ERR_clear_error();
    return trouble;
}

void tw_trial_check_stapled(struct tw_trial *t)
{
    enum tw_trouble answer = judge_answer(t);

    if (answer == TW_TROUBLE_REVOKED) {
        tw_trial_note(t, TW_TROUBLE_REVOKED, 0,
                      "certificate revoked (stapled OCSP answer)", t->leaf);
    } else if (answer == TW_TROUBLE_NONE) {
        t->open[0] = 0;
    } else if (answer == TW_TROUBLE_OFFLINE && t->open[0] != 0) {
        t->open[0] = TW_TROUBLE_OFFLINE;
    }
}

/* --- revocation: fetched CRLs --- */

struct fetch {
    STACK_OF(X509_CRL) *crls; /* where to; borrowed */
    int64_t deadline;         /* milliseconds of the monotonic clock */
    int tries;                /* left for this certificate */
    bool found;               /* something, for this certificate */
};

static int64_t now_ms(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool fetch_crl(void *arg, const ASN1_STRING *where)
{
    struct fetch *f = arg;
    const unsigned char *data = ASN1_STRING_get0_data(where);
    int len = ASN1_STRING_length(where);
    int64_t left = f->deadline - now_ms();
    char *url = NULL;
    BIO *bio = NULL;
    X509_CRL *crl = NULL;

    if (left <= 0) {
        return false;
    }
    /* Plain http only (RFC 5280, 8: anything else could loop). */
    if (len < 8 || len > 2048 || strncasecmp((const char *)data, "http://",
                                             7) != 0
        || memchr(data, '\0', (size_t)len) != NULL) {
        return true;
    }
    if (f->tries-- <= 0) {
        return false;
    }
    url = OPENSSL_strndup((const char *)data, (size_t)len);
    if (url != NULL) {
        bio = OSSL_HTTP_get(url, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL,
                            NULL, 1, TW_CRL_MAX, (int)((left + 999) / 1000));
    }
    if (bio != NULL) {
        crl = d2i_X509_CRL_bio(bio, NULL);
    }
    if (crl != NULL && sk_X509_CRL_push(f->crls, crl) != 0) {
        f->found = true;
        crl = NULL;
    }
    X509_CRL_free(crl);
    BIO_free_all(bio);
    OPENSSL_free(url);
    ERR_clear_error();
    return !f->found;
}

/* CRLs for every certificate whose revocation is open; true if there are
   new ones. */
bool tw_trial_fetch_crls(struct tw_trial *t)
{
    int ms = t->config->fetch_timeout_ms;
    struct fetch f = {t->crls, 0, 0, false};
    bool any = false;
    int i;

    f.deadline = now_ms() + (ms > 0 ? ms : FETCH_TIMEOUT_MS);
    for (i = 0; i < sk_X509_num(t->path) && i < TW_DEPTH_MAX; i++) {
        if (t->open[i] == 0) {
            continue;
        }
        f.tries = CRL_URLS_MAX;
        f.found = false;
        tw_openssl_each_crl_url(sk_X509_value(t->path, i), fetch_crl, &f);
        any = any || f.found;
    }
    ERR_clear_error();
    return any;
}
