"""Bans of whole nodes: what an operator says, what processes are told, and real `rabble node`s."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
from pathlib import Path
from typing import Any

import pytest

import rabble
from rabble import Limits, Mesh, Node, cli
from rabble.cluster.decide.node_keys import derived
from rabble.cluster.io.keys import write_node_key
from tests.cluster.io.test_tls import Issuer
from tests.cluster.mesh import SHORT, Told, linked, meet, names, rouse
from tests.cluster.test_run_node import running
from tests.support import until

AUTHORITY = bytes(range(32))


def keys_of(node: Node, name: str) -> tuple[str, ...]:
    """What a peer has shown."""
    [keys] = [each.keys for each in node.cluster_status().connections if each.node.name == name]
    return keys


def node_key(folder: Path, name: str, number: int = 1) -> dict[str, Any]:
    """A mesh in which that node has a key of its own."""
    file = folder / f"{name}{number}.key"
    write_node_key(file, derived(AUTHORITY, name, bytes([number]) * 16))
    return {"key": file}


# What an operator says.


def test_a_node_is_shut_out_and_let_in_again() -> None:
    with rouse("a") as a, rouse("b") as b, rouse("c") as c:
        told = meet(a, b, c)
        a.ban("c", 3_600)
        for node, each in zip((a, b), told, strict=False):
            assert each.down(c.node_id).reason == "banned"
            assert told[2].down(node.node_id).reason == "banned"
        until(lambda: names(a) == names(b) == ["a", "b"])
        until(lambda: [(ban.node, ban.by) for ban in b.cluster_status().bans] == [("c", "a")])
        assert linked(c) == [] and not c.cluster_status().removed
        until(lambda: c.cluster_status().refusals.get("BANNED"))
        b.lift_ban(c.node_id)
        for each in told[:2]:
            each.up(c)
        until(lambda: names(a) == names(b) == ["a", "b", "c"])


def test_a_ban_that_is_over_lets_the_node_in_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    with rouse("a") as a, rouse("b") as b:
        told, _ = meet(a, b)
        a.ban(b.node_id, 0.7)
        assert told.down(b.node_id).reason == "banned"
        told.up(b)
        until(lambda: not (a.cluster_status().bans or b.cluster_status().bans))
    assert "b: the name b is banned for 1 s, by a: that is this node" in caplog.text


def test_a_certificate_is_banned_and_the_name_comes_back_with_another(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "pki")

    def secure(name: str) -> dict[str, Any]:
        return {"key": None, "tls": issuer.node(name)}

    with rouse("a", mesh=secure("a")) as a, rouse("b", mesh=secure("b")) as b:
        told, _ = meet(a, b)
        [key] = keys_of(a, "b")
        until(lambda: names(a) == ["a", "b"])
        assert cli.main(["fingerprint", str(issuer.folder / "b.pem")]) == 0
        a.ban(None, 3_600, key=key)
        assert told.down(b.node_id).reason == "banned"
        until(lambda: [(ban.node, ban.key) for ban in a.cluster_status().bans] == [(None, key)])
        until(lambda: b.cluster_status().refusals.get("BANNED"))
        # The name is a member still.
        assert names(a) == ["a", "b"] and not b.cluster_status().removed
        port = int(b.node_id.addr.rpartition(":")[2])
        b.shutdown()
        with rouse("b", port, mesh=secure("b")) as again:
            again.join(a.node_id)
            told.up(again)
            assert keys_of(a, "b") != (key,)


def test_a_key_of_ones_own_is_banned(tmp_path: Path) -> None:
    with (
        rouse("a", mesh=node_key(tmp_path, "a")) as a,
        rouse("b", mesh=node_key(tmp_path, "b")) as b,
    ):
        told, _ = meet(a, b)
        [key] = keys_of(a, "b")
        a.ban("b", 3_600, key=key.upper())
        assert told.down(b.node_id).reason == "banned"
        both = [("b", None), (None, key)]
        until(lambda: [(ban.node, ban.key) for ban in a.cluster_status().bans] == both)
        a.lift_ban("b")
        a.lift_ban(key=key)
        told.up(b)
        assert not a.cluster_status().bans


# What cannot be.


def test_what_cannot_be_banned_says_why(tmp_path: Path) -> None:
    with rouse("a", mesh=node_key(tmp_path, "a"), limits={"ban_seconds_max": 60}) as a:
        own = derived(AUTHORITY, "a", b"\x01" * 16).fingerprint.hex()
        wrong: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
            (("a", 9), {}, ValueError, "the name a is this node's own; see leave()"),
            ((None, 9), {"key": own}, ValueError, f"the key {own} is this node's own"),
            (("b", 0), {}, ValueError, "above 0 and at most 60"),
            (("b", 61), {}, ValueError, "Limits.ban_seconds_max, not 61"),
            (("b", float("nan")), {}, ValueError, "not nan"),
            (("b", "9"), {}, TypeError, "seconds must be a number, not '9'"),
            (("b", True), {}, TypeError, "seconds must be a number, not True"),
            ((None, 9), {}, ValueError, "ban needs a node's name, or key=..."),
            (("10.0.0.1:4000", 9), {}, ValueError, "not an address: '10.0.0.1:4000'"),
            (("[::1]:4000", 9), {}, ValueError, "see cluster_status().members"),
            (("db.internal:4000", 9), {}, ValueError, "a node of that name is given as a NodeId"),
            (("0f" * 32, 9), {}, ValueError, "this looks like the fingerprint of a key"),
            ((":".join(["0F"] * 32), 9), {}, ValueError, "looks like the fingerprint of a key"),
        ]
        for arguments, named, error, text in wrong:
            with pytest.raises(error, match=re.escape(text)):
                a.ban(*arguments, **named)
        with pytest.raises(ValueError, match="lift_ban needs a node's name"):
            a.lift_ban()
        with pytest.raises(ValueError, match="lift_ban takes a node's name, not an address"):
            a.lift_ban("10.0.0.1:4000")
        assert a.cluster_status().bans == ()
        # Who is really called so is banned all the same.
        a.ban(rabble.NodeId("db:1", "10.0.0.1:4000"), 9)
        a.ban("db:2@10.0.0.1:4000", 9)
        until(lambda: [ban.node for ban in a.cluster_status().bans] == ["db:1", "db:2"])
        a.lift_ban("db:1@10.0.0.1:4000")
        a.lift_ban(rabble.NodeId("db:2", "10.0.0.1:4000"))
        until(lambda: not a.cluster_status().bans)
        # What is not banned stays as it is.
        a.lift_ban("b", key="0f" * 32)
        assert a.cluster_status().bans == ()
    with pytest.raises(rabble.NodeStopped):
        a.ban("b", 9)
    with pytest.raises(rabble.NodeStopped):
        a.lift_ban("b")


def test_where_all_have_one_key_only_names_are_banned() -> None:
    with rouse("a") as a:
        with pytest.raises(ValueError, match="have no keys of their own that could be banned"):
            a.ban(None, 9, key="0f" * 32)


def test_a_node_by_itself_bans_nobody() -> None:
    with rabble.rouse() as node:
        for act in (lambda: node.ban("b", 9), lambda: node.lift_ban("b")):
            with pytest.raises(RuntimeError, match="is a node by itself"):
                act()


# Processes of their own.

LIMITS = {**SHORT, "redial_refused_ms": 300}
CONFIG = """
node = "{name}@127.0.0.1:0"
key = "{key}"
join = [{join}]
log-level = "warning"

[limits]
"""


@contextlib.contextmanager
def a_node(folder: Path, name: str, *join: rabble.NodeId) -> Any:
    """A `rabble node` with a key of its own, which is up."""
    key = folder / f"{name}.key"
    if not key.exists():
        done = ["keygen", "--node", name, "--from", str(folder / "authority"), str(key)]
        assert cli.main(done) == 0
    text = CONFIG.format(name=name, key=key, join=", ".join(f'"{node.addr}"' for node in join))
    config = folder / f"{name}.toml"
    config.write_text(text + "".join(f"{limit} = {n}\n" for limit, n in LIMITS.items()))
    # What it logs is read at its end: nobody has to drain a pipe.
    with (folder / f"{name}.log").open("a+") as log:
        with running(folder, "--config", str(config), stderr=log.fileno()) as it:
            yield it, it.ready()


def test_processes_shut_a_node_out_for_as_long_as_one_of_them_lives(tmp_path: Path) -> None:
    """The operator's node says it and ends; those that know keep the node out, and tell others."""
    assert cli.main(["keygen", str(tmp_path / "authority")]) == 0
    operator = tmp_path / "o.key"
    done = ["keygen", "--node", "o", "--from", str(tmp_path / "authority"), str(operator)]
    assert cli.main(done) == 0

    def operate(*join: rabble.NodeId) -> Node:
        node = rabble.rouse("o@127.0.0.1:0", mesh=Mesh(key=operator), limits=Limits(**LIMITS))
        told = Told(node)
        for each in join:
            node.join(each.addr)
        told.until(lambda _: len(linked(node)) >= len(join))
        return node

    def log_of(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    def says(name: str, pattern: str) -> bool:
        return re.search(pattern, log_of(name), flags=re.MULTILINE) is not None

    with a_node(tmp_path, "a") as (_, a), a_node(tmp_path, "b", a) as (_, b):
        with a_node(tmp_path, "x", a, b) as (x_process, x):
            with operate(a, b, x) as o:
                o.ban("x", 3_600)
                until(lambda: linked(o) == ["a", "b"])
                until(lambda: says("a", "a: the name x is banned for \\d+ s, by o$"))
                until(lambda: says("b", "b: the name x is banned for \\d+ s, by o$"))
                until(lambda: says("x", "x: the name x is banned for \\d+ s, by o: that is this"))
                o.leave()
            assert x_process.end()[0] == 0
        with a_node(tmp_path, "c", a) as (_, c):
            # It never met who said it, and learned of it from who is left.
            until(lambda: says("c", "c: the name x is banned for \\d+ s, by o$"))
            (tmp_path / "x.log").unlink()
            with a_node(tmp_path, "x", c) as (x_process, _):
                until(lambda: "BANNED: the peer refused: the name x is banned for" in log_of("x"))
                until(lambda: "a connection from" in log_of("c") and "BANNED" in log_of("c"))
                # The way back: any member lifts it, and the node, which dials on, comes in.
                with operate(a, b, c) as o:
                    until(lambda: [ban.node for ban in o.cluster_status().bans] == ["x"])
                    o.lift_ban("x")
                    until(lambda: linked(o) == ["a", "b", "c", "x"])
                assert x_process.end(signal.SIGTERM)[0] == 0
            assert log_of("x").count("BANNED") == 1


def test_secrets_of_a_node_key_are_shown_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = secrets.token_bytes(32)
    write_node_key(tmp_path / "a.key", key := derived(authority, "a", bytes(16)))
    with rouse("a", mesh={"key": tmp_path / "a.key"}) as a:
        shown = repr(a.cluster_status()) + repr(key) + capsys.readouterr().err
    for number in key.coefficients:
        assert str(number) not in shown and f"{number:x}" not in shown
