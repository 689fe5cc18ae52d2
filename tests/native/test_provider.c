/*
 * The provider's contract (sspi/provider.h) below the core: two contexts
 * of the engine talk through memory. Certificates are made with
 * OpenSSL on the spot.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sspi/openssl_internal.h"

#include "support.h"

static const struct tw_provider *P;
static const SecurityFunctionTableW *T;

struct end {
    enum tw_role role;
    CredHandle *cred;
    CtxtHandle ctx;
    bool have;
    bool ask, supplied;
    const char *target;
    uint8_t in[65536];
    size_t in_len;
    uint8_t out[65536];
    size_t out_len;
    SECURITY_STATUS st;
    bool paused, decided;
    SECURITY_STATUS refuse;
};

static CredHandle acquire(enum tw_role role, struct tw_cert *cert,
                          uint32_t protocols)
{
    struct tw_credentials_config config = { .role = role,
                                            .protocols = protocols };
    struct tw_error err;
    CredHandle handle;

    tw_error_clear(&err);
    if (cert) {
        config.certs = &cert;
        config.cert_count = 1;
    }
    if (P->acquire(&config, &handle, &err) != TW_DONE) {
        fprintf(stderr, "acquire: %s\n", err.detail);
        exit(1);
    }
    return handle;
}

/* One step with all input at hand; output is gathered. */
static void step(struct end *e)
{
    SEC_WCHAR wide[64] = { 0 };
    SecBuffer in[2] = { { (ULONG)e->in_len, SECBUFFER_TOKEN, e->in },
                        { 0, SECBUFFER_EMPTY, NULL } };
    SecBuffer out[1] = { { 0, SECBUFFER_TOKEN, NULL } };
    SecBufferDesc ind = { SECBUFFER_VERSION, 2, in };
    SecBufferDesc outd = { SECBUFFER_VERSION, 1, out };
    CtxtHandle fresh;
    ULONG attr;

    for (size_t i = 0; e->target && e->target[i]; i++) {
        wide[i] = (SEC_WCHAR)e->target[i];
    }
    if (e->role == TW_CLIENT) {
        e->st = T->InitializeSecurityContextW(
            e->cred, e->have ? &e->ctx : NULL, wide,
            ISC_REQ_ALLOCATE_MEMORY | ISC_REQ_STREAM
                | (e->supplied ? ISC_REQ_USE_SUPPLIED_CREDS : 0u),
            0, 0,
            e->have ? &ind : NULL, 0, &fresh, &outd, &attr, NULL);
    } else {
        e->st = T->AcceptSecurityContext(
            e->cred, e->have ? &e->ctx : NULL, &ind,
            ASC_REQ_ALLOCATE_MEMORY | ASC_REQ_STREAM
                | (e->ask ? ASC_REQ_MUTUAL_AUTH : 0u),
            0, &fresh, &outd, &attr, NULL);
    }
    if (!e->have && e->st >= 0) {
        e->ctx = fresh;
        e->have = true;
    }
    if (out[0].cbBuffer) {
        CHECK(e->out_len + out[0].cbBuffer <= sizeof(e->out));
        memcpy(e->out + e->out_len, out[0].pvBuffer, out[0].cbBuffer);
        e->out_len += out[0].cbBuffer;
        CHECK(T->FreeContextBuffer(out[0].pvBuffer) == SEC_E_OK);
    }
    if (e->st == SEC_E_INCOMPLETE_MESSAGE) {
        return;
    }
    if (e->st != SEC_I_INCOMPLETE_CREDENTIALS) {
        size_t extra = in[1].BufferType == SECBUFFER_EXTRA
                           ? in[1].cbBuffer : 0;
        memmove(e->in, e->in + e->in_len - extra, extra);
        e->in_len = extra;
    }
}

static void send_all(struct end *from, struct end *to)
{
    CHECK(to->in_len + from->out_len <= sizeof(to->in));
    memcpy(to->in + to->in_len, from->out, from->out_len);
    to->in_len += from->out_len;
    from->out_len = 0;
}

/* The pause as the core does it: before the output goes out. */
static bool decide(struct end *e, struct tw_cert **seen)
{
    struct tw_cert *cert = NULL;
    enum tw_status st;
    uint8_t alert[64];
    size_t n = sizeof(alert);
    SECURITY_STATUS answer;

    if (e->decided || e->st < 0) {
        return true;
    }
    st = P->remote_cert(&e->ctx, &cert, NULL);
    if (st == TW_WANT_READ && e->st != SEC_E_OK) {
        return true;
    }
    e->decided = true;
    e->paused = true;
    if (seen) {
        *seen = cert;
    } else {
        P->cert_free(cert);
    }
    answer = P->verdict(&e->ctx, e->refuse, alert, &n);
    if (e->refuse) {
        CHECK(n > 0);
        memcpy(e->out, alert, n);
        e->out_len = n;
        e->st = SEC_E_CERT_UNKNOWN;
        return false;
    }
    if (answer == SEC_I_CONTINUE_NEEDED) {
        step(e);
    }
    return true;
}

static void handshake(struct end *c, struct end *s, struct tw_cert **peer)
{
    step(c);
    CHECK(c->st == SEC_I_CONTINUE_NEEDED);
    for (int i = 0; i < 20 && (c->st || s->st || s->in_len); i++) {
        send_all(c, s);
        if (s->in_len && s->st >= 0) {
            step(s);
            if (s->ask && !decide(s, NULL)) {
                send_all(s, c);
                step(c);
                return;
            }
        }
        send_all(s, c);
        if (c->in_len && c->st == SEC_I_CONTINUE_NEEDED) {
            step(c);
            if (!decide(c, peer)) {
                send_all(c, s);
                step(s);
                return;
            }
            if (c->st == SEC_I_INCOMPLETE_CREDENTIALS) {
                /* the same input again, without a certificate */
                c->supplied = true;
                step(c);
            }
        }
        if (c->st == SEC_E_OK && s->st == SEC_E_OK && !c->out_len) {
            break;
        }
    }
}

static void ends(struct end *c, struct end *s, CredHandle *cc,
                 CredHandle *sc)
{
    memset(c, 0, sizeof(*c));
    memset(s, 0, sizeof(*s));
    c->role = TW_CLIENT;
    s->role = TW_SERVER;
    c->cred = cc;
    s->cred = sc;
    c->st = s->st = SEC_I_CONTINUE_NEEDED;
    c->target = "host.example";
}

static void finish(struct end *c, struct end *s)
{
    if (c->have) {
        CHECK(T->DeleteSecurityContext(&c->ctx) == SEC_E_OK);
    }
    if (s->have) {
        CHECK(T->DeleteSecurityContext(&s->ctx) == SEC_E_OK);
    }
}

/* Seals text at one end and opens it at the other; renegotiations (tickets)
   are answered on the way. */
static void exchange(struct end *from, struct end *to, const char *text)
{
    SecPkgContext_StreamSizes z;
    uint8_t record[512];
    size_t len = strlen(text), total;
    SecBuffer b[4];
    SecBufferDesc d = { SECBUFFER_VERSION, 4, b };

    CHECK(T->QueryContextAttributesW(&from->ctx, SECPKG_ATTR_STREAM_SIZES,
                                     &z) == SEC_E_OK);
    memcpy(record + z.cbHeader, text, len);
    b[0] = (SecBuffer){ z.cbHeader, SECBUFFER_STREAM_HEADER, record };
    b[1] = (SecBuffer){ (ULONG)len, SECBUFFER_DATA, record + z.cbHeader };
    b[2] = (SecBuffer){ z.cbTrailer, SECBUFFER_STREAM_TRAILER,
                        record + z.cbHeader + len };
    b[3] = (SecBuffer){ 0, SECBUFFER_EMPTY, NULL };
    CHECK(T->EncryptMessage(&from->ctx, 0, &d, 0) == SEC_E_OK);
    total = b[0].cbBuffer + b[1].cbBuffer + b[2].cbBuffer;
    memcpy(to->in + to->in_len, record, total);
    to->in_len += total;
    for (int i = 0; i < 8; i++) {
        b[0] = (SecBuffer){ (ULONG)to->in_len, SECBUFFER_DATA, to->in };
        for (int k = 1; k < 4; k++) {
            b[k] = (SecBuffer){ 0, SECBUFFER_EMPTY, NULL };
        }
        SECURITY_STATUS st = T->DecryptMessage(&to->ctx, &d, 0, NULL);
        size_t extra = 0, got = 0;
        for (int k = 1; k < 4; k++) {
            if (b[k].BufferType == SECBUFFER_EXTRA) {
                extra = b[k].cbBuffer;
            } else if (b[k].BufferType == SECBUFFER_DATA) {
                got = b[k].cbBuffer;
                CHECK(got == 0 || (got == len
                                   && !memcmp(b[k].pvBuffer, text, len)));
            }
        }
        memmove(to->in, to->in + to->in_len - extra, extra);
        to->in_len = extra;
        if (st == SEC_I_RENEGOTIATE) {
            step(to);
            CHECK(to->st == SEC_E_OK);
            continue;
        }
        CHECK(st == SEC_E_OK);
        if (got == len) {
            return;
        }
    }
    CHECK(!"no data came");
}

static void test_version(uint32_t version, bool client_cert)
{
    struct tw_cert *scert = make_cert("host.example");
    struct tw_cert *ccert = make_cert("a client");
    CredHandle sc = acquire(TW_SERVER, scert, version);
    CredHandle cc = acquire(TW_CLIENT, client_cert ? ccert : NULL, version);
    static struct end c, s;
    struct tw_facts facts;

    for (int round = 0; round < 3; round++) {
        struct tw_cert *peer = NULL;
        ends(&c, &s, &cc, &sc);
        s.ask = client_cert;
        handshake(&c, &s, &peer);
        CHECK(c.st == SEC_E_OK && s.st == SEC_E_OK);
        CHECK(c.paused && peer);
        CHECK(s.paused == client_cert);
        P->cert_free(peer);
        exchange(&s, &c, "from the server");
        exchange(&c, &s, "from the client");
        exchange(&s, &c, "and once more");
        CHECK(P->facts(&c.ctx, &facts, NULL) == TW_DONE);
        CHECK(facts.protocol == version);
        CHECK(facts.resumed == (round > 0));
        CHECK(P->facts(&s.ctx, &facts, NULL) == TW_DONE);
        CHECK(facts.resumed == (round > 0));
        finish(&c, &s);
    }
    CHECK(T->FreeCredentialsHandle(&sc) == SEC_E_OK);
    CHECK(T->FreeCredentialsHandle(&cc) == SEC_E_OK);
    P->cert_free(scert);
    P->cert_free(ccert);
}

static void test_refusal(uint32_t version, enum tw_role who, bool resumed,
                         bool no_cert)
{
    struct tw_cert *scert = make_cert("host.example");
    struct tw_cert *ccert = make_cert("a client");
    CredHandle sc = acquire(TW_SERVER, scert, version);
    CredHandle cc = acquire(TW_CLIENT, no_cert ? NULL : ccert, version);
    static struct end c, s;

    if (resumed) {
        ends(&c, &s, &cc, &sc);
        s.ask = who == TW_SERVER;
        handshake(&c, &s, NULL);
        CHECK(c.st == SEC_E_OK && s.st == SEC_E_OK);
        exchange(&s, &c, "ticket");
        finish(&c, &s);
    }
    ends(&c, &s, &cc, &sc);
    s.ask = who == TW_SERVER;
    (who == TW_CLIENT ? &c : &s)->refuse =
        no_cert ? SEC_E_NO_CREDENTIALS : SEC_E_CERT_EXPIRED;
    if (resumed && who == TW_SERVER) {
        /* the core makes the plain alert here: nothing to see below it */
        finish(&c, &s);
    } else if (!(resumed && who == TW_CLIENT)) {
        handshake(&c, &s, NULL);
        if (who == TW_CLIENT) {
            CHECK(s.st < 0);
            CHECK(P->alert_received(&s.ctx) == SSL_AD_CERTIFICATE_EXPIRED);
        } else {
            /* a 1.3 client may be done by itself; then it reads */
            if (c.st == SEC_E_OK) {
                SecBuffer b[4] = {
                    { (ULONG)c.in_len, SECBUFFER_DATA, c.in },
                    { 0, SECBUFFER_EMPTY, NULL },
                    { 0, SECBUFFER_EMPTY, NULL },
                    { 0, SECBUFFER_EMPTY, NULL } };
                SecBufferDesc d = { SECBUFFER_VERSION, 4, b };
                step(&c);
                CHECK(T->DecryptMessage(&c.ctx, &d, 0, NULL) < 0);
            }
            CHECK(P->alert_received(&c.ctx)
                  == (no_cert ? (version == TW_TLS1_3
                                     ? TLS13_AD_CERTIFICATE_REQUIRED
                                     : SSL_AD_HANDSHAKE_FAILURE)
                              : SSL_AD_CERTIFICATE_EXPIRED));
        }
        finish(&c, &s);
    } else {
        finish(&c, &s);
    }
    CHECK(T->FreeCredentialsHandle(&sc) == SEC_E_OK);
    CHECK(T->FreeCredentialsHandle(&cc) == SEC_E_OK);
    P->cert_free(scert);
    P->cert_free(ccert);
}

/* Short and foreign input to a server without context. */
static void test_first_bytes(void)
{
    struct tw_cert *scert = make_cert("host.example");
    CredHandle sc = acquire(TW_SERVER, scert, 0);
    CredHandle cc = acquire(TW_CLIENT, NULL, 0);
    static struct end c, s;

    ends(&c, &s, &cc, &sc);
    step(&c);
    for (size_t n = 0; n < c.out_len; n++) {
        memcpy(s.in, c.out, n);
        s.in_len = n;
        step(&s);
        CHECK(s.st == SEC_E_INCOMPLETE_MESSAGE && !s.have);
    }
    step(&c); /* without input: untouched */
    CHECK(c.st == SEC_E_INCOMPLETE_MESSAGE);
    memcpy(s.in, "GET / HTTP/1.1\r\n\r\n", 18);
    s.in_len = 18;
    step(&s);
    CHECK(s.st < 0 && !s.have);
    finish(&c, &s);
    CHECK(T->FreeCredentialsHandle(&sc) == SEC_E_OK);
    CHECK(T->FreeCredentialsHandle(&cc) == SEC_E_OK);
    P->cert_free(scert);
}

int main(void)
{
    static const uint32_t versions[2] = { TW_TLS1_2, TW_TLS1_3 };

    P = tw_provider_default();
    T = P->table();
    CHECK(T);
    test_first_bytes();
    for (int i = 0; i < 2; i++) {
        test_version(versions[i], false);
        test_version(versions[i], true);
        test_refusal(versions[i], TW_CLIENT, false, false);
        test_refusal(versions[i], TW_SERVER, false, false);
        test_refusal(versions[i], TW_SERVER, false, true);
    }
    puts("provider: ok");
    return 0;
}
