/*
 * The record header, read and judged.
 *
 * type(1) version(2) length(2), then `length` bytes: RFC 8446, 5.1. All
 * functions are pure and take any number of bytes, none included; a header
 * is judged byte by byte as it arrives, so that a peer that speaks another
 * protocol is named at its first bytes instead of waiting for a "record"
 * of 20,000 bytes that never comes.
 */
#include "core/record.h"

#include <string.h>

size_t tw_record_length(const uint8_t *data, size_t len)
{
    if (len < TW_RECORD_HEADER) {
        return 0;
    }
    return TW_RECORD_HEADER + ((size_t)data[3] << 8 | data[4]);
}

size_t tw_record_missing(const uint8_t *data, size_t len)
{
    size_t whole;

    if (len < TW_RECORD_HEADER) {
        return TW_RECORD_HEADER - len;
    }
    whole = tw_record_length(data, len);
    return whole > len ? whole - len : 0;
}

size_t tw_record_whole(const uint8_t *data, size_t len)
{
    size_t at = 0;
    size_t one;

    while (len - at >= TW_RECORD_HEADER) {
        one = tw_record_length(data + at, len - at);
        if (one > len - at) {
            break;
        }
        at += one;
    }
    return at;
}

enum tw_record_fault tw_record_check(const uint8_t *data, size_t len)
{
    if (len >= 1
        && (data[0] < TW_RECORD_CCS || data[0] > TW_RECORD_DATA)) {
        return TW_RECORD_BAD_TYPE;
    }
    if (len >= 2 && data[1] != 3) {
        return TW_RECORD_BAD_VERSION;
    }
    if (len >= TW_RECORD_HEADER
        && tw_record_length(data, len) > TW_RECORD_MAX) {
        return TW_RECORD_TOO_LONG;
    }
    return TW_RECORD_OK;
}

/* Of a longer word its first bytes do, as few as a header has. */
static bool begins(const uint8_t *data, size_t len, const char *with)
{
    size_t n = strlen(with);

    if (len < n && len >= 4) {
        n = len;
    }
    return len >= n && memcmp(data, with, n) == 0;
}

static const struct {
    const char *start; /* first bytes */
    const char *what;  /* with its article */
} looks[] = {
    {"PRI * HTTP/2", "an HTTP/2 preface in plain text"},
    {"GET ", "a plain HTTP request"},
    {"POST ", "a plain HTTP request"},
    {"PUT ", "a plain HTTP request"},
    {"HEAD ", "a plain HTTP request"},
    {"DELETE ", "a plain HTTP request"},
    {"OPTIONS ", "a plain HTTP request"},
    {"PATCH ", "a plain HTTP request"},
    {"TRACE ", "a plain HTTP request"},
    {"CONNECT ", "a plain HTTP proxy request"},
    {"HTTP/", "an HTTP response"},
    {"SSH-", "an SSH greeting"},
    {"RFB ", "a VNC greeting"},
    {"PROXY ", "a PROXY protocol header"},
    {"EHLO ", "an SMTP command"},
    {"HELO ", "an SMTP command"},
    {"+OK", "a POP3 greeting"},
    {"* OK", "an IMAP greeting"},
    {"* PREAUTH", "an IMAP greeting"},
};

const char *tw_record_looks_like(const uint8_t *data, size_t len)
{
    size_t i;

    for (i = 0; i < sizeof(looks) / sizeof(looks[0]); i++) {
        if (begins(data, len, looks[i].start)) {
            return looks[i].what;
        }
    }
    /* "220 mail.example.org ESMTP": a mail server's, or an FTP server's */
    if (len >= 4 && (begins(data, len, "220 ") || begins(data, len, "220-")
                     || begins(data, len, "554 "))) {
        for (i = 4; i + 3 <= len && i < 256; i++) {
            if (memcmp(data + i, "FTP", 3) == 0) {
                return "an FTP greeting";
            }
        }
        return "an SMTP greeting";
    }
    /* RFC 5246, E.2: two bytes of length, MSB set, then CLIENT-HELLO */
    if (len >= 5 && (data[0] & 0x80u) != 0 && data[2] == 1
        && (data[3] == 3 || (data[3] == 0 && data[4] == 2))) {
        return "an SSLv2 hello";
    }
    /* three bytes of length, sequence number 0, protocol version 10 */
    if (len >= 5 && data[0] >= 30 && data[1] == 0 && data[2] == 0
        && data[3] == 0 && data[4] == 10) {
        return "a MySQL greeting";
    }
    /* otherwise: is it text at all? */
    if (len >= 4) {
        for (i = 0; i < len && i < 16; i++) {
            if (!((data[i] >= 0x20 && data[i] < 0x7F) || data[i] == '\r'
                  || data[i] == '\n' || data[i] == '\t')) {
                return NULL;
            }
        }
        return "plain text";
    }
    return NULL;
}
