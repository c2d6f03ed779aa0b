"""What happens when there is no memory: each allocation fails once, and many in a row.

CPython's own `_testcapi.set_nomemory` makes allocations of all its domains fail, `PyMem_Raw*` too,
which the core's buffers are of. So no allocation of the core's is left out. For a script of its
own process (`tests.isolated.script.run`), as forked children may print what they die of:

    run('''
        from tests.isolated.nomemory import without_memory

        def begin():            # makes what is used; memory is there
            return TimerWheel()

        def attempt(wheel):     # runs while memory fails; may raise MemoryError
            wheel.start(None, None, 5)

        def check(wheel):       # memory is back: all must be consistent, and is dropped then
            assert wheel.clear() in (0, 1)

        without_memory(begin, attempt, check)
    ''')

For n = 0, 1, 2 ... the n-th allocation of `attempt` fails, alone and with the 39 behind it, until
it needs so few that none failed with all from the n-th on failing, or for `most` of them: what
swallows a MemoryError, as an executor does, has to say so many. Each attempt is made in a forked
child: it must end by itself, in time, and `attempt` by returning or by MemoryError. All that
are not are told together, as `n+burst: how`.
"""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["BURSTS", "available", "without_memory"]

#: How many allocations in a row fail. 0 is all from the n-th on, which also tells when to end.
BURSTS = (1, 40, 0)

#: Seconds that one attempt may take; far more than it needs, since a machine may stall.
ATTEMPT_S = 60

#: How a child ends: as `attempt` did, or wrongly, which it has explained.
RETURNED, RAISED, WRONG = 0, 3, 4


def available() -> bool:
    """Whether this Python has `_testcapi`: those of some distributions have not."""
    try:
        import _testcapi  # type: ignore[import-not-found]
    except ImportError:
        return False
    return hasattr(_testcapi, "set_nomemory")


def without_memory(
    begin: Callable[[], Any],
    attempt: Callable[[Any], object],
    check: Callable[[Any], object] = lambda state: None,
    *,
    most: int | None = None,
    step: int = 1,
    allowed: tuple[type[BaseException], ...] = (MemoryError,),
) -> int:
    """Try `attempt` with each allocation failing; see the module's docstring.

    :param most: of how many allocations each fails once; None: of all that are needed.
    :param step: only every so manieth, where there are very many.
    :param allowed: what `attempt` may raise.
    :returns: of how many allocations each failed.
    :raises AssertionError: says which failures were not borne, and how that ended.
    """
    # What is made when first used, constants and caches, is there afterwards.
    state = begin()
    attempt(state)
    check(state)
    del state
    wrong: list[str] = []
    n = 0
    while most is None or n < most:
        needs_more = True
        for burst in BURSTS:
            status = _in_child(begin, attempt, check, n, burst, allowed)
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                how = "it hangs" if number == signal.SIGALRM else signal.Signals(number).name
                wrong.append(f"{n}+{burst}: {how}")
            elif os.WEXITSTATUS(status) not in (RETURNED, RAISED):
                wrong.append(f"{n}+{burst}: it ended by {os.WEXITSTATUS(status)}")
            elif burst == 0:
                needs_more = os.WEXITSTATUS(status) == RAISED
        n += step
        if most is None and not needs_more:
            break
    assert not wrong, f"{len(wrong)} failures were not borne: {', '.join(wrong[:20])}"
    return n


def _in_child(
    begin: Callable[[], Any],
    attempt: Callable[[Any], object],
    check: Callable[[Any], object],
    n: int,
    burst: int,
    allowed: tuple[type[BaseException], ...],
) -> int:
    """Make one attempt in a child; the status by which that ended."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = WRONG
    try:
        # The default action: Python's own handler would need a memory that is not there.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(ATTEMPT_S)
        code = _attempt(begin(), attempt, check, n, burst, allowed)
        gc.collect()
    except BaseException:
        print(f"{n}+{burst}:", flush=True)
        traceback.print_exc()
    finally:
        os._exit(code)


def _attempt(
    state: Any,
    attempt: Callable[[Any], object],
    check: Callable[[Any], object],
    n: int,
    burst: int,
    allowed: tuple[type[BaseException], ...],
) -> int:
    from _testcapi import remove_mem_hooks, set_nomemory

    code = RETURNED
    unexpected = None
    set_nomemory(n, n + burst if burst else 0)
    try:
        attempt(state)
    except allowed:
        code = RAISED
    except BaseException as error:
        unexpected = error
    finally:
        # Needs no memory itself.
        remove_mem_hooks()
    if unexpected is not None:
        raise unexpected
    check(state)
    return code
