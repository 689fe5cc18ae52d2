/*
 * The same loops in plain C, straight on secur32: what Schannel itself
 * costs, and what it keeps. No Python; two contexts in one process.
 *
 *   loop PFX PASSWORD soak N     as a program: N handshakes, each one's
 *                                tokens the other's input; resident bytes
 *                                after a tenth of them and after all
 *
 * As a library, for the benchmark (megabytes of 1e6 bytes):
 *
 *   loop_memory(pfx, password, seconds)    pieces sealed and opened: MB a
 *                                          second of the median piece
 *   loop_sockets(pfx, password, seconds)   the same from a thread to another
 *                                          over loopback: MB per second of
 *                                          the process's CPU
 *
 * What it does per piece is what SSPI asks for and no more: the data copied
 * to where EncryptMessage finds it, and read where DecryptMessage left it.
 * A piece's records go out with one send(). Built by mingw and run under
 * Wine; SCHANNEL_CRED, as it needs nothing newer.
 */
#define SECURITY_WIN32
#include <winsock2.h>
#include <windows.h>
#include <wincrypt.h>
#include <security.h>
#include <schannel.h>
#include <psapi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RECORD 16384
#define AROUND 512        /* more than header and trailer of any suite */
#define PIECE (256 * 1024) /* of data, as benchmarks/ends.py has it */
#define RECORDS (PIECE / RECORD)
#define AT_ONCE 8 /* pieces between two looks at the clock */
#define MB 1e6

static SecurityFunctionTableW *f;

static void die(const char *what, long status)
{
    fprintf(stderr, "loop: %s: %08lx\n", what, (unsigned long)status);
    fflush(stderr);
    ExitProcess(1);
}

static PCCERT_CONTEXT load(const char *path, const char *password)
{
    static BYTE bytes[65536];
    WCHAR wide[128];
    CRYPT_DATA_BLOB blob = {0, bytes};
    FILE *file = fopen(path, "rb");
    PCCERT_CONTEXT cert = NULL;
    HCERTSTORE store;
    DWORD size;

    if (file == NULL) {
        die("cannot open the PFX", 0);
    }
    blob.cbData = (DWORD)fread(bytes, 1, sizeof(bytes), file);
    fclose(file);
    MultiByteToWideChar(CP_UTF8, 0, password, -1, wide, 128);
    store = PFXImportCertStore(&blob, wide, CRYPT_USER_KEYSET);
    if (store == NULL) {
        die("PFXImportCertStore", (long)GetLastError());
    }
    while ((cert = CertEnumCertificatesInStore(store, cert)) != NULL) {
        if (CertGetCertificateContextProperty(
                cert, CERT_KEY_PROV_INFO_PROP_ID, NULL, &size)) {
            return cert;
        }
    }
    die("no key in the PFX", 0);
    return NULL;
}

static void acquire(CredHandle *out, PCCERT_CONTEXT cert)
{
    SCHANNEL_CRED auth;
    SECURITY_STATUS status;

    memset(&auth, 0, sizeof(auth));
    auth.dwVersion = SCHANNEL_CRED_VERSION;
    auth.cCreds = cert != NULL;
    auth.paCred = cert != NULL ? &cert : NULL;
    auth.dwFlags = cert != NULL ? SCH_CRED_NO_SYSTEM_MAPPER
                                : SCH_CRED_MANUAL_CRED_VALIDATION
                                      | SCH_CRED_NO_DEFAULT_CREDS;
    status = f->AcquireCredentialsHandleW(
        NULL, (SEC_WCHAR *)UNISP_NAME_W,
        cert != NULL ? SECPKG_CRED_INBOUND : SECPKG_CRED_OUTBOUND, NULL,
        &auth, NULL, NULL, out, NULL);
    if (status != SEC_E_OK) {
        die("AcquireCredentialsHandle", status);
    }
}

struct end {
    CredHandle *cred;
    CtxtHandle ctx;
    int made, done, server;
};

/* One step with the peer's bytes, ours appended to out. */
static void step(struct end *e, BYTE *in, DWORD *in_len, BYTE *out,
                 DWORD *out_len)
{
    SecBuffer ib[2] = {{*in_len, SECBUFFER_TOKEN, in},
                       {0, SECBUFFER_EMPTY, NULL}};
    SecBuffer ob[1] = {{0, SECBUFFER_TOKEN, NULL}};
    SecBufferDesc id = {SECBUFFER_VERSION, 2, ib};
    SecBufferDesc od = {SECBUFFER_VERSION, 1, ob};
    CtxtHandle *old = e->made ? &e->ctx : NULL;
    TimeStamp when;
    ULONG attributes;
    SECURITY_STATUS status;

    if (e->server) {
        status = f->AcceptSecurityContext(
            e->cred, old, &id,
            ASC_REQ_ALLOCATE_MEMORY | ASC_REQ_STREAM
                | ASC_REQ_CONFIDENTIALITY,
            0, &e->ctx, &od, &attributes, &when);
    } else {
        status = f->InitializeSecurityContextW(
            e->cred, old, (SEC_WCHAR *)L"localhost",
            ISC_REQ_ALLOCATE_MEMORY | ISC_REQ_STREAM
                | ISC_REQ_CONFIDENTIALITY | ISC_REQ_MANUAL_CRED_VALIDATION,
            0, 0, e->made ? &id : NULL, 0, &e->ctx, &od, &attributes, &when);
    }
    if (status == SEC_E_INCOMPLETE_MESSAGE) {
        return;
    }
    if (status < 0) {
        die(e->server ? "AcceptSecurityContext"
                      : "InitializeSecurityContext",
            status);
    }
    e->made = 1;
    e->done = status == SEC_E_OK;
    if (ob[0].pvBuffer != NULL) {
        memcpy(out + *out_len, ob[0].pvBuffer, ob[0].cbBuffer);
        *out_len += ob[0].cbBuffer;
        f->FreeContextBuffer(ob[0].pvBuffer);
    }
    if (ib[1].BufferType == SECBUFFER_EXTRA) {
        memmove(in, in + *in_len - ib[1].cbBuffer, ib[1].cbBuffer);
        *in_len = ib[1].cbBuffer;
    } else {
        *in_len = 0;
    }
}

static void connect_ends(struct end *c, struct end *s)
{
    static BYTE to_s[65536], to_c[65536];
    DWORD s_len = 0, c_len = 0;
    int rounds;

    for (rounds = 0; rounds < 20 && !(c->done && s->done); rounds++) {
        if (!c->done && (c_len > 0 || !c->made)) {
            step(c, to_c, &c_len, to_s, &s_len);
        }
        if (!s->done && s_len > 0) {
            step(s, to_s, &s_len, to_c, &c_len);
        }
    }
    if (!(c->done && s->done)) {
        die("the handshake does not end", 0);
    }
}

static DWORD seal(struct end *e, const SecPkgContext_StreamSizes *sizes,
                  BYTE *record, DWORD len)
{
    SecBuffer b[4] = {
        {sizes->cbHeader, SECBUFFER_STREAM_HEADER, record},
        {len, SECBUFFER_DATA, record + sizes->cbHeader},
        {sizes->cbTrailer, SECBUFFER_STREAM_TRAILER,
         record + sizes->cbHeader + len},
        {0, SECBUFFER_EMPTY, NULL}};
    SecBufferDesc d = {SECBUFFER_VERSION, 4, b};
    SECURITY_STATUS status = f->EncryptMessage(&e->ctx, 0, &d, 0);

    if (status != SEC_E_OK) {
        die("EncryptMessage", status);
    }
    return b[0].cbBuffer + b[1].cbBuffer + b[2].cbBuffer;
}

/* The record in place; where its data is then, and how many bytes. */
static DWORD open_record(struct end *e, BYTE *record, DWORD len,
                         const BYTE **data)
{
    SecBuffer b[4] = {{len, SECBUFFER_DATA, record},
                      {0, SECBUFFER_EMPTY, NULL},
                      {0, SECBUFFER_EMPTY, NULL},
                      {0, SECBUFFER_EMPTY, NULL}};
    SecBufferDesc d = {SECBUFFER_VERSION, 4, b};
    SECURITY_STATUS status = f->DecryptMessage(&e->ctx, &d, 0, NULL);
    int i;

    if (status != SEC_E_OK) {
        die("DecryptMessage", status);
    }
    for (i = 0; i < 4; i++) {
        if (b[i].BufferType == SECBUFFER_DATA) {
            *data = b[i].pvBuffer;
            return b[i].cbBuffer;
        }
    }
    return 0;
}

/* A piece of data as records, one behind the other; how many bytes. */
static DWORD seal_piece(struct end *e,
                        const SecPkgContext_StreamSizes *sizes, BYTE *to,
                        const BYTE *data)
{
    DWORD made = 0;
    int i;

    for (i = 0; i < RECORDS; i++) {
        memcpy(to + made + sizes->cbHeader, data + i * RECORD, RECORD);
        made += seal(e, sizes, to + made, RECORD);
    }
    return made;
}

/* Opens the whole records of at[0..len): how many bytes they were. Their
   data is counted, and goes to `to` if that is not NULL. */
static DWORD open_records(struct end *e, BYTE *at, DWORD len, BYTE *to,
                          long long *count)
{
    DWORD used = 0;

    while (len - used >= 5) {
        DWORD record = 5 + ((DWORD)at[used + 3] << 8) + at[used + 4];
        const BYTE *data = NULL;
        DWORD n;

        if (record > len - used) {
            break;
        }
        n = open_record(e, at + used, record, &data);
        if (to != NULL && n > 0) {
            memcpy(to, data, n);
            to += n;
        }
        *count += n;
        used += record;
    }
    return used;
}

struct pair {
    CredHandle ours, theirs;
    struct end client, server;
    SecPkgContext_StreamSizes sizes;
};

static void open_pair(struct pair *p, const char *pfx, const char *password)
{
    memset(p, 0, sizeof(*p));
    f = InitSecurityInterfaceW();
    acquire(&p->theirs, load(pfx, password));
    acquire(&p->ours, NULL);
    p->client.cred = &p->ours;
    p->server.cred = &p->theirs;
    p->server.server = 1;
    connect_ends(&p->client, &p->server);
    f->QueryContextAttributesW(&p->client.ctx, SECPKG_ATTR_STREAM_SIZES,
                               &p->sizes);
}

static void close_pair(struct pair *p)
{
    f->DeleteSecurityContext(&p->client.ctx);
    f->DeleteSecurityContext(&p->server.ctx);
    f->FreeCredentialsHandle(&p->ours);
    f->FreeCredentialsHandle(&p->theirs);
}

/* Of this process's CPU; Wine counts in hundredths of a second. */
static double cpu_seconds(void)
{
    FILETIME made, ended;
    ULARGE_INTEGER kernel, user;

    GetProcessTimes(GetCurrentProcess(), &made, &ended, (FILETIME *)&kernel,
                    (FILETIME *)&user);
    return (double)(kernel.QuadPart + user.QuadPart) * 1e-7;
}

static double now(void)
{
    LARGE_INTEGER rate, ticks;

    QueryPerformanceFrequency(&rate);
    QueryPerformanceCounter(&ticks);
    return (double)ticks.QuadPart / (double)rate.QuadPart;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double memory(const char *pfx, const char *password, double seconds,
                     BYTE *to)
{
    static BYTE data[PIECE], records[RECORDS * (RECORD + AROUND)];
    static double times[1 << 16];
    struct pair p;
    double began, end, finish;
    size_t n = 0;

    open_pair(&p, pfx, password);
    end = now();
    finish = end + seconds;
    while (end < finish && n < sizeof(times) / sizeof(times[0])) {
        long long opened = 0;
        DWORD made;

        began = end;
        made = seal_piece(&p.client, &p.sizes, records, data);
        (void)open_records(&p.server, records, made, to, &opened);
        if (opened != PIECE) {
            die("not all of the data came back", 0);
        }
        end = now();
        times[n++] = end - began;
    }
    close_pair(&p);
    qsort(times, n, sizeof(times[0]), by_size);
    return PIECE / times[n / 2] / MB;
}

__declspec(dllexport) double loop_memory(const char *pfx,
                                         const char *password,
                                         double seconds)
{
    static BYTE plain[PIECE];

    return memory(pfx, password, seconds, plain);
}

__declspec(dllexport) double loop_in_place(const char *pfx,
                                           const char *password,
                                           double seconds)
{
    return memory(pfx, password, seconds, NULL);
}

/* --- over sockets --- */

struct sender {
    struct pair *pair;
    SOCKET socket;
    double seconds;
};

static DWORD WINAPI send_pieces(void *arg)
{
    static BYTE data[PIECE], records[RECORDS * (RECORD + AROUND)];
    struct sender *s = arg;
    double end = cpu_seconds() + s->seconds;
    int i;

    do {
        for (i = 0; i < AT_ONCE; i++) {
            DWORD made = seal_piece(&s->pair->client, &s->pair->sizes,
                                    records, data);
            DWORD sent = 0;

            while (sent < made) {
                int n = send(s->socket, (char *)records + sent,
                             (int)(made - sent), 0);

                if (n <= 0) {
                    die("send", WSAGetLastError());
                }
                sent += (DWORD)n;
            }
        }
    } while (cpu_seconds() < end);
    shutdown(s->socket, SD_SEND);
    return 0;
}

static void connect_sockets(SOCKET *one, SOCKET *other)
{
    SOCKET listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name;
    int size = sizeof(name);
    int on = 1;

    memset(&name, 0, sizeof(name));
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *one = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, size) != 0
        || listen(listener, 1) != 0
        || getsockname(listener, (struct sockaddr *)&name, &size) != 0
        || connect(*one, (struct sockaddr *)&name, size) != 0) {
        die("connect", WSAGetLastError());
    }
    *other = accept(listener, NULL, NULL);
    closesocket(listener);
    setsockopt(*one, IPPROTO_TCP, TCP_NODELAY, (char *)&on, sizeof(on));
    setsockopt(*other, IPPROTO_TCP, TCP_NODELAY, (char *)&on, sizeof(on));
}

__declspec(dllexport) double loop_sockets(const char *pfx,
                                          const char *password,
                                          double seconds)
{
    static BYTE input[PIECE + RECORD + AROUND];
    static BYTE plain[sizeof(input)];
    struct pair p;
    struct sender s = {&p, INVALID_SOCKET, seconds};
    SOCKET socket;
    HANDLE thread;
    WSADATA ignored;
    long long opened = 0;
    DWORD have = 0;
    double began;
    int n;

    if (WSAStartup(MAKEWORD(2, 2), &ignored) != 0) {
        die("WSAStartup", 0);
    }
    open_pair(&p, pfx, password);
    connect_sockets(&s.socket, &socket);
    began = cpu_seconds();
    thread = CreateThread(NULL, 0, send_pieces, &s, 0, NULL);
    while ((n = recv(socket, (char *)input + have,
                     (int)(sizeof(input) - have), 0))
           > 0) {
        DWORD used;

        have += (DWORD)n;
        used = open_records(&p.server, input, have, plain, &opened);
        have -= used;
        memmove(input, input + used, have);
    }
    if (n < 0) {
        die("recv", WSAGetLastError());
    }
    WaitForSingleObject(thread, INFINITE);
    seconds = cpu_seconds() - began;
    CloseHandle(thread);
    closesocket(socket);
    closesocket(s.socket);
    close_pair(&p);
    return (double)opened / seconds / MB;
}

/* --- what is kept --- */

static size_t resident(void)
{
    PROCESS_MEMORY_COUNTERS m;

    m.cb = sizeof(m);
    return K32GetProcessMemoryInfo(GetCurrentProcess(), &m, sizeof(m))
               ? m.WorkingSetSize
               : 0;
}

int main(int argc, char **argv)
{
    CredHandle ours, theirs;
    long n, i;
    size_t before = 0;

    if (argc != 5 || strcmp(argv[3], "soak") != 0) {
        return 64;
    }
    f = InitSecurityInterfaceW();
    acquire(&theirs, load(argv[1], argv[2]));
    acquire(&ours, NULL);
    n = atol(argv[4]);
    for (i = 0; i < n; i++) {
        struct end c = {&ours, {0, 0}, 0, 0, 0};
        struct end s = {&theirs, {0, 0}, 0, 0, 1};

        if (i == n / 10) {
            before = resident();
        }
        connect_ends(&c, &s);
        f->DeleteSecurityContext(&c.ctx);
        f->DeleteSecurityContext(&s.ctx);
    }
    printf("%zu %zu\n", before, resident());
    f->FreeCredentialsHandle(&ours);
    f->FreeCredentialsHandle(&theirs);
    return 0;
}
