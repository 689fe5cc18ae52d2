/*
 * Unit program for the pure parts of core/: records, ClientHello, buffer,
 * words. No engine, no Python. Exit code 0 if all is well.
 *
 *   cc -std=c11 -Icsrc tests/native/test_core.c csrc/core/status.c \
 *      csrc/core/buffer.c csrc/core/record.c csrc/core/hello.c
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/buffer.h"
#include "core/hello.h"
#include "core/record.h"
#include "core/status.h"
#include "sspi/sspi.h"

static int failures;

static void check_at(int good, const char *what, int line)
{
    if (!good) {
        (void)fprintf(stderr, "test_core.c:%d: %s\n", line, what);
        failures++;
    }
}

#define CHECK(x) check_at((x) ? 1 : 0, #x, __LINE__)

static size_t put16(uint8_t *at, size_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
    return 2;
}

static size_t put_extension(uint8_t *at, size_t type, const void *body,
                            size_t len)
{
    put16(at, type);
    put16(at + 2, len);
    memcpy(at + 4, body, len);
    return 4 + len;
}

/* A ClientHello message (without record header) with these extensions. */
static size_t make_hello(uint8_t *out, const uint8_t *extensions,
                         size_t len)
{
    size_t n = 4;

    memset(out, 0, 64);
    n += put16(out + n, 0x0303);
    n += 32;
    out[n++] = 0;
    n += put16(out + n, 2);
    n += put16(out + n, 0x1301);
    out[n++] = 1;
    out[n++] = 0;
    n += put16(out + n, len);
    memcpy(out + n, extensions, len);
    n += len;
    out[0] = 1;
    out[1] = (uint8_t)((n - 4) >> 16);
    put16(out + 2, (n - 4) & 0xFFFF);
    return n;
}

/* Cuts the message into records of `piece` bytes. */
static size_t make_records(uint8_t *out, const uint8_t *message, size_t len,
                           size_t piece)
{
    size_t n = 0;
    size_t part;

    while (len > 0) {
        part = len < piece ? len : piece;
        out[n++] = TW_RECORD_HANDSHAKE;
        n += put16(out + n, 0x0301);
        n += put16(out + n, part);
        memcpy(out + n, message, part);
        n += part;
        message += part;
        len -= part;
    }
    return n;
}

static size_t usual_extensions(uint8_t *out, const char *name, size_t len)
{
    uint8_t body[300];
    size_t n = 0;

    put16(body, len + 3);
    body[2] = 0;
    put16(body + 3, len);
    memcpy(body + 5, name, len);
    n += put_extension(out + n, 0, body, len + 5);
    n += put_extension(out + n, 16, "\0\x0c\2h2\x08http/1.1", 14);
    n += put_extension(out + n, 43, "\4\3\4\3\3", 5);
    return n;
}

static void test_record(void)
{
    const uint8_t two[] = {23, 3, 3, 0, 2, 9, 9, 21, 3, 3, 0, 1, 7, 22};
    const uint8_t long_one[] = {23, 3, 3, 0x48, 0x01};
    const uint8_t longest[] = {23, 3, 3, 0x48, 0x00};

    CHECK(tw_record_length(two, 4) == 0);
    CHECK(tw_record_length(two, 5) == 7);
    CHECK(tw_record_missing(NULL, 0) == 5);
    CHECK(tw_record_missing(two, 4) == 1);
    CHECK(tw_record_missing(two, 5) == 2);
    CHECK(tw_record_missing(two, 7) == 0);
    CHECK(tw_record_whole(two, sizeof(two)) == 13);
    CHECK(tw_record_whole(two, 6) == 0);
    CHECK(tw_record_check(two, 0) == TW_RECORD_OK);
    CHECK(tw_record_check(two, sizeof(two)) == TW_RECORD_OK);
    CHECK(tw_record_check((const uint8_t *)"G", 1) == TW_RECORD_BAD_TYPE);
    CHECK(tw_record_check((const uint8_t *)"\x16\2", 2)
          == TW_RECORD_BAD_VERSION);
    CHECK(tw_record_check(long_one, 5) == TW_RECORD_TOO_LONG);
    CHECK(tw_record_check(longest, 5) == TW_RECORD_OK);
}

static void looks(const char *data, size_t len, const char *expected)
{
    const char *got = tw_record_looks_like((const uint8_t *)data, len);

    if (expected == NULL ? got != NULL
                         : got == NULL || strcmp(got, expected) != 0) {
        (void)fprintf(stderr, "looks_like(%.8s): %s\n", data,
                      got == NULL ? "NULL" : got);
        failures++;
    }
}

static void test_looks(void)
{
    looks("GET / HTTP/1.1\r\n", 16, "a plain HTTP request");
    looks("OPTIO", 5, "a plain HTTP request");
    looks("HTTP/1.1 400 Bad", 16, "an HTTP response");
    looks("PRI * HTTP/2.0\r\n", 16, "an HTTP/2 preface in plain text");
    looks("SSH-2.0-x", 9, "an SSH greeting");
    looks("220 mail ESMTP", 14, "an SMTP greeting");
    looks("220 vsFTPd", 10, "an FTP greeting");
    looks("\x80\x2e\x01\x03\x01", 5, "an SSLv2 hello");
    looks("hello there", 11, "plain text");
    looks("\x01\x02\x03\x04\x05", 5, NULL);
    looks("", 0, NULL);
}

static enum tw_status parse(const uint8_t *data, size_t len,
                            struct tw_hello *out, size_t *missing,
                            struct tw_error *err)
{
    enum tw_status st;
    uint8_t *exact = malloc(len > 0 ? len : 1); /* so that sanitizers see */

    tw_error_clear(err);
    if (len > 0) {
        memcpy(exact, data, len);
    }
    st = tw_hello_parse(exact, len, out, missing, err);
    free(exact);
    return st;
}

static void check_usual(const struct tw_hello *h)
{
    CHECK(strcmp(h->sni, "example.org") == 0);
    CHECK(h->alpn_len == 12);
    CHECK(memcmp(h->alpn, "\2h2\x08http/1.1", 12) == 0);
    CHECK(h->version_count == 2);
    CHECK(h->versions[0] == 0x0304 && h->versions[1] == 0x0303);
}

static void test_hello(void)
{
    static const size_t pieces[] = {16384, 100, 7, 1};
    uint8_t extensions[512];
    uint8_t message[1024];
    uint8_t records[8192];
    struct tw_hello h;
    struct tw_error err;
    size_t missing;
    size_t len;
    size_t n;
    size_t i;
    size_t cut;

    len = usual_extensions(extensions, "Example.ORG", 11);
    len = make_hello(message, extensions, len);
    for (i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        n = make_records(records, message, len, pieces[i]);
        for (cut = 0; cut < n; cut++) {
            CHECK(parse(records, cut, &h, &missing, &err) == TW_WANT_READ);
            CHECK(missing >= 1 && cut + missing <= n);
        }
        CHECK(parse(records, n, &h, &missing, &err) == TW_DONE);
        check_usual(&h);
        /* what follows is of no interest */
        records[n] = 23;
        CHECK(parse(records, n + 1, &h, &missing, &err) == TW_DONE);
    }
    /* no extension block at all: the legacy version counts */
    len = make_hello(message, extensions, 0) - 2;
    put16(message + 2, len - 4);
    n = make_records(records, message, len, 16384);
    CHECK(parse(records, n, &h, &missing, &err) == TW_DONE);
    CHECK(h.version_count == 1 && h.versions[0] == 0x0303);
    CHECK(h.sni[0] == '\0' && h.alpn_len == 0);
    /* names that are no host names count as none */
    len = usual_extensions(extensions, "a\0b", 3);
    n = make_records(records, message,
                     make_hello(message, extensions, len), 16384);
    CHECK(parse(records, n, &h, &missing, &err) == TW_DONE);
    CHECK(h.sni[0] == '\0');
    len = usual_extensions(extensions, "b\xc3\xbc.de", 6);
    n = make_records(records, message,
                     make_hello(message, extensions, len), 16384);
    CHECK(parse(records, n, &h, &missing, &err) == TW_DONE);
    CHECK(h.sni[0] == '\0');
}

static void rejected(const uint8_t *data, size_t len, const char *part)
{
    struct tw_hello h;
    struct tw_error err;
    size_t missing;

    CHECK(parse(data, len, &h, &missing, &err) == TW_E_FORMAT);
    CHECK(err.code == (int32_t)SEC_E_INVALID_TOKEN);
    if (strstr(err.detail, part) == NULL) {
        (void)fprintf(stderr, "detail: %s\n", err.detail);
        failures++;
    }
}

static void test_hello_rejects(void)
{
    const uint8_t server_hello[] = {22, 3, 3, 0, 4, 2, 0, 0, 0};
    const uint8_t huge[] = {22, 3, 3, 0, 4, 1, 1, 0, 0};
    const uint8_t alert[] = {21, 3, 3, 0, 2, 2, 40};
    const uint8_t empty[] = {22, 3, 3, 0, 0, 22};
    const uint8_t too_long[] = {22, 3, 3, 0x60, 0};
    uint8_t extensions[1024];
    uint8_t message[2048];
    uint8_t records[4096];
    struct tw_hello h;
    struct tw_error err;
    size_t missing;
    size_t len;
    size_t n;
    size_t i;

    rejected((const uint8_t *)"GET / HTTP/1.1\r\n", 16,
             "a plain HTTP request to a TLS port");
    rejected((const uint8_t *)"\x80\x2e\x01\x03\x01", 5, "SSLv2");
    rejected((const uint8_t *)"\1\2\3\4\5", 5, "not TLS");
    rejected(server_hello, sizeof(server_hello), "no ClientHello");
    rejected(huge, sizeof(huge), "64 KiB");
    rejected(alert, sizeof(alert), "a TLS alert");
    rejected(empty, sizeof(empty), "malformed");
    rejected(too_long, sizeof(too_long), "too long");
    /* the same extension twice */
    len = usual_extensions(extensions, "a.b", 3);
    len += usual_extensions(extensions + len, "a.b", 3);
    n = make_records(records, message,
                     make_hello(message, extensions, len), 16384);
    rejected(records, n, "a malformed ClientHello");
    /* any single byte wrong: never a crash, never beyond the end */
    len = usual_extensions(extensions, "a.b", 3);
    n = make_records(records, message,
                     make_hello(message, extensions, len), 16384);
    for (i = 0; i < n * 256; i++) {
        uint8_t old = records[i / 256];
        records[i / 256] = (uint8_t)i;
        (void)parse(records, n, &h, &missing, &err);
        records[i / 256] = old;
    }
}

/* A block of the pool keeps what was no plaintext, which costs nothing, and
   nothing of what was: wherever it lay, and though it grew. */
static void test_buffer_wipes(void)
{
    struct tw_buffer b;
    uint8_t *at;
    size_t n = 100000;
    size_t i;

    tw_buffer_init(&b);
    at = tw_buffer_reserve(&b, n);
    CHECK(at != NULL);
    memset(at, 0x5a, b.room);
    tw_buffer_commit(&b, n);
    tw_buffer_consume(&b, 10);
    tw_buffer_stain(&b, at + 30);
    tw_buffer_stain(&b, at + 20);
    tw_buffer_consume(&b, n);
    tw_buffer_relax(&b);
    CHECK(b.data == NULL);
    CHECK(tw_buffer_reserve(&b, n) == at);
    for (i = 0; i < 30; i++) {
        CHECK(at[i] == 0);
    }
    CHECK(at[30] == 0x5a && at[n - 1] == 0x5a);
    /* What moves to larger memory takes its stain along. */
    tw_buffer_free(&b);
    at = tw_buffer_reserve(&b, 600);
    CHECK(at != NULL);
    tw_buffer_commit(&b, 600);
    tw_buffer_stain(&b, at + 500);
    tw_buffer_consume(&b, 400);
    CHECK(tw_buffer_reserve(&b, n) != NULL);
    CHECK(b.secret == 100);
    tw_buffer_consume(&b, 50);
    CHECK(tw_buffer_reserve(&b, b.room + 1) != NULL);
    CHECK(b.secret == 50);
    tw_buffer_free(&b);
    CHECK(b.secret == 0);
}

static void test_buffer(void)
{
    struct tw_buffer b;
    uint8_t *at;
    size_t i;

    tw_buffer_init(&b);
    CHECK(tw_buffer_length(&b) == 0 && tw_buffer_head(&b) == NULL);
    CHECK(tw_buffer_append(&b, "abc", 3));
    tw_buffer_consume(&b, 1);
    CHECK(tw_buffer_length(&b) == 2);
    CHECK(memcmp(tw_buffer_head(&b), "bc", 2) == 0);
    /* the tail is too short: content moves to the front */
    at = tw_buffer_reserve(&b, b.room - 2);
    CHECK(at == b.data + 2 && b.start == 0);
    CHECK(memcmp(tw_buffer_head(&b), "bc", 2) == 0);
    for (i = 0; i < 3000; i++) {
        CHECK(tw_buffer_append(&b, "0123456789", 10));
    }
    CHECK(tw_buffer_length(&b) == 30002);
    CHECK(memcmp(tw_buffer_head(&b) + 29992, "0123456789", 10) == 0);
    CHECK(tw_buffer_reserve(&b, SIZE_MAX - 5) == NULL);
    CHECK(tw_buffer_length(&b) == 30002);
    tw_buffer_relax(&b);
    CHECK(b.data != NULL);
    tw_buffer_consume(&b, 99999);
    CHECK(tw_buffer_length(&b) == 0);
    tw_buffer_relax(&b);
    CHECK(b.data == NULL && b.room == 0);
    tw_buffer_free(&b);
}

static void test_status(void)
{
    struct tw_error err;
    char text[600];

    tw_error_clear(&err);
    CHECK(err.alert_sent == -1 && err.alert_received == -1);
    CHECK(tw_error_set(&err, TW_E_TLS, 5, "%s %d", "a", 1) == TW_E_TLS);
    CHECK(strcmp(err.detail, "a 1") == 0);
    (void)tw_error_set(&err, TW_E_OS, 6, "b");
    CHECK(err.status == TW_E_TLS && err.code == 5);
    CHECK(tw_error_set(NULL, TW_E_OS, 0, NULL) == TW_E_OS);
    /* cut between characters, not within one */
    tw_error_clear(&err);
    memset(text, 'x', 254);
    memcpy(text + 254, "\xc3\xbc", 3);
    (void)tw_error_set(&err, TW_E_TLS, 0, "%s", text);
    CHECK(strlen(err.detail) == 254);
    CHECK(strcmp(tw_code_name((int32_t)SEC_E_WRONG_PRINCIPAL),
                 "SEC_E_WRONG_PRINCIPAL")
          == 0);
    CHECK(tw_code_name(12345) == NULL && tw_code_text(12345) != NULL);
    CHECK(strcmp(tw_alert_name(48), "unknown_ca") == 0);
    CHECK(tw_alert_name(5) == NULL);
    CHECK(tw_alert_for_code((int32_t)CERT_E_EXPIRED) == 45);
    CHECK(tw_alert_for_code((int32_t)CRYPT_E_REVOKED) == 44);
    CHECK(tw_alert_for_code((int32_t)CERT_E_UNTRUSTEDROOT) == 48);
    CHECK(tw_alert_for_code((int32_t)SEC_E_WRONG_PRINCIPAL) == 42);
    CHECK(tw_alert_for_code((int32_t)0x800B01FF) == 46);
    CHECK(tw_alert_for_code(-1) == 40);
    CHECK(strcmp(tw_status_text(TW_DONE), "done") == 0);
}

int main(void)
{
    test_record();
    test_looks();
    test_hello();
    test_hello_rejects();
    test_buffer();
    test_buffer_wipes();
    test_status();
    if (failures > 0) {
        (void)fprintf(stderr, "%d failures\n", failures);
    }
    return failures > 0 ? 1 : 0;
}
