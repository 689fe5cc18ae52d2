/*
 * In the place of cert_crypt32.c and its kin: certificates of the scripted
 * engine, wrapped so that provider_schannel.c sees crypt32's contexts.
 *
 * A certificate is text, lines of "key=value". Besides what cert_info shows
 * there are lines that only this file reads:
 *   key=none       it has no private key
 *   trouble=CODE   why its key cannot be used (tw_crypt32_key_trouble)
 *   install=no     its issuers cannot be installed
 *   staple=TEXT    the OCSP answer, "staple" without it; "none" is none,
 *                  "gone" one that cannot be read
 * The certificates are counted by their script, as those of its own
 * provider are: `played` is one of those, and never looked into here.
 */
#include "sspi/schannel_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The tests make the allocations of the engine fail, not those of this:
 * in parentheses, no macro of counted.h's. */
static void *keep(size_t len)
{
    void *p = (malloc)(len);

    if (p == NULL) {
        abort();
    }
    memset(p, 0, len);
    return p;
}

/* --- contexts --- */

PCCERT_CONTEXT tw_sdk_context_new(struct tw_script *script,
                                  const uint8_t *text, size_t len)
{
    CERT_CONTEXT *ctx = keep(sizeof(*ctx));

    ctx->refs = keep(sizeof(*ctx->refs));
    tw_count_init(ctx->refs, 1);
    ctx->played = tw_script_cert_new(script, text, len);
    return ctx;
}

BOOL CertFreeCertificateContext(PCCERT_CONTEXT ctx)
{
    if (ctx != NULL && tw_count_down(ctx->refs) == 0) {
        tw_provider_scripted.cert_free(ctx->played);
        (free)(ctx->refs);
        (free)((void *)(uintptr_t)ctx);
    }
    return TRUE;
}

struct wanted {
    const char *key;
    char value[200];
    bool found;
};

static bool take(void *arg, const char *key, const void *data, size_t len)
{
    struct wanted *w = arg;

    if (strcmp(key, w->key) != 0) {
        return true;
    }
    w->found = true;
    (void)snprintf(w->value, sizeof(w->value), "%.*s", (int)len,
                   (const char *)data);
    return false;
}

static struct wanted line_of(PCCERT_CONTEXT ctx, const char *key)
{
    struct wanted w = {.key = key};

    (void)tw_provider_scripted.cert_info(ctx->played, take, &w, NULL);
    return w;
}

BOOL CertGetCertificateContextProperty(PCCERT_CONTEXT ctx, DWORD property,
                                       void *data, DWORD *len)
{
    struct wanted w = line_of(ctx, "staple");

    if (!w.found) {
        (void)snprintf(w.value, sizeof(w.value), "staple");
    }
    if (property != CERT_OCSP_RESPONSE_PROP_ID
        || strcmp(w.value, "none") == 0
        || (data != NULL && strcmp(w.value, "gone") == 0)) {
        return FALSE;
    }
    if (data != NULL) {
        memcpy(data, w.value, *len);
    }
    *len = (DWORD)strlen(w.value);
    return TRUE;
}

/* --- what the session and the credentials call --- */

struct tw_cert *tw_crypt32_cert_new(PCCERT_CONTEXT ctx, struct tw_key *key,
                                    HCERTSTORE chain)
{
    struct tw_cert *cert = calloc(1, sizeof(*cert));

    (void)key;
    (void)chain;
    if (cert == NULL) {
        (void)CertFreeCertificateContext(ctx);
        return NULL;
    }
    tw_count_init(&cert->refs, 1);
    cert->ctx = ctx;
    return cert;
}

struct tw_cert *tw_sdk_cert_new(struct tw_script *script,
                                const uint8_t *text, size_t len)
{
    return tw_crypt32_cert_new(tw_sdk_context_new(script, text, len), NULL,
                               NULL);
}

struct tw_cert *tw_crypt32_cert_ref(struct tw_cert *cert)
{
    if (cert != NULL) {
        tw_count_up(&cert->refs);
    }
    return cert;
}

void tw_crypt32_cert_free(struct tw_cert *cert)
{
    if (cert != NULL && tw_count_down(&cert->refs) == 0) {
        (void)CertFreeCertificateContext(cert->ctx);
        free(cert);
    }
}

void tw_crypt32_cert_der(struct tw_cert *cert, const uint8_t **der,
                         size_t *len)
{
    tw_provider_scripted.cert_der(cert->ctx->played, der, len);
}

bool tw_crypt32_cert_has_key(struct tw_cert *cert)
{
    return strcmp(line_of(cert->ctx, "key").value, "none") != 0;
}

int32_t tw_crypt32_key_trouble(struct tw_cert *cert)
{
    return (int32_t)strtol(line_of(cert->ctx, "trouble").value, NULL, 10);
}

enum tw_status tw_crypt32_install_chain(struct tw_cert *cert,
                                        struct tw_store *more,
                                        struct tw_error *err)
{
    (void)more;
    if (line_of(cert->ctx, "install").found) {
        return tw_error_set(err, TW_E_OS, SEC_E_NO_CREDENTIALS,
                            "the user's CA store takes no certificate");
    }
    return TW_DONE;
}

enum tw_status tw_crypt32_cert_info(struct tw_cert *cert, tw_sink sink,
                                    void *arg, struct tw_error *err)
{
    return tw_provider_scripted.cert_info(cert->ctx->played, sink, arg, err);
}

bool tw_crypt32_cert_matches(struct tw_cert *cert, const char *host, bool cn)
{
    return tw_provider_scripted.cert_matches(cert->ctx->played, host, cn);
}

enum tw_status tw_crypt32_store_new(struct tw_store **out,
                                    struct tw_error *err)
{
    struct tw_store *store = keep(sizeof(*store));

    (void)err;
    tw_count_init(&store->refs, 1);
    *out = store;
    return TW_DONE;
}

struct tw_store *tw_crypt32_store_ref(struct tw_store *store)
{
    tw_count_up(&store->refs);
    return store;
}

void tw_crypt32_store_free(struct tw_store *store)
{
    if (store != NULL && tw_count_down(&store->refs) == 0) {
        (free)(store);
    }
}

/* --- what the provider's table names and the core never calls --- */

static enum tw_status not_played(struct tw_error *err)
{
    return tw_error_set(err, TW_E_UNSUPPORTED, SEC_E_UNSUPPORTED_FUNCTION,
                        "certificates are only held and compared here");
}

enum tw_status tw_crypt32_cert_chain(struct tw_cert *cert,
                                     struct tw_store **out,
                                     struct tw_error *err)
{
    (void)cert;
    (void)out;
    return not_played(err);
}

enum tw_status tw_crypt32_cert_text(struct tw_cert *cert, enum tw_name name,
                                    tw_sink sink, void *arg,
                                    struct tw_error *err)
{
    (void)cert;
    (void)name;
    (void)sink;
    (void)arg;
    return not_played(err);
}

void tw_crypt32_cert_digest(struct tw_cert *cert, int bytes, uint8_t *out)
{
    (void)cert;
    memset(out, 0, (size_t)bytes);
}

enum tw_status tw_crypt32_cert_verify(struct tw_cert *cert,
                                      const struct tw_verify_config *config,
                                      struct tw_verdict *out,
                                      struct tw_error *err)
{
    (void)cert;
    (void)config;
    (void)out;
    return not_played(err);
}

enum tw_status tw_crypt32_store_open(const char *name, const char *location,
                                     struct tw_store **out,
                                     struct tw_error *err)
{
    (void)name;
    (void)location;
    (void)out;
    return not_played(err);
}

enum tw_status tw_crypt32_store_import(struct tw_store *store,
                                       enum tw_encoding encoding,
                                       const uint8_t *data, size_t len,
                                       const char *password,
                                       struct tw_error *err)
{
    (void)store;
    (void)encoding;
    (void)data;
    (void)len;
    (void)password;
    return not_played(err);
}

enum tw_status tw_crypt32_store_add(struct tw_store *store,
                                    struct tw_cert *cert,
                                    struct tw_error *err)
{
    (void)store;
    (void)cert;
    return not_played(err);
}

size_t tw_crypt32_store_count(struct tw_store *store)
{
    return store->count;
}

struct tw_cert *tw_crypt32_store_get(struct tw_store *store, size_t index)
{
    (void)store;
    (void)index;
    return NULL;
}

enum tw_status tw_crypt32_store_export(struct tw_store *store,
                                       enum tw_encoding encoding,
                                       tw_sink sink, void *arg,
                                       struct tw_error *err)
{
    (void)store;
    (void)encoding;
    (void)sink;
    (void)arg;
    return not_played(err);
}
