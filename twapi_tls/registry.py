"""Socket commands: what makes the TCP connections under TLS.

One command is registered per process; ``socketcmd=`` overrides it for one
call. The default is ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .options import check_port
from .sockets import ListeningSocket, PendingConnection, connect

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from .sockets import AcceptCallback

    SocketCommand = Callable[..., Any]


class _Calling(threading.local):
    """What this thread's ``tls_socket`` has to tell the default command, also
    when another command wraps it: commands have no timeout among their
    arguments."""

    timeout: float | None = None  # seconds


calling = _Calling()


def socket_command(
    *address: Any,
    server: AcceptCallback | None = None,
    myaddr: str | None = None,
    myport: int | None = None,
    async_: bool = False,
) -> Any:
    """The default socket command: plain TCP.

    ``(host, port, myaddr=, myport=, async_=)`` gives a connected socket;
    with ``async_`` at once a pending connection, made in a thread.
    ``(port, server=, myaddr=)`` gives a listener, which ``tls_socket``
    starts on its event loop.
    """
    if server is not None:
        if len(address) != 1 or not callable(server):
            raise TypeError("a listening socket command takes a port, and a callable as server")
        port = check_port(address[0])
        return ListeningSocket(port, server=server, myaddr=myaddr)
    if len(address) != 2:
        raise TypeError(f"socket_command() takes host and port, not {len(address)} arguments")
    host, port = address[0], check_port(address[1])
    if myport is not None:
        myport = check_port(myport, "myport")
    timeout = calling.timeout

    def attempt() -> Any:
        return connect(host, port, myaddr=myaddr, myport=myport, timeout=timeout)

    return PendingConnection(attempt) if async_ else attempt()


_lock = threading.Lock()
_command: SocketCommand = socket_command


def tls_socket_command(command: SocketCommand | None = None) -> SocketCommand:
    """The registered socket command; with an argument, registers it.

    Returns the one before (or, without argument, the present one). A
    client's is called ``(host, port, *, myaddr, myport, async_)`` and gives a
    ``socket.socket`` or an object with the transport methods; a listener's
    is called ``(port, *, server, myaddr)``, calls ``server(sock, address,
    port)`` for each connection, and gives an object with ``close()``. Per
    process, thread safe. TypeError if not callable.
    """
    global _command
    if command is None:
        return _command
    if not callable(command):
        raise TypeError(f"a socket command must be callable, not {command!r}")
    with _lock:
        before, _command = _command, command
    return before
