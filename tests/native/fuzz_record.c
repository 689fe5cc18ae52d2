/*
 * Record headers: what is said of a stream's beginning stays true with more
 * of it, and whole records are as long as they say.
 */
#include "fuzz.h"

#include "core/record.h"

/* A copy of its own length: reading past it is found. */
static uint8_t *copied(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len > 0 ? len : 1);

    HOLDS(copy != NULL);
    memcpy(copy, data, len);
    return copy;
}

static void first_record(const uint8_t *data, size_t len)
{
    enum tw_record_fault fault = TW_RECORD_OK;
    size_t length = tw_record_length(data, len);
    size_t n;

    for (n = 0; n <= len && n <= TW_RECORD_HEADER + 1; n++) {
        enum tw_record_fault now = tw_record_check(data, n);
        size_t missing = tw_record_missing(data, n);

        HOLDS(fault == TW_RECORD_OK || now == fault);
        fault = now;
        if (n < TW_RECORD_HEADER) {
            HOLDS(tw_record_length(data, n) == 0);
            HOLDS(missing == TW_RECORD_HEADER - n);
        } else {
            HOLDS(tw_record_length(data, n) == length);
            HOLDS(missing == (n < length ? length - n : 0));
        }
    }
    HOLDS(tw_record_check(data, len) == fault);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    uint8_t *copy = copied(data, len);
    size_t at = 0;

    (void)tw_record_looks_like(copy, len);
    for (;;) {
        size_t length = tw_record_length(copy + at, len - at);

        first_record(copy + at, len - at);
        if (length == 0 || length > len - at) {
            break;
        }
        HOLDS(length >= TW_RECORD_HEADER);
        at += length;
    }
    HOLDS(tw_record_whole(copy, len) == at);
    free(copy);
    return 0;
}
