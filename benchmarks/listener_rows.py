"""Rows of a listener that is never without a handshake to do.

The clients are threads of a forked process, which verify nothing, so that
they cost as little as they can. They need processors as well: on a small
machine the clock says more of them than of the listener. So what is counted
is handshakes per second of CPU time: of the loop's thread, which is what a
listener on many cores is limited by, and of the whole process on one core.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from ends import Ours, Ssl
from measure import Row, compare
from socket_rows import Partner, affinity, pinned

import twapi_tls as tls

CLIENTS = 12  # at once


def call(port: int, until: float) -> None:
    """Connects, hears the server close, and again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    while time.monotonic() < until:
        try:
            with (
                socket.create_connection(("127.0.0.1", port)) as sock,
                context.wrap_socket(sock, server_hostname="localhost") as end,
            ):
                end.recv(1)
        except OSError:
            continue  # the listener has gone


def crowd(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
    """The other process: clients for a port and a time."""
    port, seconds = hear()
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=call, args=(port, until)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("done")


async def serve(engine: Ours | Ssl, partner: Partner, seconds: float) -> tuple[float, float]:
    """Handshakes per second of the loop's thread and of the process."""
    done = 0
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)  # clients that end

    def ours(channel: tls.TlsChannel, address: str, port: int) -> None:
        nonlocal done
        done += 1
        channel.close()

    def peers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal done
        done += 1
        writer.close()

    if isinstance(engine, Ours):
        listener = tls.tls_socket(
            0, server=ours, myaddr="127.0.0.1", credentials=engine.server_credentials
        )
        port = listener.getsockname()[1]
        close = listener.close
    else:
        server = await asyncio.start_server(
            peers, "127.0.0.1", 0, ssl=engine.server_context, backlog=1024
        )
        port = server.sockets[0].getsockname()[1]
        close = server.close
    partner.say([port, seconds + 0.6])
    while done < CLIENTS:
        await asyncio.sleep(0.01)
    began, loops, all_ = done, time.thread_time(), time.process_time()
    await asyncio.sleep(seconds)
    count, loops, all_ = done - began, time.thread_time() - loops, time.process_time() - all_
    await asyncio.to_thread(partner.hear)
    close()
    return count / loops, count / all_


def listener_run(engine: Ours | Ssl, cores: int, seconds: float) -> float:
    """Of the loop's thread on many cores, of the process on one."""
    partner = Partner(crowd)
    try:
        with pinned(*range(cores)):
            of_loop, of_process = asyncio.run(serve(engine, partner, seconds))
    finally:
        partner.end()
    return of_process if cores == 1 else of_loop


def rows(ours: Ours, peer: Ssl, quick: bool, wanted: Callable[[str], bool]) -> list[Row]:
    """All rows of this file that are wanted."""
    seconds = 0.5 if quick else 1.5
    cores = affinity()
    out: list[Row] = []
    for name, unit, count in (
        ("listener on one core, handshakes", "1/CPU s", 1),
        ("listener on two cores, handshakes", "1/CPU s of the loop", 2),
    ):
        if (cores is None or len(cores) >= count) and wanted(name):
            row = Row(name, "asyncio ssl", "", unit, None)
            runs = {
                "ours": lambda count=count: listener_run(ours, count, seconds),
                "peer": lambda count=count: listener_run(peer, count, seconds),
            }
            out.append(compare(row, runs, 5 if quick else 9))
    return out
