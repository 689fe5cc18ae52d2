/*
 * What every source of the floors includes before its first line (-include,
 * /FI) where it is compiled for tests: our own calls of malloc and its kin
 * become counted.c's, which counts them and fails when told to. Python and
 * OpenSSL keep theirs. Macros with arguments, so that members of that name
 * are left alone and that `(malloc)(n)` is the library's.
 */
#ifndef TW_TESTS_COUNTED_H
#define TW_TESTS_COUNTED_H

#include <stdbool.h>
#include <stdlib.h>

void *counted_malloc(size_t n);
void *counted_calloc(size_t n, size_t each);
void *counted_realloc(void *old, size_t n);
void counted_free(void *p);

/* From now on the nth allocation fails (0: none), and with onward every one
   after it. For a program in which one thread allocates. */
void counted_fail(long nth, bool onward);
long counted_made(void); /* allocations since then */
long counted_live(void); /* blocks that are alive */

#define malloc(n) counted_malloc(n)
#define calloc(n, each) counted_calloc(n, each)
#define realloc(old, n) counted_realloc(old, n)
#define free(p) counted_free(p)

#endif
