/*
 * A reference count: the one atomic this code needs. C11 atomics where the
 * compiler has them, Interlocked... with MSVC.
 */
#ifndef TW_CORE_ATOMIC_H
#define TW_CORE_ATOMIC_H

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
struct tw_count {
    volatile long value;
};
static inline void tw_count_init(struct tw_count *c, long value)
{
    c->value = value;
}
static inline void tw_count_up(struct tw_count *c)
{
    (void)_InterlockedIncrement(&c->value);
}
static inline long tw_count_down(struct tw_count *c)
{
    return _InterlockedDecrement(&c->value);
}
static inline long tw_count_get(struct tw_count *c)
{
    return _InterlockedOr(&c->value, 0);
}
#else
#include <stdatomic.h>
struct tw_count {
    atomic_long value;
};
static inline void tw_count_init(struct tw_count *c, long value)
{
    atomic_init(&c->value, value);
}
static inline void tw_count_up(struct tw_count *c)
{
    (void)atomic_fetch_add_explicit(&c->value, 1, memory_order_relaxed);
}
/* The count after; 0 means the caller frees. */
static inline long tw_count_down(struct tw_count *c)
{
    return atomic_fetch_sub_explicit(&c->value, 1, memory_order_acq_rel) - 1;
}
static inline long tw_count_get(struct tw_count *c)
{
    return atomic_load_explicit(&c->value, memory_order_acquire);
}
#endif

#endif
