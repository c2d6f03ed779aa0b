"""The documentation tells the truth: its Python runs, its names exist, its defaults are the real.

The python blocks of a page are one script, run from top to bottom; a `text` block right below one
shows exactly what it prints.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rabble
import rabble.client
import rabble.services.gate
import rabble.services.server
import rabble.testing
from rabble import DeadLetterReason, DownReason, Limits
from tests.examples.test_examples import OUTPUTS
from tools.draw_pictures import pictures

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
#: These show parts of programs, which tests/recipes and test_examples.py run.
RECIPES = sorted(ROOT.glob("docs/guides/recipes/*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$(\n+^```text\n(.*?)^```$)?", flags=re.M | re.S)

RUN = """
import io, json, sys
from contextlib import redirect_stdout
names = {"__name__": "__main__"}
printed = []
for source, place in json.load(sys.stdin):
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(source, place, "exec"), names)
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """The python blocks of a page: source, place, and what is shown below as the output."""
    text = page.read_text()
    found = []
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            line = text.count("\n", 0, block.start()) + 1
            found.append((block[2], f"{page.relative_to(ROOT)}:{line}", block[4] or ""))
    return found


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page) and page not in RECIPES],
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        input=json.dumps([(source, place) for source, place, _ in found]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    for (_, place, shown), printed in zip(found, json.loads(done.stdout), strict=True):
        assert printed == shown, place


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_recipe_shows_its_programs_and_what_they_print(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((\.\./\.\./\.\./examples/[\w/]+\.\w+)\)", text)
    programs = [(page.parent / link).resolve() for link in links]
    assert programs
    sources = [source_of(program) for program in programs]
    printed = [OUTPUTS[program.stem] for program in programs if program.stem in OUTPUTS]
    for source, place, shown in blocks(page):
        assert shown == "", f"{place}: what a whole program prints is a block by itself"
        assert any(source in each for each in sources), place
    for shown in re.findall(r"^```text\n(.*?)^```$", text, flags=re.M | re.S):
        assert any(shown in each for each in printed), shown


def source_of(program: Path) -> str:
    """The text of a program, or of all cells of a notebook."""
    text = program.read_text()
    if program.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) + "\n" for cell in json.loads(text)["cells"])


def test_every_recipe_has_a_page_and_a_line() -> None:
    text = (ROOT / "docs" / "examples.md").read_text()
    pages = "".join(page.read_text() for page in RECIPES)
    for program in (ROOT / "examples" / "recipes").iterdir():
        if program.is_file():
            assert f"examples/recipes/{program.name})" in pages, program
    for page in RECIPES:
        assert f"(guides/recipes/{page.name})" in text, page


def test_no_python_block_is_overlooked() -> None:
    for page in PAGES:
        assert len(re.findall(r"^ *```python", page.read_text(), flags=re.M)) == len(blocks(page))


def test_the_readme_shows_an_example_file() -> None:
    (source, _, shown) = blocks(ROOT / "README.md")[0]
    assert source == (ROOT / "examples" / "counter.py").read_text()
    assert shown == "the total is 6\n"


def test_the_readme_begins_with_the_benchmarks() -> None:
    text = (ROOT / "README.md").read_text()
    assert 0 < text.index("make bench") < text.index("make test")


@functools.cache
def names_in(file: str) -> set[str]:
    """The functions that a file of tests defines, and what it assigns."""
    tree = ast.parse((ROOT / file).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return defined | {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_tests_exist(page: Path) -> None:
    for name, function in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        defined = names_in(name)
        assert not function or function in defined, f"{name}::{function}"


def test_every_promise_names_a_test() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    section = text.split("\n## What is promised\n", 1)[1].split("\n## ", 1)[0]
    _, *promises = re.split(r"^\*\*", section, flags=re.M)
    assert [found[1] for p in promises if (found := re.match(r"G(\d+) ", p))] == [
        str(number) for number in range(1, 14)
    ]
    for promise in promises:
        # To the function: that a file exists says nothing.
        assert re.search(r"`tests/[\w/]+\.py::\w+`", promise), promise


def test_every_fault_names_a_test() -> None:
    text = (ROOT / "docs" / "internals" / "faults.md").read_text()
    _, *faults = re.split(r"^\*\*", text, flags=re.M)
    assert faults
    for fault in faults:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", fault), fault


COMPARISON = ROOT / "docs" / "comparison.md"
#: Where something is missing there is nothing to be shown.
MISSING = ("–", "not yet", "one executor", "a project")


@pytest.mark.parametrize("heading", re.findall(r"^## (.+)$", COMPARISON.read_text(), flags=re.M))
def test_each_cell_of_the_comparison_has_what_shows_it(heading: str) -> None:
    for name, own, *others in table(COMPARISON, heading):
        assert len(others) == 4, name
        assert all(others), name
        shown = re.search(r"`tests/[\w/]+\.py(::\w+)?`|\]\(\.\./\w+[/\w]*\.\w+\)", f"`{own}`")
        assert shown or own.startswith(MISSING), name


def test_the_links_of_the_comparison_are_defined_and_used() -> None:
    text = COMPARISON.read_text()
    defined = re.findall(r"^\[([\w-]+)\]: https://", text, flags=re.M)
    assert len(defined) == len(set(defined))
    assert set(re.findall(r"\]\[([\w-]+)\]", text)) == set(defined)


def test_the_pictures_are_what_their_sources_say() -> None:
    drawn = pictures()
    assert drawn.keys() == set((ROOT / "docs" / "pictures").glob("*.svg"))
    for place, picture in drawn.items():
        assert place.read_text() == picture, f"{place.name}: run tools/draw_pictures.py"


def test_the_api_page_has_everything_public_once() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    shown = re.findall(r"^\.\. (?:auto\w+|py:type):: (?:rabble\.)?(\w+)", text, flags=re.M)
    modules = (rabble, rabble.testing, rabble.client, rabble.services.server, rabble.services.gate)
    assert sorted(shown) == sorted(name for module in modules for name in module.__all__)


def test_every_example_has_a_line() -> None:
    text = (ROOT / "docs" / "examples.md").read_text()
    for example in (ROOT / "examples").glob("*.py"):
        assert f"(../examples/{example.name})" in text


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without the head."""
    text = page.read_text().split(f"\n## {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, flags=re.M)
    assert lines is not None
    return [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        for line in lines[0].splitlines()[2:]
    ]


REFERENCE = ROOT / "docs" / "reference.md"


def test_the_reference_names_everything_public() -> None:
    words = set(re.findall(r"\w+", REFERENCE.read_text()))
    assert set(rabble.__all__) <= words


@pytest.mark.parametrize(
    "cls",
    [
        rabble.Node,
        rabble.Process,
        rabble.Mailbox,
        rabble.Service,
        rabble.ServiceHandler,
        rabble.MessageRegistry,
    ],
)
def test_the_reference_names_every_method(cls: type) -> None:
    words = set(re.findall(r"\w+", REFERENCE.read_text()))
    names = vars(cls).keys() | vars(cls).get("__annotations__", {}).keys()
    assert {name for name in names if not name.startswith("_")} <= words


def test_the_reference_has_every_limit_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RABBLE_FRAGMENT_BYTES", raising=False)
    rows = {row[0]: int(row[1].replace(",", "")) for row in table(REFERENCE, "Limits")}
    assert rows == dataclasses.asdict(Limits())
    ranges = {row[0]: row[2].replace(",", "") for row in table(REFERENCE, "Limits")}
    assert ranges == {
        field.name: "{} to {}".format(*field.metadata["range"])
        for field in dataclasses.fields(Limits)
    }


def test_the_reference_has_every_reason() -> None:
    rows = {row[0] for row in table(REFERENCE, "Dead letters")}
    assert rows == {reason.name for reason in DeadLetterReason}
    text = REFERENCE.read_text()
    assert all(f"`{kind}`" in text for kind in DownReason.KINDS)


def test_the_reference_has_every_error() -> None:
    rows = {row[0] for row in table(REFERENCE, "Errors")}
    errors = {name for name in rabble.__all__ if is_error(getattr(rabble, name))}
    assert rows == errors


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)
