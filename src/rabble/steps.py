"""What a thread of the runtime does: steps, each of which is taken whatever the others raise."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Step", "take_steps"]

#: Returns True if no step may follow it.
Step = Callable[[], "bool | None"]


def take_steps(failed: Callable[[BaseException], None], *steps: Step) -> None:
    """Take one step after the other. The target of each thread that a node cannot do without.

    What a step raises is told to `failed`, which makes the node a failed one, and the step is taken
    once more: then all that has come to its end, or that follows from the failure, is over at once,
    and what is to be let go of is let go of although the memory was exhausted just then, say.

    :param failed: called with what a step raised; what it raises itself is ignored.
    """
    for step in steps:
        try:
            if step():
                return
        except BaseException as error:
            try:
                failed(error)
            except BaseException:
                pass
            try:
                if step():
                    return
            except BaseException as again:
                try:
                    failed(again)
                except BaseException:
                    pass
