"""A client with a verifier of its own: sspi_remote_cert and cert_tls_verify.

    python 05_client_verifier.py HOST PORT ROOTS.pem

Prints who the server is and what it answers to one line.
"""

import sys
from pathlib import Path

import twapi_tls as tls


def main(host: str, port: int, roots_file: str) -> None:
    roots = tls.cert_temporary_store(pem=Path(roots_file).read_bytes())

    def verify(channel: tls.Channel, context: object) -> bool:
        cert = tls.sspi_remote_cert(context)
        verdict = tls.cert_tls_verify(
            cert,
            server=host,
            trustedroots=list(tls.cert_store_iterate(roots)),
            revocationcheck="none",
        )
        print(f"{tls.cert_subject_name(cert)}: {verdict}")
        return verdict == "ok"  # only True opens the channel

    with tls.tls_socket(host, port, verifier=verify, timeout=10) as channel:
        channel.configure(encoding="utf-8", translation="lf")
        channel.puts("hello")
        channel.flush()
        print(channel.gets())


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
