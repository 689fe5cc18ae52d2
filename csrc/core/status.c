/*
 * Results and their words.
 *
 * Three tables and nothing else: the statuses of status.h, the SSPI codes
 * with a sentence that says what to do about them, and the TLS alerts. A
 * code that the SDK of the day does not declare is left out by #ifdef, so
 * that this file compiles against every header of Windows; the names of
 * sspi.h are macros everywhere, which is what makes that possible.
 *
 * The sentences are for the person in front of the program: what is wrong,
 * and where to look. They never name a function of ours.
 */
#include "core/status.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "sspi/sspi.h"

struct code_entry {
    int32_t code;     /* SECURITY_STATUS or HRESULT */
    const char *name; /* as in winerror.h */
    const char *text; /* a sentence without a full stop */
};

#define CODE(name, text) {(int32_t)(name), #name, text}

static const struct code_entry codes[] = {
    CODE(SEC_E_OK, "no error"),
    CODE(SEC_I_CONTINUE_NEEDED, "the negotiation goes on"),
    CODE(SEC_I_CONTEXT_EXPIRED, "the peer closed the TLS connection"),
    CODE(SEC_I_INCOMPLETE_CREDENTIALS,
         "the server asks for a client certificate"),
    CODE(SEC_I_RENEGOTIATE, "the peer asks for a further negotiation"),
    CODE(SEC_E_INSUFFICIENT_MEMORY, "not enough memory for TLS"),
    CODE(SEC_E_INVALID_HANDLE,
         "the TLS context or credentials are no longer valid"),
    CODE(SEC_E_UNSUPPORTED_FUNCTION,
         "the peers have no protocol version or TLS feature in common; "
         "check the protocols that both sides allow"),
    CODE(SEC_E_TARGET_UNKNOWN,
         "the server name is unknown or no valid name"),
    CODE(SEC_E_INTERNAL_ERROR,
         "the TLS engine failed inside; often a private key that this "
         "account cannot use"),
    CODE(SEC_E_SECPKG_NOT_FOUND, "the TLS engine is not installed"),
    CODE(SEC_E_INVALID_TOKEN,
         "the peer sent something that is not TLS, or malformed TLS; check "
         "that the port speaks TLS"),
    CODE(SEC_E_LOGON_DENIED, "the peer refused the logon"),
    CODE(SEC_E_UNKNOWN_CREDENTIALS,
         "the credentials were not recognised; check that certificate and "
         "private key belong together"),
    CODE(SEC_E_NO_CREDENTIALS,
         "no certificate was given where one is needed, or its private "
         "key cannot be used"),
    CODE(SEC_E_MESSAGE_ALTERED,
         "a message was altered on its way, or damaged"),
    CODE(SEC_E_OUT_OF_SEQUENCE, "a message came out of sequence"),
    CODE(SEC_E_NO_AUTHENTICATING_AUTHORITY,
         "no authority could be reached that can check the credentials"),
    CODE(SEC_E_CONTEXT_EXPIRED, "the TLS connection is already closed"),
    CODE(SEC_E_INCOMPLETE_MESSAGE, "a message is not complete yet"),
    CODE(SEC_E_INCOMPLETE_CREDENTIALS,
         "the server insists on a client certificate and none that suits "
         "it was given"),
    CODE(SEC_E_BUFFER_TOO_SMALL, "a buffer was too small"),
    CODE(SEC_E_WRONG_PRINCIPAL,
         "the peer's certificate is for another name; check the host name, "
         "or the name the certificate was made for"),
    CODE(SEC_E_UNTRUSTED_ROOT,
         "the peer's certificate comes from an authority that is not "
         "trusted here; add its root certificate, or check for a proxy"),
    CODE(SEC_E_ILLEGAL_MESSAGE,
         "the peer sent a message that is not allowed there, or refused "
         "the connection"),
    CODE(SEC_E_CERT_UNKNOWN,
         "the certificate could not be processed"),
    CODE(SEC_E_CERT_EXPIRED,
         "the peer's certificate has expired or is not valid yet; check "
         "the clocks of both machines"),
    CODE(SEC_E_ENCRYPT_FAILURE, "a message could not be encrypted"),
    CODE(SEC_E_DECRYPT_FAILURE,
         "a message could not be decrypted: it was damaged or forged"),
    CODE(SEC_E_ALGORITHM_MISMATCH,
         "the peers have no cipher or algorithm in common; check the "
         "cipher settings of both sides"),
#ifdef SEC_E_CERT_WRONG_USAGE
    CODE(SEC_E_CERT_WRONG_USAGE,
         "the certificate is not meant for this use (its key usage does "
         "not allow it)"),
#endif
#ifdef SEC_E_APPLICATION_PROTOCOL_MISMATCH
    CODE(SEC_E_APPLICATION_PROTOCOL_MISMATCH,
         "the peers have no application protocol (ALPN) in common"),
#endif
#ifdef SEC_E_UNSUPPORTED_PREAUTH
    CODE(SEC_E_UNSUPPORTED_PREAUTH,
         "this kind of authentication is not supported"),
#endif
#ifdef SEC_E_INVALID_PARAMETER
    CODE(SEC_E_INVALID_PARAMETER,
         "the TLS engine does not accept a setting"),
#endif
#ifdef SEC_E_QOP_NOT_SUPPORTED
    CODE(SEC_E_QOP_NOT_SUPPORTED,
         "the TLS engine cannot give the protection asked for"),
#endif
    CODE(E_ACCESSDENIED,
         "access is denied; run elevated, or use what is the user's"),
    CODE(SCARD_E_NO_SMARTCARD,
         "the smart card with the private key is not in a reader; insert it "
         "and connect again"),
    CODE(SCARD_E_NO_READERS_AVAILABLE,
         "no smart card reader is connected; connect it and try again"),
    CODE(SCARD_W_REMOVED_CARD,
         "the smart card with the private key was taken out; insert it and "
         "connect again"),
    CODE(SCARD_W_WRONG_CHV,
         "the PIN of the private key was wrong; connect again with the "
         "right one, before the card is blocked"),
    CODE(SCARD_W_CHV_BLOCKED,
         "the smart card is blocked after too many wrong PINs; its issuer "
         "can unblock it (PUK)"),
    CODE(SCARD_W_CANCELLED_BY_USER,
         "the question for the private key's PIN was cancelled; connect "
         "again and enter it, or choose another certificate"),
    CODE(NTE_PERM,
         "access to the private key is denied: give this account the right "
         "to read it (certlm.msc, All Tasks, Manage Private Keys), or run "
         "elevated"),
    CODE(NTE_BAD_KEYSET,
         "the private key is not there: its container is gone or belongs "
         "to another user; import the certificate with its key again"),
    CODE(NTE_SILENT_CONTEXT,
         "the private key asks its user for a PIN or consent, and nobody "
         "can be asked here; use it in a session with a desktop"),
    CODE(NTE_USER_CANCELLED,
         "the use of the private key was not consented to; connect again "
         "and consent, or choose another certificate"),
    CODE(CRYPT_E_REVOKED, "the certificate was revoked by its issuer"),
    CODE(CRYPT_E_NO_REVOCATION_CHECK,
         "nothing says whether the certificate was revoked: it names no "
         "revocation list, and none was given"),
    CODE(CRYPT_E_REVOCATION_OFFLINE,
         "the revocation service could not be reached; check the network, "
         "or ask for best effort"),
    CODE(CRYPT_E_NOT_FOUND, "no such certificate or object was found"),
    CODE(CRYPT_E_ASN1_BADTAG,
         "the data is not in the expected format (ASN.1)"),
    CODE(TRUST_E_CERT_SIGNATURE,
         "a signature in the certificate chain is wrong"),
    CODE(TRUST_E_BASIC_CONSTRAINTS,
         "a certificate in the chain is no authority's, or its path length "
         "is exceeded"),
    CODE(CERT_E_EXPIRED,
         "a certificate has expired or is not valid yet; check the clocks "
         "of both machines"),
    CODE(CERT_E_VALIDITYPERIODNESTING,
         "the validity periods of the certificate chain do not nest"),
    CODE(CERT_E_ROLE,
         "a certificate is used as an authority's and is none"),
    CODE(CERT_E_CRITICAL,
         "a certificate has a critical extension that is not understood"),
    CODE(CERT_E_PURPOSE, "a certificate is used against its purpose"),
    CODE(CERT_E_UNTRUSTEDROOT,
         "the certificate chain ends in a root that is not trusted here; "
         "add the root certificate, or check for a proxy"),
    CODE(CERT_E_CHAINING,
         "no chain leads from the certificate to a trusted root; the peer "
         "may not send its intermediate certificates"),
    CODE(CERT_E_REVOKED, "the certificate was revoked by its issuer"),
    CODE(CERT_E_REVOCATION_FAILURE,
         "whether the certificate was revoked could not be found out"),
    CODE(CERT_E_CN_NO_MATCH,
         "the certificate is for another name; check the host name, or the "
         "name the certificate was made for"),
    CODE(CERT_E_WRONG_USAGE,
         "the certificate is not meant for this use (its extended key "
         "usage does not allow it)"),
    CODE(CERT_E_INVALID_POLICY,
         "the certificate chain does not meet a required policy"),
    CODE(CERT_E_INVALID_NAME,
         "a name in the certificate chain is excluded or not permitted by "
         "its authority (name constraints)"),
};

struct alert_entry {
    int alert;        /* AlertDescription */
    const char *name; /* as in the RFC */
};

/* RFC 8446, 6; the reserved ones of RFC 5246, 7.2; RFC 6066, 7301 */
static const struct alert_entry alerts[] = {
    {0, "close_notify"},
    {10, "unexpected_message"},
    {20, "bad_record_mac"},
    {21, "decryption_failed"},
    {22, "record_overflow"},
    {30, "decompression_failure"},
    {40, "handshake_failure"},
    {41, "no_certificate"},
    {42, "bad_certificate"},
    {43, "unsupported_certificate"},
    {44, "certificate_revoked"},
    {45, "certificate_expired"},
    {46, "certificate_unknown"},
    {47, "illegal_parameter"},
    {48, "unknown_ca"},
    {49, "access_denied"},
    {50, "decode_error"},
    {51, "decrypt_error"},
    {60, "export_restriction"},
    {70, "protocol_version"},
    {71, "insufficient_security"},
    {80, "internal_error"},
    {86, "inappropriate_fallback"},
    {90, "user_canceled"},
    {100, "no_renegotiation"},
    {109, "missing_extension"},
    {110, "unsupported_extension"},
    {111, "certificate_unobtainable"},
    {112, "unrecognized_name"},
    {113, "bad_certificate_status_response"},
    {114, "bad_certificate_hash_value"},
    {115, "unknown_psk_identity"},
    {116, "certificate_required"},
    {120, "no_application_protocol"},
};

void tw_error_clear(struct tw_error *err)
{
    if (err == NULL) {
        return;
    }
    err->status = TW_DONE;
    err->code = 0;
    err->os = 0;
    err->alert_sent = -1;
    err->alert_received = -1;
    err->detail[0] = '\0'; /* not all of it: each call begins so */
}

/*
 * vsnprintf may cut a UTF-8 sequence in two; the Python floor decodes the
 * detail, so the torn sequence goes as a whole.
 */
static void trim_utf8(char *text)
{
    size_t len = strlen(text);
    size_t at = len;
    unsigned char lead;
    size_t need;

    while (at > 0 && len - at < 4
           && ((unsigned char)text[at - 1] & 0xC0u) == 0x80u) {
        at--;
    }
    if (at == 0) {
        return;
    }
    lead = (unsigned char)text[at - 1];
    if (lead < 0xC0u) {
        return;
    }
    need = lead >= 0xF0u ? 4 : lead >= 0xE0u ? 3 : 2;
    if (len - (at - 1) < need) {
        text[at - 1] = '\0';
    }
}

enum tw_status
tw_error_set(struct tw_error *err, enum tw_status status, int32_t code,
             const char *format, ...)
{
    va_list args;

    if (err == NULL || err->status < 0) {
        return status;
    }
    /* alerts noted before the cause was known stay */
    err->status = status;
    err->code = code;
    err->detail[0] = '\0';
    if (format != NULL) {
        va_start(args, format);
        (void)vsnprintf(err->detail, sizeof(err->detail), format, args);
        va_end(args);
        err->detail[sizeof(err->detail) - 1] = '\0';
        trim_utf8(err->detail);
    }
    return status;
}

const char *tw_status_text(enum tw_status status)
{
    switch (status) {
#define TW_STATUS_CASE(name, value, text) \
    case name:                            \
        return text;
        TW_STATUS_LIST(TW_STATUS_CASE)
#undef TW_STATUS_CASE
    }
    return "unknown status";
}

static const struct code_entry *find_code(int32_t code)
{
    size_t i;

    for (i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        if (codes[i].code == code) {
            return &codes[i];
        }
    }
    return NULL;
}

const char *tw_code_name(int32_t code)
{
    const struct code_entry *entry = find_code(code);

    return entry == NULL ? NULL : entry->name;
}

const char *tw_code_text(int32_t code)
{
    const struct code_entry *entry = find_code(code);

    return entry == NULL ? "the TLS engine reported an error" : entry->text;
}

const char *tw_alert_name(int alert)
{
    size_t i;

    for (i = 0; i < sizeof(alerts) / sizeof(alerts[0]); i++) {
        if (alerts[i].alert == alert) {
            return alerts[i].name;
        }
    }
    return NULL;
}

int tw_alert_for_code(int32_t code)
{
    switch (code) {
    case (int32_t)CERT_E_EXPIRED:
    case (int32_t)CERT_E_VALIDITYPERIODNESTING:
    case (int32_t)SEC_E_CERT_EXPIRED:
        return 45; /* certificate_expired */
    case (int32_t)CRYPT_E_REVOKED:
    case (int32_t)CERT_E_REVOKED:
        return 44; /* certificate_revoked */
    case (int32_t)CERT_E_UNTRUSTEDROOT:
    case (int32_t)CERT_E_CHAINING:
    case (int32_t)SEC_E_UNTRUSTED_ROOT:
        return 48; /* unknown_ca */
    case (int32_t)SEC_E_WRONG_PRINCIPAL:
    case (int32_t)CERT_E_CN_NO_MATCH:
    case (int32_t)CERT_E_INVALID_NAME:
    case (int32_t)CERT_E_ROLE:
    case (int32_t)TRUST_E_CERT_SIGNATURE:
    case (int32_t)TRUST_E_BASIC_CONSTRAINTS:
    case (int32_t)CRYPT_E_ASN1_BADTAG:
        return 42; /* bad_certificate */
#ifdef SEC_E_CERT_WRONG_USAGE
    case (int32_t)SEC_E_CERT_WRONG_USAGE:
#endif
    case (int32_t)CERT_E_WRONG_USAGE:
    case (int32_t)CERT_E_PURPOSE:
    case (int32_t)CERT_E_CRITICAL:
        return 43; /* unsupported_certificate */
    case (int32_t)SEC_E_CERT_UNKNOWN:
    case (int32_t)CERT_E_INVALID_POLICY:
    case (int32_t)CERT_E_REVOCATION_FAILURE:
    case (int32_t)CRYPT_E_NO_REVOCATION_CHECK:
    case (int32_t)CRYPT_E_REVOCATION_OFFLINE:
        return 46; /* certificate_unknown */
    case (int32_t)SEC_E_NO_CREDENTIALS:
        return 116; /* certificate_required */
    case (int32_t)SEC_E_LOGON_DENIED:
        return 49; /* access_denied */
    case (int32_t)SEC_E_MESSAGE_ALTERED:
    case (int32_t)SEC_E_DECRYPT_FAILURE:
        return 20; /* bad_record_mac */
    case (int32_t)SEC_E_OUT_OF_SEQUENCE:
        return 10; /* unexpected_message */
    case (int32_t)SEC_E_ILLEGAL_MESSAGE:
        return 47; /* illegal_parameter */
    case (int32_t)SEC_E_INVALID_TOKEN:
        return 50; /* decode_error */
    case (int32_t)SEC_E_INTERNAL_ERROR:
    case (int32_t)SEC_E_INSUFFICIENT_MEMORY:
    case (int32_t)SEC_E_ENCRYPT_FAILURE:
        return 80; /* internal_error */
#ifdef SEC_E_APPLICATION_PROTOCOL_MISMATCH
    case (int32_t)SEC_E_APPLICATION_PROTOCOL_MISMATCH:
        return 120; /* no_application_protocol */
#endif
    default:
        break;
    }
    /* what else crypt32 says is about a certificate: CRYPT_E_, TRUST_E_
       and CERT_E_ codes by their ranges */
    switch ((uint32_t)code & 0xFFFFF000u) {
    case 0x80092000u:
    case 0x80093000u:
    case 0x80096000u:
    case 0x800B0000u:
        return 46; /* certificate_unknown */
    default:
        return 40; /* handshake_failure */
    }
}
