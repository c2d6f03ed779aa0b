"""Refusal codes: the numbers of the wire, and what they are called."""

from __future__ import annotations

import pytest

from rabble.cluster.decide.refusal import RefusalCode, ended, known_code


def test_each_code_has_a_number_of_its_own_and_a_meaning() -> None:
    assert [int(code) for code in RefusalCode] == list(range(1, 21))
    assert all(code.meaning for code in RefusalCode)


@pytest.mark.parametrize("number", [0, 21, 255, -1])
def test_an_unknown_code_raises_where_it_is_looked_up(number: int) -> None:
    with pytest.raises(ValueError, match="is not a valid RefusalCode"):
        RefusalCode(number)


def test_a_later_version_may_send_a_code_that_is_unknown_here() -> None:
    assert known_code(21) is None
    assert ended(21) == "lost"


def test_a_code_of_the_wire_is_known_by_its_number() -> None:
    assert known_code(20) is RefusalCode.SHUTDOWN
    assert ended(20) == "shutdown"


def test_a_connection_without_a_bye_is_lost() -> None:
    assert known_code(0) is None
    assert ended(0) == "lost"
