/*
 * A session over the scripted function table: the input writes the engine's
 * answers, any status at any time, and calls the session in any order. So
 * states are reached that no engine and no peer can be made to show, at the
 * speed of no cryptography.
 *
 * What must hold: nothing crashes, goes on for ever or reads beyond; what is
 * read is what successful DecryptMessages gave, in order and once; the first
 * error stays; nothing of the engine's is left at the end.
 *
 * The engine is odd but honest: a record that it is given has room for the
 * data that it says it found there.
 */
#include "fuzz.h"

#include "core/session.h"
#include "sspi/scripted.h"

#define STEPS 96
#define BODY 100u     /* of records from the peer */
#define DATA_MAX 60u  /* a DecryptMessage's */

static const SECURITY_STATUS statuses[] = {
    SEC_E_OK, SEC_I_CONTINUE_NEEDED, SEC_E_OK, SEC_I_CONTINUE_NEEDED,
    SEC_E_INCOMPLETE_MESSAGE, SEC_I_RENEGOTIATE, SEC_I_CONTEXT_EXPIRED,
    SEC_I_INCOMPLETE_CREDENTIALS, SEC_E_INCOMPLETE_CREDENTIALS,
    SEC_E_CONTEXT_EXPIRED, SEC_E_DECRYPT_FAILURE, SEC_E_MESSAGE_ALTERED,
    SEC_E_INVALID_TOKEN, SEC_E_INTERNAL_ERROR, SEC_E_BUFFER_TOO_SMALL,
    SEC_E_UNSUPPORTED_FUNCTION,
};

struct run {
    struct tw_script *script;
    struct tw_session *s;
    uint64_t scripted; /* bytes of data that the script will give */
    uint64_t got;      /* read by us */
    enum tw_status failed;
};

static uint8_t pattern(uint64_t at)
{
    return (uint8_t)(at * 31 + (at >> 8) * 7 + 1);
}

static SECURITY_STATUS status_of(struct source *in)
{
    uint8_t word = source_byte(in);

    /* mostly those that go on */
    return statuses[(word & 0x10) != 0 ? word & 3 : word & 15];
}

static void note(struct run *r, enum tw_status st)
{
    if (st != TW_E_ARGUMENT) {
        note_status(r->s, &r->failed, st);
    }
}

/* --- the engine's next answers */

static void answer_step(struct run *r, struct source *in)
{
    static const uint8_t token[64] = {22, 3, 3, 0, 59};
    static const uint8_t alert[7] = {21, 3, 3, 0, 2, 2, 40};
    struct tw_script_entry e;
    uint8_t word = source_byte(in);

    tw_script_entry_init(&e, TW_SLOT_STEP);
    e.status = status_of(in);
    e.token = token;
    e.token_len = word % 65;
    if ((word & 0x40) != 0) {
        e.alert = alert;
        e.alert_len = sizeof(alert);
    }
    if ((word & 0x80) != 0) {
        e.extra = source_byte(in) % 3 * (BODY + 5) + (word & 1);
        e.missing = source_byte(in) % 32 - 1;
    }
    e.no_handle = source_byte(in) == 0xFF;
    HOLDS(tw_script_add(r->script, &e));
}

static void answer_decrypt(struct run *r, struct source *in,
                           enum tw_slot slot)
{
    uint8_t data[DATA_MAX];
    struct tw_script_entry e;
    uint8_t word;
    size_t i;

    tw_script_entry_init(&e, slot);
    e.status = status_of(in);
    word = source_byte(in);
    if (e.status == SEC_E_OK) {
        e.data_len = word % (DATA_MAX + 1);
    }
    for (i = 0; i < e.data_len; i++) {
        data[i] = pattern(r->scripted + i);
    }
    r->scripted += e.data_len;
    e.data = data;
    if ((word & 0x80) != 0) {
        e.extra = source_byte(in) % (BODY - DATA_MAX);
    }
    if ((word & 0x40) != 0) {
        e.missing = source_byte(in);
    }
    if (slot == TW_SLOT_OPEN && (word & 0x80) != 0) {
        e.header = BODY + 5; /* one record was taken */
    }
    HOLDS(tw_script_add(r->script, &e));
}

/* What is told or done beside the data. */
static void answer_other(struct run *r, struct source *in)
{
    static const enum tw_slot slots[] = {
        TW_SLOT_ENCRYPT, TW_SLOT_CONTROL, TW_SLOT_VERDICT, TW_SLOT_QUERY,
        TW_SLOT_SEAL, TW_SLOT_FORBID, TW_SLOT_ENCRYPT, TW_SLOT_SET,
    };
    static const uint8_t subject[] = "subject=CN=localhost";
    struct tw_script_entry e;
    uint8_t word = source_byte(in);

    tw_script_entry_init(&e, slots[word % 8]);
    e.status = status_of(in);
    if (e.slot == TW_SLOT_QUERY || e.slot == TW_SLOT_SEAL
        || e.slot == TW_SLOT_SET) {
        /* with success comes what was asked for: the world has that */
        e.status = e.status < 0 ? e.status : SEC_E_UNSUPPORTED_FUNCTION;
    }
    if ((word & 0x08) != 0) {
        e.set |= TW_WORLD_REMOTE;
        e.remote = (enum tw_script_remote)(source_byte(in) % 3);
        e.remote_der = subject;
        e.remote_len = sizeof(subject) - 1;
    }
    if ((word & 0x10) != 0) {
        e.set |= TW_WORLD_ALERT;
        e.alert_received = source_byte(in) - 1;
    }
    if ((word & 0x20) != 0) {
        e.set |= TW_WORLD_PROTOCOL;
        e.protocol = (word & 0x40) != 0 ? TW_TLS1_3 : TW_TLS1_2;
    }
    HOLDS(tw_script_add(r->script, &e));
}

/* --- the session's callers */

/* Records whose content looks like records again: whatever the engine
   leaves over, the length of what seems to be one is true. */
static void feed(struct run *r, struct source *in)
{
    uint8_t record[BODY + 5];
    uint8_t word = source_byte(in);
    size_t i;

    for (i = 0; i < sizeof(record); i += 5) {
        record[i] = (uint8_t)(20 + word % 4);
        record[i + 1] = record[i + 2] = 3;
        record[i + 3] = 0;
        record[i + 4] = BODY;
    }
    if (word == 0xFF) {
        record[0] = source_byte(in); /* no TLS */
    }
    if (tw_session_input_length(r->s) < 65536) {
        HOLDS(tw_session_input(r->s, record,
                               (word & 0x40) != 0 ? sizeof(record) - word % 8
                                                  : sizeof(record))
              == TW_DONE);
    }
}

static void read_some(struct run *r, size_t cap)
{
    uint8_t data[4096];
    struct tw_error err;
    enum tw_status st;
    size_t n = 0;
    size_t i;

    tw_error_clear(&err);
    st = tw_session_read(r->s, data, cap, &n, &err);
    HOLDS(n <= cap);
    for (i = 0; i < n; i++) {
        HOLDS(data[i] == pattern(r->got + i));
    }
    r->got += n;
    HOLDS(r->got <= r->scripted);
    note(r, st);
}

static void write_some(struct run *r, size_t len)
{
    static const uint8_t data[4096];
    struct tw_error err;
    size_t n = 0;

    tw_error_clear(&err);
    note(r, tw_session_write(r->s, data, len, &n, &err));
    HOLDS(n <= len);
}

static void ask(struct run *r)
{
    struct tw_error err;
    struct tw_facts facts;
    struct tw_cert *cert = NULL;

    tw_error_clear(&err);
    (void)tw_session_facts(r->s, &facts, &err);
    tw_error_clear(&err);
    if (tw_session_remote_cert(r->s, &cert, &err) == TW_DONE) {
        tw_provider_scripted.cert_free(cert);
    }
    (void)tw_session_missing(r->s);
    (void)tw_session_pending(r->s);
    (void)tw_session_look(r->s);
    (void)tw_session_at_rest(r->s);
    (void)tw_session_close_waits(r->s);
}

static void negotiate(struct run *r, struct source *in)
{
    struct tw_error err;
    enum tw_status st;

    tw_error_clear(&err);
    st = tw_session_handshake(r->s, &err);
    if (st == TW_WANT_VERDICT) {
        int32_t code = source_byte(in) % 8 == 7 ? (int32_t)SEC_E_CERT_EXPIRED
                                                : 0;

        st = tw_session_verdict(r->s, code, NULL, &err);
    } else if (st == TW_WANT_CERTIFICATE) {
        st = tw_session_set_certificate(r->s, NULL, &err);
    }
    note(r, st);
}

static void act(struct run *r, struct source *in)
{
    struct tw_error err;
    const uint8_t *ptr;
    uint8_t word = source_byte(in);

    tw_error_clear(&err);
    switch (word % 16) {
    case 0:
    case 1:
        answer_step(r, in);
        break;
    case 2:
    case 3:
        answer_decrypt(r, in, TW_SLOT_DECRYPT);
        break;
    case 4:
        answer_decrypt(r, in, TW_SLOT_OPEN);
        break;
    case 5:
        answer_other(r, in);
        break;
    case 6:
    case 7:
        negotiate(r, in);
        break;
    case 8:
    case 9:
        feed(r, in);
        break;
    case 10:
        read_some(r, 1 + source_size(in, 4096));
        break;
    case 11:
        write_some(r, 1 + source_size(in, 4096));
        break;
    case 12:
        tw_session_output_consume(r->s, tw_session_output(r->s, &ptr));
        break;
    case 13:
        /* its failure is told once: reading goes on */
        (void)tw_session_shutdown(r->s, &err);
        break;
    case 14:
        ask(r);
        break;
    default:
        if ((word & 0x80) != 0) {
            tw_session_input_eof(r->s);
        } else if (source_byte(in) == 0xFF) {
            tw_session_abort(r->s);
        }
        break;
    }
}

/* What a server's first step begins with: a ClientHello without a wish. */
static void feed_hello(struct run *r)
{
    static const uint8_t hello[50] = {
        22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3,
        [44] = 0, 2, 0x13, 0x01, 1, 0,
    };

    HOLDS(tw_session_input(r->s, hello, sizeof(hello)) == TW_DONE);
}

/* A session up to OPEN, so that inputs get past it. */
static void open_up(struct run *r, bool server)
{
    struct source none = {NULL, 0};
    struct tw_script_entry e;
    int i;

    tw_script_entry_init(&e, TW_SLOT_STEP);
    e.status = SEC_I_CONTINUE_NEEDED;
    HOLDS(tw_script_add(r->script, &e));
    e.status = SEC_E_OK;
    HOLDS(tw_script_add(r->script, &e));
    if (server) {
        feed_hello(r);
    }
    for (i = 0; i < 6 && tw_session_state(r->s) != TW_OPEN; i++) {
        negotiate(r, &none);
        if (tw_script_left(r->script) > 0) {
            feed(r, &none);
        }
    }
    HOLDS(tw_session_state(r->s) == TW_OPEN);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct source in = {data, len};
    struct run r = {.failed = TW_DONE};
    struct tw_credentials_config config = {.role = TW_CLIENT};
    struct tw_session_config what = {.target = "localhost"};
    struct tw_script_alive alive;
    struct tw_cert *mine;
    struct tw_error err;
    uint8_t word = source_byte(&in);
    int steps;

    tw_error_clear(&err);
    r.script = tw_script_new();
    HOLDS(r.script != NULL);
    tw_script_use(r.script);
    mine = tw_script_cert_new(r.script, (const uint8_t *)"", 0);
    HOLDS(mine != NULL);
    config.certs = &mine;
    config.cert_count = (word & 1) != 0;
    config.role = what.role = (word & 1) != 0 ? TW_SERVER : TW_CLIENT;
    what.ask_verdict = (word & 2) != 0;
    what.ask_certificate = (word & 4) != 0 && what.role == TW_CLIENT;
    what.request_cert = (word & 8) != 0 && what.role == TW_SERVER;
    what.ragged_eof = (word & 16) != 0;
    what.credentials = tw_credentials_new(&tw_provider_scripted, &config,
                                          &err);
    HOLDS(what.credentials != NULL);
    tw_provider_scripted.cert_free(mine);
    r.s = tw_session_new(&tw_provider_scripted, &what, &err);
    HOLDS(r.s != NULL);
    if ((word & 0x20) == 0) {
        open_up(&r, what.role == TW_SERVER);
    } else if (what.role == TW_SERVER && (word & 0x40) != 0) {
        feed_hello(&r);
    }
    for (steps = 0; steps < STEPS && in.len > 0; steps++) {
        act(&r, &in);
    }
    tw_session_free(r.s);
    tw_credentials_free(what.credentials);
    tw_script_count(r.script, &alive);
    HOLDS(alive.credentials == 0 && alive.contexts == 0 && alive.certs == 0
          && alive.buffers == 0);
    tw_script_use(NULL);
    tw_script_free(r.script);
    return 0;
}
