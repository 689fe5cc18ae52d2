"""The other side of ``relay.c``: runs a program for a process under Wine.

    relay.py PORT FOLDER PROGRAM [ARGUMENTS ...]

Connects to PORT three times: the program's standard input and output, its
standard error, and control, to which the exit status goes. The program is
ended when control breaks off.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress

FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
# What was set for Wine, and what peers.py takes from its programs.
NOT_FOR_PEERS = ("GNUTLS_SYSTEM_PRIORITY_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE")


def main(port: str, *words: str) -> None:
    # Wine's name of drive C has a colon, which curl takes for a password's.
    folder, *command = (word.replace("/dosdevices/c:/", "/drive_c/") for word in words)
    data, errors, control = (
        socket.create_connection(("127.0.0.1", int(port)), timeout=30) for _ in range(3)
    )
    for channel in (data, errors, control):
        channel.settimeout(None)
    environment = {**os.environ, "LC_ALL": "C"}
    environment["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS))
    for name in NOT_FOR_PEERS:
        environment.pop(name, None)
    try:
        # The path that counts is the environment's of this process.
        os.environ["PATH"] = environment["PATH"]
        process = subprocess.Popen(
            command, stdin=data, stdout=data, stderr=errors, cwd=folder, env=environment
        )
    except OSError as error:
        errors.sendall(f"relay: {error}\n".encode())
        control.sendall(b"127")
        return
    data.close()
    errors.close()

    def until_it_breaks_off() -> None:
        with suppress(OSError):
            while control.recv(1):
                pass
        process.kill()

    threading.Thread(target=until_it_breaks_off, daemon=True).start()
    status = process.wait()
    with suppress(OSError):
        control.sendall(str(status if status >= 0 else 128 - status).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
