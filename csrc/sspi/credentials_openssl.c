/*
 * Credentials of the OpenSSL engine: an SSL_CTX, configured once and shared
 * by counting, and a client's sessions.
 *
 * A client's tickets are kept here and not in the SSL_CTX, by target, newest
 * first, and TLS 1.3 tickets are used once (RFC 8446, C.4). They belong to
 * the credentials, so a session is never resumed as another client; where
 * the client's certificate is chosen per connection none is kept.
 */
#include "sspi/context_openssl.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/x509v3.h>

#define SERVER_SESSIONS 1024 /* kept for resumption without a ticket */
#define SESSIONS_MAX 512     /* per credentials, all targets */
#define CLIENT_CHAIN_MAX (32 * 1024) /* bytes of a client's certificates: a
                                cached session keeps them */

static void drop_oldest_lock_held(struct tw_ocred *cred)
{
    struct tw_cached **at = &cred->sessions;

    while (*at && (*at)->next) {
        at = &(*at)->next;
    }
    if (*at) {
        SSL_SESSION_free((*at)->session);
        free(*at);
        *at = NULL;
        cred->session_count--;
    }
}

/* Would the next connection of these credentials be the same client? The
   server remembers what certificate it saw. */
static bool same_client(const struct tw_octx *c)
{
    return !c->chosen
           && !(c->asked && (c->cred->flags & TW_CRED_CHOOSES));
}

/* A client's new ticket (RFC 8446, 4.6.1): kept for the next connection
   with the same credentials to the same target. */
static int session_new(SSL *ssl, SSL_SESSION *session)
{
    struct tw_octx *c = tw_octx_of(ssl);
    struct tw_ocred *cred = c->cred;
    struct tw_cached *item;

    if (c->role != TW_CLIENT || !c->target
        || (cred->flags & TW_CRED_NO_RESUME) || !same_client(c)) {
        return 0;
    }
    item = calloc(1, sizeof(*item));
    if (!item) {
        return 0;
    }
    memcpy(item->target, c->target, strlen(c->target) + 1);
    item->session = session; /* the 1 below keeps this reference */
    tw_lock_acquire(&cred->lock);
    item->next = cred->sessions;
    cred->sessions = item;
    if (++cred->session_count > SESSIONS_MAX) {
        drop_oldest_lock_held(cred);
    }
    tw_lock_release(&cred->lock);
    return 1;
}

void tw_ocred_drop_lock_held(struct tw_ocred *cred, struct tw_cached **at)
{
    struct tw_cached *item = *at;

    *at = item->next;
    cred->session_count--;
    SSL_SESSION_free(item->session);
    free(item);
}

/* Of the credentials' lifespan, or OpenSSL's. */
static bool is_old(const SSL_SESSION *session)
{
#if OPENSSL_VERSION_NUMBER >= 0x30300000L
    time_t made = SSL_SESSION_get_time_ex(session);
#else
    time_t made = SSL_SESSION_get_time(session); /* ends in 2038 */
#endif

    return time(NULL) - made > SSL_SESSION_get_timeout(session);
}

SSL_SESSION *tw_ocred_take_session(struct tw_ocred *cred,
                                   const char *target)
{
    SSL_SESSION *found = NULL;

    tw_lock_acquire(&cred->lock);
    for (struct tw_cached **at = &cred->sessions; *at;) {
        struct tw_cached *item = *at;
        if (strcmp(item->target, target) != 0) {
            at = &item->next;
            continue;
        }
        if (is_old(item->session)) {
            tw_ocred_drop_lock_held(cred, at);
            continue;
        }
        if (SSL_SESSION_get_protocol_version(item->session)
            == TLS1_3_VERSION) {
            *at = item->next;
            cred->session_count--;
            found = item->session;
            free(item);
        } else {
            found = item->session;
            (void)SSL_SESSION_up_ref(found);
        }
        break;
    }
    tw_lock_release(&cred->lock);
    return found;
}

void tw_ocred_free(struct tw_ocred *cred)
{
    if (!cred || tw_count_down(&cred->refs) != 0) {
        return;
    }
    while (cred->sessions) {
        drop_oldest_lock_held(cred);
    }
    SSL_CTX_free(cred->ssl_ctx);
    tw_lock_fini(&cred->lock);
    free(cred);
}

static bool self_issued(X509 *x)
{
    return X509_NAME_cmp(X509_get_subject_name(x),
                         X509_get_issuer_name(x)) == 0;
}

/* The path that leads up from leaf, out of pool, without the root. New
   stack with references of its own; NULL when out of memory. */
static STACK_OF(X509) *path_from(X509 *leaf, STACK_OF(X509) *pool)
{
    STACK_OF(X509) *path = sk_X509_new_null();
    X509 *at = leaf;

    while (path && !self_issued(at) && sk_X509_num(path) < 16) {
        X509 *issuer = NULL;
        for (int i = 0; i < sk_X509_num(pool); i++) {
            X509 *x = sk_X509_value(pool, i);
            if (x != at && X509_check_issued(x, at) == X509_V_OK) {
                issuer = x;
                break;
            }
        }
        if (!issuer || self_issued(issuer)) {
            break;
        }
        if (!X509_add_cert(path, issuer, X509_ADD_FLAG_UP_REF)) {
            sk_X509_pop_free(path, X509_free);
            return NULL;
        }
        at = issuer;
    }
    return path;
}

static bool pool_add(STACK_OF(X509) *pool, struct tw_store *store)
{
    for (size_t i = 0; store && i < tw_openssl_store_count(store); i++) {
        struct tw_cert *cert = tw_openssl_store_get(store, i);
        int ok = !cert
                 || X509_add_cert(pool, cert->x509,
                                  X509_ADD_FLAG_UP_REF
                                      | X509_ADD_FLAG_NO_DUP);
        tw_openssl_cert_free(cert);
        if (!ok) {
            return false;
        }
    }
    return true;
}

static enum tw_status use_certificate(SSL_CTX *ctx, SSL *ssl,
                                      struct tw_cert *cert,
                                      struct tw_store *chain,
                                      struct tw_error *err)
{
    enum tw_status st = TW_E_NOMEM;
    STACK_OF(X509) *pool = sk_X509_new_null();
    STACK_OF(X509) *path = NULL;

    if (!cert->key) {
        st = tw_error_set(err, TW_E_ARGUMENT, SEC_E_NO_CREDENTIALS,
                          "the certificate has no private key");
        goto done;
    }
    if (!pool
        || (cert->chain
            && !X509_add_certs(pool, cert->chain, X509_ADD_FLAG_UP_REF
                                                   | X509_ADD_FLAG_NO_DUP))
        || !pool_add(pool, chain)
        || !(path = path_from(cert->x509, pool))) {
        st = tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY, "%s",
                          "out of memory");
        goto done;
    }
    ERR_clear_error();
    if (ctx ? SSL_CTX_use_cert_and_key(ctx, cert->x509, cert->key, path, 1)
            : SSL_use_cert_and_key(ssl, cert->x509, cert->key, path, 1)) {
        st = TW_DONE;
    } else {
        st = tw_openssl_fail(err, TW_E_TLS, SEC_E_UNKNOWN_CREDENTIALS,
                             "the certificate cannot be used");
    }
done:
    sk_X509_pop_free(pool, X509_free);
    sk_X509_pop_free(path, X509_free);
    return st;
}

/* Keeps the suites whose keys have min to max bits. */
static enum tw_status limit_strength(SSL_CTX *ctx, int min, int max,
                                     struct tw_error *err)
{
    char list12[4096] = "", list13[512] = "";
    STACK_OF(SSL_CIPHER) *ciphers = SSL_CTX_get_ciphers(ctx);

    for (int i = 0; i < sk_SSL_CIPHER_num(ciphers); i++) {
        const SSL_CIPHER *cipher = sk_SSL_CIPHER_value(ciphers, i);
        const char *name = SSL_CIPHER_get_name(cipher);
        bool is13 = strncmp(name, "TLS_", 4) == 0;
        char *list = is13 ? list13 : list12;
        size_t room = is13 ? sizeof(list13) : sizeof(list12);
        int bits = SSL_CIPHER_get_bits(cipher, NULL);
        if (bits < min || (max > 0 && bits > max)
            || strlen(list) + strlen(name) + 2 > room) {
            continue;
        }
        if (list[0]) {
            strcat(list, ":");
        }
        strcat(list, name);
    }
    if (!list12[0] && !list13[0]) {
        return max > 0
            ? tw_error_set(err, TW_E_ARGUMENT, SEC_E_ALGORITHM_MISMATCH,
                           "no cipher suite has a key of %d to %d bits",
                           min, max)
            : tw_error_set(err, TW_E_ARGUMENT, SEC_E_ALGORITHM_MISMATCH,
                           "no cipher suite has a key of at least %d bits",
                           min);
    }
    if (!SSL_CTX_set_ciphersuites(ctx, list13)
        || (list12[0] && !SSL_CTX_set_cipher_list(ctx, list12))) {
        return tw_openssl_fail(err, TW_E_ARGUMENT,
                               SEC_E_ALGORITHM_MISMATCH, "cipherstrength");
    }
    if (!list12[0]) {
        (void)SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    }
    return TW_DONE;
}

static enum tw_status set_protocols(SSL_CTX *ctx, uint32_t protocols,
                                    struct tw_error *err)
{
    if (protocols == 0) {
        /* at least TLS 1.2; a system policy may ask for more */
        int floor = (int)SSL_CTX_get_min_proto_version(ctx);
        if (floor < TLS1_2_VERSION) {
            (void)SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
        }
        return TW_DONE;
    }
    if (protocols & ~(uint32_t)(TW_TLS1_2 | TW_TLS1_3)) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "this engine offers TLS 1.2 and TLS 1.3 only");
    }
    if (!SSL_CTX_set_min_proto_version(
            ctx, protocols & TW_TLS1_2 ? TLS1_2_VERSION : TLS1_3_VERSION)
        || !SSL_CTX_set_max_proto_version(
            ctx, protocols & TW_TLS1_3 ? TLS1_3_VERSION : TLS1_2_VERSION)) {
        return tw_openssl_fail(err, TW_E_UNSUPPORTED,
                               SEC_E_UNSUPPORTED_FUNCTION,
                               "the protocol range is not available");
    }
    return TW_DONE;
}

static enum tw_status add_ca_names(SSL_CTX *ctx, struct tw_store *roots,
                                   struct tw_error *err)
{
    for (size_t i = 0; roots && i < tw_openssl_store_count(roots); i++) {
        struct tw_cert *cert = tw_openssl_store_get(roots, i);
        int ok = !cert || SSL_CTX_add_client_CA(ctx, cert->x509);
        tw_openssl_cert_free(cert);
        if (!ok) {
            return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                                "%s", "out of memory");
        }
    }
    return TW_DONE;
}

static enum tw_status configure(struct tw_ocred *cred,
                                const struct tw_credentials_config *config,
                                struct tw_error *err)
{
    SSL_CTX *ctx = cred->ssl_ctx;
    enum tw_status st = set_protocols(ctx, config->protocols, err);

    (void)SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY);
    (void)SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS
                                    | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_quiet_shutdown(ctx, 0);
    SSL_CTX_set_cert_verify_callback(ctx, tw_octx_verify_peer, NULL);
    SSL_CTX_set_cert_cb(ctx, tw_octx_choose_certificate, NULL);
    SSL_CTX_set_alpn_select_cb(ctx, tw_octx_choose_alpn, NULL);
    if (!cred->heard) {
        SSL_CTX_set_keylog_callback(ctx, tw_octx_secret_logged);
    }
    if (config->flags & TW_CRED_NO_RESUME) {
        (void)SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
        (void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
        (void)SSL_CTX_set_num_tickets(ctx, 0);
    } else if (config->role == TW_CLIENT) {
        (void)SSL_CTX_set_session_cache_mode(
            ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(ctx, session_new);
    } else {
        /* Sessions of TLS 1.2 clients that take no tickets stay here, 1.3
           KB each: libssl's own limit would let them grow to 27 MB. */
        (void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER);
        (void)SSL_CTX_sess_set_cache_size(ctx, SERVER_SESSIONS);
        (void)SSL_CTX_set_num_tickets(ctx, 1);
    }
    if (config->session_lifespan > 0) {
        (void)SSL_CTX_set_timeout(ctx, config->session_lifespan);
    }
    if (config->role == TW_SERVER) {
        (void)SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE);
        SSL_CTX_set_max_cert_list(ctx, CLIENT_CHAIN_MAX);
    }
    if (st == TW_DONE && config->ciphers
        && !SSL_CTX_set_cipher_list(ctx, config->ciphers)) {
        st = tw_openssl_fail(err, TW_E_ARGUMENT, SEC_E_ALGORITHM_MISMATCH,
                             "no cipher suite of the list is available");
    }
    if (st == TW_DONE && (config->min_bits > 0 || config->max_bits > 0)) {
        st = limit_strength(ctx, config->min_bits, config->max_bits, err);
    }
    for (size_t i = 0; st == TW_DONE && i < config->cert_count; i++) {
        st = use_certificate(ctx, NULL, config->certs[i], config->chain,
                             err);
        cred->has_cert = true;
    }
    if (st == TW_DONE && config->role == TW_SERVER) {
        st = add_ca_names(ctx, config->roots, err);
    }
    return st;
}

/* TWAPI_TLS_RECORDS=openssl keeps records with the SSL object. */
static bool engine_wanted(void)
{
    const char *records = getenv("TWAPI_TLS_RECORDS");

    return !records || strcmp(records, "openssl") != 0;
}

/* No private key is to meet a library context but the one that it is of. */
static SSL_CTX *new_ssl_ctx(const struct tw_credentials_config *config,
                            bool *heard)
{
    bool keyless = config->role == TW_CLIENT && config->cert_count == 0
                   && !(config->flags & TW_CRED_CHOOSES);
    OSSL_LIB_CTX *library = keyless ? tw_openssl_reading_library() : NULL;

    *heard = library != NULL;
    return SSL_CTX_new_ex(library, NULL,
                          config->role == TW_SERVER ? TLS_server_method()
                                                    : TLS_client_method());
}

enum tw_status tw_ocred_acquire(const struct tw_credentials_config *config,
                                CredHandle *out, struct tw_error *err)
{
    struct tw_ocred *cred;
    enum tw_status st;

    if (config->flags & TW_CRED_DEFAULT_CLIENT_CERT) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "OpenSSL has no default client certificate");
    }
    if (config->window != NULL) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "OpenSSL's keys ask nobody: it has no use for "
                            "a parent window");
    }
    ERR_clear_error();
    if (!tw_octx_ready() || !(cred = calloc(1, sizeof(*cred)))) {
        return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                            "%s", "out of memory");
    }
    tw_count_init(&cred->refs, 1);
    tw_lock_init(&cred->lock);
    cred->engine = engine_wanted() && tw_records_usable();
    cred->role = config->role;
    cred->flags = config->flags;
    cred->ssl_ctx = new_ssl_ctx(config, &cred->heard);
    if (!cred->ssl_ctx) {
        st = tw_openssl_fail(
            err, TW_E_TLS, SEC_E_INTERNAL_ERROR,
            EVP_default_properties_is_fips_enabled(NULL)
                ? "OpenSSL could not be set up (FIPS mode is on: does"
                  " openssl.cnf load the FIPS provider?)"
                : "OpenSSL could not be set up");
    } else {
        st = configure(cred, config, err);
    }
    if (st != TW_DONE) {
        tw_ocred_free(cred);
        return st;
    }
    out->dwLower = (uintptr_t)cred;
    out->dwUpper = 0;
    return TW_DONE;
}

SECURITY_STATUS tw_ocred_free_handle(PCredHandle handle)
{
    if (!handle || !SecIsValidHandle(handle) || !handle->dwLower) {
        return SEC_E_INVALID_HANDLE;
    }
    tw_ocred_free((struct tw_ocred *)handle->dwLower);
    SecInvalidateHandle(handle);
    return SEC_E_OK;
}
