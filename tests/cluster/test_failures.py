"""What is raised in the control plane ends one thing, and is told; everything else goes on."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rabble import NodeId
from rabble.cluster.decide.actions import RaiseIncarnation
from rabble.cluster.decide.membership import MembershipError
from rabble.cluster.failures import IN_A_ROW_MAX, RETRY_S, Failures
from rabble.cluster.io.seeds import ADDRESSES_MAX
from tests.cluster.noted import Noted
from tests.cluster.plane import Plane, turn_until, turn_while
from tests.support import descriptors

# The notes.


def test_a_failure_is_counted_and_told_with_its_traceback() -> None:
    noted = Noted()
    try:
        raise LookupError("nobody")
    except LookupError as error:
        noted.failures.note("a command", error)
    assert noted.count == 1
    (text,) = noted.texts
    assert text.startswith("test: a command failed and is given up\nTraceback")
    assert text.endswith("LookupError: nobody")


def test_a_failure_for_which_there_are_no_words_raises_nothing() -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    Failures("test", fail, fail).note("a command", LookupError())


def test_what_never_passes_is_raised_and_what_passes_now_and_then_is_not() -> None:
    failures = Noted().failures
    error = LookupError()
    for _ in range(3):
        for _ in range(IN_A_ROW_MAX - 1):
            failures.again("this", error)
            failures.passed("that")
            assert failures.rest_s() == RETRY_S
            assert failures.rest_s() == 0.0
        failures.passed("this")
    with pytest.raises(LookupError):
        for _ in range(IN_A_ROW_MAX):
            failures.again("this", error)


# The control plane.


class Breaks:
    """In place of a method: raises the first time, and is the method from then on."""

    def __init__(self, method: Any, error: type[BaseException]) -> None:
        self.method = method
        self.error = error
        self.raised = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self.raised:
            self.raised = True
            raise self.error("as it was asked to")
        return self.method(*arguments, **named)


class BreaksBehind(Breaks):
    """The same, when the method has done its work."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        result = self.method(*arguments, **named)
        if not self.raised:
            self.raised = True
            raise self.error("as it was asked to")
        return result


class Instead:
    """An object of which one method is another."""

    def __init__(self, of: Any, name: str, method: Any) -> None:
        self._of, self._name, self._method = of, name, method

    def __getattr__(self, name: str) -> Any:
        return self._method if name == self._name else getattr(self._of, name)

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, what: object) -> bool:
        return what in self._of


SIDES = ("dials", "accepts")
#: Whose method raises, by the way to it from the control plane; and on which side it is called.
METHODS = [
    ("_handshakes", "add_accepted", "accepts"),
    ("_handshakes", "proceed", "both"),
    ("_handshakes", "authenticate", "dials"),
    ("_handshakes", "decide", "accepts"),
    ("_handshakes", "due", "both"),
    ("_connector._runner", "add_dialled", "both"),
    ("_connector", "dial", "dials"),
    ("_connector", "connect", "dials"),
    ("_connector", "end_late", "both"),
    ("_listener", "tick", "both"),
    ("_seeds", "tick", "both"),
    ("_connection_manager", "add_peer", "both"),
    ("_connection_manager", "authenticating", "dials"),
    ("_connection_manager", "authorize", "accepts"),
    ("_connection_manager", "established", "both"),
    ("_connection_manager", "tick", "both"),
    ("_connections", "next_check", "both"),
    ("_connections", "forget_closed", "both"),
    ("_connections._poller", "attach", "both"),
    ("_connections._failure_detector", "add", "both"),
    ("_gossip", "send_state", "both"),
    ("_gossip", "read", "both"),
    ("_gossip", "tick", "both"),
    ("_membership", "standing", "accepts"),
    ("_shut_out", "refusal", "both"),
    ("_shut_out", "look_at", "both"),
    ("_membership", "merge", "both"),
    ("_runtime", "connection_up", "both"),
    ("_connections._runtime", "make_session", "both"),
    ("_status_board", "publish", "both"),
    ("_poller", "drain", "both"),
]


def sockets() -> set[str]:
    """The sockets of this process, but for those that nobody holds any more."""
    gc.collect()
    return {link for link in descriptors().values() if link.startswith("socket:")}


@pytest.fixture
def pair() -> Iterator[tuple[Plane, Plane]]:
    """Two planes. Behind the test all their sockets are closed."""
    before = sockets()
    with contextlib.ExitStack() as stack:
        planes = stack.enter_context(Plane("a")), stack.enter_context(Plane("b"))
        yield planes
    assert sockets() <= before


@pytest.mark.parametrize("breaks", [Breaks, BreaksBehind], ids=["before", "behind"])
@pytest.mark.parametrize(
    ("way", "method", "side"),
    [
        pytest.param(way, method, side, id=f"{way}.{method}-{side}")
        for way, method, sides in METHODS
        for side in SIDES
        if sides in (side, "both")
    ],
)
def test_what_any_step_raises_leaves_a_plane_that_connects_again(
    pair: tuple[Plane, Plane], way: str, method: str, side: str, breaks: type[Breaks]
) -> None:
    a, b = pair
    broken_plane = pair[SIDES.index(side)]
    owner: Any = broken_plane.plane
    *parents, last = way.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    of = getattr(owner, last)
    broken_method = breaks(getattr(of, method), (SystemExit, MemoryError)[len(method) % 2])
    try:
        setattr(of, method, broken_method)
    except AttributeError:
        # A compiled one.
        setattr(owner, last, Instead(of, method, broken_method))
    # What has a time of its own is due.
    plane = broken_plane.plane
    plane._seeds._next = plane._listener._resume_at = 0.0
    plane._connector.next_tick = lambda: 0.0
    a.commands.append(functools.partial(a.plane.join, b.own))
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
    # Whatever it broke off has come to its end.
    turn_while(20, a, b)
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
    # What was not heard of is found by a digest.
    turn_until(lambda: a.members == b.members == {"a", "b"}, a, b)
    assert not (a.runtime.failures or b.runtime.failures)
    assert broken_method.raised
    assert "as it was asked to" in "\n".join(broken_plane.runtime.reports)
    for plane in pair:
        assert len(plane.plane._handshakes) == 0
        assert plane.plane._connection_manager.dials() == []


@pytest.mark.parametrize("error", [SystemExit, MemoryError])
def test_a_peer_that_is_silent_is_down_though_that_could_not_be_carried_out(
    pair: tuple[Plane, Plane], error: type[BaseException]
) -> None:
    """That it is silent is said once."""
    a, b = pair
    a.plane.join(b.own)
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
    [peer] = a.plane._connections.all()
    a.plane._lost = Breaks(a.plane._lost, error)  # type: ignore[method-assign]
    a.plane._connections.silent = lambda now: [(peer, 8.0)]  # type: ignore[method-assign]
    a.plane._next_check = 0.0
    a.plane._check_peers(1.0)
    del a.plane._connections.silent
    assert a.peers == set() and not peer.connection.open
    assert a.refusals["INTERNAL_ERROR"] == 1
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)


#: By what of the control plane it is done: what is done when its time has come, and not before.
PARTS = {
    "listening": "_listener._listen_to",
    "the look at the seeds": "_seeds._read_file",
    "the look at keys and certificates": "_status_board.certificate_days_left",
    "the digest": "_membership.digest",
}


@pytest.mark.parametrize("what", PARTS)
def test_what_fails_whenever_its_time_has_come_ends_the_node(
    pair: tuple[Plane, Plane], what: str
) -> None:
    """That it was not due meanwhile is no success."""
    plane = pair[0].plane
    parent, method = PARTS[what].split(".")
    error = LookupError("for ever")

    def fail(*arguments: object) -> None:
        raise error

    setattr(getattr(plane, parent), method, fail)
    # As if it had certificates, and had run out of descriptors.
    plane._renewal._tls = Unchanged()  # type: ignore[assignment]
    plane._renewal.next_tick = plane._listener._resume_at = 0.0
    with pytest.raises(LookupError) as caught:
        for n in range(1, IN_A_ROW_MAX + 1):
            assert plane.failures._in_a_row.get(what, 0) == n - 1
            plane.tick(n * 1e9)
            plane.tick(0.0)
    assert caught.value is error
    assert n == IN_A_ROW_MAX


class Unchanged:
    """Contexts of TLS whose files do not change."""

    is_settling = False

    def renew(self) -> bool:
        return False


# A later start that cannot be.


@pytest.mark.parametrize("at_least", [2**64 - 1, 2**64, 2**70])
def test_an_incarnation_that_there_is_not_is_reported_and_nothing_else(
    pair: tuple[Plane, Plane], at_least: int
) -> None:
    a, b = pair
    a.plane._carry_out([RaiseIncarnation(at_least)])
    for _ in range(3):
        a.plane._carry_out([RaiseIncarnation(at_least)])
    assert 0 < a.plane.incarnation < 2**64
    assert any("cannot be a member again" in text for text in a.runtime.reports)
    assert "INTERNAL_ERROR" not in a.refusals
    a.plane.join(b.own)
    turn_while(20, a, b)


def test_a_removed_node_that_cannot_be_a_member_again_says_so_and_stays_removed(
    pair: tuple[Plane, Plane], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair

    def refuse(incarnation: int) -> None:
        raise MembershipError("there are 2 members already")

    a.plane.leave("a")
    assert a.plane.status().removed
    with monkeypatch.context() as patched:
        patched.setattr(a.plane._membership, "rejoin", refuse)
        a.plane.join(b.own)
        assert a.plane.status().removed
        assert any("there are 2 members already" in text for text in a.runtime.reports)
    a.plane.join(b.own)
    assert not a.plane.status().removed
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)


def test_a_removed_node_joins_a_node_by_its_id(pair: tuple[Plane, Plane]) -> None:
    a, b = pair
    a.plane.join(b.own)
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
    b.plane.leave("a")
    turn_until(lambda: a.plane.status().removed, a, b)
    a.plane.join(NodeId("b", b.own.addr))
    turn_until(lambda: a.peers == {"b"} and b.members == {"a", "b"}, a, b)


def test_seeds_that_appear_while_a_node_is_removed_are_dialled_when_it_joins_again(
    pair: tuple[Plane, Plane], tmp_path: Path
) -> None:
    a, b = pair
    path = tmp_path / "seeds"
    path.write_text("# none\n")
    a.plane.sockets.seeds.watch_file(path)
    a.plane.leave("a")
    assert a.plane.status().removed
    path.write_text(f"{b.own.addr}\n")
    a.plane.sockets.seeds.watch_file(path)
    turn_while(20, a, b)
    assert a.peers == set()
    # Of somebody who is not there: so it is the seed by whom it finds the others.
    a.plane.join(NodeId("gone", "127.0.0.1:1"))
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)


def test_an_address_that_was_joined_takes_no_place_among_the_seeds_for_ever(
    pair: tuple[Plane, Plane],
) -> None:
    a, b = pair
    a.plane.join(b.own.addr)
    turn_until(lambda: a.peers == {"b"} and b.peers == {"a"}, a, b)
    for n in range(1, ADDRESSES_MAX + 1):
        a.plane.join(f"127.0.0.2:{n}")
    assert not any("is left out" in text for text in a.runtime.reports)
