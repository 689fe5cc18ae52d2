/*
 * Locks that all connections share, and fork().
 *
 * The child of a fork has each lock as it was, and of the threads only the
 * one that forked: a lock that another held, nobody ever lets go of. So the
 * one that forks takes these locks first, which finds what is beneath them
 * whole, and both processes let go of them. None of them is taken under
 * another, so their order does not matter.
 */
#include <pthread.h>

#include "sspi/openssl_internal.h"

static struct {
    struct tw_lock lock;     /* around the rest; held before those */
    struct tw_lock *held[3]; /* there are no more */
    size_t count;
} forks = {.lock = TW_LOCK_READY};

static CRYPTO_ONCE once = CRYPTO_ONCE_STATIC_INIT;
static bool minded; /* the handlers are in place */

static void before_fork(void)
{
    tw_lock_acquire(&forks.lock);
    for (size_t i = 0; i < forks.count; i++) {
        tw_lock_acquire(forks.held[i]);
    }
}

static void after_fork(void)
{
    for (size_t i = 0; i < forks.count; i++) {
        tw_lock_release(forks.held[i]);
    }
    tw_lock_release(&forks.lock);
}

static void mind_forks(void)
{
    minded = pthread_atfork(before_fork, after_fork, after_fork) == 0;
}

bool tw_openssl_hold_in_forks(struct tw_lock *lock)
{
    bool good = CRYPTO_THREAD_run_once(&once, mind_forks) && minded;

    if (good) {
        tw_lock_acquire(&forks.lock);
        good = forks.count < sizeof(forks.held) / sizeof(forks.held[0]);
        if (good) {
            forks.held[forks.count++] = lock;
        }
        tw_lock_release(&forks.lock);
    }
    return good;
}
