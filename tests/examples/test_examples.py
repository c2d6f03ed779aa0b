"""Every example runs, ends by itself, says what it should, and leaves nothing on stderr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"

#: What examples import, and nobody runs.
HELPERS = {
    "cas_store",
    "counter_client",
    "counter_messages",
    "nodes",
    "orders_node",
    "orders_v1",
    "orders_v2",
}

# Of crash_and_monitor the log stands among the output, so only lines are looked for there.
OUTPUTS = {
    "chain_replication": """\
head on a, middle on b, tail on c
200 writes are answered
3 histories of 200 writes are equal
b is down; head is followed by tail now
200 writes are answered
2 histories of 400 writes are equal
""",
    "chat": """\
ann comes in
bob comes in
cem comes in
bob: good evening
cem: hello from a node that is about to end
cem is gone
bob is gone
ann: where are you all?
""",
    "counter": "the total is 6\n",
    "counter_api": """\
three clients count to 100 each: all servers come to 300
c is killed, and its client goes on elsewhere: the others come to 600
c is back, and comes to 600
""",
    "counter_asyncio": """\
100 increments answered, the last with 100
primary has 100
backup-1 has 100
backup-2 has 100
all three are equal
""",
    "crash_and_monitor": """\
news: a divider runs
6 / 3 is 2.0
the call of 1 / 0 ended with ProcessCrashed
news: divider crashed (ZeroDivisionError: division by zero), there is a new one
9 / 3 is 3.0
log: divider::local@127.0.0.1:0 crashed (crash 1)
ZeroDivisionError: division by zero
""",
    "guest": """\
a is connected to b
apple 3
plum 5
a guest came: True and went: shutdown
members: a b
""",
    "linked": """\
desk 1 is open
12 pieces are ordered
the clerk crashed: ValueError: no number: a dozen
desk 1 closes: clerk 1::local@127.0.0.1:0: crashed: ValueError: no number: a dozen
desk 2 is open
7 pieces are ordered
""",
    "line_chat": """\
ann is asked: who are you?
ann is told: hello, ann
bob is asked: who are you?
bob is told: hello, bob
ann hears: bob comes in
bob says something: ok
ann hears: bob: good evening
ann hears: bob is gone
""",
    "file_service": """\
poems/haiku.txt has 3 lines
poems/ode.txt was refused: No such file or directory
poems was refused: not a regular file
../secret.txt was refused: the path must be relative, without empty parts, '.' or '..'
/etc/hosts was refused: the path must be relative, without empty parts, '.' or '..'
link.txt was refused: Too many levels of symbolic links
""",
    "job_queue": """\
41 jobs are answered, though b was killed meanwhile:
2262 primes below 20000
2271 primes below 20100
...
2659 primes below 23900
Job(limit=-1) is given up
""",
    "jobs": """\
good -> Done(result='GOOD', attempts=1)
flaky -> Done(result='FLAKY', attempts=2)
bad -> GivenUp(why='there is no way to do this', attempts=3)
200 of 200 are done, though a node was killed
""",
    "mesh_counter": """\
members: a b c
a has 60, b has 60, c has 60
c was killed: it is down
what is said to it now is not kept for it
a has 100, b has 100
c is back: it is up, with a later incarnation
a has 100, b has 100, c has 100
a has 120, b has 120, c has 120
""",
    "new_replica": """\
500 changes, and a replica comes
it began with a snapshot, and has followed since: both have the same
it is killed, and comes back after 500 more changes
it began with another snapshot: both have the same
""",
    "numpy_arrays": """\
float64 [2.0, 3.0]
float64 1.5
""",
    "ping_pong": """\
referee: the ball is down
ping hit 5000 times, pong 5000 times
""",
    "replicated_counter": """\
after 100 increments the primary answered 5050
primary has 5050
backup-1 has 5050
backup-2 has 5050
all three are equal
""",
    "replicated_store": """\
a writes value 0
b writes value 1
c writes value 2
all read value 2
b is killed, and a writes value 3
c reads value 3
c is killed, and a reads: no majority
""",
    "restarting": """\
started: NodeUp
deposits: 100 120 123
killed: Down (disconnected), NodeDown (lost)
a deposit: NotConnected
started again: NodeUp
its incarnation is a later one
a deposit, to the same pid: 4123
ended: Down (shutdown), NodeDown (shutdown)
""",
    "rolling_upgrade": """\
a and b run version 1
a was upgraded: a 2, b 1; each has receipts of each
b was upgraded: a 2, b 2; each has receipts of each
0 orders were refused
""",
    "store_api": """\
a puts {'done': True, 'value': 'red'}
b gets {'done': True, 'value': 'red'}
c sets {'done': True, 'value': 'blue'}
a does not {'done': False, 'value': 'blue'}
three clients count to 20 each: 60
two stand still; a health check is answered: {'replicas': 3}
some of 100 are refused, to come again later: True
c is killed, and b deletes {'done': True, 'value': None}
b is killed, and a gets {'why': 'no majority; nothing was done'}
""",
    "supervision_tree": """\
the shop opens:
  till A starts
  printer A starts
  till B starts
  printer B starts
the printer of A crashes, and is restarted with its till:
  till A ends
  till A starts
  printer A starts
the till crashes, too, so its supervisor gives up and is restarted itself:
  printer A ends
  till A starts
  printer A starts
one more, while the shop is open:
  guard starts
its children: counter A (running), counter B (running), guard (running)
the shop closes, the last one first:
  guard ends
  printer B ends
  till B ends
  printer A ends
  till A ends
""",
    "timer": """\
beat 1, not early
beat 2, not early
beat 3, not early
beat 4, not early
beat 5, not early
the alarm is cancelled, it was still running
""",
}

# Development mode would switch on asyncio's debug mode, which logs every callback that takes
# 100 ms: on a machine that stalls that says nothing about the example.
NOT_IN_DEVELOPMENT_MODE = {
    "chain_replication",
    "chat",
    "counter_asyncio",
    "job_queue",
    "jobs",
    "new_replica",
    "store_api",
}


def test_every_example_is_run_below() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(OUTPUTS) | HELPERS


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_an_example_says_what_it_should(name: str, tmp_path: Path) -> None:
    if name == "numpy_arrays":
        pytest.importorskip("numpy")
    options = ["-W", "error"]
    if name not in NOT_IN_DEVELOPMENT_MODE:
        options += ["-X", "dev"]
    done = subprocess.run(
        [sys.executable, *options, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    wanted = OUTPUTS[name]
    if name == "crash_and_monitor":
        said = done.stdout.splitlines()
        places = [said.index(line) for line in wanted.splitlines()[:5]]
        assert places == sorted(places)
        assert set(wanted.splitlines()) <= set(said)
    else:
        assert done.stdout == wanted
    assert list(tmp_path.iterdir()) == []
