"""The build of the compiled core: one extension for each .pyx file of src/rabble/_core.

The environment chooses the kind of build, and may choose several at once; without any of these it is
the release build:

RABBLE_DEBUG=1           no optimisation, bounds and None checks, asserts and live-object counters
RABBLE_LINETRACE=1       line tracing, for coverage; the C files lie beside their sources
RABBLE_TINY=1            every capacity of src/rabble/_core/capacities.pxd its smallest; asserts on
RABBLE_SANITIZE=LIST     `address,undefined` or either; asserts on
RABBLE_NO_EXTENSIONS=1   no compiling at all: `make` registers the package, then builds in place
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SANITIZERS = {"address", "undefined"}
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "nonecheck": False,
    "cdivision": True,
    # A method that Cython "binds" takes any object for its self, unasked: Inbox.arm(5) would crash.
    # Descriptors of the interpreter's own kind ask. What they take is told as builtins tell it.
    "binding": False,
    # What Cython makes up for pickling trusts whatever it is given; who can be pickled says how.
    "auto_pickle": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",
}


def switch(name):
    return os.environ.get(name, "") not in ("", "0")


DEBUG = switch("RABBLE_DEBUG")
LINETRACE = switch("RABBLE_LINETRACE")
TINY = switch("RABBLE_TINY")
SANITIZE = sorted(filter(None, os.environ.get("RABBLE_SANITIZE", "").split(",")))
NO_EXTENSIONS = switch("RABBLE_NO_EXTENSIONS")
CHOSEN = ["debug"] * DEBUG + ["linetrace"] * LINETRACE + ["tiny"] * TINY + SANITIZE
VARIANT = "-".join(CHOSEN) or "release"


def check_machine():
    """Say plainly what is missing, before a compiler says it in a hundred lines."""
    if not sys.platform.startswith("linux"):
        sys.exit(
            f"rabble runs on Linux only (this is {sys.platform}): "
            "its core uses epoll and eventfd, which this system does not have."
        )
    unknown = set(SANITIZE) - SANITIZERS
    if unknown:
        sys.exit(
            f"RABBLE_SANITIZE={os.environ['RABBLE_SANITIZE']!r}: {', '.join(sorted(unknown))} "
            f"is not known; allowed are {', '.join(sorted(SANITIZERS))}, joined by commas."
        )


def check_headers():
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        sys.exit(
            f"Building rabble needs Python's headers, and {header} does not exist. "
            f"Install them (on Debian: python3-dev) or use a Python that brings them."
        )


def compile_arguments():
    if SANITIZE:
        return [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            f"-fsanitize={','.join(SANITIZE)}",
            "-fno-sanitize-recover=all",
        ]
    if DEBUG:
        return ["-O0", "-g3"]
    if LINETRACE or TINY:
        return ["-O1"]
    return ["-O3"]


def macros():
    chosen = []
    if DEBUG:
        chosen.append(("RABBLE_DEBUG", "1"))
    if TINY:
        chosen.append(("RABBLE_TINY", "1"))
    if DEBUG or SANITIZE or TINY:
        # Without free lists each object comes from its type's tp_alloc and goes through its
        # tp_free: where the counters are, and where the sanitizer, or Python's own allocator with
        # its checks on, sees what is used after its end.
        chosen.append(("CYTHON_USE_FREELISTS", "0"))
    if LINETRACE:
        chosen.append(("CYTHON_TRACE_NOGIL", "1"))
    if VARIANT == "release":
        chosen.append(("CYTHON_WITHOUT_ASSERTIONS", "1"))
    return chosen


def extensions():
    return [
        Extension(
            ".".join(source.relative_to("src").with_suffix("").parts),
            [str(source)],
            depends=["setup.py"],
            define_macros=macros(),
            extra_compile_args=compile_arguments(),
            extra_link_args=[f"-fsanitize={','.join(SANITIZE)}"] if SANITIZE else [],
        )
        for source in sorted(Path("src/rabble/_core").glob("*.pyx"))
    ]


class BuildExt(build_ext):
    """Translates when compiling starts, so that an sdist or a metadata build needs no Cython."""

    def finalize_options(self):
        from Cython.Build import cythonize

        check_headers()
        # The compiler's time stamps know of changed sources only: another kind of build in the
        # same place, or another setup.py, has to be told.
        self._last = Path("build", f"last-{sys.implementation.cache_tag}")
        if not self._last.exists() or self._last.read_text() != VARIANT:
            self.force = True
        c_folder = None if LINETRACE else Path("build", f"cython-{VARIANT}")
        translated = list((c_folder or Path("src")).rglob("*.c"))
        changed = Path("setup.py").stat().st_mtime
        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules,
            build_dir=str(c_folder) if c_folder else None,
            force=any(file.stat().st_mtime < changed for file in translated),
            nthreads=os.cpu_count() or 1,
            quiet=True,
            compiler_directives={
                **DIRECTIVES,
                "boundscheck": DEBUG,
                "initializedcheck": DEBUG,
                "nonecheck": DEBUG,
                "linetrace": LINETRACE,
            },
        )
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        super().run()
        self._last.parent.mkdir(exist_ok=True)
        self._last.write_text(VARIANT)


# Where processes are not forked (from Python 3.14 on) those in which cythonize translates begin by
# importing this file.
if __name__ == "__main__":
    check_machine()
    setup(
        ext_modules=[] if NO_EXTENSIONS else extensions(),
        cmdclass={"build_ext": BuildExt},
    )
