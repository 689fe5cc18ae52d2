"""KeyUpdate and renegotiation in the middle of data: no byte lost or doubled.

The peer is told to do it while we send without a pause; what both ends
received is compared by hash. s_client and s_server take a command only as the
first byte of what they read at once, and drop the rest of it: so a command
goes out when all before it has come through.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Callable

import peers
import pytest
from certs import Pki
from interop_support import PATIENCE, connect, facts, our_server, payload, receive
from twapi_support import client_credentials

import twapi_tls as tls

pytestmark = [pytest.mark.peers, pytest.mark.timeout(90)]

PART = 100_000  # bytes that the peer sends between two commands
ROUNDS = 5

# What openssl says in the midst of the data; the data itself has no letters.
_NOISE = re.compile(
    rb"(?:SSL_do_handshake -> -?\d+|[Rr]ead (?:R )?BLOCK|RENEGOTIATING|KEYUPDATE"
    rb"|Can't use SSL_get_servername|depth=[^\n]*|verify return:\d+)\n"
)


class Load:
    """Sends numbered lines from a thread until it is told to end."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send
        self._over = threading.Event()
        self._digest = hashlib.sha256()
        self._failure: BaseException | None = None
        self.size = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            number = 0
            self._put(b"<\n")
            while not self._over.is_set():
                block = b"".join(b"%063d\n" % line for line in range(number, number + 256))
                number += 256
                self._put(block)
            self._put(b">\n")
        except BaseException as error:
            self._failure = error

    def _put(self, data: bytes) -> None:
        self._send(data)
        self._digest.update(data)
        self.size += len(data)

    def end(self) -> str:
        """The digest of all that was sent; raises what sending met."""
        self._over.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "sending does not end"
        if self._failure is not None:
            raise self._failure
        return self._digest.hexdigest()


def digest_printed(peer: peers.Peer) -> str:
    """Of the load that the peer received, out of all that it printed."""
    output = peer.until(lambda printed: printed.endswith(b">\n"), PATIENCE)
    clean = _NOISE.sub(b"", output)
    return hashlib.sha256(clean[clean.rindex(b"<\n") :]).hexdigest()


def under_load(
    channel: tls.TlsChannel, peer: peers.Peer, command: bytes, done: bytes, wait: bool = True
) -> None:
    """The peer's data with a command after each part, ours all the while."""
    load = Load(channel.sendall)
    for number in range(ROUNDS):
        part = payload(PART, number)
        sender = threading.Thread(target=peer.send, args=(part,), daemon=True)
        sender.start()
        assert receive(channel, len(part)) == part
        sender.join(PATIENCE)
        peer.send(command)
        if wait:
            peer.expect(done, PATIENCE)
    part = payload(PART, ROUNDS)
    peer.send(part)
    assert receive(channel, len(part)) == part
    sent = load.end()
    assert load.size > PART
    assert digest_printed(peer) == sent


@pytest.mark.parametrize("command", ["k", "K"])
def test_server_updates_keys(pki: Pki, command: str) -> None:
    """s_server renews its keys (k), and asks for ours (K)"""
    with peers.openssl_server(pki.server, version="1.3") as peer:
        with connect(peer, credentials=client_credentials(pki)) as channel:
            under_load(channel, peer, command.encode() + b"\n", rb"SSL_do_handshake -> 1\n")


@pytest.mark.parametrize("command", ["r", "R"])
def test_server_renegotiates(pki: Pki, command: str) -> None:
    """s_server asks for a renegotiation (r), and for a certificate with it (R)"""
    with peers.openssl_server(pki.server, version="1.2", client_ca=pki.root) as peer:
        with connect(peer, credentials=client_credentials(pki, pki.client)) as channel:
            under_load(channel, peer, command.encode() + b"\n", rb"SSL_do_handshake -> 1\n")
            assert facts(channel).protocol == "TLS 1.2"
        peer.expect(rb"")
        # As many handshakes as were asked for, and the first.
        assert peer.output.count(b"SSL_do_handshake -> 1") >= ROUNDS


class Relay:
    """Between a client and a server; keeps back what the server says beyond
    ``passes`` times that it says something (None: nothing)."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.passes: int | None = None
        self.held = threading.Event()  # something is kept back
        self.release = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,), daemon=True)
        self._thread.start()

    def _run(self, port: int) -> None:
        client, _ = self.listener.accept()
        self.listener.close()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            up = threading.Thread(target=self._pass, args=(client, server), daemon=True)
            up.start()
            with contextlib.suppress(OSError):  # either may have gone
                while data := server.recv(65536):
                    if self.passes == 0:
                        self.held.set()
                        self.release.wait(PATIENCE)
                    elif self.passes is not None:
                        self.passes -= 1
                    client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            up.join(PATIENCE)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        self.release.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the relay does not end"


@pytest.mark.parametrize("way", ["close", "half close", "half close without waiting"])
def test_an_end_in_a_renegotiation(pki: Pki, way: str) -> None:
    """close_notify comes before FIN, behind the renegotiation (RFC 5246, 7.2.1)"""
    with peers.openssl_server(pki.server, version="1.2", arguments=["-state"]) as peer:
        relay = Relay(peer.port)
        channel = tls.tls_socket(
            "127.0.0.1", relay.port, peersubject="localhost", credentials=client_credentials(pki)
        )
        with channel:
            channel.settimeout(PATIENCE)
            peer.send(b"first\n")
            assert channel.recv(100) == b"first\n"
            # The answer to its HelloRequest goes out; what it says to that is held.
            relay.passes = 1
            peer.send(b"r\n")
            channel.settimeout(0.05)
            while not relay.held.is_set():
                with pytest.raises(TimeoutError):
                    channel.recv(100)
            channel.settimeout(PATIENCE)
            answer = threading.Thread(target=channel.close, daemon=True)
            if way == "close":
                answer.start()
            elif way == "half close":
                answer = threading.Thread(
                    target=channel.shutdown, args=(socket.SHUT_WR,), daemon=True
                )
                answer.start()
            else:
                channel.setblocking(False)
                channel.shutdown(socket.SHUT_WR)
                channel.settimeout(PATIENCE)
            relay.release.set()
            if way == "half close without waiting":
                assert channel.recv(100) == b""
            else:
                answer.join(PATIENCE)
                assert not answer.is_alive()
            peer.expect(rb"alert read:warning:close notify", PATIENCE)
        relay.end()


def serve_client(
    pki: Pki, version: str, work: Callable[[tls.TlsChannel, peers.Peer], None]
) -> None:
    """``work`` with our end of a connection that s_client made, and s_client."""
    started: list[peers.Peer] = []
    ready = threading.Event()

    def run(channel: tls.TlsChannel) -> None:
        assert ready.wait(PATIENCE)
        work(channel, started[0])

    with our_server(pki.server, run) as served:
        with peers.openssl_client(served.port, version=version) as peer:
            started.append(peer)
            ready.set()
            assert facts_protocol(served.result()) == version
            outcome = served.result(ROUNDS * PATIENCE)
            if isinstance(outcome, BaseException):
                raise outcome


@pytest.mark.parametrize("command", ["rekey1", "rekey"])
def test_gnutls_client_updates_keys(pki: Pki, command: str) -> None:
    """gnutls-cli renews its keys (rekey1), and asks for ours (rekey), between lines"""
    # Commands are lines of their own.
    with our_server(pki.server) as served:
        with peers.gnutls_client(
            served.port, version="1.3", arguments=["--inline-commands"]
        ) as peer:
            for number in range(ROUNDS):
                line = b"line %d of some\n" % number
                peer.send(line)
                peer.expect(line, PATIENCE)
                peer.send(b"^%b^\n" % command.encode())
                peer.expect(rb"- Rekey was completed", PATIENCE)
            peer.send(b"the last\n")
            peer.expect(b"the last\n", PATIENCE)
            peer.close_stdin()
            peer.wait(PATIENCE)
        assert facts_protocol(served.result()) == "1.3"
        outcome = served.result()
        if isinstance(outcome, BaseException):
            raise outcome


def facts_protocol(seen: tls.ConnectionFacts) -> str:
    return seen.protocol.removeprefix("TLS ")


@pytest.mark.parametrize("command", ["k", "K"])
def test_client_updates_keys(pki: Pki, command: str) -> None:
    """s_client renews its keys (k), and asks for ours (K)"""

    def work(channel: tls.TlsChannel, peer: peers.Peer) -> None:
        under_load(channel, peer, command.encode() + b"\n", rb"KEYUPDATE\n")

    serve_client(pki, "1.3", work)


def test_client_renegotiation_is_declined(pki: Pki) -> None:
    """s_client asks for a renegotiation (R): our server declines by an alert

    As OpenSSL's own servers do (a client could have the server work for ever);
    s_client takes no_renegotiation for a failure of its own.
    """

    def work(channel: tls.TlsChannel, peer: peers.Peer) -> None:
        part = payload(10_000, 1)
        peer.send(part)
        assert receive(channel, len(part)) == part
        peer.send(b"R\n")
        with pytest.raises(tls.TLSAlertError) as caught:
            channel.recv(1)
        assert caught.value.alert_received == "handshake_failure"
        peer.expect(rb"no renegotiation", PATIENCE)

    serve_client(pki, "1.2", work)


def test_gnutls_renegotiates(pki: Pki) -> None:
    """gnutls-serv asks for a renegotiation between lines that it echoes"""
    # With tickets its own renegotiation fails ("handshake is in progress").
    with peers.gnutls_server(pki.server, version="1.2", arguments=["--noticket"]) as peer:
        with connect(peer, credentials=client_credentials(pki)) as channel:
            for number in range(ROUNDS):
                channel.sendall(b"**REHANDSHAKE**\n")
                answer = b"Successfully executed command\n"
                assert receive(channel, len(answer)) == answer
                part = payload(10_000, number)
                channel.sendall(part)
                assert receive(channel, len(part)) == part
        assert peer.output.count(b"*** Sending rehandshake request") == ROUNDS
