"""TLS channels over the operating system's own engine, after Tcl's TWAPI.

Names are TWAPI's. ``twapi_tls.engine`` says which engine runs.
"""

from __future__ import annotations

import os as _os

TYPE_CHECKING = False

if TYPE_CHECKING:
    from ._native import (
        TLSAlertError,
        TLSClosedError,
        TLSError,
        TLSTimeoutError,
        TLSTruncatedError,
        TLSVerificationError,
    )
    from .about import Engine, __version__, engine
    from .certs import (
        Certificate,
        Store,
        cert_duplicate,
        cert_export,
        cert_fetch,
        cert_import,
        cert_info,
        cert_issuer_name,
        cert_release,
        cert_store_add_certificate,
        cert_store_add_encoded_certificate,
        cert_store_export_pem,
        cert_store_export_pkcs7,
        cert_store_find_certificate,
        cert_store_iterate,
        cert_store_release,
        cert_store_serialize,
        cert_subject_name,
        cert_system_store_open,
        cert_temporary_store,
        cert_thumbprint,
        cert_tls_verify,
    )
    from .channel import Channel, TcpChannel
    from .commands import starttls, tls_close, tls_handshake, tls_socket, tls_state
    from .events import tls_background_error
    from .events import tls_background_error as __tls_background_error__
    from .listener import Listener
    from .registry import socket_command, tls_socket_command
    from .sspi import (
        ConnectionFacts,
        Credentials,
        CredentialsConfig,
        SspiContext,
        sspi_acquire_credentials,
        sspi_client_context,
        sspi_connection_facts,
        sspi_context_features,
        sspi_decrypt_stream,
        sspi_delete_context,
        sspi_encrypt_and_write,
        sspi_encrypt_stream,
        sspi_enumerate_packages,
        sspi_free_credentials,
        sspi_issuers_accepted_by_peer,
        sspi_local_cert,
        sspi_remote_cert,
        sspi_schannel_credentials,
        sspi_server_context,
        sspi_shutdown_context,
        sspi_step,
    )
    from .tls import TlsChannel
    from .transport import StreamTransport

# Where each public name lives.  They are looked up at their first use, so that
# importing the package costs next to nothing (PEP 562).
_HOMES = {
    "_native": (
        "TLSAlertError",
        "TLSClosedError",
        "TLSError",
        "TLSTimeoutError",
        "TLSTruncatedError",
        "TLSVerificationError",
    ),
    "about": (
        "Engine",
        "__version__",
        "engine",
    ),
    "certs": (
        "Certificate",
        "Store",
        "cert_duplicate",
        "cert_export",
        "cert_fetch",
        "cert_import",
        "cert_info",
        "cert_issuer_name",
        "cert_release",
        "cert_store_add_certificate",
        "cert_store_add_encoded_certificate",
        "cert_store_export_pem",
        "cert_store_export_pkcs7",
        "cert_store_find_certificate",
        "cert_store_iterate",
        "cert_store_release",
        "cert_store_serialize",
        "cert_subject_name",
        "cert_system_store_open",
        "cert_temporary_store",
        "cert_thumbprint",
        "cert_tls_verify",
    ),
    "channel": (
        "Channel",
        "TcpChannel",
    ),
    "commands": (
        "starttls",
        "tls_close",
        "tls_handshake",
        "tls_socket",
        "tls_state",
    ),
    "events": ("tls_background_error",),
    "listener": ("Listener",),
    "registry": (
        "socket_command",
        "tls_socket_command",
    ),
    "sspi": (
        "ConnectionFacts",
        "Credentials",
        "CredentialsConfig",
        "SspiContext",
        "sspi_acquire_credentials",
        "sspi_client_context",
        "sspi_connection_facts",
        "sspi_context_features",
        "sspi_decrypt_stream",
        "sspi_delete_context",
        "sspi_encrypt_and_write",
        "sspi_encrypt_stream",
        "sspi_enumerate_packages",
        "sspi_free_credentials",
        "sspi_issuers_accepted_by_peer",
        "sspi_local_cert",
        "sspi_remote_cert",
        "sspi_schannel_credentials",
        "sspi_server_context",
        "sspi_shutdown_context",
        "sspi_step",
    ),
    "tls": ("TlsChannel",),
    "transport": ("StreamTransport",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "__tls_background_error__":
        from .events import tls_background_error as value
    elif name in _HOME_OF:
        # Not importlib, which is not loaded yet.
        home = __import__(f"{__name__}.{_HOME_OF[name]}", fromlist=(name,))
        value = getattr(home, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # setdefault: an override that another thread assigned meanwhile stays.
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def get_include() -> str:
    """The folder of ``twapi_tls.h``, for C extensions."""
    return _os.path.join(_os.path.dirname(__file__), "include")


__all__ = [
    "Certificate",
    "Channel",
    "ConnectionFacts",
    "Engine",
    "Listener",
    "CredentialsConfig",
    "SspiContext",
    "Credentials",
    "Store",
    "StreamTransport",
    "TLSAlertError",
    "TLSClosedError",
    "TLSError",
    "TLSTimeoutError",
    "TLSTruncatedError",
    "TLSVerificationError",
    "TcpChannel",
    "TlsChannel",
    "__tls_background_error__",
    "__version__",
    "cert_duplicate",
    "cert_export",
    "cert_fetch",
    "cert_import",
    "cert_info",
    "cert_issuer_name",
    "cert_release",
    "cert_store_add_certificate",
    "cert_store_add_encoded_certificate",
    "cert_store_export_pem",
    "cert_store_export_pkcs7",
    "cert_store_find_certificate",
    "cert_store_iterate",
    "cert_store_release",
    "cert_store_serialize",
    "cert_subject_name",
    "cert_system_store_open",
    "cert_temporary_store",
    "cert_thumbprint",
    "cert_tls_verify",
    "engine",
    "get_include",
    "socket_command",
    "sspi_acquire_credentials",
    "sspi_client_context",
    "sspi_connection_facts",
    "sspi_context_features",
    "sspi_decrypt_stream",
    "sspi_delete_context",
    "sspi_encrypt_and_write",
    "sspi_encrypt_stream",
    "sspi_enumerate_packages",
    "sspi_free_credentials",
    "sspi_issuers_accepted_by_peer",
    "sspi_local_cert",
    "sspi_remote_cert",
    "sspi_schannel_credentials",
    "sspi_server_context",
    "sspi_shutdown_context",
    "sspi_step",
    "starttls",
    "tls_background_error",
    "tls_close",
    "tls_handshake",
    "tls_socket",
    "tls_socket_command",
    "tls_state",
]
