/*
 * Sessions over the engine, end to end in memory: what takes a connection
 * long to come to (keys used up), or a peer that means no good.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/session.h"
#include "sspi/openssl_internal.h"
#include "sspi/record_openssl.h"

#include "support.h"

struct pair {
    struct tw_session *client, *server;
};

/* Carries what one has for the other; how many bytes. */
static size_t carry(struct tw_session *from, struct tw_session *to)
{
    const uint8_t *ptr;
    size_t n = tw_session_output(from, &ptr);

    n = n < 65536 ? n : 65536;
    if (n > 0) {
        CHECK(tw_session_input(to, ptr, n) == TW_DONE);
        tw_session_output_consume(from, n);
    }
    return n;
}

static struct tw_session *make(enum tw_role role, struct tw_cert *cert,
                               uint32_t protocol)
{
    struct tw_credentials_config config = {
        .role = role, .protocols = protocol, .flags = TW_CRED_NO_RESUME,
        .certs = &cert, .cert_count = role == TW_SERVER,
    };
    struct tw_session_config what = {.role = role};
    struct tw_session *made;
    struct tw_error err;

    tw_error_clear(&err);
    what.credentials = tw_credentials_new(tw_provider_default(), &config,
                                          &err);
    CHECK(what.credentials);
    made = tw_session_new(tw_provider_default(), &what, &err);
    CHECK(made);
    tw_credentials_free(what.credentials);
    return made;
}

static struct pair connect_pair(uint32_t protocol)
{
    struct tw_cert *cert = make_cert("host.example");
    struct pair p = {make(TW_CLIENT, cert, protocol),
                     make(TW_SERVER, cert, protocol)};
    struct tw_error err;
    enum tw_status c, s;
    int i;

    tw_error_clear(&err);
    for (i = 0; i < 10; i++) {
        c = tw_session_handshake(p.client, &err);
        (void)carry(p.client, p.server);
        s = tw_session_handshake(p.server, &err);
        (void)carry(p.server, p.client);
        if (c == TW_DONE && s == TW_DONE) {
            break;
        }
    }
    CHECK(c == TW_DONE && s == TW_DONE);
    tw_provider_default()->cert_free(cert);
    return p;
}

static void part(struct pair *p)
{
    tw_session_free(p->client);
    tw_session_free(p->server);
}

/* Writes of `len` bytes until the keys have changed several times. */
static void rekey_with(size_t len)
{
    struct pair p = connect_pair(TW_TLS1_3);
    uint8_t *data = malloc(len);
    uint8_t *back = malloc(len);
    size_t round;

    CHECK(data && back);
    tw_records_rekey_at = 5;
    for (round = 0; round < 40; round++) {
        size_t done = 0, got = 0, n;
        struct tw_error err;
        enum tw_status st;

        memset(data, (int)round + 1, len);
        while (got < len) {
            tw_error_clear(&err);
            if (done < len) {
                st = tw_session_write(p.client, data + done, len - done, &n,
                                      &err);
                CHECK(st == TW_DONE || st == TW_WANT_WRITE);
                done += n;
            }
            while (carry(p.client, p.server) > 0) {
            }
            st = tw_session_read(p.server, back + got, len - got, &n, &err);
            if (st < 0) {
                fprintf(stderr, "writes of %zu, round %zu: %s\n", len, round,
                        err.detail);
            }
            CHECK(st == TW_DONE);
            got += n;
        }
        CHECK(memcmp(back, data, len) == 0);
    }
    tw_records_rekey_at = UINT64_C(1) << 24;
    free(data);
    free(back);
    part(&p);
}

/* OpenSSL's client against a session of ours, in memory. */
static SSL *foreign_client(struct tw_session *server, SSL_CTX *ctx)
{
    SSL *ssl = SSL_new(ctx);
    struct tw_error err;
    int i;

    CHECK(ssl);
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_connect_state(ssl);
    tw_error_clear(&err);
    for (i = 0; i < 10; i++) {
        uint8_t bytes[16384];
        const uint8_t *ptr;
        enum tw_status st;
        size_t n;
        int made, done = SSL_do_handshake(ssl);

        while ((made = BIO_read(SSL_get_wbio(ssl), bytes, sizeof(bytes)))
               > 0) {
            CHECK(tw_session_input(server, bytes, (size_t)made) == TW_DONE);
        }
        st = tw_session_handshake(server, &err);
        while ((n = tw_session_output(server, &ptr)) > 0) {
            CHECK(BIO_write(SSL_get_rbio(ssl), ptr, (int)n) == (int)n);
            tw_session_output_consume(server, n);
        }
        if (done == 1 && st == TW_DONE) {
            return ssl;
        }
    }
    CHECK(!"no handshake");
    return NULL;
}

/* A peer that asks for KeyUpdates and takes none of the answers, with data
   between so that no flood of messages is counted: what waits for it has a
   bound. */
static void unread_updates(void)
{
    struct tw_cert *cert = make_cert("host.example");
    struct tw_session *server = make(TW_SERVER, cert, TW_TLS1_3);
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = foreign_client(server, ctx);
    enum tw_status st = TW_DONE;
    size_t waits = 0, got = 0;
    struct tw_error err;

    while (st == TW_DONE) {
        uint8_t bytes[256], data[16];
        const uint8_t *ptr;
        size_t n;
        int made;

        CHECK(SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED) == 1);
        CHECK(SSL_write(ssl, "x", 1) == 1);
        while ((made = BIO_read(SSL_get_wbio(ssl), bytes, sizeof(bytes)))
               > 0) {
            CHECK(tw_session_input(server, bytes, (size_t)made) == TW_DONE);
        }
        tw_error_clear(&err);
        st = tw_session_read(server, data, sizeof(data), &n, &err);
        got += n;
        waits = tw_session_output(server, &ptr);
        CHECK(waits <= TW_OUTPUT_LIMIT + 65536 + 256);
    }
    CHECK(st == TW_E_TLS && err.code == (int32_t)SEC_E_ILLEGAL_MESSAGE);
    CHECK(strstr(err.detail, "takes none"));
    CHECK(got > 2000); /* long after any peer that means well */
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    tw_session_free(server);
    tw_provider_default()->cert_free(cert);
}

/* Output that is being sent stays in its place, whatever comes to it and
   whoever asks how much there is. */
static void output_in_use(void)
{
    struct pair p = connect_pair(TW_TLS1_3);
    uint8_t data[1000] = {0};
    const uint8_t *sending;
    struct tw_error err;
    uint8_t copy[16];
    size_t n;
    int i;

    tw_error_clear(&err);
    CHECK(tw_session_write(p.client, data, 100, &n, &err) == TW_DONE);
    CHECK(tw_session_output(p.client, &sending) > sizeof(copy));
    memcpy(copy, sending, sizeof(copy));
    for (i = 0; i < 50; i++) {
        CHECK(tw_session_write(p.client, data, sizeof(data), &n, &err)
              == TW_DONE);
        CHECK(tw_session_output(p.client, NULL) > sizeof(data));
        CHECK(memcmp(sending, copy, sizeof(copy)) == 0);
    }
    tw_session_output_consume(p.client, 10);
    CHECK(tw_session_output(p.client, &sending) > 50 * sizeof(data));
    CHECK(memcmp(sending, copy + 10, sizeof(copy) - 10) == 0);
    part(&p);
}

/* What may go at any time is not given out. */
static void hello_of_none(void)
{
    struct tw_cert *cert = make_cert("host.example");
    struct tw_session *client = make(TW_CLIENT, cert, 0);
    struct tw_session *server = make(TW_SERVER, cert, 0);
    struct tw_error err;

    tw_error_clear(&err);
    CHECK(tw_session_handshake(client, &err) == TW_WANT_READ);
    (void)carry(client, server);
    CHECK(tw_session_handshake(server, &err) == TW_WANT_READ);
    CHECK(tw_session_state(server) == TW_NEGOTIATING);
    CHECK(tw_session_hello(server) == NULL);
    tw_session_free(client);
    tw_session_free(server);
    tw_provider_default()->cert_free(cert);
}

static void to_foreign(struct tw_session *ours, SSL *ssl)
{
    const uint8_t *ptr;
    size_t n;

    while ((n = tw_session_output(ours, &ptr)) > 0) {
        CHECK(BIO_write(SSL_get_rbio(ssl), ptr, (int)n) == (int)n);
        tw_session_output_consume(ours, n);
    }
}

static void from_foreign(SSL *ssl, struct tw_session *ours)
{
    uint8_t bytes[16384];
    int n;

    while ((n = BIO_read(SSL_get_wbio(ssl), bytes, sizeof(bytes))) > 0) {
        CHECK(tw_session_input(ours, bytes, (size_t)n) == TW_DONE);
    }
}

/* Closing between our ChangeCipherSpec and the server's: the close_notify
   comes when the keys are settled, and the server understands it. */
static void close_while_renegotiating(void)
{
    struct tw_cert *cert = make_cert("host.example");
    struct tw_session *client = make(TW_CLIENT, cert, TW_TLS1_2);
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    uint8_t data[16];
    struct tw_error err;
    SSL *ssl;
    size_t n;
    int i, got;

    tw_error_clear(&err);
    CHECK(SSL_CTX_use_certificate(ctx, cert->x509) == 1);
    CHECK(SSL_CTX_use_PrivateKey(ctx, cert->key) == 1);
    (void)SSL_CTX_set_options(
        ctx, SSL_OP_NO_SESSION_RESUMPTION_ON_RENEGOTIATION);
    ssl = SSL_new(ctx);
    CHECK(ssl);
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_accept_state(ssl);
    for (i = 0; i < 6; i++) {
        (void)tw_session_handshake(client, &err);
        to_foreign(client, ssl);
        (void)SSL_do_handshake(ssl);
        from_foreign(ssl, client);
    }
    CHECK(tw_session_handshake(client, &err) == TW_DONE);
    CHECK(SSL_renegotiate(ssl) == 1 && SSL_do_handshake(ssl) == 1);
    for (i = 0; i < 2; i++) {
        from_foreign(ssl, client);
        CHECK(tw_session_read(client, data, sizeof(data), &n, &err)
              == TW_WANT_READ);
        if (i == 0) { /* its ClientHello, for the server's flight */
            to_foreign(client, ssl);
            CHECK(SSL_read(ssl, data, sizeof(data)) < 0);
        }
    }
    CHECK(tw_session_write(client, data, 1, &n, &err) == TW_WANT_READ);
    CHECK(tw_session_shutdown(client, &err) == TW_DONE);
    CHECK(tw_session_write_ended(client));
    to_foreign(client, ssl);
    got = SSL_read(ssl, data, sizeof(data));
    CHECK(SSL_get_error(ssl, got) == SSL_ERROR_WANT_READ);
    from_foreign(ssl, client);
    CHECK(tw_session_read(client, data, sizeof(data), &n, &err)
          == TW_WANT_READ);
    to_foreign(client, ssl);
    got = SSL_read(ssl, data, sizeof(data));
    CHECK(SSL_get_error(ssl, got) == SSL_ERROR_ZERO_RETURN);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    tw_session_free(client);
    tw_provider_default()->cert_free(cert);
}

int main(void)
{
    static const size_t sizes[] = {1, 100, 470, 1000, 16384, 16385, 40000,
                                   300000};
    size_t i;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        rekey_with(sizes[i]);
    }
    unread_updates();
    output_in_use();
    hello_of_none();
    close_while_renegotiating();
    puts("session: ok");
    return 0;
}
