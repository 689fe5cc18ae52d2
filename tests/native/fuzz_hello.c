/*
 * The pure functions that read a peer's first bytes: record headers, the
 * ClientHello, and what bytes that are no TLS look like. The answer for the
 * whole input must fit the answers for its beginnings.
 */
#include "fuzz.h"

#include "core/hello.h"
#include "core/record.h"
#include "sspi/sspi.h"

static void check_hello(const struct tw_hello *hello)
{
    size_t at = 0;

    HOLDS(memchr(hello->sni, 0, sizeof(hello->sni)) != NULL);
    HOLDS(hello->alpn_len <= sizeof(hello->alpn));
    while (at < hello->alpn_len) {
        HOLDS(hello->alpn[at] > 0);
        at += 1u + hello->alpn[at];
    }
    HOLDS(at == hello->alpn_len);
    HOLDS(hello->version_count <= 16);
}

static enum tw_status parse(const uint8_t *data, size_t len,
                            struct tw_hello *hello, size_t *missing)
{
    struct tw_error err;
    enum tw_status st;
    /* a copy of its own length: reading past it is found */
    uint8_t *copy = malloc(len > 0 ? len : 1);

    HOLDS(copy != NULL);
    memcpy(copy, data, len);
    tw_error_clear(&err);
    *missing = 0;
    st = tw_hello_parse(copy, len, hello, missing, &err);
    free(copy);
    HOLDS(st == TW_DONE || st == TW_WANT_READ || st == TW_E_FORMAT
          || st == TW_E_NOMEM);
    if (st == TW_WANT_READ) {
        HOLDS(*missing > 0);
    }
    if (st == TW_E_FORMAT) {
        HOLDS(err.detail[0] != '\0'
              && err.code == (int32_t)SEC_E_INVALID_TOKEN);
    }
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct tw_hello whole;
    struct tw_hello part;
    enum tw_status st;
    size_t missing;
    size_t n;

    memset(&whole, 0, sizeof(whole));
    st = parse(data, len, &whole, &missing);
    if (st == TW_DONE) {
        check_hello(&whole);
    }
    for (n = len > 64 ? len - 64 : 0; n < len; n++) {
        enum tw_status before;

        memset(&part, 0, sizeof(part));
        before = parse(data, n, &part, &missing);
        /* more bytes never take back what was said */
        if (before == TW_DONE) {
            HOLDS(st == TW_DONE && memcmp(&part, &whole, sizeof(part)) == 0);
        } else if (before == TW_E_FORMAT) {
            HOLDS(st == TW_E_FORMAT);
        }
    }
    n = tw_record_length(data, len);
    HOLDS(n == 0 || (n >= TW_RECORD_HEADER && n <= 65535 + 5));
    HOLDS(tw_record_whole(data, len) <= len);
    HOLDS((tw_record_missing(data, len) == 0) == (n > 0 && n <= len));
    (void)tw_record_check(data, len);
    (void)tw_record_looks_like(data, len);
    return 0;
}
