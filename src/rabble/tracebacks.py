"""Exceptions as the log has them: as a bounded text, and as a copy that holds nothing.

A record that a handler keeps would otherwise keep the exception, its frames, and with them the
process, the message and the node.
"""

from __future__ import annotations

import builtins
import collections
import traceback
from types import CodeType, TracebackType
from typing import Any

from rabble._core.errors import Interrupted
from rabble._core.texts import bounded_str, type_name
from rabble._core.tracebacks import traceback_entry
from rabble.texts import ARGUMENT_CHARS_MAX, TEXT_CHARS_MAX, cut, described, text_of

__all__ = ["REPORT_CHARS_MAX", "detached", "own_part", "traceback_text"]

LINE_CHARS_MAX = 1_000
REPORT_CHARS_MAX = 65_536
FRAMES_MAX = 50
#: Of the exceptions that led to one, and of those in a group, each with all that hangs on it.
CHAIN_MAX = 8
GROUP_MAX = 8
GROUP_DEPTH_MAX = 3
NOTES_MAX = 8

CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"
#: Where the core calls `receive`, and looks at what it returned.
DELIVERY = ("_core/executor.pyx", "_core/admission.pyx", "rabble/strict.py")
#: Exceptions of one copy, in all chains and groups.
COPIES_MAX = 32
#: Whose instances can be made without running anything of a program's.
BUILTINS = tuple(
    value
    for value in vars(builtins).values()
    if isinstance(value, type)
    and issubclass(value, BaseException)
    and not issubclass(value, BaseExceptionGroup)
)

#: The copies by the identity of what they are copies of; `None` of one that is being made.
Copies = dict[int, BaseException | None]


def attribute(error: object, name: str, base: type = BaseException) -> Any:
    """What the interpreter keeps for each exception, whatever its class has under that name."""
    return base.__dict__[name].__get__(error)


def own_part(error: BaseException) -> TracebackType | None:
    """A traceback without the frames of the core's delivery that it begins with."""
    trace: TracebackType | None = attribute(error, "__traceback__")
    while trace is not None and trace.tb_frame.f_code.co_filename.endswith(DELIVERY):
        trace = trace.tb_next
    return trace


def traceback_text(error: BaseException) -> str:
    """An exception with its traceback, much as the interpreter prints it; bounded.

    `traceback` would ask the exception for its text without a bound, walk along all that led to it,
    and look through the attributes of the user's objects for one of a similar name.
    """
    try:
        text = "".join(chain_lines(error, set(), 0))
    except Interrupted:
        raise
    except BaseException as failure:
        text = f"a {described(error)}; formatting it failed: {described(failure)}"
    return cut(text.rstrip(), REPORT_CHARS_MAX)


def chain_lines(error: BaseException, seen: set[int], depth: int) -> list[str]:
    """An exception after those that led to it."""
    chain: list[list[str]] = []
    current: BaseException | None = error
    link = ""
    while current is not None and id(current) not in seen:
        if len(chain) == CHAIN_MAX:
            chain.append([f"... and what led to that\n{link}"])
            break
        seen.add(id(current))
        chain.append([*error_lines(current, seen, depth), link])
        cause: BaseException | None = attribute(current, "__cause__")
        if cause is not None:
            current, link = cause, CAUSE
        elif attribute(current, "__suppress_context__"):
            current = None
        else:
            current, link = attribute(current, "__context__"), CONTEXT
    return [line for part in reversed(chain) for line in part]


def error_lines(error: BaseException, seen: set[int], depth: int) -> list[str]:
    """One exception: its traceback, its text, its notes, and what is in it if it is a group."""
    lines = []
    trace = own_part(error)
    if trace is not None:
        lines.append("Traceback (most recent call last):\n")
        # The latest calls: an endless recursion has a thousand.
        stack = traceback.extract_tb(trace, limit=-FRAMES_MAX)
        if len(stack) == FRAMES_MAX:
            lines.append(f"  ... of which these are the last {FRAMES_MAX}\n")
        lines += [cut(line, LINE_CHARS_MAX) for line in stack.format()]
    lines.append(f"{described(error)}\n")
    lines += [f"{note}\n" for note in notes_of(error)]
    # Not isinstance, which asks the exception for its class.
    if issubclass(type(error), BaseExceptionGroup) and depth < GROUP_DEPTH_MAX:
        parts = attribute(error, "exceptions", BaseExceptionGroup)
        for part in parts[:GROUP_MAX]:
            text = "".join(chain_lines(part, seen, depth + 1)) or "(as above)"
            lines += [f"  | {line}\n" for line in text.rstrip().splitlines()]
            lines.append("  +--\n")
        if len(parts) > GROUP_MAX:
            lines.append(f"  and {len(parts) - GROUP_MAX} more\n")
    return lines


def detached(error: BaseException) -> BaseException | None:
    """A copy of an exception to be kept: nothing that the program made hangs on it.

    It has the name, module, text and notes of the exception, the files, functions and lines of its
    traceback, and copies of those that led to it and of those in it: all bounded as in
    `traceback_text`. Its class is derived from the first class of Python's own that the
    exception's is derived from, its frames never ran and have no variables. `None` if no copy can
    be made.
    """
    try:
        return copied(error, {}, 0)
    except Interrupted:
        raise
    except BaseException:
        # There is no memory, say; the text is made without it.
        return None


def copied(error: BaseException, copies: Copies, depth: int) -> BaseException | None:
    """The copy of an exception, and of those that it leads to; `None` beyond the bounds."""
    if id(error) in copies:
        return copies[id(error)]
    if depth == CHAIN_MAX or len(copies) == COPIES_MAX:
        return None
    # Counted before those in it.
    copies[id(error)] = None
    copies[id(error)] = copy = bare_copy(error, copies, depth)
    cause: BaseException | None = attribute(error, "__cause__")
    context: BaseException | None = attribute(error, "__context__")
    if cause is not None:
        copy.__cause__ = copied(cause, copies, depth + 1)
    elif context is not None and not attribute(error, "__suppress_context__"):
        copy.__context__ = copied(context, copies, depth + 1)
    copy.__suppress_context__ = attribute(error, "__suppress_context__")
    for note in notes_of(error):
        copy.add_note(note)
    return copy.with_traceback(copied_traceback(own_part(error)))


def bare_copy(error: BaseException, copies: Copies, depth: int) -> BaseException:
    """The copy of an exception without its traceback and what led to it."""
    kind = type(error)
    text = text_of(error)
    namespace: dict[str, Any] = {
        "__module__": short(attribute(kind, "__module__", type)),
        "__qualname__": short(attribute(kind, "__qualname__", type)),
        "__str__": lambda copy: text,
    }
    copy: Any = None
    if issubclass(type(error), BaseExceptionGroup) and depth < GROUP_DEPTH_MAX:
        parts = [
            part
            for each in attribute(error, "exceptions", BaseExceptionGroup)[:GROUP_MAX]
            if (part := copied(each, copies, depth + 1)) is not None
        ]
        if parts:
            group: Any = ExceptionGroup if issubclass(kind, ExceptionGroup) else BaseExceptionGroup
            copy = group.__new__(type(type_name(error), (group,), namespace), text, parts)
    if copy is None:
        # A list: what an exception that comes from outside does in a generator is lost.
        bases = [
            known
            for each in attribute(kind, "__mro__", type)
            for known in BUILTINS
            if each is known
        ]
        known = bases[0]
        # By `__new__` alone: what a class of Python's own is made with differs from class to class.
        copy = known.__new__(type(type_name(error), (known,), namespace))
        copy.args = (text,)
    if isinstance(copy, SyntaxError):
        # Which Python prints in place of the text.
        copy.msg = text
    made: BaseException = copy
    return made


def copied_traceback(trace: TracebackType | None) -> TracebackType | None:
    """The same places, the last `FRAMES_MAX` of them, of frames that never ran."""
    places: collections.deque[TracebackType] = collections.deque(maxlen=FRAMES_MAX)
    while trace is not None:
        places.append(trace)
        trace = trace.tb_next
    copy: TracebackType | None = None
    for place in reversed(places):
        code = place.tb_frame.f_code
        line = place.tb_lineno or code.co_firstlineno
        # Of the module's variables the name, by which tools tell whose code it is.
        module = place.tb_frame.f_globals.get("__name__")
        copy = traceback_entry(copy, bare_code(code, line), {"__name__": short(module)}, line)
    return copy


def bare_code(code: CodeType, line: int) -> CodeType:
    """A function of the same name in the same file, which does nothing."""
    return (lambda: None).__code__.replace(
        co_filename=cut(code.co_filename, LINE_CHARS_MAX),
        co_name=cut(code.co_name, LINE_CHARS_MAX),
        co_qualname=cut(code.co_qualname, LINE_CHARS_MAX),
        co_firstlineno=line,
    )


def notes_of(error: BaseException) -> list[str]:
    """The notes of an exception, bounded; none if they cannot be had."""
    try:
        notes = vars(error).get("__notes__")
    except Interrupted:
        raise
    except BaseException:
        return []
    if type(notes) is not list:
        return []
    return [bounded_str(note, TEXT_CHARS_MAX) for note in notes[:NOTES_MAX]]


def short(name: object) -> str:
    """A name, if it is one."""
    return cut(name, ARGUMENT_CHARS_MAX) if type(name) is str else "?"
