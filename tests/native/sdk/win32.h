/*
 * What provider_schannel.c needs of Windows' SDK besides SSPI, for tests on
 * other systems: there the file is compiled as it is, against the vocabulary
 * of sspi.h and these names, and plays over the scripted table.
 *
 * Found before any header of the system by the compiler's -I. bcrypt.h and
 * ncrypt.h here stand for the SDK's and only lead to this file; windows.c
 * has the bodies, and what Windows this is (tw_windows); crypt32.c stands in
 * for the certificate half of the engine.
 */
#ifndef TW_TESTS_SDK_WIN32_H
#define TW_TESTS_SDK_WIN32_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/atomic.h"
#include "sspi/scripted.h"

#define WINAPI
#define CALLBACK
#define CDECL

typedef uint8_t BYTE, *PBYTE, BOOLEAN;
typedef uint16_t WORD, WCHAR;
typedef uint32_t DWORD;
typedef int32_t LONG;
typedef int BOOL;
typedef void *PVOID;
typedef char *LPSTR;
typedef const char *LPCSTR;
#define TRUE 1
#define FALSE 0

/* --- ntdll.dll and kernel32.dll --- */

struct tw_module; /* only ntdll.dll is known */
typedef struct tw_module *HMODULE;
typedef void (*FARPROC)(void);
HMODULE GetModuleHandleW(const wchar_t *name);
FARPROC GetProcAddress(HMODULE, const char *name);

typedef struct {
    ULONG dwOSVersionInfoSize;
    ULONG dwMajorVersion, dwMinorVersion, dwBuildNumber;
} RTL_OSVERSIONINFOW;

typedef bool INIT_ONCE, *PINIT_ONCE; /* has it run? */
#define INIT_ONCE_STATIC_INIT false
BOOL InitOnceExecuteOnce(PINIT_ONCE, BOOL (*)(PINIT_ONCE, PVOID, PVOID *),
                         PVOID, PVOID *);

#define CP_UTF8 65001
int WideCharToMultiByte(unsigned int page, ULONG flags, const WCHAR *,
                        int len, char *dst, int room, LPCSTR, BOOL *);
void SecureZeroMemory(void *, size_t);

/* --- secur32.dll and bcrypt.dll --- */

const SecurityFunctionTableW *InitSecurityInterfaceW(void);
LONG BCryptGetFipsAlgorithmMode(BOOLEAN *);

/* --- crypt32.dll --- */

typedef void *HCERTSTORE;
typedef struct {
    int unused;
} CERT_PUBLIC_KEY_INFO;
typedef struct _CERT_CONTEXT {
    HCERTSTORE hCertStore;
    struct tw_count *refs;
    void *played; /* a certificate of tw_provider_scripted's, owned */
} CERT_CONTEXT;

#define X509_ASN_ENCODING 1
#define PKCS_7_ASN_ENCODING 0x10000
#define CERT_OCSP_RESPONSE_PROP_ID 70
#define CALG_3DES 0x6603
#define CALG_AES_128 0x660e
#define CALG_AES_192 0x660f
#define CALG_AES_256 0x6610
BOOL CertGetCertificateContextProperty(PCCERT_CONTEXT, DWORD property,
                                       void *data, DWORD *len);
BOOL CertFreeCertificateContext(PCCERT_CONTEXT);

/* --- for the tests --- */

/* provider.h declares it on Windows only. */
extern const struct tw_provider tw_provider_schannel;

/* Which Windows it is. Set before the engine is used first. */
struct tw_windows {
    ULONG build;          /* 0: RtlGetVersion is not there */
    const char *wine;     /* its version; NULL: a real Windows */
    int fips;             /* as BCryptGetFipsAlgorithmMode; below 0: fails */
    bool secur32;         /* InitSecurityInterfaceW gives a table */
    bool sets_attributes; /* the table has SetContextAttributesW; Wine's is
                             shorter without it */
};
extern struct tw_windows tw_windows;

/* crypt32.c: a context, and a certificate of it, from a script's text. */
PCCERT_CONTEXT tw_sdk_context_new(struct tw_script *, const uint8_t *text,
                                  size_t len);
struct tw_cert *tw_sdk_cert_new(struct tw_script *, const uint8_t *text,
                                size_t len);

#endif
