"""What an object still holds of somebody: found by following all its references."""

from __future__ import annotations

import gc
import types
from typing import Any

from rabble import CorrelationId, NodeId, Pid

#: What leads to the whole interpreter, or to the test itself.
NOT_FOLLOWED = (
    types.ModuleType,
    type,
    types.FrameType,
    types.CoroutineType,
    types.GeneratorType,
    types.TracebackType,
    types.CodeType,
)


def referents(thing: Any) -> list[Any]:
    if isinstance(thing, types.FunctionType):
        # Not its globals.
        cells = [cell for cell in thing.__closure__ or () if cell != types.CellType()]
        return [*cells, *(thing.__defaults__ or ())]
    if isinstance(thing, NodeId):
        return [thing.name, thing.addr]
    if isinstance(thing, Pid):
        return [thing.name, thing.node, thing.group]
    if isinstance(thing, CorrelationId):
        return [thing.pid]
    return gc.get_referents(thing)


def remembered(root: Any, text: str) -> list[str]:
    """The ways on which texts that have `text` in them are reached from `root`."""
    seen = {id(root)}
    found = []
    waiting: list[tuple[Any, str]] = [(root, type(root).__name__)]
    # Whatever has been seen is kept, so that no id is used twice.
    kept = [root]
    while waiting:
        thing, way = waiting.pop()
        for each in referents(thing):
            if id(each) in seen or isinstance(each, NOT_FOLLOWED):
                continue
            seen.add(id(each))
            kept.append(each)
            there = f"{way}.{type(each).__name__}"
            if isinstance(each, str | bytes):
                if (text if isinstance(each, str) else text.encode()) in each:
                    found.append(f"{there}: {each[:100]!r}")
            else:
                waiting.append((each, there))
    return found
