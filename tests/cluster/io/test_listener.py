"""Accepting: on each address that is meant, no more at once than may be, and again after a rest."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any

import pytest

from rabble import Limits
from rabble.cluster.decide.handshake import Failed
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.io.listener import (
    EXHAUSTED_PAUSE_S,
    PORTS_TRIED,
    Listener,
    open_listeners,
)
from tests.cluster.io.endpoint import Endpoint, turn_until
from tests.support import held_ports


def connect(end: Endpoint) -> socket.socket:
    host, _, port = end.addr.rpartition(":")
    return socket.create_connection((host, int(port)))


def test_all_addresses_get_the_same_port() -> None:
    listeners = open_listeners("localhost:0", loopback_only=True)
    try:
        assert len({sock.getsockname()[1] for sock in listeners}) == 1
    finally:
        for sock in listeners:
            sock.close()


def test_a_network_needs_proof_of_identity() -> None:
    listeners: list[socket.socket] = []
    with pytest.raises(ValueError, match="give the mesh a key"):
        open_listeners("0.0.0.0:0", loopback_only=True, listeners=listeners)
    for sock in open_listeners("0.0.0.0:0", loopback_only=False):
        sock.close()


def test_an_address_in_use_says_which() -> None:
    [first] = open_listeners("127.0.0.1:0", loopback_only=True)
    with first:
        addr = f"127.0.0.1:{first.getsockname()[1]}"
        listeners: list[socket.socket] = []
        with pytest.raises(OSError, match=f"cannot listen on {addr}") as raised:
            open_listeners(addr, loopback_only=True, listeners=listeners)
        assert raised.value.errno == errno.EADDRINUSE
        assert all(sock.fileno() == -1 for sock in listeners)


def test_a_refused_peer_learns_why() -> None:
    with Endpoint("a") as a, Endpoint("b") as b:
        b.refusal = Refusal(RefusalCode.SHUTDOWN)
        a.dial(b.addr)
        turn_until(lambda: a.failures and b.failures, a, b)
        assert a.failures[0][1].code is b.failures[0][1].code is RefusalCode.SHUTDOWN
        assert a.failures[0][1].authenticated


def test_of_too_many_handshakes_the_oldest_gives_way() -> None:
    with Endpoint("a", handshakes_max=2) as a, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(a))
        turn_until(lambda: a.dropped, a)
        assert a.dropped == [101]
        assert len(a.runner) == 2
        assert a.failures == []


def test_a_closed_listener_lets_handshakes_go_on() -> None:
    with Endpoint("a") as a, connect(a):
        turn_until(lambda: len(a.runner), a)
        a.listener.close()
        assert len(a.runner) == 1
        with pytest.raises(ConnectionRefusedError):
            connect(a)


class Exhausted:
    """A listening socket of a process without descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.calls = 0

    def accept(self) -> Any:
        self.calls += 1
        raise OSError(errno.EMFILE, "Too many open files")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class Poor(socket.socket):
    """A listening socket of a process that runs out of descriptors, and has some again."""

    poor = True

    def accept(self) -> Any:
        if self.poor:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_two_that_are_ready_at_once_without_descriptors_rest_once_and_accept_again() -> None:
    with Endpoint("a") as a, contextlib.ExitStack() as stack:
        listening = [open_listeners("127.0.0.1:0", loopback_only=True)[0] for _ in range(2)]
        poor = [Poor(fileno=sock.detach()) for sock in listening]
        listener = Listener(
            a.runner,
            a.selector,
            poor,
            ready=lambda sock, events: a.failures.extend(
                (0, each, "", False) for each in listener.accept(sock) if isinstance(each, Failed)
            ),
            next_id=a.next_connection_id,
            context=None,
            limits=Limits(),
            clock=a.clock,
        )
        stack.callback(listener.close)
        for sock in poor:
            stack.enter_context(socket.create_connection(sock.getsockname()))
        ready = a.selector.select(1.0)
        assert len(ready) == 2
        for key, events in ready:
            key.data(events)
        assert len(a.failures) == 1
        assert not {sock.fileno() for sock in poor} & set(a.selector.get_map())
        listener.tick(a.clock() + 2 * EXHAUSTED_PAUSE_S)
        assert {sock.fileno() for sock in poor} <= set(a.selector.get_map())
        assert listener.next_tick() is None


def test_a_listener_that_cannot_be_watched_again_rests_once_more() -> None:
    with Endpoint("a") as a:
        a.listener._rest()
        register = a.selector.register

        def fail(*arguments: Any) -> Any:
            raise OSError(errno.ENOSPC, "no more watches")

        a.selector.register = fail  # type: ignore[method-assign]
        with pytest.raises(OSError, match="no more watches"):
            a.listener.tick(a.clock() + EXHAUSTED_PAUSE_S)
        assert a.listener.next_tick() is not None
        a.selector.register = register  # type: ignore[method-assign]
        a.late_s = 3 * EXHAUSTED_PAUSE_S
        a.turn()
        assert a.listener.next_tick() is None
        with connect(a):
            turn_until(lambda: len(a.runner), a)


def test_without_descriptors_it_rests_and_accepts_again() -> None:
    with Endpoint("a") as a, connect(a):
        [sock] = a.listener._socks
        exhausted = Exhausted(sock)
        a.accept(exhausted, 0)  # type: ignore[arg-type]
        assert exhausted.calls == 1
        [(_, failed, remote, _)] = a.failures
        assert (failed.code, remote) == (RefusalCode.LIMIT, "anybody")
        assert "cannot accept" in failed.text
        # Another listener that was ready at the same time: it rests already.
        a.accept(exhausted, 0)  # type: ignore[arg-type]
        assert exhausted.calls == 1 and len(a.failures) == 1
        resume_at = a.listener.next_tick()
        assert resume_at == pytest.approx(a.clock() + EXHAUSTED_PAUSE_S, abs=EXHAUSTED_PAUSE_S)
        a.turn()
        assert len(a.runner) == 0
        a.late_s = 2 * EXHAUSTED_PAUSE_S
        turn_until(lambda: len(a.runner), a)


def test_a_close_that_failed_half_way_is_done_once_more() -> None:
    with Endpoint("a") as a:
        [sock] = a.listener._socks
        # As if what follows the close of the socket had raised.
        sock.close()
        a.listener.close()
        assert a.listener._socks == []
        assert len(a.selector.get_map()) == 0


TWO_FAMILIES = [
    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, 0))
    for host in ("127.0.0.1", "127.0.0.2")
]


class Taken:
    """In place of `bind`: another program has the port of the second address, at first or ever."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.bound: list[tuple[str, int]] = []
        self.bind = socket.socket.bind

    def __call__(self, sock: socket.socket, where: tuple[str, int]) -> None:
        self.bound.append(where)
        if where[0] == "127.0.0.2" and self.times:
            self.times -= 1
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.bind(sock, where)


@pytest.fixture
def taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Taken:
    bind = Taken(request.param)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: TWO_FAMILIES)
    monkeypatch.setattr(socket.socket, "bind", lambda sock, where: bind(sock, where))
    return bind


@pytest.mark.parametrize("taken", [3], indirect=True)
def test_a_port_that_is_free_for_one_family_only_is_not_taken(taken: Taken) -> None:
    listeners = open_listeners("localhost:0", loopback_only=True)
    names = [sock.getsockname() for sock in listeners]
    for sock in listeners:
        sock.close()
    assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert names[0][1] == names[1][1]
    assert len(taken.bound) == 8


@pytest.mark.parametrize("taken", [-1], indirect=True)
@pytest.mark.parametrize("tried", [1, PORTS_TRIED], ids=["that was asked for", "any"])
def test_a_port_that_cannot_be_had_is_an_error_and_leaves_nothing(taken: Taken, tried: int) -> None:
    listeners: list[socket.socket] = []
    with held_ports(1) as [port]:
        taken.bound.clear()
        addr = f"localhost:{port if tried == 1 else 0}"
        said = f"cannot listen on {addr} .127.0.0.2.: Address already in use"
        with pytest.raises(OSError, match=said):
            open_listeners(addr, loopback_only=True, listeners=listeners)
    assert all(sock.fileno() == -1 for sock in listeners)
    assert len(taken.bound) == 2 * tried
