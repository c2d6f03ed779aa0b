"""A forked child can do nothing with its parent's node, nor harm it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.io.test_tls import DAY, TODAY, Issuer
from tests.isolated.script import FORKS, run

# What a child does with `watched`, `node`, `box` and `service`, which it was handed over.
USES = {
    "spawn": "node.spawn(Echo(), 'another')",
    "send": "node.send(watched.echo, 1)",
    "send_wait": "node.send_wait(watched.echo, 1)",
    "send_wait_async": "asyncio.run(node.send_wait_async(watched.echo, 1))",
    "stop": "node.stop(watched.echo)",
    "call": "node.call(watched.echo, 1)",
    "call_async": "asyncio.run(node.call_async(watched.echo, 1))",
    "mailbox": "node.mailbox()",
    "register_service": "node.register_service(Upper(), 'another')",
    "subscribe_dead_letters": "node.subscribe_dead_letters(box.pid)",
    "join": "node.join('127.0.0.1:1')",
    "join_async": "asyncio.run(node.join_async('127.0.0.1:1'))",
    "leave": "node.leave('another')",
    "ban": "node.ban('another', 1)",
    "lift_ban": "node.lift_ban('another')",
    "cluster_status": "node.cluster_status()",
    "subscribe_nodes": "node.subscribe_nodes(box.pid)",
    "export": "node.export('echo', Echo)",
    "spawn_on": "node.spawn_on(node.node_id, 'echo', 'another')",
    "spawn_on_async": "asyncio.run(node.spawn_on_async(node.node_id, 'echo', 'another'))",
    "executor_status": "node.executor_status()",
    "metrics": "node.metrics()",
    "processes": "node.processes()",
    "request_shutdown": "node.request_shutdown()",
    "shutdown": "node.shutdown()",
    "shutdown_async": "asyncio.run(node.shutdown_async())",
    "Mailbox.send": "box.send(watched.echo, 1)",
    "Mailbox.receive": "box.receive()",
    "Mailbox.receive_async": "asyncio.run(box.receive_async())",
    "Mailbox.close": "box.close()",
    "Service.send": "service.send(watched.echo, 1)",
    "Service.stop": "service.stop()",
}

SETTING = """
watched = Watched()
node = watched.node
box = node.mailbox()
service = next(iter(node._runtime.services))

def works():
    box.send(watched.echo, "still there")
    assert box.receive(PATIENCE_S).msg == "still there"
    assert node.call(watched.upper, "service too", PATIENCE_S) == "SERVICE TOO"

def wait(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_every_method_of_a_node_is_tried_below() -> None:
    said = run("""
        names = [name for name, value in vars(Node).items() if callable(value)]
        print(*sorted({"send", "spawn", *(n for n in names if not n.startswith("_"))}))
    """)
    assert set(said.split()) == {name for name in USES if "." not in name} | {"pid"}


def test_each_use_of_a_node_raises_in_a_forked_child() -> None:
    tries = "".join(
        f"""
    try:
        {use}
    except ForkedNode as error:
        assert "this is its forked child" in str(error)
    else:
        raise AssertionError({name!r})
"""
        for name, use in USES.items()
    )
    body = f"""{SETTING}
def child():
    assert (node.status, node.pid("echo")) == ("forked", watched.echo)
    repr(node)
{tries}
pid = os.fork()
if pid == 0:
    child()
    # By way of the interpreter's end and not os._exit: its hook has to leave the node alone.
    sys.exit(0)
wait(pid)
works()
node.shutdown()
watched.has_ended_once()
"""
    run(body, *FORKS)


@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_a_child_leaves_the_blocks_of_its_parent_and_has_a_node_of_its_own(way: str) -> None:
    run(
        f"""{SETTING}
def own():
    child = Watched()
    assert child.node.call(child.echo, 1, PATIENCE_S) == 1
    # Left to the hook at the end, as the parent's is.

if {way!r} == "multiprocessing":
    import multiprocessing
    with node, box:
        child = multiprocessing.get_context("fork").Process(target=own)
        child.start()
        child.join()
        assert child.exitcode == 0
        works()
else:
    with node, box:
        pid = os.fork()
        if pid == 0:
            own()
            sys.exit(0)
        wait(pid)
        works()
""",
        *FORKS,
    )


@pytest.mark.parametrize("end", ["return None", "sys.exit(1)", "raise LookupError('in the child')"])
@pytest.mark.parametrize("where", ["receive", "service"])
def test_a_fork_in_a_thread_of_the_node_continues_nothing_of_it(where: str, end: str) -> None:
    # The thread that forked is the only one of the child, which ends with it.
    said = run(
        f"""{SETTING}
def fork():
    pid = os.fork()
    if pid == 0:
        {end}
    wait(pid)
    forked.set()

forked = threading.Event()

class Forks(ServiceHandler):
    def handle_envelope(self, envelope, service):
        return fork()

if {where!r} == "receive":
    forks = node.spawn(Does(lambda process, msg, sender: fork()), "forks")
else:
    forks = node.register_service(Forks(), "forks").pid
node.send(forks, "go")
forked.wait()
# What the child left in an eventfd would keep its reader awake, until somebody wrote to it again.
while select.select(eventfds(), [], [], 0)[0]:
    pass
works()
node.shutdown()
watched.has_ended_once()
print("the end")
""",
        *FORKS,
    )
    assert said == "the end\n"


MESHED = """
mesh = Mesh(key=bytes(range(32)))
watched = Watched(node_id="a@127.0.0.1:0", mesh=mesh)
node = watched.node
peer = rabble.rouse("b@127.0.0.1:0", mesh=mesh)
told = node.mailbox()
node.subscribe_nodes(told.pid)
peer.join(node.node_id.addr)
assert type(told.receive(PATIENCE_S).msg) is NodeUp
echo = peer.spawn(Echo(), "echo")
until(lambda: len(peer.cluster_status().connections) == 1)

def sockets():
    return [link for link in descriptors().values() if link.startswith("socket:")]

def works():
    for one, other, to in ((node, peer, echo), (peer, node, watched.echo)):
        assert one.call(to, "still there", PATIENCE_S) == "still there"
        (link,) = one.cluster_status().connections
        assert link.node == other.node_id and link.incarnation == other.cluster_status().incarnation
    assert len(told) == 0
"""


@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_a_child_leaves_the_links_of_its_parent_alone(way: str) -> None:
    run(
        f"""{MESHED}
def child():
    # Of the parent's none is left.
    assert sockets() == []
    for use in (node.shutdown, node.cluster_status, peer.request_shutdown, peer.shutdown):
        try:
            use()
        except ForkedNode:
            continue
        raise AssertionError(use)
    # A node of its own takes a connection of its own to its parent's peer.
    with rabble.rouse("c@127.0.0.1:0", mesh=mesh) as own, own.mailbox() as box:
        own.join(peer.node_id.addr)
        until(lambda: len(own.cluster_status().connections) == 2)
        assert own.call(echo, 1, PATIENCE_S) == 1

def gone():
    return [link.node.name for link in peer.cluster_status().connections] == ["a"]

works()
if {way!r} == "multiprocessing":
    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
else:
    pid = os.fork()
    if pid == 0:
        child()
        # By way of the interpreter's end, which gives the parent's objects back.
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert told.receive(PATIENCE_S).msg.node.name == "c"
assert type(told.receive(PATIENCE_S).msg) is NodeDown
until(gone)
for _ in range(100):
    works()
peer.shutdown()
assert told.receive(PATIENCE_S).msg.node == peer.node_id
watched.node.shutdown()
watched.has_ended_once()
""",
        *FORKS,
    )


@pytest.mark.parametrize("secured", ["key", "tls"])
@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_the_end_of_a_parent_is_seen_though_a_child_of_it_lives_on(
    way: str, secured: str, tmp_path: Path
) -> None:
    """At once, and its port is free."""
    folder = tmp_path / "ours"
    if secured == "tls":
        issuer = Issuer(folder)
        for name in "ab":
            # Long enough for no warning.
            issuer.node(name, TODAY + 99 * DAY)
    run(
        f"""
import signal, socket
from rabble.cluster.io.tls import TlsConfig

folder = {os.fspath(folder)!r}
if {secured!r} == "tls":
    files = {{name: (f"/{{name}}.pem", f"/{{name}}.key", "/ca.pem") for name in "ab"}}
    meshes = {{
        name: Mesh(tls=TlsConfig(*(folder + each for each in files[name]))) for name in files
    }}
else:
    meshes = {{name: Mesh(key=bytes(range(32))) for name in "ab"}}
limits = rabble.Limits(down_after_ms=600_000)
to_parent, from_b, from_child = os.pipe(), os.pipe(), os.pipe()
parent = os.fork()
if parent == 0:
    addr = os.read(from_b[0], 100).decode()
    node = rabble.rouse("a@127.0.0.1:0", mesh=meshes["a"], limits=limits)
    node.join(addr)
    until(lambda: len(node.cluster_status().connections) == 1)

    def child():
        os.write(from_child[1], str(os.getpid()).encode())
        signal.pause()

    if {way!r} == "multiprocessing":
        import multiprocessing
        multiprocessing.get_context("fork").Process(target=child).start()
    elif os.fork() == 0:
        child()
    signal.pause()

with rabble.rouse("b@127.0.0.1:0", mesh=meshes["b"], limits=limits) as node, node.mailbox() as told:
    node.subscribe_nodes(told.pid)
    os.write(from_b[1], node.node_id.addr.encode())
    up = told.receive(PATIENCE_S).msg
    child = int(os.read(from_child[0], 100))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    down = told.receive(PATIENCE_S).msg
    assert (type(down), down.node) == (NodeDown, up.node) and down.reason == "lost", down
    host, _, port = up.node.addr.partition(":")
    socket.create_server((host, int(port))).close()
    os.kill(child, signal.SIGKILL)
""",
        *FORKS,
    )


def test_a_program_that_is_executed_inherits_no_socket() -> None:
    run(f"""{MESHED}
# Two that listen, and the two ends of the link.
assert len(sockets()) >= 4
seen = subprocess.run(
    [sys.executable, "-c", "from tests.isolated.inside import *; print(descriptors())"],
    close_fds=False,
    check=True,
    capture_output=True,
    text=True,
).stdout
assert "socket:" not in seen and "anon_inode" not in seen, seen
assert "/dev/null" in seen or "pipe:" in seen, seen
works()
peer.shutdown()
node.shutdown()
""")


def test_a_program_that_is_executed_inherits_no_descriptor() -> None:
    run(f"""{SETTING}
# Of the executor, the reporter, the node's end, the mailbox and the service, which has an epoll.
assert len(eventfds()) == 5
assert "anon_inode:[eventpoll]" in descriptors().values()
seen = subprocess.run(
    [sys.executable, "-c", "from tests.isolated.inside import *; print(descriptors())"],
    close_fds=False,
    check=True,
    capture_output=True,
    text=True,
).stdout
assert "anon_inode" not in seen, seen
assert "/dev/null" in seen or "pipe:" in seen, seen
""")


def test_a_fork_in_a_receive_delivers_and_sends_nothing_twice() -> None:
    """What stood in the queue is the parent's, and what was said to another node and not sent."""
    run(
        """
from tests.cluster.mesh import meet, rouse
from tests.support import Does

said, say = os.pipe()
with rouse("a") as a, rouse("b") as b, b.mailbox() as box:
    meet(a, b)

    def fork():
        if child := os.fork():
            children.append(child)

    children = []
    a.spawn(Does(lambda *_: fork()), "forks")
    a.spawn(Does(lambda *_: os.write(say, b"x") and None), "after")
    first = a.spawn(Does(lambda *_: [
        Envelope(box.pid, "once"),
        Envelope(a.pid("forks"), 1),
        Envelope(a.pid("after"), 1),
        Envelope(box.pid, "last"),
    ]), "first")
    a.send(first, 1)
    assert [box.receive(PATIENCE_S).msg for _ in range(2)] == ["once", "last"]
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) in (0, 1)
    try:
        again = box.receive(0.5).msg
    except CallTimeout:
        again = None
    assert again is None, again
    assert os.read(said, 10) == b"x"
""",
        *FORKS,
    )
