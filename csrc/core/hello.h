/*
 * Reads a ClientHello before the engine does, so that a server can choose
 * its credentials (RFC 8446, 4.1.2; RFC 6066, 3; RFC 7301). Pure function
 * of the bytes; the message may be spread over several records.
 */
#ifndef TW_CORE_HELLO_H
#define TW_CORE_HELLO_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

struct tw_hello {
    char sni[256];      /* host_name, lower case, "" if none */
    uint8_t alpn[512];  /* (len, bytes)*, as far as it fits */
    size_t alpn_len;
    uint16_t versions[16]; /* supported_versions, else legacy_version */
    size_t version_count;
};

/*
 * data: the client's first bytes. TW_DONE with *out; TW_WANT_READ with
 * *missing (at least 1) if the message is not whole yet; TW_E_FORMAT if
 * this is no ClientHello: err->detail names what it looks like ("a plain
 * HTTP request", "an SSLv2 hello", ...), err->code is SEC_E_INVALID_TOKEN.
 * A ClientHello of more than 64 KiB is TW_E_FORMAT.
 */
enum tw_status tw_hello_parse(const uint8_t *data, size_t len,
                              struct tw_hello *out, size_t *missing,
                              struct tw_error *err);

#endif
