"""The application of `rabble node`, and the log, which is the application's."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rabble import cli
from rabble.cli.node import Signals
from tests.support import PATIENCE_S

APP = """
import contextlib, logging, logging.config, sys
import rabble

async def coroutine(node):
    pass

async def generates(node):
    yield

def generator(node):
    yield

class Called:
    async def __call__(self, node):
        pass
called = Called()

@contextlib.asynccontextmanager
async def managed(node):
    yield

def returns_coroutine(node):
    return coroutine(node)

def async_end(node):
    async def end():
        pass
    return end

def end_returns_coroutine(node):
    node.request_shutdown()
    return lambda: coroutine(node)

class Till(rabble.Process):
    def receive(self, msg, sender, correlation_id):
        raise LookupError("no till")

def exits(node):
    sys.exit(3)

def exits_with_text(node):
    sys.exit("no database")

def exits_well(node):
    sys.exit()

def inner():
    raise KeyError("x")

def deep(node):
    inner()

@contextlib.contextmanager
def not_entered(node):
    inner()
    yield

@contextlib.contextmanager
def not_left(node):
    node.request_shutdown()
    yield
    inner()

def ends_early(node):
    node.request_shutdown()

def crash(node):
    node.send(node.spawn(Till(), "till"), 1)
    try:
        node.call(rabble.Pid("till", node.node_id), 2)
    except rabble.RabbleError:
        pass
    logging.getLogger("shop").info("of the application")
    node.request_shutdown()

CONFIG = {
    "version": 1,
    "formatters": {"own": {"format": "OWN %(levelname)s %(name)s %(message)s"}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "root": {"handlers": ["own"], "level": "INFO"},
}

def crash_after_basic_config(node):
    logging.basicConfig(format="OWN %(levelname)s %(name)s %(message)s", level="INFO")
    crash(node)

def crash_after_dict_config(node):
    logging.config.dictConfig(CONFIG)
    crash(node)

def crash_after_empty_config(node):
    logging.config.dictConfig({"version": 1})
    crash(node)
"""
CONFIGURED = """
import logging.config, shop
logging.config.dictConfig(shop.CONFIG)
crash = shop.crash
"""

NO_LOOP = (
    "rabble node runs no event loop. Write a plain function: it may start a thread that runs one, "
    "and return a function that ends it.\n"
)


class Failing:
    """A node that fails while it is waited for; its descriptor is beyond `select.select`."""

    closed = False

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended, self._runtime = self, self
        self.looks = iter([None, "it failed"])

    def fileno(self) -> int:
        return self.fd

    @property
    def failure(self) -> str | None:
        return next(self.looks)


def test_a_node_with_any_number_of_descriptors_is_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_000), hard))
    readable = os.eventfd(1)
    fd = fcntl.fcntl(readable, fcntl.F_DUPFD_CLOEXEC, 1_100)
    try:
        node = Failing(fd)
        with Signals() as signals:
            signals.wait(node)  # type: ignore[arg-type]
        assert list(node.looks) == []
    finally:
        os.close(fd)
        os.close(readable)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(folder: Path, app: str, *arguments: str) -> tuple[int, str, str]:
    (folder / "shop.py").write_text(APP)
    (folder / "configured.py").write_text(CONFIGURED)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "rabble", "node", "a@127.0.0.1:0"]
        + ["--app", app, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("app", "status", "why"),
    [
        ("shop:coroutine", 2, f"shop:coroutine: coroutine is async, and {NO_LOOP}"),
        ("shop:generates", 2, f"shop:generates: generates is async, and {NO_LOOP}"),
        ("shop:called", 2, f"shop:called: called is async, and {NO_LOOP}"),
        (
            "shop:managed",
            1,
            f"shop:managed returned an asynchronous context manager, and {NO_LOOP}",
        ),
        (
            "shop:returns_coroutine",
            1,
            f"shop:returns_coroutine returned a coroutine, and {NO_LOOP}",
        ),
        (
            "shop:async_end",
            1,
            f"shop:async_end returned a function for the end that is async, and {NO_LOOP}",
        ),
        (
            "shop:generator",
            2,
            "shop:generator: generator is a generator. Decorate it with "
            "contextlib.contextmanager\n",
        ),
        (
            "shop:Till",
            2,
            "shop:Till: Till is a class of processes. Name a function that is called with the "
            "node, and spawns them\n",
        ),
        ("shop:dep", 2, "shop:dep: shop has no function dep. Did you mean deep?\n"),
        (
            "shop.py:deep",
            2,
            "shop.py:deep: write the module as in an import, such as shop.main, not as a file\n",
        ),
        (
            ".shop:deep",
            2,
            ".shop:deep: write the module as in an import, such as shop.main, not as a file\n",
        ),
        (
            "shop.none:deep",
            2,
            "shop.none:deep: there is no module shop.none, neither in the current directory nor "
            "where Python looks (PYTHONPATH)\n",
        ),
        ("shop:exits", 3, "shop:exits raised, to exit: status 3\n"),
        ("shop:exits_with_text", 1, "shop:exits_with_text raised, to exit: no database\n"),
        ("shop:exits_well", 0, "shop:exits_well raised, to exit: status 0\n"),
    ],
)
def test_what_is_refused_before_it_is_ready(
    app: str,
    status: int,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    # So that it is gone afterwards.
    monkeypatch.setitem(sys.modules, "shop", sys)
    monkeypatch.delitem(sys.modules, "shop")
    monkeypatch.setattr(faulthandler, "enable", lambda: None)
    assert cli.main(["node", "a@127.0.0.1:0", "--app", app]) == status
    assert capsys.readouterr() == ("", f"rabble node: --app {why}")


@pytest.mark.parametrize(
    ("app", "what"),
    [("deep", "raised"), ("not_entered", "raised"), ("not_left", "raised at its end")],
)
def test_what_it_raises_is_shown_as_its_own(tmp_path: Path, app: str, what: str) -> None:
    status, _, err = run(tmp_path, f"shop:{app}")
    assert status == 1
    assert err.startswith(f"rabble node: --app shop:{app} {what}:\nTraceback (most recent call")
    assert err.endswith("KeyError: 'x'\n")
    assert set(re.findall(r'File "(.*)", line', err)) == {str(tmp_path / "shop.py")}


def test_an_end_that_would_have_to_be_awaited_is_told(tmp_path: Path) -> None:
    status, _, err = run(tmp_path, "shop:end_returns_coroutine")
    assert (status, err) == (
        1,
        "rabble node: --app shop:end_returns_coroutine: its end returned a coroutine, which was "
        f"not awaited: {NO_LOOP}",
    )


@pytest.mark.parametrize("arguments", [[], ["--log-level", "info"], ["--join", "127.0.0.1:1"]])
def test_an_application_that_ends_its_node_at_once_is_no_failure(
    tmp_path: Path, arguments: list[str]
) -> None:
    status, _, err = run(tmp_path, "shop:ends_early", *arguments)
    assert (status, err) == (0, "")


# The log.

CRASH = (
    r"till::a@127.0.0.1:\d+ crashed \(crash 1\)\n"
    r"Traceback \(most recent call last\):\n(  .*\n)+LookupError: no till\n"
)
NODES_OWN = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} ERROR {CRASH}"
APPLICATIONS = "OWN INFO shop of the application\n"


@pytest.mark.parametrize("app", ["shop:crash", "shop:crash_after_empty_config"])
def test_what_no_handler_of_the_application_takes_is_written_by_the_node(
    tmp_path: Path, app: str
) -> None:
    status, _, err = run(tmp_path, app)
    assert status == 0
    assert re.fullmatch(NODES_OWN, err), err


def test_the_level_is_for_an_application_without_a_log_of_its_own_too(tmp_path: Path) -> None:
    _, _, err = run(tmp_path, "shop:crash", "--log-level", "info")
    assert re.search(r"^\d{4}-.* INFO of the application\n", err, flags=re.M), err


@pytest.mark.parametrize(
    "app",
    ["shop:crash_after_basic_config", "shop:crash_after_dict_config", "configured:crash"],
)
def test_an_application_with_a_log_gets_all_of_it_and_once(tmp_path: Path, app: str) -> None:
    status, _, err = run(tmp_path, app)
    assert status == 0
    lines = err.replace(APPLICATIONS, "")
    assert lines != err
    assert re.fullmatch(f"OWN ERROR rabble {CRASH}", lines), err


def test_the_level_of_a_configured_log_is_that_of_the_node_alone(tmp_path: Path) -> None:
    _, _, err = run(tmp_path, "configured:crash", "--log-level", "error")
    assert APPLICATIONS in err
    _, _, err = run(tmp_path, "shop:crash", "--log-level", "error")
    assert re.fullmatch(NODES_OWN, err), err


# What the arguments and files say.


def test_a_file_that_nests_too_deeply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f"a = {'[' * 100_000}")
    assert cli.main(["node", "--config", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"rabble node: {file}: its arrays or tables are nested too deeply\n"
    )


def test_a_host_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "a@host.invalid:4000"]) == 1
    assert capsys.readouterr().err.startswith(
        "rabble node: cannot listen on host.invalid:4000: the host: "
    )


def test_nobody_who_reads_its_output_does_not_end_it(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "rabble", "node", "a@127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "", "NOTIFY_SOCKET": path},
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert systemd.recv(100) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        err = process.stderr.read()
        assert (process.wait(PATIENCE_S), err) == (0, "")
        process.stderr.close()
