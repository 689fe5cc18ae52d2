/*
 * The OpenSSL engine: a SecurityFunctionTableW that keeps Schannel's
 * contract over an SSL object. Here are its tables, and what can be asked
 * about a context; context_openssl.h is the map of its other rooms.
 *
 * What is asked is answered from the SSL object as long as the handshake
 * runs, and from `kept` afterwards: the SSL object may be gone by then.
 */
#include "sspi/context_openssl.h"

#include <string.h>

static void widen(SEC_WCHAR *dst, size_t room, const char *src)
{
    size_t n = 0;

    for (; src && src[n] && n + 1 < room; n++) {
        dst[n] = (SEC_WCHAR)(unsigned char)src[n];
    }
    dst[n] = 0;
}

static void cipher_info(struct tw_octx *c, SecPkgContext_CipherInfo *info)
{
    const SSL_CIPHER *cipher = tw_octx_current_cipher(c);

    memset(info, 0, sizeof(*info));
    info->dwVersion = SECPKGCONTEXT_CIPHERINFO_V1;
    info->dwProtocol = (ULONG)tw_octx_current_version(c);
    info->dwCipherSuite = SSL_CIPHER_get_protocol_id(cipher);
    info->dwBaseCipherSuite = info->dwCipherSuite;
    info->dwCipherLen = (ULONG)SSL_CIPHER_get_bits(cipher, NULL);
    widen(info->szCipherSuite, SZ_ALG_MAX_SIZE,
          SSL_CIPHER_standard_name(cipher));
    widen(info->szCipher, SZ_ALG_MAX_SIZE, SSL_CIPHER_get_name(cipher));
}

static SECURITY_STATUS query_context_attributes(PCtxtHandle ctx,
                                                ULONG attribute, void *out)
{
    struct tw_octx *c = tw_octx_at(ctx);

    if (!c || !out) {
        return SEC_E_INVALID_HANDLE;
    }
    if (!c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    tw_octx_engage(c);
    if (!c->kept) {
        return SEC_E_INSUFFICIENT_MEMORY;
    }
    switch (attribute) {
    case SECPKG_ATTR_STREAM_SIZES:
        tw_octx_stream_sizes(c, out);
        return SEC_E_OK;
    case SECPKG_ATTR_CIPHER_INFO:
        cipher_info(c, out);
        return SEC_E_OK;
    case SECPKG_ATTR_CONNECTION_INFO: {
        SecPkgContext_ConnectionInfo *info = out;
        bool tls13 = tw_octx_current_version(c) == TLS1_3_VERSION;
        memset(info, 0, sizeof(*info));
        if (c->role == TW_CLIENT) {
            info->dwProtocol =
                tls13 ? SP_PROT_TLS1_3_CLIENT : SP_PROT_TLS1_2_CLIENT;
        } else {
            info->dwProtocol =
                tls13 ? SP_PROT_TLS1_3_SERVER : SP_PROT_TLS1_2_SERVER;
        }
        info->dwCipherStrength =
            (ULONG)SSL_CIPHER_get_bits(tw_octx_current_cipher(c), NULL);
        return SEC_E_OK;
    }
    case SECPKG_ATTR_SESSION_INFO: {
        SecPkgContext_SessionInfo *info = out;
        memset(info, 0, sizeof(*info));
        info->dwFlags = tw_octx_is_resumed(c) ? SSL_SESSION_RECONNECT : 0;
        return SEC_E_OK;
    }
    case SECPKG_ATTR_APPLICATION_PROTOCOL: {
        SecPkgContext_ApplicationProtocol *alpn = out;
        const uint8_t *name = c->kept->alpn;
        size_t len = c->kept->alpn_len;
        memset(alpn, 0, sizeof(*alpn));
        if (len > 0) {
            alpn->ProtoNegoStatus =
                SecApplicationProtocolNegotiationStatus_Success;
            alpn->ProtoNegoExt =
                SecApplicationProtocolNegotiationExt_ALPN;
            alpn->ProtocolIdSize = (uint8_t)len;
            memcpy(alpn->ProtocolId, name, len);
        }
        return SEC_E_OK;
    }
    default:
        return SEC_E_UNSUPPORTED_FUNCTION;
    }
}

static enum tw_status no_certificate_from_peer(struct tw_error *err)
{
    return tw_error_set(err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS,
                        "the peer sent no certificate");
}

static enum tw_status remote_cert(CtxtHandle *ctx, struct tw_cert **out,
                                  struct tw_error *err)
{
    struct tw_octx *c = tw_octx_at(ctx);

    *out = NULL;
    if (!c) {
        return no_certificate_from_peer(err);
    }
    if (!tw_octx_learn_peer(c)) {
        return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                            "%s", "out of memory");
    }
    if (c->peer && c->flight) {
        *out = tw_openssl_cert_ref(c->peer);
        return TW_DONE;
    }
    return c->open ? no_certificate_from_peer(err) : TW_WANT_READ;
}

static enum tw_status local_cert(CtxtHandle *ctx, struct tw_cert **out,
                                 struct tw_error *err)
{
    struct tw_octx *c = tw_octx_at(ctx);
    STACK_OF(X509) *chain = c && c->kept ? c->kept->chain : NULL;
    X509 *x509 = !c        ? NULL
                 : c->kept ? c->kept->local
                           : SSL_get_certificate(c->ssl);

    *out = NULL;
    if (!x509) {
        return tw_error_set(err, TW_E_NOT_FOUND, SEC_E_NO_CREDENTIALS,
                            "this end has no certificate");
    }
    if (!c->kept) {
        (void)SSL_get0_chain_certs(c->ssl, &chain);
    }
    *out = tw_openssl_cert_new(x509, NULL, chain);
    return *out ? TW_DONE
                : tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                               "%s", "out of memory");
}

static void copy_text(char *dst, size_t room, const char *src)
{
    size_t n = src ? strlen(src) : 0;

    n = n < room ? n : room - 1;
    memcpy(dst, src ? src : "", n);
    dst[n] = '\0';
}

static enum tw_status facts(CtxtHandle *ctx, struct tw_facts *out,
                            struct tw_error *err)
{
    struct tw_octx *c = tw_octx_at(ctx);
    const SSL_CIPHER *cipher = c ? tw_octx_current_cipher(c) : NULL;
    const unsigned char *alpn = NULL;
    const char *name = NULL;
    unsigned alpn_len = 0;
    int group;

    memset(out, 0, sizeof(*out));
    if (!cipher) {
        return tw_error_set(err, TW_E_STATE, SEC_E_INVALID_HANDLE,
                            "the handshake has not come that far");
    }
    out->protocol =
        tw_octx_current_version(c) == TLS1_3_VERSION ? TW_TLS1_3 : TW_TLS1_2;
    out->suite = SSL_CIPHER_get_protocol_id(cipher);
    out->bits = SSL_CIPHER_get_bits(cipher, NULL);
    out->resumed = tw_octx_is_resumed(c);
    copy_text(out->suite_name, sizeof(out->suite_name),
              SSL_CIPHER_standard_name(cipher));
    copy_text(out->cipher_name, sizeof(out->cipher_name),
              SSL_CIPHER_get_name(cipher));
    if (c->kept) {
        name = c->kept->group;
        alpn = c->kept->alpn;
        alpn_len = c->kept->alpn_len;
    } else {
        group = (int)SSL_get_negotiated_group(c->ssl);
        name = group != NID_undef ? SSL_group_to_name(c->ssl, group) : NULL;
        SSL_get0_alpn_selected(c->ssl, &alpn, &alpn_len);
    }
    copy_text(out->group, sizeof(out->group), name);
    if (alpn_len > 0 && alpn_len < sizeof(out->alpn)) {
        memcpy(out->alpn, alpn, alpn_len);
    }
    return TW_DONE;
}

/* RFC 5929, 3 (tls-unique) and 4 (tls-server-end-point). */
static enum tw_status fixed_binding(struct tw_octx *c, enum tw_binding kind,
                                    uint8_t *out, size_t *len,
                                    struct tw_error *err)
{
    const char *prefix = kind == TW_BIND_UNIQUE ? "tls-unique:"
                                                : "tls-server-end-point:";
    size_t at = strlen(prefix), n = 0;
    uint8_t value[EVP_MAX_MD_SIZE];

    if (kind == TW_BIND_UNIQUE) {
        if (c->kept->version == TLS1_3_VERSION) {
            return tw_error_set(err, TW_E_UNSUPPORTED,
                                SEC_E_UNSUPPORTED_FUNCTION,
                                "tls-unique is not defined for TLS 1.3; "
                                "use tls-exporter (RFC 9266)");
        }
        n = c->kept->unique_len;
        memcpy(value, c->kept->unique, n);
    } else {
        X509 *cert = c->role == TW_SERVER ? c->kept->local
                     : c->peer            ? c->peer->x509
                                          : NULL;
        int md = NID_undef;
        const EVP_MD *digest;
        unsigned got = 0;
        if (cert) {
            (void)X509_get_signature_info(cert, &md, NULL, NULL, NULL);
        }
        if (md == NID_md5 || md == NID_sha1) {
            md = NID_sha256;
        }
        digest = EVP_get_digestbynid(md);
        if (!cert || !digest || !X509_digest(cert, digest, value, &got)) {
            return tw_error_set(err, TW_E_NOT_FOUND,
                                SEC_E_UNSUPPORTED_FUNCTION,
                                "no tls-server-end-point for this "
                                "certificate's signature");
        }
        n = got;
    }
    if (at + n > *len) {
        return tw_error_set(err, TW_E_ARGUMENT, SEC_E_BUFFER_TOO_SMALL,
                            "the buffer is too small");
    }
    memcpy(out, prefix, at);
    memcpy(out + at, value, n);
    *len = at + n;
    return TW_DONE;
}

/* RFC 8446, 7.5, and RFC 5705, 4: as SSL_export_keying_material, which
   needs an SSL object. */
static bool export_keys(struct tw_octx *c, const char *label,
                        const uint8_t *context, size_t context_len,
                        uint8_t *out, size_t len)
{
    const EVP_MD *md = SSL_CIPHER_get_handshake_digest(c->kept->cipher);
    uint8_t hash[EVP_MAX_MD_SIZE], secret[EVP_MAX_MD_SIZE], *seed;
    size_t seed_len = 64, hash_len;
    unsigned n = 0;
    bool good;

    if (c->ssl) {
        return SSL_export_keying_material(c->ssl, out, len, label,
                                          strlen(label), context,
                                          context_len, context != NULL)
               == 1;
    }
    if (!md || context_len > 65535) {
        return false;
    }
    hash_len = (size_t)EVP_MD_get_size(md);
    if (c->kept->version == TLS1_3_VERSION) {
        good = EVP_Digest("", 0, hash, &n, md, NULL)
               && tw_expand_label(hash_len, c->kept->exporter, label, hash,
                                  n, secret, hash_len)
               && EVP_Digest(context ? (const void *)context : "",
                             context_len, hash, &n, md, NULL)
               && tw_expand_label(hash_len, secret, "exporter", hash, n, out,
                                  len);
        OPENSSL_cleanse(secret, sizeof(secret));
        return good;
    }
    seed = malloc(64 + 2 + context_len);
    if (!seed) {
        return false;
    }
    memcpy(seed, c->kept->seed, 64);
    if (context) {
        seed[64] = (uint8_t)(context_len >> 8);
        seed[65] = (uint8_t)context_len;
        memcpy(seed + 66, context, context_len);
        seed_len += 2 + context_len;
    }
    good = tw_prf12(hash_len, c->kept->exporter, label, seed, seed_len, out,
                    len);
    free(seed);
    return good;
}

static enum tw_status binding(CtxtHandle *ctx, enum tw_binding kind,
                              const char *label, const uint8_t *context,
                              size_t context_len, uint8_t *out, size_t *len,
                              struct tw_error *err)
{
    struct tw_octx *c = tw_octx_at(ctx);

    if (!c || !c->open) {
        return tw_error_set(err, TW_E_STATE, SEC_E_INVALID_HANDLE,
                            "the handshake is not over");
    }
    tw_octx_engage(c);
    if (!c->kept || !tw_octx_learn_peer(c)) {
        return tw_error_set(err, TW_E_NOMEM, SEC_E_INSUFFICIENT_MEMORY,
                            "%s", "out of memory");
    }
    if (kind != TW_BIND_EXPORTER) {
        return fixed_binding(c, kind, out, len, err);
    }
    ERR_clear_error();
    if (!export_keys(c, label, context, context_len, out, *len)) {
        return tw_openssl_fail(err, TW_E_TLS, SEC_E_UNSUPPORTED_FUNCTION,
                               "keying material cannot be exported");
    }
    return TW_DONE;
}

static enum tw_status issuers(CtxtHandle *ctx, tw_sink sink, void *arg,
                              struct tw_error *err)
{
    struct tw_octx *c = tw_octx_at(ctx);
    const STACK_OF(X509_NAME) *names =
        c && c->ssl ? SSL_get0_peer_CA_list(c->ssl) : NULL;

    for (int i = 0; names && i < sk_X509_NAME_num(names); i++) {
        unsigned char *der = NULL;
        int n = i2d_X509_NAME(sk_X509_NAME_value(names, i), &der);
        bool go_on = n >= 0 && sink(arg, NULL, der, (size_t)n);
        OPENSSL_free(der);
        if (n < 0) {
            return tw_openssl_fail(err, TW_E_NOMEM,
                                   SEC_E_INSUFFICIENT_MEMORY,
                                   "out of memory");
        }
        if (!go_on) {
            break;
        }
    }
    return TW_DONE;
}

static void ocsp(CtxtHandle *ctx, tw_sink sink, void *arg)
{
    struct tw_octx *c = tw_octx_at(ctx);
    const unsigned char *answer = NULL;
    long n = c && c->ssl ? SSL_get_tlsext_status_ocsp_resp(c->ssl, &answer)
                         : -1;

    if (n > 0) {
        (void)sink(arg, NULL, answer, (size_t)n);
    }
}

static int alert_received(CtxtHandle *ctx)
{
    struct tw_octx *c = tw_octx_at(ctx);

    return c ? c->alert_received : -1;
}

static int alert_sent(CtxtHandle *ctx)
{
    struct tw_octx *c = tw_octx_at(ctx);

    return c ? c->alert_sent : -1;
}

static const SecurityFunctionTableW function_table = {
    .FreeCredentialsHandle = tw_ocred_free_handle,
    .InitializeSecurityContextW = tw_octx_initialize,
    .AcceptSecurityContext = tw_octx_accept,
    .DeleteSecurityContext = tw_octx_delete,
    .ApplyControlToken = tw_octx_control,
    .QueryContextAttributesW = query_context_attributes,
    .FreeContextBuffer = tw_octx_free_buffer,
    .EncryptMessage = tw_octx_encrypt,
    .DecryptMessage = tw_octx_decrypt,
};

static const SecurityFunctionTableW *table(void)
{
    return tw_octx_ready() ? &function_table : NULL;
}

static const char *version(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}

static int fips(void)
{
    return EVP_default_properties_is_fips_enabled(NULL) ? 1 : 0;
}

const struct tw_provider tw_provider_openssl = {
    .name = "openssl",
    .caps = 0,
    .table = table,
    .version = version,
    .fips = fips,
    .acquire = tw_ocred_acquire,
    .seal = tw_octx_seal,
    .open = tw_octx_open,
    .verdict = tw_octx_verdict,
    .remote_cert = remote_cert,
    .local_cert = local_cert,
    .facts = facts,
    .binding = binding,
    .issuers = issuers,
    .ocsp = ocsp,
    .alert_received = alert_received,
    .alert_sent = alert_sent,
    .cert_ref = tw_openssl_cert_ref,
    .cert_free = tw_openssl_cert_free,
    .cert_der = tw_openssl_cert_der,
    .cert_chain = tw_openssl_cert_chain,
    .cert_has_key = tw_openssl_cert_has_key,
    .cert_text = tw_openssl_cert_text,
    .cert_info = tw_openssl_cert_info,
    .cert_digest = tw_openssl_cert_digest,
    .cert_verify = tw_openssl_cert_verify,
    .cert_matches = tw_openssl_cert_matches,
    .store_new = tw_openssl_store_new,
    .store_open = tw_openssl_store_open,
    .store_import = tw_openssl_store_import,
    .store_add = tw_openssl_store_add,
    .store_ref = tw_openssl_store_ref,
    .store_free = tw_openssl_store_free,
    .store_count = tw_openssl_store_count,
    .store_get = tw_openssl_store_get,
    .store_export = tw_openssl_store_export,
};

const struct tw_provider *tw_provider_default(void)
{
    return &tw_provider_openssl;
}
