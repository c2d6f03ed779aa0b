"""Both clients against a scripted server, by what they promise in common."""

from __future__ import annotations

import datetime
import random
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustme

from rabble.client import (
    ClientClosed,
    ClientLimits,
    ConnectionLost,
    JsonLines,
    Nack,
    PlainLines,
    ProtocolError,
    PushesLost,
    RequestFailed,
    RetryBudget,
    RetryPolicy,
)
from rabble.errors import CallTimeout, DecodeError, EncodeError, QueueFull
from tests.client.servers import Peer, Script, frame_of, requests
from tests.support import until


class Never:
    """Jitter that is none."""

    def uniform(self, a: float, b: float, /) -> float:
        return a


def refused_address() -> str:
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


def test_calls_messages_and_values_of_the_wire(connect):
    got: list[Any] = []

    def serve(peer: Peer) -> None:
        got.append(peer.frame())
        peer.echo()

    with Script(serve) as server:
        client = connect(server.address)
        client.send({"log": 1})
        for value in ((1, {2}), datetime.date(2026, 11, 30), None, "x" * 100_000):
            assert client.call(value) == value
        assert type(client.call((1,))) is tuple
        assert got == [[1, {"log": 1}]]
        client.close()
    assert server.connections == 1


def test_answers_in_any_order_find_who_asked(connect):
    count = 8

    def serve(peer: Peer) -> None:
        asked = list(requests(peer, count))
        for request_id, msg in reversed(asked):
            peer.send(0, request_id, msg * 2)
        peer.ended()

    with Script(serve) as server, ThreadPoolExecutor(count) as pool:
        client = connect(server.address)
        assert list(pool.map(client.call, range(count))) == [n * 2 for n in range(count)]
        client.close()
    assert server.connections == 1


def test_many_threads_share_one_connection(connect):
    with Script(Peer.echo) as server, ThreadPoolExecutor(8) as pool:
        client = connect(server.address)

        def some(first: int) -> bool:
            return all(client.call([first, n], timeout=60) == [first, n] for n in range(100))

        assert all(pool.map(some, range(8)))
        client.close()
    assert server.connections == 1


def test_failures_and_nacks_are_told_apart(connect):
    def serve(peer: Peer) -> None:
        for request_id, _ in requests(peer, 1):
            peer.send(1, request_id, "no_process", "nobody")
        for request_id, _ in requests(peer, 1):
            peer.send(2, request_id, 250, "much to do")
        for request_id, _ in requests(peer, 1):
            peer.send_encoded(request_id, bytes.fromhex("c70301a15190"))
        peer.echo()

    with Script(serve) as server:
        client = connect(server.address)
        with pytest.raises(RequestFailed, match="no_process: nobody") as failed:
            client.call(1)
        assert failed.value.code == "no_process"
        with pytest.raises(Nack, match="250 ms: much to do") as nack:
            client.call(2)
        assert nack.value.retry_after == 0.25
        with pytest.raises(DecodeError, match="no class is registered as 'Q'"):
            client.call(3)
        assert client.call(4) == 4
        client.close()
    assert server.connections == 1


def test_a_late_answer_reaches_nobody(connect):
    told = threading.Event()

    def serve(peer: Peer) -> None:
        assert peer.frame() == [1, "connects"]
        ((late, _),) = requests(peer, 1)
        assert told.wait(60)
        for request_id, msg in requests(peer, 1):
            assert request_id != late
            peer.send(0, late, "late")
            peer.send(0, request_id, msg)
        peer.echo()

    with Script(serve) as server:
        client = connect(server.address)
        client.send("connects")
        with pytest.raises(CallTimeout):
            client.call("first", timeout=0.05)
        told.set()
        assert client.call("second", timeout=60) == "second"
        assert client.late == 1
        client.close()
    assert server.connections == 1


def test_the_connection_may_end_at_each_byte(connect):
    """Of the answer, which is the last that the server says: the next call has a new connection."""
    answer = frame_of(0, 0, ["the", "answer"])
    scripts = []
    for n in range(len(answer)):

        def serve(peer: Peer, n: int = n) -> None:
            list(requests(peer, 1))
            peer.say(answer[:n])

        scripts.append(serve)
    with Script(*scripts, Peer.echo) as server:
        client = connect(server.address, rng=Never())
        for _ in scripts:
            with pytest.raises(ConnectionLost, match="may have happened") as lost:
                client.call("x")
            assert lost.value.sent
        assert client.call("x") == "x"
        client.close()
    assert server.connections == len(scripts) + 1


@pytest.mark.parametrize(
    "said", [b"\xff" * 8, frame_of(9, 9), frame_of(0, 77, 1), b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_garbage_ends_the_connection_for_all(connect, said):
    def serve(peer: Peer) -> None:
        list(requests(peer, 3))
        peer.say(said)
        peer.ended()

    with Script(serve, Peer.echo) as server, ThreadPoolExecutor(3) as pool:
        client = connect(server.address, rng=Never())
        for call in [pool.submit(client.call, n, timeout=60) for n in range(3)]:
            with pytest.raises(ConnectionLost, match="does not keep to the protocol") as lost:
                call.result()
            assert lost.value.sent
            assert isinstance(lost.value.__cause__, ProtocolError)
        assert client.call("x") == "x"
        client.close()


def test_a_goodbye_says_why_and_drain_leads_to_the_next_address(connect):
    def drains(peer: Peer) -> None:
        for request_id, _ in requests(peer, 1):
            peer.send(0, request_id, "first")
        list(requests(peer, 1))
        peer.send(4, "drain", "the node ends")

    with Script(drains) as first, Script(Peer.echo) as second:
        limits = ClientLimits(redial_settled_ms=1)
        client = connect(first.address, second.address, limits=limits, rng=Never())
        assert client.call("x") == "first"
        with pytest.raises(ConnectionLost, match="goodbye: drain: the node ends") as lost:
            client.call("x")
        assert (lost.value.code, lost.value.sent) == ("drain", True)
        assert client.call("x") == "x"
        client.close()
    assert (first.connections, second.connections) == (1, 1)


def test_an_idle_connection_that_ended_is_replaced_before_anything_is_sent(connect):
    closed = threading.Event()

    def once(peer: Peer) -> None:
        for request_id, msg in requests(peer, 1):
            peer.send(0, request_id, msg)
        peer.send(4, "idle", "")
        peer.sock.shutdown(socket.SHUT_WR)
        closed.set()
        peer.ended()

    with Script(once, once, Peer.echo) as server:
        client = connect(server.address, rng=Never())
        for n in range(2):
            assert client.call(n) == n
            assert closed.wait(60)
            closed.clear()
        assert client.call("third") == "third"
        client.close()
    assert server.connections == 3


def test_addresses_are_tried_in_turn(connect):
    with Script(Peer.echo) as server:
        client = connect(refused_address(), refused_address(), server.address)
        assert client.call(1) == 1
        client.close()


def test_when_all_addresses_fail_the_next_dial_has_to_wait(connect):
    class Time:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    class Most:
        def uniform(self, a: float, b: float, /) -> float:
            return b

    clock = Time()
    address = refused_address()
    client = connect(address, clock=clock, rng=Most())
    for wait in ("0.10", "0.20", "0.40"):
        with pytest.raises(ConnectionLost, match=f"the next dial is due in {wait} s") as lost:
            client.call(1)
        assert not lost.value.sent
        assert address in str(lost.value)
        with pytest.raises(ConnectionLost, match=f"the next dial is due in {wait} s"):
            client.send(1)
        clock.now += float(wait)
    client.close()


def test_retries_are_for_what_has_not_happened(connect):
    priorities: list[int] = []

    def serve(peer: Peer) -> None:
        for _ in range(2):
            said = peer.frame()
            assert said is not None
            priorities.append(said[3] if len(said) > 3 else 0)
            peer.send(2, said[1], 1, "")
        said = peer.frame()
        assert said is not None
        peer.send(0, said[1], "at last")
        list(requests(peer, 1))

    with Script(serve) as server:
        policy = RetryPolicy(attempts_max=3, first_ms=1)
        client = connect(refused_address(), server.address, retry=policy, rng=Never())
        assert client.call("x") == "at last"
        assert priorities == [0, -1]
        with pytest.raises(ConnectionLost) as lost:
            client.call("may have happened")
        assert lost.value.sent
        client.close()
    assert server.connections == 1


def test_what_may_happen_twice_is_retried_if_one_says_so(connect):
    def loses(peer: Peer) -> None:
        list(requests(peer, 1))

    def answers(peer: Peer) -> None:
        said = peer.frame()
        assert said is not None
        assert said[3] == -1
        peer.send(0, said[1], "second")
        peer.ended()

    with Script(loses, answers) as server:
        policy = RetryPolicy(first_ms=1, lost=True)
        client = connect(server.address, retry=policy, rng=Never())
        assert client.call("x") == "second"
        client.close()


def test_a_budget_ends_retries(connect):
    asked: list[int] = []

    def serve(peer: Peer) -> None:
        while (said := peer.frame()) is not None:
            asked.append(said[1])
            peer.send(2, said[1], 0, "")

    with Script(serve) as server:
        policy = RetryPolicy(first_ms=1, budget=RetryBudget(ratio=0.5, tokens_max=2))
        client = connect(server.address, retry=policy, rng=Never())
        for _ in range(6):
            with pytest.raises(Nack):
                client.call("x")
        client.close()
    # Two retries for the first, then one for every second request.
    assert len(asked) == 6 + 2 + 2


def test_a_retry_that_would_come_too_late_is_not_waited_for(connect):
    def serve(peer: Peer) -> None:
        for request_id, _ in requests(peer, 1):
            peer.send(2, request_id, 60_000, "")
        peer.ended()

    with Script(serve) as server:
        client = connect(server.address, retry=RetryPolicy(), rng=Never())
        with pytest.raises(Nack):
            client.call("x", timeout=40)
        client.close()


def test_pushes_are_iterated_and_the_loss_of_the_connection_is_told(connect):
    goes = threading.Event()

    def serve(peer: Peer) -> None:
        peer.send(3, "before")
        for request_id, msg in requests(peer, 1):
            peer.send(3, "between")
            peer.send(0, request_id, msg)
        peer.say(b"\0\0\0\x08\x92\x03\xc7\x03\x01\xa1Q\x90")
        peer.send(3, "after")
        assert goes.wait(60)
        peer.send(4, "idle", "")

    with Script(serve, Peer.echo) as server:
        client = connect(server.address, rng=Never())
        pushes = client.pushes(timeout=60)
        assert next(pushes) == "before"
        assert client.call("x") == "x"
        assert next(pushes) == "between"
        with pytest.raises(DecodeError, match="'Q'"):
            next(pushes)
        pushes = client.pushes(timeout=60)
        assert next(pushes) == "after"
        goes.set()
        with pytest.raises(ConnectionLost, match="idle"):
            next(pushes)
        assert client.call("again") == "again"
        client.close()


def test_an_end_that_came_before_pushes_were_asked_for_is_told_once(connect):
    def serve(peer: Peer) -> None:
        for request_id, _ in requests(peer, 1):
            peer.send(0, request_id, "subscribed")
        peer.send(3, "first")
        peer.send(4, "idle", "")

    def serve_again(peer: Peer) -> None:
        peer.send(3, "second")
        peer.ended()

    with Script(serve, serve_again) as server:
        client = connect(server.address, rng=Never())
        assert client.call("subscribe") == "subscribed"
        until(lambda: client.is_lost)
        pushes = client.pushes(timeout=60)
        assert next(pushes) == "first"
        with pytest.raises(ConnectionLost, match="idle"):
            next(pushes)
        assert next(client.pushes(timeout=60)) == "second"
        client.close()


@pytest.mark.parametrize("is_connected", [False, True])
def test_an_end_is_told_though_a_call_of_others_made_another_connection(connect, is_connected):
    def serve(peer: Peer) -> None:
        for request_id, msg in requests(peer, 1 + is_connected):
            peer.send(0, request_id, msg)
        peer.send(4, "idle", "")

    with Script(serve, Peer.echo) as server:
        client = connect(server.address, rng=Never())
        if is_connected:
            assert client.call("before") == "before"
        pushes = client.pushes(timeout=60)
        assert client.call("subscribe") == "subscribe"
        until(lambda: client.is_lost)
        assert client.call("of another") == "of another"
        with pytest.raises(ConnectionLost, match="idle" if is_connected else "replaced"):
            next(pushes)
        with pytest.raises(CallTimeout, match="no push"):
            next(client.pushes(timeout=0.05))
        client.close()


def test_pushes_are_bounded_and_what_was_dropped_is_counted(connect):
    def serve(peer: Peer) -> None:
        for n in range(10):
            peer.send(3, n)
        peer.echo()

    with Script(serve) as server:
        client = connect(server.address, limits=ClientLimits(pushes_max=3))
        assert client.call("x") == "x"
        with pytest.raises(PushesLost, match="7 pushes were dropped") as lost:
            next(client.pushes())
        assert lost.value.count == 7
        pushes = client.pushes(timeout=0.05)
        assert [next(pushes) for _ in range(3)] == [7, 8, 9]
        with pytest.raises(CallTimeout, match="no push"):
            next(pushes)
        client.close()
        assert list(pushes) == []


def test_a_server_with_another_codec_is_suspected(connect):
    """Half a frame of the one is none of the other, and nobody would say a word."""

    def serve(peer: Peer) -> None:
        assert peer.line() and peer.line()
        peer.say(b"\0\0\0\x0c\x93\4\xa9malformed")

    def answer_one(peer: Peer) -> None:
        for request_id, msg in requests(peer, 1):
            peer.send(0, request_id, msg)
        list(requests(peer, 1))

    with Script(serve) as server:
        client = connect(server.address, framing=JsonLines)
        with pytest.raises(CallTimeout, match="nothing has come .*codec that of JsonLines"):
            client.call(1, timeout=0.05)
        with pytest.raises(ConnectionLost, match="what came is no frame .*codec that of JsonLines"):
            client.call(1)
        client.close()
    with Script(answer_one) as server:
        client = connect(server.address)
        assert client.call(1) == 1
        with pytest.raises(ConnectionLost) as lost:
            client.call(1)
        assert "codec" not in str(lost.value)
        client.close()


def test_closing_ends_every_wait(connect):
    asked = threading.Event()

    def serve(peer: Peer) -> None:
        list(requests(peer, 3))
        asked.set()
        peer.ended()

    with Script(serve) as server, ThreadPoolExecutor(4) as pool:
        client = connect(server.address)
        waits = [pool.submit(client.call, n, timeout=60) for n in range(3)]
        pushed = pool.submit(list, client.pushes())
        assert asked.wait(60)
        client.close()
        for wait in waits:
            with pytest.raises(ClientClosed):
                wait.result(60)
        assert pushed.result(60) == []
        client.close()
        for call in (lambda: client.call(1), lambda: client.send(1), lambda: next(client.pushes())):
            with pytest.raises(ClientClosed):
                call()


def test_a_server_that_does_not_read_costs_time_and_no_memory(connect):
    reads = threading.Event()

    def serve(peer: Peer) -> None:
        assert reads.wait(60)
        peer.echo()

    with Script(serve) as server:
        client = connect(server.address, limits=ClientLimits(out_bytes_max=1 << 20))
        client.send("connects")
        block = bytes(1 << 20)
        sent = 0
        with pytest.raises(CallTimeout, match="read in time"):
            while True:
                client.send(block, timeout=0.2)
                sent += 1
                assert sent < 100
        with pytest.raises(CallTimeout):
            client.call("x", timeout=0.2)
        reads.set()
        assert client.call("y", timeout=60) == "y"
        client.close()
    assert server.connections == 1


def test_a_server_that_floods_while_the_client_writes_is_read(connect):
    """Both sides write more than the system keeps: who did not read would wait for ever."""

    def serve(peer: Peer) -> None:
        for n in range(100):
            peer.send(3, bytes(100_000) + bytes([n]))
        peer.echo()

    with Script(serve) as server:
        client = connect(server.address, limits=ClientLimits(pushes_max=2))
        assert client.call(bytes(8 << 20), timeout=60) == bytes(8 << 20)
        client.close()


def test_a_server_that_swallows_all_is_left(connect):
    def swallows(peer: Peer) -> None:
        peer.ended()

    with Script(swallows, Peer.echo) as server:
        client = connect(server.address, limits=ClientLimits(in_flight_max=2), rng=Never())
        client.send("connects")
        for _ in range(2):
            with pytest.raises(CallTimeout):
                client.call("x", timeout=0.02)
        assert client.call("x") == "x"
        client.close()
    assert server.connections == 2


def test_requests_in_flight_are_bounded(connect):
    came = threading.Event()
    goes_on = threading.Event()

    def serve(peer: Peer) -> None:
        asked = list(requests(peer, 2))
        came.set()
        assert goes_on.wait(60)
        for request_id, msg in asked:
            peer.send(0, request_id, msg)
        peer.echo()

    with Script(serve) as server, ThreadPoolExecutor(2) as pool:
        client = connect(server.address, limits=ClientLimits(in_flight_max=2))
        calls = [pool.submit(client.call, n, timeout=60) for n in range(2)]
        assert came.wait(60)
        with pytest.raises(QueueFull):
            client.call("one too many")
        goes_on.set()
        assert [call.result() for call in calls] == [0, 1]
        with pytest.raises(EncodeError):
            client.call(object())
        assert client.call(3) == 3
        client.close()


def test_a_unix_socket(connect, tmp_path):
    with Script(Peer.echo, path=tmp_path / "api") as server:
        client = connect(server.address)
        assert client.call([1]) == [1]
        client.close()


def test_tls_with_a_name_that_is_checked(connect):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with Script(Peer.echo, tls=context) as server:
        client = connect(server.address, tls=trusted)
        block = bytes(3 << 20)
        assert client.call(block, timeout=60) == block
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(client.call, range(100))) == list(range(100))
        client.close()
        wrong = connect(server.address, tls=trusted, server_hostname="else.where", rng=Never())
        with pytest.raises(ConnectionLost, match="certificate verify failed"):
            wrong.call(1, timeout=60)
        strange = connect(server.address, tls=ssl.create_default_context(), rng=Never())
        with pytest.raises(ConnectionLost, match="certificate verify failed"):
            strange.call(1, timeout=60)


def test_lines_of_json(connect):
    def serve(peer: Peer) -> None:
        assert peer.line() == '{"id":0,"msg":{"a":[1]}}'
        peer.say(b'{"push":"news"}\n{"id":0,"value":"ok"}\n')
        assert peer.line() == '{"msg":"log"}'
        assert peer.line() == '{"id":1,"msg":null,"priority":1}'
        peer.say(b'{"id":1,"nack_ms":20}\n')
        peer.line()

    with Script(serve) as server:
        client = connect(server.address, framing=JsonLines)
        assert client.call({"a": [1]}) == "ok"
        client.send("log")
        with pytest.raises(Nack):
            client.call(None, priority=1)
        assert next(client.pushes()) == "news"
        client.close()


def test_plain_lines(connect):
    def serve(peer: Peer) -> None:
        while (line := peer.line()) is not None:
            peer.say(line.upper().encode() + b"\n")

    with Script(serve) as server, ThreadPoolExecutor(4) as pool:
        client = connect(server.address, framing=PlainLines)
        client.send("answered to nobody")
        words = [f"word{n}" for n in range(50)]
        assert list(pool.map(client.call, words)) == [word.upper() for word in words]
        client.close()


def test_a_timeout_is_a_number_of_seconds(connect):
    client = connect(refused_address())
    for call in (client.call, client.send):
        with pytest.raises(TypeError, match="timeout must be a number of seconds"):
            call(1, timeout="5")
        with pytest.raises(ValueError, match="NaN"):
            call(1, timeout=float("nan"))
        with pytest.raises(CallTimeout, match="not sent"):
            call(1, timeout=-1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_the_server_does_each_request_ends_once_and_as_its_own(connect, seed):
    """Threads ask at random; the server answers late, out of order, by Nacks, or closes."""
    print(f"seed {seed}")
    random_lock = threading.Lock()
    rng = random.Random(seed)

    def draw(most: int) -> int:
        with random_lock:
            return rng.randrange(most)

    def serve(peer: Peer) -> None:
        held: list[list[Any]] = []
        while (said := peer.frame()) is not None:
            held.append(said)
            choice = draw(40)
            if choice == 0:
                return
            if choice == 1:
                peer.say(frame_of(0, said[1], said[2])[: draw(8)])
                return
            if choice == 2:
                peer.send(3, "push")
            if choice < 6:
                continue
            while held:
                _, request_id, msg, *_ = held.pop(draw(len(held)))
                how = draw(20)
                if how == 0:
                    peer.send(2, request_id, 1, "")
                elif how == 1:
                    peer.send(1, request_id, "failed", str(msg))
                elif how > 2:
                    peer.send(0, request_id, msg)

    ends: dict[str, int] = {}

    def ask(client: Any, name: int) -> None:
        for n in range(60):
            msg = [name, n]
            try:
                assert client.call(msg, timeout=1.0 if draw(5) else 0.005) == msg
                end = "answered"
            except RequestFailed as failed:
                assert failed.detail == str(msg)
                end = "failed"
            except (Nack, ConnectionLost, CallTimeout) as error:
                end = type(error).__name__
            with random_lock:
                ends[end] = ends.get(end, 0) + 1

    limits = ClientLimits(redial_settled_ms=1, redial_first_ms=1, redial_most_ms=2)
    with Script(serve) as server, ThreadPoolExecutor(6) as pool:
        client = connect(server.address, limits=limits)
        for each in [pool.submit(ask, client, name) for name in range(6)]:
            each.result(100)
        client.close()
    assert sum(ends.values()) == 6 * 60
    assert ends["answered"] > 0, ends
    assert len(ends) > 1, ends
