/*
 * Traffic secrets and alerts under keys.
 *
 * libssl has no call that sends an alert of one's choice. A verdict that
 * refuses a peer after keys have changed needs one: a TLS 1.3 server whose
 * Finished is out (RFC 8446, 4.4.4: from then on it sends under
 * server_application_traffic_secret_0), and a TLS 1.3 client that has its
 * handshake's keys (client_handshake_traffic_secret). In both
 * places nothing was sent under that secret yet, so the record is the first
 * one, number 0; and nothing is sent after it, so the SSL object's own
 * counter does not matter.
 *
 * Keys are derived as for the record engine (RFC 8446, 7.3). The sealing is
 * its own: it must do where that engine does not, with CCM, and with records
 * that are the SSL object's because a self-test failed.
 */
#include "sspi/traffic_openssl.h"

#include <string.h>

#include <openssl/evp.h>

#include "sspi/record_openssl.h"

#define IV_LEN 12u  /* RFC 8446, 5.3 */
#define TAG_MAX 16u
#define TYPE_ALERT 21
#define TYPE_DATA 23
#define SUITE_CCM_8 0x1305 /* RFC 8446, B.4: the one with a short tag */

static const struct {
    const char *logged;  /* RFC 9850 */
    const char *derived; /* RFC 8446, 7.1 */
    enum tw_secret secret;
} labels[] = {
    {"CLIENT_HANDSHAKE_TRAFFIC_SECRET ", "c hs traffic",
     TW_CLIENT_HANDSHAKE},
    {"SERVER_HANDSHAKE_TRAFFIC_SECRET ", "s hs traffic",
     TW_SERVER_HANDSHAKE},
    {"CLIENT_TRAFFIC_SECRET_0 ", "c ap traffic", TW_CLIENT_TRAFFIC},
    {"SERVER_TRAFFIC_SECRET_0 ", "s ap traffic", TW_SERVER_TRAFFIC},
    {"EXPORTER_SECRET ", "exp master", TW_EXPORTER},
};

void tw_traffic_note(struct tw_traffic *t, const char *line)
{
    size_t i;

    for (i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
        size_t n = strlen(labels[i].logged);
        const char *hex;

        if (strncmp(line, labels[i].logged, n) != 0) {
            continue;
        }
        hex = strchr(line + n, ' '); /* the client's random comes first */
        if (hex == NULL
            || OPENSSL_hexstr2buf_ex(t->secret[labels[i].secret],
                                     EVP_MAX_MD_SIZE,
                                     &t->len[labels[i].secret], hex + 1,
                                     '\0') != 1) {
            t->len[labels[i].secret] = 0;
        }
        return;
    }
}

int tw_traffic_index(const char *label, size_t len)
{
    for (size_t i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
        if (strlen(labels[i].derived) == len
            && memcmp(labels[i].derived, label, len) == 0) {
            return (int)labels[i].secret;
        }
    }
    return -1;
}

void tw_traffic_wipe(struct tw_traffic *t)
{
    OPENSSL_cleanse(t, sizeof(*t));
}

/* Seals data[0..len) in place behind the header, with the tag behind it.
   CCM wants the lengths told first, and the whole length once more. */
static bool seal(const EVP_CIPHER *cipher, const uint8_t *key,
                 const uint8_t *iv, size_t tag, const uint8_t *header,
                 uint8_t *data, int len)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    bool ccm = EVP_CIPHER_get_mode(cipher) == EVP_CIPH_CCM_MODE;
    bool good;
    int n = 0;

    good = ctx != NULL
           && EVP_EncryptInit_ex2(ctx, cipher, NULL, NULL, NULL) == 1
           && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN,
                                  (int)IV_LEN, NULL) == 1
           && (!ccm
               || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, (int)tag,
                                      NULL) == 1)
           && EVP_EncryptInit_ex2(ctx, NULL, key, iv, NULL) == 1
           && (!ccm || EVP_EncryptUpdate(ctx, NULL, &n, NULL, len) == 1)
           && EVP_EncryptUpdate(ctx, NULL, &n, header, 5) == 1
           && EVP_EncryptUpdate(ctx, data, &n, data, len) == 1 && n == len
           && EVP_EncryptFinal_ex(ctx, data + len, &n) == 1
           && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, (int)tag,
                                  data + len) == 1;
    EVP_CIPHER_CTX_free(ctx);
    return good;
}

size_t tw_traffic_seal_alert(const struct tw_traffic *t,
                             enum tw_secret which, const SSL_CIPHER *suite,
                             int alert, uint8_t *out, size_t room)
{
    const EVP_CIPHER *cipher;
    uint8_t key[EVP_MAX_KEY_LENGTH];
    uint8_t iv[IV_LEN];
    size_t tag = TAG_MAX;
    size_t len = 0;

    if (suite == NULL || t->len[which] == 0) {
        return 0;
    }
    if (SSL_CIPHER_get_protocol_id(suite) == SUITE_CCM_8) {
        tag = 8;
    }
    cipher = EVP_get_cipherbynid(SSL_CIPHER_get_cipher_nid(suite));
    if (cipher == NULL || room < 5 + 3 + tag) {
        return 0;
    }
    out[0] = TYPE_DATA; /* RFC 8446, 5.2: opaque_type, legacy version */
    out[1] = 3;
    out[2] = 3;
    out[3] = 0;
    out[4] = (uint8_t)(3 + tag);
    out[5] = SSL3_AL_FATAL;
    out[6] = (uint8_t)alert;
    out[7] = TYPE_ALERT; /* the inner type */
    /* sequence number 0: the IV is the nonce as it is */
    (void)tw_records_usable(); /* fetches what tw_expand_label works with */
    if (tw_expand_label(t->len[which], t->secret[which], "key", NULL, 0, key,
                        (size_t)EVP_CIPHER_get_key_length(cipher))
        && tw_expand_label(t->len[which], t->secret[which], "iv", NULL, 0,
                           iv, IV_LEN)
        && seal(cipher, key, iv, tag, out, out + 5, 3)) {
        len = 5 + 3 + tag;
    }
    OPENSSL_cleanse(key, sizeof(key));
    OPENSSL_cleanse(iv, sizeof(iv));
    return len;
}
