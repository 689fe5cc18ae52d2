/*
 * Every allocation refused in turn, over handshakes and transfers of the
 * OpenSSL engine in both roles and versions: an error or none, never a
 * crash, wrong data, or a block of ours that stays behind.
 *
 * counted.h catches our own malloc and its kin; CRYPTO_set_mem_functions
 * those of OpenSSL, in a run of their own. What
 * OpenSSL itself leaves behind when it has no memory is a leak checker's
 * to say (make sanitize, make valgrind), not this program's.
 *
 * TW_ALLOC_STRIDE: every n-th of OpenSSL's thousands (7); 1 takes long.
 * TW_ALLOC_TRACE: names each on stderr before it is refused.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>

#include "core/session.h"
#include "sspi/openssl_internal.h"

#include "counted.h"
#undef malloc /* OpenSSL's are not counted */
#undef realloc
#undef free
#include "support.h"

#undef CHECK /* this one names the allocation */
#define CHECK(x)                                                      \
    do {                                                              \
        if (!(x)) {                                                   \
            fprintf(stderr, "%s:%d: %s (allocation %ld of %s)\n",     \
                    __FILE__, __LINE__, #x, fails,                    \
                    whose == OURS ? "ours" : "OpenSSL");              \
            exit(1);                                                  \
        }                                                             \
    } while (0)

enum whose { NOBODY, OURS, THEIRS };

static enum whose whose; /* allocations are refused */
static long made;        /* of OpenSSL's since armed */
static long fails;       /* number of the first that is refused */
static bool onward;      /* and every later one */

static bool refused(void)
{
    if (whose != THEIRS) {
        return false;
    }
    made++;
    return made == fails || (onward && made > fails);
}

static void *their_malloc(size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return refused() ? NULL : malloc(n);
}

static void *their_realloc(void *old, size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return refused() ? NULL : realloc(old, n);
}

static void their_free(void *p, const char *file, int line)
{
    (void)file;
    (void)line;
    free(p);
}

/* --- one life --- */

struct end {
    struct tw_credentials *cred;
    struct tw_session *session;
    bool failed;
};

static struct end make_end(enum tw_role role, struct tw_cert *cert,
                           uint32_t version, bool mutual)
{
    struct tw_credentials_config config = { .role = role,
                                            .protocols = version };
    struct tw_session_config options = { .role = role };
    struct end e = { NULL, NULL, true };
    struct tw_error err;

    tw_error_clear(&err);
    config.certs = &cert;
    config.cert_count = cert ? 1 : 0;
    /* OpenSSL 3.0's session cache frees a session twice, or walks its list
       for ever, after an insertion without memory */
    config.flags = whose == THEIRS ? TW_CRED_NO_RESUME : 0;
    e.cred = tw_credentials_new(tw_provider_default(), &config, &err);
    if (!e.cred) {
        CHECK(err.status < 0);
        return e;
    }
    options.credentials = e.cred;
    options.target = role == TW_CLIENT ? "host.example" : NULL;
    options.ask_verdict = role == TW_CLIENT || mutual;
    options.request_cert = mutual;
    options.alpn = (const uint8_t *)"\2h2";
    options.alpn_len = 3;
    e.session = tw_session_new(tw_provider_default(), &options, &err);
    if (!e.session) {
        CHECK(err.status < 0);
        return e;
    }
    e.failed = false;
    return e;
}

static void free_end(struct end *e)
{
    tw_session_free(e->session);
    tw_credentials_free(e->cred);
}

/* A failed call says why, and the session has failed. */
static bool went(struct end *e, enum tw_status st, struct tw_error *err)
{
    if (st < 0) {
        CHECK(err->status < 0);
        e->failed = true;
    }
    return st >= 0;
}

static void shake(struct end *e)
{
    struct tw_error err;
    enum tw_status st;

    if (e->failed) {
        return;
    }
    tw_error_clear(&err);
    st = tw_session_handshake(e->session, &err);
    while (went(e, st, &err) && st == TW_WANT_VERDICT) {
        st = tw_session_verdict(e->session, 0, NULL, &err);
        if (went(e, st, &err)) {
            st = tw_session_handshake(e->session, &err);
        }
    }
}

static void move(struct end *from, struct end *to)
{
    const uint8_t *data;
    size_t n = tw_session_output(from->session, &data);
    enum tw_status st = tw_session_input(to->session, data, n);

    CHECK(st == TW_DONE || st == TW_E_NOMEM);
    if (st != TW_DONE) {
        to->failed = true; /* bytes are lost: its owner would close it */
    }
    tw_session_output_consume(from->session, n);
}

/* Sends text, and reads as much of it as arrives. */
static void carry(struct end *from, struct end *to, const char *text)
{
    struct tw_error err;
    uint8_t got[8192];
    size_t sent = 0;
    size_t n = 0;
    size_t len = strlen(text);

    tw_error_clear(&err);
    if (from->failed
        || !went(from, tw_session_write(from->session,
                                        (const uint8_t *)text, len, &sent,
                                        &err),
                 &err)) {
        return;
    }
    move(from, to);
    if (to->failed || tw_session_state(to->session) != TW_OPEN) {
        return;
    }
    if (went(to, tw_session_read(to->session, got, sizeof(got), &n, &err),
             &err)) {
        CHECK(n <= len && memcmp(got, text, n) == 0);
    }
    move(to, from); /* what it answers */
}

static bool life(struct tw_cert *server_cert, struct tw_cert *client_cert,
                 uint32_t version)
{
    static char text[6000];
    struct end c;
    struct end s;
    struct tw_error err;
    struct tw_facts facts;
    struct tw_cert *peer = NULL;
    bool good = false;
    int i;

    memset(text, 'x', sizeof(text) - 1);
    tw_error_clear(&err);
    c = make_end(TW_CLIENT, client_cert, version, false);
    s = make_end(TW_SERVER, server_cert, version, client_cert != NULL);
    for (i = 0; i < 6 && !c.failed && !s.failed; i++) {
        shake(&c);
        move(&c, &s);
        shake(&s);
        move(&s, &c);
    }
    if (!c.failed && !s.failed) {
        CHECK(tw_session_state(c.session) == TW_OPEN);
        CHECK(tw_session_state(s.session) == TW_OPEN);
        carry(&c, &s, "from the client");
        carry(&s, &c, text);
        carry(&c, &s, text);
        (void)tw_session_facts(c.session, &facts, &err);
        tw_error_clear(&err);
        (void)tw_session_remote_cert(s.session, &peer, &err);
        tw_openssl_cert_free(peer);
        tw_error_clear(&err);
        (void)tw_session_shutdown(c.session, &err);
        move(&c, &s);
        good = !c.failed && !s.failed && err.status == TW_DONE;
    }
    free_end(&c);
    free_end(&s);
    return good;
}

static void every_allocation(enum whose side, bool from_then_on,
                             uint32_t version, struct tw_cert *server_cert,
                             struct tw_cert *client_cert, long stride)
{
    long before = counted_live();
    long broken = 0;
    bool good;

    for (fails = 1; fails < 100000; fails += stride) {
        if (getenv("TW_ALLOC_TRACE") != NULL) {
            fprintf(stderr, "%s %ld%s of %x\n",
                    side == OURS ? "ours" : "OpenSSL's", fails,
                    from_then_on ? " and on" : "", (unsigned)version);
        }
        whose = side;
        onward = from_then_on;
        made = 0;
        counted_fail(side == OURS ? fails : 0, onward);
        good = life(server_cert, client_cert, version);
        whose = NOBODY;
        if (side == OURS) {
            made = counted_made();
        }
        counted_fail(0, false);
        CHECK(counted_live() == before);
        broken += !good;
        if (made < fails) {
            CHECK(good); /* nothing was refused */
            break;
        }
        ERR_clear_error();
    }
    CHECK(broken > 0);
    fails = 0;
    CHECK(life(server_cert, client_cert, version)); /* no harm stays */
    CHECK(counted_live() == before);
}

int main(void)
{
    static const uint32_t versions[2] = { TW_TLS1_2, TW_TLS1_3 };
    const char *asked = getenv("TW_ALLOC_STRIDE");
    long stride = asked && atol(asked) > 0 ? atol(asked) : 7;
    struct tw_cert *server_cert;
    struct tw_cert *client_cert;
    int i;

    CHECK(CRYPTO_set_mem_functions(their_malloc, their_realloc, their_free)
          == 1);
    server_cert = make_cert("host.example");
    client_cert = make_cert("a client");
    for (i = 0; i < 2; i++) {
        CHECK(life(server_cert, client_cert, versions[i])); /* warm */
        every_allocation(OURS, false, versions[i], server_cert,
                         client_cert, 1);
        every_allocation(OURS, true, versions[i], server_cert, client_cert,
                         1);
        every_allocation(THEIRS, false, versions[i], server_cert,
                         client_cert, stride);
        every_allocation(THEIRS, true, versions[i], server_cert,
                         client_cert, stride * 13);
    }
    tw_openssl_cert_free(server_cert);
    tw_openssl_cert_free(client_cert);
    puts("allocations: ok");
    return 0;
}
