/*
 * struct tw_provider: what an engine offers to the floors above.
 *
 * The record and handshake work goes through `table`, a
 * SecurityFunctionTableW: secur32.dll's own on Windows, one of ours over
 * OpenSSL elsewhere, a scripted one in tests. Only what SSPI leaves to
 * other DLLs (acquiring credentials from certificates, stores, chains) has
 * slots of its own here.
 *
 * Rules for every slot: thread safe on distinct objects; never calls
 * Python; never waits on a socket (save cert_verify when asked to fetch).
 * Functions returning enum tw_status fill *err on failure. Objects handed
 * out are owned by the caller, counted atomically, and freed by the
 * matching slot. "may be NULL" is said where it is so.
 */
#ifndef TW_SSPI_PROVIDER_H
#define TW_SSPI_PROVIDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "sspi/sspi.h"

struct tw_cert;  /* a certificate, perhaps with a private key; immutable */
struct tw_store; /* a set of certificates */

/* tw_provider.caps */
#define TW_CAP_DUPLEX 0x1u /* Encrypt and Decrypt of one context at once */

/* Protocol masks, role-free; also what tw_facts.protocol holds. */
#define TW_TLS1_2 0x2u
#define TW_TLS1_3 0x4u

enum tw_role { TW_CLIENT = 1, TW_SERVER = 2 };

/* tw_credentials_config.flags */
#define TW_CRED_NO_RESUME 0x1u    /* neither offers nor accepts tickets */
#define TW_CRED_DEFAULT_CLIENT_CERT 0x2u /* OS may choose one by itself */
#define TW_CRED_CHOOSES 0x4u      /* a client that answers each request for a
                                     certificate anew: no session in which
                                     one was asked for may be resumed */
#define TW_CRED_INSTALL_CHAIN 0x8u /* issuers go into the user's CA store,
                                      where the engine can only send what
                                      the system can find (Schannel) */

struct tw_credentials_config {
    enum tw_role role;
    struct tw_cert *const *certs; /* with private keys; one per identity */
    size_t cert_count;
    struct tw_store *chain;   /* intermediates to send; may be NULL */
    struct tw_store *roots;   /* server: CA names asked for; may be NULL */
    uint32_t protocols;       /* TW_TLS1_..., 0 = the engine's default */
    int min_bits, max_bits;   /* cipher strength, 0 = the default */
    const char *ciphers;      /* OpenSSL 1.2 cipher list; may be NULL */
    int32_t session_lifespan; /* seconds, 0 = the default */
    uint32_t flags;           /* TW_CRED_... */
    void *window;             /* client: HWND, parent of what asks for a PIN
                                 or consent; NULL: none */
};

/* Revocation modes of a verification. */
enum tw_revocation {
    TW_REVOKE_NONE = 0,
    TW_REVOKE_LEAF,
    TW_REVOKE_CHAIN,
    TW_REVOKE_CHAIN_NO_ROOT
};

/* tw_verify_config.ignore */
#define TW_IGNORE_TIME 0x01u
#define TW_IGNORE_NAME 0x02u
#define TW_IGNORE_USAGE 0x04u
#define TW_IGNORE_UNKNOWN_CA 0x08u
#define TW_IGNORE_REVOCATION 0x10u
#define TW_IGNORE_BASIC_CONSTRAINTS 0x20u
#define TW_IGNORE_POLICY 0x40u
#define TW_IGNORE_CRITICAL 0x80u
#define TW_IGNORE_REVOCATION_OFFLINE 0x100u

/* tw_verify_config.flags: wishes to Windows' chain engine, which caches end
   certificates, updates its roots by itself, and trusts for the user or for
   the machine. Other engines do neither and know no difference. */
#define TW_VERIFY_CACHE_END_CERT 0x1u
#define TW_VERIFY_NO_ROOT_UPDATE 0x2u
#define TW_VERIFY_MACHINE 0x4u

struct tw_verify_config {
    const char *server;       /* DNS name or IP literal, UTF-8; NULL: the
                                 certificate is a client's */
    bool check_name;          /* compare with server */
    bool common_name;         /* fall back to CN where there is no SAN */
    struct tw_store *extra;   /* intermediates and CRLs besides what came
                                 with the certificate; may be NULL */
    struct tw_store *roots;   /* exclusive trust anchors; NULL: system's */
    struct tw_store *more_roots; /* besides the system's; may be NULL */
    enum tw_revocation revocation;
    uint32_t ignore;          /* TW_IGNORE_... */
    const char *const *usages; /* EKU OIDs, dotted; NULL: serverAuth or
                                  clientAuth, by `server` */
    size_t usage_count;
    bool usage_any;           /* one of usages is enough */
    const uint8_t *ocsp;      /* stapled OCSPResponse, DER; may be NULL */
    size_t ocsp_len;
    bool fetch;               /* may go to the network for CRLs (AIA) */
    int fetch_timeout_ms;
    bool want_path;           /* in the verdict */
    uint32_t flags;           /* TW_VERIFY_... */
    void (*gathered)(void *); /* called at most once, as soon as the three
                                 stores are needed no more: by an engine
                                 that can, before the network. May be NULL */
    void *gathered_arg;
};

struct tw_verdict {
    int32_t code;      /* 0, or SEC_E_/CERT_E_/CRYPT_E_/TRUST_E_ code in
                          its CERT_E_ form (CERT_E_CN_NO_MATCH and not
                          SEC_E_WRONG_PRINCIPAL); see tw_code_for_peer */
    int depth;         /* of the certificate it is about, 0 the leaf */
    char detail[256];  /* the engine's sentence, may be "" */
    struct tw_store *path; /* the one that was built, leaf first; the
                              caller's; NULL where it is not wanted */
};

/* What of a connection is worth knowing; UTF-8, "" or 0 when unknown. */
struct tw_facts {
    uint32_t protocol;        /* TW_TLS1_... */
    uint16_t suite;           /* IANA number */
    int bits;                 /* of the cipher's key */
    int resumed;              /* 1, 0, or -1: the engine cannot tell */
    char suite_name[64];      /* "TLS_AES_128_GCM_SHA256" */
    char cipher_name[64];     /* the engine's own name */
    char group[32];           /* key exchange group, "x25519" */
    char alpn[256];           /* the last, so that it can be cut short */
};

/* One sink for lists of bytes: called per item; false stops. */
typedef bool (*tw_sink)(void *arg, const char *key, const void *data,
                        size_t len);

enum tw_binding { TW_BIND_UNIQUE, TW_BIND_ENDPOINT, TW_BIND_EXPORTER };

/* cert_text and store_find fields */
enum tw_name {
    TW_NAME_SUBJECT_RDN, /* RFC 4514 order as X500: "CN=a, O=b, C=c" */
    TW_NAME_ISSUER_RDN,
    TW_NAME_SUBJECT_CN,
    TW_NAME_ISSUER_CN
};

enum tw_encoding {
    TW_ENC_CERT_DER,
    TW_ENC_PEM,        /* certificates, CRLs and at most one key a block */
    TW_ENC_PFX,
    TW_ENC_PKCS7,
    TW_ENC_KEY_DER,    /* PKCS#8 or traditional; joins its certificate */
    TW_ENC_SERIALIZED  /* what store_export gave */
};

struct tw_provider {
    const char *name; /* "schannel", "openssl", "scripted" */
    uint32_t caps;    /* TW_CAP_... */
    const SecurityFunctionTableW *(*table)(void); /* NULL if unusable */
    /* The engine's version for a person ("OpenSSL 3.0.19 27 Jan 2026"),
       and whether FIPS mode is on (1, 0, -1 unknown). */
    const char *(*version)(void);
    int (*fips)(void);

    /* --- credentials: freed by table()->FreeCredentialsHandle --- */
    enum tw_status (*acquire)(const struct tw_credentials_config *,
                              CredHandle *out, struct tw_error *err);

    /* --- records from one buffer into another; NULL where the engine has
       EncryptMessage and DecryptMessage alone, and for a context that has
       no other SEC_E_UNSUPPORTED_FUNCTION, nothing done --- */

    /* Seals src into whole records at dst[0..room), as many as fit: *taken
       bytes became *made. A KeyUpdate that is due goes before them. The two
       do not overlap. */
    SECURITY_STATUS (*seal)(CtxtHandle *, const uint8_t *src, size_t len,
                            uint8_t *dst, size_t room, size_t *taken,
                            size_t *made);
    /*
     * Opens whole records of src into dst[0..room) while their content is
     * sure to fit: *used bytes gave *made of data. Stops behind a record
     * without data: its status is DecryptMessage's (SEC_E_OK, RENEGOTIATE,
     * CONTEXT_EXPIRED, an error), and *made holds the data before it.
     */
    SECURITY_STATUS (*open)(CtxtHandle *, const uint8_t *src, size_t len,
                            uint8_t *dst, size_t room, size_t *used,
                            size_t *made);

    /*
     * Credentials with TW_CRED_NO_RESUME, where acquiring them does not
     * settle it; NULL where it does. Called once, after a client's first
     * step. SEC_E_OK: done. SEC_I_CONTINUE_NEEDED: too late for this
     * context; delete it, drop its token, and begin again.
     */
    SECURITY_STATUS (*forbid_resumption)(CtxtHandle *);

    /* Credentials with a window; NULL where acquiring them refuses one.
       Called after a client's first step, and when other credentials take
       over, before the next step. */
    SECURITY_STATUS (*set_window)(CtxtHandle *, void *window);

    /* --- of a context, beyond SSPI's attributes --- */

    /*
     * The answer to the pause for a verdict. `code` 0 accepts; otherwise
     * the SSPI code that says why not.
     *
     * Accepted: SEC_E_OK if the engine was not suspended (the held token
     * and status of the step stand); SEC_I_CONTINUE_NEEDED if it was: the
     * caller steps again, with what input there is, even none.
     *
     * Refused: the alert that replaces the held token is written to
     * alert[0..*alert_len) (*alert_len is the room on entry, at least
     * 64), 0 bytes if none can be made. The context is dead afterwards.
     */
    SECURITY_STATUS (*verdict)(CtxtHandle *, SECURITY_STATUS code,
                               uint8_t *alert, size_t *alert_len);

    /* The peer's certificate; its chain as sent is cert_chain. As soon as
       this succeeds the session pauses for its verdict. Without one:
       SEC_E_NO_CREDENTIALS in err->code, TW_E_NOT_FOUND. Before it can be
       known: TW_WANT_READ. */
    enum tw_status (*remote_cert)(CtxtHandle *, struct tw_cert **out,
                                  struct tw_error *err);
    enum tw_status (*local_cert)(CtxtHandle *, struct tw_cert **out,
                                 struct tw_error *err);
    enum tw_status (*facts)(CtxtHandle *, struct tw_facts *out,
                            struct tw_error *err);
    /* Channel bindings with their prefix; for the exporter with label and
       len as given: key material (RFC 8446, 7.5), no prefix. */
    enum tw_status (*binding)(CtxtHandle *, enum tw_binding,
                              const char *label, const uint8_t *context,
                              size_t context_len, uint8_t *out,
                              size_t *len, struct tw_error *err);
    /* DER names of the CAs the peer asks for. */
    enum tw_status (*issuers)(CtxtHandle *, tw_sink, void *arg,
                              struct tw_error *err);
    /* The stapled OCSP answer, DER, through the sink once; not at all if
       there is none. */
    void (*ocsp)(CtxtHandle *, tw_sink, void *arg);
    /* The last alert of the peer (number), or -1. */
    int (*alert_received)(CtxtHandle *);
    /* The last alert that the engine made (number), or -1. NULL: it does
       not tell. */
    int (*alert_sent)(CtxtHandle *);

    /* --- certificates --- */
    struct tw_cert *(*cert_ref)(struct tw_cert *);
    void (*cert_free)(struct tw_cert *); /* NULL is ignored */
    /* DER as long as the certificate lives. */
    void (*cert_der)(struct tw_cert *, const uint8_t **der, size_t *len);
    /* The certificates sent with it (leaf first), a new store. */
    enum tw_status (*cert_chain)(struct tw_cert *, struct tw_store **out,
                                 struct tw_error *err);
    bool (*cert_has_key)(struct tw_cert *);
    /* UTF-8 text through the sink (once, key NULL); "" if absent. */
    enum tw_status (*cert_text)(struct tw_cert *, enum tw_name, tw_sink,
                                void *arg, struct tw_error *err);
    /*
     * Everything cert_info shows, as (key, UTF-8 text) pairs: "version",
     * "serial" (hex), "subject", "issuer", "notbefore"/"notafter" (ISO
     * 8601, Z), "key_algorithm", "key_bits", "signature_algorithm",
     * "is_ca" ("0"/"1"), and repeated: "dns", "ip", "email", "uri",
     * "usage" (keyUsage names), "eku" (dotted OIDs), "ocsp_url",
     * "crl_url", "ca_url".
     */
    enum tw_status (*cert_info)(struct tw_cert *, tw_sink, void *arg,
                                struct tw_error *err);
    /* SHA-1 (20 bytes) or SHA-256 (32 bytes) of the DER; all zero if the
       engine has no such digest. */
    void (*cert_digest)(struct tw_cert *, int bytes, uint8_t *out);
    /* Verdict in *out; TW_DONE also for a bad certificate: an error is
       returned only if the verification could not run. */
    enum tw_status (*cert_verify)(struct tw_cert *,
                                  const struct tw_verify_config *,
                                  struct tw_verdict *out,
                                  struct tw_error *err);
    /* Does the certificate name this host (SAN, wildcards; CN if asked)? */
    bool (*cert_matches)(struct tw_cert *, const char *host, bool cn);

    /* --- stores --- */
    enum tw_status (*store_new)(struct tw_store **out, struct tw_error *);
    /* "ROOT", "CA", "MY" ...; location "user" or "machine". */
    enum tw_status (*store_open)(const char *name, const char *location,
                                 struct tw_store **out,
                                 struct tw_error *err);
    /* Adds what data holds. password: UTF-8, NULL = none given. An
       encrypted key without password, or with a wrong one: TW_E_PASSWORD;
       a key that fits no certificate: TW_E_ARGUMENT. */
    enum tw_status (*store_import)(struct tw_store *, enum tw_encoding,
                                   const uint8_t *data, size_t len,
                                   const char *password,
                                   struct tw_error *err);
    enum tw_status (*store_add)(struct tw_store *, struct tw_cert *,
                                struct tw_error *err);
    struct tw_store *(*store_ref)(struct tw_store *);
    void (*store_free)(struct tw_store *); /* NULL is ignored */
    size_t (*store_count)(struct tw_store *);
    struct tw_cert *(*store_get)(struct tw_store *, size_t index); /* new
                                  reference; NULL past the end */
    /* Public parts, through the sink once. TW_ENC_SERIALIZED, _PKCS7,
       _PEM. */
    enum tw_status (*store_export)(struct tw_store *, enum tw_encoding,
                                   tw_sink, void *arg,
                                   struct tw_error *err);
};

/* The engine of this platform; never NULL. */
const struct tw_provider *tw_provider_default(void);

#ifndef _WIN32
/* provider_openssl.c; the map of its certificate half: cert_openssl.h. */
extern const struct tw_provider tw_provider_openssl;
#else
extern const struct tw_provider tw_provider_schannel;
#endif

#endif
