"""Nodes in one process of the operating system which find, tell and lose each other."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rabble
from rabble import (
    Bounced,
    CallTimeout,
    DeadLetter,
    DeadLetterReason,
    DecodeError,
    Demonitor,
    Down,
    DownReason,
    EncodeError,
    Envelope,
    GetMetrics,
    Lost,
    MessageRegistry,
    Monitor,
    Node,
    NodeDown,
    NodeId,
    NodeUp,
    NoProcess,
    NotConnected,
    Pid,
    Process,
    ProcessCrashed,
    QueueFull,
    Removed,
    Stop,
)
from rabble._core.codec import Codec
from rabble._core.debug import CAPACITIES
from rabble.cluster.decide.handshake import Established, Failed
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.keys import key_id
from tests.cluster.io.test_tls import DAY, TODAY, Issuer, named
from tests.cluster.mesh import (
    SHORT,
    Told,
    linked,
    meet,
    names,
    nothing_left,
    port_of,
    refused,
    rouse,
    subscribe_to_letters,
    until,
)
from tests.faults.raw import KEY, RawPeer
from tests.reference.session import MEMBERSHIP, frame
from tests.support import PATIENCE_S, TINY, Does, Echo


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(params=["plain", "authenticated"])
def two(request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    # Of what these tests send nothing is to be refused.
    roomy = {"peer_queue_bytes_max": 256 << 20}
    mesh = {"authenticate_loopback": request.param == "authenticated"}
    with rouse("a", limits=roomy, mesh=mesh) as a, rouse("b", limits=roomy) as b:
        meet(a, b)
        pair = [a, b]
        yield pair
        # pytest keeps what it was given, and a node that has ended has some descriptors still.
        pair.clear()
        del a, b


# Joining.


@pytest.mark.parametrize("by", ["address", "node id", "text of a node id", "seed"])
def test_a_node_joins_another(by: str) -> None:
    with rouse("a") as a:
        with rouse("b", mesh={"seeds": [a.node_id.addr]} if by == "seed" else None) as b:
            told_a, told_b = Told(a), Told(b)
            if by == "address":
                b.join(a.node_id.addr)
            elif by != "seed":
                b.join(a.node_id if by == "node id" else str(a.node_id))
            told_b.up(a)
            told_a.up(b)
            for node, other in ((a, b), (b, a)):
                until(lambda node=node: names(node) == ["a", "b"])
                (link,) = node.cluster_status().connections
                assert (link.node, link.incarnation) == (
                    other.node_id,
                    other.cluster_status().incarnation,
                )
            assert told_a.events == [NodeUp(b.node_id, b.cluster_status().incarnation)]


def test_joins_are_transitive_along_a_chain() -> None:
    with rouse("a") as a, rouse("b") as b, rouse("c") as c:
        told = [Told(node) for node in (a, b, c)]
        a.join(b.node_id)
        b.join(c.node_id.addr)
        told[0].up(b, c)
        told[2].up(a, b)


def test_ups_and_downs_take_turns_and_subscribing_tells_of_whom_is_there() -> None:
    with rouse("a") as a:
        told = Told(a)
        incarnations = []
        for _ in range(4):
            with rouse("b") as b:
                b.join(a.node_id.addr)
                told.up(b)
                incarnations.append(b.cluster_status().incarnation)
                late = Told(a)
                late.up(b)
                assert late.events == [NodeUp(b.node_id, incarnations[-1])]
                # A second time it is told nothing.
                a.subscribe_nodes(late.box.pid)
                a.subscribe_nodes(late.box.pid, False)
                assert a.call(a.spawn(Echo(), f"e{len(incarnations)}"), 1, PATIENCE_S) == 1
                assert len(late.box) == 0
            told.down(b.node_id)
            assert len(late.box) == 0
        told.alternate()
        assert incarnations == sorted(set(incarnations))


def test_a_node_by_itself_has_no_mesh() -> None:
    with rabble.rouse("a@127.0.0.1:0") as a:
        for use in (a.cluster_status, a.leave, lambda: a.join("127.0.0.1:1")):
            with pytest.raises(RuntimeError, match="is a node by itself"):
                use()
        with a.mailbox() as box:
            a.subscribe_dead_letters(box.pid)
            a.send(Pid("x", NodeId("b", "127.0.0.1:1")), 1)
            assert box.receive(PATIENCE_S).msg.reason is DeadLetterReason.NOT_CONNECTED


@pytest.mark.parametrize("wrong", ["", "nobody", "h:", ":5", "h:70000", "a@b", "::1:5"])
def test_what_is_no_address_is_refused_at_once(two: list[Node], wrong: str) -> None:
    with pytest.raises(ValueError):
        two[0].join(wrong)


# Messages.


@rabble.message(name="mesh.Colour")
class Colour(enum.Enum):
    RED = 1


@rabble.message(name="mesh.Point")
class Point:
    x: int
    colour: Colour
    where: Pid


def test_messages_of_a_pair_come_whole_and_in_order(two: list[Node]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    a, b = two

    def answer(process: Process, msg: Any, sender: Pid | None) -> Envelope:
        assert sender is not None
        return Envelope(sender, [msg[0], hashlib.sha256(msg[1]).digest(), msg[1][:10_000] * 9])

    pid = b.spawn(Does(answer), "answers")
    with a.mailbox() as one, a.mailbox() as other:
        bodies = [
            rng.randbytes(rng.choice([0, 10, 200, 200, 5_000, 70_000, 400_000])) for _ in range(150)
        ]
        for number, body in enumerate(bodies):
            one.send(pid, [number, body])
            other.send(pid, [number, b""])
        for number, body in enumerate(bodies):
            assert one.receive(PATIENCE_S).msg == [
                number,
                hashlib.sha256(body).digest(),
                body[:10_000] * 9,
            ]
        assert [other.receive(PATIENCE_S).msg[0] for _ in bodies] == list(range(150))


def test_typed_messages_arrive_as_what_they_are(two: list[Node]) -> None:
    a, b = two
    pid = b.spawn(Echo(), "echo")
    point = Point(5, Colour.RED, a.pid("here"))
    assert a.call(pid, [point, None, {"k": pid}], PATIENCE_S) == [point, None, {"k": pid}]


def test_a_message_that_cannot_go_over_the_wire_is_a_dead_letter_here(
    two: list[Node],
) -> None:
    a, b = two
    pid = b.spawn(Echo(), "echo")
    with a.mailbox() as box:
        a.subscribe_dead_letters(box.pid)
        a.send(pid, object())
        assert box.receive(PATIENCE_S).msg.reason is DeadLetterReason.UNENCODABLE
        with pytest.raises(EncodeError):
            a.call(pid, object(), PATIENCE_S)
        assert a.call(pid, "goes on", PATIENCE_S) == "goes on"


def test_a_class_that_the_receiver_does_not_know_is_reported_on_both_sides() -> None:
    theirs = MessageRegistry()

    @rabble.message(name="mesh.Secret", registry=theirs)
    class Secret:
        x: int

    with rouse("a", registry=theirs) as a, rouse("b", registry=MessageRegistry()) as b:
        told, _ = meet(a, b)
        pid = b.spawn(Echo(), "echo")
        with a.mailbox() as box, a.mailbox() as letters, b.mailbox() as b_letters:
            a.subscribe_dead_letters(letters.pid)
            b.subscribe_dead_letters(b_letters.pid)
            assert b.call(b.spawn(Echo(), "e"), 1, PATIENCE_S) == 1
            box.send(pid, Secret(1))
            box.send(pid, "after it")
            assert box.receive(PATIENCE_S).msg == "after it"
            assert letters.receive(PATIENCE_S).msg == Bounced(
                b.node_id, box.pid, DeadLetterReason.UNDECODABLE, None
            )
            letter = b_letters.receive(PATIENCE_S).msg
            assert letter == DeadLetter(Envelope(pid, None, box.pid), DeadLetterReason.UNDECODABLE)
            with pytest.raises(
                DecodeError, match=r"by b@.*no class is registered as 'mesh.Secret'"
            ):
                a.call(pid, Secret(2), PATIENCE_S)
        assert b.executor_status().dead_letters["undecodable"] == 2
        assert [type(e) for e in told.events] == [NodeUp]


# Calls.


def test_a_call_is_answered_or_ends_with_what_became_of_it(two: list[Node]) -> None:
    a, b = two

    def crash(process: Process, msg: Any, sender: Pid | None) -> None:
        raise RuntimeError("as planned")

    assert a.call(b.spawn(Echo(), "echo"), {"k": [1]}, PATIENCE_S) == {"k": [1]}
    with pytest.raises(NoProcess):
        a.call(b.pid("nobody"), 1, PATIENCE_S)
    with pytest.raises(ProcessCrashed):
        a.call(b.spawn(Does(crash), "crashes"), 1, PATIENCE_S)
    silent = b.spawn(Does(lambda process, msg, sender: None), "silent")
    with pytest.raises(CallTimeout):
        a.call(silent, 1, 0.05)
    with pytest.raises(NoProcess, match="refused"):
        a.call(b.pid("executor", "rabble"), 1, PATIENCE_S)
    with pytest.raises(NotConnected):
        a.call(Pid("x", NodeId("c", "127.0.0.1:1")), 1, PATIENCE_S)
    # The name of a node that is there, but at another address, is not that node.
    with pytest.raises(NotConnected):
        a.call(Pid("echo", NodeId("b", "127.0.0.1:1")), 1, PATIENCE_S)
    assert a.metrics().gauges["calls_waiting"] == 0


def test_a_call_to_a_full_mailbox_is_refused(two: list[Node]) -> None:
    a, b = two
    full = True
    # There is always one of its own before it.
    pid = b.spawn(
        Does(
            lambda p, msg, sender: Envelope(p.pid, 1) if full else None,
            lambda p: Envelope(p.pid, 1),
        ),
        "full",
        mailbox_max=1,
    )
    while not b.processes()[pid]:
        # A call that comes before `init` would find the mailbox empty.
        pass
    for _ in range(5):
        with pytest.raises(QueueFull, match="the mailbox of full::b"):
            a.call(pid, "too many", PATIENCE_S)
    full = False


def test_a_call_ends_when_the_node_goes() -> None:
    with rouse("a") as a, rouse("b") as b:
        meet(a, b)
        asked = threading.Event()
        pid = b.spawn(Does(lambda process, msg, sender: asked.set()), "silent")
        ended: list[BaseException] = []

        def ask() -> None:
            try:
                a.call(pid, 1, PATIENCE_S)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(PATIENCE_S)
        b.shutdown()
        thread.join()
        assert [type(error) for error in ended] == [NotConnected]


# Monitors.


def test_a_remote_down_comes_once_and_after_the_last_message(two: list[Node]) -> None:
    a, b = two

    def last_words(process: Process, msg: Any, sender: Pid | None) -> Iterator[Envelope]:
        assert sender is not None
        for number in range(50):
            # Large ones among them take another lane.
            yield Envelope(sender, [number, bytes(100_000 if number % 10 == 3 else 1)])
        yield Envelope(process.executor, Stop(process.pid))

    pid = b.spawn(Does(last_words), "mortal")
    with a.mailbox() as box:
        for _ in range(3):
            box.send(a.pid("executor", "rabble"), Monitor(pid))
        box.send(pid, "die")
        assert [box.receive(PATIENCE_S).msg[0] for _ in range(50)] == list(range(50))
        assert box.receive(PATIENCE_S).msg == Down(pid, DownReason("stopped"))
        box.send(a.pid("executor", "rabble"), Monitor(pid))
        assert box.receive(PATIENCE_S).msg == Down(pid, DownReason("no_process"))
        assert len(box) == 0


def test_a_remote_crash_is_told_with_its_error(two: list[Node]) -> None:
    a, b = two

    def crash(process: Process, msg: Any, sender: Pid | None) -> None:
        raise RuntimeError("x" * 5_000)

    pid = b.spawn(Does(crash), "crashes")
    with a.mailbox() as box:
        box.send(a.pid("executor", "rabble"), Monitor(pid))
        box.send(pid, "now")
        down = box.receive(PATIENCE_S).msg
    assert (down.pid, down.reason.kind) == (pid, "crashed")
    assert down.reason.detail.startswith("RuntimeError: xxx")


def test_a_monitor_of_a_remote_process_can_be_taken_back(two: list[Node]) -> None:
    a, b = two
    pid, other = b.spawn(Echo(), "one"), b.spawn(Echo(), "other")
    executor = a.pid("executor", "rabble")
    with a.mailbox() as box, a.mailbox() as still:
        box.send(executor, Monitor(pid))
        still.send(executor, Monitor(pid))
        box.send(executor, Demonitor(pid))
        box.send(executor, Monitor(other))
        assert a.call(other, 1, PATIENCE_S) == 1
        b.stop(pid)
        b.stop(other)
        assert box.receive(PATIENCE_S).msg == Down(other, DownReason("stopped"))
        assert still.receive(PATIENCE_S).msg == Down(pid, DownReason("stopped"))
        assert len(box) == 0


def again(node: Node, name: str) -> rabble.Mailbox:
    """A mailbox of a name that was another's, which the executor has not let go of yet, perhaps."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return node.mailbox(name)
        except rabble.NameTaken:
            assert time.monotonic() < end


#: Nobody has anything to do by itself.
SLOW = {
    "heartbeat_ms": 60_000,
    "down_after_ms": 480_000,
    "digest_ms": 60_000,
    "digest_settled_ms": 60_000,
}


def next_tick_s(node: Node) -> float:
    """In how many seconds the cluster server has something to do by itself."""
    found: list[float] = []
    server = node._runtime.mesh_side()

    def look() -> None:
        now = time.monotonic()
        found.append(server._control_plane.next_tick(now) - now)

    server.post(look)
    until(lambda: found)
    return found[0]


def test_a_node_that_is_about_to_end_lets_nobody_new_in() -> None:
    """Listener and dials end at once, the connections there are only after the drain."""
    blocked, go_on = threading.Event(), threading.Event()

    def block(*_: object) -> None:
        blocked.set()
        assert go_on.wait(PATIENCE_S)

    with (
        rouse("a", limits=SLOW) as a,
        rouse("b", limits=SLOW) as b,
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.socket() as refuses,
    ):
        _, told = meet(a, b)
        refuses.bind(("127.0.0.1", 0))
        a.join("{}:{}".format(*refuses.getsockname()))
        silent.settimeout(PATIENCE_S)
        a.join("{}:{}".format(*silent.getsockname()))
        dialled, _ = silent.accept()
        a.send(a.spawn(Does(block), "blocks"), None)
        assert blocked.wait(PATIENCE_S)
        a.request_shutdown(PATIENCE_S)

        def is_closed() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port_of(a)), PATIENCE_S).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                pass  # It was closed between the two halves of this: the next one is refused.
            return False

        until(is_closed)
        with dialled:
            dialled.settimeout(PATIENCE_S)
            while dialled.recv(4_096):
                pass
        assert [link.node for link in b.cluster_status().connections] == [a.node_id]
        # What would be dialled again by now keeps nobody awake.
        until(lambda: next_tick_s(a) > SHORT["redial_most_ms"] / 1_000)
        go_on.set()
        assert told.down(a.node_id).reason == "shutdown"


def test_a_node_is_replaced_by_a_later_start_of_it() -> None:
    with rouse("a") as a:
        told = Told(a)
        with RawPeer(a, incarnation=1), RawPeer(a, incarnation=2) as later:
            told.until(lambda events: len(events) == 3)
            assert [type(event) for event in told.events] == [NodeUp, NodeDown, NodeUp]
            assert told.events[1] == NodeDown(later.node, 1, "replaced")


def test_who_reads_no_answers_is_let_go() -> None:
    """Else whoever asks for more and more of them fills this node's memory."""
    with rouse("a", limits={"peer_queue_bytes_max": 100_000, "down_after_ms": 60_000}) as a:
        told = Told(a)
        with RawPeer(a, receive_buffer=65_536) as raw:
            told.until(lambda events: any(e.node == raw.node for e in events))
            assert raw.session is not None
            raw.sock.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                while True:
                    for n in range(1_000):
                        raw.session.monitor(
                            Pid(f"w{n % 100}", raw.node), Pid("nobody", a.node_id), n
                        )
                    raw.say(raw.session.take_data())
            assert told.down(raw.node).reason == "limit"


@pytest.mark.parametrize("body", [bytes(150_000), ["x" * 1_000] * 150])
def test_what_a_peer_does_not_take_is_a_dead_letter_and_costs_nobody_else(body: Any) -> None:
    limits = {"message_bytes_max": 100_000}
    with rouse("a") as a, rouse("b", limits=limits) as b, a.mailbox() as letters:
        told = meet(a, b)
        subscribe_to_letters(a, letters.pid)
        echo = b.spawn(Echo(), "echo")
        with pytest.raises(EncodeError, match=f"100000 that {b.node_id} takes"):
            a.call(echo, body, PATIENCE_S)
        letter = letters.receive(PATIENCE_S).msg
        assert letter.reason is DeadLetterReason.UNENCODABLE
        assert "100000" in letter.detail and f"{64 << 20} of {a.node_id}" in letter.detail
        # The other way it is no longer than that node sends.
        far = a.spawn(Echo(), "echo")
        with pytest.raises(EncodeError, match="more than"):
            b.call(far, body, PATIENCE_S)
        assert a.call(echo, "small", PATIENCE_S) == "small"
        assert all(len(each.events) == 1 for each in told)


def test_a_mailbox_limit_holds_up_nobody_but_its_process() -> None:
    """What it refuses is not waited for: neither of who sent that, nor of anybody else."""
    with rouse("a") as a, rouse("b") as b, rouse("c") as c:
        meet(a, b, c)
        entered, go_on = threading.Event(), threading.Event()

        def wait(*_: object) -> None:
            entered.set()
            assert go_on.wait(PATIENCE_S)

        echo = a.spawn(Echo(), "echo")
        small = a.spawn(Does(lambda *_: None), "small", mailbox_max=1)
        a.send(a.spawn(Does(wait), "waits"), None)
        assert entered.wait(PATIENCE_S)
        with b.mailbox() as box:
            for n in range(2_000):
                box.send(small, n)
            go_on.set()
        for peer in b, c:
            assert peer.call(echo, 2, PATIENCE_S) == 2
        if CAPACITIES["BATCH_FRAMES_MAX"] > 1:
            # Batches of one are delivered one by one: nothing waits.
            until(lambda: a.executor_status().dead_letters.get("mailbox_full", 0) > 0)
        assert set(a.executor_status().dead_letters) <= {"mailbox_full"}


def test_leave_takes_back_the_join_of_an_address_where_nobody_answered() -> None:
    """The dial that is under way is dropped, and none comes after it."""
    with rouse("a") as a, socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        addr = "{}:{}".format(*silent.getsockname())
        a.join(addr)
        dialled, _ = silent.accept()
        with dialled:
            dialled.settimeout(PATIENCE_S)
            assert dialled.recv(4)
            a.leave(addr)
            while dialled.recv(4096):
                pass
        silent.settimeout(5 * SHORT["redial_most_ms"] / 1000)
        with pytest.raises(TimeoutError):
            silent.accept()
        assert a.cluster_status().members == (a.node_id,)


def test_a_watcher_that_ends_leaves_no_monitor_behind(two: list[Node]) -> None:
    a, b = two
    pid = b.spawn(Echo(), "watched")
    executor = a.pid("executor", "rabble")
    with a.mailbox("watcher") as box:
        box.send(executor, Monitor(pid))
        assert a.call(pid, 1, PATIENCE_S) == 1
    with again(a, "watcher") as box, a.mailbox() as other:
        other.send(executor, Monitor(pid))
        assert a.call(pid, 1, PATIENCE_S) == 1
        b.stop(pid)
        assert other.receive(PATIENCE_S).msg == Down(pid, DownReason("stopped"))
        assert len(box) == 0


def test_a_peer_can_monitor_no_more_than_the_limit() -> None:
    """Else endless watchers of one process would fill this node's memory."""
    with rouse("a") as a, rouse("b", limits={"peer_monitors_max": 3}) as b:
        meet(a, b)
        executor = a.pid("executor", "rabble")
        pids = [b.spawn(Echo(), f"p{n}") for n in range(2)]
        with contextlib.ExitStack() as stack:
            boxes = [stack.enter_context(a.mailbox(f"watcher-{n}")) for n in range(4)]
            for _ in range(2):  # twice is once
                for box in boxes[:3]:
                    box.send(executor, Monitor(pids[0]))
            boxes[3].send(executor, Monitor(pids[0]))
            down = boxes[3].receive(PATIENCE_S).msg
            assert down.pid == pids[0] and down.reason.kind == "refused"
            assert "Limits.peer_monitors_max, 3" in down.reason.detail
            # Who gives up one makes room for one.
            boxes[0].send(executor, Demonitor(pids[0]))
            boxes[3].send(executor, Monitor(pids[1]))
            assert a.call(pids[1], 1, PATIENCE_S) == 1
            b.stop(pids[1])
            assert boxes[3].receive(PATIENCE_S).msg == Down(pids[1], DownReason("stopped"))
            # So does a process that ends.
            boxes[3].send(executor, Monitor(pids[0]))
            assert a.call(pids[0], 1, PATIENCE_S) == 1
            b.stop(pids[0])
            for box in boxes[1:]:
                assert box.receive(PATIENCE_S).msg == Down(pids[0], DownReason("stopped"))
            assert [len(box) for box in boxes] == [0] * 4


def test_all_that_is_monitored_behind_a_node_is_down_with_it() -> None:
    with rouse("a") as a, rouse("b") as b:
        told, _ = meet(a, b)
        pids = [b.spawn(Echo(), f"p{n}") for n in range(3)]
        with a.mailbox() as box:
            for pid in pids:
                box.send(a.pid("executor", "rabble"), Monitor(pid))
            assert a.call(pids[0], 1, PATIENCE_S) == 1
            b.shutdown()
            downs = [box.receive(PATIENCE_S).msg for _ in pids]
            assert {d.pid for d in downs} == set(pids)
            assert {d.reason for d in downs} == {DownReason("shutdown", f"{b.node_id} ended")}
            assert told.down(b.node_id).reason == "shutdown"
            box.send(a.pid("executor", "rabble"), Monitor(pids[0]))
            assert box.receive(PATIENCE_S).msg.reason.kind == "disconnected"
            assert len(box) == 0


def test_a_node_that_stops_a_process_and_then_itself_is_heard_to_the_end() -> None:
    with rouse("a") as a, rouse("b") as b:
        told, _ = meet(a, b)
        pid = b.spawn(Echo(), "one")
        begun, go_on = threading.Event(), threading.Event()

        def slow(process: Process, msg: Any, sender: Pid | None) -> None:
            begun.set()
            assert go_on.wait(PATIENCE_S)

        holds_up = a.spawn(Does(slow), "slow")
        with a.mailbox() as box:
            box.send(a.pid("executor", "rabble"), Monitor(pid))
            assert a.call(pid, 1, PATIENCE_S) == 1
            a.send(holds_up, "now")
            assert begun.wait(PATIENCE_S)
            # Both come to `a` while it hears nothing, and are heard in one batch.
            b.stop(pid)
            b.shutdown()
            until(lambda: not a.cluster_status().connections)
            go_on.set()
            assert box.receive(PATIENCE_S).msg == Down(pid, DownReason("stopped"))
            told.down(b.node_id)
            assert len(box) == 0


@pytest.mark.parametrize("authenticated", [False, True])
def test_what_is_sent_just_before_an_end_in_order_arrives(authenticated: bool) -> None:
    # In ticks of the poll thread it would take longer than half of what the end may take.
    mesh, limits = {"authenticate_loopback": authenticated}, {"shutdown_ms": 5_000}
    size = 100_000 if TINY else 48 << 20
    with rouse("a") as a, rouse("b", mesh=mesh, limits=limits) as b:
        told, _ = meet(a, b)
        with a.mailbox() as box:
            b.send(box.pid, bytes(size))
            b.shutdown()
            assert len(box.receive(PATIENCE_S).msg) == size
            assert told.down(b.node_id).reason == "shutdown"


def test_nobody_is_told_of_a_process_whose_watchers_node_has_gone() -> None:
    with rouse("a") as a, rouse("b") as b:
        _, told = meet(a, b)
        pid = b.spawn(Echo(), "watched")
        with a.mailbox() as box, b.mailbox() as letters:
            box.send(a.pid("executor", "rabble"), Monitor(pid))
            assert a.call(pid, 1, PATIENCE_S) == 1
            b.subscribe_dead_letters(letters.pid)
            a.shutdown()
            told.down(a.node_id)
            b.stop(pid)
            assert b.call(b.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
            assert len(letters) == 0


# Leaving, removal, and coming back.


@pytest.mark.parametrize("who", ["itself", "another", "the one that it joined"])
def test_a_node_leaves_is_told_and_can_come_back(who: str) -> None:
    with rouse("a") as a, rouse("b") as b, rouse("c") as c:
        told = meet(a, b, c)
        {"itself": c, "another": b, "the one that it joined": a}[who].leave("c")
        told[2].until(lambda events: any(isinstance(e, Removed) for e in events))
        told[0].down(c.node_id)
        told[1].down(c.node_id)
        told[2].down(a.node_id)
        told[2].down(b.node_id)
        until(lambda: names(a) == names(b) == ["a", "b"])
        assert c.cluster_status().removed
        assert len([e for e in told[2].events if isinstance(e, Removed)]) == 1
        # The others go on, and nobody dials it.
        assert linked(a) == ["b"]
        first = c.cluster_status().incarnation
        c.join(b.node_id if who == "another" else a.node_id.addr)
        for each in told[:2]:
            each.up(c)
        told[2].up(a, b)
        until(lambda: names(a) == names(b) == names(c) == ["a", "b", "c"])
        assert not c.cluster_status().removed
        assert c.cluster_status().incarnation > first
        for each in told:
            each.alternate()


def test_a_node_that_was_away_when_it_was_removed_learns_it_at_its_return() -> None:
    with rouse("a") as a, rouse("b") as b:
        port = 0
        with rouse("c") as c:
            meet(a, b, c)
            port = port_of(c)
        a.leave("c")
        until(lambda: names(a) == names(b) == ["a", "b"])
        with rouse("c", port, mesh={"seeds": []}) as c:
            told = Told(c)
            # To join is to come back.
            c.join(b.node_id.addr)
            told.up(a, b)
            until(lambda: names(a) == names(b) == names(c) == ["a", "b", "c"])


def test_leave_and_join_again_and_again() -> None:
    with rouse("a") as a, rouse("b") as b:
        told = meet(a, b)
        for times in range(1, 9):
            a.leave(b.node_id)
            told[1].until(lambda events, n=times: sum(isinstance(e, Removed) for e in events) == n)
            told[0].down(b.node_id)
            told[1].down(a.node_id)
            b.join(a.node_id.addr)
            told[0].up(b)
            told[1].up(a)
        for each in told:
            each.alternate()


def test_who_is_to_leave_before_it_said_that_it_is_a_member_leaves() -> None:
    with rouse("a", limits={"down_after_ms": 60_000}) as a, RawPeer(a, join=True) as raw:
        told = Told(a)
        told.until(lambda events: len(events) == 1)
        a.leave("raw")
        # It is carried out when there is something to be removed.
        start = ["raw", raw.incarnation, 1, 0, raw.node.addr]
        state = Codec(MessageRegistry()).encode_message({"s": [start], "v": [], "m": []})
        raw.say(frame(MEMBERSHIP, 0, state))
        assert raw.goodbye() == RefusalCode.REMOVED
        told.down(raw.node)
        assert names(a) == ["a"]
        with RawPeer(a, incarnation=raw.incarnation) as again:
            assert isinstance(again.ended, Failed)
            assert (again.ended.code, again.ended.authenticated) == (RefusalCode.REMOVED, True)


def test_a_restart_under_the_same_name_is_another_start() -> None:
    with rouse("a") as a:
        b = rouse("b")
        told, _ = meet(a, b)
        first = b.cluster_status().incarnation
        b.shutdown()
        with rouse("b", port_of(b)) as b:
            b.join(a.node_id.addr)
            told.up(b)
            assert b.cluster_status().incarnation > first
            assert [type(e) for e in told.events] == [NodeUp, NodeDown, NodeUp]
            told.alternate()
            until(lambda: names(a) == names(b) == ["a", "b"])


def test_a_restart_is_found_again_by_the_others() -> None:
    with rouse("a") as a:
        b = rouse("b")
        told, _ = meet(a, b)
        b.shutdown()
        told.down(b.node_id)
        # It joins nobody: those whose member it is dial it.
        with rouse("b", port_of(b)) as b:
            told.up(b)
            until(lambda: names(b) == ["a", "b"])
            assert not b.cluster_status().removed


def test_what_was_sent_to_one_start_never_reaches_the_next() -> None:
    with rouse("a") as a:
        b = rouse("b")
        told, _ = meet(a, b)
        target = b.pid("target")
        begun, go_on = threading.Event(), threading.Event()

        def slow(process: Process, msg: Any, sender: Pid | None) -> list[Envelope]:
            begun.set()
            assert go_on.wait(PATIENCE_S)
            return [Envelope(target, ["from a process", n]) for n in range(5)]

        holds_up = a.spawn(Does(slow), "slow")
        with a.mailbox() as letters:
            a.subscribe_dead_letters(letters.pid)
            a.send(holds_up, "now")
            assert begun.wait(PATIENCE_S)
            b.shutdown()
            for n in range(5):
                a.send(target, ["before the switch", n])
            with rouse("b", port_of(b)) as b:
                with b.mailbox("target") as box:
                    up = Told(b)
                    b.join(a.node_id.addr)
                    up.up(a)
                    for n in range(5):
                        a.send(target, ["at the switch", n])
                    go_on.set()
                    told.up(b)
                    a.send(target, "after it")
                    assert box.receive(PATIENCE_S).msg == "after it"
                    found = [letters.receive(PATIENCE_S).msg for _ in range(15)]
                    assert {letter.reason for letter in found} == {DeadLetterReason.NOT_CONNECTED}
                    assert len(box) == len(letters) == 0
        told.alternate()


def test_a_name_belongs_to_the_node_that_lives() -> None:
    with rouse("a") as a:
        old = rouse("b")
        told, _ = meet(a, old)
        with rouse("b") as new:
            events = Told(new)
            new.join(a.node_id.addr)
            until(lambda: new.cluster_status().refusals.get("NAME_CONFLICT"))
            until(lambda: a.cluster_status().refusals.get("NAME_CONFLICT"))
            assert events.events == [] and len(events.box) == 0
            assert [type(e) for e in told.events] == [NodeUp]
            assert a.call(old.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
            # When the old one has gone, the name is free.
            old.shutdown()
            events.up(a)
            told.up(new)
            told.alternate()
            until(lambda: names(new) == ["a", "b"])
            assert a.call(new.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1


@pytest.mark.parametrize("where", ["127.0.0.1", "127.0.0.2"])
def test_a_node_that_dials_itself_notices_and_stops(where: str) -> None:
    with rouse("a", mesh={"bind": "0.0.0.0:0"}) as a:
        told = Told(a)
        a.join(f"{where}:{port_of(a)}")
        until(lambda: a.cluster_status().refusals.get("SELF", 0) >= 2)
        seen = dict(a.cluster_status().refusals)
        # Others come and go meanwhile; that address is not dialled again.
        with rouse("b") as b:
            b.join(a.node_id.addr)
            told.up(b)
        told.down(b.node_id)
        assert a.cluster_status().refusals["SELF"] == seen["SELF"] == 2
        assert names(a)[0] == "a"


# Who is not let in.


def test_another_cluster_is_refused() -> None:
    with rouse("a") as a, rouse("b", mesh={"cluster": "other"}) as b:
        assert refused(b, a) == ({"CLUSTER"}, {"CLUSTER"})


@pytest.mark.parametrize("dialler", ["with", "without"])
def test_a_node_with_a_key_and_one_without_refuse_each_other(dialler: str) -> None:
    with rouse("with") as a, rouse("without", mesh={"key": None}) as b:
        pair = (a, b) if dialler == "with" else (b, a)
        assert refused(*pair) == ({"AUTH"}, {"AUTH"})


def test_nodes_on_loopback_need_no_key() -> None:
    with rouse("a", mesh={"key": None}) as a, rouse("b", mesh={"key": None}) as b:
        meet(a, b)
        assert a.call(b.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("mesh") / "ours")


@pytest.mark.parametrize("dialler", ["tls", "plain"])
def test_tls_and_plain_refuse_each_other_without_a_wait(issuer: Issuer, dialler: str) -> None:
    secure = {"key": None, "tls": issuer.node("tls")}
    # The time that a handshake may take is not what ends it.
    limits = {"handshake_ms": 60_000}
    with rouse("tls", mesh=secure, limits=limits) as a, rouse("plain", limits=limits) as b:
        refused(*((a, b) if dialler == "tls" else (b, a)))


def test_a_certificate_that_is_replaced_is_shown_without_a_stop(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = {"credentials_refresh_ms": 50}
    own = issuer.node("a")
    with rouse("a", mesh={"key": None, "tls": own}, limits=limits) as a:
        with rouse("b", mesh={"key": None, "tls": issuer.node("b")}) as b:
            meet(a, b)
            days = a.cluster_status().certificate_days_left
            assert days is not None and 8 < days < 9.1
            until(lambda: "a: its certificate ends in 9.0 days" in caplog.text)
            issuer.issue("a", named("a"), TODAY + 200 * DAY)
            until(lambda: (a.cluster_status().certificate_days_left or 0) > 199)
            assert linked(a) == ["b"]
            with rouse("c", mesh={"key": None, "tls": issuer.node("c")}) as c:
                meet(a, c)
            # What cannot be used changes nothing.
            Path(own.cert).write_text("no certificate")
            until(lambda: "a: the certificates stay those of before" in caplog.text)
            assert (a.cluster_status().certificate_days_left or 0) > 199
    with rouse("plain") as plain:
        assert plain.cluster_status().certificate_days_left is None


def test_a_key_file_that_is_replaced_is_used_without_a_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, new = tmp_path / "key", bytes(range(1, 33))
    ids = {key: key_id(key) for key in (KEY, new)}

    def write(*keys: bytes) -> None:
        put = tmp_path / "put"
        put.touch(0o600)
        put.write_text("\n".join(key.hex() for key in keys))
        put.replace(file)

    def proves(node: Node, key: bytes) -> bool:
        """Whether who has that key alone is let in, and by whoever has it too."""
        with RawPeer(node, f"raw-{next(raw)}", key=key) as peer:
            return isinstance(peer.ended, Established)

    raw = itertools.count()
    write(KEY)
    limits = {"credentials_refresh_ms": 20}
    with rouse("a", mesh={"key": file}, limits=limits) as a, rouse("b") as b:
        told = meet(a, b)
        assert a.cluster_status().key_ids == (ids[KEY],)
        assert proves(a, KEY) and not proves(a, new)
        for keys in ((KEY, new), (new, KEY), (new,)):
            write(*keys)
            shown = tuple(ids[key] for key in keys)
            until(lambda shown=shown: a.cluster_status().key_ids == shown)
            assert a.metrics().gauges["keys"] == len(keys)
            assert [proves(a, key) for key in (KEY, new)] == [key in keys for key in (KEY, new)]
        # What cannot be used changes nothing.
        file.chmod(0o644)
        until(lambda: "a: the keys stay those of before" in caplog.text)
        assert proves(a, new)
        # The connection that stood, stands.
        assert linked(a)[0] == "b" and a.call(b.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
        for each, node in zip(told, (b, a), strict=True):
            assert len(each.of(node.node_id)) == 1
    with rouse("open", mesh={"key": None}) as plain:
        assert plain.cluster_status().key_ids == ()
        assert "keys" not in plain.metrics().gauges


def test_three_nodes_speak_tls(issuer: Issuer) -> None:
    nodes = [rouse(n, mesh={"key": None, "tls": issuer.node(n)}) for n in "abc"]
    try:
        told = meet(*nodes)
        a, b, c = nodes
        body = random.Random(1).randbytes(3_000_000)
        for node in (b, c):
            assert a.call(node.spawn(Echo(), "echo"), [body, 1], PATIENCE_S) == [body, 1]
        with a.mailbox() as box:
            for n in range(300):
                box.send(b.pid("echo"), [n, body[: 70_000 if n % 50 == 7 else 10]])
            assert [box.receive(PATIENCE_S).msg[0] for _ in range(300)] == list(range(300))
        c.shutdown()
        told[0].down(c.node_id)
        told[1].down(c.node_id)
    finally:
        for node in nodes:
            node.shutdown()


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0"])
def test_a_node_open_to_everybody_does_not_start(bind: str) -> None:
    with pytest.raises(ValueError, match="would take in anybody who can reach it"):
        rouse("a", mesh={"key": None, "bind": bind})
    with rouse("a", mesh={"bind": bind}) as a:
        assert port_of(a) > 0


def test_a_node_without_secret_dials_nobody_but_this_machine() -> None:
    with rouse("a", mesh={"key": None}) as a:
        # The address is one for documentation (RFC 5737): nothing is sent there.
        a.join("192.0.2.1:5")
        until(lambda: a.cluster_status().refusals)


def test_a_port_in_use_is_said_and_one_just_left_is_free() -> None:
    with rouse("a") as a:
        with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{port_of(a)} "):
            rouse("b", port_of(a))
        with rouse("b") as b:
            meet(a, b)
            port = port_of(b)
            # The side that closes first is the one that waits in TIME_WAIT.
        with rouse("c", port) as c:
            assert port_of(c) == port


@pytest.mark.parametrize(
    ("mesh", "limits", "match"),
    [
        ({"key": b"short"}, {}, "the key must be 32 bytes"),
        ({"cluster": "x" * 65}, {}, "at most 64 bytes"),
        ({"cluster": "e\u0301"}, {}, "normal form C"),
        ({}, {"frame_bytes_max": 4_096}, "frame_bytes_max"),
        ({}, {"fragment_bytes_max": 15}, "fragment_bytes_max"),
        ({"seeds": ["nowhere"]}, {}, "write it as"),
    ],
)
def test_what_could_not_work_is_refused_before_the_node_starts(
    mesh: dict[str, Any], limits: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        rouse("a", mesh=mesh, limits=limits)


# Slow peers, and the end.


#: For who counts bytes; and nobody is down for what it does not read.
PARTS = {"fragment_bytes_max": 16 << 10, "down_after_ms": 60_000}


def test_beside_a_message_longer_than_the_queue_others_have_all_of_it() -> None:
    """A peer that does not read: small ones are refused as if the long one were not there."""
    limit, long = 200_000, 3_000_000
    with rouse("a", limits={**PARTS, "peer_queue_bytes_max": limit}) as a:
        told = Told(a)
        with RawPeer(a, receive_buffer=65_536) as raw, a.mailbox("one") as one, a.mailbox() as box:
            told.until(lambda events: any(e.node == raw.node for e in events))
            executor = a.pid("executor", "rabble")

            def say(many: int, body: bytes, sender: rabble.Mailbox = box) -> tuple[int, int]:
                for _ in range(many):
                    sender.send(Pid("target", raw.node), body)
                # Its answer comes behind what became of them.
                sender.send(executor, GetMetrics())
                assert sender.receive(PATIENCE_S)
                (link,) = a.cluster_status().connections
                return a.executor_status().dead_letters.get("peer_busy", 0), link.queued_bytes

            assert say(1, bytes(long), one)[0] == 0
            refused, queued = say(limit // 1_000 * 8 // 10, bytes(950))
            assert refused == 0 and queued > long / 2
            refused, queued = say(1_000, bytes(950))
            assert 0 < refused < 1_000 and long / 2 < queued < long + limit + 65_536
            # Another one as long is one more that is too much.
            before = refused
            refused, queued = say(1, bytes(long), one)
            assert refused == before + 1 and queued < long + limit + 65_536


def test_of_messages_longer_than_the_queue_one_waits_at_a_time() -> None:
    with rouse("a", limits={**PARTS, "peer_queue_bytes_max": 200_000}) as a:
        told = Told(a)
        with RawPeer(a, receive_buffer=65_536) as raw, a.mailbox() as box:
            told.until(lambda events: any(e.node == raw.node for e in events))
            a.subscribe_dead_letters(box.pid)
            for _ in range(3):
                box.send(Pid("target", raw.node), bytes(3_000_000))
            for _ in range(2):
                assert box.receive(PATIENCE_S).msg.reason is DeadLetterReason.PEER_BUSY
            (link,) = a.cluster_status().connections
            assert link.queued_bytes < 3_100_000


def test_a_peer_that_does_not_read_costs_its_own_envelopes_only() -> None:
    limits = {"peer_queue_bytes_max": 200_000, "down_after_ms": 60_000}
    with rouse("a", limits=limits) as a, rouse("b") as b:
        meet(a, b)
        b.spawn(Echo(), "echo")
        with RawPeer(a, receive_buffer=65_536) as raw, a.mailbox() as letters:
            told = Told(a)
            told.until(lambda events: any(e.node == raw.node for e in events))
            target = Pid("target", raw.node)
            with a.mailbox() as box:
                a.subscribe_dead_letters(letters.pid)
                body = bytes(10_000)
                for n in range(600):
                    box.send(target, [n, body])
                # Whatever waits for one peer, the other one is reached.
                assert a.call(b.pid("echo"), 1, PATIENCE_S) == 1
                assert a.call(b.pid("echo"), 2, PATIENCE_S) == 2
                dead = a.executor_status().dead_letters
                refused = dead["peer_busy"]
                assert dead == {"peer_busy": refused}
                (link,) = [x for x in a.cluster_status().connections if x.node == raw.node]
                assert link.queued_bytes < 200_000 + 2 * 65_536
                lost = [letters.receive(PATIENCE_S).msg for _ in range(refused)]
                assert {letter.reason for letter in lost} == {DeadLetterReason.PEER_BUSY}
                assert {letter.envelope.to for letter in lost} == {target}
                numbers = [letter.envelope.msg[0] for letter in lost]
                assert numbers == sorted(set(numbers))
                # It reads again: what was accepted comes, in order, and how many did not.
                heard: list[Any] = []
                gaps = 0
                assert raw.session is not None
                while len(heard) < 600 - refused:
                    found = raw.frame()
                    assert found is not None
                    if found[0] < 16:
                        for e in raw.session.decode(raw.whole(found)):
                            if isinstance(e.msg, list):
                                heard.append(e.msg[0])
                            else:
                                gaps += e.msg.count
                assert sorted([*heard, *numbers]) == list(range(600))
                assert heard == sorted(heard)
                # What is said next is preceded by the number of those that were lost.
                box.send(target, [600, b""])
                while heard[-1] != 600:
                    found = raw.frame()
                    assert found is not None
                    if found[0] < 16:
                        for e in raw.session.decode(raw.whole(found)):
                            if isinstance(e.msg, list):
                                heard.append(e.msg[0])
                            else:
                                gaps += e.msg.count
                assert gaps == refused


def test_what_a_peer_lost_is_counted_and_told(two: list[Node]) -> None:
    a, _ = two
    with RawPeer(a) as raw, a.mailbox() as letters:
        subscribe_to_letters(a, letters.pid)
        raw.say(raw.lost(5))
        assert letters.receive(PATIENCE_S).msg == Lost(raw.node, 5)
        assert a.executor_status().dead_letters == {"lost": 5}


def test_a_node_that_ends_is_down_at_once_and_what_it_sent_arrives() -> None:
    # Only what it says can tell that it is gone so soon.
    with rouse("a", limits=SLOW) as a, rouse("b", limits=SLOW) as b, rouse("c", limits=SLOW) as c:
        told = meet(a, b, c)
        with b.mailbox() as box:
            for n in range(500):
                # By seven bytes at a time there is no time for more.
                c.send(box.pid, [n, bytes(10 if TINY else 10_000)])
            c.shutdown()
            told[0].down(c.node_id)
            told[1].down(c.node_id)
            assert [box.receive(PATIENCE_S).msg[0] for _ in range(500)] == list(range(500))
        assert linked(a) == ["b"]


def test_a_silent_peer_is_down() -> None:
    with rouse("a") as a:
        told = Told(a)
        with RawPeer(a) as raw:
            told.until(lambda events: len(events) == 1)
            # It reads, and says nothing.
            assert raw.wait_for(MEMBERSHIP) is not None
            down = told.down(raw.node)
            assert down.incarnation == raw.incarnation
        until(lambda: a.cluster_status().refusals == {"TIMEOUT": 1})


@pytest.mark.parametrize("seed", range(1))
def test_many_starts_joins_and_ends_leave_nothing(seed: int) -> None:
    with rouse("a") as a:
        told = Told(a)
        for _ in range(50):
            with rouse("b") as b:
                b.join(a.node_id.addr)
                told.up(b)
            told.down(b.node_id)
        told.alternate()
        assert linked(a) == []


def test_a_node_that_ends_while_it_dials_and_is_dialled_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        addr = f"127.0.0.1:{black_hole.getsockname()[1]}"
        with rouse("a") as a:
            a.join(addr)
            black_hole.settimeout(PATIENCE_S)
            held, _ = black_hole.accept()
            with held, socket.create_connection(("127.0.0.1", port_of(a)), PATIENCE_S) as silent:
                a.shutdown()
                # Reset if it was not yet accepted: the kernel ends what waits with the listener.
                with contextlib.suppress(ConnectionResetError):
                    assert silent.recv(10) == b""
