"""Refusal codes: the numbers of the wire, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from rabble._core.frame import REFUSAL_CODES
from rabble.cluster.decide.refusal import RefusalCode, ended, known_code


def test_each_code_of_the_core_has_a_name_and_a_meaning() -> None:
    assert {code.name: int(code) for code in RefusalCode} == REFUSAL_CODES
    assert all(code.meaning for code in RefusalCode)


def test_each_code_has_a_number_of_its_own() -> None:
    assert [int(code) for code in RefusalCode] == list(range(1, 24))


@pytest.mark.parametrize("number", [0, 24, 255, -1])
def test_an_unknown_code_raises_where_it_is_looked_up(number: int) -> None:
    with pytest.raises(ValueError, match="is not a valid RefusalCode"):
        RefusalCode(number)


def test_a_later_version_may_send_a_code_that_is_unknown_here() -> None:
    assert known_code(24) is None
    assert ended(24) == "lost"


def test_a_code_of_the_wire_is_known_by_its_number() -> None:
    assert known_code(20) is RefusalCode.SHUTDOWN
    assert ended(20) == "shutdown"


def test_a_connection_without_a_bye_is_lost() -> None:
    assert known_code(0) is None
    assert ended(0) == "lost"


def test_the_codes_are_those_of_the_page() -> None:
    page = Path(__file__).parents[3] / "docs" / "internals" / "wire-protocol.md"
    table = page.read_text().split("### Refusal codes", 1)[1].split("## Records", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|") and line[2].isdecimal()
    ]
    assert [(int(number), name) for number, name, _ in rows] == [
        (code.value, code.name) for code in RefusalCode
    ]
    assert all(code.meaning for code in RefusalCode)
