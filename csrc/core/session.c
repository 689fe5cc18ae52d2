/*
 * The state machine of one TLS channel, over any SecurityFunctionTableW.
 *
 * Theory of operation. One mutex guards everything. `input` holds, from its
 * first unread byte on, three regions:
 *
 *     plain_len bytes   plaintext, decrypted in place, not yet read
 *     plain_skip bytes  what is left of its record(s), of no more use
 *     the rest          ciphertext, for DecryptMessage or the next step
 *
 * so that nothing is moved per record and plaintext always comes before
 * whatever follows it, errors included. `output` holds what goes to the
 * peer. The tokens of a step go to `held` first and are released into
 * `output` only once nothing needs a verdict before: that is the gate.
 *
 * Transitions (state, what happens, then):
 *
 *   INIT         first handshake call                    NEGOTIATING
 *   NEGOTIATING  ClientHello read, ask_credentials       pause CREDENTIALS
 *     "          step, certificate known or done         pause VERDICT
 *     "          step INCOMPLETE_CREDENTIALS             pause CERTIFICATE,
 *                   or the same input again with USE_SUPPLIED_CREDS, once
 *     "          step CONTINUE_NEEDED                    NEGOTIATING
 *     "          step INCOMPLETE_MESSAGE                 WANT_READ
 *     "          step OK, sizes and attributes good      OPEN
 *   pause V.     accepted, engine was suspended          step, even empty
 *     "          accepted, else                          held status counts
 *     "          refused                                 alert, FAILED
 *   OPEN         Decrypt OK                              OPEN
 *     "          Decrypt RENEGOTIATE, step OK            OPEN
 *     "          the same, step CONTINUE or INCOMPLETE   OPEN, renegotiating
 *     "          Decrypt CONTEXT_EXPIRED                 OPEN, read_ended
 *     "          tw_session_shutdown                     OPEN, write_ended
 *   renegot.     step OK, same certificate               OPEN
 *   any          error (an alert is tried), abort        FAILED, for good
 *
 * A step never follows SEC_E_OK of its own accord: Schannel would take it
 * for a wish to authenticate again. It does only after RENEGOTIATE and
 * after ApplyControlToken.
 *
 * Memory lent out (input_reserve, output) is not moved or freed until it
 * comes back, so that a reader in recv() and a writer in send() need not
 * hold the mutex: `input_lent`, `output_lent`.
 */
#include "core/session.h"
#include "core/session_internal.h"

#include <stdlib.h>
#include <string.h>

#define SNI_MAX 255u /* RFC 1035, 2.3.4 */

/* "10.0.0.1", "::1", "[::1]", "fe80::1%eth0": no name for SNI (RFC 6066,
   3). */
static bool is_ip_literal(const char *text)
{
    unsigned int parts = 1;
    unsigned int digits = 0;
    unsigned int value = 0;

    if (strchr(text, ':') != NULL || text[0] == '[') {
        return true;
    }
    for (; *text != '\0'; text++) {
        if (*text == '.') {
            if (digits == 0) {
                return false;
            }
            parts++;
            digits = 0;
            value = 0;
        } else if (*text >= '0' && *text <= '9') {
            digits++;
            value = value * 10 + (unsigned int)(*text - '0');
            if (digits > 3 || value > 255) {
                return false;
            }
        } else {
            return false;
        }
    }
    return parts == 4 && digits > 0;
}

/* The code point at *at, which moves behind it; 0 for malformed UTF-8. */
static uint32_t next_code_point(const unsigned char **at)
{
    const unsigned char *p = *at;
    uint32_t value = *p;
    uint32_t least;
    int more;

    if (value < 0x80) {
        *at = p + 1;
        return value;
    }
    if (value >= 0xF8 || value < 0xC2) {
        return 0;
    }
    more = value >= 0xF0 ? 3 : value >= 0xE0 ? 2 : 1;
    least = more == 3 ? 0x10000 : more == 2 ? 0x800 : 0x80;
    value &= 0x3Fu >> more;
    while (more-- > 0) {
        p++;
        if ((*p & 0xC0u) != 0x80u) {
            return 0;
        }
        value = value << 6 | (*p & 0x3Fu);
    }
    if (value < least || value > 0x10FFFF
        || (value >= 0xD800 && value <= 0xDFFF)) {
        return 0;
    }
    *at = p + 1;
    return value;
}

char *tw_name_copy(const char *name, size_t len)
{
    char *copy = malloc(len + 1);

    if (copy != NULL) {
        memcpy(copy, name, len);
        copy[len] = '\0';
    }
    return copy;
}

bool tw_session_suits_lock_held(const struct tw_session *s,
                                struct tw_credentials *c)
{
    return tw_credentials_provider(c) == s->provider
           && tw_credentials_role(c) == s->role;
}
static enum tw_status set_target(struct tw_session *s, const char *target,
                                 struct tw_error *err)
{
    const unsigned char *at;
    size_t len = target == NULL ? 0 : strlen(target);
    size_t n = 0;
    uint32_t value;

    if (len == 0 || is_ip_literal(target)) {
        return TW_DONE;
    }
    if (target[len - 1] == '.') {
        len--; /* SNI carries no trailing dot */
    }
    if (len == 0 || len > SNI_MAX) {
        return tw_error_set(err, TW_E_ARGUMENT,
                            (int32_t)SEC_E_TARGET_UNKNOWN,
                            "the server name is too long, or none");
    }
    s->sni = tw_name_copy(target, len);
    if (s->sni == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    s->target = calloc(len + 1, sizeof(*s->target));
    if (s->target == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    at = (const unsigned char *)s->sni;
    while (*at != '\0') {
        value = next_code_point(&at);
        if (value == 0) {
            return tw_error_set(err, TW_E_ARGUMENT,
                                (int32_t)SEC_E_TARGET_UNKNOWN,
                                "the server name is not valid UTF-8");
        }
        if (value >= 0x10000) {
            value -= 0x10000;
            s->target[n++] = (SEC_WCHAR)(0xD800 + (value >> 10));
            value = 0xDC00 + (value & 0x3FF);
        }
        s->target[n++] = (SEC_WCHAR)value;
    }
    return TW_DONE;
}

/* SEC_APPLICATION_PROTOCOLS with one list: u32 size of what follows, u32
   extension, u16 size of the names, the names. */
static enum tw_status set_alpn(struct tw_session *s, const uint8_t *names,
                               size_t len, struct tw_error *err)
{
    const uint32_t extension = 2; /* ..NegotiationExt_ALPN */
    uint32_t lists_size;
    uint16_t list_size;
    size_t at = 0;

    if (names == NULL || len == 0) {
        return TW_DONE;
    }
    while (at < len && names[at] != 0 && names[at] < len - at) {
        at += 1u + names[at];
    }
    if (at != len || len > 0xFFFF) {
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "the list of application protocols is "
                            "malformed");
    }
    s->alpn = malloc(10 + len);
    if (s->alpn == NULL) {
        return tw_error_set(err, TW_E_NOMEM, 0, NULL);
    }
    list_size = (uint16_t)len;
    lists_size = (uint32_t)(6 + len);
    memcpy(s->alpn, &lists_size, 4);
    memcpy(s->alpn + 4, &extension, 4);
    memcpy(s->alpn + 8, &list_size, 2);
    memcpy(s->alpn + 10, names, len);
    s->alpn_len = (ULONG)(10 + len);
    return TW_DONE;
}

static enum tw_status set_config(struct tw_session *s,
                                 const struct tw_session_config *config,
                                 struct tw_error *err)
{
    enum tw_status st;
    bool may_lack = config->role == TW_SERVER && config->ask_credentials;

    s->role = config->role;
    s->request_cert = config->request_cert && s->role == TW_SERVER;
    s->ask_verdict = config->ask_verdict;
    s->ask_credentials = may_lack;
    s->ask_certificate = config->ask_certificate && s->role == TW_CLIENT;
    s->ragged_eof = config->ragged_eof;
    if (s->table == NULL) {
        return tw_error_set(err, TW_E_UNSUPPORTED,
                            (int32_t)SEC_E_SECPKG_NOT_FOUND,
                            "the TLS engine %s cannot be used here",
                            s->provider->name);
    }
    if (s->role != TW_CLIENT && s->role != TW_SERVER) {
        return tw_error_set(err, TW_E_ARGUMENT, 0,
                            "the role of the session is unknown");
    }
    if (config->credentials == NULL && !may_lack) {
        return tw_error_set(err, TW_E_ARGUMENT,
                            (int32_t)SEC_E_NO_CREDENTIALS,
                            "credentials are needed");
    }
    if (config->credentials != NULL
        && !tw_session_suits_lock_held(s, config->credentials)) {
        return tw_error_set(err, TW_E_ARGUMENT,
                            (int32_t)SEC_E_UNKNOWN_CREDENTIALS,
                            "the credentials are for the other side of a "
                            "connection, or of another engine");
    }
    s->credentials = tw_credentials_ref(config->credentials);
    st = set_alpn(s, config->alpn, config->alpn_len, err);
    if (st == TW_DONE && s->role == TW_CLIENT) {
        s->handle = tw_credentials_handle(s->credentials, NULL);
        st = set_target(s, config->target, err);
        if (st == TW_DONE && s->handle == NULL) {
            st = tw_error_set(err, TW_E_ARGUMENT,
                              (int32_t)SEC_E_NO_CREDENTIALS,
                              "the credentials are empty");
        }
    }
    return st;
}

struct tw_session *tw_session_new(const struct tw_provider *provider,
                                  const struct tw_session_config *config,
                                  struct tw_error *err)
{
    struct tw_session *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        (void)tw_error_set(err, TW_E_NOMEM, 0, NULL);
        return NULL;
    }
    tw_lock_init(&s->lock);
    s->provider = provider;
    s->table = provider->table();
    tw_error_clear(&s->error);
    tw_buffer_init(&s->input);
    tw_buffer_init(&s->output);
    tw_count_init(&s->has_output, 0);
    tw_buffer_init(&s->retired);
    tw_buffer_init(&s->held);
    SecInvalidateHandle(&s->ctx);
    s->state = TW_INIT;
    if (set_config(s, config, err) != TW_DONE) {
        tw_session_free(s);
        return NULL;
    }
    return s;
}

void tw_session_abort(struct tw_session *s)
{
    tw_lock_acquire(&s->lock);
    (void)tw_error_set(&s->error, TW_E_CLOSED, 0, "the channel is closed");
    (void)tw_session_failed_lock_held(s);
    s->aborted = true;
    s->plain_len = 0;
    s->plain_skip = 0;
    if (!s->input_lent) {
        tw_buffer_free(&s->input);
    }
    tw_lock_release(&s->lock);
}

void tw_session_free(struct tw_session *s)
{
    if (s == NULL) {
        return;
    }
    if (s->has_ctx) {
        (void)s->table->DeleteSecurityContext(&s->ctx);
    }
    if (s->remote != NULL) {
        s->provider->cert_free(s->remote);
    }
    tw_credentials_free(s->credentials);
    tw_buffer_free(&s->input);
    tw_buffer_free(&s->output);
    tw_buffer_free(&s->retired);
    tw_buffer_free(&s->held);
    free(s->target);
    free(s->sni);
    free(s->alpn);
    free(s->hello);
    free(s->facts);
    tw_lock_fini(&s->lock);
    tw_wipe(s, sizeof(*s));
    free(s);
}
