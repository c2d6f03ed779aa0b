"""In the core nothing is caught the way that crashes when memory is exhausted.

Cython's `except X:` takes the exception's traceback and gives it back, and there is none when it
could not be allocated. A body of `pass` lets that be; all others take what was raised by the C API
(`take_failure` of failure.pxd).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.cimports import CORE

EXCEPT = re.compile(r"(?P<indent>\s*)except\b[^:]*:(?P<same_line>.*)$")


def violations(text: str) -> Iterator[str]:
    """Each `except` clause whose body is anything but `pass`: its line number, and the line."""
    without_texts = re.sub(
        r'("""|\'\'\').*?\1', lambda found: "\n" * found[0].count("\n"), text, flags=re.S
    )
    lines = [re.sub(r"\s*#.*", "", line) for line in without_texts.splitlines()]
    for number, line in enumerate(lines):
        if not (clause := EXCEPT.match(line)):
            continue
        body = [clause["same_line"].strip()] if clause["same_line"].strip() else []
        for later in lines[number + 1 :]:
            if later.strip() and len(later) - len(later.lstrip()) <= len(clause["indent"]):
                break
            body += [later.strip()] if later.strip() else []
        if body != ["pass"]:
            yield f"{number + 1}: {line.strip()}"


def found_in(path: Path) -> list[str]:
    return [f"{path.name}:{each}" for each in violations(path.read_text())]


def test_no_except_clause_of_the_core_has_a_body() -> None:
    found = [each for path in sorted(CORE.glob("*.p[yx][xd]")) for each in found_in(path)]
    assert not found, "\n".join(["take these with take_failure() of failure.pxd:", *found])


def test_what_counts_as_a_body() -> None:
    allowed = "try:\n    f()\nexcept ValueError:\n    # says why\n    pass\ng()\n"
    assert list(violations(allowed)) == []
    assert list(violations("try:\n    f()\nexcept: pass\n")) == []
    assert list(violations("cdef int f() except -1:\n    return 1\n")) == []
    assert list(violations('"""\nexcept X:\n    g()\n"""\n')) == []
    for body in ("return 0", "g()", "pass\n        g()", "raise"):
        text = f"def h():\n    try:\n        f()\n    except X as e:\n        {body}\n"
        assert list(violations(text)) == ["4: except X as e:"], body
