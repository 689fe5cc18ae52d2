/*
 * Credentials: certificates, and the engine's handles made from them.
 *
 * A client's credentials are one handle. A server's are one handle per
 * identity: certificates that name the same hosts and differ in their kind
 * of key (RSA and EC) are one identity and share a handle, so that the
 * engine chooses by what the client can verify; any other certificate has
 * a handle of its own, because with Schannel the handle is the session
 * cache too and a session must not be resumed under another name.
 *
 * Everything is fixed by tw_credentials_new; afterwards only the count
 * changes, so look-ups take no lock.
 */
#include "core/credentials.h"

#include <stdlib.h>
#include <string.h>

#include "core/atomic.h"
#include "core/buffer.h"

struct identity {
    struct tw_cert *cert;   /* a reference; NULL for a client without one */
    struct tw_buffer names; /* sorted by nothing: "dns:a\0ip:b\0" */
    char key[32];           /* "key_algorithm", "" if unknown */
    size_t group;           /* index into handles */
    bool failed;            /* names are incomplete: out of memory */
};

struct tw_credentials {
    struct tw_count refs;
    const struct tw_provider *provider;
    enum tw_role role;
    bool resumes;            /* without TW_CRED_NO_RESUME */
    void *window;            /* borrowed; as given */
    struct identity *identities;
    size_t identity_count;
    CredHandle *handles;     /* one per group */
    size_t handle_count;     /* acquired so far */
    struct tw_store *chain;  /* held as long as the handles; may be NULL */
    struct tw_store *roots;
};

/* --- names --- */

static void add_name(struct identity *id, const char *kind,
                     const char *text, size_t len)
{
    static const char end = '\0';
    size_t i;
    uint8_t *at;

    if (!tw_buffer_append(&id->names, kind, strlen(kind))) {
        id->failed = true;
        return;
    }
    at = tw_buffer_reserve(&id->names, len + 1);
    if (at == NULL) {
        id->failed = true;
        return;
    }
    for (i = 0; i < len; i++) {
        at[i] = (uint8_t)(text[i] >= 'A' && text[i] <= 'Z'
                              ? text[i] + ('a' - 'A')
                              : text[i]);
    }
    tw_buffer_commit(&id->names, len);
    if (!tw_buffer_append(&id->names, &end, 1)) {
        id->failed = true;
    }
}

static bool info_sink(void *arg, const char *key, const void *data,
                      size_t len)
{
    struct identity *id = arg;
    size_t n;

    if (key == NULL) {
        return true;
    }
    if (strcmp(key, "dns") == 0) {
        add_name(id, "dns:", data, len);
    } else if (strcmp(key, "ip") == 0) {
        add_name(id, "ip:", data, len);
    } else if (strcmp(key, "key_algorithm") == 0) {
        n = len < sizeof(id->key) - 1 ? len : sizeof(id->key) - 1;
        memcpy(id->key, data, n);
        id->key[n] = '\0';
    }
    return !id->failed;
}

/* Does list hold this NUL-terminated name? */
static bool has_name(const struct tw_buffer *list, const char *name)
{
    const char *at = (const char *)tw_buffer_head(list);
    const char *end = at + tw_buffer_length(list);

    while (at < end) {
        if (strcmp(at, name) == 0) {
            return true;
        }
        at += strlen(at) + 1;
    }
    return false;
}

static bool all_in(const struct tw_buffer *a, const struct tw_buffer *b)
{
    const char *at = (const char *)tw_buffer_head(a);
    const char *end = at + tw_buffer_length(a);

    while (at < end) {
        if (!has_name(b, at)) {
            return false;
        }
        at += strlen(at) + 1;
    }
    return true;
}

static bool same_names(const struct identity *a, const struct identity *b)
{
    if (tw_buffer_length(&a->names) == 0
        || tw_buffer_length(&b->names) == 0) {
        return false; /* nameless certificates stay alone */
    }
    return all_in(&a->names, &b->names) && all_in(&b->names, &a->names);
}

/* --- groups --- */

/* The group that identity i joins, or `groups` for a new one. */
static size_t find_group(const struct tw_credentials *c, size_t i,
                         size_t groups)
{
    const struct identity *id = &c->identities[i];
    size_t g;
    size_t j;
    bool joins;

    for (g = 0; g < groups; g++) {
        joins = true;
        for (j = 0; j < i && joins; j++) {
            if (c->identities[j].group == g) {
                joins = same_names(&c->identities[j], id)
                        && strcmp(c->identities[j].key, id->key) != 0;
            }
        }
        if (joins) {
            return g;
        }
    }
    return groups;
}

static enum tw_status read_identities(
    struct tw_credentials *c, const struct tw_credentials_config *config,
    struct tw_error *err)
{
    struct tw_error ignored;
    struct identity *id;
    size_t i;

    c->identities = calloc(config->cert_count, sizeof(*c->identities));
    if (c->identities == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    for (i = 0; i < config->cert_count; i++) {
        if (config->certs[i] == NULL) {
            return tw_error_set(err, TW_E_ARGUMENT, 0,
                                "a certificate of the credentials is "
                                "missing");
        }
        id = &c->identities[i];
        tw_buffer_init(&id->names);
        id->cert = c->provider->cert_ref(config->certs[i]);
        c->identity_count++;
        if (config->cert_count > 1 && c->provider->cert_info != NULL) {
            tw_error_clear(&ignored);
            (void)c->provider->cert_info(id->cert, info_sink, id,
                                         &ignored);
            if (id->failed) {
                return tw_error_set(err, TW_E_NOMEM, 0, NULL);
            }
        }
    }
    return TW_DONE;
}

static enum tw_status acquire_one(struct tw_credentials *c,
                                  const struct tw_credentials_config *config,
                                  struct tw_error *err)
{
    enum tw_status st;
    CredHandle *handle = &c->handles[c->handle_count];

    SecInvalidateHandle(handle);
    st = c->provider->acquire(config, handle, err);
    if (st == TW_DONE) {
        c->handle_count++;
    }
    return st;
}

static enum tw_status acquire_server(
    struct tw_credentials *c, const struct tw_credentials_config *config,
    struct tw_error *err)
{
    struct tw_credentials_config one = *config;
    struct tw_cert **members;
    enum tw_status st = TW_DONE;
    size_t groups = 0;
    size_t g;
    size_t i;

    for (i = 0; i < c->identity_count; i++) {
        c->identities[i].group = find_group(c, i, groups);
        if (c->identities[i].group == groups) {
            groups++;
        }
    }
    members = calloc(c->identity_count, sizeof(*members));
    c->handles = calloc(groups, sizeof(*c->handles));
    if (members == NULL || c->handles == NULL) {
        st = tw_error_set(err, TW_E_NOMEM, 0, NULL);
        goto done;
    }
    for (g = 0; g < groups && st == TW_DONE; g++) {
        one.certs = members;
        one.cert_count = 0;
        for (i = 0; i < c->identity_count; i++) {
            if (c->identities[i].group == g) {
                members[one.cert_count++] = c->identities[i].cert;
            }
        }
        st = acquire_one(c, &one, err);
    }
done:
    free(members);
    return st;
}

static enum tw_status acquire_client(
    struct tw_credentials *c, const struct tw_credentials_config *config,
    struct tw_error *err)
{
    c->handles = calloc(1, sizeof(*c->handles));
    if (c->handles == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    return acquire_one(c, config, err);
}

/* --- the public functions --- */

static void destroy(struct tw_credentials *c)
{
    const SecurityFunctionTableW *table = c->provider->table();
    size_t i;

    for (i = 0; i < c->handle_count; i++) {
        if (table != NULL) {
            (void)table->FreeCredentialsHandle(&c->handles[i]);
        }
    }
    free(c->handles);
    for (i = 0; i < c->identity_count; i++) {
        tw_buffer_free(&c->identities[i].names);
        c->provider->cert_free(c->identities[i].cert);
    }
    free(c->identities);
    if (c->chain != NULL) {
        c->provider->store_free(c->chain);
    }
    if (c->roots != NULL) {
        c->provider->store_free(c->roots);
    }
    free(c);
}

struct tw_credentials *tw_credentials_new(
    const struct tw_provider *provider,
    const struct tw_credentials_config *config, struct tw_error *err)
{
    struct tw_credentials *c;
    enum tw_status st = TW_DONE;

    if (config->role != TW_CLIENT && config->role != TW_SERVER) {
        (void)tw_error_set(err, TW_E_ARGUMENT, 0,
                           "the role of the credentials is unknown");
        return NULL;
    }
    if (config->role == TW_SERVER && config->cert_count == 0) {
        (void)tw_error_set(err, TW_E_ARGUMENT,
                           (int32_t)SEC_E_NO_CREDENTIALS,
                           "a server needs a certificate with its "
                           "private key");
        return NULL;
    }
    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        (void)tw_error_set(err, TW_E_NOMEM, 0, NULL);
        return NULL;
    }
    tw_count_init(&c->refs, 1);
    c->provider = provider;
    c->role = config->role;
    c->resumes = (config->flags & TW_CRED_NO_RESUME) == 0;
    c->window = config->window;
    if (provider->table() == NULL) {
        st = tw_error_set(err, TW_E_UNSUPPORTED,
                          (int32_t)SEC_E_SECPKG_NOT_FOUND,
                          "the TLS engine %s cannot be used here",
                          provider->name);
    }
    if (st == TW_DONE && config->cert_count > 0) {
        st = read_identities(c, config, err);
    }
    if (st == TW_DONE) {
        if (config->chain != NULL) {
            c->chain = provider->store_ref(config->chain);
        }
        if (config->roots != NULL) {
            c->roots = provider->store_ref(config->roots);
        }
        st = config->role == TW_SERVER ? acquire_server(c, config, err)
                                       : acquire_client(c, config, err);
    }
    if (st != TW_DONE) {
        destroy(c);
        return NULL;
    }
    /* the names served their purpose */
    for (size_t i = 0; i < c->identity_count; i++) {
        tw_buffer_free(&c->identities[i].names);
    }
    return c;
}

struct tw_credentials *tw_credentials_ref(struct tw_credentials *c)
{
    if (c != NULL) {
        tw_count_up(&c->refs);
    }
    return c;
}

void tw_credentials_free(struct tw_credentials *c)
{
    if (c != NULL && tw_count_down(&c->refs) == 0) {
        destroy(c);
    }
}

const struct tw_provider *tw_credentials_provider(struct tw_credentials *c)
{
    return c->provider;
}

enum tw_role tw_credentials_role(struct tw_credentials *c)
{
    return c->role;
}

bool tw_credentials_resumes(struct tw_credentials *c)
{
    return c->resumes;
}

void *tw_credentials_window(struct tw_credentials *c)
{
    return c->window;
}

CredHandle *tw_credentials_handle(struct tw_credentials *c,
                                  const char *host)
{
    size_t i;

    if (c->handle_count == 0) {
        return NULL;
    }
    if (host != NULL && host[0] != '\0' && c->handle_count > 1) {
        for (i = 0; i < c->identity_count; i++) {
            if (c->provider->cert_matches(c->identities[i].cert, host,
                                          false)) {
                return &c->handles[c->identities[i].group];
            }
        }
    }
    return &c->handles[0];
}
