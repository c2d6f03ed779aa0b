"""Builds and tests a variant of the core (debug, asan, tiny, coverage) in a copy of the tree.

    python tools/variant.py NAME [PYTEST ARGUMENT...]
    python tools/variant.py fuzz TARGET [ARGUMENT OF tests.fuzz...]

The copy is build/NAME; fuzz runs on that of asan. It is kept and brought up to date, so that only
what changed is compiled again, and the release build beside the sources stays what it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "__pycache__", "*.so", "*.c", "*.egg-info", ".*_cache",
    ".hypothesis", ".benchmarks", ".coverage*",
)  # fmt: skip
SWITCHES = {
    "debug": {"RABBLE_DEBUG": "1"},
    "asan": {"RABBLE_SANITIZE": "address,undefined"},
    "tiny": {"RABBLE_TINY": "1"},
    "tiny-asan": {"RABBLE_TINY": "1", "RABBLE_SANITIZE": "address,undefined"},
    "coverage": {"RABBLE_LINETRACE": "1"},
    "fuzz": {"RABBLE_SANITIZE": "address,undefined"},
}
#: What chooses no build, but how the nodes of a run are: handed on.
HANDED_ON = {"RABBLE_FRAGMENT_BYTES", "RABBLE_SWITCH_INTERVAL"}
#: The smallest capacities meet a thread switch at every chance (tests/conftest.py sets it).
RESTLESS = {"RABBLE_SWITCH_INTERVAL": "0.000001"}


def sync(source: Path, target: Path) -> None:
    """Make target hold what source holds, touching only what differs."""
    target.mkdir(parents=True, exist_ok=True)
    names = {entry.name for entry in source.iterdir()}
    names -= set(LEFT_OUT(str(source), sorted(names)))
    for name in names:
        if (source / name).is_dir():
            sync(source / name, target / name)
        else:
            copy_if_changed(source / name, target / name)
    gone = {entry.name for entry in target.iterdir()} - names
    for name in gone - set(LEFT_OUT(str(target), sorted(gone))):
        drop(target / name)


def copy_if_changed(source: Path, target: Path) -> None:
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)
        shutil.copymode(source, target)


def drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
        return
    path.unlink()
    if path.suffix == ".pyx":
        for made in [path.with_suffix(".c"), *path.parent.glob(f"{path.stem}.*.so")]:
            made.unlink(missing_ok=True)


def sanitizer_environment() -> dict[str, str]:
    """What a Python that was not built with the sanitizers needs to load modules that were."""
    compiler = os.environ.get("CC", "gcc").split()
    # The C++ library has to be there before others bring it, or a C++ exception of theirs aborts.
    libraries = [
        subprocess.run(
            [*compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not os.path.isabs(libraries[0]):
        sys.exit(f"{compiler[0]} has no libasan.so: install the sanitizer runtime of your compiler")
    return {
        "LD_PRELOAD": " ".join(filter(os.path.isabs, libraries)),
        # The interpreter leaves much to the process's end; leaks are the business of other tests.
        # And what nobody can have is a MemoryError, as everywhere.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        # Python's own allocator would hide what is freed and used again.
        "PYTHONMALLOC": "malloc",
    }


def main(name: str, arguments: list[str]) -> int:
    tree = ROOT / "build" / ("asan" if name == "fuzz" else name)
    sync(ROOT, tree)
    base = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("RABBLE_") or key in HANDED_ON
    }
    # An environment for each copy of the tree would take longer than it tells anything of the core.
    environment = {**base, "PYTHONPATH": str(tree / "src"), "RABBLE_RECIPES": "no"}

    def run(*command: str, **more: str) -> int:
        print("+", " ".join(command), f"(in build/{tree.name})", flush=True)
        argv = [sys.executable, *command]
        return subprocess.run(argv, cwd=tree, env={**environment, **more}).returncode

    failed = run("setup.py", "--quiet", "build_ext", "--inplace", **SWITCHES[name])
    if failed:
        return failed
    if name == "debug":
        return run("-X", "dev", "-m", "pytest", *arguments)
    patient = ("--timeout=600", "-o", "faulthandler_timeout=500")
    restless = RESTLESS if name.startswith("tiny") else {}
    if name == "tiny":
        # Python's allocator overwrites what is freed: to use it afterwards does not go unseen.
        run_with = {**restless, "PYTHONMALLOC": "debug"}
        return run("-m", "pytest", *patient, *arguments, **run_with)
    if name in ("asan", "tiny-asan"):
        # A report ends the process: were its file descriptor captured, nobody would see it.
        run_with = {**restless, **sanitizer_environment()}
        return run("-m", "pytest", "--capture=sys", *patient, *arguments, **run_with)
    if name == "fuzz":
        return run("-m", "tests.fuzz", *arguments, **sanitizer_environment())
    run("-m", "coverage", "erase")
    # What faulthandler shows of threads that run it reads without their lock: traced, that crashes.
    blind = ("--timeout=600", "-o", "faulthandler_timeout=0")
    failed = run("-m", "coverage", "run", "-m", "pytest", *blind, *arguments)
    run("-m", "coverage", "combine", "--quiet")
    return run("-m", "coverage", "report") or failed


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SWITCHES:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(SWITCHES)} [ARGUMENT...]")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
