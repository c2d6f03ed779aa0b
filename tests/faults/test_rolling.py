"""Key, certificates and application of a mesh changed node by node, under traffic.

The checker of the histories finds each message that is lost and does not lie between a `NodeDown`
and the next `NodeUp`; besides, nobody is down but who was restarted, and no join is refused.
"""

from __future__ import annotations

import collections
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from rabble import TlsConfig
from rabble.cluster.io.keys import key_id
from tests.cluster.io.test_tls import DAY, TODAY, Issuer, named
from tests.faults import history
from tests.faults.history import Event
from tests.faults.meshes import Member, Members, figures
from tests.support import TINY

NAMES = [f"n{i}" for i in range(1, 6)]
#: Nobody is called down, or late in a handshake, because the machine is busy.
PATIENT = {"down_after_ms": 30_000, "handshake_ms": 20_000, "shutdown_ms": 30_000}
WATCHFUL = {**PATIENT, "credentials_refresh_ms": 50}
#: What is counted where a peer is restarted: it lets nobody in any more, nobody listens where it
#: was, both dial at once, one of them closes what it began.
OF_A_RESTART = {"SHUTDOWN", "REFUSED", "DUPLICATE", "CLOSED"}


class Rolling:
    """A mesh of five, under traffic from here to `end`."""

    def __init__(self, mesh: Members) -> None:
        self.mesh = mesh
        self.restarts: collections.Counter[str] = collections.Counter()
        mesh.begin()
        self.began = time.monotonic()

    def restart(self, name: str) -> None:
        """Have a node end, and start it again; it is let in by all."""
        member = self.mesh[name]
        self.nobody_was_refused(member)
        self.restarts[name] += 1
        member.process.terminate()
        assert member.process.wait() == 0
        member.restart()
        self.mesh.whole()
        member.ask("go")

    def nobody_was_refused(self, member: Member) -> None:
        """Neither by it, nor it by others, as far as it knows."""
        refusals = json.loads(member.ask("refusals"))
        assert refusals.keys() <= OF_A_RESTART, (member, refusals, member.process.stderr())

    def end(self) -> None:
        """Nothing was lost, nobody refused, and nobody down but who was restarted."""
        took_s = time.monotonic() - self.began
        self.mesh.settle()
        for member in self.mesh:
            self.nobody_was_refused(member)
            downs = collections.Counter(
                line.split()[2] for line in member.events("down ", self.began)
            )
            if member.name in self.restarts:
                # What it saw before its last start is not known here any more.
                assert downs <= self.restarts, member
            else:
                assert downs == self.restarts, member
        logs = {path.stem: history.read(path) for path in self.mesh.folder.glob("*.jsonl")}
        assert lost_at_an_end(logs) == []
        events = sum(map(len, logs.values()))
        figures("rolling", restarts=self.restarts.total(), events=events, took_s=took_s)


def lost_at_an_end(logs: Mapping[str, Sequence[Event]]) -> list[Event]:
    """What a node sent before it ended in order, and a node that outlived it did not get."""
    arrived = {
        tuple(event["m"][:4])
        for log in logs.values()
        for event in log
        if event["e"] in ("received", "dead_letter")
    }
    #: Which start of a node saw which start of another one go down.
    outlived = set()
    for log in logs.values():
        own, up = 0, dict[str, int]()
        for event in log:
            if event["e"] == "start":
                own, up = event["incarnation"], {}
            elif event["e"] == "node_up":
                up[event["node"]] = event["incarnation"]
            elif event["e"] == "node_down":
                outlived.add((own, up.pop(event["node"])))
    return [
        event
        for log in logs.values()
        for event in log
        if event["e"] == "sent"
        and (event["known"], event["m"][1]) in outlived
        and tuple(event["m"][:4]) not in arrived
    ]


def steps(old: bytes, new: bytes) -> list[tuple[bytes, ...]]:
    """The key files by which one key takes the place of another."""
    return [(old, new), (new, old), (new,)]


def shown(keys: Iterable[bytes]) -> str:
    return ",".join(map(key_id, keys))


def test_a_key_is_changed_without_a_restart(tmp_path: Path) -> None:
    """In each step a node is restarted half-way, and finds others before and behind it."""
    with Members(tmp_path, 5, every_ms=10, limits=WATCHFUL, authenticate_loopback=True) as mesh:
        rolling = Rolling(mesh)
        halfway = iter(["n1", "n3", "n5"])
        for keys in steps(mesh.key, secrets.token_bytes(32)):
            for name in NAMES:
                mesh.write_keys(name, *keys)
                mesh[name].ask(f"keys {shown(keys)}")
                if name == "n3":
                    rolling.restart(next(halfway))
        rolling.restart("n2")
        rolling.end()
        assert set(mesh.all_ask(f"keys {shown(keys)}").values()) == {""}


def test_key_and_application_are_changed_by_restarts(tmp_path: Path) -> None:
    """From the second round on all nodes have the version whose messages have one field more."""
    # Files are looked at at the start, and not again.
    limits = {**PATIENT, "credentials_refresh_ms": 3_600_000}
    with Members(tmp_path, 5, every_ms=10, limits=limits, authenticate_loopback=True) as mesh:
        rolling = Rolling(mesh)
        weights: collections.Counter[str] = collections.Counter()

        def weighed() -> None:
            for told in mesh.all_ask("weights").values():
                weights.update(json.loads(told))

        for keys in steps(mesh.key, secrets.token_bytes(32)):
            for name in NAMES:
                weighed()
                mesh.write_keys(name, *keys)
                mesh.version_of[name] = 2
                rolling.restart(name)
                mesh[name].ask(f"keys {shown(keys)}")
        rolling.end()
        weighed()
        # What the later version says to the earlier one is dropped, and the other way filled in.
        assert weights["dropped"] and weights["none"] and weights["right"], weights
        assert not weights["wrong"], weights


class Files:
    """The certificate, private key and authorities of each node, put in place together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.issuers = [Issuer(folder / which) for which in ("before", "after")]
        self.of = {name: self.config(name) for name in NAMES}

    def config(self, name: str) -> TlsConfig:
        place = self.folder / name
        place.mkdir()
        return TlsConfig(place / "cert.pem", place / "cert.key", place / "ca.pem")

    def write(self, name: str, issuer: int, trusted: Iterable[int], days: int) -> None:
        """A new certificate of that authority for so many days, for who trusts those."""
        issued = self.issuers[issuer].issue(name, named(name), TODAY + days * DAY)
        authorities = b"".join(self.issuers[each].ca.read_bytes() for each in trusted)
        self.put(self.of[name].ca, authorities)
        self.put(self.of[name].cert, Path(issued.cert).read_bytes())
        self.put(self.of[name].key, Path(issued.key).read_bytes())

    @staticmethod
    def put(path: str | os.PathLike[str], data: bytes) -> None:
        new = Path(f"{os.fspath(path)}.new")
        new.touch(0o600)
        new.write_bytes(data)
        new.replace(path)


#: Who issues, who is trusted, and for how many days: the authority is another one in the end.
CERTIFICATES = [(0, (0, 1), 200), (1, (0, 1), 300), (1, (1,), 400)]


def test_certificates_and_their_authority_are_changed_without_a_restart(tmp_path: Path) -> None:
    """Who is restarted after the last step takes nobody who shows a certificate of before."""
    files = Files(tmp_path)
    for name in NAMES:
        files.write(name, 0, (0,), 100)
    with Members(tmp_path, 5, every_ms=10, limits=WATCHFUL, tls=files.of) as mesh:
        rolling = Rolling(mesh)
        halfway = iter(["n1", "n3", "n5"])
        for issuer, trusted, days in CERTIFICATES:
            for name in NAMES:
                files.write(name, issuer, trusted, days)
                mesh[name].ask(f"certified {days}")
                if name == "n3":
                    rolling.restart(next(halfway))
        for name in ("n2", "n4"):
            rolling.restart(name)
        rolling.end()
        for member in mesh:
            assert "stay those of before" not in member.process.stderr()


@pytest.mark.parametrize("by", ["key", "certificates"])
def test_an_end_in_order_waits_for_a_peer_that_stands_still(tmp_path: Path, by: str) -> None:
    """As long as the end may take: a quarter of `shutdown_ms` is for telling the peers."""
    files = Files(tmp_path)
    for name in NAMES[:2]:
        files.write(name, 0, (0,), 100)
    tls = files.of if by == "certificates" else None
    with Members(tmp_path, 2, limits=PATIENT, tls=tls, authenticate_loopback=tls is None) as mesh:
        mesh.whole()
        n1, n2 = mesh
        n2.process.pause()
        # More than kernels hold for it, and less than makes it a busy peer. In the tiny build all
        # of it goes through buffers of some bytes.
        size = 200 if TINY else 20_000
        n1.ask(f"flood n2 200 {size}")
        n1.process.terminate()
        n1.awaits("signal")
        time.sleep(2)
        n2.process.resume()
        assert n1.process.wait() == 0
        n2.awaits("down n1 ")
        logs = {path.stem: history.read(path) for path in tmp_path.glob("*.jsonl")}
        assert lost_at_an_end(logs) == []
        assert sum(event["e"] == "received" for event in logs["n2"]) == 200
        n1.restart()
        mesh.begin()
        mesh.settle()


def test_what_is_lost_at_an_end_is_found() -> None:
    def sent(number: int) -> Event:
        return {"e": "sent", "m": ["a::n1", 1, "b::n2", number, "x"], "known": 2}

    ends: list[Event] = [{"e": "start", "incarnation": 1}, sent(1), sent(2), sent(3)]
    outlives: list[Event] = [
        {"e": "start", "incarnation": 2},
        {"e": "node_up", "node": "n1", "incarnation": 1},
        {"e": "received", "m": ["a::n1", 1, "b::n2", 1, "x"]},
        {"e": "dead_letter", "m": ["a::n1", 1, "b::n2", 2, "x"]},
        {"e": "node_down", "node": "n1"},
    ]
    assert lost_at_an_end({"n1": ends, "n2": outlives}) == [sent(3)]
    assert lost_at_an_end({"n1": ends, "n2": outlives[:-1]}) == []


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_all_of_it_at_once_again_and_again(tmp_path: Path) -> None:
    files = Files(tmp_path)
    for name in NAMES:
        files.write(name, 0, (0,), 100)
    with Members(tmp_path, 5, every_ms=10, limits=WATCHFUL, tls=files.of) as mesh:
        rolling = Rolling(mesh)
        key = mesh.key
        for turn in range(6):
            new = secrets.token_bytes(32)
            first, second = (0, 1) if turn % 2 == 0 else (1, 0)
            chain = [(first, (0, 1), 200), (second, (0, 1), 300), (second, (second,), 400)]
            for keys, (issuer, trusted, days) in zip(steps(key, new), chain, strict=True):
                for name in NAMES:
                    files.write(name, issuer, trusted, days + turn)
                    mesh.write_keys(name, *keys)
                    mesh[name].ask(f"keys {shown(keys)}")
                    mesh[name].ask(f"certified {days + turn}")
                    # The application goes forth and back.
                    mesh.version_of[name] = 1 + (turn + 1) % 2
                    rolling.restart(name)
            key = new
        rolling.end()
