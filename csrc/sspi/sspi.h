/*
 * SSPI's vocabulary.
 *
 * On Windows this is the SDK's own: <security.h>, <schannel.h>. Elsewhere
 * the same names, values and shapes are declared here, as far as TLS needs
 * them, so that the floor above (core/) is the same text on every engine.
 *
 * Values are from Microsoft's documentation of sspi.h, schannel.h and
 * winerror.h. `unsigned long` is 32 bits wide on Windows; ULONG stands for
 * it here so that a SecBuffer means the same on LP64 systems.
 */
#ifndef TW_SSPI_SSPI_H
#define TW_SSPI_SSPI_H

#ifdef _WIN32

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef SECURITY_WIN32
#define SECURITY_WIN32
#endif
/* mingw and older SDKs hide SCH_CREDENTIALS behind this name */
#ifndef SCHANNEL_USE_BLACKLISTS
#define SCHANNEL_USE_BLACKLISTS
#endif
#include <winsock2.h>
#include <ws2tcpip.h> /* inet_pton: addresses in certificates */
#include <windows.h>
#include <winternl.h>
#include <wincrypt.h>
#include <security.h>
#include <schannel.h>

#else /* not Windows */

#include <stddef.h>
#include <stdint.h>

typedef int32_t SECURITY_STATUS;
typedef uint32_t ULONG;
typedef uint16_t SEC_WCHAR; /* UTF-16 code unit, as on Windows */

#define SEC_ENTRY /* the calling convention is the platform's own */

typedef struct _SECURITY_INTEGER {
    ULONG LowPart;
    int32_t HighPart;
} TimeStamp, *PTimeStamp;

typedef struct _SecHandle {
    uintptr_t dwLower;
    uintptr_t dwUpper;
} SecHandle, *PSecHandle;
typedef SecHandle CredHandle, CtxtHandle, *PCredHandle, *PCtxtHandle;

#define SecInvalidateHandle(h) \
    ((h)->dwLower = (h)->dwUpper = (uintptr_t)(intptr_t)-1)
#define SecIsValidHandle(h)                            \
    (((h)->dwLower != (uintptr_t)(intptr_t)-1)         \
     && ((h)->dwUpper != (uintptr_t)(intptr_t)-1))

typedef struct _SecBuffer {
    ULONG cbBuffer;   /* length in bytes */
    ULONG BufferType; /* SECBUFFER_... */
    void *pvBuffer;
} SecBuffer, *PSecBuffer;

typedef struct _SecBufferDesc {
    ULONG ulVersion; /* SECBUFFER_VERSION */
    ULONG cBuffers;
    PSecBuffer pBuffers;
} SecBufferDesc, *PSecBufferDesc;

#define SECBUFFER_VERSION 0
#define SECBUFFER_EMPTY 0
#define SECBUFFER_DATA 1
#define SECBUFFER_TOKEN 2
#define SECBUFFER_MISSING 4
#define SECBUFFER_EXTRA 5
#define SECBUFFER_STREAM_TRAILER 6
#define SECBUFFER_STREAM_HEADER 7
#define SECBUFFER_CHANNEL_BINDINGS 14
#define SECBUFFER_ALERT 17
#define SECBUFFER_APPLICATION_PROTOCOLS 18

#define UNISP_NAME_W u"Microsoft Unified Security Protocol Provider"
#define SECPKG_CRED_INBOUND 1
#define SECPKG_CRED_OUTBOUND 2
#define SECURITY_NATIVE_DREP 16

#define ISC_REQ_MUTUAL_AUTH 0x00000002
#define ISC_REQ_REPLAY_DETECT 0x00000004
#define ISC_REQ_SEQUENCE_DETECT 0x00000008
#define ISC_REQ_CONFIDENTIALITY 0x00000010
#define ISC_REQ_USE_SUPPLIED_CREDS 0x00000080
#define ISC_REQ_ALLOCATE_MEMORY 0x00000100
#define ISC_REQ_EXTENDED_ERROR 0x00004000
#define ISC_REQ_STREAM 0x00008000
#define ISC_REQ_MANUAL_CRED_VALIDATION 0x00080000
#define ASC_REQ_MUTUAL_AUTH 0x00000002
#define ASC_REQ_REPLAY_DETECT 0x00000004
#define ASC_REQ_SEQUENCE_DETECT 0x00000008
#define ASC_REQ_CONFIDENTIALITY 0x00000010
#define ASC_REQ_ALLOCATE_MEMORY 0x00000100
#define ASC_REQ_EXTENDED_ERROR 0x00008000
#define ASC_REQ_STREAM 0x00010000

#define TW_HR(x) ((SECURITY_STATUS)(x##u))
#define SEC_E_OK ((SECURITY_STATUS)0)
#define SEC_I_CONTINUE_NEEDED ((SECURITY_STATUS)0x00090312)
#define SEC_I_CONTEXT_EXPIRED ((SECURITY_STATUS)0x00090317)
#define SEC_I_INCOMPLETE_CREDENTIALS ((SECURITY_STATUS)0x00090320)
#define SEC_I_RENEGOTIATE ((SECURITY_STATUS)0x00090321)
#define SEC_E_INSUFFICIENT_MEMORY TW_HR(0x80090300)
#define SEC_E_INVALID_HANDLE TW_HR(0x80090301)
#define SEC_E_UNSUPPORTED_FUNCTION TW_HR(0x80090302)
#define SEC_E_TARGET_UNKNOWN TW_HR(0x80090303)
#define SEC_E_INTERNAL_ERROR TW_HR(0x80090304)
#define SEC_E_SECPKG_NOT_FOUND TW_HR(0x80090305)
#define SEC_E_INVALID_TOKEN TW_HR(0x80090308)
#define SEC_E_LOGON_DENIED TW_HR(0x8009030C)
#define SEC_E_UNKNOWN_CREDENTIALS TW_HR(0x8009030D)
#define SEC_E_NO_CREDENTIALS TW_HR(0x8009030E)
#define SEC_E_MESSAGE_ALTERED TW_HR(0x8009030F)
#define SEC_E_OUT_OF_SEQUENCE TW_HR(0x80090310)
#define SEC_E_NO_AUTHENTICATING_AUTHORITY TW_HR(0x80090311)
#define SEC_E_CONTEXT_EXPIRED TW_HR(0x80090317)
#define SEC_E_INCOMPLETE_MESSAGE TW_HR(0x80090318)
#define SEC_E_INCOMPLETE_CREDENTIALS TW_HR(0x80090320)
#define SEC_E_BUFFER_TOO_SMALL TW_HR(0x80090321)
#define SEC_E_WRONG_PRINCIPAL TW_HR(0x80090322)
#define SEC_E_UNTRUSTED_ROOT TW_HR(0x80090325)
#define SEC_E_ILLEGAL_MESSAGE TW_HR(0x80090326)
#define SEC_E_CERT_UNKNOWN TW_HR(0x80090327)
#define SEC_E_CERT_EXPIRED TW_HR(0x80090328)
#define SEC_E_ENCRYPT_FAILURE TW_HR(0x80090329)
#define SEC_E_DECRYPT_FAILURE TW_HR(0x80090330)
#define SEC_E_ALGORITHM_MISMATCH TW_HR(0x80090331)
#define SEC_E_CERT_WRONG_USAGE TW_HR(0x80090349)
#define SEC_E_APPLICATION_PROTOCOL_MISMATCH TW_HR(0x80090367)
#define SEC_E_UNSUPPORTED_PREAUTH TW_HR(0x80090343)
#define SEC_E_INVALID_PARAMETER TW_HR(0x8009035D)
#define E_ACCESSDENIED TW_HR(0x80070005)
#define SCARD_E_NO_SMARTCARD TW_HR(0x8010000C)
#define SCARD_E_NO_READERS_AVAILABLE TW_HR(0x8010002E)
#define SCARD_W_REMOVED_CARD TW_HR(0x80100069)
#define SCARD_W_WRONG_CHV TW_HR(0x8010006B)
#define SCARD_W_CHV_BLOCKED TW_HR(0x8010006C)
#define SCARD_W_CANCELLED_BY_USER TW_HR(0x8010006E)
#define NTE_PERM TW_HR(0x80090010)
#define NTE_BAD_KEYSET TW_HR(0x80090016)
#define NTE_SILENT_CONTEXT TW_HR(0x80090022)
#define NTE_USER_CANCELLED TW_HR(0x80090036)
#define CRYPT_E_REVOKED TW_HR(0x80092010)
#define CRYPT_E_NO_REVOCATION_CHECK TW_HR(0x80092012)
#define CRYPT_E_REVOCATION_OFFLINE TW_HR(0x80092013)
#define CRYPT_E_NOT_FOUND TW_HR(0x80092004)
#define CRYPT_E_ASN1_BADTAG TW_HR(0x8009310B)
#define TRUST_E_CERT_SIGNATURE TW_HR(0x80096004)
#define TRUST_E_BASIC_CONSTRAINTS TW_HR(0x80096019)
#define CERT_E_EXPIRED TW_HR(0x800B0101)
#define CERT_E_VALIDITYPERIODNESTING TW_HR(0x800B0102)
#define CERT_E_ROLE TW_HR(0x800B0103)
#define CERT_E_CRITICAL TW_HR(0x800B0105)
#define CERT_E_PURPOSE TW_HR(0x800B0106)
#define CERT_E_UNTRUSTEDROOT TW_HR(0x800B0109)
#define CERT_E_CHAINING TW_HR(0x800B010A)
#define CERT_E_REVOKED TW_HR(0x800B010C)
#define CERT_E_REVOCATION_FAILURE TW_HR(0x800B010E)
#define CERT_E_CN_NO_MATCH TW_HR(0x800B010F)
#define CERT_E_WRONG_USAGE TW_HR(0x800B0110)
#define CERT_E_INVALID_POLICY TW_HR(0x800B0113)
#define CERT_E_INVALID_NAME TW_HR(0x800B0114)

#define SP_PROT_TLS1_SERVER 0x00000040
#define SP_PROT_TLS1_CLIENT 0x00000080
#define SP_PROT_TLS1_1_SERVER 0x00000100
#define SP_PROT_TLS1_1_CLIENT 0x00000200
#define SP_PROT_TLS1_2_SERVER 0x00000400
#define SP_PROT_TLS1_2_CLIENT 0x00000800
#define SP_PROT_TLS1_3_SERVER 0x00001000
#define SP_PROT_TLS1_3_CLIENT 0x00002000

/* What AcquireCredentialsHandle takes: version 4 since Windows 2000,
   version 5 since Windows 10 1809, the first that knows TLS 1.3. */
typedef const struct _CERT_CONTEXT *PCCERT_CONTEXT; /* crypt32's */

#define SCHANNEL_CRED_VERSION 4
typedef struct _SCHANNEL_CRED {
    ULONG dwVersion; /* SCHANNEL_CRED_VERSION */
    ULONG cCreds;
    PCCERT_CONTEXT *paCred;
    void *hRootStore;
    ULONG cMappers;
    void *aphMappers;
    ULONG cSupportedAlgs;
    void *palgSupportedAlgs;
    ULONG grbitEnabledProtocols; /* SP_PROT_... */
    ULONG dwMinimumCipherStrength; /* bits */
    ULONG dwMaximumCipherStrength;
    ULONG dwSessionLifespan; /* milliseconds; (ULONG)-1: no cache */
    ULONG dwFlags;           /* SCH_... */
    ULONG dwCredFormat;
} SCHANNEL_CRED;

typedef struct _TLS_PARAMETERS {
    ULONG cAlpnIds;
    void *rgstrAlpnIds;
    ULONG grbitDisabledProtocols; /* SP_PROT_... */
    ULONG cDisabledCrypto;
    void *pDisabledCrypto;
    ULONG dwFlags;
} TLS_PARAMETERS;

#define SCH_CREDENTIALS_VERSION 5
typedef struct _SCH_CREDENTIALS {
    ULONG dwVersion; /* SCH_CREDENTIALS_VERSION */
    ULONG dwCredFormat;
    ULONG cCreds;
    PCCERT_CONTEXT *paCred;
    void *hRootStore;
    ULONG cMappers;
    void *aphMappers;
    ULONG dwSessionLifespan; /* milliseconds; (ULONG)-1: no cache */
    ULONG dwFlags;           /* SCH_... */
    ULONG cTlsParameters;
    TLS_PARAMETERS *pTlsParameters;
} SCH_CREDENTIALS;

#define SCH_CRED_NO_SYSTEM_MAPPER 0x00000002
#define SCH_CRED_NO_SERVERNAME_CHECK 0x00000004
#define SCH_CRED_MANUAL_CRED_VALIDATION 0x00000008
#define SCH_CRED_NO_DEFAULT_CREDS 0x00000010
#define SCH_CRED_USE_DEFAULT_CREDS 0x00000040
#define SCH_CRED_DISABLE_RECONNECTS 0x00000080
#define SCH_CRED_REVOCATION_CHECK_END_CERT 0x00000100
#define SCH_CRED_IGNORE_NO_REVOCATION_CHECK 0x00000800
#define SCH_CRED_IGNORE_REVOCATION_OFFLINE 0x00001000
#define SCH_SEND_AUX_RECORD 0x00200000
#define SCH_USE_STRONG_CRYPTO 0x00400000

#define SCHANNEL_SHUTDOWN 1
#define SCHANNEL_ALERT 2
#define SCHANNEL_SESSION 3

typedef struct _SCHANNEL_ALERT_TOKEN {
    ULONG dwTokenType;   /* SCHANNEL_ALERT */
    ULONG dwAlertType;   /* TLS1_ALERT_WARNING or _FATAL */
    ULONG dwAlertNumber; /* RFC 8446, section 6 */
} SCHANNEL_ALERT_TOKEN;

#define SSL_SESSION_DISABLE_RECONNECTS 2
typedef struct _SCHANNEL_SESSION_TOKEN {
    ULONG dwTokenType; /* SCHANNEL_SESSION */
    ULONG dwFlags;     /* SSL_SESSION_DISABLE_RECONNECTS */
} SCHANNEL_SESSION_TOKEN;

#define TLS1_ALERT_WARNING 1
#define TLS1_ALERT_FATAL 2

#define SECPKG_ATTR_SIZES 0
#define SECPKG_ATTR_STREAM_SIZES 4
#define SECPKG_ATTR_PACKAGE_INFO 10
#define SECPKG_ATTR_FLAGS 14
#define SECPKG_ATTR_UNIQUE_BINDINGS 25
#define SECPKG_ATTR_ENDPOINT_BINDINGS 26
#define SECPKG_ATTR_APPLICATION_PROTOCOL 35
#define SECPKG_ATTR_REMOTE_CERT_CONTEXT 0x53
#define SECPKG_ATTR_LOCAL_CERT_CONTEXT 0x54
#define SECPKG_ATTR_ISSUER_LIST_EX 0x59
#define SECPKG_ATTR_CONNECTION_INFO 0x5a
#define SECPKG_ATTR_SESSION_INFO 0x5d
#define SECPKG_ATTR_CIPHER_INFO 0x64
#define SECPKG_ATTR_REMOTE_CERT_CHAIN 0x67
#define SECPKG_ATTR_UI_INFO 0x68
#define SECPKG_ATTR_KEYING_MATERIAL_INFO 0x6a
#define SECPKG_ATTR_KEYING_MATERIAL 0x6b

typedef struct _SecPkgContext_StreamSizes {
    ULONG cbHeader;
    ULONG cbTrailer;
    ULONG cbMaximumMessage;
    ULONG cBuffers;
    ULONG cbBlockSize;
} SecPkgContext_StreamSizes;

typedef struct _SecPkgContext_Flags {
    ULONG Flags; /* ISC_RET_... or ASC_RET_... */
} SecPkgContext_Flags;

#define SZ_ALG_MAX_SIZE 64
#define SECPKGCONTEXT_CIPHERINFO_V1 1
typedef struct _SecPkgContext_CipherInfo {
    ULONG dwVersion;
    ULONG dwProtocol;    /* on the wire: 0x0303, 0x0304 */
    ULONG dwCipherSuite; /* IANA number */
    ULONG dwBaseCipherSuite;
    SEC_WCHAR szCipherSuite[SZ_ALG_MAX_SIZE];
    SEC_WCHAR szCipher[SZ_ALG_MAX_SIZE];
    ULONG dwCipherLen; /* bits */
    ULONG dwCipherBlockLen;
    SEC_WCHAR szHash[SZ_ALG_MAX_SIZE];
    ULONG dwHashLen;
    SEC_WCHAR szExchange[SZ_ALG_MAX_SIZE];
    ULONG dwMinExchangeLen;
    ULONG dwMaxExchangeLen;
    SEC_WCHAR szCertificate[SZ_ALG_MAX_SIZE];
    ULONG dwKeyType;
} SecPkgContext_CipherInfo;

typedef struct _SecPkgContext_ConnectionInfo {
    ULONG dwProtocol; /* one SP_PROT_... bit */
    ULONG aiCipher;
    ULONG dwCipherStrength; /* bits */
    ULONG aiHash;
    ULONG dwHashStrength;
    ULONG aiExch;
    ULONG dwExchStrength;
} SecPkgContext_ConnectionInfo;

#define SSL_SESSION_RECONNECT 1
typedef struct _SecPkgContext_SessionInfo {
    ULONG dwFlags; /* SSL_SESSION_RECONNECT if resumed */
    ULONG cbSessionId;
    uint8_t rgbSessionId[32];
} SecPkgContext_SessionInfo;

#define MAX_PROTOCOL_ID_SIZE 0xff
#define SecApplicationProtocolNegotiationStatus_None 0
#define SecApplicationProtocolNegotiationStatus_Success 1
#define SecApplicationProtocolNegotiationExt_ALPN 2
typedef struct _SecPkgContext_ApplicationProtocol {
    int ProtoNegoStatus;
    int ProtoNegoExt;
    uint8_t ProtocolIdSize;
    uint8_t ProtocolId[MAX_PROTOCOL_ID_SIZE];
} SecPkgContext_ApplicationProtocol;

typedef struct _SEC_CHANNEL_BINDINGS {
    ULONG dwInitiatorAddrType, cbInitiatorLength, dwInitiatorOffset;
    ULONG dwAcceptorAddrType, cbAcceptorLength, dwAcceptorOffset;
    ULONG cbApplicationDataLength, dwApplicationDataOffset;
} SEC_CHANNEL_BINDINGS;

typedef struct _SecPkgContext_Bindings {
    ULONG BindingsLength;
    SEC_CHANNEL_BINDINGS *Bindings; /* FreeContextBuffer */
} SecPkgContext_Bindings;

typedef struct _CRYPTOAPI_BLOB {
    ULONG cbData;
    uint8_t *pbData;
} CERT_NAME_BLOB;

typedef struct _SecPkgContext_IssuerListInfoEx {
    CERT_NAME_BLOB *aIssuers; /* DER names; FreeContextBuffer */
    ULONG cIssuers;
} SecPkgContext_IssuerListInfoEx;

typedef struct _SecPkgContext_KeyingMaterialInfo {
    uint16_t cbLabel; /* with its NUL */
    char *pszLabel;
    uint16_t cbContextValue;
    uint8_t *pbContextValue;
    ULONG cbKeyingMaterial;
} SecPkgContext_KeyingMaterialInfo;

typedef struct _SecPkgContext_KeyingMaterial {
    ULONG cbKeyingMaterial;
    uint8_t *pbKeyingMaterial; /* FreeContextBuffer */
} SecPkgContext_KeyingMaterial;

typedef struct _SecPkgContext_UiInfo {
    void *hParentWindow; /* HWND */
} SecPkgContext_UiInfo;

#define SECURITY_SUPPORT_PROVIDER_INTERFACE_VERSION 1
#define SECURITY_SUPPORT_PROVIDER_INTERFACE_VERSION_2 2

/*
 * The slots of SecurityFunctionTableW that TLS uses, with their SDK names
 * and argument order. This table is only ever compiled against itself, so
 * the slots that TLS never calls are left out. An engine of ours leaves
 * AcquireCredentialsHandleW and SetContextAttributesW empty: tw_provider
 * has acquire and binding for them.
 */
typedef struct _SECURITY_FUNCTION_TABLE_W {
    ULONG dwVersion; /* what lies behind DecryptMessage is of version 2 */
    SECURITY_STATUS (*AcquireCredentialsHandleW)(
        SEC_WCHAR *principal, SEC_WCHAR *package, ULONG use, void *logon,
        void *auth, void *get_key, void *key_argument, PCredHandle,
        PTimeStamp expiry);
    SECURITY_STATUS (*FreeCredentialsHandle)(PCredHandle);
    SECURITY_STATUS (*InitializeSecurityContextW)(
        PCredHandle, PCtxtHandle, SEC_WCHAR *target, ULONG req, ULONG,
        ULONG drep, PSecBufferDesc in, ULONG, PCtxtHandle newctx,
        PSecBufferDesc out, ULONG *attr, void *expiry);
    SECURITY_STATUS (*AcceptSecurityContext)(
        PCredHandle, PCtxtHandle, PSecBufferDesc in, ULONG req, ULONG drep,
        PCtxtHandle newctx, PSecBufferDesc out, ULONG *attr, void *expiry);
    SECURITY_STATUS (*DeleteSecurityContext)(PCtxtHandle);
    SECURITY_STATUS (*ApplyControlToken)(PCtxtHandle, PSecBufferDesc);
    SECURITY_STATUS (*QueryContextAttributesW)(PCtxtHandle, ULONG, void *);
    SECURITY_STATUS (*FreeContextBuffer)(void *);
    SECURITY_STATUS (*EncryptMessage)(
        PCtxtHandle, ULONG qop, PSecBufferDesc, ULONG seq);
    SECURITY_STATUS (*DecryptMessage)(
        PCtxtHandle, PSecBufferDesc, ULONG seq, ULONG *qop);
    SECURITY_STATUS (*SetContextAttributesW)(PCtxtHandle, ULONG, void *,
                                             ULONG len);
} SecurityFunctionTableW, *PSecurityFunctionTableW;

#endif /* _WIN32 */
#endif /* TW_SSPI_SSPI_H */
