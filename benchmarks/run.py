"""The benchmarks: ``python benchmarks/run.py [--quick] [--only WORD] ...``.

Runs every row against ``ssl`` in one go and writes the table, as Markdown for
people and as JSON for programs. See measure.py for how a ratio comes about.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "bench"
SUITES = {
    "TLS_AES_128_GCM_SHA256": "AES-128-GCM",
    "TLS_AES_256_GCM_SHA384": "AES-256-GCM",
    "TLS_CHACHA20_POLY1305_SHA256": "ChaCha20-Poly1305",
}


# Where AES-GCM has VAES, another bar. OpenSSL has had it since 3.1, for CPUs
# that have AVX-512 as well.
WITH_VAES = {
    "encrypt in memory, 256 KiB calls": 4.0,
    "decrypt in memory, 256 KiB calls": 3.2,
    "seal + open, 64 B messages": 12.0,
    "seal + open, 1 KiB messages": 8.0,
    "bulk TCP, send": 2.8,
    "bulk TCP, receive": 3.2,
    "bulk TCP, both ends": 3.1,
    "receiver, bytes per CPU second": 5.0,
}


def has_vaes(engine: str) -> bool:
    """Does this engine ("OpenSSL 3.5.7 ...") seal with VAES on this CPU?"""
    numbers = engine.split()[1].split(".")
    if engine.split()[0] != "OpenSSL" or (int(numbers[0]), int(numbers[1])) < (3, 1):
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return {"vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags


def choose_suite(suite: str, arguments: Sequence[str]) -> None:
    """Starts this program again with a configuration that offers one suite.

    OpenSSL reads it once, when it is loaded; it holds for both contenders.
    """
    if os.environ.get("TWAPI_TLS_BENCH_SUITE") == suite:
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{suite}.cnf"
    path.write_text(
        "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n"
        f"[c]\nCiphersuites = {suite}\n"
    )
    environment = dict(os.environ, OPENSSL_CONF=str(path), TWAPI_TLS_BENCH_SUITE=suite)
    # Text of ours that comes before exec would be lost in the buffer.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, str(HERE / "run.py"), *arguments], environment)


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def lines_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of rows."""
    lines = [
        "| workload | peer = 1.0 | ratio | bar | ours | peer | limit | of it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}{'' if row['reached'] else ' !'}"
        share = "" if row["of_limit"] is None else f"{row['of_limit']:.0%}"
        lines.append(
            f"| {row['name']} | {row['peer']} | **{row['ratio']:.2f}** "
            f"({row['low']:.2f}-{row['high']:.2f}) | {bar} | {figure(row['ours'])} {row['unit']} "
            f"| {figure(row['theirs'])} | {row['limit']} | {share} |"
        )
    return lines


def markdown(
    rows: Sequence[dict[str, Any]], about: dict[str, str], windows: Sequence[dict[str, Any]]
) -> str:
    """The tables with what they were measured on."""
    missed = [row["name"] for row in [*rows, *windows] if row["reached"] is False]
    slower = [row["name"] for row in rows if row["high"] < 1.0]
    same = about["ssl"] == about["engine"]
    against = "" if same else f" (ssl: {about['ssl']})"
    lines = [
        f"{about['engine']}{against}, {about['suite']}, Python {about['python']}, {about['cpu']}"
        f"{about['tcp'] and ', TCP ' + about['tcp']}; {about['date']}. Ratio: ours to the peer's, "
        "median of the pairs (quartiles).",
        "",
        *lines_of(rows),
        "",
        *([about["windows"], ""] if about["windows"] else []),
        *([*lines_of(windows), ""] if windows else []),
        f"Below the bar (!): {', '.join(missed) or 'none'}.",
        f"Slower than the peer: {', '.join(slower) or 'none'}.",
    ]
    return "\n".join(lines) + "\n"


def put_into(path: Path, section: str, text: str) -> None:
    """Replaces what is between the section's marks; ValueError if they are not there."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, first, rest = path.read_text().partition(begin)
    _, second, after = rest.partition(end)
    if not first or not second:
        raise ValueError(f"{path} has no {begin} ... {end}")
    path.write_text(f"{before}{begin}\n{text}{end}{after}")


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m twapi_tls bench", description=__doc__)
    made.add_argument("--quick", action="store_true", help="fewer and shorter pairs: two minutes")
    made.add_argument(
        "--only",
        action="append",
        metavar="WORD",
        help="rows whose name has WORD, or begins with it: ^WORD",
    )
    made.add_argument("--suite", choices=sorted(SUITES), default="TLS_AES_128_GCM_SHA256")
    made.add_argument("--tls12", metavar="CIPHER", help="TLS 1.2 with this OpenSSL cipher instead")
    if sys.platform == "linux":
        made.add_argument(
            "--congestion",
            metavar="NAME",
            help="TCP's congestion control (cubic) instead of the system's own",
        )
    made.add_argument("--json", type=Path, metavar="FILE", default=BUILD / "bench.json")
    made.add_argument("--markdown", type=Path, metavar="FILE", default=BUILD / "bench.md")
    made.add_argument(
        "--plots",
        action="store_true",
        help="pictures into docs/ in place of the table (matplotlib)",
    )
    made.add_argument("--readme", type=Path, metavar="FILE", help="put the table between its marks")
    made.add_argument("--section", default="bench", metavar="WORD", help="which marks these are")
    return made


def draw(ours: Any, peer: Any, raw: Any, suite: str, cipher: str, quick: bool) -> int:
    """The pictures; 0."""
    try:
        import matplotlib
    except ImportError:
        print("Pictures need matplotlib: pip install 'twapi_tls[bench]'", file=sys.stderr)
        return 1
    import plots

    import twapi_tls

    caption = (
        f"{twapi_tls.engine.version}, {suite}; twapi_tls {twapi_tls.__version__} and ssl on "
        f"Python {platform.python_version()}; {cpu_name()}, {os.cpu_count()} CPUs, "
        f"{platform.system()}, loopback; {time.strftime('%Y-%m-%d')}. "
        f"Points: medians; bands: quartiles. Drawn by matplotlib {matplotlib.__version__}."
    )
    for path in plots.plots(ours, peer, raw, cipher, quick, caption, BUILD, HERE.parent / "docs"):
        print(path)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Runs what was asked for; 0, or 1 if a row is slower than its peer."""
    options = parser().parse_args(arguments)
    choose_suite(options.suite, arguments)
    import capi_rows
    import idle_rows
    import listener_rows
    import loop_rows
    import memory_rows
    import socket_rows
    import windows_rows
    from ends import TLS13, Certificates, Kind, Ours, Ssl, Tcp

    import twapi_tls

    Tcp.congestion = getattr(options, "congestion", None)
    certificates = Certificates()
    kind = Kind("tls1.2", options.tls12) if options.tls12 else TLS13
    ours, peer = Ours(certificates, kind), Ssl(certificates, kind)
    client, _ = ours.memory_pair()
    suite = client.facts().suite_name
    if ssl.OPENSSL_VERSION != twapi_tls.engine.version:
        print(f"note: ssl runs on {ssl.OPENSSL_VERSION}", file=sys.stderr)

    def wanted(name: str) -> bool:
        chosen = not options.only or any(
            word.lower() in f"^{name.lower()}" for word in options.only
        )
        if chosen:
            print(f"  {name} ...", file=sys.stderr, flush=True)
        return chosen

    raw = None
    if not options.tls12:
        try:
            raw = memory_rows.RawEvp(BUILD)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"note: no row shows raw EVP, which could not be built: {error}", file=sys.stderr)
    cipher = SUITES[options.suite]
    if options.plots:
        return draw(ours, peer, raw, suite, cipher, options.quick)
    rows = memory_rows.rows(ours, peer, raw, cipher, options.quick, wanted)
    rows += socket_rows.rows(ours, peer, options.quick, wanted)
    rows += loop_rows.rows(ours, peer, options.quick, wanted)
    rows += listener_rows.rows(ours, peer, options.quick, wanted)
    if not options.tls12:
        rows += capi_rows.rows(certificates.server, certificates.root, BUILD, options.quick, wanted)
    if sys.platform == "linux":
        rows += idle_rows.rows(certificates, kind, options.quick, wanted)
    windows = windows_rows.rows(BUILD / "windows", options.quick, wanted)
    if options.suite.startswith("TLS_AES") and has_vaes(twapi_tls.engine.version):
        for row in rows:
            row.bar = WITH_VAES.get(row.name, row.bar)
    about = {
        "engine": twapi_tls.engine.version,
        "ssl": ssl.OPENSSL_VERSION,
        "suite": suite,
        "python": platform.python_version(),
        "cpu": f"{cpu_name()}, {os.cpu_count()} CPUs",
        "tcp": Tcp.name(),
        "date": time.strftime("%Y-%m-%d"),
        "records": os.environ.get("TWAPI_TLS_RECORDS", ""),
        "windows": windows.about,
    }
    table, other = (
        [dict(asdict(row), reached=row.reached) for row in some] for some in (rows, windows.rows)
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"about": about, "rows": table, "windows": other}, indent=2) + "\n"
    )
    text = markdown(table, about, other)
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(text)
    if options.readme is not None:
        put_into(options.readme, options.section, text)
    print(text, end="")
    return 1 if any(row["high"] < 1.0 for row in table) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
