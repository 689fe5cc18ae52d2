"""The seven commands of TWAPI's TLS page.

``tls_socket_command`` and ``tls_background_error`` live in registry.py and
events.py. Source: TWAPI's manual page.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from ._native import TLSError
from .channel import UNSET, Channel, close_anything, default_timeout
from .errors import Deadline, closed_error, make_error
from .events import require_loop, running_loop
from .listener import Listener
from .names import a_label
from .options import check_port, check_timeout
from .registry import calling, socket_command, tls_socket_command
from .sockets import PendingConnection
from .sspi import (
    Credentials,
    check_alpn,
    make_session,
    sspi_acquire_credentials,
)
from .tls import TlsChannel, report_failure
from .transport import carries_bytes, is_plain_socket
from .verify import Policy

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio
    from typing import Any, overload

    from .registry import SocketCommand
    from .tls import CredentialsChooser
    from .verify import Verifier

    AcceptCallback = Callable[[TlsChannel, str, int], object]


HANDSHAKE_TIMEOUT = 60.0
MAX_HANDSHAKES = 1000


def _check_verifier(verifier: Any) -> Verifier | None:
    if verifier is None or verifier == "" or verifier == ():
        return None
    if not callable(verifier):
        raise TypeError(f"verifier must be callable, not {verifier!r}")
    checked: Verifier = verifier
    return checked


def _check_credentials(credentials: object, role: str) -> None:
    if isinstance(credentials, Credentials):
        if credentials.role != role:
            raise ValueError(f"{role} credentials are needed, these are for a {credentials.role}")
        credentials.native  # noqa: B018 - ValueError if they were freed
    elif role == "client" or not callable(credentials):
        raise TypeError(
            f"credentials must come from sspi_acquire_credentials(), not {credentials!r}"
        )


def _check_socketcmd(socketcmd: Any) -> SocketCommand:
    if socketcmd is None or socketcmd == "":
        # As TWAPI: an empty command means the plain socket command.
        return tls_socket_command() if socketcmd is None else socket_command
    if not callable(socketcmd):
        raise TypeError(f"socketcmd must be callable, not {socketcmd!r}")
    command: SocketCommand = socketcmd
    return command


def _policy(credentials: object) -> Policy:
    return credentials.config.policy if isinstance(credentials, Credentials) else Policy()


if TYPE_CHECKING:

    @overload
    def tls_socket(
        host: str,
        port: int | str,
        /,
        *,
        async_: bool = ...,
        myaddr: str | None = ...,
        myport: int | None = ...,
        credentials: Credentials | None = ...,
        peersubject: str | None = ...,
        verifier: Verifier | None = ...,
        socketcmd: SocketCommand | None = ...,
        requestclientcert: bool = ...,
        timeout: float | None = ...,
        alpn: Iterable[str | bytes] | None = ...,
        loop: asyncio.AbstractEventLoop | None = ...,
    ) -> TlsChannel: ...

    @overload
    def tls_socket(
        port: int | str,
        /,
        *,
        server: AcceptCallback,
        credentials: Credentials | CredentialsChooser,
        requestclientcert: bool = ...,
        verifier: Verifier | None = ...,
        myaddr: str | None = ...,
        socketcmd: SocketCommand | None = ...,
        peersubject: str | None = ...,
        alpn: Iterable[str | bytes] | None = ...,
        loop: asyncio.AbstractEventLoop | None = ...,
        handshake_timeout: float | None = ...,
        max_handshakes: int = ...,
    ) -> Listener: ...


def tls_socket(
    *address: Any,
    server: Any = None,
    async_: bool = False,
    myaddr: str | None = None,
    myport: int | None = None,
    credentials: Any = None,
    peersubject: str | None = None,
    verifier: Verifier | None = None,
    requestclientcert: bool = False,
    socketcmd: SocketCommand | None = None,
    timeout: Any = UNSET,
    alpn: Iterable[str | bytes] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    handshake_timeout: Any = UNSET,
    max_handshakes: Any = UNSET,
    **named: Any,
) -> TlsChannel | Listener:
    """A TLS client channel, or a TLS listener.

    ``tls_socket(host, port, ...)``: connects, negotiates and verifies inside
    the call; the channel comes back OPEN, and any failure closes everything
    and raises. With ``async_`` it comes back at once, in CLIENTINIT and
    blocking: the name look-up and the connect go off-thread; a running event
    loop (or ``loop``) drives the handshake, else the next call does; a
    failure is raised by the next read, write or handshake.

    peersubject: the name to verify, default ``host``. credentials: default
    automatic ones, freed with the channel. verifier: ``verifier(channel,
    context) -> bool`` in place of the automatic verification. myaddr,
    myport: our own end. timeout: seconds for all of it and afterwards the
    channel's timeout; None for ever; default ``socket.getdefaulttimeout()``.
    alpn: names to offer, in place of the credentials'.

    ``tls_socket(port, server=callback, credentials=..., ...)``: a listener.
    ``callback(channel, address, port)`` runs from the event loop after
    handshake and verification, with the channel OPEN and blocking; it may be
    a coroutine function. credentials: required; or ``chooser(server_name,
    alpn, versions) -> credentials``, asked for each ClientHello.
    requestclientcert: ask clients for a certificate; the verifier judges it.
    handshake_timeout: seconds, default 60. max_handshakes: unfinished ones
    at once, default 1000. myaddr: address to listen on, default all of IPv4
    and IPv6. port 0: a free one (``getsockname()[1]``).

    socketcmd: makes the TCP connection in place of the registered command.
    Errors: TypeError and ValueError for arguments (``peersubject`` of a
    listener and ``requestclientcert`` of a client are ignored), OSError of
    the connect, TLSError. Source: TWAPI, tls_socket.
    """
    for key in ("host", "port"):
        if key in named:
            address = (*address, named.pop(key))
    if named:
        raise TypeError(f"tls_socket() got an unexpected keyword argument {next(iter(named))!r}")
    command = _check_socketcmd(socketcmd)
    if myaddr is not None and not isinstance(myaddr, str):
        raise TypeError(f"myaddr must be an address as a string, not {myaddr!r}")
    verifier = _check_verifier(verifier)
    names = None if alpn is None else check_alpn(alpn)
    if server is None:
        if len(address) != 2:
            raise TypeError(
                "tls_socket() takes the arguments host and port (or port, with server=callback), "
                f"not {len(address)}"
            )
        for option, value in (
            ("handshake_timeout", handshake_timeout),
            ("max_handshakes", max_handshakes),
        ):
            if value is not UNSET:
                raise TypeError(f"{option} is an option of listeners (server=)")
        return _client(
            *address,
            async_=async_,
            myaddr=myaddr,
            myport=myport,
            credentials=credentials,
            peersubject=peersubject,
            verifier=verifier,
            command=command,
            timeout=default_timeout(timeout),
            alpn=names,
            loop=loop,
        )
    if not callable(server):
        if not server:
            raise ValueError("server must not be empty: it is called for each connection")
        raise TypeError(f"server must be callable, not {server!r}")
    if len(address) != 1:
        raise TypeError(
            f"tls_socket(server=...) takes one positional argument, the port, not {len(address)}"
        )
    for option, given in (
        ("async_", async_),
        ("myport", myport is not None),
        ("timeout", timeout is not UNSET),
    ):
        if given:
            raise TypeError(f"{option} is an option of clients, not of listeners")
    if credentials is None:
        raise ValueError(
            "credentials are required for a listener: a server without a certificate "
            "cannot finish a handshake"
        )
    _check_credentials(credentials, "server")
    limit = MAX_HANDSHAKES if max_handshakes is UNSET else max_handshakes
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"max_handshakes must be an integer, not {limit!r}")
    if limit < 1:
        raise ValueError(f"max_handshakes must be at least 1, not {limit}")
    listener = Listener(
        require_loop(loop),
        server,
        credentials=_held(credentials),
        verifier=verifier,
        requestclientcert=bool(requestclientcert),
        alpn=names,
        handshake_timeout=(
            HANDSHAKE_TIMEOUT if handshake_timeout is UNSET else check_timeout(handshake_timeout)
        ),
        max_handshakes=limit,
    )
    port = check_port(address[0])
    below = command(port, server=listener.accepted, myaddr=myaddr)
    if isinstance(below, type) or not callable(getattr(below, "close", None)):
        raise TypeError(
            f"the socket command must give a listener, an object with close(), not {below!r}"
        )
    try:
        listener.listen(below)
    except BaseException:
        listener.close()
        raise
    return listener


def _held(credentials: Any) -> Any:
    """A handle of our own: freeing the user's must not hurt the listener."""
    if isinstance(credentials, Credentials):
        return Credentials(credentials.native, credentials.config, credentials.role)
    return credentials


def _client(
    host: object,
    port: object,
    *,
    async_: bool,
    myaddr: str | None,
    myport: int | None,
    credentials: Any,
    peersubject: str | None,
    verifier: Verifier | None,
    command: SocketCommand,
    timeout: float | None,
    alpn: tuple[bytes, ...] | None,
    loop: asyncio.AbstractEventLoop | None,
) -> TlsChannel:
    if not isinstance(host, str):
        raise TypeError(f"host must be a string, not {host!r}")
    if not host:
        raise ValueError("host must not be empty")
    port = check_port(port)
    if myport is not None:
        if isinstance(myport, str):
            raise TypeError(f"myport must be a number, not {myport!r}")
        myport = check_port(myport, "myport")
    if loop is not None and not async_:
        raise TypeError("loop needs async_=True")
    deadline = Deadline(timeout)
    channel = _client_channel(
        credentials, host if peersubject is None else peersubject, verifier, alpn, timeout
    )
    before, calling.timeout = calling.timeout, None if async_ else timeout
    try:
        below = command(host, port, myaddr=myaddr, myport=myport, async_=async_)
        if isinstance(below, PendingConnection):
            channel.connect_later(below)
        elif carries_bytes(below):
            channel.put_on(below)
        else:
            close_anything(below)
            raise TypeError(
                "the socket command must give a connected socket, or an object with recv(n), "
                f"send(data) and close(), not {below!r}"
            )
        if async_:
            driver = loop if loop is not None else running_loop()
            if driver is not None:
                channel.drive_from(driver)
        elif timeout == 0:
            # As with ssl: a channel that may not wait cannot finish here.
            channel.negotiate(0)
        else:
            channel.negotiate(deadline.left())
    except BaseException:
        close_anything(channel)
        raise
    finally:
        calling.timeout = before
    return channel


def _client_channel(
    credentials: Credentials | None,
    peersubject: str,
    verifier: Verifier | None,
    alpn: tuple[bytes, ...] | None,
    timeout: float | None,
) -> TlsChannel:
    """A client's channel without a connection; ``credentials`` checked."""
    name = a_label(peersubject)
    if not name:
        raise ValueError("peersubject must not be empty")
    owned = credentials is None
    if credentials is None:
        credentials = sspi_acquire_credentials("tls", "client")
    _check_credentials(credentials, "client")
    policy = credentials.config.policy
    session = make_session(
        "client",
        credentials,
        target=name,
        ask_verdict=verifier is not None or policy.validate,
        alpn=alpn,
    )
    return TlsChannel(
        session,
        "client",
        credentials=credentials,
        owns_credentials=owned,
        peersubject=name,
        verifier=verifier,
        policy=policy,
        timeout=timeout,
    )


def starttls(
    chan: Any,
    *,
    server: bool = False,
    credentials: Credentials | CredentialsChooser | None = None,
    peersubject: str | None = None,
    verifier: Verifier | None = None,
    requestclientcert: bool = False,
    alpn: Iterable[str | bytes] | None = None,
    **unknown: Any,
) -> TlsChannel:
    """Wraps a connected channel in TLS and returns the new channel.

    chan: a ``socket.socket``, a ``TcpChannel``, another TLS channel (TLS in
    TLS), or an object with the transport methods (``StreamTransport``). It
    must not be touched again: every error, of arguments too, leaves it
    closed. The new channel has its timeout, buffering, buffersize, encoding,
    eofchar and translation; handlers are not copied.

    peersubject: the name to verify; required for a client, refused for a
    server. credentials: required for a server (or a chooser, as in
    ``tls_socket``). Blocking: the handshake happens inside the call, within
    the channel's timeout. Non-blocking: a client has sent its first flight
    and is NEGOTIATING, a server is in SERVERINIT; a running event loop
    drives it on, or ``tls_handshake`` does. A server's failure that only the
    loop met is a background error.

    Bytes that the peer sent before TLS and that ``chan`` holds in its input
    buffer are refused with ValueError: taking them for protected ones would
    be an injection (CVE-2011-0411), and dropping them would lose data.
    Source: TWAPI, starttls.
    """
    made: TlsChannel | None = None
    taken = False  # from then on made closes it, once
    try:
        if unknown:
            raise TypeError(
                f"starttls() got an unexpected keyword argument {next(iter(unknown))!r}"
            )
        if isinstance(chan, Listener):
            raise TypeError("a listening channel cannot be wrapped")
        if is_plain_socket(chan):
            _check_socket(chan)
            timeout: float | None = chan.gettimeout()
        elif isinstance(chan, Channel):
            timeout = chan.gettimeout()
        elif carries_bytes(chan):
            method = getattr(chan, "gettimeout", None)
            timeout = None if method is None else method()
        else:
            raise TypeError(
                f"{type(chan).__name__!r} cannot be wrapped: it needs recv(n), "
                "send(data) and close()"
            )
        made = _wrapping_channel(
            bool(server), credentials, peersubject, verifier, requestclientcert, alpn, timeout
        )
        if isinstance(chan, Channel):
            made.copy_options(chan)
        taken = True
        made.put_on(chan)
        _first_step(made)
    except BaseException:
        if made is not None:
            close_anything(made)
        if not taken:
            close_anything(chan)
        raise
    return made


def _check_socket(sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("only stream sockets can carry TLS")
    sock.getpeername()  # OSError where it is not connected


def _wrapping_channel(
    server: bool,
    credentials: Any,
    peersubject: str | None,
    verifier: Verifier | None,
    requestclientcert: bool,
    alpn: Iterable[str | bytes] | None,
    timeout: float | None,
) -> TlsChannel:
    verifier = _check_verifier(verifier)
    names = None if alpn is None else check_alpn(alpn)
    if not server:
        if peersubject is None:
            raise ValueError("peersubject must be specified for client connections")
        return _client_channel(credentials, peersubject, verifier, names, timeout)
    if peersubject is not None:
        raise ValueError("peersubject cannot be specified with server=True")
    if credentials is None:
        raise ValueError("credentials must be specified for a server")
    _check_credentials(credentials, "server")
    session = make_session(
        "server",
        credentials if isinstance(credentials, Credentials) else None,
        request_cert=bool(requestclientcert),
        ask_verdict=verifier is not None,
        alpn=names,
    )
    return TlsChannel(
        session,
        "server",
        credentials=_held(credentials),
        owns_credentials=True,
        verifier=verifier,
        policy=_policy(credentials),
        timeout=timeout,
    )


def _first_step(channel: TlsChannel) -> None:
    if channel.blocking:
        channel.negotiate(channel.gettimeout())
        return
    server = channel.state == "SERVERINIT"
    loop = running_loop()
    if loop is not None:
        channel.drive_from(loop, report_failure if server else None)
    if not server:
        channel.negotiate(0)


def _check_tls(chan: object) -> TlsChannel | Listener:
    if not isinstance(chan, (TlsChannel, Listener)):
        raise TypeError(f"{chan!r} is not a valid TLS channel")
    return chan


def tls_handshake(chan: Channel) -> bool:
    """Finishes the negotiation, or drives it on.

    Blocking channel: True once it is OPEN. Non-blocking: True if OPEN, else
    as far as it goes without waiting, and False. Raises what the negotiation
    failed of, TLSError for a listener, TLSClosedError for a closed channel,
    TypeError for anything else. Source: TWAPI, tls_handshake.
    """
    channel = _check_tls(chan)
    if isinstance(channel, Listener):
        raise make_error(
            TLSError,
            "Cannot do a TLS handshake on a listening socket.",
            errorcode=("TWAPI", "TLS", "LISTENER"),
        )
    if channel.closed:
        if channel.cget("error") is not None:
            raise channel.cget("error")
        raise closed_error()
    return channel.negotiate(channel.gettimeout())


def tls_state(chan: Channel) -> str:
    """CLIENTINIT, SERVERINIT, LISTENER, NEGOTIATING, OPEN or CLOSED.

    NEGOTIATING includes the verifier's call. TypeError for what is no TLS
    channel. Source: TWAPI, tls_state.
    """
    return _check_tls(chan).state


def tls_close(chan: Channel, direction: str | None = None) -> None:
    """Closes a TLS channel, or its writing side.

    No direction: sends what was written and close_notify (best effort,
    bounded) and closes; idempotent. "write" or any abbreviation: sends what
    was written, close_notify and TCP's FIN; reading goes on; a second call
    does nothing. If the channel is non-blocking, what has to wait (for OPEN,
    or for room) is done by the event loop or by ``flush``. Anything else:
    ValueError, and nothing is closed. Source: TWAPI, tls_close.
    """
    channel = _check_tls(chan)
    if direction is None:
        channel.close()
        return
    if not isinstance(direction, str):
        raise TypeError(f"direction must be a string, not {direction!r}")
    if direction and "read".startswith(direction):
        raise ValueError("half-closing the input side is not supported for TLS channels")
    if not direction or not "write".startswith(direction):
        raise ValueError(f"bad direction {direction!r}: must be 'write'")
    if isinstance(channel, Listener):
        raise ValueError("a listening channel has no sides to close")
    channel.half_close()
