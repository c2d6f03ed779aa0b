"""Peers that take nothing, or little: stopped, held, or behind a thin line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.meshes import (
    HEARTBEAT_S,
    RSS_MORE_BYTES,
    SLACK_S,
    T_DOWN_S,
    Members,
    figures,
    over,
)
from tests.faults.rig.line import CLEAR, Weather
from tests.faults.rig.marks import requires_root_network
from tests.faults.rig.netns import Network
from tests.faults.rig.process import PATIENCE_S
from tests.faults.rig.switch import Switch
from tests.support import SANITIZED, TINY, TRACED

PEER_QUEUE_BYTES = 8 << 20
#: Of the line that a large message fills.
RATE_BIT_S = 100e6
FLOOD = (2_000, 16_384)
#: Two buffers of a lane trade places, each of which keeps what a full queue takes: with two peers.
RSS_FLOODED_BYTES = RSS_MORE_BYTES + 2 * 2 * PEER_QUEUE_BYTES


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Members]:
    with Members(tmp_path, 3) as mesh:
        mesh.warm_up()
        yield mesh
        # Who stood still is told all at once what was said meanwhile.
        mesh.settle(RSS_FLOODED_BYTES)


@pytest.fixture
def patient_mesh(tmp_path: Path) -> Iterator[Members]:
    """Nodes that take a paused one for down only after a minute."""
    with Members(tmp_path, 3, limits={"down_after_ms": 60_000}) as mesh:
        mesh.warm_up()
        yield mesh
        mesh.settle(RSS_FLOODED_BYTES)


def flood_while_stopped(mesh: Members, name: str) -> None:
    mesh[name].process.pause()
    mesh["n1"].ask("flood {} {} {}".format(name, *FLOOD))


def dead(mesh: Members, name: str) -> dict[str, int]:
    letters: dict[str, int] = json.loads(mesh[name].ask("dead"))
    return letters


def heard(mesh: Members, name: str) -> dict[str, int]:
    messages: dict[str, int] = json.loads(mesh[name].ask("heard"))
    return messages


def p99_ms(mesh: Members, name: str) -> float:
    return float(mesh[name].ask("canary").split()[1])


def test_a_flood_to_a_stopped_peer(patient_mesh: Members) -> None:
    """The flood stops at the limit of the queue, and nobody else is slower for it."""
    mesh, n1 = patient_mesh, patient_mesh["n1"]
    n1.ask("flood n3 {} {}".format(*FLOOD))
    mesh.all_ask("drain")
    n1.ask("canary")
    n1.ask("flood n3 {} {}".format(*FLOOD))
    usual_ms = p99_ms(mesh, "n1")
    mesh.settle(RSS_FLOODED_BYTES)
    refused = dead(mesh, "n1").get("peer_busy", 0)
    before = n1.process.usage()
    flood_while_stopped(mesh, "n2")
    flooded_ms = p99_ms(mesh, "n1")
    waiting = mesh.links("n1")["n2"]
    more = n1.process.usage().rss_bytes - before.rss_bytes
    busy = dead(mesh, "n1")["peer_busy"] - refused
    # One message may be longer than what is left.
    assert PEER_QUEUE_BYTES / 2 < waiting < PEER_QUEUE_BYTES + 2 * FLOOD[1]
    assert busy > FLOOD[0] / 4
    # A buffer that grows is twice what is in it.
    assert SANITIZED or more < PEER_QUEUE_BYTES * 3
    n1.ask("canary")
    time.sleep(0.5)
    blocked_ms = p99_ms(mesh, "n1")
    assert max(flooded_ms, blocked_ms) < 5 * usual_ms + 100
    assert mesh["n3"].process.alive and mesh.links("n1").keys() == {"n2", "n3"}
    mesh["n2"].process.resume()
    figures(
        "flood to a stopped peer",
        refused=busy,
        queued=waiting,
        rss_more=more,
        p99_ms_before=usual_ms,
        p99_ms_during=flooded_ms,
        p99_ms_after=blocked_ms,
    )


def test_a_peer_goes_on_before_it_is_down(patient_mesh: Members) -> None:
    """Messages that waited arrive in order and once; the gap is told in its place among them."""
    mesh, n1, n2 = patient_mesh, patient_mesh["n1"], patient_mesh["n2"]
    n1.tell("flood n2 4000 16384")
    for _ in range(4):
        n2.process.pause()
        time.sleep(0.1)
        n2.process.resume()
        time.sleep(0.05)
    n1.answer("flood")
    flood_while_stopped(mesh, "n2")
    n2.process.resume()
    mesh.rest()
    busy, lost = dead(mesh, "n1")["peer_busy"], dead(mesh, "n2")["lost"]
    assert lost >= busy > 0
    assert not [line for member in mesh for line in member.events("down")]
    figures("goes on", refused=busy, lost_told=lost)


def test_a_peer_goes_on_after_it_was_down(mesh: Members) -> None:
    """The old connection is not used again."""
    n2 = mesh["n2"]
    mesh.all_ask("go")
    begin = time.monotonic()
    n2.process.pause()
    mesh["n1"].tell("flood n2 1000 1000")
    down_s = max(mesh[name].awaits("down n2 ", begin)[0] - begin for name in ("n1", "n3"))
    assert T_DOWN_S - 3 * HEARTBEAT_S < down_s < 1.25 * T_DOWN_S + SLACK_S
    mesh["n1"].answer("flood")
    resumed = time.monotonic()
    n2.process.resume()
    for name in ("n1", "n3"):
        n2.awaits(f"down {name} ", resumed)
        n2.awaits(f"up {name} ", resumed)
        mesh[name].awaits("up n2 ", resumed)
    figures("was down", down_s=down_s, whole_again_s=mesh.whole())


@pytest.mark.skipif(TRACED, reason="the poll loop needs the GIL at every line")
def test_a_node_whose_interpreter_is_held(mesh: Members) -> None:
    """The node is stalled, which is not down; and accuses nobody when it has the GIL back."""
    hold_s = 2.5 * T_DOWN_S
    mesh.all_ask("go")
    begin = time.monotonic()
    n1, others = mesh["n1"], mesh.others("n1")
    n1.ask(f"hold {hold_s}")
    stalled_s = max(member.awaits("stalled n1 ", begin)[0] - begin for member in others)
    released, _ = n1.awaits("released", begin)
    recovered_s = max(member.awaits("recovered n1 ", begin)[0] for member in others) - released
    assert stalled_s < hold_s and released - begin >= hold_s * 0.99
    mesh.rest()
    assert not [line for member in mesh for line in member.events("down")]
    figures("GIL held", held_s=hold_s, stalled_s=stalled_s, recovered_s=recovered_s)


@requires_root_network
@pytest.mark.parametrize("kib", [3 if TINY else 48, pytest.param(400, marks=pytest.mark.soak)])
def test_a_line_of_64_kbit(tmp_path: Path, kib: int) -> None:
    """Heartbeats are in time, and membership comes before the messages that wait in the node.

    It waits behind what the kernel has taken already: some KiB where the test says so, else 256.
    """
    limits = {"heartbeat_ms": 1_000, "down_after_ms": 8_000}
    with Network(2) as network, Switch(network, seed=1) as switch:
        if kib < 100:
            network["n1"].sysctl("net.ipv4.tcp_wmem", "4096 8192 8192")
            # Else one segment that the kernel has begun takes half a window more, all that waits.
            network["n2"].sysctl("net.ipv4.tcp_rmem", "4096 16384 16384")
        with over(switch, network, tmp_path, 2, **limits) as mesh:
            mesh.whole()
            switch.set(Weather(rate_bit_s=64e3, queue_bytes=4 << 10))
            begin = time.monotonic()
            patience_s = 60 + kib / 2
            n1, n2 = mesh["n1"], mesh["n2"]
            n1.ask(f"flood n2 {kib} 1024")
            n1.ask("join n9@192.0.2.9:7000")
            n2.ask("knows n9", patience_s)
            told_s = time.monotonic() - begin
            # Not a matter of time: the machine may be slow, but then the line is not faster.
            before = heard(mesh, "n2").get("n1", 0)
            n1.ask("last", patience_s)
            drained_s = time.monotonic() - begin
            assert before < kib / 2
            assert heard(mesh, "n2")["n1"] == kib
            downs = [line for member in mesh for line in member.events("down", begin)]
            assert not downs
            switch.set(CLEAR)
            # Large ones, which were not sent, would take long through what the kernel holds here.
            mesh.all_ask("last")
            mesh.all_ask("rest")
            mesh.check()
    figures("slow line", kib=kib, membership_told_s=told_s, behind=before, drained_s=drained_s)


@requires_root_network
@pytest.mark.parametrize("mib", [1 if TINY else 24, pytest.param(64, marks=pytest.mark.soak)])
def test_a_large_message_over_a_line_of_100_mbit(tmp_path: Path, mib: int) -> None:
    """Small messages of the same nodes pass it, and no node is called down or stalled."""
    # Making or checking the message may take an executor a while. What is small is shorter than a
    # fragment.
    limits = {"stalled_after_ms": 2_000, "fragment_bytes_max": 16 << 10}
    # The stamp is part of the message, too.
    size = (mib << 20) - 4_096
    with Network(2) as network, Switch(network, seed=1) as switch:
        with over(switch, network, tmp_path, 2, **limits) as mesh:
            mesh.whole()
            n1 = mesh["n1"]
            switch.set(Weather(rate_bit_s=RATE_BIT_S))
            begin = time.monotonic()
            n1.ask(f"flood n2 1 {size}")
            mesh.all_ask("canary")
            n1.ask("probe n2")
            n1.ask("drain", 10 * PATIENCE_S)
            took_s = time.monotonic() - begin
            answered, p99, most = map(float, n1.ask("probed").split())
            # Whoever decodes and checks the message answers nobody meanwhile.
            held = [float(answer.split()[2]) for answer in mesh.all_ask("canary").values()]
            assert took_s > 0.8 * size * 8 / RATE_BIT_S
            # Had it to wait for its turn in the message, that took the most of it.
            assert answered > 10 and p99 - sum(held) < 1_000
            assert heard(mesh, "n2") == {"n1": 1} and not dead(mesh, "n1")
            for member in mesh:
                assert not member.events("(down|stalled)", begin)
            switch.set(CLEAR)
            mesh.rest()
            mesh.check()
    figures(
        "large message",
        mib=mib,
        took_s=took_s,
        answered=answered,
        held_ms=sum(held),
        p99_ms=p99,
        most_ms=most,
    )
