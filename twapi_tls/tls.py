"""The TLS channel: a ``Channel`` that negotiates before data moves.

Theory of operation. One thread at a time *drives* the negotiation: a caller
that needs the channel open, or the event loop. It steps the session until
that is done, waits for bytes, or asks for a decision; decisions (verifier,
credentials, certificate) are made here with nothing locked, so they may use
the API, close the channel or wait for other threads. Everybody else who
needs the channel open waits for the driver, or is told that it would block.

Nothing written moves before OPEN, and OPEN comes after the verdict only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from . import _native
from ._native import TLSError, TLSTimeoutError
from .certs import Certificate
from .channel import Channel, close_anything
from .errors import Deadline, closed_error, make_error, timeout_error
from .events import READS, WRITES, ChannelEvents, report, require_loop, running_loop
from .options import READ_ONLY, TLS_READ_ONLY
from .sockets import PendingConnection
from .sspi import ConnectionFacts, Credentials, SspiContext, answer_certificate
from .transport import ByteTransport, TlsTransport, session_transport
from .verify import (
    Policy,
    Refusal,
    call_verifier,
    default_verdict,
    discard_awaitable,
    is_awaitable,
    judge,
    refuse_awaitable,
)

TYPE_CHECKING = False

if TYPE_CHECKING:
    import asyncio
    from typing import Any, NoReturn

    from .asking import Asker
    from .pool import StepPool
    from .sspi import Role
    from .verify import Verifier

    CredentialsChooser = Callable[[str, list[bytes], list[int]], Credentials]

GRACE = 0.2  # seconds
PATIENCE = 0.5  # seconds that the peer has for our alert


class TlsChannel(Channel):
    """One end of a TLS connection. Made by ``tls_socket`` and ``starttls``."""

    def __init__(
        self,
        session: _native.Session,
        role: Role,
        *,
        credentials: Credentials | CredentialsChooser,
        owns_credentials: bool = False,
        peersubject: str | None = None,
        verifier: Verifier | None = None,
        policy: Policy | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(None, timeout=timeout)
        self._session = session
        self._role: Role = role
        self._credentials = credentials
        self._owns_credentials = owns_credentials
        self._peersubject = peersubject
        self._verifier = verifier
        self._policy = policy or Policy()
        chooser = None
        self._asks = False  # the private key may ask a person
        if isinstance(credentials, Credentials):
            chooser = credentials.config.clientcertificate
            self._asks = credentials.asks
        self._context = SspiContext(
            session, role, target=peersubject, policy=self._policy, chooser=chooser, of_channel=True
        )
        self._tls: TlsTransport | None = None
        self._connector: PendingConnection | None = None
        self._started = False
        self._opened = False
        self._pool: StepPool | None = None  # steps of the loop's may be made there
        self._asker: Asker | None = None  # a step that is made beside us
        # Guards the four fields below; never held while anything is called.
        self._turn = threading.Condition(threading.Lock())
        self._driver: int | None = None  # the thread that drives
        self._verdict_asked = False
        self._task: asyncio.Task[None] | None = None  # an awaited verdict
        self._driven = False  # the event loop drives the negotiation
        self._on_settled: Callable[[TlsChannel, BaseException | None], None] | None = None

    # --- set-up

    def put_on(self, below: object) -> None:
        """Puts the session on a connected thing, taking it over.

        ``below``: as ``session_transport`` takes it, or a channel. Closed, if
        the session cannot be put on it.
        """
        try:
            if isinstance(below, Channel):
                below = below.release_transport()
            tls = session_transport(self._session, below)
        except BaseException:
            close_anything(below)
            raise
        with self._close_lock:
            closed = self._closed
            if not closed:
                self._tls = tls
                self._io = tls
                self._set_spin(self._spin)
        if closed:
            tls.close(0.0, False)
            raise closed_error()

    def _holds(self) -> bool:
        return self._io is not None or self._connector is not None

    def connect_later(self, connector: PendingConnection) -> None:
        """The thing to put the session on is still connecting."""
        self._connector = connector

    def drive_from(
        self,
        loop: asyncio.AbstractEventLoop,
        on_settled: Callable[[TlsChannel, BaseException | None], None] | None = None,
        pool: StepPool | None = None,
    ) -> None:
        """Has the loop drive the negotiation, without ever blocking it.

        on_settled(channel, error or None): called from the loop, once, when
        the loop settled it; a caller that met the error first keeps it.
        pool: makes the steps while it is crowded; what they call for stays
        with the loop.
        """
        self._driven = True
        if self._tls is self._session:  # nothing of the user's runs in a step
            self._pool = pool
        self._on_settled = on_settled
        self._events = ChannelEvents(self, require_loop(loop))
        if self._connector is not None:
            self._connector.on_done(self._kick)
        self._kick()

    # --- state

    @property
    def state(self) -> str:
        """CLIENTINIT, SERVERINIT, NEGOTIATING, OPEN or CLOSED."""
        if self._closed or self._error is not None:
            return "CLOSED"
        if self._opened:
            return "OPEN"
        if self._role == "client":
            return "NEGOTIATING" if self._started else "CLIENTINIT"
        return "SERVERINIT" if self._session.state() == "INIT" else "NEGOTIATING"

    def _raise_closed(self) -> NoReturn:
        if self._taken:
            raise closed_error("the channel was given to starttls")
        raise closed_error()

    # --- negotiation

    def _prepare(self, timeout: float | None) -> bool:
        self._check_alive()
        return self._opened or self.negotiate(timeout)

    def negotiate(self, timeout: float | None) -> bool:
        """Drives the negotiation; True once OPEN, False if it would wait.

        Raises what it failed of, every time; TLSTimeoutError leaves it
        unharmed.
        """
        deadline = Deadline(timeout)
        me = threading.get_ident()
        with self._turn:
            while True:
                if self._error is not None:
                    raise self._error.with_traceback(None)
                if self._closed:
                    self._raise_closed()
                if self._opened:
                    return True
                if self._driver is None and self._task is None:
                    self._driver = me
                    break
                if timeout == 0:
                    return False
                if self._driver == me or (self._task is not None and self._in_loop()):
                    raise make_error(
                        TLSError,
                        "the negotiation waits for the verifier: no data moves before its answer",
                        errorcode=("TWAPI", "TLS", "NEGOTIATE", "REENTERED"),
                    )
                self._turn.wait(deadline.left())
                if deadline.expired():
                    raise timeout_error("the TLS negotiation")
        try:
            return self._drive(deadline)
        except TLSTimeoutError:
            raise
        except Exception as error:
            cause = error.error if isinstance(error, Refusal) else error
            if self._closed:
                cause = closed_error("the channel was closed during the TLS negotiation")
            self._settle(cause)
            raise cause from cause.__cause__
        finally:
            with self._turn:
                self._driver = None
                self._turn.notify_all()

    def _in_loop(self) -> bool:
        events = self._events
        return events is not None and events.in_loop()

    def _drive(self, deadline: Deadline) -> bool:
        """The one place that steps the handshake; this thread's turn."""
        if self._tls is None and not self._connected(deadline):
            return False
        tls = self._tls
        assert tls is not None
        while True:
            self._started = True
            status = self._step(tls, deadline)
            if status == _native.DONE:
                self._settle(None)
                return True
            if status == _native.WANT_VERDICT:
                if not self._decide(tls):
                    return False
            elif status == _native.WANT_CREDENTIALS:
                self._choose_credentials()
            elif status == _native.WANT_CERTIFICATE:
                chosen = answer_certificate(self._context)
                self._asks = self._asks or (chosen is not None and chosen.asks)
            elif status in (None, _native.WANT_READ, _native.WANT_WRITE):
                return False
            else:
                raise make_error(
                    TLSError,
                    "TLS negotiation failed: the peer closed the connection",
                    errorcode=("TWAPI", "TLS", "NEGOTIATE", "EOF"),
                )
            if self._closed:
                raise closed_error("the channel was closed during the TLS negotiation")

    def _step(self, tls: TlsTransport, deadline: Deadline) -> int | None:
        """One step of the engine; None: the loop hears when it is over.

        What may ask a person runs beside us, and what a pool takes off the
        loop. A non-blocking channel without a loop has nobody to tell: it
        waits.
        """
        asks = self._asks and (deadline.timeout != 0 or self._driven)
        pool = self._pool if self._pool is not None and self._pool.crowded else None
        if self._asker is None and not asks and (pool is None or deadline.timeout != 0):
            return tls.handshake(deadline.left())
        from .asking import Asker, in_a_thread  # most channels never come here

        start = in_a_thread if asks or pool is None else pool.submit
        while True:
            asker = self._asker
            if asker is None:
                asker = Asker(partial(tls.handshake, deadline.left()), self._kick, start)
                self._asker = asker
            left = deadline.left()
            # Beyond the step's own timeout, which tells of a silent peer.
            if not asker.wait(left + GRACE if left else left):
                if deadline.timeout == 0:
                    return None
                raise timeout_error("the private key's use (a PIN or consent may be asked for)")
            self._asker = None
            try:
                return asker.result()
            except TLSTimeoutError:
                if deadline.expired():
                    raise
                # the timeout of a call before this one

    def _connected(self, deadline: Deadline) -> bool:
        connector = self._connector
        if connector is None:
            self._raise_closed()
        if not connector.wait(deadline.left()):
            if deadline.timeout == 0:
                return False
            raise timeout_error("the connection attempt")
        self._connector = None
        self.put_on(connector.result())
        return True

    def _choose_credentials(self) -> None:
        chooser = self._credentials
        if isinstance(chooser, Credentials):
            self._session.set_credentials(chooser.native)
            return
        hello = self._session.hello() or {}
        chosen = chooser(
            hello.get("server_name", ""),
            list(hello.get("alpn", ())),
            list(hello.get("versions", ())),
        )
        if not isinstance(chosen, Credentials):
            raise TypeError(f"credentials must return Credentials, not {chosen!r}")
        self._session.set_credentials(chosen.native)
        self._credentials = chosen

    # --- the verdict

    def _decide(self, tls: TlsTransport) -> bool:
        """Asks for the verdict, once a connection; False: it is awaited."""
        if self._verdict_asked:
            raise make_error(
                TLSError,
                "TLS negotiation failed: the peer's certificate came up for a second verdict",
                errorcode=("TWAPI", "TLS", "NEGOTIATE"),
            )
        self._verdict_asked = True
        if self._verifier is None:
            if self._role == "server":
                tls.verdict(0)
                return True
            if self._policy.fetch and self._in_loop():
                # It may go to the network: off the loop.
                self._await_default(tls)
                return False
            tls.verdict(*default_verdict(self._session, self._peersubject, self._policy))
            return True
        try:
            answer = call_verifier(self._verifier, self, self._context)
            if is_awaitable(answer):
                if self.blocking or not self._driven or not self._in_loop():
                    raise refuse_awaitable(answer)
                if self._closed:
                    discard_awaitable(answer)
                    self._raise_closed()
                self._await_verifier(tls, answer)
                return False
            if self._closed:
                self._raise_closed()
            judge(answer)
        except Refusal as refusal:
            self._refuse(tls, refusal)
        tls.verdict(0)
        return True

    def _refuse(self, tls: TlsTransport, refusal: Refusal) -> NoReturn:
        """Tells the peer by an alert, and raises what the refusal says."""
        error = refusal.error
        if not self._closed:
            try:
                tls.verdict(refusal.code, str(error))
            except TLSError as sent:
                if isinstance(error, TLSError) and error.alert_sent is None:
                    error.alert_sent = sent.alert_sent
                    error.alert = error.alert or sent.alert
            except OSError:
                pass  # the peer has gone: nobody to tell
        raise refusal from error.__cause__

    def _await_verifier(self, tls: TlsTransport, answer: Any) -> None:
        async def verdict() -> None:
            try:
                try:
                    result = await answer
                except Exception as error:
                    raise Refusal(error) from error
                judge(result)
            except Refusal as refusal:
                if not self._closed:
                    self._refuse(tls, refusal)
            if not self._closed:
                tls.verdict(0)

        self._run_task(verdict())

    def _await_default(self, tls: TlsTransport) -> None:
        events = self._events
        assert events is not None
        loop = events.loop

        async def verdict() -> None:
            answer = await loop.run_in_executor(
                None, default_verdict, self._session, self._peersubject, self._policy
            )
            if not self._closed:
                tls.verdict(*answer)

        self._run_task(verdict())

    def _run_task(self, work: Any) -> None:
        """Runs a verdict's coroutine; the negotiation goes on after it."""
        events = self._events
        assert events is not None

        def done(task: asyncio.Task[None]) -> None:
            error: BaseException | None
            if task.cancelled():
                error = closed_error("the verifier was cancelled")
                with suppress(OSError):
                    if self._tls is not None and not self._closed:
                        self._tls.verdict(_native.CODES["SEC_E_CERT_UNKNOWN"], "cancelled")
            else:
                error = task.exception()
            if isinstance(error, Refusal):
                error = error.error
            if error is not None and not self._closed:
                self._settle(error)
            with self._turn:
                self._task = None
                self._turn.notify_all()
            self._kick()

        self._task = events.loop.create_task(work)
        self._task.add_done_callback(done)

    def fail(self, error: BaseException) -> None:
        """Ends an unfinished negotiation with an error (a timeout's, say)."""
        if not self._opened and self._error is None and not self._closed:
            task = self._task
            if task is not None:
                task.cancel()
            self._settle(error)

    def hand_over(self) -> None:
        """A server's channel goes to its user: blocking again, undriven."""
        self._driven = False
        events, self._events = self._events, None
        if events is not None:
            events.close()
        self._timeout = None

    # --- how it ends

    def _settle(self, error: BaseException | None) -> None:
        """The negotiation is over: open, or failed for good."""
        with self._turn:
            if self._opened or self._error is not None:
                return
            if error is None:
                self._opened = True
                self._usable = not self._closed
            else:
                self._error = error
            self._turn.notify_all()
        if error is not None:
            self._drop()
        # Queued output goes with the caller or the loop's next pass.
        elif (self._queue or self._ending) and self._write_lock.acquire(0):
            try:
                with suppress(OSError):
                    if self._flush_queue(Deadline(0)):
                        self._finish_writing(Deadline(0))
            finally:
                self._write_lock.release()
        self._kick()

    def _drop(self) -> None:
        """A failed negotiation leaves no socket, context or credential.

        The handlers stay: they are how an event-driven user hears of it.
        """
        self._usable = False
        self._ending = False
        self._queue.clear()
        if self._events is not None:
            self._events.forget_descriptor()
        with self._close_lock:
            if self._io is not None:
                # A transport whose close() raises must not hide the cause.
                with suppress(Exception):
                    self._close_io(self._io, self._patience(), False)
            else:
                self._session.close(0.0, False)
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.cancel()
        self._free_credentials()

    def _patience(self) -> float:
        """Seconds to wait for a peer that may be sending to read our alert.

        A server in a handshake is not: it waits for its client. Where an
        event loop runs nothing waits.
        """
        mute = self._role == "client" and not self._opened
        if mute or self._timeout == 0 or running_loop() is not None:
            return 0.0
        return min(PATIENCE, self._timeout or PATIENCE)

    def _close_io(self, io_: ByteTransport, timeout: float, graceful: bool) -> None:
        asker = self._asker
        if asker is None or asker.over() or not self._asks:
            super()._close_io(io_, timeout, graceful)
        else:
            asker.leave(partial(io_.close, 0.0, False))

    def _free_credentials(self) -> None:
        if self._owns_credentials and isinstance(self._credentials, Credentials):
            self._credentials.free()

    def _failed(self, error: BaseException) -> None:
        super()._failed(error)
        if self._opened and isinstance(error, TLSError):
            # The channel is CLOSED: the descriptor goes, the alert was sent.
            self._drop()

    def _close_transport(self, timeout: float, graceful: bool) -> None:
        task = self._task
        if task is not None:
            events = self._events
            if events is not None and not events.in_loop():
                with suppress(RuntimeError):
                    events.loop.call_soon_threadsafe(task.cancel)
            else:
                task.cancel()
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.cancel()
        try:
            super()._close_transport(timeout, graceful and self._opened)
        finally:
            if self._io is None:
                self._session.close(0.0, False)
            self._free_credentials()
            with self._turn:
                self._turn.notify_all()

    # --- events

    def _event_step(self) -> None:
        if not self._opened and self._error is None and not self._closed:
            try:
                self.negotiate(0)
            except Exception as error:
                # Kept in _error; whoever waits for it hears below.
                if self._error is None and not self._closed:
                    self._settle(error)
        if self._on_settled is not None and (self._opened or self._error is not None):
            settled, self._on_settled = self._on_settled, None
            settled(self, self._error)
        super()._event_step()

    def _event_rest(self) -> int:
        if self._opened or self._closed or self._error is not None:
            return super()._event_rest()
        if self._tls is None or self._task is not None or self._asker is not None:
            return 0
        return READS | WRITES if self._tls.output_pending() else READS

    def _event_fd(self) -> int:
        return -1 if self._error is not None else self.fileno()

    def fileno(self) -> int:
        return -1 if self._error is not None else super().fileno()

    def _transport_input(self) -> int:
        return self._session.pending() if self._opened else 0

    # --- options and facts

    def _read_only(self) -> tuple[str, ...]:
        return (*READ_ONLY, *TLS_READ_ONLY)

    def cget(self, name: str) -> Any:
        """As ``Channel.cget``; also ``credentials``, ``context``, ``verifier``."""
        if name == "credentials":
            return self._credentials
        if name == "context":
            return self._context
        if name == "verifier":
            return self._verifier
        return super().cget(name)

    def _current_error(self) -> BaseException | None:
        connector = self._connector
        if self._error is None and connector is not None and connector.done():
            # Nobody has driven it yet: look without consuming.
            return connector.failure()
        return super()._current_error()

    def _set_ragged(self, ragged: str) -> None:
        super()._set_ragged(ragged)
        self._session.set_ragged_eof(ragged == "eof")

    def _set_spin(self, spin: bool) -> None:
        super()._set_spin(spin)
        if isinstance(self._tls, _native.Session):
            self._tls.set_spin(spin)

    def _connecting(self) -> bool:
        connector = self._connector
        return connector is not None and not connector.done()

    @property
    def context(self) -> SspiContext:
        """The connection's security context."""
        return self._context

    def facts(self) -> ConnectionFacts:
        """What was negotiated, as ``SspiContext.facts``."""
        return self._context.facts()

    def version(self) -> str | None:
        """The protocol as ssl writes it ("TLSv1.3"), None before OPEN."""
        return _ssl_name(self.facts()) if self._opened else None

    def cipher(self) -> tuple[str, str, int] | None:
        """(cipher, protocol, bits) as ``ssl.SSLSocket.cipher``."""
        if not self._opened:
            return None
        facts = self.facts()
        return facts.cipher_name, _ssl_name(facts), facts.bits

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that ALPN chose, None if none."""
        chosen = self.facts().alpn if self._opened else None
        return chosen.decode("utf-8", "replace") if chosen else None

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """As ``ssl.SSLSocket.get_channel_binding``; None before OPEN."""
        return self._context.channel_binding(cb_type) if self._opened else None

    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate, None if it sent none."""
        try:
            return Certificate(self._session.remote_cert())
        except TLSError as error:
            if error.code == _native.CODES["SEC_E_NO_CREDENTIALS"]:
                return None
            raise

    def half_close(self) -> None:
        """close_notify and TCP's FIN; reading goes on. A no-op once done.

        On a non-blocking channel what has to wait, for OPEN or for room, is
        done by the event loop, or by ``flush``.
        """
        if not self._closed:
            self._end_writing()

    def __repr__(self) -> str:
        return f"<TlsChannel {self._role} {self.state} fd={self.fileno()}>"


def _ssl_name(facts: ConnectionFacts) -> str:
    """The protocol as the ssl module writes it."""
    return facts.protocol.replace("TLS ", "TLSv")


def report_failure(channel: TlsChannel, error: BaseException | None) -> None:
    """on_settled of a server end without a caller: a background error."""
    events = channel._events
    loop = running_loop() if events is None else events.loop
    if error is not None and loop is not None:
        report(loop, error, channel, "handshake")
