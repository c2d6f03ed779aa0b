"""What is of the blocking client alone: threads that read for each other, signals, forks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from rabble.client import ClientClosed, ConnectionLost, ForkedClient
from rabble.errors import CallTimeout
from tests.client.servers import PatientClient as Client
from tests.client.servers import Peer, Script, requests
from tests.support import until


def test_it_has_no_threads_of_its_own():
    with Script(Peer.echo) as server, Client(server.address) as client:
        client.call(1)
        threads = {thread.name for thread in threading.enumerate()}
        client.call(2)
        assert {thread.name for thread in threading.enumerate()} == threads
        assert all(
            thread in (threading.main_thread(), server.acceptor, *server.threads)
            for thread in threading.enumerate()
        )


def test_who_has_its_answer_hands_the_reading_over():
    """The thread that reads may be answered first; the others are answered later."""
    goes_on = threading.Event()

    def serve(peer: Peer) -> None:
        asked = list(requests(peer, 4))
        for request_id, msg in asked:
            peer.send(0, request_id, msg)
            assert goes_on.wait(60)
        peer.ended()

    with Script(serve) as server, Client(server.address) as client, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.call, n, timeout=60) for n in range(4)]
        until(lambda: any(call.done() for call in calls))
        goes_on.set()
        assert [call.result(60) for call in calls] == list(range(4))


def test_a_reader_whose_time_is_over_hands_the_reading_over():
    asked = threading.Event()
    answers = threading.Event()

    def serve(peer: Peer) -> None:
        (_, (other, msg)) = requests(peer, 2)
        asked.set()
        assert answers.wait(60)
        peer.send(0, other, msg)
        peer.ended()

    with Script(serve) as server, Client(server.address) as client, ThreadPoolExecutor(2) as pool:
        client._connected(float("inf"))
        first = pool.submit(client.call, "reads", timeout=0.3)
        connection = client._connection
        until(lambda: first.done() or (connection and connection._reader))
        second = pool.submit(client.call, "waits", timeout=60)
        assert asked.wait(60)
        with pytest.raises(CallTimeout):
            first.result(60)
        answers.set()
        assert second.result(60) == "waits"


class Interrupt(Exception):
    pass


class Never:
    """Jitter that is none."""

    def uniform(self, a: float, b: float, /) -> float:
        return a


def test_a_signal_that_interrupts_a_wait_leaves_the_connection_usable():
    asked = threading.Event()

    def serve(peer: Peer) -> None:
        ((given_up, _),) = requests(peer, 1)
        asked.set()
        for request_id, msg in requests(peer, 1):
            peer.send(0, given_up, "late")
            peer.send(0, request_id, msg)
        peer.echo()

    def interrupt(*_: object) -> None:
        raise Interrupt

    def kill() -> None:
        assert asked.wait(60)
        # In its system call, where it holds nothing.
        until(lambda: client._connection is not None and client._connection._polling > 0)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    killer = threading.Thread(target=kill)
    try:
        with Script(serve) as server, Client(server.address) as client:
            killer.start()
            with pytest.raises(Interrupt):
                client.call("x", timeout=60)
            killer.join()
            assert client.call("y", timeout=60) == "y"
            assert client._connection is not None
            assert client._connection.late == 1
            assert server.connections == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_comes_with_the_turn_to_dial_gives_that_back():
    def interrupt(*_: object) -> None:
        raise Interrupt

    def frame_of_main() -> FrameType:
        return sys._current_frames()[main]

    def hand_over() -> None:
        until(lambda: frame_of_main().f_code.co_name == "_connected")
        # The turn first, and then the signal, without a moment for the other thread between.
        client._dial_lock.release()
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        with Script(Peer.echo) as server, Client(server.address) as client:
            client._dial_lock.acquire()
            other = threading.Thread(target=hand_over)
            other.start()
            with pytest.raises(Interrupt):
                client.call("x", timeout=60)
            other.join()
            assert not client._dial_lock.locked()
            assert client.call("y", timeout=60) == "y"
    finally:
        sys.setswitchinterval(interval)
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("operation", ["send", "recv"])
def test_a_signal_between_the_system_and_the_books_ends_the_connection(operation):
    """What was sent or read is not known then: bytes would come twice, or be missing."""
    with Script(Peer.echo) as server, Client(server.address, rng=Never()) as client:
        assert client.call(1) == 1
        connection = client._connection
        assert connection is not None
        sock = connection._sock

        class Interrupted:
            def __getattr__(self, name: str) -> Any:
                return getattr(sock, name)

            def fileno(self) -> int:
                return sock.fileno()

            def operate(self, *arguments: Any) -> Any:
                getattr(sock, operation)(*arguments)
                raise Interrupt

        setattr(Interrupted, operation, Interrupted.operate)
        connection._sock = Interrupted()  # type: ignore[assignment]
        with pytest.raises(Interrupt):
            client.call(2)
        assert connection.is_over
        assert client.call(3) == 3
    assert server.connections == 2


@pytest.mark.parametrize("operation", ["send", "recv"])
@pytest.mark.parametrize("wanted", ["close", "call"])
def test_what_runs_amid_an_operation_may_close_the_client_and_does_not_wait_for_itself(
    operation, wanted
):
    """As a signal's handler does, or a finalizer: it has the lock that it would wait for."""
    within: list[Exception] = []
    with Script(Peer.echo) as server, Client(server.address, rng=Never()) as client:
        assert client.call(1) == 1
        connection = client._connection
        assert connection is not None
        sock = connection._sock

        class Interrupted:
            def __getattr__(self, name: str) -> Any:
                return getattr(sock, name)

            def fileno(self) -> int:
                return sock.fileno()

            def operate(self, *arguments: Any) -> Any:
                connection._sock = sock
                if wanted == "close":
                    client.close()
                    client.close()
                else:
                    with pytest.raises(RuntimeError, match="at work in this thread") as raised:
                        client.call(3)
                    within.append(raised.value)
                return getattr(sock, operation)(*arguments)

        setattr(Interrupted, operation, Interrupted.operate)
        connection._sock = Interrupted()  # type: ignore[assignment]
        if wanted == "close":
            with pytest.raises(ClientClosed):
                client.call(2)
            assert connection.is_over
        else:
            assert client.call(2) == 2
            assert len(within) == 1


def test_who_interrupts_the_wait_of_its_own_thread_is_not_left_to_wait_for_that():
    within: list[Exception] = []

    def interrupt(*_: object) -> None:
        with pytest.raises(RuntimeError, match="at work in this thread") as raised:
            client.call(3, timeout=60)
        within.append(raised.value)
        client.close()

    def kill() -> None:
        until(lambda: client._connection is not None and client._connection._polling > 0)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    killer = threading.Thread(target=kill)
    try:
        with (
            Script(lambda peer: (peer.frame(), peer.frame())) as server,
            Client(server.address) as client,
        ):
            killer.start()
            with pytest.raises(ClientClosed):
                client.call("never answered", timeout=60)
            killer.join()
            assert len(within) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_in_an_event_loop_it_says_what_to_take():
    client = Client("127.0.0.1:1")

    async def main() -> None:
        for call in (lambda: client.call(1), lambda: client.send(1), lambda: next(client.pushes())):
            with pytest.raises(RuntimeError, match="AsyncClient"):
                call()
        with pytest.raises(ConnectionLost):
            await asyncio.to_thread(client.call, 1)

    asyncio.run(main())
    client.close()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="warns of threads where one forks")
def test_a_forked_process_is_refused_and_leaves_the_connection_alone():
    with Script(Peer.echo) as server, Client(server.address) as client:
        assert client.call(1) == 1
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for call in (
                    lambda: client.call(1),
                    lambda: client.send(1),
                    lambda: next(client.pushes()),
                ):
                    try:
                        call()
                    except ForkedClient:
                        status = 0
                    else:
                        os._exit(2)
                client.close()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert client.call(2) == 2
    assert server.connections == 1


def test_closing_leaves_no_descriptor_open_and_none_is_used_again():
    before = set(os.listdir("/proc/self/fd"))
    with Script(Peer.echo) as server:
        clients = [Client(server.address) for _ in range(5)]
        for n, client in enumerate(clients):
            assert client.call(n) == n
        held = [client._connection for client in clients]
        for client in clients:
            client.close()
        assert all(each is not None and each._sock.fileno() == -1 for each in held)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_socket_is_not_closed_under_a_thread_that_waits_for_it():
    asked = threading.Event()

    def serve(peer: Peer) -> None:
        list(requests(peer, 1))
        asked.set()
        peer.ended()

    closed_while_polled: list[bool] = []
    with Script(serve) as server, ThreadPoolExecutor(1) as pool:
        client = Client(server.address)
        connection, _ = client._connected(float("inf"))
        sock = connection._sock

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(sock, name)

            def fileno(self) -> int:
                return sock.fileno()

            def close(self) -> None:
                closed_while_polled.append(connection._polling > 0)
                sock.close()

        connection._sock = Watched()  # type: ignore[assignment]
        call = pool.submit(client.call, "x", timeout=60)
        assert asked.wait(60)
        client.close()
        assert call.exception(60) is not None
    assert closed_while_polled == [False]


def test_what_is_sent_before_the_close_arrives():
    got: list[Any] = []

    def serve(peer: Peer) -> None:
        while (said := peer.frame()) is not None:
            got.append(said)

    with Script(serve) as server:
        with Client(server.address) as client:
            for n in range(100):
                client.send(n)
        server.join_first()
        assert got == [[1, n] for n in range(100)]


def test_sockets_send_at_once_and_notice_machines_that_are_dead():
    with Script(Peer.echo) as server, Client(server.address) as client:
        client.call(1)
        assert client._connection is not None
        sock = client._connection._sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        assert not sock.getblocking()
