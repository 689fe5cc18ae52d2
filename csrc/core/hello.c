/*
 * ClientHello, read without an engine.
 *
 * Two layers: find_message() walks the records and yields the handshake
 * message, in place when one record holds it (the usual case), else
 * gathered on the heap; parse_body() reads the message with a bounded
 * cursor. Every length is checked against what encloses it before it is
 * used, and nothing is trusted to be there. What a server does not choose
 * by (cipher suites, key shares) is skipped: the engine judges those.
 *
 * A name in SNI that is no ASCII host name counts as no name: it must not
 * reach a look-up, a log line or a C string it could cut short.
 */
#include "core/hello.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/record.h"
#include "sspi/sspi.h"

#define HELLO_MAX 65536u     /* of the message with its header */
#define FRAGMENTS_MAX 4096u  /* records one message may be cut into */
#define MESSAGE_HEADER 4u    /* type, 24 bits of length */
#define CLIENT_HELLO 1
#define EXT_SERVER_NAME 0
#define EXT_ALPN 16
#define EXT_SUPPORTED_VERSIONS 43

struct cursor {
    const uint8_t *at; /* next byte */
    size_t left;       /* bytes that remain */
};

static bool skip(struct cursor *c, size_t n)
{
    if (c->left < n) {
        return false;
    }
    c->at += n;
    c->left -= n;
    return true;
}

static bool read_number(struct cursor *c, size_t bytes, size_t *out)
{
    size_t value = 0;
    size_t i;

    if (c->left < bytes) {
        return false;
    }
    for (i = 0; i < bytes; i++) {
        value = value << 8 | c->at[i];
    }
    *out = value;
    return skip(c, bytes);
}

/* A vector with its length in front: `out` covers its content. */
static bool read_vector(struct cursor *c, size_t length_bytes,
                        struct cursor *out)
{
    size_t n;

    if (!read_number(c, length_bytes, &n) || c->left < n) {
        return false;
    }
    out->at = c->at;
    out->left = n;
    return skip(c, n);
}

static void copy_name(const struct cursor *name, char *out, size_t room)
{
    size_t i;
    uint8_t ch;

    if (name->left >= room) {
        return;
    }
    for (i = 0; i < name->left; i++) {
        ch = name->at[i];
        if (ch <= 0x20 || ch >= 0x7F) {
            out[0] = '\0';
            return;
        }
        out[i] = (char)(ch >= 'A' && ch <= 'Z' ? ch + ('a' - 'A') : ch);
    }
    out[i] = '\0';
}

/* RFC 6066, 3: ServerNameList */
static bool parse_sni(struct cursor body, struct tw_hello *out)
{
    struct cursor list;
    struct cursor name;
    size_t type;

    if (!read_vector(&body, 2, &list) || body.left != 0
        || list.left == 0) {
        return false;
    }
    while (list.left > 0) {
        if (!read_number(&list, 1, &type) || !read_vector(&list, 2, &name)
            || name.left == 0) {
            return false;
        }
        if (type == 0 && out->sni[0] == '\0') {
            copy_name(&name, out->sni, sizeof(out->sni));
        }
    }
    return true;
}

/* RFC 7301, 3.1: ProtocolNameList */
static bool parse_alpn(struct cursor body, struct tw_hello *out)
{
    struct cursor list;
    struct cursor name;
    bool fits = true;

    if (!read_vector(&body, 2, &list) || body.left != 0
        || list.left == 0) {
        return false;
    }
    while (list.left > 0) {
        if (!read_vector(&list, 1, &name) || name.left == 0) {
            return false;
        }
        fits = fits
               && sizeof(out->alpn) - out->alpn_len >= name.left + 1;
        if (fits) {
            out->alpn[out->alpn_len] = (uint8_t)name.left;
            memcpy(out->alpn + out->alpn_len + 1, name.at, name.left);
            out->alpn_len += name.left + 1;
        }
    }
    return true;
}

/* RFC 8446, 4.2.1 */
static bool parse_versions(struct cursor body, struct tw_hello *out)
{
    struct cursor list;
    size_t version;

    if (!read_vector(&body, 1, &list) || body.left != 0 || list.left == 0
        || list.left % 2 != 0) {
        return false;
    }
    while (list.left > 0) {
        if (!read_number(&list, 2, &version)) {
            return false;
        }
        if (out->version_count
            < sizeof(out->versions) / sizeof(out->versions[0])) {
            out->versions[out->version_count++] = (uint16_t)version;
        }
    }
    return true;
}

static bool parse_extensions(struct cursor list, struct tw_hello *out)
{
    struct cursor body;
    size_t type;
    unsigned int seen = 0; /* none of the three may come twice */
    unsigned int bit;
    bool good;

    while (list.left > 0) {
        if (!read_number(&list, 2, &type)
            || !read_vector(&list, 2, &body)) {
            return false;
        }
        switch (type) {
        case EXT_SERVER_NAME:
            bit = 1;
            good = parse_sni(body, out);
            break;
        case EXT_ALPN:
            bit = 2;
            good = parse_alpn(body, out);
            break;
        case EXT_SUPPORTED_VERSIONS:
            bit = 4;
            good = parse_versions(body, out);
            break;
        default:
            bit = 0;
            good = true;
            break;
        }
        if (!good || (seen & bit) != 0) {
            return false;
        }
        seen |= bit;
    }
    return true;
}

/* RFC 8446, 4.1.2; extensions may be absent (RFC 5246, 7.4.1.2) */
static bool parse_body(struct cursor c, struct tw_hello *out)
{
    struct cursor part;
    size_t legacy;

    if (!read_number(&c, 2, &legacy) || !skip(&c, 32)
        || !read_vector(&c, 1, &part) || part.left > 32
        || !read_vector(&c, 2, &part) || part.left < 2
        || part.left % 2 != 0
        || !read_vector(&c, 1, &part) || part.left < 1) {
        return false;
    }
    if (c.left > 0) {
        if (!read_vector(&c, 2, &part) || c.left != 0
            || !parse_extensions(part, out)) {
            return false;
        }
    }
    if (out->version_count == 0) {
        out->versions[0] = (uint16_t)legacy;
        out->version_count = 1;
    }
    return true;
}

static enum tw_status reject(struct tw_error *err, const char *what)
{
    return tw_error_set(err, TW_E_FORMAT, (int32_t)SEC_E_INVALID_TOKEN,
                        "the peer sent %s to a TLS port", what);
}

/* What is wrong with a first record; TW_DONE if nothing is so far. */
static enum tw_status check_record(const uint8_t *data, size_t len,
                                   bool first, struct tw_error *err)
{
    const char *what;

    switch (tw_record_check(data, len)) {
    case TW_RECORD_OK:
        break;
    case TW_RECORD_TOO_LONG:
        return reject(err, "a TLS record that is too long");
    case TW_RECORD_BAD_TYPE:
    case TW_RECORD_BAD_VERSION:
        what = first ? tw_record_looks_like(data, len) : NULL;
        return reject(err, what != NULL ? what
                                        : "something that is not TLS");
    }
    if (len >= 1 && data[0] != TW_RECORD_HANDSHAKE) {
        return reject(err, data[0] == TW_RECORD_ALERT
                               ? "a TLS alert instead of a ClientHello"
                               : "a TLS record that is no ClientHello");
    }
    return TW_DONE;
}

/*
 * Length of the whole message from the bytes at hand, header included; 0
 * while they are too few, SIZE_MAX if it is none that is taken.
 */
static size_t message_length(const uint8_t *head, size_t have)
{
    size_t n;

    if (have >= 1 && head[0] != CLIENT_HELLO) {
        return SIZE_MAX;
    }
    if (have < MESSAGE_HEADER) {
        return 0;
    }
    n = MESSAGE_HEADER
        + ((size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3]);
    return n > HELLO_MAX ? SIZE_MAX : n;
}

/*
 * Walks the records until the message is whole. *copied is the number of
 * its bytes that are there, *total its length; with `copy` they are
 * gathered at that place.
 */
static enum tw_status walk(const uint8_t *data, size_t len, uint8_t *copy,
                           size_t *copied, size_t *total, size_t *missing,
                           struct tw_error *err)
{
    uint8_t head[MESSAGE_HEADER];
    size_t have = 0;
    size_t at = 0;
    size_t body;
    size_t n;
    size_t i;
    size_t records;

    *total = 0;
    for (records = 0; records < FRAGMENTS_MAX; records++) {
        if (len - at < TW_RECORD_HEADER) {
            *missing = TW_RECORD_HEADER - (len - at);
            return TW_WANT_READ;
        }
        if (check_record(data + at, len - at, at == 0, err) != TW_DONE) {
            return TW_E_FORMAT;
        }
        body = tw_record_length(data + at, len - at) - TW_RECORD_HEADER;
        if (body == 0 || body > TW_RECORD_PLAIN_MAX) {
            return reject(err, "a malformed TLS record");
        }
        n = len - at - TW_RECORD_HEADER;
        n = n < body ? n : body;
        data += at + TW_RECORD_HEADER;
        len -= at + TW_RECORD_HEADER;
        for (i = 0; i < n && have + i < MESSAGE_HEADER; i++) {
            head[have + i] = data[i];
        }
        if (copy != NULL) {
            i = have + n > *copied ? *copied - have : n;
            memcpy(copy + have, data, i);
        }
        have += n;
        *total = message_length(head, have);
        if (*total == SIZE_MAX) {
            return reject(err, have >= MESSAGE_HEADER
                                       && head[0] == CLIENT_HELLO
                                   ? "a ClientHello of more than 64 KiB"
                                   : "a TLS message that is no "
                                     "ClientHello");
        }
        if (*total != 0 && have >= *total) {
            *copied = have;
            return TW_DONE;
        }
        if (n < body) {
            *missing = body - n;
            return TW_WANT_READ;
        }
        at = n;
    }
    return reject(err, "a ClientHello in too many pieces");
}

enum tw_status tw_hello_parse(const uint8_t *data, size_t len,
                              struct tw_hello *out, size_t *missing,
                              struct tw_error *err)
{
    enum tw_status st;
    struct cursor body;
    uint8_t *copy = NULL;
    size_t copied = 0;
    size_t total = 0;

    memset(out, 0, sizeof(*out));
    *missing = 0;
    st = walk(data, len, NULL, &copied, &total, missing, err);
    if (st != TW_DONE) {
        return st;
    }
    if (tw_record_length(data, len) - TW_RECORD_HEADER >= total) {
        body.at = data + TW_RECORD_HEADER;
    } else {
        copy = malloc(total);
        if (copy == NULL) {
            return tw_error_set(err, TW_E_NOMEM, 0, NULL);
        }
        copied = total;
        st = walk(data, len, copy, &copied, &total, missing, err);
        if (st != TW_DONE) {
            goto done;
        }
        body.at = copy;
    }
    body.at += MESSAGE_HEADER;
    body.left = total - MESSAGE_HEADER;
    if (!parse_body(body, out)) {
        memset(out, 0, sizeof(*out));
        st = reject(err, "a malformed ClientHello");
    }
done:
    free(copy);
    return st;
}
