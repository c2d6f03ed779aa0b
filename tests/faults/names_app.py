"""A node of the tests of names and groups under faults.

    python -m tests.faults.names_app '{"name": "n1", "addr": "h:1", "seeds": [...], "limits": {}}'

It has one process, a member of the group `all`. A line of standard input has it register a name or
tell who has it, or what is in the group; what it is told is written to standard output.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import rabble
from rabble import (
    Envelope,
    Group,
    JoinGroup,
    NameLost,
    NameRefused,
    Output,
    Pid,
    Process,
    Register,
    Registered,
)

KEY = bytes(range(32))


class Claimer(Process):
    """Asks for names, and says what came of it."""

    def __init__(self) -> None:
        self.group = Group("all")

    def init(self) -> Output:
        return [Envelope(self.executor, JoinGroup("all")), self.group.subscribe(self.executor)]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        if self.group.takes(msg):
            say(f"group {','.join(sorted(pid.node.name for pid in self.group.members))}")
        match msg:
            case Register():
                return Envelope(self.executor, msg)
            case Registered(name):
                say(f"has {name}")
            case NameRefused(name, reason, holder):
                say(f"refused {name} {reason} {holder and holder.node.name}")
            case NameLost(name, holder):
                say(f"lost {name} to {holder.node.name}")
        return None


def say(line: str) -> None:
    print(line, flush=True)


def main(spec: dict[str, Any]) -> None:
    mesh = rabble.Mesh(key=KEY, seeds=spec["seeds"])
    limits = rabble.Limits(**spec["limits"])
    with rabble.rouse(f"{spec['name']}@{spec['addr']}", mesh=mesh, limits=limits) as node:
        claimer = node.spawn(Claimer(), "claimer")
        say("ready")
        for line in sys.stdin:
            match line.split():
                case ["claim", name]:
                    node.send(claimer, Register(name))
                case ["whereis", name]:
                    holder = node.names.whereis(name)
                    say(f"= {holder.node.name if holder else 'nobody'}")
                case ["dead"]:
                    say(f"= {json.dumps(dict(node.executor_status().dead_letters))}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
