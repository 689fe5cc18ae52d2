/*
 * The system's stores, as far as a system without such stores has them.
 *
 * ROOT is the trust bundle, found as OpenSSL finds it (SSL_CERT_FILE,
 * SSL_CERT_DIR, else its built-in places), parsed once a process, and again
 * when that environment changes; verifications share the set. MY is a
 * directory of PKCS #12 files under the user's data folder, as .NET keeps one.
 * CA is there and empty.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <openssl/pem.h>
#include <openssl/pkcs12.h>

#include "sspi/cert_openssl.h"

/* The system's roots, parsed; shared by all verifications. */
static struct {
    struct tw_lock lock;   /* around all below */
    char *key;             /* the environment they were read under */
    X509_STORE *trust;     /* of certs */
    STACK_OF(X509) *certs; /* owned references */
    uint64_t edition;      /* of this set */
} roots = {.lock = TW_LOCK_READY};

static CRYPTO_ONCE roots_once = CRYPTO_ONCE_STATIC_INIT;
static bool forks_minded;

/* A fork waits for who reads them: its child finds the lock free. */
static void before_fork(void)
{
    tw_lock_acquire(&roots.lock);
}

static void after_fork(void)
{
    tw_lock_release(&roots.lock);
}

static void mind_forks(void)
{
    forks_minded = pthread_atfork(before_fork, after_fork, after_fork) == 0;
}

/* Adds the certificates of a PEM file; silently none if it is not one. */
static bool load_file(const char *path, STACK_OF(X509) *certs)
{
    BIO *bio = BIO_new_file(path, "r");
    int bad = 0;
    bool ok = true;

    /* X509_AUX: the bundle may say "TRUSTED CERTIFICATE" and for what. A
       block that cannot be read does not hide those after it. */
    while (ok && bio != NULL && bad < 100) {
        X509 *x509 = PEM_read_bio_X509_AUX(bio, NULL, tw_openssl_password,
                                           NULL);
        if (x509 != NULL) {
            ok = sk_X509_push(certs, x509) != 0;
            if (!ok) {
                X509_free(x509);
            }
        } else if (ERR_GET_REASON(ERR_peek_last_error())
                   == PEM_R_NO_START_LINE) {
            break;
        } else {
            bad++;
            ERR_clear_error();
        }
    }
    BIO_free(bio);
    ERR_clear_error();
    return ok;
}

/* "1a2b3c4d.0": what c_rehash makes of a certificate. */
static bool is_hashed_name(const char *name)
{
    return strspn(name, "0123456789abcdef") == 8 && name[8] == '.'
        && name[9] != '\0'
        && strspn(name + 9, "0123456789") == strlen(name + 9);
}

static bool is_pfx_name(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot != NULL && dot != name
        && (strcasecmp(dot, ".pfx") == 0 || strcasecmp(dot, ".p12") == 0);
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_paths(char **paths, size_t count)
{
    while (count > 0) {
        OPENSSL_free(paths[--count]);
    }
    OPENSSL_free(paths);
}

static char *join_path(const char *dir, size_t dir_len, const char *tail)
{
    size_t room = dir_len + strlen(tail) + 2;
    char *path = OPENSSL_malloc(room);

    if (path != NULL) {
        (void)snprintf(path, room, "%.*s/%s", (int)dir_len, dir, tail);
    }
    return path;
}

/* The wanted files of a directory, sorted; a directory that is not there
   has none. False when out of memory. */
static bool list_directory(const char *path, bool (*wanted)(const char *),
                           char ***out, size_t *count)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    char **paths = NULL, **more;
    size_t n = 0, room = 0;
    bool ok = true;

    while (ok && dir != NULL && (entry = readdir(dir)) != NULL) {
        if (!wanted(entry->d_name)) {
            continue;
        }
        if (n == room) {
            room = room != 0 ? 2 * room : 64;
            more = OPENSSL_realloc(paths, room * sizeof *paths);
            if (more == NULL) {
                ok = false;
                break;
            }
            paths = more;
        }
        paths[n] = join_path(path, strlen(path), entry->d_name);
        ok = paths[n] != NULL;
        n += ok ? 1 : 0;
    }
    if (dir != NULL) {
        (void)closedir(dir);
    }
    if (!ok) {
        free_paths(paths, n);
        return false;
    }
    if (n > 1) {
        qsort(paths, n, sizeof *paths, compare_paths);
    }
    *out = paths;
    *count = n;
    return true;
}

/* dirs: one or more directories, separated by ':'. */
static bool load_directories(const char *dirs, STACK_OF(X509) *certs)
{
    const char *at = dirs;
    bool ok = true;

    while (ok && *at != '\0') {
        size_t len = strcspn(at, ":");
        char **paths = NULL, *dir;
        size_t count = 0, i;

        if (len > 0) {
            dir = OPENSSL_strndup(at, len);
            ok = dir != NULL
                && list_directory(dir, is_hashed_name, &paths, &count);
            for (i = 0; ok && i < count; i++) {
                ok = load_file(paths[i], certs);
            }
            free_paths(paths, count);
            OPENSSL_free(dir);
        }
        at += len;
        at += *at == ':' ? 1 : 0;
    }
    return ok;
}

/*
 * As OpenSSL does it: the environment's file and directory, each with its
 * default. A directory is read when it was named or when the file gave
 * nothing. Where OpenSSL's own directories are empty (a build of its own,
 * as wheels bring) and the environment is silent, the places where systems
 * keep their bundle are tried.
 */
static bool load_roots(const char *env_file, const char *env_dir,
                       STACK_OF(X509) *certs)
{
    static const char *const known[] = {
        "/etc/ssl/certs/ca-certificates.crt", /* Debian, Arch, Alpine */
        "/etc/pki/tls/certs/ca-bundle.crt",   /* Fedora, RHEL */
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/ca-bundle.pem",             /* openSUSE */
        "/etc/ssl/cert.pem",                  /* Alpine, BSD, macOS */
        "/usr/local/share/certs/ca-root-nss.crt",
    };
    const char *file = env_file != NULL ? env_file
                                        : X509_get_default_cert_file();
    const char *dir = env_dir != NULL ? env_dir
                                      : X509_get_default_cert_dir();
    size_t i;

    if (!load_file(file, certs)) {
        return false;
    }
    if ((env_dir != NULL || sk_X509_num(certs) == 0)
        && !load_directories(dir, certs)) {
        return false;
    }
    for (i = 0; env_file == NULL && env_dir == NULL
                && sk_X509_num(certs) == 0
                && i < sizeof known / sizeof known[0]; i++) {
        if (!load_file(known[i], certs)) {
            return false;
        }
    }
    return true;
}

bool tw_openssl_trust_all(X509_STORE *trust, STACK_OF(X509) *certs)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++) {
        if (!X509_STORE_add_cert(trust, sk_X509_value(certs, i))) {
            return false;
        }
    }
    return true;
}

static bool roots_refresh_lock_held(void)
{
    const char *file = getenv(X509_get_default_cert_file_env());
    const char *dir = getenv(X509_get_default_cert_dir_env());
    size_t room = 8 + (file != NULL ? strlen(file) : 0)
        + (dir != NULL ? strlen(dir) : 0);
    char *key = OPENSSL_malloc(room);
    STACK_OF(X509) *certs = NULL;
    X509_STORE *trust = NULL;
    bool ok = false;

    if (key == NULL) {
        return false;
    }
    (void)snprintf(key, room, "%s%s\n%s%s", file != NULL ? "=" : "",
                   file != NULL ? file : "", dir != NULL ? "=" : "",
                   dir != NULL ? dir : "");
    if (roots.key != NULL && strcmp(roots.key, key) == 0) {
        OPENSSL_free(key);
        return true;
    }
    certs = sk_X509_new_null();
    trust = X509_STORE_new();
    ok = certs != NULL && trust != NULL && load_roots(file, dir, certs)
        && tw_openssl_trust_all(trust, certs);
    if (ok) {
        OPENSSL_free(roots.key);
        X509_STORE_free(roots.trust);
        sk_X509_pop_free(roots.certs, X509_free);
        roots.key = key;
        roots.trust = trust;
        roots.certs = certs;
        roots.edition = tw_openssl_new_edition();
    } else {
        OPENSSL_free(key);
        X509_STORE_free(trust);
        sk_X509_pop_free(certs, X509_free);
    }
    ERR_clear_error();
    return ok;
}

/* New references to what is asked for; false when out of memory. */
bool tw_openssl_system_roots(X509_STORE **trust, STACK_OF(X509) **certs,
                             uint64_t *edition)
{
    bool ok;

    if (!CRYPTO_THREAD_run_once(&roots_once, mind_forks) || !forks_minded) {
        return false;
    }
    tw_lock_acquire(&roots.lock);
    ok = roots_refresh_lock_held();
    if (ok && trust != NULL) {
        (void)X509_STORE_up_ref(roots.trust);
        *trust = roots.trust;
    }
    if (ok && certs != NULL) {
        *certs = X509_chain_up_ref(roots.certs);
        ok = *certs != NULL;
    }
    if (ok && edition != NULL) {
        *edition = roots.edition;
    }
    tw_lock_release(&roots.lock);
    return ok;
}

static enum tw_status open_root(struct tw_store *store,
                                struct tw_error *err)
{
    struct tw_bundle b;
    STACK_OF(X509) *certs = NULL;
    enum tw_status status;

    memset(&b, 0, sizeof b);
    if (!tw_openssl_system_roots(NULL, &certs, NULL)) {
        return tw_openssl_no_memory(err);
    }
    b.certs = certs;
    status = tw_openssl_store_merge(store, &b, err);
    tw_bundle_fini(&b);
    return status;
}

/* Where the files of "MY" are; NULL if there is no home, or no memory. */
static char *my_directory(const char *location)
{
    const char *data = getenv("XDG_DATA_HOME");
    const char *home = getenv("HOME");

    if (strcasecmp(location, "machine") == 0) {
        return OPENSSL_strdup("/etc/twapi_tls/my");
    }
    if (data != NULL && data[0] == '/') {
        return join_path(data, strlen(data), "twapi_tls/my");
    }
    if (home != NULL && home[0] != '\0') {
        return join_path(home, strlen(home), ".local/share/twapi_tls/my");
    }
    return NULL;
}

/* PKCS #12 files without a password. One that cannot be read is passed
   over, as .NET does it: it must not take the others with it. */
static enum tw_status open_my(struct tw_store *store, const char *location,
                              struct tw_error *err)
{
    char *dir = my_directory(location);
    char **paths = NULL;
    size_t count = 0, i;

    if (dir == NULL) {
        return TW_DONE;
    }
    if (!list_directory(dir, is_pfx_name, &paths, &count)) {
        OPENSSL_free(dir);
        return tw_openssl_no_memory(err);
    }
    for (i = 0; i < count; i++) {
        BIO *bio = BIO_new_file(paths[i], "rb");
        PKCS12 *p12 = bio != NULL ? d2i_PKCS12_bio(bio, NULL) : NULL;
        unsigned char *der = NULL;
        int len = p12 != NULL ? i2d_PKCS12(p12, &der) : 0;
        if (len > 0) {
            (void)tw_openssl_store_import(store, TW_ENC_PFX, der,
                                          (size_t)len, "", NULL);
        }
        OPENSSL_clear_free(der, len > 0 ? (size_t)len : 0);
        PKCS12_free(p12);
        BIO_free(bio);
    }
    free_paths(paths, count);
    OPENSSL_free(dir);
    ERR_clear_error();
    return TW_DONE;
}

enum tw_status tw_openssl_store_open(const char *name, const char *location,
                                     struct tw_store **out,
                                     struct tw_error *err)
{
    struct tw_store *store = NULL;
    enum tw_status status;

    *out = NULL;
    if (location == NULL) {
        location = "user";
    }
    if (strcasecmp(location, "user") != 0
        && strcasecmp(location, "machine") != 0) {
        return tw_error_set(err, TW_E_NOT_FOUND, CRYPT_E_NOT_FOUND,
                            "no store location '%s': there are 'user' and"
                            " 'machine'", location);
    }
    if (name == NULL
        || (strcasecmp(name, "ROOT") != 0 && strcasecmp(name, "CA") != 0
            && strcasecmp(name, "MY") != 0)) {
        return tw_error_set(err, TW_E_NOT_FOUND, CRYPT_E_NOT_FOUND,
                            "no system store '%s': there are 'ROOT', 'CA'"
                            " and 'MY'", name != NULL ? name : "");
    }
    status = tw_openssl_store_new(&store, err);
    if (status == TW_DONE && strcasecmp(name, "ROOT") == 0) {
        status = open_root(store, err);
    } else if (status == TW_DONE && strcasecmp(name, "MY") == 0) {
        status = open_my(store, location, err);
    }
    if (status != TW_DONE) {
        tw_openssl_store_free(store);
        return status;
    }
    *out = store;
    return TW_DONE;
}
