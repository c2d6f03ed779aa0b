"""An address that no resolver takes ends nothing: it is refused wherever it enters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rabble import Node, NodeId
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import RefusalCode
from tests.cluster.mesh import linked, meet, nothing_left, rouse
from tests.faults.raw import RawPeer, dial, read_to_end
from tests.reference.session import MEMBERSHIP, frame
from tests.support import until

#: As a user may mistype them.
BAD = ["pod..svc:4000", ".shop:4000", "10.0.0..2:4000", "x" * 64 + ":4000", "h\ud800:4000", "[h]:1"]
#: An address, and one of the same length, as a hostile member may tell it.
GOOD, FORGED = b"some.where.svc:4000", b"some..here.svc:4000"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.mark.parametrize("addr", BAD)
def test_a_node_with_such_an_address_is_not_roused(addr: str) -> None:
    with pytest.raises(ValueError, match="is not usable"):
        rouse("a", mesh={"bind": addr})
    with pytest.raises(ValueError, match="is not usable"):
        rouse("a", mesh={"seeds": [addr]})


def test_no_node_ends_of_a_join_that_was_mistyped() -> None:
    with rouse("a") as a, rouse("b") as b, rouse("c") as c:
        meet(a, b, c)
        for addr in BAD:
            for target in addr, f"typo@{addr}":
                with pytest.raises(ValueError, match="is not usable"):
                    a.join(target)
        assert [linked(node) for node in (a, b, c)] == [["b", "c"], ["a", "c"], ["a", "b"]]
        assert [node.status for node in (a, b, c)] == ["running"] * 3


def test_a_member_that_tells_such_an_address_ends_its_own_connection() -> None:
    with rouse("a") as a, rouse("b") as b:
        meet(a, b)
        with RawPeer(a, join=True) as raw:
            state = Membership(raw.node, raw.incarnation)
            state.add(NodeId("typo", GOOD.decode()))
            told = state.encoded()
            assert GOOD in told
            raw.say(frame(MEMBERSHIP, 0, told.replace(GOOD, FORGED)))
            assert raw.goodbye() == RefusalCode.DECODE
        until(lambda: linked(a) == ["b"])
        assert all("typo" not in str(node.cluster_status().members) for node in (a, b))
        works(a, b)


def test_a_node_that_says_such_an_address_of_itself_is_refused() -> None:
    with rouse("a") as a, rouse("b") as b:
        meet(a, b)
        with RawPeer(a, "mallory", addr="h:1") as raw:
            assert raw.session is not None
            said = raw.said[0]
        # The same HELLO once more, with another address of that length.
        with dial(a) as sock:
            sock.sendall(said.replace(b"h:1", b".:1"))
            assert b"is not usable" in read_to_end(sock)
        until(lambda: a.cluster_status().refusals.get("NAME_INVALID"))
        works(a, b)


def works(*nodes: Node) -> None:
    """They are connected, and take commands."""
    until(lambda: all(len(linked(node)) == len(nodes) - 1 for node in nodes))
    assert all(node.status == "running" for node in nodes)
