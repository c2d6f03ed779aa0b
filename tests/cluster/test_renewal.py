"""Keys and certificates that change while a node runs: what is used, what is shown and said."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rabble import KeyFileError, Limits, Mesh, NodeId
from rabble.cluster.decide.node_keys import derived
from rabble.cluster.io.keys import key_id, write_key, write_node_key
from rabble.cluster.renewal import Renewal
from rabble.cluster.status import StatusBoard
from tests.cluster.io.test_tls import DAY, TODAY, Issuer
from tests.cluster.io.test_watched_files import stamp
from tests.cluster.plane import Runtime

OWN = NodeId("a", "h:1")
OLD, NEW, THIRD = (bytes([n] * 32) for n in (1, 2, 3))
REFRESH_S = 30.0


class Noting(Runtime):
    """Keeps the levels, too."""

    def __init__(self) -> None:
        super().__init__(OWN)
        self.levels: list[int] = []

    def report(self, level: int, words: Callable[[], str]) -> None:
        self.levels.append(level)
        super().report(level, words)


class Renewing:
    """A `Renewal` whose time the test takes forward."""

    def __init__(self, **mesh: Any) -> None:
        self.now = 5.0
        self.board = StatusBoard(OWN)
        self.runtime = Noting()
        self.contexts: list[ssl.SSLContext] = []
        limits = Limits(credentials_refresh_ms=int(REFRESH_S * 1000))
        self.renewal = Renewal("a", Mesh(**mesh), self.board, self.runtime, limits, self.now)
        self.tick()

    def tick(self) -> None:
        """Let it look when it next wants to."""
        assert self.renewal.next_tick is not None
        self.now = max(self.now, self.renewal.next_tick)
        self.renewal.tick(self.now, self.contexts.append, self.contexts.append)

    def settle(self) -> None:
        """Let it find a change, and take it."""
        self.tick()
        self.tick()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "key", OLD)
    return tmp_path / "key"


def write(file: Path, *keys: bytes) -> None:
    new = file.with_suffix(".new")
    new.touch(0o600)
    new.write_text("\n".join(key.hex() for key in keys))
    stamp(new)
    new.replace(file)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("renewal") / "ours")


def test_a_key_is_changed_step_by_step(file: Path) -> None:
    it = Renewing(key=file)
    assert it.renewal.credentials.keys == (OLD,)
    assert it.board.key_ids == (key_id(OLD),)
    for keys in ((OLD, NEW), (NEW, OLD), (NEW,)):
        write(file, *keys)
        it.settle()
        assert it.renewal.credentials.keys == keys
        assert it.board.status(1, False).key_ids == tuple(map(key_id, keys))
        assert it.board.gauges() == {"keys": len(keys)}
    old, new = key_id(OLD), key_id(NEW)
    assert it.runtime.levels == [logging.INFO] * 3
    for text, end in zip(
        it.runtime.reports,
        (
            f"the key {old}, and {new} is accepted, too",
            f"the key {new}, and {old} is accepted, too",
            f"the key {new}, and no other is accepted",
        ),
        strict=True,
    ):
        assert end in text
        assert text.startswith("a: ") and OLD.hex() not in text and NEW.hex() not in text


def test_an_id_of_a_key_is_no_part_of_it() -> None:
    # HMAC-SHA256(key, "rabble key id"), the first 4 bytes; this one made by OpenSSL.
    assert key_id(bytes(range(32))) == "a48f71a7"
    assert len({key_id(bytes([n] * 32)) for n in range(200)}) == 200


def test_a_change_is_looked_at_again_soon(file: Path) -> None:
    it = Renewing(key=file)
    before = it.now
    assert it.renewal.next_tick == before + REFRESH_S
    write(file, NEW)
    it.tick()
    assert it.renewal.credentials.keys == (OLD,)
    assert it.renewal.next_tick is not None and it.renewal.next_tick <= it.now + 1
    it.tick()
    assert it.renewal.credentials.keys == (NEW,)
    assert it.renewal.next_tick == it.now + REFRESH_S
    # Until then nothing is looked at.
    write(file, THIRD)
    it.renewal.tick(it.now, it.contexts.append, it.contexts.append)
    it.tick()
    assert it.renewal.credentials.keys == (NEW,)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "No such file or directory"),
    "empty": (lambda file: file.write_text(""), "not a key, which is 64 hexadecimal digits"),
    "half": (lambda file: file.write_text(f"{NEW.hex()}\n{OLD.hex()[:9]}"), "not a key"),
    "three": (lambda file: write(file, OLD, NEW, THIRD), "3 keys; at most 2"),
    "twice": (lambda file: write(file, NEW, NEW), "the same key twice"),
    "others": (lambda file: file.chmod(0o644), "has mode 0644, so others may use it"),
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file, 0o600)), "is not a regular file"),
    "folder": (lambda file: (file.unlink(), file.mkdir(0o700)), "is not a regular file"),
    "loop": (lambda file: (file.unlink(), file.symlink_to(file)), "Too many levels"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_key_file_that_cannot_be_used_is_one_warning_and_changes_nothing(
    file: Path, what: str
) -> None:
    spoil, why = UNUSABLE[what]
    it = Renewing(key=file)
    spoil(file)
    for _ in range(5):
        it.tick()
    assert it.renewal.credentials.keys == (OLD,)
    assert it.board.key_ids == (key_id(OLD),)
    (text,) = it.runtime.reports
    assert it.runtime.levels == [logging.WARNING]
    assert text.startswith(f"a: the keys stay those of before: {file}: ")
    assert why in text
    assert text.endswith(
        "put a file there that can be used, and it is read without a restart; the next start needs "
        "it"
    )
    assert NEW.hex()[:8] not in text
    # It is mended.
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    write(file, NEW, OLD)
    it.settle()
    assert it.renewal.credentials.keys == (NEW, OLD)
    assert it.runtime.levels == [logging.WARNING, logging.INFO]


@pytest.mark.parametrize("first", ["the cluster's", "its own"])
def test_a_key_of_another_kind_is_not_taken_by_a_node_that_runs(tmp_path: Path, first: str) -> None:
    """With it nobody of its mesh would let it in any more."""
    file = tmp_path / "key"

    def put(is_own: bool) -> None:
        file.unlink(missing_ok=True)
        if is_own:
            write_node_key(file, derived(OLD, "a", bytes(16)))
        else:
            write_key(file, OLD)
        stamp(file)

    put(first == "its own")
    it = Renewing(key=file)
    before, ids = it.renewal.credentials, it.board.key_ids
    put(first != "its own")
    for _ in range(3):
        it.tick()
    assert it.renewal.credentials is before and it.board.key_ids == ids
    assert it.runtime.levels == [logging.WARNING]
    kinds = ["the key of a cluster", "the key of one node"]
    found, known = kinds if first == "its own" else kinds[::-1]
    [text] = it.runtime.reports
    assert f"a: the keys stay those of before: {file}: {found}, in place of {known}: " in text
    assert "stop all nodes of the mesh" in text
    # Another one of the same kind is taken.
    file.unlink()
    if first == "its own":
        write_node_key(file, derived(OLD, "a", bytes([1]) * 16))
    else:
        write_key(file, NEW)
    stamp(file)
    it.settle()
    assert it.renewal.credentials != before
    assert it.runtime.levels == [logging.WARNING, logging.INFO]


def test_a_key_that_is_no_file_is_not_looked_at() -> None:
    for key, ids in ((OLD, (key_id(OLD),)), (None, ())):
        board = StatusBoard(OWN)
        renewal = Renewal("a", Mesh(key=key), board, Noting(), Limits(), 5.0)
        assert renewal.next_tick is None
        assert board.key_ids == ids
        renewal.tick(1e9, pytest.fail, pytest.fail)


def test_a_file_that_cannot_be_used_at_the_start_is_raised(file: Path, issuer: Issuer) -> None:
    file.chmod(0o640)
    with pytest.raises(KeyFileError, match="0640"):
        Renewing(key=file)


def test_keys_and_certificates_do_not_hold_each_other_up(file: Path, issuer: Issuer) -> None:
    tls = issuer.node("a", TODAY + 200 * DAY)
    it = Renewing(key=file, tls=tls)
    client, server = it.renewal.client, it.renewal.server
    assert it.runtime.reports == []
    days = it.board.gauges()["certificate_days_left"]
    assert 199 < days <= 200

    file.write_text("no key")
    issuer.node("a", TODAY + 300 * DAY)
    it.settle()
    assert it.renewal.credentials.keys == (OLD,)
    assert it.contexts == [it.renewal.client, it.renewal.server] != [client, server]
    assert it.board.gauges()["certificate_days_left"] > 299
    assert len(it.runtime.reports) == 2

    Path(tls.cert).write_text("no certificate")
    write(file, NEW)
    it.settle()
    assert it.renewal.credentials.keys == (NEW,)
    assert len(it.contexts) == 2
    assert "a: the certificates stay those of before: " in it.runtime.reports[-1]
    assert "put a file there that can be used" in it.runtime.reports[-1]
    count = len(it.runtime.reports)
    it.settle()
    assert len(it.runtime.reports) == count


def test_what_the_look_at_the_keys_raises_leaves_the_certificates_their_look(
    file: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Renewing(key=file, tls=issuer.node("b", TODAY + 200 * DAY))

    def no_memory() -> bool:
        raise MemoryError

    assert it.renewal._key_file is not None
    monkeypatch.setattr(it.renewal._key_file, "renew", no_memory)
    issuer.node("b", TODAY + 300 * DAY)
    for _ in range(2):
        with pytest.raises(MemoryError):
            it.tick()
    assert it.board.gauges()["certificate_days_left"] > 299
