"""Cells of a class's functions, when another class takes the place of the one they were made for.

`@dataclass(slots=True)` makes a second class, and the first one is thrown away; but `super()` and
`__class__` in its methods, and `__setattr__` of a frozen dataclass, have the first one in a cell.
CPython sees to the plain methods from 3.14 on. Here whatever a class's attributes refer to is
looked through: functions under decorators, properties, partial functions.
"""

from __future__ import annotations

import collections
import gc
import types
from typing import Any

__all__ = ["adopt"]

#: What is looked at, nearest first: a default value may refer to the whole program.
LOOKED_AT_MAX = 10_000


def adopt(old: type, new: type) -> None:
    """Put `new` into each cell of its functions that has `old`."""
    if old is new:
        return
    # Kept, as an id is another's when its object has gone.
    seen: dict[int, Any] = {}
    waiting = collections.deque(vars(new).values())
    while waiting and len(seen) < LOOKED_AT_MAX:
        thing = waiting.popleft()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, types.CellType):
            try:
                contents = thing.cell_contents
            except ValueError:  # a name that has no value yet
                continue
            if contents is old:
                thing.cell_contents = new
            else:
                waiting.append(contents)
        elif isinstance(thing, types.FunctionType):
            # Not its globals, which are the program. Cells first: they are what is looked for.
            waiting.extend(vars(thing).values())
            waiting.extendleft(thing.__closure__ or ())
        elif not isinstance(thing, type | types.ModuleType | types.CodeType | str | bytes | int):
            for found in gc.get_referents(thing):
                if isinstance(found, types.FunctionType | types.CellType):
                    waiting.appendleft(found)
                else:
                    waiting.append(found)
