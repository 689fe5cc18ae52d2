/*
 * The few functions of ntdll, kernel32, bcrypt and secur32 that
 * provider_schannel.c calls; win32.h has the theory. They do what the tests
 * need of them and no more: text is of the basic plane, one thread
 * initialises.
 */
#include "win32.h"

#include <stdlib.h>
#include <string.h>
#include <wchar.h>

struct tw_windows tw_windows = {
    .build = 26100, .secur32 = true, .sets_attributes = true};

struct tw_module {
    const wchar_t *name;
};

static struct tw_module ntdll = {L"ntdll.dll"};

HMODULE GetModuleHandleW(const wchar_t *name)
{
    return wcscmp(name, ntdll.name) == 0 ? &ntdll : NULL;
}

static LONG rtl_get_version(RTL_OSVERSIONINFOW *out)
{
    if (out->dwOSVersionInfoSize != sizeof(*out)) {
        return -1;
    }
    out->dwMajorVersion = 10;
    out->dwMinorVersion = 0;
    out->dwBuildNumber = tw_windows.build;
    return 0;
}

static const char *wine_get_version(void)
{
    return tw_windows.wine;
}

FARPROC GetProcAddress(HMODULE dll, const char *name)
{
    if (dll == &ntdll && tw_windows.build != 0
        && strcmp(name, "RtlGetVersion") == 0) {
        return (FARPROC)(void *)rtl_get_version;
    }
    if (dll == &ntdll && tw_windows.wine != NULL
        && strcmp(name, "wine_get_version") == 0) {
        return (FARPROC)(void *)wine_get_version;
    }
    return NULL;
}

BOOL InitOnceExecuteOnce(PINIT_ONCE once,
                         BOOL (*initialise)(PINIT_ONCE, PVOID, PVOID *),
                         PVOID parameter, PVOID *context)
{
    if (!*once) {
        *once = initialise(once, parameter, context) != FALSE;
    }
    return *once;
}

int WideCharToMultiByte(unsigned int page, ULONG flags, const WCHAR *src,
                        int len, char *dst, int room, LPCSTR unused1,
                        BOOL *unused2)
{
    int n = 0;

    (void)unused1;
    (void)unused2;
    if (page != CP_UTF8 || flags != 0 || len != -1) {
        return 0;
    }
    do {
        if (*src < 0x80 && n < room) {
            dst[n++] = (char)*src;
        } else if (*src >= 0x80 && *src < 0x800 && n + 1 < room) {
            dst[n++] = (char)(0xC0 | *src >> 6);
            dst[n++] = (char)(0x80 | (*src & 0x3F));
        } else if (*src >= 0x800 && n + 2 < room) {
            dst[n++] = (char)(0xE0 | *src >> 12);
            dst[n++] = (char)(0x80 | (*src >> 6 & 0x3F));
            dst[n++] = (char)(0x80 | (*src & 0x3F));
        } else {
            return 0; /* ERROR_INSUFFICIENT_BUFFER */
        }
    } while (*src++ != 0);
    return n;
}

void SecureZeroMemory(void *p, size_t n)
{
    volatile uint8_t *at = p;

    while (n-- > 0) {
        *at++ = 0;
    }
}

/* What lies behind Wine's table, which is shorter than ours. */
static SECURITY_STATUS nothing_of_its_own(PCtxtHandle ctx, ULONG attribute,
                                          void *value, ULONG len)
{
    (void)ctx;
    (void)attribute;
    (void)value;
    (void)len;
    abort();
}

const SecurityFunctionTableW *InitSecurityInterfaceW(void)
{
    static SecurityFunctionTableW table;

    table = *tw_script_table();
    if (!tw_windows.sets_attributes && tw_windows.wine != NULL) {
        table.dwVersion = SECURITY_SUPPORT_PROVIDER_INTERFACE_VERSION;
        table.SetContextAttributesW = nothing_of_its_own;
    } else if (!tw_windows.sets_attributes) {
        table.SetContextAttributesW = NULL;
    }
    return tw_windows.secur32 ? &table : NULL;
}

LONG BCryptGetFipsAlgorithmMode(BOOLEAN *on)
{
    if (tw_windows.fips < 0) {
        return -1;
    }
    *on = tw_windows.fips > 0;
    return 0;
}
