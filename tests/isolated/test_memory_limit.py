"""A node whose process may have no more memory loses what does not fit, and nothing else."""

from __future__ import annotations

import random

import pytest

from rabble import NodeId, Pid, RabbleError
from tests.cluster.mesh import linked, rouse
from tests.isolated.script import Script
from tests.support import PATIENCE_S, SANITIZED, TINY, until

LIMITED = """
import resource
from tests.cluster.mesh import rouse

logging.getLogger("rabble").addHandler(logging.NullHandler())
with rouse("b") as b:
    b.spawn(Echo(), "echo")
    print(b.node_id)
    for line in sys.stdin:
        if not line.strip():
            break
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + (int(line) << 20), hard))
        print("limited")
    print(b.status, b.failure)
"""

#: What takes much more memory when it is there than on its way, and what takes as much.
MESSAGES = {
    "lists": [[] for _ in range(1_000_000)],
    "texts": ["x" * 100 for _ in range(300_000)],
    "dicts": [{"a": 1} for _ in range(200_000)],
    "bytes": bytes(30_000_000),
}


@pytest.mark.skipif(SANITIZED, reason="the sanitizer takes more address space than there is")
@pytest.mark.skipif(TINY, reason="takes minutes where each batch is one frame")
@pytest.mark.parametrize("kind", MESSAGES)
def test_what_there_is_no_memory_for_costs_a_message_or_a_connection(kind: str) -> None:
    with Script(LIMITED, patience_s=4 * PATIENCE_S) as script, rouse("a") as a:
        assert script._process.stdout is not None
        there = NodeId.parse(script._process.stdout.readline().strip())
        echo = Pid("echo", there)
        a.join(there)
        until(lambda: linked(a) == ["b"])
        for megabytes in random.Random(kind).sample(range(4, 100), 4):
            script.write(str(megabytes))
            script.expect("limited")
            try:
                assert a.call(echo, MESSAGES[kind], PATIENCE_S) == MESSAGES[kind]
            except RabbleError:
                # Lost, with its reason; or its connection is.
                pass
            until(lambda: linked(a) == ["b"])
            assert a.call(echo, 1, PATIENCE_S) == 1
        script.write("")
        script.expect("running None")
        script.end()
