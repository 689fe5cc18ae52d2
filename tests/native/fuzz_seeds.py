"""Seeds for the fuzz targets: ``fuzz_seeds.py FOLDER`` fills FOLDER/NAME/.

Made on the spot by Python's ssl and the openssl command, so that no key and
no dated certificate is ever committed.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

# enum tw_encoding of csrc/sspi/provider.h, the low bits of fuzz_import's
# first byte; 0x80 gives the password.
DER, PEM, PFX, PKCS7, KEY = 0, 1, 2, 3, 4
WITH_PASSWORD = 0x80


def hello(**options: object) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, value in options.items():
        if name == "alpn":
            context.set_alpn_protocols(value)  # type: ignore[arg-type]
        else:
            setattr(context, name, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname="www.example.org")
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def imports(work: Path) -> list[bytes]:
    key, cert, pfx, p7 = (work / name for name in ("key.pem", "cert.pem", "x.pfx", "x.p7b"))
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", str(key), "-out", str(cert), "-days", "30", "-subj", "/CN=localhost/O=seed"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,URI:urn:x,email:a@example.org"),
    )
    openssl("x509", "-in", str(cert), "-outform", "DER", "-out", str(work / "cert.der"))
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", str(key), "-outform", "DER",
            "-out", str(work / "key.der"))  # fmt: skip
    openssl("pkcs12", "-export", "-inkey", str(key), "-in", str(cert), "-out", str(pfx),
            "-passout", "pass:secret", "-iter", "1")  # fmt: skip
    openssl("crl2pkcs7", "-nocrl", "-certfile", str(cert), "-outform", "DER", "-out", str(p7))
    openssl("ec", "-in", str(key), "-aes128", "-passout", "pass:secret",
            "-out", str(work / "locked.pem"))  # fmt: skip
    return [
        bytes([DER]) + (work / "cert.der").read_bytes(),
        bytes([PEM]) + key.read_bytes() + cert.read_bytes(),
        bytes([PEM | WITH_PASSWORD]) + (work / "locked.pem").read_bytes() + cert.read_bytes(),
        bytes([PFX | WITH_PASSWORD]) + pfx.read_bytes(),
        bytes([PKCS7]) + p7.read_bytes(),
        bytes([KEY]) + (work / "key.der").read_bytes(),
    ]


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        seeds = {
            "hello": [
                hello(),
                hello(alpn=["h2", "http/1.1"]),
                hello(maximum_version=ssl.TLSVersion.TLSv1_2),
                b"GET / HTTP/1.1\r\n",
                b"220 mail.example.org ESMTP\r\n",
            ],
            "import": imports(Path(work)),
            # words of fuzz_session.c: data, a flip, data, an end, ...
            "session": [
                bytes([0]) + bytes([9, 4, 0, 0x83, 0x87, 8, 0]) * 6,
                bytes([0x20]) + bytes([0x89, 2, 1, 3, 7, 2, 9, 0x0B, 0x83, 0x87, 0, 9]) * 3,
                bytes([1]) + bytes([9, 4, 0, 0x8D, 0, 9, 0, 5, 0x83, 0x87, 8, 0]),
                bytes([0x44]) + bytes([0, 0x83, 0x80, 3, 0]) * 8,
            ],
            "record": [
                bytes([23, 3, 3, 0, 2, 1, 2, 21, 3, 3, 0, 2, 1, 0]),
                bytes([22, 3, 1, 64, 0]),
                b"HTTP/1.1 400",
            ],
            # words of fuzz_buffer.c: append, reserve, consume, relax, free
            "buffer": [
                bytes([0, 40, 4, 0, 90, 2, 80, 1, 0, 5, 1, 0, 7, 1]) * 4,
                bytes([2, 0xFF, 0x80, 0, 4, 0x40, 0, 6, 0, 20, 7, 0]) * 3,
            ],
            # words of fuzz_scripted.c: data, a record, reading, writing, ...
            "scripted": [
                bytes([0]) + bytes([2, 0x10, 30, 8, 0, 10, 1, 0, 12]) * 4,
                bytes([1]) + bytes([5, 0, 0x10, 11, 1, 0, 12, 13]) * 3,
                bytes([0x22]) + bytes([0, 0x11, 40, 0, 8, 0, 6, 0]) * 4,
                bytes([0x61]) + bytes([1, 0x11, 9, 0, 6, 0, 8, 0]) * 4,
            ],
            # choices of fuzz_records.c: any bytes are a stream
            "records": [bytes(range(start, 256, 7)) * 4 for start in range(4)],
        }
    for name, contents in seeds.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(contents):
            (folder / name / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
