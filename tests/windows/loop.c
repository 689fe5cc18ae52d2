/*
 * The same loop in plain C, straight on secur32: what Schannel itself costs,
 * and what it keeps. No socket, no Python: two contexts in one process, each
 * one's tokens the other's input.
 *
 *   loop PFX PASSWORD soak N        N handshakes; private bytes of the heap
 *   loop PFX PASSWORD bulk MB       MB sealed and opened; megabytes a second
 *
 * Built by mingw and run under Wine by tests/windows/test_cross.py and the
 * benchmark; SCHANNEL_CRED, as it needs nothing newer.
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

#define PIECE 16384
#define ROOM (PIECE + 512)

static SecurityFunctionTableW *f;

static void die(const char *what, long status)
{
    fprintf(stderr, "%s: %08lx\n", what, (unsigned long)status);
    exit(1);
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

static void open_record(struct end *e, BYTE *record, DWORD len)
{
    SecBuffer b[4] = {{len, SECBUFFER_DATA, record},
                      {0, SECBUFFER_EMPTY, NULL},
                      {0, SECBUFFER_EMPTY, NULL},
                      {0, SECBUFFER_EMPTY, NULL}};
    SecBufferDesc d = {SECBUFFER_VERSION, 4, b};
    SECURITY_STATUS status = f->DecryptMessage(&e->ctx, &d, 0, NULL);

    if (status != SEC_E_OK) {
        die("DecryptMessage", status);
    }
}

static void bulk(struct end *c, struct end *s, long megabytes)
{
    SecPkgContext_StreamSizes sizes;
    static BYTE record[ROOM * 2];
    static BYTE plain[PIECE];
    LARGE_INTEGER rate, begin, end;
    long left;
    DWORD len;

    f->QueryContextAttributesW(&c->ctx, SECPKG_ATTR_STREAM_SIZES, &sizes);
    QueryPerformanceFrequency(&rate);
    QueryPerformanceCounter(&begin);
    for (left = megabytes * (1048576 / PIECE); left > 0; left--) {
        memcpy(record + sizes.cbHeader, plain, PIECE);
        len = seal(c, &sizes, record, PIECE);
        open_record(s, record, len);
    }
    QueryPerformanceCounter(&end);
    printf("%.1f\n", (double)megabytes * (double)rate.QuadPart
                         / (double)(end.QuadPart - begin.QuadPart));
}

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

    if (argc != 5) {
        return 64;
    }
    f = InitSecurityInterfaceW();
    acquire(&theirs, load(argv[1], argv[2]));
    acquire(&ours, NULL);
    n = atol(argv[4]);
    for (i = 0; i < (strcmp(argv[3], "soak") == 0 ? n : 1); i++) {
        struct end c = {&ours, {0, 0}, 0, 0, 0};
        struct end s = {&theirs, {0, 0}, 0, 0, 1};

        if (i == n / 10) {
            before = resident();
        }
        connect_ends(&c, &s);
        if (strcmp(argv[3], "bulk") == 0) {
            bulk(&c, &s, n);
        }
        f->DeleteSecurityContext(&c.ctx);
        f->DeleteSecurityContext(&s.ctx);
    }
    if (strcmp(argv[3], "soak") == 0) {
        printf("%zu %zu\n", before, resident());
    }
    f->FreeCredentialsHandle(&ours);
    f->FreeCredentialsHandle(&theirs);
    return 0;
}
