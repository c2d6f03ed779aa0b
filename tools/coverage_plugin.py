"""A plug-in for coverage: Cython's own, which lets go of the GIL nowhere.

Cython's asks Python code for every call and every line of a .pyx file, and so does coverage itself
for its lock; and a thread that runs Python code may lose the GIL. But the GIL is the lock of the
core: what that does between two calls into the interpreter no other thread may see half-done, and
so one does, and crashes. So here C answers.
"""

from __future__ import annotations

import gc
import operator
from pathlib import Path
from typing import Any

import Cython.Coverage
from coverage.collector import Collector
from coverage.plugin import FileTracer
from Cython.Coverage import CythonModuleReporter

CORE = Path(__file__).resolve().parent.parent / "src" / "rabble" / "_core"


class Lines(FileTracer):
    """Where the lines of one source file are counted."""

    #: Asked with the frame, for every line: from which line to which it goes.
    line_number_range = operator.attrgetter("f_lineno", "f_lineno")

    def __init__(self, source: Path) -> None:
        self._source = source

    def source_filename(self) -> str:
        return str(self._source)


def acquire_of(collector: Any) -> Any:
    """What takes the lock of what was collected: the lock's own method, without one around it.

    Who takes it that way lets go of it before another thread runs, so nobody ever waits for it.
    """
    return collector.data_lock.acquire


def release_of(collector: Any) -> Any:
    return collector.data_lock.release


class Plugin(Cython.Coverage.Plugin):
    """Knows the sources of the core, and reports on them as Cython's plug-in does."""

    def file_tracer(self, filename: str) -> FileTracer | None:
        path = Path(filename)
        return Lines(path) if path.parent == CORE and path.suffix in (".pyx", ".pxd") else None

    def file_reporter(self, filename: str) -> Any:
        if not filename.endswith(".pxd"):
            return super().file_reporter(filename)
        # Its code is in the modules that cimport it. Cython's plug-in looks for it in the one of
        # its name, and takes what others have of it for theirs.
        suffix = f"/{CORE.name}/{Path(filename).name}"
        code: dict[int, str] = {}
        excluded: set[int] = set()
        for c_file in map(str, CORE.glob("*.c")):
            self._read_source_lines(c_file, filename)
            for name, lines in self._parsed_c_files[c_file].items():
                if name.endswith(suffix):
                    # The line that names a function never is one that runs.
                    code |= {n: text for n, text in lines.items() if "cdef inline" not in text}
                    excluded |= self._excluded_lines_map.get(name, frozenset())
        return CythonModuleReporter(str(CORE), filename, filename, code, excluded)


def coverage_init(registry: Any, options: Any) -> None:
    """What coverage calls."""
    plugin = Plugin()
    registry.add_configurer(plugin)
    registry.add_file_tracer(plugin)
    Collector.lock_data = property(acquire_of)
    Collector.unlock_data = property(release_of)
    # The frames that tracing makes are objects of the garbage collector, which before Python 3.12
    # runs when one is made, and with it Python code of others. The tests collect by themselves.
    gc.set_threshold(0)
