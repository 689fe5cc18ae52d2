/*
 * TLS 1.3 traffic secrets (RFC 8446, 7.1), as the SSL object logs or derives
 * them, and records sealed with them where libssl has no call to do it.
 */
#ifndef TW_SSPI_TRAFFIC_OPENSSL_H
#define TW_SSPI_TRAFFIC_OPENSSL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <openssl/ssl.h>

enum tw_secret {
    TW_CLIENT_HANDSHAKE,
    TW_SERVER_HANDSHAKE,
    TW_CLIENT_TRAFFIC,
    TW_SERVER_TRAFFIC,
    TW_EXPORTER, /* exporter_master_secret */
    TW_SECRET_COUNT
};

struct tw_traffic {
    uint8_t secret[TW_SECRET_COUNT][EVP_MAX_MD_SIZE];
    size_t len[TW_SECRET_COUNT]; /* 0: not known */
};

/* Takes the secret out of a line of SSL_CTX_set_keylog_callback, if it is
   one of ours (the format: RFC 9850). */
void tw_traffic_note(struct tw_traffic *, const char *line);
/* Which secret is derived under this label (RFC 8446, 7.1); -1: none of
   ours. */
int tw_traffic_index(const char *label, size_t len);
void tw_traffic_wipe(struct tw_traffic *);

/*
 * Seals one fatal alert as the first record under `secret`: its sequence
 * number is 0 (RFC 8446, 5.3). Returns its length in out, 0 if the secret is
 * not known, the suite cannot be used, or room (64 is enough) is short.
 */
size_t tw_traffic_seal_alert(const struct tw_traffic *, enum tw_secret,
                             const SSL_CIPHER *, int alert, uint8_t *out,
                             size_t room);

#endif
