/*
 * Paths that were found good, remembered: a client that comes back to a
 * server need not check the same signatures again, nor build the same set of
 * anchors. Windows' chain engine does as much.
 *
 * What X509_verify_cert says of a path follows from what it is given (the
 * leaf, what may stand between, the anchors, what for) and from the time. A
 * note is found again by SHA-256 over all of the former, the encodings whole,
 * signatures included, the anchors by their edition, a number that no other
 * set of anchors has or had; and it holds as long as each certificate of the
 * path is valid. Only what was good without anything ignored is noted, and
 * nothing where revocation was looked at. Usage and name are not part of it:
 * those are judged each time.
 *
 * A note keeps the certificates above the leaf, not the leaf. The newest
 * take the place of the oldest.
 */

#include <pthread.h>
#include <string.h>

#include <openssl/crypto.h>

#include "sspi/cert_openssl.h"

#define NOTES 32u /* kept; two certificates of 4 KiB each, most of them */
#define KEY_LEN 32u
#define DAY 86400 /* seconds; a note is asked for that long at most */

struct note {
    uint8_t key[KEY_LEN];
    time_t from, until;    /* the path is valid from the one on, up to the
                              other, as for X509_verify_cert */
    STACK_OF(X509) *above; /* owned; NULL: no note */
};

static struct {
    struct tw_lock lock; /* around all below */
    size_t next;         /* the oldest note */
    struct note notes[NOTES];
} memory = {.lock = TW_LOCK_READY};

/* A fork leaves the child the lock free and the notes whole, whatever other
   threads were about. */
static CRYPTO_ONCE once = CRYPTO_ONCE_STATIC_INIT;
static bool forks_minded; /* if not, nothing is recalled */

static void before_fork(void)
{
    tw_lock_acquire(&memory.lock);
}

static void after_fork(void)
{
    tw_lock_release(&memory.lock);
}

static void mind_forks(void)
{
    forks_minded = pthread_atfork(before_fork, after_fork, after_fork) == 0;
}

uint64_t tw_openssl_new_edition(void)
{
    static _Atomic uint64_t last;

    return ++last;
}

static bool add_certificate(EVP_MD_CTX *ctx, X509 *x509)
{
    unsigned char *der = NULL;
    int len = i2d_X509(x509, &der); /* tells its own length */
    bool good = len > 0 && EVP_DigestUpdate(ctx, der, (size_t)len) == 1;

    OPENSSL_free(der);
    return good;
}

/* Everything that the path depends on, except the time. */
static bool make_key(const struct tw_trial *t, uint8_t *key)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    const uint64_t given[] = {
        t->anchors[0], t->anchors[1], t->config->server != NULL,
        (uint64_t)EVP_default_properties_is_fips_enabled(NULL)};
    bool good = ctx != NULL
        && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1
        && EVP_DigestUpdate(ctx, given, sizeof given) == 1
        && add_certificate(ctx, t->leaf);
    int i;

    for (i = 0; good && i < sk_X509_num(t->extra); i++) {
        X509 *x509 = sk_X509_value(t->extra, i);
        good = x509 == t->leaf || add_certificate(ctx, x509);
    }
    good = good && EVP_DigestFinal_ex(ctx, key, NULL) == 1;
    EVP_MD_CTX_free(ctx);
    return good;
}

static bool may_remember(const struct tw_trial *t)
{
    return !t->revocation && t->ignore == 0;
}

/* The note of a key, or NULL. */
static struct note *find_lock_held(const uint8_t *key)
{
    size_t i;

    for (i = 0; i < NOTES; i++) {
        if (memory.notes[i].above != NULL
            && memcmp(memory.notes[i].key, key, KEY_LEN) == 0) {
            return &memory.notes[i];
        }
    }
    return NULL;
}

bool tw_trial_recall(struct tw_trial *t)
{
    uint8_t key[KEY_LEN];
    STACK_OF(X509) *path = NULL;
    struct note *note;

    if (!may_remember(t) || !make_key(t, key)
        || !CRYPTO_THREAD_run_once(&once, mind_forks) || !forks_minded) {
        return false;
    }
    tw_lock_acquire(&memory.lock);
    note = find_lock_held(key);
    if (note != NULL && note->from <= t->now && t->now < note->until) {
        path = X509_chain_up_ref(note->above);
    }
    tw_lock_release(&memory.lock);
    if (path == NULL || sk_X509_unshift(path, t->leaf) == 0) {
        sk_X509_pop_free(path, X509_free);
        return false;
    }
    (void)X509_up_ref(t->leaf);
    t->path = path;
    return true;
}

/* Narrows the span to that of a certificate. */
static bool narrow(struct note *note, const X509 *x509)
{
    ASN1_TIME *ends[2] = {ASN1_TIME_set(NULL, note->from),
                          ASN1_TIME_set(NULL, note->until)};
    int days, seconds;
    bool good = ends[0] != NULL && ends[1] != NULL
        && ASN1_TIME_diff(&days, &seconds, ends[0],
                          X509_get0_notBefore(x509)) == 1;

    if (good && (days > 0 || seconds > 0)) {
        note->from += (time_t)days * DAY + seconds;
    }
    good = good
        && ASN1_TIME_diff(&days, &seconds, ends[1],
                          X509_get0_notAfter(x509)) == 1;
    if (good && (days < 0 || seconds < 0)) {
        note->until += (time_t)days * DAY + seconds;
    }
    ASN1_TIME_free(ends[0]);
    ASN1_TIME_free(ends[1]);
    return good;
}

void tw_trial_remember(const struct tw_trial *t)
{
    struct note fresh = {.from = t->now - DAY, .until = t->now + DAY}, *at;
    STACK_OF(X509) *old;
    X509 *leaf;
    int i;

    if (!may_remember(t) || t->worst != TW_TROUBLE_NONE || t->broken
        || !make_key(t, fresh.key)) {
        return;
    }
    for (i = 0; i < sk_X509_num(t->path); i++) {
        if (!narrow(&fresh, sk_X509_value(t->path, i))) {
            return;
        }
    }
    fresh.above = X509_chain_up_ref(t->path);
    leaf = fresh.above != NULL ? sk_X509_shift(fresh.above) : NULL;
    X509_free(leaf);
    if (leaf == NULL) {
        return;
    }
    tw_lock_acquire(&memory.lock);
    at = find_lock_held(fresh.key); /* out of date, or another thread's */
    if (at == NULL) {
        at = &memory.notes[memory.next];
        memory.next = (memory.next + 1) % NOTES;
    }
    old = at->above;
    *at = fresh;
    tw_lock_release(&memory.lock);
    sk_X509_pop_free(old, X509_free);
}
