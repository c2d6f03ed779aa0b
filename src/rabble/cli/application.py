"""The application of `rabble node`: found by its name, called with the node, ended."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, TracebackType
from typing import Any

from rabble.cli.node_settings import SettingsError
from rabble.cli.output import complain
from rabble.cli.status import FAILED
from rabble.errors import RabbleError
from rabble.node import Node
from rabble.process import Process
from rabble.texts import argument_text, text_of
from rabble.tracebacks import attribute, traceback_text

__all__ = ["AppError", "Application"]

#: Whose frames are above those of the application.
OWN_FILES = (__file__, contextlib.__file__, importlib.__file__)

NO_LOOP = (
    "rabble node runs no event loop. Write a plain function: it may start a thread that runs one, "
    "and return a function that ends it."
)
ALLOWED = "It may return None, a function to call at the end, or a context manager."


class AppError(RabbleError):
    """The application raised, which is the cause; or it returned what cannot be used."""

    def show(self) -> int:
        """Say it on standard error.

        :returns: the exit status: 1, or what the application itself asked for by `SystemExit`.
        """
        error = self.__cause__
        text, status = str(self), FAILED
        if isinstance(error, SystemExit):
            code = error.code
            status = code if isinstance(code, int) else 0 if code is None else FAILED
            what = f"status {status}" if code is None or isinstance(code, int) else text_of(error)
            text = f"{text}, to exit: {what}"
        elif error is not None:
            text = f"{text}:\n{traceback_text(without_own_frames(error))}"
        complain(f"rabble node: {text}")
        return status


class Application:
    """What `--app` names. A context manager once it has begun.

    :param named: `module:function`.
    :raises SettingsError: if there is no such function, or it is of a kind that cannot be used.
    :raises AppError: if importing the module raised.
    """

    def __init__(self, named: str) -> None:
        self.named = named
        self._at_end = contextlib.ExitStack()
        module_name, colon, path = named.partition(":")
        if not colon or not module_name or not path:
            raise SettingsError(
                f"--app {named}: write it as MODULE:FUNCTION, such as shop.main:start"
            )
        if "/" in module_name or module_name.startswith(".") or module_name.endswith(".py"):
            raise SettingsError(
                f"--app {named}: write the module as in an import, such as shop.main, not as a file"
            )
        self._function = self._find(self._import(module_name), path)

    def _import(self, name: str) -> ModuleType:
        with contextlib.suppress(OSError):
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
        with self._blamed("raised when its module was imported"):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                # The one that was asked for, or a package that it is in.
                if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                    raise
                missing = error.name
        raise SettingsError(
            f"--app {self.named}: there is no module {missing}, neither in the current directory "
            "nor where Python looks (PYTHONPATH)"
        )

    def _find(self, module: ModuleType, path: str) -> Callable[[Node], Any]:
        found: Any = module
        for part in path.split("."):
            with self._blamed("raised when it was looked for"):
                names = [name for name in dir(found) if not name.startswith("_")]
                inside, found = found, getattr(found, part, self)
            if found is self:
                near = difflib.get_close_matches(part, names, n=1)
                hint = f". Did you mean {near[0]}?" if near else ""
                where = module.__name__ if inside is module else argument_text(inside)
                raise SettingsError(f"--app {self.named}: {where} has no function {part}{hint}")
        if isinstance(found, type) and issubclass(found, Process):
            raise SettingsError(
                f"--app {self.named}: {path} is a class of processes. Name a function that is "
                "called with the node, and spawns them"
            )
        if not callable(found):
            raise SettingsError(
                f"--app {self.named}: {path} is no function, but {argument_text(found)}"
            )
        if is_async(found):
            raise SettingsError(f"--app {self.named}: {path} is async, and {NO_LOOP}")
        if inspect.isgeneratorfunction(found):
            raise SettingsError(
                f"--app {self.named}: {path} is a generator. Decorate it with "
                "contextlib.contextmanager"
            )
        function: Callable[[Node], Any] = found
        return function

    def begin(self, node: Node) -> Application:
        """Call it with the node; enter what it returned, if that is a context manager.

        :raises AppError: if it raised, or returned what cannot be used.
        """
        with self._blamed("raised"):
            returned = self._function(node)
        if returned is None:
            return self
        kind = type(returned)
        if hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
            with self._blamed("raised"):
                self._at_end.enter_context(returned)
        elif inspect.isawaitable(returned) or hasattr(kind, "__aenter__"):
            raise AppError(f"--app {self.named} returned {taken_back(returned)}, and {NO_LOOP}")
        elif callable(returned):
            if is_async(returned):
                raise AppError(
                    f"--app {self.named} returned a function for the end that is async, "
                    f"and {NO_LOOP}"
                )
            self._at_end.callback(self._end, returned)
        else:
            raise AppError(f"--app {self.named} returned {argument_text(returned)}. {ALLOWED}")
        return self

    def _end(self, function: Callable[[], Any]) -> None:
        returned = function()
        if inspect.isawaitable(returned):
            raise AppError(
                f"--app {self.named}: its end returned {taken_back(returned)}, which was not "
                f"awaited: {NO_LOOP}"
            )

    def __enter__(self) -> Application:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it.

        :raises AppError: if its end raised.
        """
        with self._blamed("raised at its end"):
            self._at_end.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        try:
            yield
        except AppError:
            raise
        except BaseException as error:
            raise AppError(f"--app {self.named} {what}") from error


def is_async(function: object) -> bool:
    """Whether calling it gives what an event loop would have to run."""
    call = inspect.getattr_static(type(function), "__call__", None)
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, call)
    )


def taken_back(returned: Any) -> str:
    """The name of something to be awaited that will not be, and of which nobody is to be warned."""
    if inspect.iscoroutine(returned):
        returned.close()
        return "a coroutine"
    if hasattr(type(returned), "__aenter__"):
        return "an asynchronous context manager"
    return argument_text(returned)


def without_own_frames(error: BaseException) -> BaseException:
    """The error, whose traceback begins with the application."""
    trace: TracebackType | None = attribute(error, "__traceback__")
    while trace is not None and is_own(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return BaseException.with_traceback(error, trace)


def is_own(file: str) -> bool:
    """Whether that is rabble, or what it imports and enters an application with."""
    return file in OWN_FILES or file.startswith("<frozen importlib")
