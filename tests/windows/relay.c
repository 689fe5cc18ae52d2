/*
 * A program of the system beneath Wine, as a program of Windows.
 *
 * The suite's peers (openssl, GnuTLS' tools, nginx, curl) are this system's
 * own. Wine can start them, but neither gives them a pipe nor tells when
 * they end. So a copy of this file, called openssl.exe, stands on the path:
 * it listens on loopback, has Wine start relay.py beside the real openssl,
 * and is called back three times: for standard input and output, for the
 * standard error, and for control. The program has the first two sockets as
 * its own descriptors; nothing but bytes passes here. Control carries the
 * exit status at the end; that it breaks off tells relay.py that this
 * process was ended, and with it the program.
 *
 * Arguments that name files are translated, in UTF-8. TWAPI_TLS_RELAY holds
 * the Unix path of relay.py.
 */
#include <winsock2.h>
#include <windows.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#define PATIENCE 60 /* seconds until the other side must have called back */
#define CHANNELS 3

typedef LONG(WINAPI *spawn_function)(char *const *argv, int wait);
typedef char *(CDECL *name_function)(const WCHAR *path);

static name_function unix_name;

static void fail(const char *what)
{
    fprintf(stderr, "relay: %s\n", what);
    ExitProcess(125);
}

static void *allocate(size_t size)
{
    void *memory = calloc(1, size);

    if (memory == NULL) {
        fail("no memory");
    }
    return memory;
}

static char *narrow(const WCHAR *text, int len)
{
    int size = WideCharToMultiByte(CP_UTF8, 0, text, len, NULL, 0, NULL,
                                   NULL);
    char *out = allocate((size_t)size + 1);

    (void)WideCharToMultiByte(CP_UTF8, 0, text, len, out, size, NULL, NULL);
    return out;
}

/* From "X:\" on an argument is a path: -flag=C:\folder\file. */
static char *translate(const WCHAR *argument)
{
    const WCHAR *colon = wcsstr(argument, L":\\");
    char *before;
    char *name;
    char *out;

    if (colon == NULL || colon == argument || !iswalpha(colon[-1])) {
        return narrow(argument, -1);
    }
    name = unix_name(colon - 1);
    if (name == NULL) {
        return narrow(argument, -1);
    }
    before = narrow(argument, (int)(colon - 1 - argument));
    out = allocate(strlen(before) + strlen(name) + 1);
    strcpy(out, before);
    strcat(out, name);
    return out;
}

/* What this file was called: openssl.exe is openssl. */
static char *program_name(void)
{
    WCHAR path[MAX_PATH + 1] = L"";
    WCHAR *base;
    WCHAR *dot;

    (void)GetModuleFileNameW(NULL, path, MAX_PATH);
    base = wcsrchr(path, L'\\');
    base = base != NULL ? base + 1 : path;
    dot = wcsrchr(base, L'.');
    if (dot != NULL) {
        *dot = L'\0';
    }
    return narrow(base, -1);
}

static SOCKET listen_here(char *port)
{
    struct sockaddr_in address;
    int size = sizeof(address);
    SOCKET listener = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);

    memset(&address, 0, sizeof(address));
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener == INVALID_SOCKET
        || bind(listener, (struct sockaddr *)&address, size) != 0
        || listen(listener, CHANNELS) != 0
        || getsockname(listener, (struct sockaddr *)&address, &size) != 0) {
        fail("cannot listen");
    }
    (void)snprintf(port, 8, "%d", ntohs(address.sin_port));
    return listener;
}

static void start(const char *port, int argc, WCHAR **argv)
{
    HMODULE ntdll = GetModuleHandleW(L"ntdll.dll");
    HMODULE kernel32 = GetModuleHandleW(L"kernel32.dll");
    spawn_function spawn = (spawn_function)(void *)GetProcAddress(
        ntdll, "__wine_unix_spawnvp");
    WCHAR here[MAX_PATH + 1] = L"";
    WCHAR relay[MAX_PATH + 1] = L"";
    char **words = allocate(((size_t)argc + 6) * sizeof(*words));
    int n = 0;
    int i;

    unix_name = (name_function)(void *)GetProcAddress(
        kernel32, "wine_get_unix_file_name");
    if (spawn == NULL || unix_name == NULL) {
        fail("this is not Wine");
    }
    if (GetEnvironmentVariableW(L"TWAPI_TLS_RELAY", relay, MAX_PATH) == 0) {
        fail("TWAPI_TLS_RELAY is not set");
    }
    (void)GetCurrentDirectoryW(MAX_PATH, here);
    words[n++] = (char *)(uintptr_t) "python3";
    words[n++] = narrow(relay, -1);
    words[n++] = narrow(L"", -1);
    (void)snprintf(words[n - 1] = allocate(8), 8, "%s", port);
    words[n++] = translate(here);
    words[n++] = program_name();
    for (i = 1; i < argc; i++) {
        words[n++] = translate(argv[i]);
    }
    if (spawn(words, 0) != 0) {
        fail("cannot start python3");
    }
}

static SOCKET called_back(SOCKET listener)
{
    struct timeval limit = {PATIENCE, 0};
    fd_set ready;
    SOCKET channel;

    FD_ZERO(&ready);
    FD_SET(listener, &ready);
    if (select(0, &ready, NULL, NULL, &limit) != 1) {
        fail("relay.py did not call back");
    }
    channel = accept(listener, NULL, NULL);
    if (channel == INVALID_SOCKET) {
        fail("cannot accept");
    }
    return channel;
}

static DWORD WINAPI pump_input(void *arg)
{
    SOCKET to = *(SOCKET *)arg;
    HANDLE from = GetStdHandle(STD_INPUT_HANDLE);
    char buffer[65536];
    DWORD got;

    while (ReadFile(from, buffer, sizeof(buffer), &got, NULL) && got > 0) {
        DWORD at = 0;

        while (at < got) {
            int sent = send(to, buffer + at, (int)(got - at), 0);

            if (sent <= 0) {
                return 0; /* the program reads no more */
            }
            at += (DWORD)sent;
        }
    }
    (void)shutdown(to, SD_SEND);
    return 0;
}

static void pump_output(SOCKET from, DWORD which)
{
    HANDLE to = GetStdHandle(which);
    char buffer[65536];
    int got;

    while ((got = recv(from, buffer, sizeof(buffer), 0)) > 0) {
        DWORD at = 0;
        DWORD done;

        while (at < (DWORD)got
               && WriteFile(to, buffer + at, (DWORD)got - at, &done, NULL)) {
            at += done;
        }
    }
}

static DWORD WINAPI pump_errors(void *arg)
{
    pump_output(*(SOCKET *)arg, STD_ERROR_HANDLE);
    return 0;
}

int wmain(int argc, WCHAR **argv)
{
    SOCKET channels[CHANNELS];
    SOCKET listener;
    WSADATA data;
    HANDLE errors;
    char port[8];
    char status[16] = "";
    int at = 0;
    int got;
    int i;

    if (WSAStartup(MAKEWORD(2, 2), &data) != 0) {
        fail("no Winsock");
    }
    listener = listen_here(port);
    start(port, argc, argv);
    for (i = 0; i < CHANNELS; i++) {
        channels[i] = called_back(listener);
    }
    (void)CreateThread(NULL, 0, pump_input, &channels[0], 0, NULL);
    errors = CreateThread(NULL, 0, pump_errors, &channels[1], 0, NULL);
    pump_output(channels[0], STD_OUTPUT_HANDLE);
    (void)WaitForSingleObject(errors, INFINITE);
    while (at < (int)sizeof(status) - 1
           && (got = recv(channels[2], status + at,
                          (int)sizeof(status) - 1 - at, 0))
                  > 0) {
        at += got;
    }
    /* the thread that reads the input cannot be interrupted */
    ExitProcess(at > 0 ? (UINT)atoi(status) : 125);
}
