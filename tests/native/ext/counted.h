/*
 * What every source of the test extensions includes before its first line
 * (-include, /FI): our own calls of malloc and its kin become alloc.c's, which
 * counts them and fails when told to. Python and OpenSSL keep theirs. Macros
 * with arguments, so that members of that name are left alone and that
 * `(malloc)(n)` is the library's.
 */
#ifndef TWAPI_TLS_TESTS_COUNTED_H
#define TWAPI_TLS_TESTS_COUNTED_H

#include <stdlib.h>

void *counted_malloc(size_t n);
void *counted_calloc(size_t n, size_t each);
void *counted_realloc(void *old, size_t n);
void counted_free(void *p);

#define malloc(n) counted_malloc(n)
#define calloc(n, each) counted_calloc(n, each)
#define realloc(old, n) counted_realloc(old, n)
#define free(p) counted_free(p)

#endif
