"""pydantic models at the edge: what validates where."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.recipes.environment import ROOT
from tests.recipes.web import RECIPES, request, run, shop_node, surroundings
from tests.support import until

pytestmark = pytest.mark.timeout(900)  # the first test may have to make the environment


def test_a_body_is_validated_at_the_edge_and_is_the_message(tmp_path: Path) -> None:
    node, addr = shop_node("bookings:start", name="hotel@127.0.0.1:0")
    command = ["-m", "uvicorn", "bookings_web:app", "--port", "0"]
    with node, run(command, env=surroundings(tmp_path, addr)) as web:
        port = int(web.expect(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")[1])

        def book(**body: object) -> tuple[int, object]:
            return request(port, "POST", "/bookings", body)

        ada = {"guest": " ada ", "arrival": "2027-01-01", "nights": 2}
        until(lambda: book(**{**ada, "nights": 1, "arrival": "2026-01-01"})[0] in (200, 409))
        assert book(**ada) == (200, {"number": 2, "departure": "2027-01-03"})
        assert book(**ada) == (409, {"detail": "full until 2027-01-03"})
        # Neither comes as far as the room.
        for wrong in ({"nights": 0}, {"nights": "two"}, {"arrival": "tomorrow"}, {"guest": ""}):
            status, said = book(**{**ada, **wrong})
            assert status == 422
            assert [each["loc"][-1] for each in said["detail"]] == list(wrong)
        web.end(signal.SIGINT)


def test_types_are_checked_on_arrival_and_validators_are_not_run(tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "recipes" / "validation.py")
    env = {"PYTHONPATH": str(RECIPES)}
    with run(["-W", "error", script], folder=tmp_path, env=env) as program:
        said = program.ended().splitlines()
    assert said[0] == "number=1 departure=datetime.date(2027, 1, 3)"
    assert said[1].startswith("DecodeError: ") and "bookings.Booking" in said[1]
    assert "nights" in said[1] and "'three'" in said[1]
    assert said[2:] == ["ProcessCrashed: ValueError: -1 nights"]
