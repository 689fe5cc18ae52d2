/*
 * Records: EncryptMessage and DecryptMessage in SSPI's shape, and the same
 * from the caller's memory to the caller's memory. The record engine does
 * them if it has taken over (takeover_openssl.c), else the SSL object.
 */
#include "sspi/context_openssl.h"

#include <stdlib.h>
#include <string.h>

void tw_octx_stream_sizes(struct tw_octx *c, SecPkgContext_StreamSizes *s)
{
    const SSL_CIPHER *cipher = tw_octx_current_cipher(c);
    int nid = cipher ? SSL_CIPHER_get_cipher_nid(cipher) : NID_undef;

    s->cBuffers = 4;
    s->cbMaximumMessage = 16384;
    s->cbBlockSize = 1;
    s->cbHeader = TW_HEADER;
    if (tw_octx_current_version(c) == TLS1_3_VERSION) {
        s->cbTrailer = 17; /* inner type and tag */
    } else if (nid == NID_chacha20_poly1305) {
        s->cbTrailer = 16;
    } else if (cipher && SSL_CIPHER_is_aead(cipher)) {
        s->cbHeader += 8; /* explicit nonce, RFC 5288, 3 */
        s->cbTrailer = 16;
    } else {
        s->cbHeader += 16; /* IV of a block */
        s->cbTrailer = 48 + 16; /* MAC, then a block of padding */
        s->cbBlockSize = 16;
    }
}

static SECURITY_STATUS record_seal(struct tw_octx *c, SecBuffer *header,
                                   SecBuffer *data, SecBuffer *trailer)
{
    size_t room = (size_t)header->cbBuffer + data->cbBuffer
                  + trailer->cbBuffer;
    uint8_t *at = header->pvBuffer, *gathered = NULL;
    size_t taken = 0, len = data->cbBuffer;
    SECURITY_STATUS st = SEC_E_OK;

    if (at + header->cbBuffer != (uint8_t *)data->pvBuffer
        || at + header->cbBuffer + len != (uint8_t *)trailer->pvBuffer) {
        at = gathered = malloc(room);
        if (!gathered) {
            return SEC_E_INSUFFICIENT_MEMORY;
        }
    }
    c->sink = at;
    c->sink_room = room;
    c->sink_len = 0;
    if (c->records) {
        c->sink_len = tw_records_seal(c->records, SSL3_RT_APPLICATION_DATA,
                                      data->pvBuffer, len, at);
        if (c->sink_len == 0) {
            c->dead = true;
            st = SEC_E_ENCRYPT_FAILURE;
        }
    } else {
        ERR_clear_error();
        if (SSL_write_ex(c->ssl, data->pvBuffer, len, &taken) != 1
            || taken != len || c->out_len > 0
            || c->sink_len < header->cbBuffer + len) {
            st = tw_octx_failure(c);
        }
    }
    if (st == SEC_E_OK) {
        trailer->cbBuffer =
            (ULONG)(c->sink_len - header->cbBuffer - len);
        if (gathered) {
            memcpy(header->pvBuffer, at, header->cbBuffer);
            memcpy(data->pvBuffer, at + header->cbBuffer, len);
            memcpy(trailer->pvBuffer, at + header->cbBuffer + len,
                   trailer->cbBuffer);
        }
    }
    c->sink = NULL;
    c->sink_room = c->sink_len = 0;
    free(gathered);
    return st;
}

/* Opens the record p[0..span) by the SSL object: *n bytes of data at
   dst[0..room). The SSL object takes the whole record before it gives
   plaintext, so the two may lie in the same memory. */
static SECURITY_STATUS object_open(struct tw_octx *c, const uint8_t *p,
                                   size_t span, uint8_t *dst, size_t room,
                                   size_t *n)
{
    SECURITY_STATUS st;
    int r;

    c->in = p;
    c->in_len = span;
    c->in_pos = 0;
    c->saw_handshake = false;
    *n = 0;
    ERR_clear_error();
    do {
        /* one call takes one message; several may lie in a record */
        c->dry = false;
        r = SSL_read_ex(c->ssl, dst, room, n);
    } while (r != 1 && !c->dry
             && SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_READ);
    if (r == 1) {
        st = SEC_E_OK;
    } else {
        *n = 0;
        switch (SSL_get_error(c->ssl, r)) {
        case SSL_ERROR_WANT_READ:
            st = c->saw_handshake ? SEC_I_RENEGOTIATE : SEC_E_OK;
            break;
        case SSL_ERROR_ZERO_RETURN:
            st = SEC_I_CONTEXT_EXPIRED;
            break;
        default:
            st = tw_octx_failure(c);
            OPENSSL_cleanse(dst, room); /* no unproved plaintext */
            break;
        }
    }
    c->in = NULL;
    c->in_len = c->in_pos = 0;
    return st;
}

/* Opens the record p[0..span) in place: plaintext at p + *at. */
static SECURITY_STATUS record_open(struct tw_octx *c, uint8_t *p,
                                   size_t span, size_t *at, size_t *n)
{
    *at = TW_HEADER;
    if (c->records) {
        if (span >= c->records->header) {
            *at = c->records->header;
        }
        return tw_octx_engine_open(c, p, span, p + *at, span - *at, n);
    }
    return object_open(c, p, span, p + TW_HEADER,
                       span > TW_HEADER ? span - TW_HEADER : 0, n);
}

/* Seals src as one record at dst by the SSL object: how long, or 0. */
static size_t object_seal(struct tw_octx *c, const uint8_t *src, size_t len,
                          uint8_t *dst, size_t room)
{
    size_t taken = 0, made = 0;

    c->sink = dst;
    c->sink_room = room;
    c->sink_len = 0;
    ERR_clear_error();
    if (SSL_write_ex(c->ssl, src, len, &taken) == 1 && taken == len
        && c->out_len == 0) {
        made = c->sink_len;
    }
    c->sink = NULL;
    c->sink_room = c->sink_len = 0;
    return made;
}

static bool sent_shutdown(const struct tw_octx *c)
{
    return c->records ? c->sent_shutdown
                      : (SSL_get_shutdown(c->ssl) & SSL_SENT_SHUTDOWN) != 0;
}

SECURITY_STATUS tw_octx_encrypt(PCtxtHandle ctx, ULONG qop,
                                PSecBufferDesc desc, ULONG seq)
{
    struct tw_octx *c = tw_octx_at(ctx);
    SecBuffer *part[3] = { NULL, NULL, NULL };
    SecPkgContext_StreamSizes sizes;

    (void)seq;
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    tw_octx_engage(c);
    if (c->dead || sent_shutdown(c)) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    for (ULONG i = 0; desc && i < desc->cBuffers; i++) {
        SecBuffer *b = &desc->pBuffers[i];
        if (b->BufferType == SECBUFFER_STREAM_HEADER) {
            part[0] = b;
        } else if (b->BufferType == SECBUFFER_DATA) {
            part[1] = b;
        } else if (b->BufferType == SECBUFFER_STREAM_TRAILER) {
            part[2] = b;
        }
    }
    if (qop != 0 || !part[0] || !part[1] || !part[2]
        || !part[0]->pvBuffer || !part[1]->pvBuffer
        || !part[2]->pvBuffer) {
        return SEC_E_INVALID_TOKEN;
    }
    tw_octx_stream_sizes(c, &sizes);
    if (part[0]->cbBuffer < sizes.cbHeader
        || part[2]->cbBuffer < sizes.cbTrailer) {
        return SEC_E_BUFFER_TOO_SMALL;
    }
    if (part[1]->cbBuffer > sizes.cbMaximumMessage) {
        return SEC_E_ENCRYPT_FAILURE;
    }
    if (part[1]->cbBuffer == 0) {
        part[0]->cbBuffer = part[2]->cbBuffer = 0;
        return SEC_E_OK;
    }
    if (c->records && c->out_len > 0) {
        return SEC_E_ENCRYPT_FAILURE; /* that goes first, by seal or step */
    }
    if (c->records && tw_records_due(c->records)
        && c->records->write.count
               >= tw_records_rekey_at + (tw_records_rekey_at >> 2)) {
        /* RFC 8446, 5.5: a step was due long ago, for its KeyUpdate */
        return SEC_E_ENCRYPT_FAILURE;
    }
    part[0]->cbBuffer = sizes.cbHeader;
    return record_seal(c, part[0], part[1], part[2]);
}

SECURITY_STATUS tw_octx_decrypt(PCtxtHandle ctx,
                                PSecBufferDesc desc, ULONG seq,
                                ULONG *qop)
{
    struct tw_octx *c = tw_octx_at(ctx);
    SecBuffer *b;
    uint8_t *p;
    size_t len, span, missing, n, at;
    SECURITY_STATUS st;

    (void)seq;
    if (qop) {
        *qop = 0;
    }
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    if (!desc || desc->cBuffers != 4) {
        return SEC_E_INVALID_TOKEN;
    }
    b = desc->pBuffers;
    if (b[0].BufferType != SECBUFFER_DATA
        || b[1].BufferType != SECBUFFER_EMPTY
        || b[2].BufferType != SECBUFFER_EMPTY
        || b[3].BufferType != SECBUFFER_EMPTY) {
        return SEC_E_INVALID_TOKEN;
    }
    if (c->dead) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    p = b[0].pvBuffer;
    len = b[0].cbBuffer;
    span = tw_octx_record_span(p, len, &missing);
    if (span == 0) {
        tw_octx_report_missing(desc, missing);
        return SEC_E_INCOMPLETE_MESSAGE;
    }
    tw_octx_engage(c);
    st = record_open(c, p, span, &at, &n);
    if (st < 0) {
        return st;
    }
    b[0].BufferType = SECBUFFER_STREAM_HEADER;
    b[0].cbBuffer = (ULONG)at;
    b[1].BufferType = SECBUFFER_DATA;
    b[1].pvBuffer = p + at;
    b[1].cbBuffer = (ULONG)n;
    b[2].BufferType = SECBUFFER_STREAM_TRAILER;
    b[2].pvBuffer = p + at + n;
    b[2].cbBuffer = (ULONG)(span > at + n ? span - at - n : 0);
    if (len > span) {
        b[3].BufferType = SECBUFFER_EXTRA;
        b[3].pvBuffer = p + span;
        b[3].cbBuffer = (ULONG)(len - span);
    }
    return st;
}

SECURITY_STATUS tw_octx_seal(CtxtHandle *ctx, const uint8_t *src, size_t len,
                             uint8_t *dst, size_t room, size_t *taken,
                             size_t *made)
{
    struct tw_octx *c = tw_octx_at(ctx);
    SecPkgContext_StreamSizes sizes;
    size_t around;

    *taken = *made = 0;
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    tw_octx_engage(c);
    if (c->dead || sent_shutdown(c)) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    if (c->records) {
        around = (size_t)c->records->header + c->records->tail;
    } else {
        tw_octx_stream_sizes(c, &sizes);
        around = (size_t)sizes.cbHeader + sizes.cbTrailer;
    }
    while (*taken < len) {
        size_t part = len - *taken < 16384 ? len - *taken : 16384, n;
        if (c->records && tw_records_due(c->records)) {
            /* RFC 8446, 4.6.3 and 5.5 */
            if (!tw_octx_send_update(c)) {
                return tw_octx_records_failed(c, SSL_AD_INTERNAL_ERROR);
            }
        }
        if (c->out_len > 0) {
            if (room - *made < c->out_len + around + part) {
                break;
            }
            memcpy(dst + *made, c->out, c->out_len);
            *made += c->out_len;
            c->out_len = 0;
        }
        if (room - *made < around + part) {
            break;
        }
        if (c->records) {
            n = tw_records_seal(c->records, SSL3_RT_APPLICATION_DATA,
                                src + *taken, part, dst + *made);
        } else {
            n = object_seal(c, src + *taken, part, dst + *made,
                            room - *made);
        }
        if (n == 0) {
            ERR_clear_error();
            c->dead = true;
            return SEC_E_ENCRYPT_FAILURE;
        }
        *taken += part;
        *made += n;
    }
    return SEC_E_OK;
}

SECURITY_STATUS tw_octx_open(CtxtHandle *ctx, const uint8_t *src,
                             size_t len, uint8_t *dst, size_t room,
                             size_t *used, size_t *made)
{
    struct tw_octx *c = tw_octx_at(ctx);
    SECURITY_STATUS st = SEC_E_OK;
    size_t missing, n = 1;

    *used = *made = 0;
    if (!c || !c->open) {
        return SEC_E_INVALID_HANDLE;
    }
    tw_octx_engage(c);
    if (c->dead) {
        return SEC_E_CONTEXT_EXPIRED;
    }
    while (st == SEC_E_OK && n > 0) {
        size_t span = tw_octx_record_span(src + *used, len - *used, &missing);
        size_t most = c->records     ? tw_records_content(c->records, span)
                      : span > TW_HEADER ? span - TW_HEADER
                                      : 0;
        /* A header that is none stands for itself: who reads it judges it. */
        if (span == 0 || tw_octx_header_broken(src + *used, len - *used)
            || most > room - *made) {
            break;
        }
        st = c->records
                 ? tw_octx_engine_open(c, src + *used, span, dst + *made,
                                       room - *made, &n)
                 : object_open(c, src + *used, span, dst + *made, most, &n);
        *used += span;
        *made += n;
    }
    return st;
}
