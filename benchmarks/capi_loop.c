/*
 * The same loops twice: on the C API of twapi_tls, and on OpenSSL as any C
 * program would write them. One end is a thread, the other the caller; the
 * GIL is let go for all of it.
 *
 *   run(ours, what, pem, roots, seconds) -> bytes a second ("bulk",
 *   "seal": sealing in memory), or round trips a second ("echo")
 */
#define _GNU_SOURCE 1
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "twapi_tls.h"

#define PIECE ((size_t)256 * 1024)
#define MESSAGE ((size_t)64)

static const struct twapi_tls_api *tls;

/* One end of a connection, of either kind. */
struct end {
    SSL *ssl; /* OpenSSL's, else: */
    struct twapi_tls_connection *connection;
    int fd;
};

struct job {
    const char *pem, *roots;
    size_t pem_len, roots_len;
    int ours, echo;
    double seconds;
    struct end client, server;
    int server_failed;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* --- opening --- */

static int open_ours(struct end *e, int role, const char *pem,
                     size_t pem_len, const char *roots, size_t roots_len)
{
    struct twapi_tls_credentials_config cred = {.size = sizeof(cred)};
    struct twapi_tls_context_config config = {.size = sizeof(config)};
    struct twapi_tls_credentials *credentials = NULL;
    struct twapi_tls_context *context = NULL;
    struct twapi_tls_error err;
    int st;

    cred.role = role;
    cred.identity = pem;
    cred.identity_len = pem_len;
    cred.roots = roots;
    cred.roots_len = roots_len;
    config.target = role == TWAPI_TLS_CLIENT ? "localhost" : NULL;
    st = tls->credentials_new(&cred, &credentials, &err);
    if (st == TWAPI_TLS_DONE) {
        st = tls->context_new(credentials, &config, &context, &err);
    }
    if (st == TWAPI_TLS_DONE) {
        st = tls->connection_new(context, e->fd, &e->connection, &err);
    }
    if (st == TWAPI_TLS_DONE) {
        e->fd = -1;
        st = tls->connection_handshake(e->connection, TWAPI_TLS_FOREVER,
                                       &err);
    } else {
        tls->context_free(context);
    }
    tls->credentials_free(credentials);
    if (st != TWAPI_TLS_DONE) {
        fprintf(stderr, "capi_loop: %s\n", err.detail);
    }
    return st == TWAPI_TLS_DONE;
}

static SSL *new_plain(int server, const char *pem, size_t pem_len,
                      const char *roots, size_t roots_len)
{
    SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method()
                                      : TLS_client_method());
    BIO *bio = BIO_new_mem_buf(server ? pem : roots,
                               (int)(server ? pem_len : roots_len));
    EVP_PKEY *key;
    X509 *cert;
    SSL *ssl = NULL;

    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    if (server) {
        key = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL);
        cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
        SSL_CTX_use_certificate(ctx, cert);
        SSL_CTX_use_PrivateKey(ctx, key);
        EVP_PKEY_free(key);
        X509_free(cert);
        while ((cert = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL) {
            SSL_CTX_add0_chain_cert(ctx, cert);
        }
    } else {
        cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
        X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), cert);
        X509_free(cert);
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    }
    ERR_clear_error();
    ssl = SSL_new(ctx);
    if (!server) {
        SSL_set_tlsext_host_name(ssl, "localhost");
        SSL_set1_host(ssl, "localhost");
        SSL_set_connect_state(ssl);
    } else {
        SSL_set_accept_state(ssl);
    }
    SSL_CTX_free(ctx);
    BIO_free(bio);
    return ssl;
}

static int open_end(struct job *j, struct end *e, int server)
{
    if (j->ours) {
        return server ? open_ours(e, TWAPI_TLS_SERVER, j->pem, j->pem_len,
                                  NULL, 0)
                      : open_ours(e, TWAPI_TLS_CLIENT, NULL, 0, j->roots,
                                  j->roots_len);
    }
    e->ssl = new_plain(server, j->pem, j->pem_len, j->roots, j->roots_len);
    SSL_set_fd(e->ssl, e->fd);
    return SSL_do_handshake(e->ssl) == 1;
}

static void close_end(struct end *e)
{
    if (e->connection != NULL) {
        tls->connection_close(e->connection, TWAPI_TLS_NO_WAIT);
        tls->connection_free(e->connection);
    }
    SSL_free(e->ssl);
    if (e->fd >= 0) {
        close(e->fd);
    }
}

/* --- the loops --- */

/* Bytes read, 0 at the end or on an error. */
static size_t get(struct end *e, void *buffer, size_t cap)
{
    size_t n = 0;

    if (e->ssl != NULL) {
        int got = SSL_read(e->ssl, buffer, (int)cap);

        return got > 0 ? (size_t)got : 0;
    }
    (void)tls->connection_read(e->connection, buffer, cap, &n,
                               TWAPI_TLS_FOREVER, NULL);
    return n;
}

static int put(struct end *e, const void *buffer, size_t len)
{
    size_t n;

    if (e->ssl != NULL) {
        return SSL_write(e->ssl, buffer, (int)len) == (int)len;
    }
    return tls->connection_write(e->connection, buffer, len, &n,
                                 TWAPI_TLS_FOREVER, NULL) ==
           TWAPI_TLS_DONE;
}

static int finish_writing(struct end *e)
{
    if (e->ssl != NULL) {
        return SSL_shutdown(e->ssl) >= 0;
    }
    return tls->connection_shutdown(e->connection, TWAPI_TLS_FOREVER,
                                    NULL) == TWAPI_TLS_DONE;
}

static void *server_thread(void *arg)
{
    struct job *j = arg;
    char *buffer = malloc(PIECE);
    size_t n;

    j->server_failed = !open_end(j, &j->server, 1);
    while (!j->server_failed && (n = get(&j->server, buffer, PIECE)) > 0) {
        if (j->echo && !put(&j->server, buffer, n)) {
            j->server_failed = 1;
        }
    }
    if (!j->echo && !j->server_failed) {
        /* One byte back says that all has arrived. */
        j->server_failed = !put(&j->server, "!", 1);
    }
    if (j->server_failed) {
        shutdown(j->server.fd, SHUT_RDWR);
    }
    free(buffer);
    return NULL;
}

static double drive(struct job *j)
{
    char *buffer = calloc(1, PIECE);
    double began, count = 0, took = 0;
    int good = open_end(j, &j->client, 0);

    began = now();
    while (good && (took = now() - began) < j->seconds) {
        if (j->echo) {
            size_t got = 0;

            good = put(&j->client, buffer, MESSAGE);
            while (good && got < MESSAGE) {
                size_t n = get(&j->client, buffer, MESSAGE - got);

                good = n > 0;
                got += n;
            }
            count += 1;
        } else {
            good = put(&j->client, buffer, PIECE);
            count += (double)PIECE;
        }
    }
    good = good && finish_writing(&j->client);
    if (!j->echo) {
        good = good && get(&j->client, buffer, 1) == 1;
        took = now() - began;
    }
    if (!good) {
        shutdown(j->client.fd, SHUT_RDWR);
    }
    free(buffer);
    return good ? count / took : -1;
}

static int tcp_pair(int fd[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int i;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 ||
        listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0) {
        close(listener);
        return -1;
    }
    fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd[0], (struct sockaddr *)&address, size) < 0) {
        close(fd[0]);
        close(listener);
        return -1;
    }
    fd[1] = accept(listener, NULL, NULL);
    close(listener);
    for (i = 0; i < 2; i++) {
        setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    return 0;
}

static double over_tcp(struct job *j)
{
    pthread_t thread;
    int fd[2];
    double result;

    if (tcp_pair(fd) < 0) {
        return -1;
    }
    j->client.fd = fd[0];
    j->server.fd = fd[1];
    if (pthread_create(&thread, NULL, server_thread, j) != 0) {
        return -1;
    }
    result = drive(j);
    pthread_join(thread, NULL);
    close_end(&j->client);
    close_end(&j->server);
    return j->server_failed ? -1 : result;
}

/* --- sealing in memory --- */

static double seal_plain(struct job *j, char *data, char *out)
{
    SSL *c = new_plain(0, j->pem, j->pem_len, j->roots, j->roots_len);
    SSL *s = new_plain(1, j->pem, j->pem_len, j->roots, j->roots_len);
    BIO *up = BIO_new(BIO_s_mem()), *down = BIO_new(BIO_s_mem());
    double began, count = 0, took;
    int rounds, good;

    BIO_up_ref(up);
    BIO_up_ref(down);
    SSL_set_bio(c, down, up);
    SSL_set_bio(s, up, down);
    for (rounds = 0; rounds < 4; rounds++) {
        (void)SSL_do_handshake(c);
        (void)SSL_do_handshake(s);
    }
    good = SSL_is_init_finished(c) && SSL_is_init_finished(s);
    began = now();
    do {
        good = good && SSL_write(c, data, (int)PIECE) == (int)PIECE &&
               BIO_read(up, out, (int)(2 * PIECE)) > (int)PIECE;
        count += (double)PIECE;
        took = now() - began;
    } while (good && took < j->seconds);
    SSL_free(c);
    SSL_free(s);
    return good ? count / took : -1;
}

static double seal_ours(struct job *j, char *data, char *out)
{
    struct twapi_tls_credentials_config config = {.size = sizeof(config)};
    struct twapi_tls_context_config wants = {.size = sizeof(wants)};
    struct twapi_tls_credentials *cc = NULL, *sc = NULL;
    struct twapi_tls_context *c = NULL, *s = NULL;
    size_t there = 0, back = 0, consumed;
    char *wire = malloc(2 * PIECE);
    double began, count = 0, took = 1;
    int st, st2 = 0;

    config.role = TWAPI_TLS_CLIENT;
    config.roots = j->roots;
    config.roots_len = j->roots_len;
    wants.target = "localhost";
    st = tls->credentials_new(&config, &cc, NULL);
    if (st == 0) {
        st = tls->context_new(cc, &wants, &c, NULL);
    }
    memset(&config, 0, sizeof(config));
    config.size = sizeof(config);
    config.role = TWAPI_TLS_SERVER;
    config.identity = j->pem;
    config.identity_len = j->pem_len;
    wants.target = NULL;
    if (st == 0) {
        st = tls->credentials_new(&config, &sc, NULL);
    }
    if (st == 0) {
        st = tls->context_new(sc, &wants, &s, NULL);
    }
    if (st == 0) {
        st = TWAPI_TLS_WANT_READ;
        st2 = TWAPI_TLS_WANT_READ;
    }
    while (st > 0 || (st == 0 && st2 > 0)) {
        st = tls->handshake(c, wire, back, &consumed, out, PIECE, &there,
                            NULL);
        if (st >= 0) {
            st2 = tls->handshake(s, out, there, &consumed, wire, PIECE,
                                 &back, NULL);
            st = st2 < 0 ? st2 : st;
        }
    }
    began = now();
    while (st == 0 && (took = now() - began) < j->seconds) {
        st = tls->encrypt(c, data, PIECE, &consumed, out, 2 * PIECE,
                          &there, NULL);
        count += (double)PIECE;
    }
    tls->context_free(c);
    tls->context_free(s);
    tls->credentials_free(cc);
    tls->credentials_free(sc);
    free(wire);
    return st == 0 ? count / took : -1;
}

static PyObject *run(PyObject *module, PyObject *args)
{
    struct job j;
    const char *what;
    Py_ssize_t pem_len, roots_len;
    double result;

    (void)module;
    memset(&j, 0, sizeof(j));
    if (!PyArg_ParseTuple(args, "psy#y#d", &j.ours, &what, &j.pem, &pem_len,
                          &j.roots, &roots_len, &j.seconds)) {
        return NULL;
    }
    j.pem_len = (size_t)pem_len;
    j.roots_len = (size_t)roots_len;
    j.client.fd = j.server.fd = -1;
    j.echo = strcmp(what, "echo") == 0;
    Py_BEGIN_ALLOW_THREADS
    if (strcmp(what, "seal") == 0) {
        char *data = calloc(1, PIECE);
        char *out = malloc(2 * PIECE);

        result = j.ours ? seal_ours(&j, data, out)
                        : seal_plain(&j, data, out);
        free(data);
        free(out);
    } else {
        result = over_tcp(&j);
    }
    Py_END_ALLOW_THREADS
    if (result < 0) {
        PyErr_Format(PyExc_RuntimeError, "%s failed on %s", what,
                     j.ours ? "the C API" : "OpenSSL");
        return NULL;
    }
    return PyFloat_FromDouble(result);
}

static PyMethodDef functions[] = {
    {"run", run, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT, "capi_loop", NULL, -1, functions,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_capi_loop(void)
{
    tls = twapi_tls_import();
    return tls != NULL ? PyModule_Create(&def) : NULL;
}
