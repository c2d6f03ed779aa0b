"""Dials: the first address that answers, in the time they have, and not beyond loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from rabble import NodeId
from rabble.addresses import Address
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io import resolver
from tests.cluster.io.endpoint import Endpoint, turn_until
from tests.support import PATIENCE_S, held_ports, until


@pytest.fixture
def a() -> Iterator[Endpoint]:
    with Endpoint("a") as end:
        yield end


@pytest.fixture
def b() -> Iterator[Endpoint]:
    with Endpoint("b") as end:
        yield end


def of(end: Endpoint) -> Address:
    host, _, port = end.addr.rpartition(":")
    return (socket.AF_INET, (host, int(port)))


def test_a_dial_comes_to_a_peer_at_both_ends(a: Endpoint, b: Endpoint) -> None:
    a.dial(b.addr, 5, b.own)
    turn_until(lambda: a.peers and b.peers, a, b)
    [(dialled, peer, initiated)], [(_, caller, accepted)] = a.peers, b.peers
    assert (dialled, peer.node, initiated) == (5, b.own, True)
    assert (caller.node, accepted) == (a.own, False)
    assert a.failures == b.failures == []
    assert len(a.runner) == len(b.runner) == 0


def test_nothing_is_looked_up_of_an_address_that_is_known(
    a: Endpoint, b: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "look_up", a.unexpected)
    a.dial("somewhere.example:1", resolved=of(b))
    turn_until(lambda: a.peers and b.peers, a, b)
    assert a.failures == []


def test_the_next_address_is_tried_when_one_refuses(
    a: Endpoint, b: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_ports(1) as [port]:
        addresses = [(socket.AF_INET, ("127.0.0.1", port)), of(b)]
        monkeypatch.setattr(resolver, "look_up", lambda host, port, flags=0: list(addresses))
        a.dial("name:1")
        turn_until(lambda: a.peers and b.peers, a, b)
    assert a.failures == []


def test_a_dial_fails_when_no_address_answers(a: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_ports(3) as ports:
        addresses = [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(resolver, "look_up", lambda host, port, flags=0: list(addresses))
        a.dial("name:1")
        turn_until(lambda: a.failures, a)
    [(connection_id, failed, remote, initiated)] = a.failures
    assert (connection_id, remote, initiated) == (1, "name:1", True)
    assert (failed.code, failed.silent) == (RefusalCode.TIMEOUT, True)
    assert "refused" in failed.text


@pytest.mark.parametrize(
    ("found", "text"), [([], "it has no address"), (OSError("no such name"), "no such name")]
)
def test_a_name_without_address(
    a: Endpoint, monkeypatch: pytest.MonkeyPatch, found: list[Address] | OSError, text: str
) -> None:
    def look_up(host: str, port: int, flags: int = 0) -> list[Address]:
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(resolver, "look_up", look_up)
    a.dial("name:1")
    turn_until(lambda: a.failures, a)
    assert a.failures[0][1].text == text


def test_without_proof_of_identity_only_loopback_is_dialled() -> None:
    with Endpoint("a", loopback_only=True) as a:
        a.dial("192.0.2.1:1")
        turn_until(lambda: a.failures, a)
        assert "192.0.2.1 is not of this machine" in a.failures[0][1].text


def test_a_dial_that_is_dropped_says_nothing_any_more(
    a: Endpoint, b: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.dial(b.addr)
    # Its address is known, and waits among the commands.
    assert a.connector.drop(1)
    assert not a.connector.drop(1)
    a.turn()
    assert len(a.runner) == 0
    a.dial(b.addr, 2)
    a.turn()
    assert not a.connector.drop(2)
    assert a.runner.drop(2)
    assert not a.runner.drop(2)
    assert a.peers == a.failures == []


def test_who_answers_must_be_who_was_dialled(a: Endpoint, b: Endpoint) -> None:
    a.dial(b.addr, node=NodeId("c", b.addr))
    turn_until(lambda: a.failures, a, b)
    assert a.failures[0][1].code is RefusalCode.NAME_MISMATCH


def test_a_dial_without_leave_to_authenticate_is_dropped(a: Endpoint, b: Endpoint) -> None:
    a.lets_authenticate = False
    a.dial(b.addr)
    turn_until(lambda: b.failures, a, b)
    assert a.peers == a.failures == []
    assert len(a.runner) == 0


def test_a_peer_that_says_nothing_is_given_up_in_time(a: Endpoint) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        a.dial(f"127.0.0.1:{silent.getsockname()[1]}")
        turn_until(lambda: len(a.runner), a)
        next_tick = a.runner.next_tick()
        assert next_tick is not None
        a.late_s = next_tick - a.clock() + 60
        turn_until(lambda: a.failures, a)
        assert a.failures[0][1].code is RefusalCode.TIMEOUT


def test_a_look_up_that_takes_too_long_ends_its_dial_and_no_other(
    a: Endpoint, b: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    look_up = resolver.look_up

    def hang(host: str, port: int, flags: int = 0) -> list[Address]:
        if not flags:
            assert released.wait(PATIENCE_S)
        return look_up(host, port, flags)

    monkeypatch.setattr(resolver, "look_up", hang)
    for connection_id in range(10, 20):
        a.dial(f"name-{connection_id}.example:1", connection_id)
    a.dial(b.addr, 5)
    turn_until(lambda: a.peers, a, b)
    assert a.peers[0][0] == 5 and a.failures == []
    assert 10 in a.connector and 5 not in a.connector
    due = a.connector.next_tick()
    assert due is not None
    a.late_s = due + 1 - a.clock()
    turn_until(lambda: len(a.failures) == 10, a)
    assert {connection_id for connection_id, *_ in a.failures} == set(range(10, 20))
    assert a.failures[0][1].text == "its host was not looked up within 5 s"
    assert a.connector.next_tick() is None
    # What comes of it all the same is for nobody.
    released.set()
    until(lambda: not looking_up())
    a.turn()
    assert len(a.failures) == 10 and len(a.runner) == 0


def looking_up() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name in ("a:names", "a:hearsay")]


class Hanging:
    """In place of `look_up`: names that begin with `hangs` wait until they are released."""

    def __init__(self, end: Endpoint) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []
        self.found = [of(end)]

    def __call__(self, host: str, port: int, flags: int = 0) -> list[Address]:
        if flags:
            raise socket.gaierror("no number")
        self.asked.append(host)
        if host.startswith("hangs"):
            assert self.released.wait(PATIENCE_S)
        return self.found


@pytest.fixture
def hanging(a: Endpoint, b: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    hanging = Hanging(b)
    monkeypatch.setattr(resolver, "look_up", hanging)
    yield hanging
    hanging.released.set()
    until(lambda: not looking_up())


def test_no_dial_waits_for_hosts_that_others_make_up(
    a: Endpoint, b: Endpoint, hanging: Hanging
) -> None:
    for connection_id in range(10, 20):
        a.dial(f"hangs-{connection_id}.example:1", connection_id, is_hearsay=True)
    a.dial("name.example:1", 5)
    turn_until(lambda: a.peers, a, b)
    assert a.peers[0][0] == 5 and a.failures == []


@pytest.mark.parametrize("ended", ["late", "dropped", "all dropped"])
def test_a_host_that_no_dial_needs_any_more_is_not_looked_up(
    a: Endpoint, b: Endpoint, hanging: Hanging, ended: str
) -> None:
    for connection_id in range(10, 20):
        a.dial(f"hangs-{connection_id}.example:1", connection_id)
    until(lambda: len(hanging.asked) == resolver.THREADS_MAX)
    if ended == "late":
        a.late_s += 10.0
        a.turn()
        assert len(a.failures) == 10
    elif ended == "dropped":
        assert all(a.connector.drop(connection_id) for connection_id in range(10, 20))
    else:
        a.connector.drop_all()
    a.dial("name.example:1", 5)
    hanging.released.set()
    turn_until(lambda: a.peers, a, b)
    assert hanging.asked[resolver.THREADS_MAX :] == ["name.example"]


def test_as_many_dials_of_one_host_as_there_may_be_are_all_answered(b: Endpoint) -> None:
    """Others may tell of any number of members there: they take no answer from who is there."""
    with Endpoint("a", dials_max=10) as a, pytest.MonkeyPatch.context() as patched:
        hanging = Hanging(b)
        patched.setattr(resolver, "look_up", hanging)
        for connection_id in range(1, 11):
            a.dial("hangs.example:1", connection_id)
        hanging.released.set()
        turn_until(lambda: len(a.peers) == 10, a, b)
        assert len(hanging.asked) == 1 and a.failures == []
        until(lambda: not looking_up())
