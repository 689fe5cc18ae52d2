/*
 * Two sessions, and a network that the input controls: it cuts, delays,
 * flips, doubles, drops and inserts bytes, ends the streams, says yes or no
 * to certificates, writes, reads and shuts down in any order.
 *
 * What must hold: nothing crashes or goes on for ever; what one side reads
 * is a beginning of what the other wrote, whatever was done to the wire; the
 * first error stays; a session that was refused or failed never delivers.
 */
#include "fuzz.h"

#include "core/session.h"
#include "sspi/openssl_internal.h"

#define WIRE 65536u
#define STEPS 400

struct end {
    struct tw_session *s;
    uint8_t wire[WIRE]; /* on its way to this end */
    size_t wire_len;
    uint64_t sent;      /* plaintext bytes given and taken */
    uint64_t got;       /* plaintext bytes read */
    enum tw_status failed;
    bool hurt;          /* the wire to this end was tampered with */
};

static struct tw_credentials *client_creds[3];
static struct tw_credentials *server_creds[3];
static struct tw_cert *cert;

static struct tw_credentials *acquire(enum tw_role role, uint32_t protocols)
{
    struct tw_credentials_config config;
    struct tw_credentials *made;
    struct tw_error err;

    memset(&config, 0, sizeof(config));
    tw_error_clear(&err);
    config.role = role;
    config.protocols = protocols;
    config.certs = &cert;
    config.cert_count = 1;
    made = tw_credentials_new(tw_provider_default(), &config, &err);
    HOLDS(made != NULL);
    return made;
}

static void set_up(void)
{
    static const uint32_t masks[3] = {0, TW_TLS1_2, TW_TLS1_3};
    EVP_PKEY *key = make_key();
    X509 *x = make_x509(key, "localhost");
    size_t i;

    cert = tw_openssl_cert_new(x, key, NULL);
    HOLDS(cert != NULL);
    X509_free(x);
    EVP_PKEY_free(key);
    for (i = 0; i < 3; i++) {
        client_creds[i] = acquire(TW_CLIENT, masks[i]);
        server_creds[i] = acquire(TW_SERVER, masks[i]);
    }
}

/* The byte at a place of a side's stream: both ends can compute it. */
static uint8_t pattern(bool client, uint64_t at)
{
    return (uint8_t)((at * 31 + (at >> 8) * 7) ^ (client ? 0x5A : 0xC3));
}

static void note(struct end *e, enum tw_status st)
{
    note_status(e->s, &e->failed, st);
}

/* Output of `from` onto the wire to `to`. */
static void post(struct end *from, struct end *to)
{
    const uint8_t *ptr;
    size_t len = tw_session_output(from->s, &ptr);

    if (len > WIRE - to->wire_len) {
        len = WIRE - to->wire_len;
    }
    if (len > 0) {
        memcpy(to->wire + to->wire_len, ptr, len);
        to->wire_len += len;
    }
    tw_session_output_consume(from->s, len);
}

static void deliver(struct end *to, size_t n)
{
    n = n < to->wire_len ? n : to->wire_len;
    if (tw_session_input_length(to->s) > 4 * WIRE) {
        return;
    }
    HOLDS(tw_session_input(to->s, to->wire, n) == TW_DONE);
    to->wire_len -= n;
    memmove(to->wire, to->wire + n, to->wire_len);
}

static void tamper(struct end *e, struct source *in)
{
    size_t at = source_size(in, e->wire_len);
    size_t n;

    if (e->wire_len == 0) {
        return;
    }
    e->hurt = true;
    switch (source_byte(in) % 4) {
    case 0: /* flip */
        e->wire[at] ^= (uint8_t)(source_byte(in) | 1);
        break;
    case 1: /* drop */
        n = 1 + source_size(in, e->wire_len - at);
        memmove(e->wire + at, e->wire + at + n, e->wire_len - at - n);
        e->wire_len -= n;
        break;
    case 2: /* double what begins there */
        n = e->wire_len - at;
        if (n <= WIRE - e->wire_len) {
            memcpy(e->wire + e->wire_len, e->wire + at, n);
            e->wire_len += n;
        }
        break;
    default: /* insert from the input */
        n = 1 + source_byte(in) % 32;
        n = n < in->len ? n : in->len;
        if (n <= WIRE - e->wire_len) {
            memmove(e->wire + at + n, e->wire + at, e->wire_len - at);
            memcpy(e->wire + at, in->data, n);
            e->wire_len += n;
            in->data += n;
            in->len -= n;
        }
        break;
    }
}

static void handshake(struct end *e, struct source *in, bool verdict)
{
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_session_handshake(e->s, &err);
    if (st == TW_WANT_VERDICT) {
        HOLDS(tw_session_state(e->s) == TW_NEGOTIATING);
        if (verdict) {
            uint8_t word = source_byte(in);
            int32_t code = word % 8 == 7 ? (int32_t)SEC_E_CERT_EXPIRED : 0;

            st = tw_session_verdict(e->s, code, NULL, &err);
        }
    }
    note(e, st);
}

static void read_some(struct end *e, const struct end *other, bool client,
                      size_t cap)
{
    uint8_t data[4096];
    struct tw_error err;
    enum tw_status st;
    size_t n = 0;
    size_t i;

    tw_error_clear(&err);
    st = tw_session_read(e->s, data, cap < 4096 ? cap : 4096, &n, &err);
    for (i = 0; i < n; i++) {
        HOLDS(data[i] == pattern(!client, e->got + i));
    }
    e->got += n;
    HOLDS(e->got <= other->sent);
    if (st == TW_END && !e->hurt) {
        HOLDS(tw_session_write_ended(other->s));
    }
    note(e, st);
}

static void write_some(struct end *e, bool client, size_t len)
{
    uint8_t data[20000];
    struct tw_error err;
    size_t n = 0;
    size_t i;

    for (i = 0; i < len; i++) {
        data[i] = pattern(client, e->sent + i);
    }
    tw_error_clear(&err);
    note(e, tw_session_write(e->s, data, len, &n, &err));
    e->sent += n;
}

static struct tw_session *make(enum tw_role role,
                               struct tw_credentials *credentials,
                               bool mutual, bool ragged)
{
    struct tw_session_config config;
    struct tw_session *s;
    struct tw_error err;

    memset(&config, 0, sizeof(config));
    tw_error_clear(&err);
    config.role = role;
    config.credentials = credentials;
    config.target = "localhost";
    config.request_cert = mutual;
    config.ask_verdict = role == TW_CLIENT || mutual;
    config.ragged_eof = ragged;
    s = tw_session_new(tw_provider_default(), &config, &err);
    HOLDS(s != NULL);
    return s;
}

static void act(struct end *ends, struct source *in)
{
    uint8_t word = source_byte(in);
    bool client = (word & 0x80) == 0;
    struct end *me = &ends[client ? 0 : 1];
    struct end *peer = &ends[client ? 1 : 0];
    struct tw_error err;

    tw_error_clear(&err);
    switch (word % 16) {
    case 0:
    case 1:
        handshake(me, in, true);
        break;
    case 2:
        handshake(me, in, false);
        break;
    case 3:
    case 4:
        deliver(me, WIRE);
        break;
    case 5:
        deliver(me, 1 + source_size(in, 600));
        break;
    case 6:
        deliver(me, 1 + source_byte(in) % 8);
        break;
    case 7:
    case 8:
        read_some(me, peer, client, 1 + source_size(in, 4096));
        break;
    case 9:
    case 10:
        write_some(me, client, 1 + source_size(in, 20000));
        break;
    case 11:
        note(me, tw_session_shutdown(me->s, &err));
        break;
    case 12:
        tw_session_input_eof(me->s);
        me->hurt = true; /* ragged_eof makes it an end like any */
        break;
    case 13:
        tamper(me, in);
        break;
    case 14:
        (void)tw_session_missing(me->s);
        (void)tw_session_pending(me->s);
        break;
    default:
        if (source_byte(in) == 0xFF) {
            tw_session_abort(me->s);
        }
        break;
    }
    post(me, peer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct end ends[2];
    struct source in = {data, len};
    uint8_t word;
    int steps;

    if (cert == NULL) {
        set_up();
    }
    memset(ends, 0, sizeof(ends));
    word = source_byte(&in);
    ends[0].s = make(TW_CLIENT, client_creds[word % 3], false, word & 0x10);
    ends[1].s = make(TW_SERVER, server_creds[word / 3 % 3], word & 0x20,
                     word & 0x10);
    if ((word & 0x40) == 0) {
        /* the handshake first, so that inputs get past it */
        for (steps = 0; steps < 12; steps++) {
            struct end *me = &ends[steps % 2];

            deliver(me, WIRE);
            handshake(me, &(struct source){NULL, 0}, true);
            post(me, &ends[(steps + 1) % 2]);
        }
    }
    for (steps = 0; steps < STEPS && in.len > 0; steps++) {
        act(ends, &in);
    }
    tw_session_free(ends[0].s);
    tw_session_free(ends[1].s);
    return 0;
}
