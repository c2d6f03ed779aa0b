"""What a machine runs out of: descriptors, processor time, threads, ports."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rabble import Mesh, rouse
from rabble.addresses import split_address
from tests.faults.meshes import HEARTBEAT_S, ROOT, SLACK_S, T_DOWN_S, Member, Members, figures
from tests.faults.rig import limits
from tests.faults.rig.limits import Cgroup
from tests.faults.rig.process import OsProcess, usage
from tests.support import KEY

#: For how long processor time is measured, in ticks of 10 ms.
SHARE_S = 1.5


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Members]:
    with Members(tmp_path, 3) as mesh:
        mesh.warm_up()
        mesh.all_ask("go")
        yield mesh
        mesh.settle()


def cpu_share(member: Member, lasting_s: float) -> float:
    """How much of one processor it takes."""
    begin, before = time.monotonic(), member.process.usage().cpu_s
    time.sleep(lasting_s)
    return (member.process.usage().cpu_s - before) / (time.monotonic() - begin)


def test_no_descriptor_is_left(mesh: Members) -> None:
    """Peers that cannot be let in wait, without a spin; the others are not harmed; it heals."""
    n1 = mesh["n1"]
    address = split_address(n1.addr)
    soft, hard = resource.prlimit(n1.process.pid, resource.RLIMIT_NOFILE)
    usual = cpu_share(n1, SHARE_S)
    before = n1.process.usage()
    begin = time.monotonic()
    resource.prlimit(n1.process.pid, resource.RLIMIT_NOFILE, (before.fds + 3, hard))
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(address))
        time.sleep(2 * HEARTBEAT_S)
        assert n1.process.usage().fds <= before.fds + 3
        share = cpu_share(n1, SHARE_S)
        assert mesh.links("n1").keys() == {"n2", "n3"}
        resource.prlimit(n1.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    # A peer that starts anew is let in.
    mesh["n3"].process.kill()
    mesh["n3"].restart()
    healed_s = mesh.whole()
    mesh["n3"].ask("go")
    assert not mesh["n2"].events("down n1 ", begin)
    # Besides what the traffic costs by itself.
    assert share - usual < 0.2
    figures("no descriptors", usual_share=usual, cpu_share=share, healed_s=healed_s)


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_many_connect_and_close(mesh: Members, count: int) -> None:
    """Nothing is left of the connections; descriptors are compared when the mesh settles."""
    address = split_address(mesh["n1"].addr)
    begin = time.monotonic()
    for number in range(count):
        client = socket.create_connection(address)
        if number % 3 == 1:
            client.sendall(b"\x8e")
        elif number % 3 == 2:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.close()
    took_s = time.monotonic() - begin
    assert not mesh["n1"].events("down", begin)
    figures("connect and close", count=count, took_s=took_s)


@pytest.mark.skipif(limits.lacking("cpu") is not None, reason=f"{limits.lacking('cpu')}")
@pytest.mark.parametrize("lasting_s", [4, pytest.param(30, marks=pytest.mark.soak)])
def test_a_node_gets_five_percent_of_a_processor(tmp_path: Path, lasting_s: float) -> None:
    """The node is slow, and calls nobody down; nor do its peers call it down."""
    with (
        Cgroup(cpu=1.0) as group,
        Members(tmp_path, 3, cgroups={"n1": group}, every_ms=5) as mesh,
    ):
        mesh.warm_up()
        mesh.all_ask("go")
        begin = time.monotonic()
        group.change("cpu", 0.05)
        time.sleep(lasting_s)
        group.change("cpu", 1.0)
        throttled = int(group.read("cpu", "cpu.stat").partition("nr_throttled")[2].split()[0])
        mesh.settle()
        assert throttled
        assert not [line for member in mesh for line in member.events("down", begin)]
    figures("five percent", throttled=throttled)


NO_THREADS = """
import gc, os, rabble, sys, threading
def held():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
before = held()
print("ready", flush=True)
sys.stdin.readline()
try:
    rabble.rouse("a@127.0.0.1:0", mesh=rabble.Mesh())
except RuntimeError as error:
    print("refused:", error, flush=True)
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(20)
print("threads", threading.active_count(), "more descriptors", held() - before, flush=True)
"""


@pytest.mark.skipif(limits.lacking("pids") is not None, reason=f"{limits.lacking('pids')}")
def test_no_thread_can_be_started(tmp_path: Path) -> None:
    """A service, or a node, that cannot have its thread is an error, and nothing else."""
    with Cgroup(pids=1_000) as group, Members(tmp_path, 2, cgroups={"n1": group}) as mesh:
        mesh.rest()
        before = mesh["n1"].process.usage()
        group.change("pids", before.threads)
        assert mesh["n1"].ask("service late").startswith("RuntimeError: can't start new thread")
        group.change("pids", 1_000)
        assert mesh["n1"].ask("service late") == "runs"
        mesh.settle()
        # A service has two, and one of what failed is freed by the garbage collector.
        assert mesh["n1"].process.usage().fds <= before.fds + 3


@pytest.mark.skipif(limits.lacking("pids") is not None, reason=f"{limits.lacking('pids')}")
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_node_without_threads_does_not_begin(threads: int) -> None:
    """The node can start none of its five threads, or some of them."""
    with (
        Cgroup(pids=1_000) as group,
        OsProcess(
            [sys.executable, "-c", NO_THREADS], cgroup=group, cwd=ROOT, ready="ready", talk=True
        ) as process,
    ):
        group.change("pids", threads)
        process.say("go")
        assert process.wait_line("refused: can't start new thread")
        assert process.wait_line("threads") == "threads 1 more descriptors 0"
        assert process.wait() == 0 and process.stderr() == ""


def test_a_port_that_is_taken() -> None:
    """The error says what and where; nothing is left of the attempt."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        before = usage(os.getpid())
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}.*in use") as caught:
            rouse(f"a@127.0.0.1:{port}", mesh=Mesh(key=KEY))
        assert caught.value.errno == errno.EADDRINUSE
        del caught
        after = usage(os.getpid())
        # A thread of an earlier test may have ended meanwhile.
        assert after.fds == before.fds and after.threads <= before.threads


def test_a_port_whose_connections_have_just_ended() -> None:
    """Connections in TIME_WAIT keep no node from starting again."""
    with rouse("b@127.0.0.1:0", mesh=Mesh(key=KEY)) as b:
        node_id = None
        for _ in range(3):
            with rouse(node_id or "a@127.0.0.1:0", mesh=Mesh(key=KEY)) as a:
                node_id = a.node_id
                a.join(b.node_id)
                deadline = time.monotonic() + T_DOWN_S + SLACK_S
                while not a.cluster_status().connections:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
