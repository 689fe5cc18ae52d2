/*
 * The record engine against the SSL object, case by case.
 *
 * Two contexts of the provider, one on each record path, finish a handshake
 * with a libssl peer each. Then one stream of records, honest and hostile,
 * is sealed for both under the peer's keys, which libssl logs: data, padding,
 * empty records, KeyUpdates, tickets whole and in parts, alerts, unknown
 * types, wrong lengths, flipped bits, replays. Both must answer each record
 * alike: the same status, the same plaintext, an answer or none. The first
 * that both refuse ends the stream.
 *
 * The input's bytes choose. Without libFuzzer (-DTW_DRIVER, scripts/fuzz
 * cases): CASES [SEED], deterministic; a case is a record. A difference
 * aborts with what led to it.
 */
#include "fuzz.h"

#include <openssl/ssl.h>

#include "sspi/openssl_internal.h"
#include "sspi/record_openssl.h"
#include "sspi/traffic_openssl.h"

enum { OURS, OBJECT, PATHS };

/* One path's end: the provider's context, its peer, the peer's keys. */
struct end {
    CtxtHandle ctx;
    SSL *peer;
    struct tw_traffic traffic;
    struct tw_records keys; /* write: as the peer seals */
    uint8_t record[20000];
    size_t len;
    SECURITY_STATUS st;
    size_t data_len;
    const uint8_t *data;
    bool answered;
};

static const struct tw_provider *P;
static const SecurityFunctionTableW *T;
static CredHandle credentials[PATHS][2]; /* by role - 1 */
static SSL_CTX *peers[2];                /* by the peer's role - 1 */
static struct end ends[PATHS];
static enum tw_role role; /* of the contexts under test */
static bool tls13;
static uint64_t cases;
static char trail[4096]; /* what was sent, for the report */

/* ------------------------------------------------------------- choices */

static const uint8_t *choices;
static size_t choices_left;
static uint64_t state;

static bool over(void)
{
    return choices && choices_left == 0;
}

static unsigned choose(unsigned n)
{
    uint64_t v = 0;

    if (choices) {
        for (int i = 0; i < (n > 256 ? 2 : 1) && choices_left > 0; i++) {
            v = v << 8 | *choices++;
            choices_left--;
        }
    } else {
        state ^= state << 13; /* xorshift64 */
        state ^= state >> 7;
        state ^= state << 17;
        v = state >> 11;
    }
    return (unsigned)(v % n);
}

/* -------------------------------------------------------------- set-up */

static struct tw_cert *make_cert(void)
{
    EVP_PKEY *key = make_key();
    X509 *x = make_x509(key, "host.example");
    struct tw_cert *cert = tw_openssl_cert_new(x, key, NULL);

    HOLDS(cert);
    X509_free(x);
    EVP_PKEY_free(key);
    return cert;
}

static void logged(const SSL *ssl, const char *line)
{
    struct end *e = SSL_get_app_data(ssl);

    tw_traffic_note(&e->traffic, line);
}

static void set_up(void)
{
    struct tw_cert *cert = make_cert();

    P = tw_provider_default();
    T = P->table();
    HOLDS(T);
    for (int path = 0; path < PATHS; path++) {
        if (path == OBJECT) {
            HOLDS(setenv("TWAPI_TLS_RECORDS", "openssl", 1) == 0);
        } else {
            HOLDS(unsetenv("TWAPI_TLS_RECORDS") == 0);
        }
        for (int r = 0; r < 2; r++) {
            struct tw_credentials_config config = {
                .role = (enum tw_role)(r + 1)
            };
            struct tw_error err;
            if (config.role == TW_SERVER) {
                config.certs = &cert;
                config.cert_count = 1;
            }
            tw_error_clear(&err);
            HOLDS(P->acquire(&config, &credentials[path][r], &err)
                 == TW_DONE);
        }
    }
    for (int r = 0; r < 2; r++) {
        peers[r] = SSL_CTX_new(TLS_method());
        HOLDS(peers[r]);
        SSL_CTX_set_keylog_callback(peers[r], logged);
        SSL_CTX_set_num_tickets(peers[r], 0);
        SSL_CTX_set_session_cache_mode(peers[r], SSL_SESS_CACHE_OFF);
        SSL_CTX_set_options(peers[r], SSL_OP_NO_TICKET);
    }
    HOLDS(SSL_CTX_use_cert_and_key(peers[1], cert->x509, cert->key, NULL, 1));
    P->cert_free(cert);
}

/* --------------------------------------------------------- a handshake */

/* One step of the context with in[0..len); its output goes to the peer. */
static SECURITY_STATUS step(struct end *e, bool have, uint8_t *in,
                            size_t *len, int path)
{
    SEC_WCHAR name[] = { 'h', 'o', 's', 't', '.', 'e', 'x', 0 };
    SecBuffer inb[2] = { { (ULONG)*len, SECBUFFER_TOKEN, in },
                         { 0, SECBUFFER_EMPTY, NULL } };
    SecBuffer outb[1] = { { 0, SECBUFFER_TOKEN, NULL } };
    SecBufferDesc ind = { SECBUFFER_VERSION, 2, inb };
    SecBufferDesc outd = { SECBUFFER_VERSION, 1, outb };
    CtxtHandle fresh;
    ULONG attr;
    SECURITY_STATUS st;
    size_t n;
    CredHandle *cred = &credentials[path][role - 1];

    if (role == TW_CLIENT) {
        st = T->InitializeSecurityContextW(
            cred, have ? &e->ctx : NULL, name,
            ISC_REQ_ALLOCATE_MEMORY | ISC_REQ_STREAM, 0, 0,
            have && *len ? &ind : NULL, 0, &fresh, &outd, &attr, NULL);
    } else {
        st = T->AcceptSecurityContext(
            cred, have ? &e->ctx : NULL, have && !*len ? NULL : &ind,
            ASC_REQ_ALLOCATE_MEMORY | ASC_REQ_STREAM, 0, &fresh, &outd,
            &attr, NULL);
    }
    if (!have && st >= 0) {
        e->ctx = fresh;
    }
    e->answered = outb[0].cbBuffer > 0;
    if (outb[0].cbBuffer) {
        HOLDS(BIO_write(SSL_get_rbio(e->peer), outb[0].pvBuffer,
                       (int)outb[0].cbBuffer)
             == (int)outb[0].cbBuffer);
        T->FreeContextBuffer(outb[0].pvBuffer);
    }
    n = inb[1].BufferType == SECBUFFER_EXTRA ? inb[1].cbBuffer : 0;
    if (n > 0) {
        memmove(in, in + *len - n, n);
    }
    *len = n;
    return st;
}

static void start(struct end *e, int path, unsigned suite)
{
    static uint8_t in[65536];
    static const char *const suites13[] = { "TLS_AES_128_GCM_SHA256",
                                            "TLS_AES_256_GCM_SHA384",
                                            "TLS_CHACHA20_POLY1305_SHA256" };
    static const char *const suites12[] = {
        "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305"
    };
    static const enum tw_aead aeads[] = { TW_AEAD_AES128, TW_AEAD_AES256,
                                          TW_AEAD_CHACHA };
    int version = tls13 ? TLS1_3_VERSION : TLS1_2_VERSION;
    SECURITY_STATUS st = SEC_I_CONTINUE_NEEDED;
    bool have = false, decided = role == TW_SERVER;
    size_t len = 0, hash_len;
    int done = 0;

    memset(&e->traffic, 0, sizeof(e->traffic));
    e->peer = SSL_new(peers[role == TW_CLIENT ? 1 : 0]);
    HOLDS(e->peer);
    SSL_set_app_data(e->peer, e);
    SSL_set_bio(e->peer, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    HOLDS(SSL_set_min_proto_version(e->peer, version)
         && SSL_set_max_proto_version(e->peer, version));
    HOLDS(tls13 ? SSL_set_ciphersuites(e->peer, suites13[suite])
               : SSL_set_cipher_list(e->peer, suites12[suite]));
    if (role == TW_CLIENT) {
        SSL_set_accept_state(e->peer);
    } else {
        SSL_set_connect_state(e->peer);
    }
    for (int round = 0; round < 20 && !(st == SEC_E_OK && done); round++) {
        if (st != SEC_E_OK
            && (role == TW_CLIENT ? !have || len > 0 : len > 0)) {
            st = step(e, have, in, &len, path);
            HOLDS(st >= 0);
            have = true;
        }
        if (!decided) {
            struct tw_cert *cert = NULL;
            uint8_t alert[64];
            size_t n = sizeof(alert);
            if (P->remote_cert(&e->ctx, &cert, NULL) == TW_DONE) {
                decided = true;
                P->cert_free(cert);
                if (P->verdict(&e->ctx, SEC_E_OK, alert, &n)
                    == SEC_I_CONTINUE_NEEDED) {
                    st = step(e, true, in, &len, path);
            HOLDS(st >= 0);
                }
            }
        }
        done = SSL_do_handshake(e->peer) == 1;
        HOLDS(len == 0);
        len = (size_t)BIO_pending(SSL_get_wbio(e->peer));
        HOLDS(len <= sizeof(in));
        if (len > 0) {
            HOLDS(BIO_read(SSL_get_wbio(e->peer), in, (int)len) == (int)len);
        }
    }
    HOLDS(st == SEC_E_OK && done && len == 0);
    hash_len = suite == 1 ? 48 : 32;
    if (tls13) {
        enum tw_secret theirs =
            role == TW_CLIENT ? TW_SERVER_TRAFFIC : TW_CLIENT_TRAFFIC;
        HOLDS(e->traffic.len[theirs] == hash_len);
        HOLDS(tw_records_init13(&e->keys, aeads[suite], hash_len,
                               e->traffic.secret[theirs],
                               e->traffic.secret[theirs], 0));
    } else {
        uint8_t master[48], random[2][32];
        HOLDS(SSL_SESSION_get_master_key(SSL_get_session(e->peer), master, 48)
             == 48);
        SSL_get_client_random(e->peer, random[0], 32);
        SSL_get_server_random(e->peer, random[1], 32);
        HOLDS(tw_records_init12(&e->keys, aeads[suite], hash_len,
                               role == TW_SERVER, master, random[0],
                               random[1], UINT64_C(1) << 40));
    }
}

static void stop(struct end *e)
{
    (void)T->DeleteSecurityContext(&e->ctx);
    SSL_free(e->peer);
    tw_records_fini(&e->keys);
}

/* ---------------------------------------------------------- one record */

static void open_one(struct end *e)
{
    SecBuffer b[4] = { { (ULONG)e->len, SECBUFFER_DATA, e->record } };
    SecBufferDesc d = { SECBUFFER_VERSION, 4, b };

    for (int i = 1; i < 4; i++) {
        b[i].BufferType = SECBUFFER_EMPTY;
        b[i].cbBuffer = 0;
        b[i].pvBuffer = NULL;
    }
    e->data = NULL;
    e->data_len = 0;
    e->st = T->DecryptMessage(&e->ctx, &d, 0, NULL);
    for (int i = 0; i < 4 && e->st >= 0; i++) {
        if (b[i].BufferType == SECBUFFER_DATA && i > 0) {
            e->data = b[i].pvBuffer;
            e->data_len = b[i].cbBuffer;
        }
    }
}

static void differ(const char *what)
{
    fprintf(stderr,
            "DIFFERENCE: %s\n  %s, %s, engine 0x%08x (%zu bytes), object "
            "0x%08x (%zu bytes), case %llu\n  sent:%s\n",
            what, role == TW_CLIENT ? "client" : "server",
            tls13 ? "TLS 1.3" : "TLS 1.2", (unsigned)ends[OURS].st,
            ends[OURS].data_len, (unsigned)ends[OBJECT].st,
            ends[OBJECT].data_len, (unsigned long long)cases, trail);
    abort();
}

static uint8_t sent_type; /* of the record that is judged */
static bool sent_no_renegotiation;

/*
 * Where the engine may refuse what the SSL object takes, for a reason:
 *   TLS 1.2, a handshake message that nobody may send now: libssl starts
 *   its state machine on it and waits for more (RFC 5246, 7.4:
 *   unexpected_message)
 * and name it otherwise:
 *   an alert of an unknown level is not the peer's word
 *   TLS 1.2, a record too short for nonce and tag fails its MAC; of some
 *   libssl (3.0.19) says that it failed itself
 * and once take what it refuses:
 *   TLS 1.2, a warning no_renegotiation that nobody asked for is a warning
 */
static bool stricter(SECURITY_STATUS engine, SECURITY_STATUS object)
{
    const struct tw_records *keys = &ends[OBJECT].keys;
    bool too_short = !tls13
                     && ends[OBJECT].len < (size_t)keys->header + keys->tail;

    if ((sent_type == SSL3_RT_ALERT || too_short) && engine < 0
        && object < 0) {
        return true;
    }
    if (!tls13 && sent_type == SSL3_RT_ALERT && sent_no_renegotiation
        && engine == SEC_E_OK) {
        return true;
    }
    return !tls13 && sent_type == SSL3_RT_HANDSHAKE && engine < 0
           && object >= 0;
}

/* Gives both their record; false: the stream is over. */
static bool judge(void)
{
    struct end *a = &ends[OURS], *b = &ends[OBJECT];

    cases++;
    open_one(a);
    open_one(b);
    if (a->st != b->st) {
        if (stricter(a->st, b->st)) {
            return false;
        }
        differ("the status");
    }
    if (a->data_len != b->data_len
        || (a->data_len > 0 && memcmp(a->data, b->data, a->data_len))) {
        differ("the plaintext");
    }
    if (a->st == SEC_I_RENEGOTIATE) {
        for (int i = 0; i < PATHS; i++) {
            size_t none = 0;
            ends[i].st = step(&ends[i], true, NULL, &none, i);
        }
        if (a->st != b->st) {
            differ("the status of the step");
        }
        if (a->answered != b->answered) {
            differ("the answer");
        }
    }
    /* libssl's state machine of TLS 1.2 takes over from here */
    return a->st == SEC_E_OK && (tls13 || sent_type != SSL3_RT_HANDSHAKE);
}

static void note(const char *what, size_t n)
{
    size_t at = strlen(trail);

    if (at > sizeof(trail) - 64) {
        memmove(trail, trail + 2048, at - 2048 + 1);
        at = strlen(trail);
    }
    snprintf(trail + at, sizeof(trail) - at, " %s(%zu)", what, n);
}

/* An inner plaintext with padding, sealed as the peer would; TLS 1.2 has no
   padding in its AEADs. */
static void seal_both(uint8_t type, const uint8_t *content, size_t len,
                      size_t padding)
{
    sent_type = type;
    for (int i = 0; i < PATHS; i++) {
        struct end *e = &ends[i];
        if (!tls13 || padding == 0) {
            e->len = tw_records_seal(&e->keys, type, content, len,
                                     e->record);
            HOLDS(e->len > 0);
        } else {
            /* inner = content, type, zeros: content with the type in it,
               and zero for the type */
            static uint8_t inner[17000];
            memcpy(inner, content, len);
            inner[len] = type;
            memset(inner + len + 1, 0, padding);
            e->len = tw_records_seal(&e->keys, 0, inner, len + padding,
                                     e->record);
            HOLDS(e->len > 0);
        }
    }
}

static bool send_record(uint8_t type, const uint8_t *content, size_t len,
                 size_t padding)
{
    seal_both(type, content, len, padding);
    return judge();
}

static bool update_keys(void)
{
    for (int i = 0; i < PATHS; i++) {
        HOLDS(tw_records_update(&ends[i].keys, &ends[i].keys.write));
    }
    return true;
}

static size_t make_ticket(uint8_t *m)
{
    size_t n = 4, ticket = 1 + choose(200), nonce = choose(20);

    m[0] = SSL3_MT_NEWSESSION_TICKET;
    memset(m + n, 0, 8);
    m[n + 2] = 0x1c; /* lifetime: 7200 s */
    m[n + 3] = 0x20;
    n += 8;
    m[n++] = (uint8_t)nonce;
    memset(m + n, 7, nonce);
    n += nonce;
    m[n++] = 0;
    m[n++] = (uint8_t)ticket;
    memset(m + n, 9, ticket);
    n += ticket;
    m[n++] = 0;
    m[n++] = 0;
    m[1] = 0;
    m[2] = (uint8_t)((n - 4) >> 8);
    m[3] = (uint8_t)(n - 4);
    return n;
}

/* A record that nobody honest makes, from one that somebody honest made. */
static bool send_broken(const uint8_t *content, size_t len)
{
    unsigned how = choose(8);
    size_t at = choose(65536);

    note("broken", how);
    seal_both(SSL3_RT_APPLICATION_DATA, content, len, 0);
    for (int i = 0; i < PATHS; i++) {
        struct end *e = &ends[i];
        uint8_t *p = e->record;
        size_t body = e->len - 5;
        switch (how) {
        case 0: /* a bit of the body */
            p[5 + at / 8 % body] ^= (uint8_t)(1u << at % 8);
            break;
        case 1: /* another outer type */
            p[0] = (uint8_t)(20 + at % 4);
            if (p[0] == SSL3_RT_APPLICATION_DATA) {
                p[0] = SSL3_RT_HANDSHAKE;
            }
            break;
        case 2: /* another version */
            p[2] = (uint8_t)(at % 7 == 3 ? 0 : at % 7);
            break;
        case 3: /* cut off, with a length that fits */
            body = at % body;
            p[3] = (uint8_t)(body >> 8);
            p[4] = (uint8_t)body;
            e->len = 5 + body;
            break;
        case 4: /* longer, with a length that fits */
            memset(p + e->len, 0, 40);
            body += 1 + at % 40;
            p[3] = (uint8_t)(body >> 8);
            p[4] = (uint8_t)body;
            e->len = 5 + body;
            break;
        case 5: /* the one before was left out */
            e->len = tw_records_seal(&e->keys, SSL3_RT_APPLICATION_DATA,
                                     content, len, p);
            break;
        case 6: /* the same twice: see below */
            break;
        default: /* a tag of zeros */
            memset(p + e->len - 16, 0, 16);
            break;
        }
    }
    if (how == 6) {
        static uint8_t copy[PATHS][20000];
        for (int i = 0; i < PATHS; i++) {
            memcpy(copy[i], ends[i].record, ends[i].len);
        }
        if (!judge()) {
            return false;
        }
        for (int i = 0; i < PATHS; i++) {
            memcpy(ends[i].record, copy[i], ends[i].len);
        }
    }
    return judge();
}

static bool send_alert(void)
{
    uint8_t alert[3] = { (uint8_t)choose(4), (uint8_t)choose(121), 0 };
    size_t n = choose(12) ? 2 : choose(4);

    if (choose(3) == 0) {
        alert[0] = 1 + (uint8_t)choose(2);
        alert[1] = 0;
    }
    sent_no_renegotiation = alert[1] == SSL_AD_NO_RENEGOTIATION;
    note("alert", (size_t)alert[0] << 8 | alert[1]);
    return send_record(SSL3_RT_ALERT, alert, n, 0);
}

static bool send_message(void)
{
    uint8_t m[600];
    size_t n = 4 + choose(40);

    memset(m, 1, sizeof(m));
    switch (choose(6)) {
    case 0: /* KeyUpdate, good */
    case 1:
        memcpy(m, (const uint8_t[]){ SSL3_MT_KEY_UPDATE, 0, 0, 1 }, 4);
        m[4] = (uint8_t)choose(2);
        note("update", m[4]);
        if (choose(6) == 0) { /* in two records */
            size_t cut = 1 + choose(4);
            if (!send_record(SSL3_RT_HANDSHAKE, m, cut, 0)) {
                return false;
            }
            if (choose(8) == 0 && !send_record(SSL3_RT_APPLICATION_DATA, m, 9, 0)) {
                return false;
            }
            return send_record(SSL3_RT_HANDSHAKE, m + cut, 5 - cut, choose(3))
                   && update_keys();
        }
        return send_record(SSL3_RT_HANDSHAKE, m, 5, choose(3)) && update_keys();
    case 2: /* KeyUpdate, not quite */
        memcpy(m, (const uint8_t[]){ SSL3_MT_KEY_UPDATE, 0, 0, 1 }, 4);
        m[3] = (uint8_t)choose(4);
        m[4] = (uint8_t)choose(4);
        n = 4u + m[3] + choose(3);
        note("bad-update", n);
        return send_record(SSL3_RT_HANDSHAKE, m, n, 0);
    case 3: /* a ticket, or several, perhaps in parts */
        if (role == TW_CLIENT && tls13) {
            n = make_ticket(m);
            if (choose(3) == 0) {
                n += make_ticket(m + n);
            }
            note("ticket", n);
            if (choose(3) == 0) {
                size_t cut = 1 + choose((unsigned)n - 1);
                if (!send_record(SSL3_RT_HANDSHAKE, m, cut, 0)) {
                    return false;
                }
                return send_record(SSL3_RT_HANDSHAKE, m + cut, n - cut, 0);
            }
            return send_record(SSL3_RT_HANDSHAKE, m, n, choose(20));
        }
        /* fall through */
    default: /* any message; not a ticket, which a client whose SSL object
                is gone does not parse */
        m[0] = (uint8_t)choose(26);
        if (m[0] == SSL3_MT_NEWSESSION_TICKET && tls13) {
            m[0] = SSL3_MT_FINISHED;
        }
        m[1] = m[2] = 0;
        m[3] = (uint8_t)(n - 4);
        note("message", m[0]);
        return send_record(SSL3_RT_HANDSHAKE, m, n, 0);
    }
}

/* A stream: records until both refuse one, or `most`. */
static void stream(unsigned most)
{
    static uint8_t content[16384];
    unsigned suite = choose(3), warnings = 0, empty = 0;
    unsigned hostile = 1u << choose(7); /* one in so many records */

    role = choose(2) ? TW_CLIENT : TW_SERVER;
    tls13 = choose(3) != 0;
    trail[0] = '\0';
    for (int i = 0; i < PATHS; i++) {
        start(&ends[i], i, suite);
    }
    for (unsigned i = 0; i < most && !over(); i++) {
        unsigned what = choose(choose(hostile) ? 70 : 100);
        size_t len = choose(60) ? choose(300) : 16384 - choose(3);
        bool go_on;

        memset(content, (int)i, len < 64 ? len : 64);
        if (what < 70) {
            size_t padding = choose(8) ? 0 : choose(200);
            if (len + padding > 16384) {
                padding = 0;
            }
            /* libssl bounds empty records in a row; here the core does */
            empty = len == 0 ? empty + 1 : 0;
            len = empty > 20 ? 1 : len;
            note("data", len);
            go_on = send_record(SSL3_RT_APPLICATION_DATA, content, len, padding);
            warnings = 0;
        } else if (what < 90 && (tls13 || what < 72)) {
            go_on = send_message();
        } else if (what < 92 && warnings < 3) {
            warnings++;
            go_on = send_alert();
        } else if (what < 93) { /* nothing in it, or too much */
            unsigned kind = 20 + choose(5);
            size_t n = choose(2) ? 0 : len;
            note("type", kind);
            go_on = send_record((uint8_t)kind, content, n, 0);
        } else if (what < 95) {
            go_on = send_broken(content, len);
        } else {
            go_on = send_record(SSL3_RT_APPLICATION_DATA, content, len, 0);
        }
        if (!go_on) {
            break;
        }
    }
    for (int i = 0; i < PATHS; i++) {
        stop(&ends[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!P) {
        set_up();
    }
    choices = data;
    choices_left = size;
    stream(1000);
    return 0;
}

#ifdef TW_DRIVER
static unsigned updates_seen;

static void message_seen(int sent, int version, int type, const void *buf,
                         size_t len, SSL *ssl, void *arg)
{
    (void)version;
    (void)ssl;
    (void)arg;
    if (!sent && type == SSL3_RT_HANDSHAKE && len > 0
        && *(const uint8_t *)buf == SSL3_MT_KEY_UPDATE) {
        updates_seen++;
    }
}

/* What the engine sealed reaches the peer as it was. */
static void arrives(struct end *e, const uint8_t *records, size_t made,
                    const uint8_t *text, size_t len)
{
    uint8_t got[64];

    HOLDS(BIO_write(SSL_get_rbio(e->peer), records, (int)made)
          == (int)made);
    HOLDS(SSL_read(e->peer, got, sizeof(got)) == (int)len
          && memcmp(got, text, len) == 0);
}

/*
 * RFC 8446, 5.5: keys of ours change by themselves, and libssl follows. The
 * engine's own way does it; EncryptMessage, which can give one record only,
 * leaves it to a step, and refuses when that is long due.
 */
static void rekeys(void)
{
    static const uint8_t text[] = "under some generation of keys";
    struct end *e = &ends[OURS];
    uint8_t records[256];

    tw_records_rekey_at = 100;
    tls13 = true;
    for (int r = 1; r <= 2; r++) {
        SecBuffer b[3];
        SecBufferDesc d = { SECBUFFER_VERSION, 3, b };
        SECURITY_STATUS st = SEC_E_OK;
        size_t taken, made, none = 0;
        unsigned sealed = 0;

        role = (enum tw_role)r;
        start(e, OURS, (unsigned)r - 1);
        SSL_set_msg_callback(e->peer, message_seen);
        updates_seen = 0;
        for (int i = 0; i < 1050; i++) {
            HOLDS(P->seal(&e->ctx, text, sizeof(text), records,
                          sizeof(records), &taken, &made)
                  == SEC_E_OK);
            HOLDS(taken == sizeof(text));
            arrives(e, records, made, text, sizeof(text));
        }
        HOLDS(updates_seen == 10);
        for (; sealed < 300 && st == SEC_E_OK; sealed++) {
            memcpy(records + 5, text, sizeof(text));
            b[0] = (SecBuffer){ 5, SECBUFFER_STREAM_HEADER, records };
            b[1] = (SecBuffer){ sizeof(text), SECBUFFER_DATA, records + 5 };
            b[2] = (SecBuffer){ 17, SECBUFFER_STREAM_TRAILER,
                                records + 5 + sizeof(text) };
            st = T->EncryptMessage(&e->ctx, 0, &d, 0);
            if (st == SEC_E_OK) {
                arrives(e, records, 5 + sizeof(text) + 17, text,
                        sizeof(text));
            }
        }
        HOLDS(st == SEC_E_ENCRYPT_FAILURE && sealed < 130);
        HOLDS(step(e, true, NULL, &none, OURS) == SEC_E_OK && e->answered);
        HOLDS(P->seal(&e->ctx, text, sizeof(text), records, sizeof(records),
                      &taken, &made)
              == SEC_E_OK);
        arrives(e, records, made, text, sizeof(text));
        HOLDS(updates_seen == 11);
        stop(e);
    }
    tw_records_rekey_at = UINT64_C(1) << 24;
}

int main(int argc, char **argv)
{
    uint64_t wanted = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t streams = 0;

    set_up();
    rekeys();
    while (cases < wanted) {
        state = (seed << 32 ^ streams) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        for (int i = 0; i < 8; i++) {
            (void)choose(2);
        }
        stream(400);
        streams++;
    }
    printf("fuzz_records: %llu records in %llu streams, seed %llu: no "
           "difference\n",
           (unsigned long long)cases, (unsigned long long)streams,
           (unsigned long long)seed);
    return 0;
}
#endif
