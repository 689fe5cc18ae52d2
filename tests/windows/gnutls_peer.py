"""GnuTLS' library as a peer that pumps bytes: its own programs do not.

    python gnutls_peer.py '{"role": "client", "port": 4433, "version": "1.3", ...}'

Connects to, or listens on, 127.0.0.1, shakes hands and then is a pipe: standard
input goes out, what comes in goes to standard output, both at once. gnutls-serv
echoes single lines, gnutls-cli prints byte by byte, a system call for each: a
hundred megabytes take either minutes. So this calls the library, by ctypes; each
error is GnuTLS' own sentence on standard error.

Keys of the configuration: role, port, version; cert and key (PEM files); ca, the
file whose roots the other end's certificate must lead to.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
from typing import Any

PIECE = 1 << 16
# Constants of gnutls/gnutls.h.
SERVER, CLIENT = 1, 2
CRD_CERTIFICATE = 1
CERT_REQUIRE = 2
FORMAT_PEM = 1
NAME_DNS = 1
SHUT_WR = 1
AGAIN, INTERRUPTED = -28, -52

lib = ctypes.CDLL("libgnutls.so.30")
lib.gnutls_strerror.restype = ctypes.c_char_p
lib.gnutls_check_version.restype = ctypes.c_char_p
lib.gnutls_record_send.restype = ctypes.c_ssize_t
lib.gnutls_record_recv.restype = ctypes.c_ssize_t
lib.gnutls_record_send.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
lib.gnutls_record_recv.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
lib.gnutls_server_name_set.argtypes = [
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_size_t,
]


def version() -> str:
    """The library's version, such as "3.8.9"."""
    text: bytes = lib.gnutls_check_version(None)
    return text.decode()


def call(name: str, *args: Any) -> int:
    """A function of the library, again while it is interrupted; its errors raise."""
    while True:
        result = int(getattr(lib, name)(*args))
        if result >= 0:
            return result
        if result not in (AGAIN, INTERRUPTED):
            raise ConnectionError(f"{name}: {lib.gnutls_strerror(result).decode()}")


def connect(config: dict[str, Any]) -> socket.socket:
    if config["role"] == "client":
        return socket.create_connection(("127.0.0.1", config["port"]), 30)
    with socket.create_server(("127.0.0.1", config["port"])) as listener:
        listener.settimeout(60)
        return listener.accept()[0]


def handshake(config: dict[str, Any], sock: socket.socket) -> ctypes.c_void_p:
    client = config["role"] == "client"
    credentials, session = ctypes.c_void_p(), ctypes.c_void_p()
    call("gnutls_certificate_allocate_credentials", ctypes.byref(credentials))
    if "cert" in config:
        cert, key = config["cert"].encode(), config["key"].encode()
        call("gnutls_certificate_set_x509_key_file", credentials, cert, key, FORMAT_PEM)
    call("gnutls_init", ctypes.byref(session), CLIENT if client else SERVER)
    priority = f"NORMAL:-VERS-ALL:+VERS-TLS{config['version']}"
    call("gnutls_priority_set_direct", session, priority.encode(), None)
    call("gnutls_credentials_set", session, CRD_CERTIFICATE, credentials)
    if client:
        call("gnutls_server_name_set", session, NAME_DNS, b"localhost", len(b"localhost"))
    if "ca" in config:
        call("gnutls_certificate_set_x509_trust_file", credentials, config["ca"].encode(), 1)
        lib.gnutls_session_set_verify_cert(session, b"localhost" if client else None, 0)
        if not client:
            lib.gnutls_certificate_server_set_request(session, CERT_REQUIRE)
    lib.gnutls_transport_set_int2(session, sock.fileno(), sock.fileno())
    call("gnutls_handshake", session)
    return session


def pump(session: ctypes.c_void_p) -> None:
    """Until both ends are through; sending and receiving may overlap."""

    def work() -> None:
        while data := os.read(0, PIECE):
            while data:
                data = data[call("gnutls_record_send", session, data, len(data)) :]
        call("gnutls_bye", session, SHUT_WR)

    threading.Thread(target=work, daemon=True).start()
    room = ctypes.create_string_buffer(PIECE)
    while got := call("gnutls_record_recv", session, room, PIECE):
        rest = memoryview(room)[:got]
        while rest:
            rest = rest[os.write(1, rest) :]


def main() -> None:
    config = json.loads(sys.argv[1])
    sock = connect(config)
    sock.setblocking(True)
    pump(handshake(config, sock))


if __name__ == "__main__":
    main()
