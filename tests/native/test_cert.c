/*
 * Contract of the certificate half of the OpenSSL engine, on certificates
 * made here: keys marry their certificates, passwords are told apart from
 * damage, names match as RFC 6125 says, verdicts have the right code, and a
 * path is remembered as long as it is valid.
 *
 * Exit status 0 and one line per failure. Needs the OpenSSL rooms of csrc/sspi,
 * csrc/core/status.c, libssl, libcrypto.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>

#include "sspi/cert_openssl.h"

static int failures;

static void check(bool ok, int line, const char *what)
{
    if (!ok) {
        failures++;
        printf("test_cert.c:%d: %s\n", line, what);
    }
}
#define CHECK(x) check((x), __LINE__, #x)

static X509 *make(const char *cn, EVP_PKEY *key, X509 *issuer,
                  EVP_PKEY *issuer_key, const char *san, const char *eku,
                  long days)
{
    X509 *x = X509_new();
    X509_NAME *name = X509_NAME_new();
    struct {
        int nid;
        const char *value;
    } ext[] = {
        {NID_basic_constraints, issuer == NULL ? "critical,CA:TRUE" : NULL},
        {NID_subject_alt_name, san},
        {NID_ext_key_usage, eku},
    };
    static long serial = 1;
    size_t i;

    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                               (const unsigned char *)cn, -1, -1, 0);
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
    X509_gmtime_adj(X509_getm_notBefore(x), -10L * 86400);
    X509_gmtime_adj(X509_getm_notAfter(x), days * 86400);
    X509_set_subject_name(x, name);
    X509_set_issuer_name(
        x, issuer != NULL ? X509_get_subject_name(issuer) : name);
    X509_set_pubkey(x, key);
    for (i = 0; i < sizeof ext / sizeof ext[0]; i++) {
        X509_EXTENSION *e = ext[i].value != NULL
            ? X509V3_EXT_conf_nid(NULL, NULL, ext[i].nid, ext[i].value)
            : NULL;
        if (e != NULL) {
            X509_add_ext(x, e, -1);
            X509_EXTENSION_free(e);
        }
    }
    X509_sign(x, issuer_key != NULL ? issuer_key : key, EVP_sha256());
    X509_NAME_free(name);
    return x;
}

/* Imports what bio holds, and empties it. */
static enum tw_status import(struct tw_store *store, BIO *bio,
                             const char *password, struct tw_error *err)
{
    uint8_t *data = NULL;
    long len = BIO_get_mem_data(bio, &data);
    enum tw_status status;

    tw_error_clear(err);
    status = tw_openssl_store_import(store, TW_ENC_PEM, data, (size_t)len,
                                     password, err);
    (void)BIO_reset(bio);
    return status;
}

static void test_import(X509 *root, X509 *leaf, EVP_PKEY *key,
                        EVP_PKEY *stranger)
{
    static char password[] = "s\xC3\xA9" "cret";
    struct tw_store *store = NULL;
    struct tw_cert *cert;
    struct tw_error err;
    BIO *bio = BIO_new(BIO_s_mem());
    int i;

    CHECK(tw_openssl_store_new(&store, &err) == TW_DONE);
    PEM_write_bio_X509(bio, leaf);
    PEM_write_bio_X509(bio, root);
    CHECK(import(store, bio, NULL, &err) == TW_DONE);
    for (i = 0; i < 2; i++) {
        PEM_write_bio_PKCS8PrivateKey(bio, key, EVP_aes_256_cbc(), NULL, 0,
                                      NULL, password);
        CHECK(import(store, bio, i == 0 ? NULL : "wrong", &err)
              == TW_E_PASSWORD);
        CHECK(err.detail[0] != '\0');
    }
    PEM_write_bio_PrivateKey(bio, stranger, NULL, NULL, 0, NULL, NULL);
    CHECK(import(store, bio, NULL, &err) == TW_E_ARGUMENT);
    CHECK(strcmp(err.detail,
                 "the private key does not match any certificate") == 0);
    PEM_write_bio_PKCS8PrivateKey(bio, key, EVP_aes_256_cbc(), NULL, 0, NULL,
                                  password);
    CHECK(import(store, bio, password, &err) == TW_DONE);
    cert = tw_openssl_store_get(store, 0);
    CHECK(cert != NULL && tw_openssl_cert_has_key(cert));
    CHECK(cert != NULL && sk_X509_num(cert->chain) == 1);
    CHECK(tw_openssl_store_count(store) == 2);
    tw_openssl_cert_free(cert);
    BIO_puts(bio, "nothing here\n");
    CHECK(import(store, bio, NULL, &err) == TW_E_FORMAT);
    tw_openssl_store_free(store);

    /* the key first */
    CHECK(tw_openssl_store_new(&store, &err) == TW_DONE);
    PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL);
    PEM_write_bio_X509(bio, leaf);
    CHECK(import(store, bio, NULL, &err) == TW_DONE);
    cert = tw_openssl_store_get(store, 0);
    CHECK(cert != NULL && tw_openssl_cert_has_key(cert));
    tw_openssl_cert_free(cert);
    tw_openssl_store_free(store);
    BIO_free(bio);
}

static void test_names(X509 *leaf)
{
    static const struct {
        const char *host;
        bool match;
    } cases[] = {
        {"a.test", true}, {"A.Test.", true}, {"x.w.test", true},
        {"y.x.w.test", false}, {"w.test", false}, {"127.0.0.1", true},
        {"127.0.0.2", false}, {"::1", true}, {"[::1]", true},
        {".test", false}, {"", false}, {"*.w.test", false}, {"leaf", false},
    };
    struct tw_cert *cert = tw_openssl_cert_new(leaf, NULL, NULL);
    size_t i;

    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check(tw_openssl_cert_matches(cert, cases[i].host, true)
                  == cases[i].match, __LINE__, cases[i].host);
    }
    tw_openssl_cert_free(cert);
}

static int32_t verdict(X509 *x509, const struct tw_verify_config *config)
{
    struct tw_cert *cert = tw_openssl_cert_new(x509, NULL, NULL);
    struct tw_verdict v;
    struct tw_error err;

    tw_error_clear(&err);
    CHECK(tw_openssl_cert_verify(cert, config, &v, &err) == TW_DONE);
    tw_openssl_cert_free(cert);
    return v.code;
}

static void test_verify(X509 *root, X509 *leaf, X509 *expired, X509 *client)
{
    struct tw_verify_config config;
    struct tw_cert *anchor = tw_openssl_cert_new(root, NULL, NULL);
    struct tw_store *empty = NULL;

    memset(&config, 0, sizeof config);
    CHECK(tw_openssl_store_new(&config.roots, NULL) == TW_DONE);
    CHECK(tw_openssl_store_new(&empty, NULL) == TW_DONE);
    CHECK(tw_openssl_store_add(config.roots, anchor, NULL) == TW_DONE);
    config.server = "a.test";
    config.check_name = true;
    CHECK(verdict(leaf, &config) == 0);
    CHECK(verdict(expired, &config) == CERT_E_EXPIRED);
    CHECK(verdict(client, &config) == CERT_E_WRONG_USAGE);
    config.ignore = TW_IGNORE_TIME;
    CHECK(verdict(expired, &config) == 0);
    config.ignore = 0;
    config.revocation = TW_REVOKE_CHAIN;
    CHECK(verdict(leaf, &config) == CERT_E_REVOCATION_FAILURE);
    config.ignore = TW_IGNORE_REVOCATION_OFFLINE;
    CHECK(verdict(leaf, &config) == 0);
    config.revocation = TW_REVOKE_NONE;
    config.ignore = 0;
    config.server = "b.test";
    CHECK(verdict(leaf, &config) == CERT_E_CN_NO_MATCH);
    config.server = NULL;
    CHECK(verdict(client, &config) == 0);
    tw_openssl_store_free(config.roots);
    config.roots = empty;
    CHECK(verdict(client, &config) == CERT_E_CHAINING);
    CHECK(verdict(root, &config) == CERT_E_UNTRUSTEDROOT);
    tw_openssl_store_free(empty);
    tw_openssl_cert_free(anchor);
}

/* Is the path of leaf, with the anchor that has this edition, known at that
   time? */
static bool recalled(X509 *leaf, uint64_t anchor, time_t when)
{
    struct tw_verify_config config;
    struct tw_trial t;
    bool known;

    memset(&config, 0, sizeof config);
    memset(&t, 0, sizeof t);
    t.config = &config;
    t.leaf = leaf;
    t.now = when;
    t.anchors[0] = anchor;
    known = tw_trial_recall(&t);
    CHECK(!known || sk_X509_num(t.path) == 2);
    CHECK(!known || sk_X509_value(t.path, 0) == leaf);
    sk_X509_pop_free(t.path, X509_free);
    return known;
}

static void remember(X509 *leaf, X509 *root, uint64_t anchor)
{
    struct tw_verify_config config;
    struct tw_trial t;

    memset(&config, 0, sizeof config);
    memset(&t, 0, sizeof t);
    t.config = &config;
    t.leaf = leaf;
    t.now = time(NULL);
    t.anchors[0] = anchor;
    t.worst = TW_TROUBLE_NONE;
    t.path = sk_X509_new_null();
    CHECK(sk_X509_push(t.path, leaf) && sk_X509_push(t.path, root));
    tw_trial_remember(&t);
    sk_X509_free(t.path);
}

static void test_remembered(X509 *root, EVP_PKEY *root_key, EVP_PKEY *key)
{
    X509 *leaf = make("brief", key, root, root_key, "DNS:a.test", NULL, 30);
    X509 *other = make("other", key, root, root_key, "DNS:a.test", NULL, 30);
    time_t now = time(NULL);
    uint64_t anchor = tw_openssl_new_edition();
    int i;

    X509_gmtime_adj(X509_getm_notBefore(leaf), -100);
    X509_gmtime_adj(X509_getm_notAfter(leaf), 100);
    X509_sign(leaf, root_key, EVP_sha256());
    remember(leaf, root, anchor);
    CHECK(recalled(leaf, anchor, now));
    CHECK(recalled(leaf, anchor, now + 90));
    CHECK(!recalled(leaf, anchor, now + 110));
    CHECK(recalled(leaf, anchor, now - 90));
    CHECK(!recalled(leaf, anchor, now - 110));
    /* for exactly as long as X509_verify_cert would say yes */
    for (i = -105; i <= 105; i++) {
        time_t when = now + i;
        CHECK(recalled(leaf, anchor, when)
              == (X509_cmp_time(X509_get0_notBefore(leaf), &when) < 0
                  && X509_cmp_time(X509_get0_notAfter(leaf), &when) > 0));
    }
    CHECK(!recalled(leaf, tw_openssl_new_edition(), now));
    CHECK(!recalled(other, anchor, now));

    /* a day at most, however long it is valid */
    remember(other, root, anchor);
    CHECK(recalled(other, anchor, now + 86000));
    CHECK(!recalled(other, anchor, now + 87000));

    /* the same text under another signature is another certificate */
    X509_sign(other, root_key, EVP_sha384());
    CHECK(!recalled(other, anchor, now));

    /* the oldest makes room */
    for (i = 0; i < 100; i++) {
        remember(leaf, root, tw_openssl_new_edition());
    }
    CHECK(!recalled(leaf, anchor, now));
    X509_free(leaf);
    X509_free(other);
}

int main(void)
{
    EVP_PKEY *root_key = EVP_RSA_gen(2048), *key = EVP_EC_gen("P-256");
    EVP_PKEY *stranger = EVP_EC_gen("P-256");
    X509 *root = make("Root", root_key, NULL, NULL, NULL, NULL, 30);
    X509 *leaf = make("leaf", key, root, root_key,
                      "DNS:a.test,DNS:*.w.test,IP:127.0.0.1,IP:::1",
                      "serverAuth", 30);
    X509 *expired = make("old", key, root, root_key, "DNS:a.test", NULL, -1);
    X509 *client = make("client", key, root, root_key, "DNS:a.test",
                        "clientAuth", 30);

    test_import(root, leaf, key, stranger);
    test_names(leaf);
    test_verify(root, leaf, expired, client);
    test_remembered(root, root_key, key);
    X509_free(root);
    X509_free(leaf);
    X509_free(expired);
    X509_free(client);
    EVP_PKEY_free(key);
    EVP_PKEY_free(stranger);
    EVP_PKEY_free(root_key);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
