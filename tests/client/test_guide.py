"""The guide to clients names all that is public, and each bound with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import rabble.client
from rabble.client import ClientLimits

GUIDE = (Path(__file__).parents[2] / "docs/guides/client.md").read_text()


def number(text: str) -> int:
    """Of "16 MiB", "64 Ki" or "1,024"."""
    digits, _, unit = text.replace(",", "").partition(" ")
    return int(digits) * {"": 1, "Ki": 2**10, "Mi": 2**20}[unit.removesuffix("B")]


def test_everything_public_is_named() -> None:
    words = set(re.findall(r"\w+", GUIDE))
    # What nobody catches alone: it is the cause of a ConnectionLost. And what is the default.
    assert set(rabble.client.__all__) - words == {"ProtocolError", "MsgpackFrames"}


def test_every_limit_is_there_with_its_default() -> None:
    table = GUIDE.split("\n## Limits\n", 1)[1]
    shown: dict[str, int] = {}
    for names, defaults in re.findall(r"^\| (`.+?`) \| (.+?) \|", table, flags=re.M):
        numbers = re.findall(r"[\d,]*\d(?: \w+)?", defaults)
        shown |= zip(re.findall(r"`(\w+)`", names), map(number, numbers), strict=True)
    assert shown == dataclasses.asdict(ClientLimits())
