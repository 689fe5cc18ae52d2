/*
 * A mutex without Python: pthread, SRWLOCK. Zero bytes are not a valid
 * lock; init it. Not recursive.
 */
#ifndef TW_CORE_LOCK_H
#define TW_CORE_LOCK_H

#ifdef _WIN32
#include <winsock2.h>
#include <windows.h>
struct tw_lock {
    SRWLOCK os;
};
#define TW_LOCK_READY {SRWLOCK_INIT} /* for a static one, without init */
static inline void tw_lock_init(struct tw_lock *l)
{
    InitializeSRWLock(&l->os);
}
static inline void tw_lock_fini(struct tw_lock *l)
{
    (void)l;
}
static inline void tw_lock_acquire(struct tw_lock *l)
{
    AcquireSRWLockExclusive(&l->os);
}
static inline int tw_lock_try(struct tw_lock *l)
{
    return TryAcquireSRWLockExclusive(&l->os) != 0;
}
static inline void tw_lock_release(struct tw_lock *l)
{
    ReleaseSRWLockExclusive(&l->os);
}
#else
#include <pthread.h>
struct tw_lock {
    pthread_mutex_t os;
};
#define TW_LOCK_READY {PTHREAD_MUTEX_INITIALIZER} /* a static one, ready */
static inline void tw_lock_init(struct tw_lock *l)
{
    (void)pthread_mutex_init(&l->os, NULL);
}
static inline void tw_lock_fini(struct tw_lock *l)
{
    (void)pthread_mutex_destroy(&l->os);
}
static inline void tw_lock_acquire(struct tw_lock *l)
{
    (void)pthread_mutex_lock(&l->os);
}
static inline int tw_lock_try(struct tw_lock *l)
{
    return pthread_mutex_trylock(&l->os) == 0;
}
static inline void tw_lock_release(struct tw_lock *l)
{
    (void)pthread_mutex_unlock(&l->os);
}
#endif

#endif
