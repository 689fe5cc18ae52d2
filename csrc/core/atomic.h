/*
 * The few atomics that this code needs: counts, flags, and a pointer that
 * is set once. C11's where the compiler has them, Interlocked... with MSVC.
 * What is not said to be weaker is ordered with everything before and after.
 */
#ifndef TW_CORE_ATOMIC_H
#define TW_CORE_ATOMIC_H

#include <stdbool.h>
#include <stddef.h>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
struct tw_count {
    volatile long value;
};
struct tw_pointer {
    void *volatile value;
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
/* For a look that nothing is concluded from but what this thread did. */
static inline long tw_count_glance(struct tw_count *c)
{
    return c->value;
}
static inline void tw_count_set(struct tw_count *c, long value)
{
    (void)_InterlockedExchange(&c->value, value);
}
/* Adds n; the value after. */
static inline long tw_count_add(struct tw_count *c, long n)
{
    return _InterlockedExchangeAdd(&c->value, n) + n;
}
/* Sets `to` if the value is `from`. */
static inline bool tw_count_swap(struct tw_count *c, long from, long to)
{
    return _InterlockedCompareExchange(&c->value, to, from) == from;
}
/* Adds the bits; the value before. */
static inline long tw_count_or(struct tw_count *c, long bits)
{
    return _InterlockedOr(&c->value, bits);
}
static inline void *tw_pointer_get(struct tw_pointer *p)
{
    return _InterlockedCompareExchangePointer(&p->value, NULL, NULL);
}
static inline void tw_pointer_set(struct tw_pointer *p, void *value)
{
    (void)_InterlockedExchangePointer(&p->value, value);
}
static inline void tw_fence(void)
{
    volatile long here = 0;

    (void)_InterlockedOr(&here, 0);
}
#else
#include <stdatomic.h>
struct tw_count {
    atomic_long value;
};
struct tw_pointer {
    _Atomic(void *) value;
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
/* For a look that nothing is concluded from but what this thread did. */
static inline long tw_count_glance(struct tw_count *c)
{
    return atomic_load_explicit(&c->value, memory_order_relaxed);
}
static inline void tw_count_set(struct tw_count *c, long value)
{
    atomic_store_explicit(&c->value, value, memory_order_release);
}
/* Adds n; the value after. */
static inline long tw_count_add(struct tw_count *c, long n)
{
    return atomic_fetch_add(&c->value, n) + n;
}
/* Sets `to` if the value is `from`. */
static inline bool tw_count_swap(struct tw_count *c, long from, long to)
{
    return atomic_compare_exchange_strong(&c->value, &from, to);
}
/* Adds the bits; the value before. */
static inline long tw_count_or(struct tw_count *c, long bits)
{
    return atomic_fetch_or(&c->value, bits);
}
static inline void *tw_pointer_get(struct tw_pointer *p)
{
    return atomic_load_explicit(&p->value, memory_order_acquire);
}
static inline void tw_pointer_set(struct tw_pointer *p, void *value)
{
    atomic_store_explicit(&p->value, value, memory_order_release);
}
/* What comes before is seen by whoever's fence comes later. */
static inline void tw_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}
#endif

#endif
