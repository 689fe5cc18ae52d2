/*
 * An echo server in C threads, and a client, on the C API of twapi_tls.
 *
 * Each connection has a thread that Python knows nothing of; it reads and
 * writes through the table and never takes the GIL. pump() drives two
 * contexts against each other with buffers of a given size, no socket.
 */
#define _GNU_SOURCE 1
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "twapi_tls.h"

static const struct twapi_tls_api *tls;

/* --- errors, as a tuple that a test can look at --- */

static PyObject *failure; /* tls_echo.Failure(status, code, alert, text) */

static PyObject *fail(const struct twapi_tls_error *e)
{
    const char *name = tls->code_name(e->code);
    const char *alert = tls->alert_name(e->alert_sent);
    PyObject *args;

    args = Py_BuildValue("(iszs)", e->status, name != NULL ? name : "",
                         alert, e->detail);
    if (args != NULL) {
        PyErr_SetObject(failure, args);
        Py_DECREF(args);
    }
    return NULL;
}

/* --- the server --- */

struct server {
    int fd;
    pthread_t thread;
    struct twapi_tls_credentials *credentials;
    atomic_long connections, bytes, failures;
    long serving; /* threads; under lock, ended says that one went */
    pthread_mutex_t lock;
    pthread_cond_t ended;
};

static struct server server = {
    .fd = -1,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .ended = PTHREAD_COND_INITIALIZER,
};

static void count_serving(long change)
{
    pthread_mutex_lock(&server.lock);
    server.serving += change;
    pthread_cond_signal(&server.ended);
    pthread_mutex_unlock(&server.lock);
}

static void *serve(void *arg)
{
    struct twapi_tls_context_config config = {.size = sizeof(config)};
    struct twapi_tls_context *context = NULL;
    struct twapi_tls_connection *connection = NULL;
    struct twapi_tls_error err;
    char buffer[16384];
    int fd = (int)(intptr_t)arg;
    int64_t deadline = tls->clock_ns() + INT64_C(20000000000);
    size_t n;
    size_t sent;
    int st;

    st = tls->context_new(server.credentials, &config, &context, &err);
    if (st == TWAPI_TLS_DONE) {
        st = tls->connection_new(context, fd, &connection, &err);
    }
    if (connection == NULL) {
        tls->context_free(context);
        close(fd);
    } else {
        st = tls->connection_handshake(connection, deadline, &err);
        while (st == TWAPI_TLS_DONE) {
            st = tls->connection_read(connection, buffer, sizeof(buffer),
                                      &n, deadline, &err);
            if (st == TWAPI_TLS_DONE) {
                st = tls->connection_write(connection, buffer, n, &sent,
                                           deadline, &err);
                atomic_fetch_add(&server.bytes, (long)n);
            }
        }
        tls->connection_close(connection, deadline);
        tls->connection_free(connection);
    }
    atomic_fetch_add(st == TWAPI_TLS_END ? &server.connections
                                         : &server.failures, 1);
    count_serving(-1);
    return NULL;
}

static void *listen_on(void *arg)
{
    (void)arg;
    for (;;) {
        pthread_attr_t attr;
        pthread_t thread;
        int fd = accept(server.fd, NULL, NULL);

        if (fd < 0) {
            return NULL; /* stop() shut the listener down */
        }
        count_serving(1);
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        if (pthread_create(&thread, &attr, serve, (void *)(intptr_t)fd)) {
            close(fd);
            count_serving(-1);
        }
        pthread_attr_destroy(&attr);
    }
}

static int credentials(int role, const char *identity, Py_ssize_t len,
                       const char *roots, Py_ssize_t roots_len,
                       unsigned protocols,
                       struct twapi_tls_credentials **out)
{
    struct twapi_tls_credentials_config config = {.size = sizeof(config)};
    struct twapi_tls_error err;

    config.role = role;
    config.protocols = protocols;
    config.identity = identity;
    config.identity_len = (size_t)len;
    config.roots = roots;
    config.roots_len = (size_t)roots_len;
    if (tls->credentials_new(&config, out, &err) != TWAPI_TLS_DONE) {
        (void)fail(&err);
        return -1;
    }
    return 0;
}

static PyObject *start(PyObject *module, PyObject *args)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    const char *pem;
    Py_ssize_t len;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#", &pem, &len) ||
        credentials(TWAPI_TLS_SERVER, pem, len, NULL, 0, 0,
                    &server.credentials) < 0) {
        return NULL;
    }
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server.fd < 0 ||
        bind(server.fd, (struct sockaddr *)&address, size) < 0 ||
        listen(server.fd, 64) < 0 ||
        getsockname(server.fd, (struct sockaddr *)&address, &size) < 0 ||
        pthread_create(&server.thread, NULL, listen_on, NULL) != 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(ntohs(address.sin_port));
}

/* (connections, bytes, failures), once every thread has ended. */
static PyObject *stop(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    shutdown(server.fd, SHUT_RDWR);
    pthread_join(server.thread, NULL);
    close(server.fd);
    pthread_mutex_lock(&server.lock);
    while (server.serving > 0) { /* bounded by the deadline in serve() */
        pthread_cond_wait(&server.ended, &server.lock);
    }
    pthread_mutex_unlock(&server.lock);
    Py_END_ALLOW_THREADS
    server.fd = -1;
    tls->credentials_free(server.credentials);
    return Py_BuildValue("(lll)", atomic_exchange(&server.connections, 0),
                         atomic_exchange(&server.bytes, 0),
                         atomic_exchange(&server.failures, 0));
}

/* --- a client: echo(port, name, roots, data) -> (data, facts) --- */

static PyObject *facts_of(struct twapi_tls_context *context)
{
    struct twapi_tls_facts facts = {.size = sizeof(facts)};
    struct twapi_tls_error err;

    if (tls->facts(context, &facts, &err) != TWAPI_TLS_DONE) {
        return fail(&err);
    }
    return Py_BuildValue("{s:I,s:s,s:i,s:s,s:s}", "protocol",
                         (unsigned)facts.protocol, "suite",
                         facts.suite_name, "bits", facts.bits, "sni",
                         facts.sni, "alpn", facts.alpn);
}

static PyObject *echo(PyObject *module, PyObject *args)
{
    struct twapi_tls_context_config config = {.size = sizeof(config)};
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct twapi_tls_credentials *mine = NULL;
    struct twapi_tls_context *context = NULL;
    struct twapi_tls_connection *connection = NULL;
    struct twapi_tls_error err;
    PyObject *answer = NULL;
    PyObject *facts = NULL;
    PyObject *result = NULL;
    const char *name, *roots, *data;
    Py_ssize_t roots_len, len;
    size_t n, got = 0;
    int64_t deadline = tls->clock_ns() + INT64_C(20000000000);
    int port, fd, st;

    (void)module;
    if (!PyArg_ParseTuple(args, "isy#y#", &port, &name, &roots, &roots_len,
                          &data, &len) ||
        credentials(TWAPI_TLS_CLIENT, NULL, 0, roots, roots_len, 0,
                    &mine) < 0) {
        return NULL;
    }
    address.sin_port = htons((uint16_t)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 ||
        connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto done;
    }
    answer = PyBytes_FromStringAndSize(NULL, len);
    if (answer == NULL) {
        goto done;
    }
    config.target = name;
    st = tls->context_new(mine, &config, &context, &err);
    if (st == TWAPI_TLS_DONE) {
        st = tls->connection_new(context, fd, &connection, &err);
    }
    if (st == TWAPI_TLS_DONE) {
        char *at = PyBytes_AsString(answer);

        fd = -1; /* the connection's now */
        Py_BEGIN_ALLOW_THREADS
        st = tls->connection_handshake(connection, deadline, &err);
        if (st == TWAPI_TLS_DONE) {
            st = tls->connection_write(connection, data, (size_t)len, &n,
                                       deadline, &err);
        }
        if (st == TWAPI_TLS_DONE) {
            st = tls->connection_shutdown(connection, deadline, &err);
        }
        while (st == TWAPI_TLS_DONE && got < (size_t)len) {
            st = tls->connection_read(connection, at + got,
                                      (size_t)len - got, &n, deadline,
                                      &err);
            got += n;
        }
        Py_END_ALLOW_THREADS
    }
    if (st != TWAPI_TLS_DONE) {
        (void)fail(&err);
        goto done;
    }
    facts = facts_of(context);
    if (facts != NULL) {
        result = PyTuple_Pack(2, answer, facts);
    }
done:
    Py_XDECREF(answer);
    Py_XDECREF(facts);
    if (connection != NULL) {
        tls->connection_close(connection, deadline);
        tls->connection_free(connection);
    } else {
        tls->context_free(context);
        if (fd >= 0) {
            close(fd);
        }
    }
    tls->credentials_free(mine);
    return result;
}

/* --- contexts without sockets --- */

/* One end's inbox: what the other has written and this one not yet taken. */
struct pipe_end {
    struct twapi_tls_context *context;
    unsigned char in[1 << 20];
    size_t in_len;
    int open;
};

static void take(struct pipe_end *e, size_t n)
{
    memmove(e->in, e->in + n, e->in_len - n);
    e->in_len -= n;
}

/* One handshake call of `self` with at most `piece` bytes in and out. */
static int step(struct pipe_end *self, struct pipe_end *other, size_t piece,
                struct twapi_tls_error *err)
{
    size_t give = self->in_len < piece ? self->in_len : piece;
    size_t consumed, written;
    int st;

    st = tls->handshake(self->context, self->in, give, &consumed,
                        other->in + other->in_len, piece, &written, err);
    take(self, consumed);
    other->in_len += written;
    if (st == TWAPI_TLS_WANT_VERDICT) {
        int32_t code;

        st = tls->verify(self->context, &code, err);
        if (st == TWAPI_TLS_DONE) {
            st = tls->verdict(self->context, code, err);
        }
        return st < 0 ? st : TWAPI_TLS_WANT_WRITE;
    }
    self->open = st == TWAPI_TLS_DONE;
    return st;
}

/* pump(pem, roots, name, data, piece, manual, protocols=0) -> what the server
   read; the client keeps to protocols */
static PyObject *pump(PyObject *module, PyObject *args)
{
    struct twapi_tls_context_config config = {.size = sizeof(config)};
    struct twapi_tls_credentials *mine = NULL, *theirs = NULL;
    struct twapi_tls_error err;
    struct pipe_end *client = NULL, *peer = NULL;
    PyObject *result = NULL;
    const char *pem, *roots, *name, *data;
    Py_ssize_t pem_len, roots_len, len, piece;
    unsigned char *plain = NULL;
    size_t sent = 0, got = 0, consumed, written;
    int manual, st = 0, ended = 0;
    unsigned protocols = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#y#sy#np|I", &pem, &pem_len, &roots,
                          &roots_len, &name, &data, &len, &piece,
                          &manual, &protocols)) {
        return NULL;
    }
    client = calloc(1, sizeof(*client));
    peer = calloc(1, sizeof(*peer));
    plain = malloc((size_t)len + 1);
    if (client == NULL || peer == NULL || plain == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (credentials(TWAPI_TLS_CLIENT, NULL, 0, roots, roots_len, protocols,
                    &mine) < 0 ||
        credentials(TWAPI_TLS_SERVER, pem, pem_len, NULL, 0, 0, &theirs) < 0) {
        goto done;
    }
    st = tls->context_new(theirs, &config, &peer->context, &err);
    config.target = name;
    config.flags = manual ? TWAPI_TLS_MANUAL : 0;
    config.alpn = (const uint8_t *)"\x04""echo";
    config.alpn_len = 5;
    if (st == TWAPI_TLS_DONE) {
        st = tls->context_new(mine, &config, &client->context, &err);
    }
    while (st >= 0 && !(client->open && peer->open)) {
        st = step(client, peer, (size_t)piece, &err);
        if (st >= 0) {
            st = step(peer, client, (size_t)piece, &err);
        }
    }
    while (st >= 0 && !ended) {
        size_t room = sizeof(peer->in) - peer->in_len;
        size_t give;

        if (sent < (size_t)len || room == sizeof(peer->in)) {
            st = tls->encrypt(client->context, data + sent,
                              (size_t)len - sent, &consumed,
                              peer->in + peer->in_len,
                              room < (size_t)piece ? room : (size_t)piece,
                              &written, &err);
            sent += consumed;
            peer->in_len += written;
            if (st == TWAPI_TLS_DONE && sent == (size_t)len) {
                st = tls->shutdown(client->context, &err);
                peer->in_len += tls->output(
                    client->context, peer->in + peer->in_len,
                    sizeof(peer->in) - peer->in_len);
            }
        }
        if (st < 0) {
            break;
        }
        give = peer->in_len < (size_t)piece ? peer->in_len : (size_t)piece;
        st = tls->decrypt(peer->context, peer->in, give, &consumed,
                          plain + got,
                          (size_t)len + 1 - got < (size_t)piece
                              ? (size_t)len + 1 - got
                              : (size_t)piece,
                          &written, &err);
        take(peer, consumed);
        got += written;
        ended = st == TWAPI_TLS_END;
    }
    if (st < 0) {
        (void)fail(&err);
    } else {
        result = PyBytes_FromStringAndSize((char *)plain, (Py_ssize_t)got);
    }
done:
    if (client != NULL) {
        tls->context_free(client->context);
    }
    if (peer != NULL) {
        tls->context_free(peer->context);
    }
    tls->credentials_free(mine);
    tls->credentials_free(theirs);
    free(client);
    free(peer);
    free(plain);
    return result;
}

/* refused() -> the sentences for arguments that cannot be honoured */
static PyObject *refused(PyObject *module, PyObject *args)
{
    struct twapi_tls_credentials_config config = {0};
    struct twapi_tls_context_config wants = {.size = sizeof(wants)};
    struct twapi_tls_credentials *mine = NULL;
    struct twapi_tls_context *context = NULL;
    struct twapi_tls_error e[6];
    const char *pem;
    Py_ssize_t len;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#", &pem, &len)) {
        return NULL;
    }
    memset(e, 0, sizeof(e));
    tls->credentials_new(&config, &mine, &e[0]);
    config.size = sizeof(config);
    tls->credentials_new(&config, &mine, &e[1]);
    config.role = TWAPI_TLS_SERVER;
    tls->credentials_new(&config, &mine, &e[2]);
    config.identity = "no PEM";
    config.identity_len = 6;
    tls->credentials_new(&config, &mine, &e[3]);
    if (credentials(TWAPI_TLS_CLIENT, NULL, 0, NULL, 0, 0, &mine) < 0) {
        return NULL;
    }
    tls->context_new(mine, &wants, &context, &e[4]);
    tls->credentials_free(mine);
    if (credentials(TWAPI_TLS_SERVER, pem, len, NULL, 0, 0, &mine) < 0) {
        return NULL;
    }
    wants.flags = TWAPI_TLS_REQUEST_CERT;
    tls->context_new(mine, &wants, &context, &e[5]);
    tls->credentials_free(mine);
    return Py_BuildValue("[(is)(is)(is)(is)(is)(is)]", e[0].status,
                         e[0].detail, e[1].status, e[1].detail, e[2].status,
                         e[2].detail, e[3].status, e[3].detail, e[4].status,
                         e[4].detail, e[5].status, e[5].detail);
}

static PyObject *about(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return Py_BuildValue("{s:I,s:n,s:s,s:s}", "version",
                         (unsigned)tls->version, "size",
                         (Py_ssize_t)tls->size, "engine", tls->engine(),
                         "engine_version", tls->engine_version());
}

static PyMethodDef functions[] = {
    {"start", start, METH_VARARGS, NULL},
    {"stop", stop, METH_NOARGS, NULL},
    {"echo", echo, METH_VARARGS, NULL},
    {"pump", pump, METH_VARARGS, NULL},
    {"refused", refused, METH_VARARGS, NULL},
    {"about", about, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT, "tls_echo", NULL, -1, functions,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_tls_echo(void)
{
    PyObject *module;

    tls = twapi_tls_import();
    if (tls == NULL) {
        return NULL;
    }
    module = PyModule_Create(&def);
    failure = PyErr_NewException("tls_echo.Failure", NULL, NULL);
    if (module == NULL || failure == NULL ||
        PyModule_AddObjectRef(module, "Failure", failure) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
#ifdef Py_GIL_DISABLED
    PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    return module;
}
