/*
 * The Windows engine: secur32.dll's own SecurityFunctionTableW.
 *
 * Theory of operation. The table that InitSecurityInterfaceW returns goes
 * to the floor above as it is: handshakes and records are Schannel's. What
 * SSPI leaves to others is here: acquiring credentials (SCH_CREDENTIALS
 * from Windows 10 1809 on, SCHANNEL_CRED below it and for cipher strengths)
 * and asking a context for facts. Certificates are cert_crypt32.c.
 *
 * Nothing is kept per context: every answer is the context's own, asked
 * for when it is wanted. Peers are never judged by Schannel (MANUAL
 * validation): the session pauses for its verdict as soon as the remote
 * certificate can be queried, and holds our token meanwhile. So a verdict
 * needs nothing of Schannel, and a refusal's alert is the core's.
 *
 * TLS 1.3 is offered from build 20348 on (Server 2022, Windows 11): before
 * it, Schannel's was a preview that fails with real peers.
 *
 * Wine's secur32 sits on GnuTLS and answers the peer's close_notify with
 * SEC_E_OK and no data. There, and only there, the table's DecryptMessage
 * is put right (wine_decrypt): a copy of the table with one slot changed,
 * and without the slots that Wine's, of an older version, does not have.
 */
#include "sspi/schannel_internal.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bcrypt.h>

#define RECORD_HEADER 5u /* RFC 8446, 5.1 */
#define RECORD_ALERT 21
#define RECORD_DATA 23
#define BUILD_CREDENTIALS 17763u /* 10 1809: SCH_CREDENTIALS */
#define BUILD_TLS1_3 20348u      /* Server 2022; 11 is 22000 */
#define BUILD_SESSION 22000u     /* SCHANNEL_SESSION is in time */

/* Not in every SDK that we are built with. */
#ifndef SCH_USE_STRONG_CRYPTO
#define SCH_USE_STRONG_CRYPTO 0x00400000
#endif
#ifndef SCH_SEND_AUX_RECORD
#define SCH_SEND_AUX_RECORD 0x00200000
#endif

static const SecurityFunctionTableW *system_table;
static SecurityFunctionTableW wine_table;
static RTL_OSVERSIONINFOW os;  /* dwMajorVersion 0: not known */
static char version_text[128];
static INIT_ONCE once = INIT_ONCE_STATIC_INIT;

/* ----------------------------------------------------------- the system */

/*
 * A record of an alert that came to no data is close_notify: a fatal alert
 * is an error, and other warnings are no longer sent. In TLS 1.3 an alert
 * is told by its length: 2 bytes, 1 of inner type and 16 of tag (RFC 8446,
 * 5.2; no suite of GnuTLS's default has a shorter tag).
 */
static bool is_alert(const uint8_t *record, ULONG len)
{
    return len >= RECORD_HEADER
           && (record[0] == RECORD_ALERT
               || (record[0] == RECORD_DATA && record[3] == 0
                   && record[4] == 2 + 1 + 16));
}

static SECURITY_STATUS SEC_ENTRY wine_decrypt(PCtxtHandle ctx,
                                              PSecBufferDesc message,
                                              ULONG sequence, ULONG *qop)
{
    bool alert = false;
    SECURITY_STATUS status;
    ULONG i;

    if (message != NULL && message->cBuffers > 0
        && message->pBuffers[0].BufferType == SECBUFFER_DATA) {
        alert = is_alert(message->pBuffers[0].pvBuffer,
                         message->pBuffers[0].cbBuffer);
    }
    status = system_table->DecryptMessage(ctx, message, sequence, qop);
    if (status != SEC_E_OK || !alert) {
        return status;
    }
    for (i = 0; i < message->cBuffers; i++) {
        if (message->pBuffers[i].BufferType == SECBUFFER_DATA
            && message->pBuffers[i].cbBuffer != 0) {
            return status;
        }
    }
    return SEC_I_CONTEXT_EXPIRED;
}

/* GetProcAddress gives a pointer to some function. */
typedef void(WINAPI *anything)(void);

static anything find_function(HMODULE dll, const char *name)
{
    return dll == NULL ? NULL : (anything)(void *)GetProcAddress(dll, name);
}

static BOOL CALLBACK initialise(PINIT_ONCE unused1, PVOID unused2,
                                PVOID *unused3)
{
    HMODULE ntdll = GetModuleHandleW(L"ntdll.dll");
    LONG(WINAPI *get_version)(RTL_OSVERSIONINFOW *) =
        (LONG(WINAPI *)(RTL_OSVERSIONINFOW *))find_function(
            ntdll, "RtlGetVersion");
    const char *(CDECL *wine)(void) =
        (const char *(CDECL *)(void))find_function(ntdll,
                                                   "wine_get_version");

    (void)unused1;
    (void)unused2;
    (void)unused3;
    os.dwOSVersionInfoSize = sizeof(os);
    if (get_version == NULL || get_version(&os) != 0) {
        memset(&os, 0, sizeof(os));
    }
    system_table = InitSecurityInterfaceW();
    (void)snprintf(version_text, sizeof(version_text),
                   "Schannel (%s%.24s%sWindows %lu.%lu.%lu)",
                   wine != NULL ? "Wine " : "", wine != NULL ? wine() : "",
                   wine != NULL ? " as " : "",
                   (unsigned long)os.dwMajorVersion,
                   (unsigned long)os.dwMinorVersion,
                   (unsigned long)os.dwBuildNumber);
    if (wine != NULL && system_table != NULL) {
        /* its table ends where version 1 does: what follows is not its own */
        memcpy(&wine_table, system_table,
               system_table->dwVersion
                       < SECURITY_SUPPORT_PROVIDER_INTERFACE_VERSION_2
                   ? offsetof(SecurityFunctionTableW, SetContextAttributesW)
                   : sizeof(wine_table));
        wine_table.DecryptMessage = wine_decrypt;
    }
    return TRUE;
}

static void ready(void)
{
    (void)InitOnceExecuteOnce(&once, initialise, NULL, NULL);
}

static const SecurityFunctionTableW *table(void)
{
    ready();
    return wine_table.DecryptMessage != NULL ? &wine_table : system_table;
}

static ULONG build_number(void)
{
    ready();
    return os.dwBuildNumber;
}

static const char *version(void)
{
    ready();
    return version_text;
}

static int fips(void)
{
    BOOLEAN on = FALSE;

    if (BCryptGetFipsAlgorithmMode(&on) != 0) {
        return -1;
    }
    return on != FALSE;
}

/* ---------------------------------------------------------- credentials */

/* Everything one AcquireCredentialsHandle needs. */
struct request {
    const struct tw_credentials_config *config;
    PCCERT_CONTEXT *certs; /* owned array of borrowed contexts */
    ULONG enabled;         /* SP_PROT_... of the role */
    ULONG flags;           /* SCH_... */
    ULONG lifespan;        /* milliseconds */
    bool old;              /* SCHANNEL_CRED */
};

static enum tw_status choose_protocols(struct request *r,
                                       struct tw_error *err)
{
    const struct tw_credentials_config *config = r->config;
    bool server = config->role == TW_SERVER;
    bool strength = config->min_bits > 0 || config->max_bits > 0;
    uint32_t wanted = config->protocols;
    ULONG build = build_number();

    if (wanted & ~(uint32_t)(TW_TLS1_2 | TW_TLS1_3)) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "TLS 1.2 and TLS 1.3 only are offered");
    }
    if (strength && (wanted & TW_TLS1_3)) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "Schannel takes a cipher strength with TLS 1.2 "
                            "only: leave TLS 1.3 out of the protocols");
    }
    if (wanted == TW_TLS1_3 && build < BUILD_TLS1_3) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "TLS 1.3 needs Windows 11 or Server 2022 "
                            "(build 20348); this is build %lu",
                            (unsigned long)build);
    }
    if (wanted == 0) {
        wanted = strength ? TW_TLS1_2 : TW_TLS1_2 | TW_TLS1_3;
    }
    r->old = strength || build < BUILD_CREDENTIALS;
    r->enabled = 0;
    if (wanted & TW_TLS1_2) {
        r->enabled |= server ? SP_PROT_TLS1_2_SERVER : SP_PROT_TLS1_2_CLIENT;
    }
    if ((wanted & TW_TLS1_3) && !r->old && build >= BUILD_TLS1_3) {
        r->enabled |= server ? SP_PROT_TLS1_3_SERVER : SP_PROT_TLS1_3_CLIENT;
    }
    return TW_DONE;
}

static enum tw_status fill_request(struct request *r, struct tw_error *err)
{
    const struct tw_credentials_config *config = r->config;
    bool resume = (config->flags & TW_CRED_NO_RESUME) == 0;
    size_t i;

    if (config->ciphers != NULL) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "Schannel takes no cipher list; the order of "
                            "cipher suites is a policy of Windows");
    }
    if (config->role == TW_SERVER && config->roots != NULL) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            SEC_E_UNSUPPORTED_FUNCTION,
                            "Schannel sends the names of acceptable issuers "
                            "from a store of the machine only, never from "
                            "one in memory");
    }
    r->flags = SCH_USE_STRONG_CRYPTO | SCH_SEND_AUX_RECORD;
    if (config->role == TW_SERVER) {
        r->flags |= SCH_CRED_NO_SYSTEM_MAPPER
                    | (resume ? 0u : (ULONG)SCH_CRED_DISABLE_RECONNECTS);
    } else {
        /* the revocation flags only make it ask for an OCSP staple */
        r->flags |= SCH_CRED_MANUAL_CRED_VALIDATION
                    | SCH_CRED_NO_SERVERNAME_CHECK
                    | SCH_CRED_REVOCATION_CHECK_END_CERT
                    | SCH_CRED_IGNORE_NO_REVOCATION_CHECK
                    | SCH_CRED_IGNORE_REVOCATION_OFFLINE;
        r->flags |= config->flags & TW_CRED_DEFAULT_CLIENT_CERT
                        ? SCH_CRED_USE_DEFAULT_CREDS
                        : SCH_CRED_NO_DEFAULT_CREDS;
    }
    r->lifespan = 0;
    if (!resume && config->role == TW_CLIENT) {
        r->lifespan = (ULONG)-1;
    } else if (config->session_lifespan > 0) {
        r->lifespan = config->session_lifespan < INT32_MAX / 1000
                          ? (ULONG)config->session_lifespan * 1000u
                          : (ULONG)INT32_MAX;
    }
    r->certs = calloc(config->cert_count > 0 ? config->cert_count : 1,
                      sizeof(*r->certs));
    if (r->certs == NULL) {
        return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                            NULL);
    }
    for (i = 0; i < config->cert_count; i++) {
        r->certs[i] = config->certs[i]->ctx;
        if (!tw_crypt32_cert_has_key(config->certs[i])) {
            return tw_error_set(err, TW_E_ARGUMENT, SEC_E_NO_CREDENTIALS,
                                "the certificate has no private key: import "
                                "it with its key, or take it from a store "
                                "that has it");
        }
    }
    return choose_protocols(r, err);
}

static SECURITY_STATUS acquire_new(struct request *r, CredHandle *out)
{
    SCH_CREDENTIALS auth;
    TLS_PARAMETERS parameters;
    TimeStamp expiry;

    memset(&auth, 0, sizeof(auth));
    memset(&parameters, 0, sizeof(parameters));
    parameters.grbitDisabledProtocols = ~r->enabled;
    auth.dwVersion = SCH_CREDENTIALS_VERSION;
    auth.cCreds = (DWORD)r->config->cert_count;
    auth.paCred = auth.cCreds > 0 ? r->certs : NULL;
    auth.dwSessionLifespan = r->lifespan;
    auth.dwFlags = r->flags;
    auth.cTlsParameters = 1;
    auth.pTlsParameters = &parameters;
    return table()->AcquireCredentialsHandleW(
        NULL, (SEC_WCHAR *)(uintptr_t)UNISP_NAME_W,
        r->config->role == TW_SERVER ? SECPKG_CRED_INBOUND
                                     : SECPKG_CRED_OUTBOUND,
        NULL, &auth, NULL, NULL, out, &expiry);
}

static SECURITY_STATUS acquire_old(struct request *r, CredHandle *out)
{
    SCHANNEL_CRED auth;
    TimeStamp expiry;

    memset(&auth, 0, sizeof(auth));
    auth.dwVersion = SCHANNEL_CRED_VERSION;
    auth.cCreds = (DWORD)r->config->cert_count;
    auth.paCred = auth.cCreds > 0 ? r->certs : NULL;
    auth.grbitEnabledProtocols = r->enabled;
    auth.dwMinimumCipherStrength = (DWORD)r->config->min_bits;
    auth.dwMaximumCipherStrength = (DWORD)r->config->max_bits;
    auth.dwSessionLifespan = r->lifespan;
    auth.dwFlags = r->flags;
    return table()->AcquireCredentialsHandleW(
        NULL, (SEC_WCHAR *)(uintptr_t)UNISP_NAME_W,
        r->config->role == TW_SERVER ? SECPKG_CRED_INBOUND
                                     : SECPKG_CRED_OUTBOUND,
        NULL, &auth, NULL, NULL, out, &expiry);
}

/* Schannel's few codes, in words that name a remedy. */
static enum tw_status acquire_failed(const struct request *r,
                                     SECURITY_STATUS status,
                                     struct tw_error *err)
{
    int32_t trouble = 0;
    size_t i;

    for (i = 0; i < r->config->cert_count && trouble == 0; i++) {
        trouble = tw_crypt32_key_trouble(r->config->certs[i]);
    }
    if (trouble != 0) {
        return tw_error_set(err, TW_E_TLS, trouble, "%s",
                            tw_code_text(trouble));
    }
    switch (status) {
    case SEC_E_NO_CREDENTIALS:
        return tw_error_set(err, TW_E_TLS, status,
                            "Schannel cannot use the certificate's private "
                            "key: keys that exist in memory only "
                            "(ephemeral) are not accepted; import the key "
                            "into a container");
    case SEC_E_UNKNOWN_CREDENTIALS:
        return tw_error_set(err, TW_E_TLS, status,
                            "Schannel cannot reach the certificate's "
                            "private key; check that this account may read "
                            "it");
    case SEC_E_ALGORITHM_MISMATCH:
        return tw_error_set(err, TW_E_TLS, status,
                            "no protocol or cipher that was asked for is "
                            "enabled on this machine (Windows' policy)");
    case SEC_E_INTERNAL_ERROR:
        /* the system's text, "the LSA cannot be contacted", misleads */
        return tw_error_set(err, TW_E_TLS, status,
                            "Schannel refused the credentials without a "
                            "reason; often the private key does not belong "
                            "to the certificate or cannot be read");
    case SEC_E_INSUFFICIENT_MEMORY:
        return tw_error_set(err, TW_E_NOMEM, status, NULL);
    default:
        return tw_error_set(err, TW_E_TLS, status, "%s",
                            tw_code_text(status));
    }
}

static enum tw_status acquire(const struct tw_credentials_config *config,
                              CredHandle *out, struct tw_error *err)
{
    struct request r = {config, NULL, 0, 0, 0, false};
    SECURITY_STATUS status;
    enum tw_status st;
    size_t i;

    st = fill_request(&r, err);
    for (i = 0; st == TW_DONE && i < config->cert_count
                && (config->flags & TW_CRED_INSTALL_CHAIN);
         i++) {
        st = tw_crypt32_install_chain(config->certs[i], config->chain, err);
    }
    if (st == TW_DONE) {
        status = r.old ? acquire_old(&r, out) : acquire_new(&r, out);
        if (status != SEC_E_OK) {
            SecInvalidateHandle(out);
            st = acquire_failed(&r, status, err);
        }
    }
    free(r.certs);
    return st;
}

/* ------------------------------------------------- contexts, their facts */

static SECURITY_STATUS query(CtxtHandle *ctx, ULONG attribute, void *out)
{
    return table()->QueryContextAttributesW(ctx, attribute, out);
}

static enum tw_status query_failed(SECURITY_STATUS status,
                                   struct tw_error *err, const char *what)
{
    /* as the answer of a handshake this code means something else */
    bool untold = status == SEC_E_UNSUPPORTED_FUNCTION;

    return tw_error_set(err, untold ? TW_E_UNSUPPORTED : TW_E_STATE, status,
                        "%s: %s", what,
                        untold ? "this Windows does not tell"
                               : tw_code_text(status));
}

/* The token is held by the core: there is nothing to wake, and nothing of
   Schannel's that could carry the alert of a refusal. */
static SECURITY_STATUS verdict(CtxtHandle *ctx, SECURITY_STATUS code,
                               uint8_t *alert, size_t *alert_len)
{
    (void)ctx;
    (void)code;
    (void)alert;
    if (alert_len != NULL) {
        *alert_len = 0;
    }
    return SEC_E_OK;
}

/*
 * A session that is not to be resumed: the credentials' lifespan of -1
 * keeps Schannel from storing it, this token from offering one. Below
 * build 22000 the token comes too late for a context whose ClientHello is
 * made already, but in time for the next one.
 */
static SECURITY_STATUS forbid_resumption(CtxtHandle *ctx)
{
    SCHANNEL_SESSION_TOKEN token;
    SecBuffer buffer;
    SecBufferDesc desc = {SECBUFFER_VERSION, 1, NULL};
    SECURITY_STATUS status;

    desc.pBuffers = &buffer;
    memset(&token, 0, sizeof(token));
    token.dwTokenType = SCHANNEL_SESSION;
    token.dwFlags = SSL_SESSION_DISABLE_RECONNECTS;
    buffer.BufferType = SECBUFFER_TOKEN;
    buffer.pvBuffer = &token;
    buffer.cbBuffer = sizeof(token);
    status = table()->ApplyControlToken(ctx, &desc);
    if (status == SEC_E_UNSUPPORTED_FUNCTION) {
        return SEC_E_OK; /* an engine that has no session cache */
    }
    if (status != SEC_E_OK) {
        return status;
    }
    return build_number() < BUILD_SESSION ? SEC_I_CONTINUE_NEEDED
                                          : SEC_E_OK;
}

/*
 * Schannel shows the windows of smart cards and of keys that ask for
 * consent as children of this one. Undocumented but for its comment in
 * schannel.h ("sets SecPkgContext_UiInfo"); .NET Framework's SslStream sets
 * it where we do, behind the first step.
 */
static SECURITY_STATUS set_window(CtxtHandle *ctx, void *window)
{
    SecPkgContext_UiInfo info;

    info.hParentWindow = window;
    return table()->SetContextAttributesW == NULL
               ? SEC_E_UNSUPPORTED_FUNCTION
               : table()->SetContextAttributesW(ctx, SECPKG_ATTR_UI_INFO,
                                                &info, sizeof(info));
}

static enum tw_status no_certificate(struct tw_error *err, const char *whose)
{
    return tw_error_set(err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS,
                        "%s no certificate", whose);
}

/*
 * REMOTE_CERT_CONTEXT is SEC_E_INVALID_HANDLE until the handshake is over
 * (dotnet/runtime#63321); REMOTE_CERT_CHAIN, a context as well, is there
 * before, but not on every Windows (its pull request 65134).
 */
static enum tw_status remote_cert(CtxtHandle *ctx, struct tw_cert **out,
                                  struct tw_error *err)
{
    PCCERT_CONTEXT cert = NULL;
    SECURITY_STATUS status;

    *out = NULL;
    status = query(ctx, SECPKG_ATTR_REMOTE_CERT_CONTEXT, &cert);
    if (status == SEC_E_NO_CREDENTIALS) {
        return no_certificate(err, "the peer sent");
    }
    if (status != SEC_E_OK) {
        status = query(ctx, SECPKG_ATTR_REMOTE_CERT_CHAIN, &cert);
    }
    if (status != SEC_E_OK || cert == NULL) {
        return TW_WANT_READ;
    }
    /* what else the peer sent is in the certificate's store */
    *out = tw_crypt32_cert_new(cert, NULL, cert->hCertStore);
    return *out != NULL ? TW_DONE
                        : tw_error_set(err, TW_E_NOMEM,
                                       SEC_E_INSUFFICIENT_MEMORY, NULL);
}

static enum tw_status local_cert(CtxtHandle *ctx, struct tw_cert **out,
                                 struct tw_error *err)
{
    PCCERT_CONTEXT cert = NULL;
    SECURITY_STATUS status;

    *out = NULL;
    status = query(ctx, SECPKG_ATTR_LOCAL_CERT_CONTEXT, &cert);
    if (status == SEC_E_UNSUPPORTED_FUNCTION) {
        return query_failed(status, err, "our own certificate");
    }
    if (status != SEC_E_OK || cert == NULL) {
        return no_certificate(err, "this end has");
    }
    *out = tw_crypt32_cert_new(cert, NULL, NULL);
    return *out != NULL ? TW_DONE
                        : tw_error_set(err, TW_E_NOMEM,
                                       SEC_E_INSUFFICIENT_MEMORY, NULL);
}

static void narrow(char *dst, size_t room, const WCHAR *src)
{
    int n = WideCharToMultiByte(CP_UTF8, 0, src, -1, dst, (int)room, NULL,
                                NULL);

    if (n <= 0) {
        dst[0] = '\0';
    }
    dst[room - 1] = '\0';
}

static uint32_t protocol_of(ULONG bits)
{
    if (bits & (SP_PROT_TLS1_3_SERVER | SP_PROT_TLS1_3_CLIENT)) {
        return TW_TLS1_3;
    }
    return bits & (SP_PROT_TLS1_2_SERVER | SP_PROT_TLS1_2_CLIENT)
               ? TW_TLS1_2
               : 0;
}

/* As on the wire, which is how CIPHER_INFO tells it. */
static uint32_t wire_protocol(ULONG number)
{
    return number == 0x0304 ? TW_TLS1_3 : number == 0x0303 ? TW_TLS1_2 : 0;
}

/* A name for what CONNECTION_INFO gives, where it is all there is. */
static const char *cipher_of(ULONG algorithm)
{
    switch (algorithm) {
    case CALG_AES_128:
        return "AES-128";
    case CALG_AES_192:
        return "AES-192";
    case CALG_AES_256:
        return "AES-256";
    case CALG_3DES:
        return "3DES";
    default:
        return "";
    }
}

static enum tw_status nothing_yet(struct tw_error *err)
{
    return tw_error_set(err, TW_E_STATE, SEC_E_INVALID_HANDLE,
                        "the handshake has not come that far");
}

static enum tw_status facts(CtxtHandle *ctx, struct tw_facts *out,
                            struct tw_error *err)
{
    SecPkgContext_ConnectionInfo connection;
    SecPkgContext_CipherInfo cipher;
    SecPkgContext_SessionInfo session;
    SecPkgContext_ApplicationProtocol alpn;
    SECURITY_STATUS status;

    memset(out, 0, sizeof(*out));
    memset(&connection, 0, sizeof(connection));
    status = query(ctx, SECPKG_ATTR_CONNECTION_INFO, &connection);
    if (status != SEC_E_OK) {
        return query_failed(status, err,
                            "the handshake has not come that far");
    }
    out->protocol = protocol_of(connection.dwProtocol);
    if (connection.dwProtocol == 0 && wine_table.DecryptMessage != NULL) {
        out->protocol = TW_TLS1_3; /* Wine has no number for it */
    }
    out->bits = (int)connection.dwCipherStrength;
    memset(&cipher, 0, sizeof(cipher));
    cipher.dwVersion = SECPKGCONTEXT_CIPHERINFO_V1;
    if (query(ctx, SECPKG_ATTR_CIPHER_INFO, &cipher) == SEC_E_OK) {
        if (cipher.dwCipherSuite == 0 && cipher.dwCipherLen == 0) {
            /* the null suite is what one begins with (RFC 5246, A.5); Wine
               answers as soon as there is a context */
            return nothing_yet(err);
        }
        if (out->protocol == 0) {
            out->protocol = wire_protocol(cipher.dwProtocol);
        }
        out->suite = (uint16_t)cipher.dwCipherSuite;
        out->bits = (int)cipher.dwCipherLen;
        narrow(out->suite_name, sizeof(out->suite_name),
               cipher.szCipherSuite);
        narrow(out->cipher_name, sizeof(out->cipher_name), cipher.szCipher);
    } else if (connection.dwProtocol == 0
               && connection.dwCipherStrength == 0) {
        return nothing_yet(err);
    } else {
        (void)snprintf(out->cipher_name, sizeof(out->cipher_name), "%s",
                       cipher_of(connection.aiCipher));
    }
    out->resumed = -1; /* TLS 1.3's does not show in SESSION_INFO */
    memset(&session, 0, sizeof(session));
    if (out->protocol == TW_TLS1_2
        && query(ctx, SECPKG_ATTR_SESSION_INFO, &session) == SEC_E_OK) {
        out->resumed = (session.dwFlags & SSL_SESSION_RECONNECT) != 0;
    }
    memset(&alpn, 0, sizeof(alpn));
    if (query(ctx, SECPKG_ATTR_APPLICATION_PROTOCOL, &alpn) == SEC_E_OK
        && alpn.ProtoNegoStatus
               == SecApplicationProtocolNegotiationStatus_Success
        && alpn.ProtoNegoExt == SecApplicationProtocolNegotiationExt_ALPN) {
        memcpy(out->alpn, alpn.ProtocolId, alpn.ProtocolIdSize);
    }
    return TW_DONE;
}

/* SEC_CHANNEL_BINDINGS holds the prefix and the value as one. */
static enum tw_status fixed_binding(CtxtHandle *ctx, ULONG attribute,
                                    uint8_t *out, size_t *len,
                                    struct tw_error *err)
{
    SecPkgContext_Bindings bindings;
    SECURITY_STATUS status;
    enum tw_status st = TW_DONE;
    size_t at = SIZE_MAX;
    size_t n = 0;

    memset(&bindings, 0, sizeof(bindings));
    status = query(ctx, attribute, &bindings);
    if (status != SEC_E_OK || bindings.Bindings == NULL) {
        return query_failed(status != SEC_E_OK ? status
                                               : SEC_E_UNSUPPORTED_FUNCTION,
                            err, "the channel binding");
    }
    if (bindings.BindingsLength >= sizeof(*bindings.Bindings)) {
        at = bindings.Bindings->dwApplicationDataOffset;
        n = bindings.Bindings->cbApplicationDataLength;
    }
    if (at > bindings.BindingsLength || n > bindings.BindingsLength - at) {
        st = tw_error_set(err, TW_E_TLS, SEC_E_INTERNAL_ERROR,
                          "the channel binding is malformed");
    } else if (n > *len) {
        st = tw_error_set(err, TW_E_ARGUMENT, SEC_E_BUFFER_TOO_SMALL,
                          "the buffer is too small");
    } else {
        memcpy(out, (const uint8_t *)bindings.Bindings + at, n);
        *len = n;
    }
    (void)table()->FreeContextBuffer(bindings.Bindings);
    return st;
}

/* Windows 10 and later (RFC 8446, 7.5). Label with its NUL, as documented
   for SecPkgContext_KeyingMaterialInfo. */
static enum tw_status exporter(CtxtHandle *ctx, const char *label,
                               const uint8_t *context, size_t context_len,
                               uint8_t *out, size_t len,
                               struct tw_error *err)
{
    SecPkgContext_KeyingMaterialInfo ask;
    SecPkgContext_KeyingMaterial material;
    SECURITY_STATUS status;
    size_t label_len = strlen(label) + 1;

    if (label_len > 0xFFFF || context_len > 0xFFFF || len > 0xFFFF) {
        return tw_error_set(err, TW_E_ARGUMENT, SEC_E_INVALID_PARAMETER,
                            "label, context or length is too long");
    }
    memset(&ask, 0, sizeof(ask));
    ask.cbLabel = (WORD)label_len;
    ask.pszLabel = (LPSTR)(uintptr_t)label;
    ask.cbContextValue = (WORD)context_len;
    ask.pbContextValue = (PBYTE)(uintptr_t)context;
    ask.cbKeyingMaterial = (DWORD)len;
    memset(&material, 0, sizeof(material));
    if (table()->SetContextAttributesW == NULL) {
        status = SEC_E_UNSUPPORTED_FUNCTION;
    } else {
        status = table()->SetContextAttributesW(
            ctx, SECPKG_ATTR_KEYING_MATERIAL_INFO, &ask, sizeof(ask));
    }
    if (status == SEC_E_OK) {
        status = query(ctx, SECPKG_ATTR_KEYING_MATERIAL, &material);
    }
    if (status == SEC_E_OK && material.cbKeyingMaterial == len
        && material.pbKeyingMaterial != NULL) {
        memcpy(out, material.pbKeyingMaterial, len);
    } else if (status == SEC_E_OK) {
        status = SEC_E_INTERNAL_ERROR;
    }
    if (material.pbKeyingMaterial != NULL) {
        SecureZeroMemory(material.pbKeyingMaterial,
                         material.cbKeyingMaterial);
        (void)table()->FreeContextBuffer(material.pbKeyingMaterial);
    }
    return status == SEC_E_OK
               ? TW_DONE
               : query_failed(status, err,
                              "keying material cannot be exported");
}

static enum tw_status binding(CtxtHandle *ctx, enum tw_binding kind,
                              const char *label, const uint8_t *context,
                              size_t context_len, uint8_t *out, size_t *len,
                              struct tw_error *err)
{
    struct tw_facts known;
    enum tw_status st = facts(ctx, &known, err);

    if (st != TW_DONE) {
        return st;
    }
    switch (kind) {
    case TW_BIND_UNIQUE:
        if (known.protocol == TW_TLS1_3) {
            return tw_error_set(err, TW_E_UNSUPPORTED,
                                SEC_E_UNSUPPORTED_FUNCTION,
                                "tls-unique is not defined for TLS 1.3; "
                                "use tls-exporter (RFC 9266)");
        }
        return fixed_binding(ctx, SECPKG_ATTR_UNIQUE_BINDINGS, out, len,
                             err);
    case TW_BIND_ENDPOINT:
        return fixed_binding(ctx, SECPKG_ATTR_ENDPOINT_BINDINGS, out, len,
                             err);
    case TW_BIND_EXPORTER:
        if (known.protocol != TW_TLS1_3) {
            return tw_error_set(err, TW_E_UNSUPPORTED,
                                SEC_E_UNSUPPORTED_FUNCTION,
                                "Schannel exports keying material with "
                                "TLS 1.3 only");
        }
        return exporter(ctx, label, context, context_len, out, *len, err);
    }
    return tw_error_set(err, TW_E_ARGUMENT, SEC_E_INVALID_PARAMETER,
                        "unknown channel binding");
}

static enum tw_status issuers(CtxtHandle *ctx, tw_sink sink, void *arg,
                              struct tw_error *err)
{
    SecPkgContext_IssuerListInfoEx list;
    SECURITY_STATUS status;
    DWORD i;

    memset(&list, 0, sizeof(list));
    status = query(ctx, SECPKG_ATTR_ISSUER_LIST_EX, &list);
    if (status != SEC_E_OK) {
        return status == SEC_E_UNSUPPORTED_FUNCTION
                   ? query_failed(status, err, "the issuers asked for")
                   : TW_DONE; /* nobody asked */
    }
    for (i = 0; list.aIssuers != NULL && i < list.cIssuers; i++) {
        if (!sink(arg, NULL, list.aIssuers[i].pbData,
                  list.aIssuers[i].cbData)) {
            break;
        }
    }
    if (list.aIssuers != NULL) {
        (void)table()->FreeContextBuffer(list.aIssuers);
    }
    return TW_DONE;
}

/* Schannel leaves the staple as a property of the server's certificate. */
static void ocsp(CtxtHandle *ctx, tw_sink sink, void *arg)
{
    PCCERT_CONTEXT cert = NULL;
    uint8_t *der = NULL;
    DWORD len = 0;

    if (query(ctx, SECPKG_ATTR_REMOTE_CERT_CONTEXT, &cert) != SEC_E_OK
        || cert == NULL) {
        return;
    }
    if (CertGetCertificateContextProperty(cert, CERT_OCSP_RESPONSE_PROP_ID,
                                          NULL, &len)
        && len > 0 && (der = malloc(len)) != NULL
        && CertGetCertificateContextProperty(
            cert, CERT_OCSP_RESPONSE_PROP_ID, der, &len)) {
        (void)sink(arg, NULL, der, len);
    }
    free(der);
    (void)CertFreeCertificateContext(cert);
}

/* Schannel does not say; the core reads those that come in the clear. */
static int alert_received(CtxtHandle *ctx)
{
    (void)ctx;
    return -1;
}

const struct tw_provider tw_provider_schannel = {
    .name = "schannel",
    .caps = 0, /* not TW_CAP_DUPLEX: dotnet/runtime#69042 */
    .table = table,
    .version = version,
    .fips = fips,
    .acquire = acquire,
    .verdict = verdict,
    .forbid_resumption = forbid_resumption,
    .set_window = set_window,
    .remote_cert = remote_cert,
    .local_cert = local_cert,
    .facts = facts,
    .binding = binding,
    .issuers = issuers,
    .ocsp = ocsp,
    .alert_received = alert_received,
    .cert_ref = tw_crypt32_cert_ref,
    .cert_free = tw_crypt32_cert_free,
    .cert_der = tw_crypt32_cert_der,
    .cert_chain = tw_crypt32_cert_chain,
    .cert_has_key = tw_crypt32_cert_has_key,
    .cert_text = tw_crypt32_cert_text,
    .cert_info = tw_crypt32_cert_info,
    .cert_digest = tw_crypt32_cert_digest,
    .cert_verify = tw_crypt32_cert_verify,
    .cert_matches = tw_crypt32_cert_matches,
    .store_new = tw_crypt32_store_new,
    .store_open = tw_crypt32_store_open,
    .store_import = tw_crypt32_store_import,
    .store_add = tw_crypt32_store_add,
    .store_ref = tw_crypt32_store_ref,
    .store_free = tw_crypt32_store_free,
    .store_count = tw_crypt32_store_count,
    .store_get = tw_crypt32_store_get,
    .store_export = tw_crypt32_store_export,
};

const struct tw_provider *tw_provider_default(void)
{
    return &tw_provider_schannel;
}
