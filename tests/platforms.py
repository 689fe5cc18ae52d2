"""What this platform cannot show, in one place, each with its reason.

Wine's Schannel (secur32 over GnuTLS, crypt32 without CNG keys) is not
Windows'. What it gets wrong is known and listed here by the test's name: such
a test is skipped there, and carried by the OpenSSL engine's run of the same
test, by the scripted table, or by a real Windows in the workflows. Nothing
else is skipped: a test that fails under Wine for another reason is a defect.
"""

from __future__ import annotations

import os
import re
import sys
from fnmatch import fnmatchcase


def wine_version() -> str:
    """Wine's version where it stands in for Windows, else ""."""
    if sys.platform != "win32":
        return ""
    import ctypes

    try:
        tell = ctypes.windll.ntdll.wine_get_version
    except AttributeError:
        return ""
    tell.restype = ctypes.c_char_p
    return bytes(tell()).decode()


def unix_name(path: os.PathLike[str]) -> str:
    """What the system beneath Wine calls a file; "" where there is none."""
    if sys.platform != "win32" or not WINE:
        return ""
    import ctypes

    name = ctypes.windll.kernel32.wine_get_unix_file_name
    name.argtypes = [ctypes.c_wchar_p]
    name.restype = ctypes.c_char_p
    return os.fsdecode(name(os.fspath(path)) or b"")


# How many times as long things may take: sanitizers slow them down.
SLOWER = 6 if "TWAPI_TLS_SANITIZED" in os.environ else 1

WINDOWS = sys.platform == "win32"
WINE = bool(wine_version())
# With GnuTLS' switch Wine's Schannel does TLS 1.3 whatever it is asked for,
# without it TLS 1.2; scripts/windows-lane, LANE_TLS13.
WINE_TLS13 = WINE and bool(os.environ.get("GNUTLS_SYSTEM_PRIORITY_FILE"))


_ALERTS = "Wine tells a bad record or an alert under keys as SEC_E_INTERNAL_ERROR, without a name"
_ASKS = "Wine's servers ask no client for a certificate"
_RESUMED = "Wine has no SECPKG_ATTR_SESSION_INFO: whether a session was resumed is unknown"
_BINDING = "Wine's servers have no channel binding for their own certificate"
_MASK = "Wine heeds no protocol limits in SCH_CREDENTIALS"
_LOCAL = "Wine has no SECPKG_ATTR_LOCAL_CERT_CONTEXT, ISSUER_LIST_EX or number of a cipher suite"
_KEYS = "Wine keeps keys of RSA only"
_PFX = "Wine's PFX import knows one key and its path, and ASCII passwords"
_PLAIN_PFX = "Wine opens a PFX file without encryption by any password"
_OLD_PFX = "crypt32 opens PFX files of RC2 and 3DES"
_SAVED = "Wine saves PKCS #7 as a SignedData without ContentInfo, its content without a type"
_CURVES = "Wine checks no signatures of P-384, P-521 or Edwards curves"
_FETCH = "Wine's revocation provider fetches nothing and heeds no time-out"
_CRL = "Wine takes a stored CRL for proof that a certificate was revoked, never that it was not"
_TICKETS = "Wine's servers send no tickets"
_NO_CIPHERS = "Schannel takes no cipher list"
_OLD_STRENGTH = "Schannel takes a cipher strength with TLS 1.2 only"
_NO_ISSUERS = "Schannel takes issuers' names from a store of the machine only"
_NO_EXPORT = "Schannel exports keying material with TLS 1.3 only"
_WINE_EXPORT = "Wine's function table ends before SetContextAttributesW, which the exporter needs"
_NO_TIMER = "Windows has no interval timers and no SIGALRM"
_RESET = "Winsock drops what was received when the peer resets"
_ALPN = "GnuTLS takes names of at most 32 bytes for ALPN"
_NO_ALPN = "Wine's servers go on where no ALPN name is common"
_ISSUERS = "GnuTLS, beneath Wine, shows no certificate of an issuer that the server does not name"
_RENEGOTIATE = "Wine knows no renegotiation: HelloRequest and KeyUpdate are SEC_E_OK without data"
_STRENGTH = "Wine heeds no cipher strength in SCHANNEL_CRED"
_DER = "crypt32 does not insist on DER in a signature's padding"
_CHAIN = "Wine's servers send no intermediates"
_ROOTS = "the system's roots are a store of Windows, no file that a variable names"
_ANY = "Wine's chains do not know anyExtendedKeyUsage: not valid for the usage asked for"
_WEAK = "Wine finds no key too weak"
_NO_CA = "Wine calls an issuer that is no CA wrong in its usage as well"
_POLICY = "Wine does not understand policy constraints"
_STAPLE = "Wine's revocation provider reads no OCSP answer"
_ANCHOR = "Wine does not know CERT_CHAIN_EXCLUSIVE_ENABLE_CA_FLAG: no intermediate as anchor"
_P7 = "crypt32 does not tell one kind of PKCS #7 from garbage"
_OLD_PEM = "Windows opens no keys encrypted as in old PEM files (Proc-Type)"
_FORMS = "on Windows a serialized store is crypt32's own form, no PEM"
_COUNTS = "counts descriptors, which Windows does not list; windows/soak.py does it"
_BOUND = "how long a client's chain may be is Schannel's own affair"
_EC = "makes a certificate of a P-256 key by hand"

# Patterns of file::name[parameters], as fnmatch has them.
_WINDOWS_LACKS: dict[str, str] = {
    "test_background.py::test_python_ssl_clients_that_break_off*": _RESET,
    "test_certificates.py::test_what_is_not_der_is_refused*": _DER,
    "test_channel.py::test_a_signal_handler_that_raises_ends_a_wait*": _NO_TIMER,
    "test_contexts.py::test_a_clients_chain_is_bounded*": _BOUND,
    "test_contexts.py::test_exporter_of_openssl[[]tls1.2]": _NO_EXPORT,
    "test_contexts.py::test_exporters[[]tls1.2]": _NO_EXPORT,
    "test_credentials.py::test_a_chooser_is_told_the_issuers*": _NO_ISSUERS,
    "test_credentials.py::test_a_server_chooses_by_what_the_client_can_verify*": _NO_CIPHERS,
    "test_credentials.py::test_cipher_strength[[]*-tls1.3]": _OLD_STRENGTH,
    "test_credentials.py::test_ciphers_choose_among_tls_1_2*": _NO_CIPHERS,
    "test_credentials.py::test_many_issuers*": _NO_ISSUERS,
    "test_credentials.py::test_options_that_the_engine_refuses*": _NO_CIPHERS,
    "test_credentials.py::test_root_store_takes_the_systems_place*": _ROOTS,
    "test_interop.py::test_server_refuses_certificate[[]1.3-python]": _RESET,
    "test_stores.py::test_one_form_is_not_taken_for_another*": _FORMS,
    "test_stores.py::test_passwords_that_do_not_fit[[]traditional*": _OLD_PEM,
    "test_stores.py::test_pem_with_key_and_chain[[]*-hunter2-True]": _OLD_PEM,
    "test_stores.py::test_pfx_of_old_ciphers*": _OLD_PFX,
    "test_stores.py::test_pkcs7_without_certificates_is_told_apart*": _P7,
    "test_twapi_commands.py::test_tls_close_1_0*": _COUNTS,
    "test_verify.py::test_exclusive_and_additional_roots*": _ROOTS,
    "test_wire.py::TestSignals::*": _NO_TIMER,
}
_WINE_LACKS: dict[str, str] = {
    "test_bad_input.py::test_a_client_certificate_chooser_that_misbehaves*": _ASKS,
    "test_bad_input.py::test_bad_records_on_an_open_channel*": _ALERTS,
    "test_certificates.py::test_other_keys_serve_too*": _CURVES,
    "test_certificates.py::test_version_1_has_no_extensions*": _EC,
    "test_channel.py::test_facts_of_a_connection*": _BINDING,
    "test_channel.py::test_plaintext_before_a_bad_record*": _ALERTS,
    "test_contexts.py::test_a_damaged_record*": _ALERTS,
    "test_contexts.py::test_a_replayed_record_is_refused*": _ALERTS,
    "test_contexts.py::test_a_server_that_cannot_go_on_says_so*": _ALERTS,
    "test_contexts.py::test_an_unanswered_key_update*": _RENEGOTIATE,
    "test_contexts.py::test_bindings_are_equal_on_both_ends*": _BINDING,
    "test_contexts.py::test_decrypting_into_a_buffer*": _ALERTS,
    "test_contexts.py::test_exporters[[]tls1.3]": _WINE_EXPORT,
    "test_contexts.py::test_exporter_of_openssl[[]tls1.3]": _WINE_EXPORT,
    "test_contexts.py::test_key_update_of_openssl*": _RENEGOTIATE,
    "test_contexts.py::test_negotiation_and_traffic*": _RESUMED,
    "test_contexts.py::test_renegotiation_of_openssl*": _RENEGOTIATE,
    "test_contexts.py::test_rsa_and_ecdsa_servers*": _KEYS,
    "test_credentials.py::test_a_chooser*": _ASKS,
    "test_credentials.py::test_a_client_shows_its_certificate*": _ASKS,
    "test_credentials.py::test_a_server_chooses_by_name*": _LOCAL,
    "test_credentials.py::test_alpn*": _ALPN,
    "test_credentials.py::test_certificates_in_every_shape*": _LOCAL,
    "test_credentials.py::test_cipher_strength[[]strength*": _STRENGTH,
    "test_credentials.py::test_freeing_in_the_middle_hurts_nobody*": _ASKS,
    "test_credentials.py::test_intermediates_go_along*": _CHAIN,
    "test_credentials.py::test_revocation*": _CRL,
    "test_credentials.py::test_the_store_may_be_released_before_it_is_used*": _LOCAL,
    "test_credentials.py::test_versions_that_do_not_meet*": _MASK,
    "test_examples.py::test_listener_requestclientcert*": _ASKS,
    "test_interop.py::test_client_certificate_missing*": _ASKS,
    "test_interop.py::test_client_certificate_refused[[]1.2-*": _ISSUERS,
    "test_interop.py::test_client_certificate_refused[[]1.3-*": _ALERTS,
    "test_interop.py::test_client_resum*": _RESUMED,
    "test_interop.py::test_server_asks_certificate*": _ASKS,
    "test_interop.py::test_server_is_refused*": _ALERTS,
    "test_interop.py::test_server_refuses_certificate[[]*curl]": _ASKS,
    "test_interop.py::test_server_resum*": _RESUMED,
    "test_interop_load.py::test_an_end_in_a_renegotiation*": _RENEGOTIATE,
    "test_interop_load.py::test_client_renegotiation_is_declined*": _RENEGOTIATE,
    "test_interop_load.py::test_client_updates_keys*": _RENEGOTIATE,
    "test_interop_load.py::test_gnutls_client_updates_keys*": _RENEGOTIATE,
    "test_interop_load.py::test_gnutls_renegotiates*": _RENEGOTIATE,
    "test_interop_load.py::test_server_renegotiates*": _RENEGOTIATE,
    "test_interop_load.py::test_server_updates_keys*": _RENEGOTIATE,
    "test_listener.py::test_a_chooser_by_name*": _MASK,
    "test_listener.py::test_client_certificates*": _ASKS,
    "test_resumption.py::*": _RESUMED,
    "test_session.py::test_a_flipped_bit*": _ALERTS,
    "test_session.py::test_a_refusal_of_a_resumed_session*": _RESUMED,
    "test_session.py::test_a_server_may_be_judged_or_dropped*[[]refuse-1.3]": _ALERTS,
    "test_session.py::test_alpn_and_its_mismatch*": _NO_ALPN,
    "test_session.py::test_channel_bindings_agree*": _BINDING,
    "test_session.py::test_handshake_and_both_directions*": _RESUMED,
    "test_session.py::test_resumption*": _RESUMED,
    "test_session.py::test_server_refusal_reaches*[[]False*": _ASKS,
    "test_session.py::test_server_refusal_reaches*[[]True-1.3]": _ALERTS,
    "test_starttls.py::test_credentials_by_a_chooser*": _MASK,
    "test_stores.py::test_a_key_of_another_certificate[[]pfx]": _PFX,
    "test_stores.py::test_passwords_that_do_not_fit[[]plain*": _PLAIN_PFX,
    "test_stores.py::test_exported_pkcs7_is_for_others*": _SAVED,
    "test_stores.py::test_pfx[[]*": _PFX,
    "test_stores.py::test_pfx_of_openssl*": _PFX,
    "test_stores.py::test_pfx_with_many_keys*": _PFX,
    "test_twapi_client.py::test_tls_socket_client_4_0*": _MASK,
    "test_twapi_openssl.py::test_tls_client_openssl_3_1[[]1.3]": _ALERTS,
    "test_twapi_openssl.py::test_tls_server_openssl_1_0*": _ASKS,
    "test_wire.py::test_a_peer_renegotiates_while_we_write*": _RENEGOTIATE,
    "test_wire.py::test_readable_answers_a_broken_record": _ALERTS,
    "test_wire.py::test_readable_opens_what_has_no_data*": _TICKETS,
    "test_verifier.py::test_a_server_verifies_no_certificate_of_its_own_accord*": _ASKS,
    "test_verifier.py::test_a_servers_verifier_on_resumed_sessions*": _RESUMED,
    "test_verifier.py::test_an_awaitable_is_awaited*[[]'ok'-server-1.3]": _ALERTS,
    "test_verifier.py::test_an_awaitable_is_awaited*[[]False-server-1.3]": _ALERTS,
    "test_verifier.py::test_an_awaitable_is_awaited*[[]Odd*-server-1.3]": _ALERTS,
    "test_verifier.py::test_once_and_again_on_resumed_sessions[[]True*": _RESUMED,
    "test_verifier.py::test_the_context_tells_the_certificate*": _ASKS,
    "test_verifier.py::test_what_a_verifier_raises_is_raised_on[[]server]": _ASKS,
    "test_verify.py::*fetch*": _FETCH,
    "test_verify.py::test_a_redirection_is_followed*": _FETCH,
    "test_verify.py::test_a_root_that_revokes_itself*": _CRL,
    "test_verify.py::test_a_stapled_answer_is_about_the_leaf_only*": _CRL,
    "test_verify.py::test_a_usage_for_anything*": _ANY,
    "test_verify.py::test_an_anchor_need_not_be_self_signed*": _ANCHOR,
    "test_verify.py::test_each_fault_has_its_word[[]no CA]": _NO_CA,
    "test_verify.py::test_each_fault_has_its_word[[]no basicConstraints]": _NO_CA,
    "test_verify.py::test_each_fault_has_its_word[[]policy]": _POLICY,
    "test_verify.py::test_each_fault_has_its_word[[]weak key]": _WEAK,
    "test_verify.py::test_lists_that_clear*": _CRL,
    "test_verify.py::test_lists_that_do_not_count*": _CRL,
    "test_verify.py::test_many_verifications_at_once*": _CRL,
    "test_verify.py::test_stapled_answers": _STAPLE,
    "test_verify.py::test_stapled_answers_by_a_delegate*": _STAPLE,
    "test_verify.py::test_stapled_by_a_server*": _STAPLE,
    "test_verify.py::test_the_fresh_list_beats_the_stale_one*": _CRL,
    "test_verify.py::test_version_1_certificates*": _EC,
}


def rounds(count: int) -> int:
    """How often to do what is done many times: under Wine a tenth of it.

    There each system call of a round is a conversation between processes.
    """
    return max(count // 10, 1) if WINE else count


# Files that cannot even be imported there.
_POSIX_FILES = {
    "test_cli.py": "drives the command line through a pseudo-terminal",
    "test_stress.py": "counts with resource and /proc; its Windows counterpart is windows/soak.py",
    "test_fork.py": "Windows has no fork",
    "test_architecture.py": "reads the sources, which are the same everywhere",
    "test_docs.py": "reads the documents, which are the same everywhere",
}
NOT_HERE = _POSIX_FILES if WINDOWS else {}


def wine_lacks(test: str) -> str:
    """What of Windows the test needs and Wine lacks; "" if nothing is known."""
    for pattern, reason in _WINE_LACKS.items():
        if fnmatchcase(test, pattern):
            return reason
    return ""


def skip_reason(test: str) -> str:
    """Why this test (file::name[parameters]) cannot be here; "" if it can."""
    tables = (_WINDOWS_LACKS if WINDOWS else {}, _WINE_LACKS if WINE else {})
    for table in tables:
        for pattern, reason in table.items():
            if fnmatchcase(test, pattern):
                return reason
    if WINE:
        version = "1.2" if WINE_TLS13 else "1.3"
        if re.search(rf"\[.*(?<![\d.]){re.escape(version)}(?![\d.])", test):
            return f"Wine does TLS {'1.3' if WINE_TLS13 else '1.2'} in this run"
    return ""
