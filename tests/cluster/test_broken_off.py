"""An error at any line of the control plane breaks one step off, and two nodes connect again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from tests.cluster.broken_off import Place, Tracer
from tests.cluster.plane import Plane
from tests.cluster.test_failures import sockets

LIMITS = {
    "digest_ms": 100,
    "digest_settled_ms": 50,
    "gossip_gather_ms": 10,
    "handshake_ms": 700,
    "connect_ms": 500,
    "redial_first_ms": 10,
    "redial_most_ms": 30,
}
FILES = ["cluster/"]
#: Of these an object is lost if they raise when it is handed over, and nothing real does so there:
#: the descriptor of a socket, the frames of a connection, and what failed itself.
HANDED_OVER = (("cluster/connections.py", "return"), ("cluster/failures.py", ""))


class Pair:
    """Two planes that connect, part and connect again, while a tracer looks on."""

    def __init__(self, a: Plane, b: Plane, tracer: Tracer) -> None:
        self.a, self.b, self.tracer = a, b, tracer

    def turn_until(self, holds: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            for each in (self.a, self.b):
                with self.tracer.on():
                    each.turn()
        return True

    def command(
        self, plane: Plane, step: Callable[[], None], holds: Callable[[], object], what: str
    ) -> None:
        """As an operator who asks again if nothing comes of it."""
        for _ in range(6):
            plane.commands.append(step)
            if self.turn_until(holds, 1.0):
                return
        raise AssertionError(what)

    def are_up(self) -> bool:
        return self.a.peers == {"b"} and self.b.peers == {"a"}

    def live(self) -> None:
        a, b = self.a, self.b
        self.command(a, lambda: a.plane.join(b.own), self.are_up, "not connected")
        for peer in b.plane._connections.all():
            peer.connection.abort(8)
        self.turn_until(lambda: not self.are_up(), 1)
        assert self.turn_until(self.are_up, 10), "not connected after a cut"
        removed = a.plane.status
        self.command(b, lambda: b.plane.leave("a"), lambda: removed().removed, "not removed")
        joined = lambda: self.are_up() and a.members == b.members == {"a", "b"}  # noqa: E731
        self.command(a, lambda: a.plane.join(b.own.addr), joined, "not connected after a removal")

    def check(self) -> None:
        planes = self.a.plane, self.b.plane

        def is_at_rest() -> bool:
            digests = {each._membership.digest() for each in planes}
            return (
                self.are_up()
                and self.a.members == self.b.members == {"a", "b"}
                and len(digests) == 1
                and not any(len(each._handshakes) for each in planes)
                and not any(each._connection_manager.dials() for each in planes)
                and not any(each.members._early_leaves for each in planes)
                and not any(each._connections._parting for each in planes)
                and all(len(each.selector.get_map()) == 2 for each in (self.a, self.b))
            )

        assert self.turn_until(is_at_rest, 10), "not at rest"
        assert not (self.a.runtime.failures or self.b.runtime.failures)


def broken_at(place: Place | None) -> Tracer:
    before, tracer = sockets(), Tracer(FILES, place)
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(Plane(name, 1000, **LIMITS)) for name in "ab")
        pair = Pair(a, b, tracer)
        pair.live()
        pair.check()
    assert sockets() <= before, "sockets are left"
    return tracer


# A socket that was just accepted, and is not handed over, is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.soak)])
def test_two_nodes_connect_again_wherever_a_step_breaks_off(step: int) -> None:
    broken_at(None)
    places = [
        place
        for place in broken_at(None).places
        if not any(place[0] == file and event in place[2] for file, event in HANDED_OVER)
    ]
    assert len(places) > 1_500
    failed = []
    for place in places[::step]:
        try:
            broken_at(place)
        except Exception as error:
            failed.append(f"{place}: {error!r:.100}")
    assert not failed, "\n".join(failed)
