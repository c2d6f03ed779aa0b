"""A chat over WebSockets: three processes, of which one is killed."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from tests.recipes.environment import ROOT
from tests.recipes.web import run

pytestmark = pytest.mark.timeout(900)  # the first test may have to make the environment


def test_a_room_is_on_all_nodes_and_survives_one(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers, seeds, ports = [], [], []
        for name in ("one", "two", "three"):
            command = ["websocket_chat.py", f"{name}@127.0.0.1:0", *seeds]
            server = stack.enter_context(run(command))
            ready = server.expect(r"^ready \w+@(\S+) (\d+)")
            servers.append(server)
            seeds += ["--join", ready[1]]
            ports.append(ready[2])
        script = str(ROOT / "tests" / "recipes" / "chat_clients.py")
        clients = stack.enter_context(run([script, *ports], folder=tmp_path))
        clients.expect("all are in")
        clients.expect("all heard each in order")
        clients.expect("refused: 1008 .*ann")
        clients.expect("^bob is gone")
        servers[2].end(signal.SIGKILL, status=-signal.SIGKILL)
        clients.expect("^cem is gone")
        said = [servers[place].end(signal.SIGTERM) for place in (1, 0)]
        assert not any("Traceback" in text for text in said), said
        clients.expect("the server ends: 1001")
        clients.ended()
