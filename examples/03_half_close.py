"""Half a close: say that no more will come, and read the answer to its end.

    python 03_half_close.py HOST PORT ROOTS.pem < request

Sends stdin, closes the writing side (close_notify, then TCP's FIN), and prints
all that the server still sends.
"""

import sys
from pathlib import Path

import twapi_tls as tls


def main(host: str, port: int, roots_file: str) -> None:
    roots = tls.cert_temporary_store(pem=Path(roots_file).read_bytes())
    credentials = tls.sspi_acquire_credentials(
        role="client", credentials=tls.sspi_schannel_credentials(rootstore=roots)
    )
    with tls.tls_socket(host, port, credentials=credentials, timeout=10) as channel:
        channel.sendall(sys.stdin.buffer.read())
        tls.tls_close(channel, "write")
        sys.stdout.buffer.write(channel.read())
        sys.stdout.flush()
    print(tls.tls_state(channel))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
