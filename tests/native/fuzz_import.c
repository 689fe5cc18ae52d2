/*
 * Certificates and stores from bytes that anybody may have made: every
 * format, with and without a password; and whatever comes in is looked at
 * from all sides, verified, and exported.
 */
#include "fuzz.h"

#include "sspi/provider.h"

static bool swallow(void *arg, const char *key, const void *data, size_t len)
{
    size_t *sum = arg;
    size_t i;

    (void)key;
    for (i = 0; i < len; i++) {
        *sum += ((const uint8_t *)data)[i];
    }
    return true;
}

static void look_at(const struct tw_provider *p, struct tw_cert *cert,
                    struct tw_store *store)
{
    struct tw_verify_config config;
    struct tw_verdict verdict;
    struct tw_error err;
    uint8_t digest[32];
    size_t sum = 0;
    int field;

    tw_error_clear(&err);
    for (field = TW_NAME_SUBJECT_RDN; field <= TW_NAME_ISSUER_CN; field++) {
        (void)p->cert_text(cert, (enum tw_name)field, swallow, &sum, &err);
    }
    (void)p->cert_info(cert, swallow, &sum, &err);
    p->cert_digest(cert, 32, digest);
    (void)p->cert_matches(cert, "localhost", true);
    (void)p->cert_matches(cert, "127.0.0.1", false);
    (void)p->cert_has_key(cert);
    memset(&config, 0, sizeof(config));
    memset(&verdict, 0, sizeof(verdict));
    config.server = "localhost";
    config.check_name = true;
    config.roots = store;
    config.extra = store;
    config.revocation = TW_REVOKE_CHAIN;
    tw_error_clear(&err);
    (void)p->cert_verify(cert, &config, &verdict, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    const struct tw_provider *p = tw_provider_default();
    struct tw_store *store;
    struct tw_error err;
    enum tw_status st;
    size_t sum = 0;
    size_t i;
    uint8_t word;

    if (len == 0) {
        return 0;
    }
    word = data[0];
    tw_error_clear(&err);
    st = p->store_new(&store, &err);
    HOLDS(st == TW_DONE);
    st = p->store_import(store,
                         (enum tw_encoding)(word % (TW_ENC_SERIALIZED + 1)),
                         data + 1, len - 1,
                         (word & 0x80) != 0 ? "secret" : NULL, &err);
    HOLDS(st <= 0);
    if (st < 0) {
        HOLDS(err.status == st && err.detail[0] != '\0');
    }
    for (i = 0; i < p->store_count(store) && i < 8; i++) {
        struct tw_cert *cert = p->store_get(store, i);

        HOLDS(cert != NULL);
        look_at(p, cert, store);
        p->cert_free(cert);
    }
    tw_error_clear(&err);
    (void)p->store_export(store, TW_ENC_SERIALIZED, swallow, &sum, &err);
    tw_error_clear(&err);
    (void)p->store_export(store, TW_ENC_PEM, swallow, &sum, &err);
    p->store_free(store);
    return 0;
}
