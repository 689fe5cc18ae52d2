/*
 * The rooms of the OpenSSL engine that share a context, and nobody else:
 *
 *   credentials_openssl.c   SSL_CTX, a client's sessions
 *   context_openssl.c       the SSL object, its BIO and callbacks
 *   handshake_openssl.c     steps, the verdict, control tokens
 *   takeover_openssl.c      from the SSL object to the record engine
 *   message_openssl.c       EncryptMessage, DecryptMessage
 *   provider_openssl.c      facts, attributes, the tables
 *
 * A context is used by one call at a time: the core's lock sees to it.
 */
#ifndef TW_SSPI_CONTEXT_OPENSSL_H
#define TW_SSPI_CONTEXT_OPENSSL_H

#include "sspi/openssl_internal.h"
#include "sspi/record_openssl.h"
#include "sspi/traffic_openssl.h"

#define TW_HEADER 5u                   /* RFC 8446, 5.1 */
#define TW_LENGTH_MAX (16384u + 2048u) /* RFC 5246, 6.2.3 */

/* A client's cached session: one ticket of one target. */
struct tw_cached {
    struct tw_cached *next;
    SSL_SESSION *session; /* owned */
    char target[256];
};

struct tw_ocred {
    struct tw_count refs;
    SSL_CTX *ssl_ctx;
    enum tw_role role;
    uint32_t flags;        /* TW_CRED_... */
    bool has_cert;
    bool engine;           /* contexts may use the record engine */
    bool heard;            /* secrets are heard, not logged */
    struct tw_lock lock;   /* around sessions */
    struct tw_cached *sessions; /* newest first */
    size_t session_count;
};

enum tw_judged { TW_UNASKED, TW_PAUSED, TW_ACCEPTED, TW_REFUSED };

/* What is asked about a connection once its handshake is over; outlives the
   SSL object. */
struct tw_kept {
    const SSL_CIPHER *cipher; /* in libssl's tables */
    const char *group;        /* in libssl's, or the SSL_CTX's; may be NULL */
    X509 *local;              /* owned; NULL without */
    STACK_OF(X509) *chain;    /* owned; sent with local; may be NULL */
    SSL_SESSION *session;     /* owned; TLS 1.2 server: not to be resumed
                                 after a fatal alert */
    int version;              /* TLS1_2_VERSION ... */
    bool resumed;
    uint8_t unique_len;       /* TLS 1.2: tls-unique */
    uint8_t alpn_len;
    uint8_t exporter[TW_SECRET_MAX]; /* TLS 1.3: exporter_master_secret;
                                        1.2: master secret */
    uint8_t seed[64];         /* TLS 1.2: client's random, server's */
    uint8_t unique[36];
    uint8_t alpn[];           /* alpn_len bytes */
};

/* Where an SSL object that is still fed stands: keys as it knows them. */
struct tw_shadow {
    struct tw_half read, write;
    bool read_through, write_through; /* behind its ChangeCipherSpec: its
                              records are the wire's */
};

struct tw_octx {
    struct tw_ocred *cred; /* counted */
    SSL *ssl;              /* NULL once the record engine needs none */
    struct tw_kept *kept;     /* owned; NULL until engaged */
    struct tw_records *records; /* owned; NULL: records are ssl's */
    struct tw_shadow *shadow; /* owned; while records and ssl are both there */
    uint8_t *partial;      /* owned; the start of a handshake message */
    size_t partial_len;
    bool sent_shutdown;    /* records: close_notify is out */
    uint8_t tickets;       /* records: that ssl was fed */
    bool peer_finished;    /* the peer's Finished was read */
    uint8_t sealed;        /* records of ours since then, TLS 1.3 */
    uint64_t nonce;        /* TLS 1.2: explicit nonce of ssl's last record */
    enum tw_role role;
    const uint8_t *in;     /* what the BIO may read; the caller's memory */
    size_t in_len, in_pos;
    uint8_t *out;          /* output gathered, owned */
    size_t out_len, out_room;
    bool dry;              /* more input was asked for than there is */
    bool out_failed;       /* no memory for output */
    uint8_t *sink;         /* EncryptMessage: goes straight here */
    size_t sink_room, sink_len;
    size_t replay;         /* input bytes taken by a step that answered
                              INCOMPLETE_CREDENTIALS; they come again */
    struct tw_cert *peer;  /* owned; from the verify callback */
    enum tw_judged verdict;
    struct tw_traffic *traffic; /* owned; TLS 1.3, until open */
    bool suspended;        /* by retry_verify, or by drive() */
    bool lookup;           /* suspended in the client's cert_cb */
    bool supplied;         /* go on with what credentials there are */
    bool asked;            /* for a certificate that our credentials lack */
    bool chosen;           /* other credentials gave it */
    bool flight;           /* the peer's flight is whole, or we pause */
    bool open;             /* the first handshake is over */
    bool dead;
    bool shutdown;         /* a SCHANNEL_SHUTDOWN token waits */
    int alert;             /* a SCHANNEL_ALERT token waits: number, -1 */
    bool saw_handshake;    /* a handshake message came while open */
    bool update_asked;     /* KeyUpdate with update_requested */
    int alert_received, alert_sent;
    uint8_t *alpn;         /* server: our list, owned */
    size_t alpn_len;
    char *target;          /* client: whom to resume with, owned; may be
                              NULL */
};

/* --- credentials_openssl.c --- */

/* Forgets the session at *at; cred->lock is held. */
void tw_ocred_drop_lock_held(struct tw_ocred *cred, struct tw_cached **at);
/* A session for target, or NULL. TLS 1.3 tickets are used once (RFC 8446,
   C.4), others stay. */
SSL_SESSION *tw_ocred_take_session(struct tw_ocred *cred,
                                   const char *target);
/* Counts down; NULL is ignored. */
void tw_ocred_free(struct tw_ocred *cred);
/* The provider's slot `acquire`, and FreeCredentialsHandle. */
enum tw_status tw_ocred_acquire(const struct tw_credentials_config *config,
                                CredHandle *out, struct tw_error *err);
SECURITY_STATUS tw_ocred_free_handle(PCredHandle handle);

/* --- context_openssl.c --- */

/* Room for n bytes behind what is gathered, or NULL. */
uint8_t *tw_octx_out_reserve(struct tw_octx *c, size_t n);
/* The same with a copy; false without memory (c->out_failed). */
bool tw_octx_out_append(struct tw_octx *c, const uint8_t *src, size_t len);
/* Is what all contexts share set up? */
bool tw_octx_ready(void);
/* The context of an SSL object. */
struct tw_octx *tw_octx_of(const SSL *ssl);
/* What an alert of the peer's is called in SSPI. */
SECURITY_STATUS tw_octx_status_of_alert(int alert);
/* After a failed SSL call: what it was, in SSPI's words. */
SECURITY_STATUS tw_octx_failure(struct tw_octx *c);
/* TLS 1.3 secrets, for the record engine, and for an alert that libssl
   cannot send: by the key log, or as a tw_hearer. */
void tw_octx_secret_logged(const SSL *ssl, const char *line);
void tw_octx_secret_heard(void *context, const char *label, size_t label_len,
                          const uint8_t *secret, size_t len);
void tw_octx_forget_secrets(struct tw_octx *c);
/* SSL_CTX_set_cert_verify_callback: takes note, see handshake_openssl.c. */
int tw_octx_verify_peer(X509_STORE_CTX *store, void *arg);
/* The server asks for a certificate (RFC 8446, 4.3.2) and the credentials
   have none: SEC_I_INCOMPLETE_CREDENTIALS. */
int tw_octx_choose_certificate(SSL *ssl, void *arg);
/* SSL_CTX_set_alpn_select_cb; no common name is a fatal alert (RFC 7301,
   3.2). */
int tw_octx_choose_alpn(SSL *ssl, const unsigned char **out,
                        unsigned char *out_len, const unsigned char *in,
                        unsigned in_len, void *arg);
/* The context of a handle; NULL if it is none. */
struct tw_octx *tw_octx_at(PCtxtHandle handle);
/* These wipe; NULL inside is ignored. */
void tw_octx_shadow_free(struct tw_octx *c);
/* The SSL object goes; its session stays resumable if `good`. */
void tw_octx_drop_ssl(struct tw_octx *c, bool good);
void tw_kept_free(struct tw_kept *k);
void tw_octx_free(struct tw_octx *c);
/* NULL with *st. target: UTF-16, NULL: none; ask: a server wants a
   certificate. */
struct tw_octx *tw_octx_new(struct tw_ocred *cred, enum tw_role role,
                            const SEC_WCHAR *target,
                            const SecBuffer *alpn, bool ask,
                            SECURITY_STATUS *st);
/* No record begins so: a type, version or length that there is not. */
bool tw_octx_header_broken(const uint8_t *p, size_t len);
/* The length of the first record, or 0 with *missing. A header that no
   record can have counts as whole: the SSL object is to refuse it. */
size_t tw_octx_record_span(const uint8_t *p, size_t len, size_t *missing);
/* From the SSL object or, once it may be gone, from `kept`. */
const SSL_CIPHER *tw_octx_current_cipher(const struct tw_octx *c);
int tw_octx_current_version(const struct tw_octx *c);
bool tw_octx_is_resumed(const struct tw_octx *c);

/* --- handshake_openssl.c --- */

/* Makes the first EMPTY buffer a SECBUFFER_MISSING. */
void tw_octx_report_missing(SecBufferDesc *in, size_t missing);
/* Slots of the function table, and the provider's `verdict`. */
SECURITY_STATUS tw_octx_initialize(
    PCredHandle cred, PCtxtHandle ctx, SEC_WCHAR *target, ULONG req,
    ULONG reserved1, ULONG drep, PSecBufferDesc in, ULONG reserved2,
    PCtxtHandle fresh, PSecBufferDesc out, ULONG *attr, void *expiry);
SECURITY_STATUS tw_octx_accept(
    PCredHandle cred, PCtxtHandle ctx, PSecBufferDesc in, ULONG req,
    ULONG drep, PCtxtHandle fresh, PSecBufferDesc out, ULONG *attr,
    void *expiry);
SECURITY_STATUS tw_octx_delete(PCtxtHandle ctx);
SECURITY_STATUS tw_octx_control(PCtxtHandle ctx, PSecBufferDesc in);
SECURITY_STATUS tw_octx_free_buffer(void *buffer);
SECURITY_STATUS tw_octx_verdict(CtxtHandle *ctx, SECURITY_STATUS code,
                                uint8_t *alert, size_t *alert_len);

/* --- takeover_openssl.c --- */

/* The peer's certificate as long as the SSL object knows it. */
bool tw_octx_learn_peer(struct tw_octx *c);
/*
 * Once the handshake is over and judged, at the first use of records: the
 * engine takes over if it can. Without memory it does not; then, and
 * wherever it cannot, records stay with the SSL object.
 */
void tw_octx_engage(struct tw_octx *c);
/* An alert record of the engine's into the output. */
bool tw_octx_send_alert(struct tw_octx *c, int level, int number);
/* RFC 5246, 7.2.2: not to be resumed after a fatal alert. */
void tw_octx_forget_session(struct tw_octx *c);
/* The peer broke the protocol: the alert that says so, and its status. */
SECURITY_STATUS tw_octx_records_failed(struct tw_octx *c, int alert);
/* What the SSL object wrote, under the keys and numbers that it stands at,
   becomes the engine's record. */
bool tw_octx_reseal_output(struct tw_octx *c, const uint8_t *p, size_t span);
/* A record that is the SSL object's to read, as it expects it; NULL with
   c->dead if it is not the peer's. */
uint8_t *tw_octx_reseal_input(struct tw_octx *c, const uint8_t *p,
                              size_t span);
/* Our own KeyUpdate, and the keys behind it (RFC 8446, 4.6.3). */
bool tw_octx_send_update(struct tw_octx *c);
/*
 * Opens the record p[0..span) into dst[0..room), room enough for all its
 * content; dst may be where that lies. *n: bytes of data.
 */
SECURITY_STATUS tw_octx_engine_open(struct tw_octx *c, const uint8_t *p,
                                    size_t span, uint8_t *dst, size_t room,
                                    size_t *n);
/* The end of a TLS 1.2 renegotiation: other facts, and fresh keys for the
   engine. */
SECURITY_STATUS tw_octx_renew(struct tw_octx *c);

/* --- message_openssl.c --- */

/* SECPKG_ATTR_STREAM_SIZES; then slots of the function table and the
   provider's `seal` and `open`. */
void tw_octx_stream_sizes(struct tw_octx *c, SecPkgContext_StreamSizes *s);
SECURITY_STATUS tw_octx_encrypt(PCtxtHandle ctx, ULONG qop,
                                PSecBufferDesc desc, ULONG seq);
SECURITY_STATUS tw_octx_decrypt(PCtxtHandle ctx, PSecBufferDesc desc,
                                ULONG seq, ULONG *qop);
SECURITY_STATUS tw_octx_seal(CtxtHandle *ctx, const uint8_t *src, size_t len,
                             uint8_t *dst, size_t room, size_t *taken,
                             size_t *made);
SECURITY_STATUS tw_octx_open(CtxtHandle *ctx, const uint8_t *src,
                             size_t len, uint8_t *dst, size_t room,
                             size_t *used, size_t *made);

#endif
