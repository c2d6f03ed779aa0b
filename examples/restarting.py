"""A node that is killed and started again under its name: what others see, and what it still knows.

What must outlast the process is written to a journal first, by a service, and read at the start.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from nodes import NodeProcess

import rabble
from rabble import (
    Ask,
    CorrelationId,
    Down,
    Envelope,
    Failed,
    Mailbox,
    Mesh,
    Monitor,
    Node,
    NodeDown,
    NodeUp,
    Output,
    Pid,
    Process,
    Reply,
    Request,
    Service,
    ServiceHandler,
)

#: Where the node of the till finds its journal.
JOURNAL = "TILL_JOURNAL"


@rabble.message(name="restarting.Deposit")
class Deposit(Request[int]):
    """Puts money into the till; the answer is what is in it then."""

    cents: int


class Journal(ServiceHandler):
    """Writes each deposit to disk, and answers when it is there."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab")

    def handle_envelope(self, envelope: Envelope, service: Service) -> Envelope:
        self.file.write(b"%d\n" % envelope.msg)
        self.file.flush()
        os.fsync(self.file.fileno())
        return rabble.reply(True, envelope.sender, envelope.correlation_id)

    def close(self, service: Service) -> None:
        self.file.close()


def total_of(path: Path) -> int:
    """What the journal says. A line that the end of the process has cut was never answered."""
    if not path.exists():
        return 0
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    # What follows is to be a line by itself.
    os.truncate(path, len(whole))
    return sum(map(int, whole.split()))


class Till(Process[Deposit | Reply | Failed]):
    """Answers a deposit once it is in the journal."""

    def __init__(self, total: int, journal: Pid) -> None:
        self.total = total
        self.journal = journal

    def receive(
        self,
        msg: Deposit | Reply | Failed,
        sender: Pid | None,
        correlation_id: CorrelationId | None,
    ) -> Output:
        match msg:
            case Deposit(cents):
                tag = (cents, sender, correlation_id)
                return Envelope(self.executor, Ask(self.journal, cents, 5_000, tag))
            case Reply((cents, customer, asked)):
                self.total += cents
                return rabble.reply(self.total, customer, asked)
            case Failed(_, reason):
                # Whether the journal has it nobody knows: the next start does.
                raise reason
            case _:
                return None


def start(node: Node) -> None:
    """For `rabble node --app restarting:start`: what was, and then the till."""
    path = Path(os.environ[JOURNAL])
    total = total_of(path)
    journal = node.register_service(Journal(path), "journal", on_crash="shutdown")
    node.spawn(Till(total, journal.pid), "till")


def told(news: Mailbox, count: int) -> str:
    """What comes of a node and its process, in words; the order of the two is not given."""
    words: list[str] = []
    for _ in range(count):
        match news.receive(timeout=60).msg:
            case NodeDown(_, _, reason):
                words.append(f"NodeDown ({reason})")
            case Down(_, reason):
                words.append(f"Down ({reason.kind})")
            case NodeUp():
                words.append("NodeUp")
            case _:
                pass
    return ", ".join(sorted(words))


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        rabble.rouse("desk@127.0.0.1:0", mesh=Mesh()) as desk,
        desk.mailbox() as news,
    ):
        os.environ[JOURNAL] = str(Path(folder, "journal"))
        desk.subscribe_nodes(news.pid)
        with NodeProcess("till@127.0.0.1:0", "restarting:start") as first:
            desk.join(first.node_id)
            print("started:", told(news, 1))
            till = Pid("till", first.node_id)
            news.send(desk.pid("executor", "rabble"), Monitor(till))
            print("deposits:", *(desk.call(till, Deposit(cents), 60) for cents in (100, 20, 3)))
            first.kill()
            print("killed:", told(news, 2))
            try:
                desk.call(till, Deposit(1))
            except rabble.NotConnected:
                print("a deposit: NotConnected")

        # The same name and address. Nobody has to join it: it is a member, and dialled.
        with NodeProcess(first.node_id, "restarting:start") as second:
            print("started again:", told(news, 1))
            if second.incarnation > first.incarnation:
                print("its incarnation is a later one")
            news.send(desk.pid("executor", "rabble"), Monitor(till))
            print("a deposit, to the same pid:", desk.call(till, Deposit(4000), 60))
            second.end()
            print("ended:", told(news, 2))


if __name__ == "__main__":
    main()
