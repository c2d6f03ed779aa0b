"""The dispatch table against a list of pairs.

A pid remembers what a table found for it, so what matters is which pid *objects* are used: the same
one again, an equal one, and one that another table has seen meanwhile.
"""

from __future__ import annotations

import gc

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rabble import NodeId, Pid
from rabble._core.dispatch import DispatchTable, Entry
from rabble._core.executor import Executor
from tests.core.processes import spawn_recorder
from tests.reference.dispatch import ReferenceTable

NODES = [NodeId("a", "h:1"), NodeId("b", "h:2")]


def make_pid(name: int, node: int, group: int) -> Pid:
    return Pid(f"p{name}", NODES[node], None if group == 0 else "tenant")


KEYS = [(name, node, group) for name in range(20) for node in range(2) for group in range(2)]
#: Several objects for each value, which live as long as the tests.
POOL = [make_pid(*key) for key in KEYS for _ in range(2)]
pids = st.one_of(
    st.sampled_from(POOL), st.builds(make_pid, *map(st.sampled_from, zip(*KEYS, strict=True)))
)
tables = st.integers(0, 1)


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tables = [DispatchTable(), DispatchTable()]
        self.references = [ReferenceTable(), ReferenceTable()]
        self.number = 0

    @rule(which=tables, pid=pids)
    def insert(self, which: int, pid: Pid) -> None:
        self.insert_one(which, pid)

    def insert_one(self, which: int, pid: Pid) -> None:
        self.number += 1
        target = f"target {self.number}"
        done = self.tables[which].insert(pid, target)
        assert done == self.references[which].insert(pid, target)

    @rule(which=tables, pid=pids)
    def discard(self, which: int, pid: Pid) -> None:
        self.discard_one(which, pid)

    def discard_one(self, which: int, pid: Pid) -> None:
        entry = self.tables[which].discard(pid)
        target = self.references[which].discard(pid)
        assert (entry and entry.target) == target

    @rule(pid=pids)
    def find_in_both(self, pid: Pid) -> None:
        for table, reference in zip(self.tables, self.references, strict=True):
            entry = table.get(pid)
            assert (entry and entry.target) == reference.get(pid)
            assert (pid in table) == (reference.get(pid) is not None)

    @rule(which=tables, first=st.integers(0, 19), count=st.integers(1, 20))
    def discard_several(self, which: int, first: int, count: int) -> None:
        for key in KEYS[4 * first : 4 * (first + count)]:
            self.discard_one(which, make_pid(*key))

    @rule(which=tables, first=st.integers(0, 19), count=st.integers(1, 20))
    def insert_several(self, which: int, first: int, count: int) -> None:
        for key in KEYS[4 * first : 4 * (first + count)]:
            self.insert_one(which, make_pid(*key))

    @rule(which=tables)
    def begin_anew(self, which: int) -> None:
        self.tables[which] = DispatchTable()
        self.references[which] = ReferenceTable()

    @invariant()
    def same_entries(self) -> None:
        for table, reference in zip(self.tables, self.references, strict=True):
            assert len(table) == len(reference.pairs)
            listed = [(str(entry.pid), entry.target) for entry in table.snapshot()]
            assert listed == reference.pairs


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=40)


def test_an_entry_says_whose_it_is() -> None:
    table = DispatchTable()
    pid = make_pid(0, 0, 0)
    assert table.insert(pid, "target")
    entry = table.get(pid)
    assert entry is not None
    assert (entry.pid, entry.delivered, entry.queued, entry.mailbox_max) == (pid, 0, 0, 0)
    assert repr(entry) == "<Entry p0::a@h:1 delivered=0>"


def test_an_idle_process_costs_the_collector_no_entry(executor: Executor) -> None:
    pid, _ = spawn_recorder(executor)
    entry = executor.table.get(pid)
    assert entry is not None and not gc.is_tracked(entry)


def test_what_few_lives_have_costs_the_others_no_room() -> None:
    """Asks, links, exits, last words: the head, nine references, two numbers, one word of flags."""
    assert Entry.__basicsize__ == 2 * 8 + 9 * 8 + 2 * 8 + 8
