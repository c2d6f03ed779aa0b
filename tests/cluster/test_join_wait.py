"""A join that waits: it returns when the node is up, and says why it cannot be; nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    Envelope,
    JoinFailed,
    JoinTimeout,
    Node,
    NodeId,
    NodeStopped,
    NodeUp,
    Pid,
)
from rabble.cluster.io import resolver
from tests.cluster.mesh import Told, linked, names, nothing_left, port_of, rouse, until
from tests.support import PATIENCE_S, Does, Echo

#: A refusal is told to all that wait, however far apart the dials are.
SELDOM = {"redial_first_ms": 60_000, "redial_most_ms": 60_000, "redial_refused_ms": 60_000}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def waits(node: Node, target: NodeId | str, wait: float = PATIENCE_S) -> NodeId:
    return node.join(target, wait=wait)


def awaits(node: Node, target: NodeId | str, wait: float = PATIENCE_S) -> NodeId:
    return asyncio.run(node.join_async(target, wait=wait))


BOTH = pytest.mark.parametrize("join", [waits, awaits])
Join = Callable[..., NodeId]


def nobody_waits(*nodes: Node) -> None:
    """Nothing is kept for those that waited."""
    for node in nodes:
        cluster = node._runtime.cluster
        assert cluster is not None
        assert cluster._joins == {}
        until(lambda cluster=cluster: len(cluster._control_plane.joins) == 0)


def free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


@BOTH
def test_who_was_joined_is_up_for_whatever_this_node_does_next(join: Join) -> None:
    with rouse("a") as a, rouse("b") as b:
        b.spawn(Echo(), "echo")
        told = Told(a)
        sends = a.spawn(Does(lambda _, msg, sender: Envelope(*msg)), "sends")
        with a.mailbox("box") as box, b.mailbox("there") as there:
            assert join(a, b.node_id.addr) == b.node_id
            # Each without a wait of its own: what a process returns, too.
            a.send(sends, (there.pid, "by a process"))
            assert there.receive(PATIENCE_S).msg == "by a process"
            box.send(Pid("echo", b.node_id), 1)
            assert box.receive(PATIENCE_S).msg == 1
            assert linked(a) == ["b"]
            assert told.box.receive(0).msg == NodeUp(b.node_id, b.cluster_status().incarnation)
        nobody_waits(a, b)


@BOTH
@pytest.mark.parametrize("by", ["address", "node id", "host name", "another port's node"])
def test_whatever_it_is_given_as(join: Join, by: str) -> None:
    with rouse("a") as a, rouse("b") as b:
        targets: dict[str, Any] = {
            "address": b.node_id.addr,
            "node id": b.node_id,
            "host name": f"localhost:{port_of(b)}",
            "another port's node": str(b.node_id),
        }
        assert join(a, targets[by]) == b.node_id
        # Who is up already is found at once, and by whatever it is called.
        for target in targets.values():
            assert join(a, target) == b.node_id
            assert join(b, a.node_id) == a.node_id
        nobody_waits(a, b)


@pytest.mark.parametrize("join", [waits, awaits])
def test_those_that_dial_each_other_are_both_told(join: Join) -> None:
    for _ in range(10):
        with rouse("a") as a, rouse("b") as b:
            found: dict[str, NodeId] = {}

            def joins(one: Node, other: Node, found: dict[str, NodeId] = found) -> None:
                found[one.node_id.name] = join(one, other.node_id.addr)

            threads = [threading.Thread(target=joins, args=pair) for pair in ((a, b), (b, a))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == {"a": b.node_id, "b": a.node_id}
            nobody_waits(a, b)


# It cannot be.


def refused(join: Join, node: Node, target: NodeId | str, code: str) -> JoinFailed:
    with pytest.raises(JoinFailed) as caught:
        join(node, target)
    error = caught.value
    assert not isinstance(error, JoinTimeout)
    assert error.code == code, error
    assert str(error).startswith(f"{node.node_id} could not join {target}: ")
    assert error.detail
    nobody_waits(node)
    return error


@BOTH
@pytest.mark.parametrize(
    ("code", "mesh"),
    [
        ("AUTH", {"key": bytes(31) + b"x"}),
        ("AUTH", {"key": None}),
        ("CLUSTER", {"cluster": "another"}),
    ],
)
def test_who_is_not_let_in_is_told_why(join: Join, code: str, mesh: dict[str, Any]) -> None:
    with rouse("a") as a, rouse("b", mesh=mesh, limits=SELDOM) as b:
        refused(join, b, a.node_id.addr, code)
        refused(join, b, a.node_id, code)


@BOTH
def test_this_node_itself_is_nobody_to_join(join: Join) -> None:
    with rouse("a") as a:
        refused(join, a, a.node_id.addr, "SELF")
        refused(join, a, a.node_id, "")


@BOTH
def test_another_name_than_was_meant_answers(join: Join) -> None:
    with rouse("a") as a, rouse("b") as b:
        refused(join, a, NodeId("c", b.node_id.addr), "NAME_MISMATCH")


@BOTH
def test_no_node_answers(join: Join) -> None:
    with rouse("a") as a, socket.create_server(("127.0.0.1", 0)) as listener:

        def answers() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                while sock.recv(4_096):
                    pass

        thread = threading.Thread(target=answers)
        thread.start()
        error = refused(join, a, f"127.0.0.1:{listener.getsockname()[1]}", "PROTOCOL")
        assert "no node" in error.detail
        thread.join()


@BOTH
def test_a_banned_node_is_told_so(join: Join) -> None:
    with rouse("a") as a, rouse("b", limits=SELDOM) as b:
        a.ban("b", 1_000)
        until(lambda: a.cluster_status().bans)
        error = refused(join, b, a.node_id.addr, "BANNED")
        assert error.node == a.node_id
        # And here it is said at once, or when it is known who answers.
        refused(join, a, b.node_id, "")
        refused(join, a, b.node_id.addr, "BANNED")


@BOTH
def test_a_node_that_was_removed_lets_nobody_in(join: Join) -> None:
    with rouse("a") as a, rouse("b", limits=SELDOM) as b:
        a.leave()
        until(lambda: a.cluster_status().removed)
        error = refused(join, b, a.node_id.addr, "NOT_JOINED")
        assert "call join() there" in error.detail
        # It comes back by a join of its own, and that one waits, too.
        assert join(a, b.node_id.addr) == b.node_id


@BOTH
def test_a_mesh_that_is_full_says_so(join: Join) -> None:
    few = {"membership_members_max": 1}
    with rouse("a", limits=few) as a:
        error = refused(join, a, NodeId("b", free_address()), "")
        assert "Limits.membership_members_max" in error.detail


@BOTH
def test_a_host_without_address_is_not_waited_for(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = resolver.look_up

    def look_up(host: str, port: int, flags: int = 0) -> Any:
        if host == "nobody.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, port, flags)

    monkeypatch.setattr(resolver, "look_up", look_up)
    with rouse("a") as a:
        for target in ("nobody.invalid:5", NodeId("x", "nobody.invalid:5")):
            error = refused(join, a, target, "UNRESOLVED")
            assert "Name or service not known" in error.detail


@BOTH
def test_of_a_host_with_several_addresses_one_is_enough_and_all_have_to_refuse(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, tuple[str, int]]] = []
    real = resolver.look_up

    def look_up(host: str, port: int, flags: int = 0) -> Any:
        return list(found) if host == "several" and not flags else real(host, port, flags)

    monkeypatch.setattr(resolver, "look_up", look_up)
    other = {"cluster": "another"}
    with rouse("a", limits=SELDOM) as a, rouse("b") as b, rouse("c", mesh=other) as c:
        found += [(socket.AF_INET, ("127.0.0.1", port_of(each))) for each in (b, c)]
        assert join(a, "several:1") == b.node_id
        with rouse("d", mesh=other) as d, rouse("e", limits=SELDOM) as e:
            found[:] = [(socket.AF_INET, ("127.0.0.1", port_of(each))) for each in (c, d)]
            error = refused(join, e, "several:1", "CLUSTER")
            for each in (c, d):
                assert each.node_id.addr in str(error)


@BOTH
def test_a_leave_ends_what_it_undoes(join: Join) -> None:
    with rouse("a") as a:
        for target in (free_address(), NodeId("x", free_address())):
            leaves = threading.Timer(0.05, a.leave, (target if isinstance(target, str) else "x",))
            leaves.start()
            with pytest.raises(JoinFailed, match=r"leave\(.*\) was called meanwhile"):
                join(a, target)
            leaves.join()
        nobody_waits(a)


@BOTH
def test_who_is_removed_meanwhile_joins_nobody(join: Join) -> None:
    with rouse("a") as a:
        leaves = threading.Timer(0.05, a.leave)
        leaves.start()
        refused(join, a, free_address(), "REMOVED")
        leaves.join()


# In time, or not.


@BOTH
def test_who_is_not_up_in_time_comes_later_all_the_same(join: Join) -> None:
    with rouse("a") as a:
        addr = free_address()
        with pytest.raises(JoinTimeout, match="the last dial ended with REFUSED: ") as caught:
            join(a, addr, 0.2)
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.code, caught.value.node) == ("REFUSED", None)
        nobody_waits(a)
        told = Told(a)
        with rouse("b", int(addr.rpartition(":")[2])) as b:
            told.up(b)


@BOTH
def test_a_node_that_starts_meanwhile_is_waited_for(join: Join) -> None:
    with rouse("a") as a, contextlib.ExitStack() as stack:
        addr = free_address()
        started = []

        def starts() -> None:
            until(lambda: a.cluster_status().refusals.get("REFUSED"))
            started.append(stack.enter_context(rouse("b", int(addr.rpartition(":")[2]))))

        thread = threading.Thread(target=starts)
        thread.start()
        assert join(a, addr) == NodeId("b", addr)
        thread.join()
        assert names(started[0])


@BOTH
@pytest.mark.parametrize("wait", [0, -1, 0.0])
def test_there_may_be_no_time_at_all(join: Join, wait: float) -> None:
    with rouse("a") as a:
        with pytest.raises(JoinTimeout, match="was not up in "):
            join(a, free_address(), wait)
        nobody_waits(a)


@BOTH
@pytest.mark.parametrize(("wait", "error"), [("1", TypeError), (float("nan"), ValueError)])
def test_a_wait_is_a_number(join: Join, wait: Any, error: type[Exception]) -> None:
    with rouse("a") as a:
        with pytest.raises(error, match="wait must be a number of seconds"):
            join(a, "127.0.0.1:1", wait)
        with pytest.raises(ValueError, match="'host:port'"):
            join(a, "nonsense")
        nobody_waits(a)


# The end.


@BOTH
@pytest.mark.parametrize("how", ["shutdown", "failure"])
def test_the_end_of_the_node_ends_the_wait_at_once(join: Join, how: str) -> None:
    with rouse("a", limits={"shutdown_ms": 60_000}) as a:
        # Something to drain for a long time: nobody waits for that.
        go_on = threading.Event()
        a.send(a.spawn(Does(lambda *_: go_on.wait(PATIENCE_S) and None), "slow"), 1)
        until(lambda: a._runtime.executor.current_pid is not None)

        def ends() -> None:
            if how == "shutdown":
                a.request_shutdown()
            else:
                a._runtime.fail("a part", RuntimeError("for the test"))

        timer = threading.Timer(0.05, ends)
        timer.start()
        text = "was shut down" if how == "shutdown" else r"failed \(a part: RuntimeError"
        with pytest.raises(NodeStopped, match=f"{text}.* before .* was up"):
            join(a, free_address())
        timer.join()
        go_on.set()
        with pytest.raises(NodeStopped):
            join(a, free_address())


@BOTH
def test_the_end_of_the_cluster_server_ends_the_wait(join: Join) -> None:
    a = rouse("a")
    cluster = a._runtime.cluster
    assert cluster is not None
    broken = RuntimeError("for the test")

    def breaks() -> None:
        def tick() -> None:
            raise broken

        cluster._tick = tick  # type: ignore[method-assign]
        cluster._poller.nudge()

    timer = threading.Timer(0.05, breaks)
    timer.start()
    with pytest.raises(NodeStopped):
        join(a, free_address())
    timer.join()
    assert cluster._joins == {}
    a.shutdown()


# Where it may not wait, and who does not wait any more.


def test_it_waits_neither_in_a_loop_nor_in_a_process() -> None:
    with rouse("a") as a:

        async def in_a_loop() -> None:
            with pytest.raises(RuntimeError, match=r"write `await node.join_async"):
                a.join("127.0.0.1:1", wait=1)
            # The other one never waits.
            a.join("127.0.0.1:1")
            a.leave("127.0.0.1:1")

        asyncio.run(in_a_loop())
        errors: list[str] = []

        def in_a_process(*_: Any) -> None:
            for attempt in (
                lambda: a.join("127.0.0.1:1", wait=1),
                lambda: asyncio.run(a.join_async("127.0.0.1:1")),
            ):
                try:
                    attempt()
                except RuntimeError as error:
                    errors.append(str(error))

        a.spawn(Echo(), "echo")
        a.send(a.spawn(Does(in_a_process), "joins"), 1)
        assert a.call(a.pid("echo"), 1, PATIENCE_S) == 1
        assert [error.partition(" would")[0] for error in errors] == [
            "join(wait=...)",
            "join_async()",
        ]
        nobody_waits(a)


def test_a_node_by_itself_joins_nobody() -> None:
    with rabble.rouse() as node, pytest.raises(RuntimeError, match="a node by itself"):
        node.join("127.0.0.1:1", wait=1)


def test_who_is_cancelled_is_forgotten_and_the_join_goes_on() -> None:
    with rouse("a") as a:
        addr = free_address()

        async def main() -> None:
            tasks = [asyncio.create_task(a.join_async(addr, wait=PATIENCE_S)) for _ in range(50)]
            cluster = a._runtime.cluster
            assert cluster is not None
            while len(cluster._control_plane.joins) < 50:
                await asyncio.sleep(0.001)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks[::2], return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in done)
            while len(cluster._control_plane.joins) > 25:
                await asyncio.sleep(0.001)
            with rouse("b", int(addr.rpartition(":")[2])) as b:
                assert set(await asyncio.gather(*tasks[1::2])) == {b.node_id}

        asyncio.run(main())
        nobody_waits(a)


def test_a_loop_that_closes_first_hinders_nobody() -> None:
    with rouse("a") as a:
        addr = free_address()
        loop = asyncio.new_event_loop()
        task = loop.create_task(a.join_async(addr, wait=PATIENCE_S))
        loop.run_until_complete(asyncio.sleep(0.01))
        # As a program does that ends without having waited for its tasks.
        loop.close()
        with rouse("b", int(addr.rpartition(":")[2])) as b:
            assert a.join(addr, wait=PATIENCE_S) == b.node_id
        assert not task.done()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = task.get_coro()
        assert coroutine is not None
        with contextlib.suppress(RuntimeError):
            coroutine.close()
        nobody_waits(a)


def test_twenty_nodes_join_one_each_in_its_own_way() -> None:
    with contextlib.ExitStack() as stack:
        first, *others = [stack.enter_context(rouse(f"n{number:02}")) for number in range(20)]

        async def all_of_them() -> list[NodeId]:
            in_threads = [
                asyncio.to_thread(node.join, first.node_id.addr, wait=PATIENCE_S)
                for node in others[::2]
            ]
            in_tasks = [node.join_async(first.node_id, wait=PATIENCE_S) for node in others[1::2]]
            return await asyncio.gather(*in_threads, *in_tasks)

        assert set(asyncio.run(all_of_them())) == {first.node_id}
        nobody_waits(first, *others)
