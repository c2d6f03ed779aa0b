"""Nodes that die, stand still or end, seen by their peers."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.meshes import ROOT, RSS_MORE_BYTES, SLACK_S, T_DOWN_S, Members, figures
from tests.faults.rig.process import OsProcess
from tests.support import SANITIZED

#: Of `Limits.shutdown_ms`.
SHUTDOWN_S = 5.0


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Members]:
    with Members(tmp_path, 3) as mesh:
        mesh.warm_up()
        mesh.all_ask("go")
        yield mesh
        mesh.settle()


def downs(mesh: Members, name: str, since: float) -> float:
    """All others say that this node is down: the last one when."""
    return max(member.awaits(f"down {name} ", since)[0] for member in mesh.others(name)) - since


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_node_dies(mesh: Members, number: signal.Signals) -> None:
    """Its peers know at once; a later start of it is a member again."""
    n1 = mesh["n1"]
    begin = time.monotonic()
    n1.process.signal(number)
    # The sanitizer has its own way to end on a SIGSEGV.
    assert n1.process.wait() == -number or (SANITIZED and number == signal.SIGSEGV)
    # Peers may take a second to notice; that it was no silence shows in the words of their logs.
    down_s = downs(mesh, "n1", begin)
    assert down_s < 1 + SLACK_S
    said = n1.process.stderr()
    if number == signal.SIGSEGV:
        assert "Fatal Python error: Segmentation fault" in said and "most recent call" in said
    for member in mesh.others("n1"):
        assert "nothing was heard of n1" not in member.process.stderr()
    n1.restart()
    figures("dies", signal=number.name, down_s=down_s, whole_again_s=mesh.whole())
    n1.ask("go")


def test_a_node_that_was_paused_accuses_nobody(tmp_path: Path) -> None:
    """The bytes that it did not read meanwhile lie in its kernel: no peer was silent.

    One timer was late for it, those after it are not, and it counts as stalled no more.
    """
    patient = {name: {"down_after_ms": 60_000} for name in ("n2", "n3")}
    with Members(tmp_path, 3, limits_of=patient) as mesh:
        n1 = mesh["n1"]
        mesh.warm_up()
        mesh.all_ask("go")

        def sampled() -> tuple[float, float]:
            """How late the canary was since it was asked: p99 and the most, in ms."""
            n1.ask("samples 50")
            _, p99, most = map(float, n1.ask("canary").split())
            return p99, most

        n1.ask("canary")
        usual_ms, _ = sampled()
        begin = time.monotonic()
        for lasting_s in (1.5 * T_DOWN_S, 0.9 * T_DOWN_S):
            n1.process.pause()
            time.sleep(lasting_s)
            n1.process.resume()
            n1.ask("samples 50")
            assert n1.ask(f"late {lasting_s * 1000 / 2}") == "1"
            _, latest_ms = sampled()
            assert latest_ms > 0.9 * lasting_s * 1000
            after_ms, _ = sampled()
            assert after_ms < 5 * usual_ms + 100
            figures(
                "paused",
                lasting_s=lasting_s,
                latest_ms=latest_ms,
                p99_ms_before=usual_ms,
                p99_ms_after=after_ms,
            )
        # What came meanwhile was read at once: the more the busier the machine was.
        mesh.settle(2 * RSS_MORE_BYTES)
        assert not [line for member in mesh for line in member.events("down", begin)]
        for member in mesh:
            words = [line.split()[1:3] for line in member.events("(stalled|recovered)", begin)]
            # Of each the last one.
            assert set({name: word for word, name in words}.values()) <= {"recovered"}


def test_told_to_end_under_load(mesh: Members) -> None:
    """Messages that wait are sent, and the peers are told of the end."""
    n1 = mesh["n1"]
    begin = time.monotonic()
    n1.process.terminate()
    assert n1.process.wait() == 0
    took_s = time.monotonic() - begin
    down_s = downs(mesh, "n1", begin)
    assert took_s < SHUTDOWN_S + SLACK_S and down_s < 1 + SLACK_S
    for member in mesh.others("n1"):
        member.logs(r"the connection to n1@.* ended: SHUTDOWN")
    n1.restart()
    figures("SIGTERM", ended_s=took_s, down_s=down_s)
    mesh.whole()


def test_told_to_end_a_second_time(mesh: Members) -> None:
    """Whatever still runs, the node ends at once, and with another exit status."""
    n1 = mesh["n1"]
    n1.ask("block 60")
    n1.process.terminate()
    n1.awaits("signal")
    assert n1.process.alive
    begin = time.monotonic()
    n1.process.signal(signal.SIGINT)
    assert n1.process.wait() == -signal.SIGINT
    assert time.monotonic() - begin < 1 + SLACK_S
    downs(mesh, "n1", begin)
    n1.restart()


SCRIPT = """
import threading, rabble
class Blocks(rabble.Process):
    def receive(self, msg, sender, correlation_id):
        print("blocked", flush=True)
        threading.Event().wait()
limits = rabble.Limits(shutdown_ms=1_000)
with rabble.rouse("a@127.0.0.1:0", mesh=rabble.Mesh(), limits=limits) as node:
    try:
        # Within: "blocked" may be read before `send` has returned.
        node.send(node.spawn(Blocks(), "blocks"), None)
        threading.Event().wait()
    finally:
        print("ends", flush=True)
"""


def test_a_script_without_handlers_is_interrupted_twice() -> None:
    """With the handlers of Python alone the script ends, though a `receive` never returns.

    It waits twice, at the end of the `with` block and of the interpreter.
    """
    with OsProcess([sys.executable, "-c", SCRIPT], cwd=ROOT) as process:
        process.wait_line("blocked")
        begin = time.monotonic()
        process.signal(signal.SIGINT)
        process.wait_line("ends")
        process.signal(signal.SIGINT)
        assert process.wait() != 0
        took_s = time.monotonic() - begin
        assert took_s < 2 + SLACK_S
    figures("Ctrl-C twice", ended_s=took_s)


def test_told_to_end_while_a_peer_takes_nothing(mesh: Members) -> None:
    """The deadline is kept, though the messages that wait cannot be sent."""
    n1, n2 = mesh["n1"], mesh["n2"]
    n2.process.pause()
    n1.ask("flood n2 1500 16384")
    begin = time.monotonic()
    n1.process.terminate()
    assert n1.process.wait() == 0
    took_s = time.monotonic() - begin
    n2.process.resume()
    assert took_s < SHUTDOWN_S + SLACK_S
    downs(mesh, "n1", begin)
    n1.restart()
    figures("SIGTERM, stopped peer", ended_s=took_s)
    mesh.whole()


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_all_are_restarted_one_after_another(tmp_path: Path, rounds: int) -> None:
    """Gaps in the traffic lie only where a node was down."""
    with Members(tmp_path, 5) as mesh:
        mesh.begin()
        begin = time.monotonic()
        for member in list(mesh) * rounds:
            member.process.terminate()
            assert member.process.wait() == 0
            member.restart()
            mesh.whole()
            member.ask("go")
        took_s = (time.monotonic() - begin) / rounds
        mesh.settle()
    figures("rolling restart", of_five_s=took_s)
