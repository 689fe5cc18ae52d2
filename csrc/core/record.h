/*
 * The record header (RFC 8446, 5.1; RFC 5246, 6.2.1): pure functions.
 */
#ifndef TW_CORE_RECORD_H
#define TW_CORE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TW_RECORD_HEADER 5u
#define TW_RECORD_PLAIN_MAX 16384u
#define TW_RECORD_CIPHER_MAX (16384u + 2048u) /* RFC 5246, 6.2.3 */
#define TW_RECORD_MAX (TW_RECORD_HEADER + TW_RECORD_CIPHER_MAX)

#define TW_RECORD_CCS 20
#define TW_RECORD_ALERT 21
#define TW_RECORD_HANDSHAKE 22
#define TW_RECORD_DATA 23

enum tw_record_fault {
    TW_RECORD_OK,
    TW_RECORD_BAD_TYPE,   /* no TLS content type */
    TW_RECORD_BAD_VERSION, /* major is not 3 */
    TW_RECORD_TOO_LONG
};

/* Length of the whole first record, header included; 0: not known yet. */
size_t tw_record_length(const uint8_t *data, size_t len);
/* Bytes lacking for one whole record: 0 if it is there. With less than a
   header, the rest of the header. */
size_t tw_record_missing(const uint8_t *data, size_t len);
/* How many bytes at the start of data are whole records. */
size_t tw_record_whole(const uint8_t *data, size_t len);
/* Judges a header as soon as its bytes are there (OK with fewer). */
enum tw_record_fault tw_record_check(const uint8_t *data, size_t len);
/* What bytes that are no TLS record look like: "a plain HTTP request", "an
   HTTP response", "an SMTP greeting", ...; NULL if nothing known. */
const char *tw_record_looks_like(const uint8_t *data, size_t len);

#endif
