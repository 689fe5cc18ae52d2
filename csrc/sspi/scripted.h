/*
 * A scripted SecurityFunctionTableW, for tests: every answer that SSPI
 * documents can be had anywhere, without Windows and without a peer.
 *
 * It plays beneath two providers. tw_provider_scripted has it for a table
 * and answers by itself what SSPI leaves to a provider: so the core is
 * tested. provider_schannel.c gets it in place of secur32's own
 * (tw_script_table): so is that file, whatever it asks and is answered.
 *
 * A script is a list of entries, each an expected call with its answer.
 * Calls that move data (steps, EncryptMessage, DecryptMessage) must come in
 * the script's order; another one is a problem (tw_script_problem) and
 * fails with SEC_E_INTERNAL_ERROR. Calls that only ask or end something
 * (QueryContextAttributes, SetContextAttributes, ApplyControlToken,
 * acquiring, the verdict) are answered by the script if its next entry is
 * theirs, and otherwise from the script's world: sizes, protocol, the
 * peer's certificate, alerts. An entry may change the world. Everything
 * that was called is in the log.
 *
 * Handles and certificates lead to the script that they came from;
 * tw_script_use says whose credentials `acquire` makes. A certificate's
 * "DER" is text here, lines of "key=value", which is what cert_info shows.
 * A sealed record is 23 3 3, its length, the data with every bit turned,
 * and bytes 0xEE; a scripted record from the peer is whatever the test
 * feeds.
 *
 * Not thread safe: one script, one thread at a time.
 */
#ifndef TW_SSPI_SCRIPTED_H
#define TW_SSPI_SCRIPTED_H

#include "sspi/provider.h"

enum tw_slot {
    TW_SLOT_STEP,    /* InitializeSecurityContext, AcceptSecurityContext */
    TW_SLOT_ENCRYPT,
    TW_SLOT_DECRYPT,
    TW_SLOT_CONTROL, /* ApplyControlToken */
    TW_SLOT_QUERY,
    TW_SLOT_SET,     /* SetContextAttributes */
    TW_SLOT_ACQUIRE, /* AcquireCredentialsHandle, or tw_provider.acquire */
    TW_SLOT_VERDICT,
    TW_SLOT_SEAL,    /* tw_provider.seal, .open and .forbid_resumption; an */
    TW_SLOT_OPEN,    /* engine without them where the script has no entry */
    TW_SLOT_FORBID,
    TW_SLOT_DELETE,  /* in the log only */
    TW_SLOT_COUNT
};

/* One of the four buffers that DecryptMessage leaves. */
struct tw_script_part {
    ULONG type;  /* SECBUFFER_... */
    int64_t at;  /* offset into the input; below 0: NULL */
    size_t len;
};

/* What an entry does to the world; see `set`. */
#define TW_WORLD_REMOTE 0x01u
#define TW_WORLD_ALERT 0x02u
#define TW_WORLD_SIZES 0x04u
#define TW_WORLD_PROTOCOL 0x08u

enum tw_script_remote { TW_REMOTE_UNKNOWN, TW_REMOTE_NONE, TW_REMOTE_CERT };

struct tw_script_entry {
    enum tw_slot slot;
    SECURITY_STATUS status;
    /* expected; -1 and NULL: anything */
    int has_context;       /* step: an existing context, 1 or 0 */
    ULONG flags_set;       /* step: requirements that must be there */
    ULONG flags_clear;     /* step: and those that must not */
    int64_t attribute;     /* query, set: which; control: the token's type */
    const uint8_t *input;  /* step: the TOKEN; else the DATA as given */
    size_t input_len;
    int no_input;          /* step: 1: no TOKEN buffer may be there */
    /* answers */
    const uint8_t *token;  /* step: TOKEN; verdict: the alert; query: the
                              structure, if it is one that does not point */
    size_t token_len;
    const uint8_t *alert;  /* step: SECBUFFER_ALERT */
    size_t alert_len;
    int64_t extra;         /* bytes of EXTRA; below 0: none reported */
    int64_t missing;       /* bytes of MISSING; below 0: none reported */
    int64_t attributes;    /* step: context attributes; below 0: as asked */
    bool no_handle;        /* step: success without a new context */
    bool stray_handle;     /* step: failure with one all the same (Wine) */
    const uint8_t *data;   /* decrypt: plaintext, written at parts' DATA;
                              query: what the structure points to: a
                              certificate, a binding, key material, or
                              issuers, each with a NUL */
    size_t data_len;
    struct tw_script_part parts[4]; /* decrypt: the buffers after it */
    size_t part_count;     /* 0: HEADER, DATA, TRAILER and EXTRA */
    int64_t header, trailer; /* encrypt: lengths after; below 0: all.
                                seal, open: header is what was taken */
    /* the world after the call */
    unsigned int set;      /* TW_WORLD_... */
    enum tw_script_remote remote;
    const uint8_t *remote_der;
    size_t remote_len;
    int alert_received;
    SecPkgContext_StreamSizes sizes;
    uint32_t protocol;     /* TW_TLS1_...; 0: facts fail */
};

/* A call as it was made. */
struct tw_script_call {
    enum tw_slot slot;
    SECURITY_STATUS status; /* what it was answered */
    int has_context;
    ULONG flags;       /* step: requirements; query, set: attribute */
    ULONG buffers;     /* how many input buffers; 0: no descriptor */
    ULONG types[4];    /* their types as given */
    uint8_t *input;    /* TOKEN or DATA as given; acquire: struct
                          tw_script_asked; set: a label with its NUL, then
                          its context; owned by the log */
    size_t input_len;
};

/* AcquireCredentialsHandle's arguments, of whichever version. */
struct tw_script_asked {
    ULONG use;       /* SECPKG_CRED_... */
    ULONG version;   /* SCHANNEL_CRED_VERSION, SCH_CREDENTIALS_VERSION */
    ULONG certs;     /* how many */
    ULONG flags;     /* SCH_... */
    ULONG lifespan;
    ULONG protocols; /* SP_PROT_..., those enabled */
    ULONG min_bits, max_bits; /* 0 in version 5 */
};

struct tw_script_alive {
    long credentials, contexts, certs, buffers;
};

struct tw_script;

/* NULL: out of memory. */
struct tw_script *tw_script_new(void);
/* What is alive of it (tw_script_count) must be gone before. */
void tw_script_free(struct tw_script *);
/* An entry that expects anything and answers SEC_E_OK with nothing. */
void tw_script_entry_init(struct tw_script_entry *, enum tw_slot);
/* Appends a copy. false: out of memory. */
bool tw_script_add(struct tw_script *, const struct tw_script_entry *);
/* Entries that were not played yet. */
size_t tw_script_left(const struct tw_script *);
/* The first call that did not fit, as a sentence; "" if all did. */
const char *tw_script_problem(const struct tw_script *);
size_t tw_script_log_length(const struct tw_script *);
const struct tw_script_call *tw_script_log(const struct tw_script *,
                                           size_t index);
void tw_script_count(const struct tw_script *, struct tw_script_alive *);
/* Whose credentials the provider acquires from now on; NULL: it has no
   function table. */
void tw_script_use(struct tw_script *);
/* The table itself, whatever is in use: a credential that nobody is in use
   for is SEC_E_NO_CREDENTIALS. */
const SecurityFunctionTableW *tw_script_table(void);
/* What SECPKG_ATTR_REMOTE_CERT_CONTEXT and its kin give for the bytes of a
   certificate; they are asked for with one only. */
typedef PCCERT_CONTEXT (*tw_script_context)(struct tw_script *,
                                            const uint8_t *der, size_t len);
void tw_script_contexts(tw_script_context);
/* A certificate of the script; NULL: out of memory. */
struct tw_cert *tw_script_cert_new(struct tw_script *, const uint8_t *der,
                                   size_t len);

extern const struct tw_provider tw_provider_scripted;

#endif
