"""`rabble node`: what it is told, when it is ready, and how it ends."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rabble
from rabble import Limits, Mesh, Node, NodeDown, NodeId, NodeUp, cli
from rabble.cli import node as node_command
from rabble.cli import node_settings
from rabble.cli.node_settings import Settings, SettingsError
from tests.support import PATIENCE_S, Does, until

APP = """
import contextlib, os, pathlib, sys, threading, time
import rabble

COUNT = 5

class Echo(rabble.Process):
    def receive(self, msg, sender, correlation_id):
        return rabble.Envelope(sender, msg, correlation_id=correlation_id)

def start(node):
    assert len(node.cluster_status().members) == 1
    node.spawn(Echo(), "echo")
    print("started", flush=True)
    return lambda: print("ended while", node.status, flush=True)

@contextlib.contextmanager
def managed(node):
    print("entered", flush=True)
    yield
    print("left while", node.status, flush=True)

def hangs_at_the_end(node):
    def end():
        print("hangs", flush=True)
        while True:
            # One long sleep would not be interrupted by a signal that comes just before it.
            time.sleep(0.01)
    return end

def waits(node):
    print("waits", flush=True)
    while not os.path.exists("go on"):
        time.sleep(0.01)

def raises(node):
    raise LookupError("no such thing")

def wrong(node):
    return 5

def raises_at_the_end(node):
    def end():
        raise LookupError("at the end")
    return end

def ends_itself(node):
    node.request_shutdown()

def busy(node):
    class Busy(rabble.Process):
        def init(self):
            return rabble.Envelope(self.pid, 0)
        def receive(self, msg, sender, correlation_id):
            return rabble.Envelope(self.pid, msg + 1)
    node.spawn(Busy(), "busy")

def stuck(node):
    class Stuck(rabble.Process):
        def receive(self, msg, sender, correlation_id):
            os.write(1, b"stuck\\n")
            while True:
                try:
                    time.sleep(0.01)
                except BaseException:
                    pass
    node.send(node.spawn(Stuck(), "stuck"), 1)

def fails(node):
    # What a defect in the loop of the cluster server would do.
    def defect():
        raise LookupError("a defect")
    node._runtime.cluster._patience = defect
    node._runtime.cluster.post(lambda: None)

def fails_while_stuck(node):
    class Stuck(rabble.Process):
        def receive(self, msg, sender, correlation_id):
            fails(node)
            time.sleep(600)
    node.send(node.spawn(Stuck(), "stuck"), 1)

def fails_at_the_end(node):
    def end():
        node._teardown._end_calls = None
    return end

def crashes(node):
    class Crashes(rabble.Process):
        def receive(self, msg, sender, correlation_id):
            raise LookupError("to be logged")
    node.send(node.spawn(Crashes(), "crashes"), 1)

def flood(node):
    class Flood(rabble.Process):
        def init(self):
            yield rabble.Envelope(self.executor, rabble.SubscribeNodes())
            yield rabble.Envelope(self.executor, rabble.SubscribeDeadLetters())
        def receive(self, msg, sender, correlation_id):
            match msg:
                case rabble.DeadLetter(reason=rabble.DeadLetterReason.PEER_BUSY):
                    pathlib.Path("too much").touch()
                case rabble.NodeUp(peer, _):
                    self.to = rabble.Pid("sink", peer)
                    print("floods", flush=True)
                    return rabble.Envelope(self.pid, "go on")
                case "go on":
                    # More than the kernel takes, and less than becomes PEER_BUSY at once.
                    out = [rabble.Envelope(self.to, b"x" * 50_000) for _ in range(4)]
                    return [*out, rabble.Envelope(self.pid, "go on")]
    node.spawn(Flood(), "flood")
"""


class Running:
    """A `rabble node` in a process of its own."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        stderr: int = subprocess.PIPE,
    ) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "rabble.cli", "node", *arguments],
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ready(self) -> NodeId:
        said = self.line()
        found = re.fullmatch(r"ready (\S+) incarnation (\d+)", said)
        assert found is not None, (said, self.process.stderr.read() if not said else "")
        self.incarnation = int(found[2])
        return NodeId.parse(found[1])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Ask it to end. Returns its exit status, and what it said since."""
        self.process.send_signal(number)
        return self.wait()

    def tell_until_it_ends(self) -> None:
        """Ask it to end again and again. What comes at once is the signal before it."""

        def told() -> bool:
            self.process.send_signal(signal.SIGTERM)
            return self.process.poll() is not None

        until(told)

    def wait(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@contextlib.contextmanager
def running(
    folder: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    stderr: int = subprocess.PIPE,
) -> Iterator[Running]:
    (folder / "app.py").write_text(APP)
    it = Running(folder, *arguments, env=env, stderr=stderr)
    try:
        yield it
    finally:
        it.process.kill()
        it.process.communicate()


@pytest.fixture
def peer() -> Iterator[Node]:
    with rabble.rouse("peer@127.0.0.1:0", mesh=Mesh()) as node:
        yield node


# What it is told.


def settings(*arguments: str) -> Settings:
    return node_settings.settings_of(cli.make_parser().parse_args(["node", *arguments]))


CONFIG = """
node = "a@10.0.0.1:4000"
app = "shop:start"
join = ["b@10.0.0.2:4000", "seeds.example:4000"]
label = ["storage", "ssd"]
seed-file = "seeds"
key = "/etc/cluster.key"
tls-cert = "a.pem"
tls-key = "a.key"
tls-ca = "ca.pem"
cluster = "shop"
bind = "0.0.0.0:4000"
authenticate-loopback = true
log-level = "info"

[limits]
down_after_ms = 4000
"""


def test_a_file_says_all_that_the_command_line_can(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(CONFIG)
    found = settings("--config", str(file))
    assert found.node == NodeId("a", "10.0.0.1:4000")
    assert found.app == "shop:start"
    assert found.join == ("b@10.0.0.2:4000", "seeds.example:4000")
    assert found.mesh.labels == ("storage", "ssd")
    assert found.seed_file == tmp_path / "seeds"
    assert found.mesh.key == "/etc/cluster.key"
    assert found.mesh.tls == rabble.TlsConfig(
        str(tmp_path / "a.pem"), str(tmp_path / "a.key"), str(tmp_path / "ca.pem")
    )
    assert (found.mesh.cluster, found.mesh.bind) == ("shop", "0.0.0.0:4000")
    assert found.mesh.authenticate_loopback
    assert found.log_level == "info"
    assert found.limits == Limits(down_after_ms=4000)


def test_the_command_line_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(CONFIG)
    arguments = (
        "b@10.0.0.2:4000 --join c:1 d:2 --join e:3 --label x --key k --log-level error --cluster x"
    )
    found = settings(*arguments.split(), "--config", str(file))
    assert found.node.name == "b"
    assert found.join == ("c:1", "d:2", "e:3") and found.mesh.labels == ("x",)
    assert (found.mesh.key, found.log_level, found.mesh.cluster) == ("k", "error", "x")
    assert found.app == "shop:start"


def test_the_defaults() -> None:
    assert settings("a@127.0.0.1:0") == Settings(NodeId("a", "127.0.0.1:0"), Mesh(), Limits())


def test_a_guest_needs_no_address(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("node = 'report'\nguest = true")
    for found in (settings("report", "--guest"), settings("--config", str(tmp_path / "node.toml"))):
        assert found == Settings("report", Mesh(guest=True), Limits())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            "nod = 'a@h:1'",
            "nod is unknown. Did you mean node? There are: app, authenticate-loopback, bind, ",
        ),
        ("[limits]\ndown_after = 1", "[limits] down_after is unknown. Did you mean down_after_ms?"),
        ("[limits]\ndown_after_ms = 0", "down_after_ms must be an int, 1 to 2147483647, not 0"),
        ("[limits]\ndown_after_ms = '4'", "down_after_ms must be an int, 1 to 2147483647, not '4'"),
        ("limits = 5", "limits must be a table, [limits]"),
        ("join = 'h:1'", "join must be an array of strings, not 'h:1'"),
        ("join = [1]", "join must be an array of strings, not [1]"),
        ("join = ['h']", "address 'h' is not usable"),
        ("join = ['a@h']", "h"),
        ("bind = 'h'", "address 'h' is not usable"),
        (
            "authenticate-loopback = 'yes'",
            "authenticate-loopback must be true or false, not 'yes'",
        ),
        ("authenticate-loopback = true", "Mesh: authenticate_loopback needs a key"),
        ("guest = 1", "guest must be true or false, not 1"),
        ("guest = true\nbind = '127.0.0.1:4000'", "a guest listens nowhere"),
        ("app = 5", "app must be a string, not 5"),
        ("log-level = 'loud'", "log-level must be one of debug, info, warning, error, not 'loud'"),
        ("tls-cert = 'x'", "TLS needs all three: tls-cert, tls-key and tls-ca"),
        ("app = ", "not TOML"),
        ("", "which node?"),
        ("node = 'a'", "'a' is no node id"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, text: str, wrong: str) -> None:
    file = tmp_path / "node.toml"
    if text and not text.startswith("node ="):
        text = f"node = 'a@127.0.0.1:0'\n{text}"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings("--config", str(file))
    assert wrong in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "none.toml"
    assert cli.main(["node", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"rabble node: {file}: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "status", "wrong"),
    [
        (["--app", "app"], 2, "--app app: write it as MODULE:FUNCTION"),
        (["--app", "none:start"], 2, "--app none:start: there is no module none"),
        (["--app", "app:none"], 2, "--app app:none: app has no function none"),
        (["--app", "app:COUNT"], 2, "--app app:COUNT: COUNT is no function, but 5"),
        (["--app", "broken:start"], 1, "ValueError: broken"),
        (["--app", "app:raises"], 1, "LookupError: no such thing"),
        (["--app", "app:wrong"], 1, "--app app:wrong returned 5. It may return None, a function"),
        (["--key", "app.py"], 2, "app.py"),
        (["--bind", "0.0.0.0:0"], 2, "listening on 0.0.0.0:0 would take in anybody"),
    ],
)
def test_what_it_does_not_start_with(
    tmp_path: Path, arguments: list[str], status: int, wrong: str
) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('broken')")
    with running(tmp_path, "a@127.0.0.1:0", *arguments) as it:
        code, out, err = it.wait()
    assert (code, out) == (status, "")
    assert wrong in err
    if status == 2:
        assert err.startswith("rabble node: ") and err.count("\n") == 1


def test_an_address_in_use(tmp_path: Path, peer: Node) -> None:
    with running(tmp_path, f"a@{peer.node_id.addr}") as it:
        code, out, err = it.wait()
    assert (code, out) == (1, "")
    assert err.startswith("rabble node: ") and f"cannot listen on {peer.node_id.addr}" in err


# Ready, and in the mesh.


def test_a_guest_comes_and_goes(tmp_path: Path, peer: Node) -> None:
    with peer.mailbox() as news:
        peer.subscribe_nodes(news.pid)
        with running(tmp_path, "report", "--guest", "--join", peer.node_id.addr) as it:
            name = it.ready()
            up = news.receive(timeout=PATIENCE_S)
            assert up is not None and isinstance(up.msg, NodeUp)
            assert (up.msg.node, up.msg.guest) == (name, True)
            assert name.name.startswith("report-") and name.addr.endswith(":0")
            assert peer.cluster_status().members == (peer.node_id,)
            assert it.end() == (0, "", "")
        down = news.receive(timeout=PATIENCE_S)
        assert down is not None and isinstance(down.msg, NodeDown)


def test_a_guest_has_a_name_that_can_be_one(tmp_path: Path) -> None:
    with running(tmp_path, "", "--guest") as it:
        code, out, err = it.wait()
    assert (code, out) == (2, "") and err.startswith("rabble node: ") and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_ready_and_ends_in_order(tmp_path: Path, peer: Node, number: int) -> None:
    with peer.mailbox() as news:
        peer.subscribe_nodes(news.pid)
        arguments = ["--app", "app:start", "--join", peer.node_id.addr, "--log-level", "info"]
        with running(tmp_path, "a@127.0.0.1:0", *arguments) as it:
            assert it.line() == "started"
            node = it.ready()
            assert news.receive(PATIENCE_S).msg == NodeUp(node, it.incarnation)
            assert peer.call(rabble.Pid("echo", node), "hello") == "hello"
            code, out, err = it.end(number)
            assert (code, out) == (0, "ended while running\n")
            assert news.receive(1.0).msg == NodeDown(node, it.incarnation, "shutdown")
    assert re.search(rf"INFO up {re.escape(str(peer.node_id))} incarnation \d+\n", err)
    assert "Traceback" not in err


def test_a_context_manager_is_entered_and_left(tmp_path: Path) -> None:
    with running(tmp_path, "a@127.0.0.1:0", "--app", "app:managed") as it:
        assert it.line() == "entered"
        it.ready()
        assert it.end() == (0, "left while running\n", "")


def test_what_the_end_raises_is_shown(tmp_path: Path) -> None:
    with running(tmp_path, "a@127.0.0.1:0", "--app", "app:raises_at_the_end") as it:
        it.ready()
        code, out, err = it.end()
    assert (code, out) == (1, "")
    assert "LookupError: at the end" in err


def test_a_node_that_ends_by_itself(tmp_path: Path) -> None:
    with running(tmp_path, "a@127.0.0.1:0", "--app", "app:ends_itself") as it:
        code, _, err = it.wait()
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("app", "why"),
    [
        ("fails", "the cluster server: LookupError: a defect"),
        ("fails_at_the_end", "the executor: TypeError: 'NoneType' object is not callable"),
    ],
)
def test_a_node_that_fails_says_why(tmp_path: Path, app: str, why: str) -> None:
    with running(tmp_path, "a@127.0.0.1:0", "--app", f"app:{app}") as it:
        if app == "fails":
            code, _, err = it.wait()
        else:
            it.ready()
            code, _, err = it.end()
    assert code == 1
    assert err.endswith(f"rabble node: {why}\n")
    # And the log has where.
    assert "CRITICAL a@127.0.0.1:" in err
    assert "Traceback (most recent call last):" in err


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """A pipe that nobody reads, and into which nothing more goes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("app", "statuses"),
    [
        ("start", {0}),
        ("raises_at_the_end", {1}),
        # The thread that writes the log does not end.
        ("crashes", {1}),
        ("fails", {1}),
    ],
)
def test_a_node_whose_standard_error_is_full_ends_when_told_to(
    tmp_path: Path, app: str, statuses: set[int]
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        f"node = 'a@127.0.0.1:0'\napp = 'app:{app}'\nlog-level = 'info'\n"
        "[limits]\nshutdown_ms = 500\n"
    )
    with full_pipe() as stderr, running(tmp_path, "--config", "node.toml", stderr=stderr) as it:
        if app != "fails":
            while not it.line().startswith("ready"):
                pass
            it.process.send_signal(signal.SIGTERM)
        code, _, _ = it.wait()
    assert code in statuses


def test_a_second_signal_ends_a_node_whose_standard_error_is_full(tmp_path: Path) -> None:
    with (
        full_pipe() as stderr,
        running(tmp_path, "a@127.0.0.1:0", "--app", "app:hangs_at_the_end", stderr=stderr) as it,
    ):
        it.ready()
        it.process.send_signal(signal.SIGTERM)
        assert it.line() == "hangs"
        it.tell_until_it_ends()
        assert it.wait()[0] == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_a_file_of_seeds_that_is_no_regular_file_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "seeds")
    with pytest.raises(SettingsError, match="seeds: a file of seeds must be a regular file"):
        settings("a@127.0.0.1:0", "--seed-file", str(tmp_path / "seeds"))


def test_a_file_of_seeds_that_is_missing_is_waited_for(tmp_path: Path, peer: Node) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        "node = 'a@127.0.0.1:0'\nseed-file = 'seeds'\n[limits]\nseeds_refresh_ms = 50\n"
    )
    with peer.mailbox() as news, running(tmp_path, "--config", "node.toml") as it:
        peer.subscribe_nodes(news.pid)
        node = it.ready()
        other = tmp_path / "new"
        other.write_text(f"no address\n{peer.node_id.addr}\n")
        other.rename(tmp_path / "seeds")
        assert news.receive(PATIENCE_S).msg == NodeUp(node, it.incarnation)
        code, _, err = it.end()
    assert code == 0
    assert "the file of seeds seeds, line 1: address 'no address' is not usable" in err


def test_a_node_that_fails_and_does_not_end_says_both(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        "node = 'a@127.0.0.1:0'\napp = 'app:fails_while_stuck'\n[limits]\nshutdown_ms = 500\n"
    )
    with running(tmp_path, "--config", "node.toml") as it:
        code, _, err = it.wait()
    assert code == 1
    first, second = err.splitlines()[-2:]
    assert first == "rabble node: the cluster server: LookupError: a defect"
    assert "did not end: receive of stuck::a@127.0.0.1:" in second


def test_a_seed_file_is_watched(tmp_path: Path, peer: Node) -> None:
    seeds = tmp_path / "seeds"
    seeds.write_text("# none yet\n")
    config = tmp_path / "node.toml"
    config.write_text(
        "node = 'a@127.0.0.1:0'\nseed-file = 'seeds'\n[limits]\nseeds_refresh_ms = 50\n"
    )
    with peer.mailbox() as news, running(tmp_path, "--config", "node.toml") as it:
        peer.subscribe_nodes(news.pid)
        node = it.ready()
        seeds.write_text(f"{peer.node_id.addr}\n")
        assert news.receive(PATIENCE_S).msg == NodeUp(node, it.incarnation)
        assert it.end()[0] == 0


def test_systemd_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(PATIENCE_S)
        with running(tmp_path, "a@127.0.0.1:0", env={"NOTIFY_SOCKET": path}) as it:
            assert systemd.recv(100) == b"READY=1"
            assert it.end()[0] == 0
            assert systemd.recv(100) == b"STOPPING=1"


def test_with_a_key_and_with_certificates(tmp_path: Path) -> None:
    assert cli.main(["keygen", str(tmp_path / "key")]) == 0
    assert cli.main(["cert", "ca", str(tmp_path)]) == 0
    for name in "peer", "a":
        assert cli.main(["cert", "node", str(tmp_path), name]) == 0
    tls = rabble.TlsConfig(tmp_path / "peer.pem", tmp_path / "peer.key", tmp_path / "ca.pem")
    for mesh, arguments in (
        (Mesh(key=tmp_path / "key", cluster="x"), "--key key --cluster x"),
        (Mesh(key=tmp_path / "key"), "--key key --authenticate-loopback"),
        (Mesh(tls=tls), "--tls-cert a.pem --tls-key a.key --tls-ca ca.pem"),
    ):
        with (
            rabble.rouse("peer@127.0.0.1:0", mesh=mesh) as peer,
            peer.mailbox() as news,
            running(tmp_path, "a@127.0.0.1:0", *arguments.split()) as it,
        ):
            peer.subscribe_nodes(news.pid)
            node = it.ready()
            peer.join(node.addr)
            assert news.receive(PATIENCE_S).msg == NodeUp(node, it.incarnation)
            assert it.end() == (0, "", "")


# The end, in bad times.


def test_an_end_under_load_is_orderly_and_told_at_once(tmp_path: Path, peer: Node) -> None:
    """Processes that never stop talking, and a peer that never stops sending."""
    config = tmp_path / "node.toml"
    config.write_text("node = 'a@127.0.0.1:0'\napp = 'app:busy'\n[limits]\nshutdown_ms = 2000\n")
    with peer.mailbox() as news, running(tmp_path, "--config", "node.toml") as it:
        peer.subscribe_nodes(news.pid)
        node = it.ready()
        peer.join(node)
        assert news.receive(PATIENCE_S).msg == NodeUp(node, it.incarnation)

        rounds: list[object] = []

        def keep_on(process: rabble.Process, msg: object, sender: object) -> rabble.Output:
            rounds.append(msg)
            out = [rabble.Envelope(rabble.Pid("busy", node), 1) for _ in range(100)]
            return [*out, rabble.Envelope(process.pid, msg)]

        sending = peer.spawn(Does(keep_on), "sending")
        peer.send(sending, 1)
        until(lambda: len(rounds) > 100)
        code, out, err = it.end()
        assert news.receive(PATIENCE_S).msg == NodeDown(node, it.incarnation, "shutdown")
        peer.stop(sending)
        assert (code, out) == (0, "")
        assert "Traceback" not in err
        # Nobody listens there any more.
        host, _, port = node.addr.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 1).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("app", ["hangs_at_the_end", "stuck"])
def test_a_second_signal_does_not_wait(tmp_path: Path, app: str, number: int) -> None:
    with running(tmp_path, "a@127.0.0.1:0", "--app", f"app:{app}") as it:
        if app == "stuck":
            assert {it.line().split()[0], it.line().split()[0]} == {"stuck", "ready"}
        else:
            it.ready()
        it.process.send_signal(number)
        if app != "stuck":
            assert it.line() == "hangs"
        it.tell_until_it_ends()
        code, _, err = it.wait()
        assert code == 1
        assert err.endswith("rabble node: told to end a second time: not waiting\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_again_at_once_is_one(tmp_path: Path, number: int) -> None:
    """`timeout` sends one to the process and one to its group. To the very end of the process."""
    with running(tmp_path, "a@127.0.0.1:0", "--app", "app:start") as it:
        assert it.line() == "started"
        it.ready()
        began = time.monotonic()
        # Within the second in which they are one.
        while it.process.poll() is None and time.monotonic() - began < 0.8:
            it.process.send_signal(number)
        assert it.wait() == (0, "ended while running\n", "")


def test_a_signal_before_it_is_ready_says_what_it_waits_for(tmp_path: Path) -> None:
    with running(tmp_path, "a@127.0.0.1:0", "--app", "app:waits") as it:
        assert it.line() == "waits"
        it.process.send_signal(signal.SIGTERM)
        assert it.process.stderr is not None
        assert it.process.stderr.readline() == (
            "rabble node: told to end, and waiting for app:waits to return; a second signal ends "
            "it at once\n"
        )
        (tmp_path / "go on").touch()
        assert it.wait() == (0, "", "")


def test_what_cannot_be_ended_in_time_is_told(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("node = 'a@127.0.0.1:0'\napp = 'app:stuck'\n[limits]\nshutdown_ms = 500\n")
    with running(tmp_path, "--config", "node.toml") as it:
        it.line()
        it.line()
        code, _, err = it.end()
    assert code == 1
    assert "did not end: receive of stuck::a@127.0.0.1:" in err


def test_a_stopped_peer_does_not_hold_it_up(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("node = 'a@127.0.0.1:0'\napp = 'app:flood'\n[limits]\nshutdown_ms = 2000\n")
    with running(tmp_path, "--config", "node.toml") as it:
        node = it.ready()
        with running(tmp_path, "b@127.0.0.1:0", "--join", node.addr) as stopped:
            assert it.line() == "floods"
            stopped.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, stopped.process.pid, os.WSTOPPED | os.WNOWAIT)
            # What was sent while it ran may have been too much, too.
            (tmp_path / "too much").unlink(missing_ok=True)
            until((tmp_path / "too much").exists)
            code, _, err = it.end()
            assert code == 0, err


# In a process that goes on.


class Life:
    """An application that notes what it sees of its node."""

    seen: list[str] = []

    @classmethod
    def begin(cls, node: Node) -> Callable[[], None]:
        cls.seen = [f"began {node.status}"]
        return lambda: cls.seen.append(f"ended {node.status}")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["x"], 2),
        (["a@127.0.0.1:0", "--app", f"{__name__}:nothing"], 2),
        (["a@127.0.0.1:0", "--app", f"{__name__}:Life.begin"], 0),
    ],
)
def test_a_process_that_goes_on_is_left_as_it_was(
    arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_at_once(line: str) -> None:
        said.append(line)
        signal.raise_signal(signal.SIGTERM)

    said: list[str] = []
    Life.seen = []
    monkeypatch.setattr(node_command, "print_line", end_at_once)
    # The tests have set it up for themselves.
    monkeypatch.setattr(faulthandler, "enable", lambda: None)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    assert cli.main(["node", *arguments]) == status
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert threading.active_count() == threads
    assert [line.split("@")[0] for line in said] == ([] if status else ["ready a"])
    assert Life.seen == ([] if status else ["began running", "ended running"])
