"""The walks of the architecture page lead through functions that there are, where it says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "internals" / "architecture.md"
#: The sections that have a walk, and how each of these begins and ends.
WALKS = {
    "The path of a message": ("Executor.give_to_process", "Executor.give_to_process"),
    "The path of a join": ("Node.join", "Executor.give_notice"),
    "Crashes, and memory": ("Executor.give_to_process", "Executor.give_notice"),
}
# Whatever is written like that, so that no slip of the pen is taken for another thing.
STEP = re.compile(r"`(src/[^`\s:]*):([^`\s]*)`")
CLASS = re.compile(r"(?:cdef |cpdef )?class (\w+)")
# What has a bracket behind its name, and no `=` before it.
FUNCTION = re.compile(r"(?P<indent> {4})?(?:async )?(?:def|cdef|cpdef) [^=(#]*?(?P<name>\w+)\(")


def functions(source: str, is_summary: bool) -> set[str]:
    """The functions that Python or Cython defines, and the methods, as `Class.method`.

    :param is_summary: it is a `.pxd`, where only what is inline has a body.
    """
    found = set()
    cls = ""
    for line in source.splitlines():
        if line[:1].isalpha():
            begun = CLASS.match(line)
            cls = f"{begun[1]}." if begun else ""
        function = FUNCTION.match(line)
        if function and (not is_summary or " inline " in line):
            # What stands within a function is nobody's to name.
            if not function["indent"]:
                found.add(function["name"])
            elif cls:
                found.add(cls + function["name"])
    return found


def missing(text: str) -> list[str]:
    """What a page names as a function of a file and is none."""
    wrong = []
    for place, name in STEP.findall(text):
        path = ROOT / place
        known = path.is_file() and functions(path.read_text(), path.suffix == ".pxd")
        if not known or name not in known:
            wrong.append(f"{place}:{name}")
    return wrong


def test_every_step_of_the_walks_exists() -> None:
    assert missing(PAGE.read_text()) == []


@pytest.mark.parametrize("section", WALKS)
def test_a_walk_is_numbered_from_its_beginning_to_its_end(section: str) -> None:
    text = PAGE.read_text().split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    steps = re.findall(r"^(\d+)\. `src/[^`\s:]*:([^`\s]*)`", text, flags=re.M)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert (steps[0][1], steps[-1][1]) == WALKS[section]


@pytest.mark.parametrize(
    "step",
    [
        "src/rabble/_core/executor.pyx:Executor.finished",  # no such method
        "src/rabble/_core/executor.pyx:finish",  # a method, and no function
        "src/rabble/_core/executor.pyx:Routes.send",  # of another file
        "src/rabble/_core/executor.pyx:Executor",  # a class
        "src/rabble/_core/executor.pyx:",
        "src/rabble/_core/executioner.pyx:Executor.finish",
        "src/rabble/_core/routes.pxd:Routes.send",  # declared there only
        "src/rabble/_core/distribution.pyx:Executor.send_down",  # of no class
        "src/rabble/cluster/io/resolver.py:_work",
    ],
)
def test_a_step_that_does_not_exist_is_noticed(step: str) -> None:
    assert missing(f"1. `{step}` does it.") == [step]


@pytest.mark.parametrize(
    "step",
    [
        "src/rabble/_core/executor.pyx:Executor.finish",
        "src/rabble/_core/executor.pyx:Executor.add",  # its type is no word of Cython's
        "src/rabble/_core/executor.pyx:Executor.queue_depth",  # a property
        "src/rabble/_core/queue.pxd:EnvelopeQueue.put_owned",  # inline
        "src/rabble/_core/distribution.pyx:send_down",
        "src/rabble/_core/receive.pyx:take_locked",
        "src/rabble/cluster/io/resolver.py:look_up",
        "src/rabble/cluster/io/resolver.py:Resolver._work",
    ],
)
def test_a_step_that_exists_is_found(step: str) -> None:
    assert missing(f"1. `{step}` does it.") == []
