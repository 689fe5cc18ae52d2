/*
 * Allocation that fails when told to: counted.h has our own calls of malloc,
 * calloc, realloc and free come here.
 */
#include "counted.h"
#include "core/atomic.h"

static struct tw_count made; /* allocations since the last counted_fail */
static struct tw_count live; /* blocks that are alive */
static long fails;           /* which of them fails; 0: none */
static bool onwards;         /* and every one after it */

static bool refused(void)
{
    long number = tw_count_add(&made, 1);

    return fails > 0 && (number == fails || (onwards && number > fails));
}

static void *alive(void *p)
{
    if (p != NULL) {
        (void)tw_count_add(&live, 1);
    }
    return p;
}

void *counted_malloc(size_t n)
{
    return alive(refused() ? NULL : (malloc)(n));
}

void *counted_calloc(size_t n, size_t each)
{
    return alive(refused() ? NULL : (calloc)(n, each));
}

void *counted_realloc(void *old, size_t n)
{
    void *p = refused() ? NULL : (realloc)(old, n);

    return old == NULL ? alive(p) : p;
}

void counted_free(void *p)
{
    if (p != NULL) {
        (void)tw_count_add(&live, -1);
    }
    (free)(p);
}

void counted_fail(long nth, bool onward)
{
    fails = nth;
    onwards = onward;
    tw_count_set(&made, 0);
}

long counted_made(void)
{
    return tw_count_get(&made);
}

long counted_live(void)
{
    return tw_count_get(&live);
}
