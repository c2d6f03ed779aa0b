"""What a plain socket can say to a node, and what the node makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import resource
import selectors
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from rabble import DeadLetterReason, Limits, Node, NodeDown, NodeId, NodeUp, Pid
from rabble._core.codec import Codec
from rabble.cluster.decide import handshake_wire as wire
from rabble.cluster.decide.belief import highest_believed
from rabble.cluster.decide.handshake import Established, Failed
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.server import new_incarnation
from rabble.registry import MessageRegistry
from tests.cluster.mesh import (
    Told,
    meet,
    nothing_left,
    port_of,
    rouse,
    subscribe_to_letters,
    until,
)
from tests.faults.meshes import SLACK_S, figures
from tests.faults.raw import KEY, RawPeer, dial, read_to_end
from tests.reference.session import (
    CACHE_PID,
    DOWN,
    ENVELOPE,
    FLAG_FIRST,
    FLAG_FULL,
    FLAG_SENDER,
    FRAGMENT,
    LOST,
    MEMBERSHIP,
    MONITOR,
    PING,
    PONG,
    WINDOW_UPDATE,
    frame,
)
from tests.support import PATIENCE_S, SANITIZED, TRACED, Does, Echo

CODEC = Codec(MessageRegistry())


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(params=["plain", "authenticated"])
def nodes(request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    """One to be abused, in a list that the test may not keep."""
    # Nobody is called down for being silent while a test looks at something else.
    limits = {"down_after_ms": 60_000, "handshake_ms": 60_000}
    mesh = {"authenticate_loopback": request.param == "authenticated"}
    with rouse("a", limits=limits, mesh=mesh) as node:
        held = [node]
        yield held
        held.clear()
        del node


def works(node: Node) -> None:
    assert node.call(node.pid("echo"), 1, PATIENCE_S) == 1


def is_up(told: Told, raw: RawPeer) -> None:
    assert isinstance(raw.ended, Established), raw.ended
    told.until(lambda events: any(isinstance(e, NodeUp) and e.node == raw.node for e in events))


def names_of(*pids: Pid) -> bytes:
    """CACHE_PID frames for places 0, 1, ..."""
    return b"".join(
        frame(CACHE_PID, 0, struct.pack(">H", n) + str(pid).encode()) for n, pid in enumerate(pids)
    )


def envelope(msg: Any, *, sender: bool = True) -> bytes:
    """An ENVELOPE from place 1 to place 0."""
    places = struct.pack(">HH", 0, 1) if sender else struct.pack(">H", 0)
    return frame(ENVELOPE, FLAG_SENDER if sender else 0, places + CODEC.encode_message(msg))


# Frames.


def test_ten_thousand_frames_in_one_write_come_in_order_and_others_are_heard(
    nodes: list[Node],
) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node) as raw, RawPeer(node, "other") as other, node.mailbox() as box:
        is_up(told, raw)
        is_up(told, other)
        me = Pid("me", raw.node)
        sending = threading.Thread(
            target=raw.say,
            args=(names_of(box.pid, me) + b"".join(envelope(n) for n in range(10_000)),),
        )
        sending.start()
        other.say(frame(PING, 0, b"question" + bytes(8)))
        answer = other.wait_for(PONG)
        assert answer is not None and answer[:8] == b"question"
        got = [box.receive(PATIENCE_S) for _ in range(10_000)]
        sending.join()
    assert [e.msg for e in got] == list(range(10_000))
    assert {e.sender for e in got} == {me}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(bytes(4), RefusalCode.PROTOCOL, id="length 0"),
        pytest.param(b"\0\0\0\1\2", RefusalCode.PROTOCOL, id="length 1"),
        pytest.param(
            struct.pack(">I", (1 << 20) + 1), RefusalCode.FRAME_TOO_LARGE, id="length max + 1"
        ),
        pytest.param(b"\xff" * 4, RefusalCode.FRAME_TOO_LARGE, id="length 4 GiB"),
        pytest.param(frame(77, 0, b"x"), RefusalCode.PROTOCOL, id="unknown kind"),
        pytest.param(frame(LOST, 4, bytes(4)), RefusalCode.PROTOCOL, id="reserved flag"),
        pytest.param(frame(FRAGMENT, 0, b"x"), RefusalCode.PROTOCOL, id="a part without a first"),
        pytest.param(
            frame(ENVELOPE, 0, struct.pack(">H", 9) + b"\xc0"),
            RefusalCode.PROTOCOL,
            id="a place that was not filled",
        ),
        pytest.param(
            frame(CACHE_PID, 0, b"\0\0a::b@\xff:1"), RefusalCode.DECODE, id="CACHE_PID of no UTF-8"
        ),
        pytest.param(frame(MEMBERSHIP, 0, b"\xc1"), RefusalCode.DECODE, id="no membership"),
        pytest.param(frame(MEMBERSHIP, 0, b"\x80"), RefusalCode.DECODE, id="an empty membership"),
    ],
)
def test_what_is_no_frame_ends_its_own_connection_only(
    nodes: list[Node], wrong: bytes, code: RefusalCode
) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node) as raw, RawPeer(node, "other") as other, node.mailbox() as box:
        is_up(told, raw)
        is_up(told, other)
        raw.say(names_of(box.pid, Pid("me", raw.node)) + envelope("before") + wrong)
        assert raw.goodbye() == code
        # Its last words count, those after the error do not.
        with contextlib.suppress(OSError):
            raw.say(envelope("after"))
        raw.close()
        assert box.receive(PATIENCE_S).msg == "before"
        told.down(raw.node)
        other.say(names_of(box.pid, Pid("me", other.node)) + envelope("still here"))
        assert box.receive(PATIENCE_S).msg == "still here"
        assert len(box) == 0
        assert [type(e) for e in told.of(raw.node)] == [NodeUp, NodeDown]
        assert [type(e) for e in told.of(other.node)] == [NodeUp]
        until(lambda: node.cluster_status().refusals == {code.name: 1})


@pytest.mark.parametrize("size", [10, 16, 17, 100, 5_000])
def test_the_switch_of_test_runs_cuts_whatever_is_longer(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv("RABBLE_FRAGMENT_BYTES", "16")
    with rouse("a") as node:
        told = Told(node)
        with RawPeer(node) as raw:
            is_up(told, raw)
            assert raw.session is not None
            # Two bytes say how long it is, or three from 256 on.
            msg = bytes(size - (2 if size < 256 else 3))
            node.send(Pid("me", raw.node), msg)
            parts = []
            while (found := raw.frame()) is not None:
                if found[0] not in (CACHE_PID, ENVELOPE, FRAGMENT):
                    continue
                if found[0] == FRAGMENT:
                    parts.append(len(found[2]))
                    raw.say(frame(WINDOW_UPDATE, 0, struct.pack(">Q", 1 << 62)))
                if heard := raw.session.decode(raw.whole(found)):
                    break
            assert [e.msg for e in heard] == [msg]
            # The first has the size of all of it, too.
            assert len(parts) > size // 16 if size > 16 else not parts
            assert all(part <= 4 + 16 for part in parts)


def test_memory_grows_with_what_came_and_not_with_what_was_claimed(nodes: list[Node]) -> None:
    (node,) = nodes
    told = Told(node)
    process = psutil.Process()
    peers: list[RawPeer] = []
    try:
        for n in range(200):
            peers.append(RawPeer(node, f"raw{n}"))
            is_up(told, peers[-1])
        before = process.memory_info().rss
        for raw in peers:
            # 1 MiB in the frame, 64 MiB in the message; seven bytes of it came.
            raw.say(
                struct.pack(">IBBIB", 1 << 20, FRAGMENT, FLAG_FIRST, 64 << 20, FLAG_FULL)
                if raw is peers[0]
                else struct.pack(">IBB", 1 << 20, ENVELOPE, 0) + b"x"
            )
        works_with_echo(node)
        if not SANITIZED:
            assert process.memory_info().rss - before < 16 << 20
        assert len(node.cluster_status().connections) == 200
    finally:
        for raw in peers:
            raw.close()


def works_with_echo(node: Node) -> None:
    node.spawn(Echo(), "echo")
    works(node)


def test_a_frame_that_never_ends_ends_its_connection() -> None:
    with rouse("a", limits={"frame_partial_ms_max": 300, "down_after_ms": 60_000}) as node:
        told = Told(node)
        with RawPeer(node) as raw, RawPeer(node, "other") as other:
            is_up(told, raw)
            is_up(told, other)
            # One byte every now and then does not help.
            for byte in frame(LOST, 0, bytes(4))[:-1]:
                raw.say(bytes([byte]))
            assert raw.goodbye() == RefusalCode.TIMEOUT
            told.down(raw.node)
            assert [type(e) for e in told.of(other.node)] == [NodeUp]


def part_of_a_message(node: Node, size: int, *, first: bool) -> bytes:
    """A fragment of a message of 4 MiB to a process of that node."""
    to = f"p::{node.node_id}".encode()
    head = struct.pack(">IBH", 4 << 20, FLAG_FULL, len(to)) + to if first else b""
    return frame(FRAGMENT, FLAG_FIRST if first else 0, head + bytes(size))


def test_a_message_that_is_never_finished_ends_its_connection() -> None:
    limits = {"frame_partial_ms_max": 500, "down_after_ms": 60_000}
    with rouse("a", limits=limits) as node:
        told = Told(node)
        with RawPeer(node) as raw, RawPeer(node, "other") as other:
            is_up(told, raw)
            is_up(told, other)
            raw.say(part_of_a_message(node, 1_000, first=True))
            assert raw.goodbye() == RefusalCode.TIMEOUT
            told.down(raw.node)
            assert [type(e) for e in told.of(other.node)] == [NodeUp]


def test_ten_names_of_one_key_holder_hold_no_more_than_may_be_unfinished() -> None:
    bound = 4 << 20
    limits = {
        "unfinished_bytes_max": bound,
        "message_bytes_max": bound,
        "down_after_ms": 60_000,
    }
    with rouse("a", limits=limits) as node, contextlib.ExitStack() as stack:
        told = Told(node)
        peers = [stack.enter_context(RawPeer(node, f"raw{n}")) for n in range(10)]
        for raw in peers:
            is_up(told, raw)
        for raw in peers:
            with contextlib.suppress(OSError):
                for n in range(64):
                    raw.say(part_of_a_message(node, 16_000, first=n == 0))
        works_with_echo(node)

        def have_learnt_it() -> bool:
            # Whose message gave way learns it with its next part.
            for raw in peers:
                with contextlib.suppress(OSError):
                    raw.say(part_of_a_message(node, 1, first=False))
            return node.cluster_status().refusals.get("LIMIT", 0) >= 5

        until(have_learnt_it)
        works(node)


def test_an_end_in_the_middle_of_a_frame_is_one_down(nodes: list[Node]) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node) as raw, node.mailbox() as box:
        is_up(told, raw)
        whole = names_of(box.pid, Pid("me", raw.node)) + envelope("whole")
        raw.say(whole + envelope("torn")[:-1])
        raw.close()
        assert box.receive(PATIENCE_S).msg == "whole"
        down = told.down(raw.node)
        assert down.incarnation == raw.incarnation
        assert len(box) == 0
        assert down.reason == "lost"
    assert [type(e) for e in told.events] == [NodeUp, NodeDown]
    # The executor tells of the end; the cluster server counts it in its own time.
    until(lambda: node.cluster_status().refusals == {"PARTIAL_FRAME": 1})


# Strangers that are no node at all.


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP"),
        pytest.param(bytes.fromhex("16030100f8010000f40303") + bytes(200), id="TLS"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH"),
        pytest.param(random.Random(5).randbytes(4_096), id="random"),
        pytest.param(wire.MAGIC[:-1] + b"x", id="the magic but for its last byte"),
    ],
)
def test_who_is_no_node_is_cut_off_without_a_word(nodes: list[Node], said: bytes) -> None:
    (node,) = nodes
    told = Told(node)
    with dial(node) as sock:
        sock.sendall(said)
        assert read_to_end(sock) == b""
    until(lambda: node.cluster_status().refusals == {"PROTOCOL": 1})
    works_with_echo(node)
    assert len(told.box) == 0


def test_what_strangers_claim_takes_nothing(nodes: list[Node]) -> None:
    (node,) = nodes
    # The longest HELLO that there is; what claims more, and what is none, is cut off.
    waits = wire.MAGIC + struct.pack(">H", wire.HELLO_BODY_MAX)
    claims = (wire.MAGIC + b"\xff\xff", b"\xff" * 4, struct.pack(">IBB", 1 << 20, ENVELOPE, 0))
    with contextlib.ExitStack() as stack:

        def strangers(count: int) -> None:
            for n in range(count):
                sock = stack.enter_context(dial(node))
                sock.sendall(waits if n % 4 == 0 else claims[n % 4 - 1])
                if n % 4:
                    # At most a few words, of which none is as long as what was claimed.
                    assert len(read_to_end(sock)) < 200
                    sock.close()

        def refused(count: int) -> None:
            until(lambda: sum(node.cluster_status().refusals.values()) == count)

        strangers(40)
        refused(30)
        tracemalloc.start()
        try:
            strangers(400)
            refused(330)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        figures("claims", held_kib=held / 1024, peak_kib=peak / 1024)
        # A hundred wait, each with the state of a handshake and the socket at this end.
        assert peak < 100 * 16 * 1024
    works_with_echo(node)


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """May have that many; skips where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors, {hard} are allowed")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_500_strangers_are_cut_at_the_total_deadline_and_keep_nobody_out() -> None:
    """With the bounds that a node has by default. Half of them say a byte now and then."""
    defaults = Limits()
    limits = {"handshakes_max": defaults.handshakes_max, "handshake_ms": defaults.handshake_ms}
    deadline_s = defaults.handshake_ms / 1000
    hello = wire.pack_hello(
        wire.Hello(1, 1, 1, 1, os.urandom(32), b"test", b"raw", b"127.0.0.1:1", 1)
    )
    with descriptors(4_096), rouse("a", limits=limits) as node, contextlib.ExitStack() as stack:
        told = Told(node)
        selector = stack.enter_context(selectors.DefaultSelector())
        dialled: dict[socket.socket, float] = {}
        for _ in range(500):
            began = time.monotonic()
            sock = stack.enter_context(dial(node))
            selector.register(sock, selectors.EVENT_READ)
            dialled[sock] = began
        talkative = list(dialled)[::2]

        began = time.monotonic()
        with rouse("b") as b:
            b.join(node.node_id.addr)
            told.up(b)
            joined_s = time.monotonic() - began
            took_s: list[float] = []
            said = 0
            while selector.get_map():
                now = time.monotonic()
                assert now - began < deadline_s + 2 * SLACK_S, f"{len(took_s)} of 500 were cut"
                if now - began > said * 0.5 and said < len(hello):
                    for sock in talkative:
                        if sock in dialled:
                            with contextlib.suppress(OSError):
                                sock.send(hello[said : said + 1])
                    said += 1
                for key, _ in selector.select(0.1):
                    assert isinstance(key.fileobj, socket.socket)
                    assert read_to_end(key.fileobj) == b""
                    took_s.append(time.monotonic() - dialled.pop(key.fileobj))
                    selector.unregister(key.fileobj)
            figures("strangers", joined_s=joined_s, least_s=min(took_s), most_s=max(took_s))
            # None was dropped for another one: there is room for all.
            until(lambda: node.cluster_status().refusals == {"TIMEOUT": 500})
            assert [link.node for link in node.cluster_status().connections] == [b.node_id]
    assert joined_s < 1 + SLACK_S
    assert said > 5
    assert min(took_s) > deadline_s - 0.1 and max(took_s) < deadline_s + SLACK_S


def test_silent_connections_are_cut_and_keep_nobody_out() -> None:
    limits = {"handshake_ms": 1_500, "handshakes_max": 64, "down_after_ms": 60_000}
    with rouse("a", limits=limits) as node:
        told = Told(node)
        silent = [dial(node) for _ in range(200)]
        try:
            with RawPeer(node) as raw:
                is_up(told, raw)
                for sock in silent:
                    assert read_to_end(sock) == b""
                until(lambda: sum(node.cluster_status().refusals.values()) == 200)
                refusals = node.cluster_status().refusals
                assert set(refusals) == {"BUSY", "TIMEOUT"}
                # Whoever is a node came in between.
                assert refusals["BUSY"] >= 200 - 64
                assert len(node.cluster_status().connections) == 1
        finally:
            for sock in silent:
                sock.close()


def test_the_time_of_a_handshake_is_that_of_all_of_it() -> None:
    with rouse("a", limits={"handshake_ms": 1_000}) as node:
        hello = wire.pack_hello(
            wire.Hello(1, 1, 1, 1, os.urandom(32), b"test", b"raw", b"127.0.0.1:1", 1)
        )
        began = time.monotonic()
        with dial(node) as sock:
            sock.settimeout(0.1)
            said, ended = b"", False
            for byte in hello:
                try:
                    sock.sendall(bytes([byte]))
                    said += sock.recv(100)
                    ended = True
                except TimeoutError:
                    # Not there yet: a byte every tenth of a second.
                    continue
                except OSError:
                    ended = True
                break
        assert ended and said == b""
        assert 0.9 < time.monotonic() - began < 1 + SLACK_S
        until(lambda: node.cluster_status().refusals == {"TIMEOUT": 1})


def test_who_says_too_much_before_it_is_known_is_cut_off(nodes: list[Node]) -> None:
    (node,) = nodes
    hello = wire.Hello(1, 1, 1, 1, os.urandom(32), b"test", b"raw", b"127.0.0.1:1", 1)
    # Behind the known fields there may be more, but not that much.
    body = wire.pack_hello(hello)[wire.HELLO_HEAD :].ljust(1_000, b"\0")
    with dial(node) as sock:
        sock.sendall(wire.MAGIC + struct.pack(">H", len(body)) + body)
        head = sock.recv(wire.HELLO_HEAD, socket.MSG_WAITALL)
        sock.recv(int.from_bytes(head[-2:], "big"), socket.MSG_WAITALL)
        sock.sendall(wire.follow_up(wire.PROOF, bytes(32)))
        assert read_to_end(sock) == b""
    until(lambda: node.cluster_status().refusals == {"LIMIT": 1})


# Peers that do not know the key.


def said_by(ended: Established | Failed | None) -> RefusalCode | None:
    assert not isinstance(ended, Established)
    return None if ended is None else ended.code


def nobody_is_there(node: Node, told: Told, code: RefusalCode = RefusalCode.AUTH) -> None:
    until(lambda: node.cluster_status().refusals == {code.name: 1})
    works_with_echo(node)
    assert [m.name for m in node.cluster_status().members] == ["a"]
    assert node.cluster_status().connections == ()
    assert len(told.box) == 0


def test_a_wrong_key_is_told_nothing_but_that(
    nodes: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node, key=bytes(32)) as raw:
        assert said_by(raw.ended) is RefusalCode.AUTH
        assert isinstance(raw.ended, Failed) and not raw.ended.authenticated
    nobody_is_there(node, told)
    until(lambda: [r for r in caplog.records if "AUTH" in r.getMessage()])


@pytest.mark.parametrize(
    "proof",
    [
        pytest.param(lambda data: wire.follow_up(wire.PROOF, data[3:-1]), id="truncated"),
        pytest.param(lambda data: wire.follow_up(wire.PROOF, bytes(32)), id="zeros"),
        pytest.param(lambda data: wire.follow_up(wire.PROOF), id="empty"),
        pytest.param(lambda data: wire.follow_up(wire.PROOF, data[3:] + b"x"), id="longer"),
        pytest.param(lambda data: data[:-1] + bytes([data[-1] ^ 1]), id="one bit"),
    ],
)
def test_a_wrong_proof_is_refused(nodes: list[Node], proof: Any) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node, proof=proof) as raw:
        assert said_by(raw.ended) is RefusalCode.AUTH
    nobody_is_there(node, told)


def test_a_proof_of_the_other_role_is_refused(nodes: list[Node]) -> None:
    (node,) = nodes
    told = Told(node)
    with dial(node) as sock:
        ours, theirs = greet(sock)
        digest = hashlib.sha256(ours + theirs).digest()
        proof = wire.proof_of(KEY, wire.RESPONDER_LABEL, digest)
        sock.sendall(wire.follow_up(wire.PROOF, proof))
        assert refusal_in(read_to_end(sock)) is RefusalCode.AUTH
    nobody_is_there(node, told)


def greet(sock: socket.socket, hello: bytes | None = None) -> tuple[bytes, bytes]:
    """Say HELLO and hear the other one: both, whole."""
    if hello is None:
        hello = wire.pack_hello(
            wire.Hello(1, 1, 1, 1, os.urandom(32), b"test", b"raw", b"127.0.0.1:1", 1)
        )
    sock.sendall(hello)
    head = sock.recv(wire.HELLO_HEAD, socket.MSG_WAITALL)
    return hello, head + sock.recv(int.from_bytes(head[-2:], "big"), socket.MSG_WAITALL)


def refusal_in(said: bytes) -> RefusalCode:
    """The code of a REFUSE that is all that was said."""
    assert said[0] == wire.REFUSE
    code, _, _, _ = wire.parse_refuse(said[3:])
    return RefusalCode(code)


def test_what_a_node_said_itself_proves_nothing(nodes: list[Node]) -> None:
    (node,) = nodes
    told = Told(node)
    # Its own HELLO, sent back as an answer to it, has its own name; what matters is the nonce.
    with socket.create_server(("127.0.0.1", 0)) as mirror:
        mirror.settimeout(PATIENCE_S)
        node.join(f"127.0.0.1:{mirror.getsockname()[1]}")
        sock, _ = mirror.accept()
        with sock:
            sock.settimeout(PATIENCE_S)
            head = sock.recv(wire.HELLO_HEAD, socket.MSG_WAITALL)
            body = sock.recv(int.from_bytes(head[-2:], "big"), socket.MSG_WAITALL)
            # As it is it has a flag that no responder's has.
            flags = struct.pack(">H", wire.KEY_FLAG)
            sock.sendall(head + body[:2] + flags + body[4:])
            assert refusal_in(read_to_end(sock)) is RefusalCode.AUTH
        nobody_is_there(node, told)


def test_a_recorded_session_opens_nothing(nodes: list[Node]) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node) as raw:
        is_up(told, raw)
        recorded = list(raw.said)
    told.down(raw.node)
    with dial(node) as sock:
        greet(sock, recorded[0])
        sock.sendall(recorded[1])
        assert refusal_in(read_to_end(sock)) is RefusalCode.AUTH
    until(lambda: node.cluster_status().refusals == {"AUTH": 1})
    assert [type(e) for e in told.events] == [NodeUp, NodeDown]
    assert len(told.box) == 0


@pytest.mark.parametrize("when", ["at once", "after HELLO", "with the PROOF"])
@pytest.mark.parametrize(
    "early",
    [
        pytest.param(frame(PING, 0, bytes(16)), id="ping"),
        pytest.param(frame(MEMBERSHIP, 0, b"\x81\xa1d\xc4\x00"), id="membership"),
        pytest.param(names_of(Pid("x", NodeId("a", "h:1"))), id="name"),
    ],
)
def test_nothing_is_heard_before_the_proof(nodes: list[Node], early: bytes, when: str) -> None:
    (node,) = nodes
    told = Told(node)
    with dial(node) as sock:
        if when == "at once":
            sock.sendall(early)
            assert read_to_end(sock) == b""
            nobody_is_there(node, told, RefusalCode.PROTOCOL)
            return
        ours, theirs = greet(sock)
        if when == "after HELLO":
            sock.sendall(early)
        else:
            digest = hashlib.sha256(ours + theirs).digest()
            proof = wire.proof_of(KEY, wire.INITIATOR_LABEL, digest)
            sock.sendall(wire.follow_up(wire.PROOF, proof) + early)
        said = read_to_end(sock)
        if when == "with the PROOF":
            # It is believed who it is, and told so before it is told that it speaks out of turn.
            said = said[3 + 32 :]
        assert refusal_in(said) is RefusalCode.STATE
    nobody_is_there(node, told, RefusalCode.STATE)


# Peers that lie about others.


@pytest.mark.parametrize("by", [0, 1 << 50, "bound"])
def test_who_passes_for_a_node_does_not_keep_it_out(by: int | str) -> None:
    """Each holder of the key may say that he is any node, and of the latest start there is."""
    with rouse("a") as a, rouse("b") as b:
        told, _ = meet(a, b)
        first = b.cluster_status().incarnation
        # Of a while ago: a node works out what it believes once a second.
        bound = highest_believed(new_incarnation()) - 2_000 * (1 << 20)
        incarnation = bound if by == "bound" else first + int(by) + 1
        with RawPeer(a, "b", addr=b.node_id.addr, incarnation=incarnation) as raw:
            assert isinstance(raw.ended, Established)
            # It takes a higher one, and the place of the other.
            told.until(
                lambda events: (
                    (ups := [e for e in events if isinstance(e, NodeUp)])
                    and ups[-1].incarnation == b.cluster_status().incarnation > incarnation
                )
            )
        told.up(b)
        told.alternate()


def test_a_sender_of_another_node_is_a_spoof(nodes: list[Node]) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node) as raw, node.mailbox() as box:
        is_up(told, raw)
        for wrong in (Pid("x", NodeId("c", "127.0.0.1:3")), node.pid("executor", "rabble")):
            with RawPeer(node, f"liar-{wrong.name}") as liar:
                is_up(told, liar)
                liar.say(names_of(box.pid, wrong) + envelope("forged"))
                assert liar.goodbye() == RefusalCode.SPOOF
                told.down(liar.node)
        raw.say(names_of(box.pid, Pid("me", raw.node)) + envelope("honest"))
        assert box.receive(PATIENCE_S).msg == "honest"
        assert len(box) == 0


def test_what_is_for_another_node_is_not_passed_on() -> None:
    with rouse("a") as node, rouse("b") as b:
        meet(node, b)
        told = Told(node)
        with b.mailbox("target") as box, RawPeer(node) as raw:
            is_up(told, raw)
            raw.say(names_of(box.pid, Pid("me", raw.node)) + envelope("through you"))
            assert raw.goodbye() == RefusalCode.SPOOF
            told.down(raw.node)
            assert b.call(b.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
            assert len(box) == 0


@pytest.mark.parametrize("name", ["executor", "reports", "anything"])
def test_the_runtimes_own_pids_are_not_reached(nodes: list[Node], name: str) -> None:
    (node,) = nodes
    told = Told(node)
    pid = node.spawn(Does(lambda process, msg, sender: None), "victim")
    with RawPeer(node) as raw, node.mailbox() as letters:
        is_up(told, raw)
        subscribe_to_letters(node, letters.pid)
        reserved = node.pid(name, "rabble")
        for msg in ("stop", ["Stop", str(pid)], {"timer": 1}):
            raw.say(names_of(reserved, Pid("me", raw.node)) + envelope(msg))
            letter = letters.receive(PATIENCE_S).msg
            assert letter.reason is DeadLetterReason.REFUSED
            assert letter.envelope.to == reserved
        # Nor can a message say that it is one of the runtime's own.
        raw.say(
            names_of(pid, Pid("me", raw.node))
            + frame(ENVELOPE, FLAG_SENDER, struct.pack(">HH", 0, 1) + b"\xc7\x06\x01\xa4Stop\x90")
        )
        letter = letters.receive(PATIENCE_S).msg
        assert letter.reason is DeadLetterReason.UNDECODABLE
        works_with_echo(node)
        assert set(node.processes()) >= {pid}
        assert [type(e) for e in told.events] == [NodeUp]


def test_a_monitor_of_the_executor_tells_nothing(nodes: list[Node]) -> None:
    (node,) = nodes
    told = Told(node)
    with RawPeer(node) as raw:
        is_up(told, raw)
        me = Pid("me", raw.node)
        raw.say(
            names_of(node.pid("executor", "rabble"), me)
            + frame(MONITOR, 0, struct.pack(">HHQ", 1, 0, 1))
        )
        assert raw.session is not None
        while (found := raw.frame()) is not None:
            if found[0] in (CACHE_PID, DOWN):
                for e in raw.session.decode(raw.whole(found)):
                    assert (e.msg.to, e.msg.about, e.msg.why) == (
                        me,
                        node.pid("executor", "rabble"),
                        3,
                    )
                    return
        pytest.fail("nothing was told")


# Logs.

#: Builds that look at each of their steps have not the time for more.
FLOOD = 20_000 if SANITIZED or TRACED else 100_000


def test_a_flood_of_nonsense_writes_few_lines(
    nodes: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    (node,) = nodes
    told = Told(node)
    port = port_of(node)
    began = time.monotonic()
    with caplog.at_level(logging.DEBUG, "rabble"):
        for _ in range(400):
            with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
                sock.sendall(b"\xff")
                assert read_to_end(sock) == b""
        with RawPeer(node) as raw:
            is_up(told, raw)
            # Envelopes that cannot be decoded, each an error of its own.
            bad = frame(
                ENVELOPE, FLAG_SENDER, struct.pack(">HH", 0, 1) + b"\xc7\x06\x01\xa4Nope\x90"
            )
            raw.say(names_of(node.pid("x"), Pid("me", raw.node)) + bad * FLOOD)
            until(lambda: node.executor_status().dead_letters.get("undecodable", 0) == FLOOD)
            seconds = time.monotonic() - began
        node.shutdown()
    lines = [r for r in caplog.records if r.name == "rabble"]
    assert 0 < len(lines) <= 10 * (seconds + 3)
    assert any("suppressed" in r.getMessage() for r in lines)
    assert node.metrics().counters["reports_suppressed"] > FLOOD - 10 * (seconds + 3)
    figures("bad frames", count=FLOOD, seconds=seconds, lines=len(lines))
