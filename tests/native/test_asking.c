/*
 * A step of the engine that does not come back, as when a key asks for its
 * PIN: the connection can be closed under it, and neither who closes nor the
 * peer waits for the answer.
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire/wire.h"

#include "support.h"

static SecurityFunctionTableW asking_table;
static struct tw_provider asking;
static sem_t asked, answered;

static SECURITY_STATUS ask(PCredHandle cred, PCtxtHandle old,
                           SEC_WCHAR *target, ULONG req, ULONG r1,
                           ULONG drep, PSecBufferDesc in, ULONG r2,
                           PCtxtHandle fresh, PSecBufferDesc out,
                           ULONG *attributes, void *expiry)
{
    static bool before;

    if (old != NULL && in != NULL && !before) {
        before = true;
        CHECK(sem_post(&asked) == 0);
        CHECK(sem_wait(&answered) == 0);
    }
    return tw_provider_default()->table()->InitializeSecurityContextW(
        cred, old, target, req, r1, drep, in, r2, fresh, out, attributes,
        expiry);
}

static const SecurityFunctionTableW *table(void)
{
    return &asking_table;
}

static struct tw_wire *make_wire(const struct tw_provider *p,
                                 enum tw_role role, struct tw_cert *cert,
                                 int fd)
{
    struct tw_credentials_config config = {
        .role = role, .certs = &cert, .cert_count = role == TW_SERVER,
    };
    struct tw_session_config what = {.role = role, .target = "host.example"};
    struct tw_session *session;
    struct tw_wire *wire;
    struct tw_error err;

    tw_error_clear(&err);
    what.credentials = tw_credentials_new(p, &config, &err);
    CHECK(what.credentials);
    session = tw_session_new(p, &what, &err);
    CHECK(session);
    tw_credentials_free(what.credentials);
    wire = tw_wire_new(session, fd, &err);
    CHECK(wire);
    return wire;
}

static void *shake(void *wire)
{
    struct tw_error err;

    tw_error_clear(&err);
    return (void *)(intptr_t)tw_wire_handshake(wire, TW_FOREVER, &err);
}

static enum tw_status result_of(pthread_t thread)
{
    void *status;

    CHECK(pthread_join(thread, &status) == 0);
    return (enum tw_status)(intptr_t)status;
}

int main(void)
{
    struct tw_cert *cert = make_cert("host.example");
    struct tw_wire *client, *server;
    pthread_t ours, theirs;
    int fd[2];

    (void)alarm(60);
    asking = *tw_provider_default();
    asking_table = *asking.table();
    asking_table.InitializeSecurityContextW = ask;
    asking.table = table;
    CHECK(sem_init(&asked, 0, 0) == 0 && sem_init(&answered, 0, 0) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    client = make_wire(&asking, TW_CLIENT, NULL, fd[0]);
    server = make_wire(tw_provider_default(), TW_SERVER, cert, fd[1]);
    CHECK(pthread_create(&ours, NULL, shake, client) == 0);
    CHECK(pthread_create(&theirs, NULL, shake, server) == 0);
    CHECK(sem_wait(&asked) == 0);

    tw_wire_close(client, TW_NO_WAIT, false); /* comes back */
    CHECK(result_of(theirs) < 0);             /* the peer hears of it */
    CHECK(sem_post(&answered) == 0);          /* too late */
    CHECK(result_of(ours) == TW_E_CLOSED);
    CHECK(tw_wire_fd(client) == TW_NO_SOCKET);

    tw_wire_free(client);
    tw_wire_free(server);
    tw_provider_default()->cert_free(cert);
    puts("asking: ok");
    return 0;
}
