"""The virtual environment of the recipes: made once for a list of packages, then kept."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
KEPT = ROOT / "build" / "recipes-env"
#: `required`: where the packages cannot be had a test fails; it is skipped otherwise. `no`: it is
#: skipped in any case, and nothing is installed.
WANTED = os.environ.get("RABBLE_RECIPES", "")
#: Seconds that installing may take; a slow network has its time.
INSTALL_S = 600


class Unavailable(Exception):
    """The packages cannot be had; says why."""


def python() -> str:
    """The interpreter that has what the recipes need, and rabble as it is built in this tree.

    Skips the test, or fails it, where there is none.
    """
    if WANTED == "no":
        pytest.skip("RABBLE_RECIPES=no")
    found = once_made()
    if isinstance(found, Path):
        return str(found / "bin" / "python")
    text = f"the packages of {REQUIREMENTS.relative_to(ROOT)} cannot be had: {found}"
    if WANTED == "required":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@functools.cache
def once_made() -> Path | Unavailable:
    """What `made` gives or raises: what cannot be had is not tried by each test anew."""
    try:
        return made()
    except Unavailable as error:
        return error


def made() -> Path:
    """The environment; made if there is none yet, by one process at a time.

    :raises Unavailable: if it cannot be made.
    """
    said = f"{sys.version}\n{sys.prefix}\n{ROOT}\n{REQUIREMENTS.read_text()}"
    folder = KEPT / hashlib.sha256(said.encode()).hexdigest()[:16]
    complete = folder / "complete"
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            complete.touch()
    return folder


def install(folder: Path) -> None:
    """Make the environment."""
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    inside = folder / "bin" / "python"
    # With the pip that is here: to install another one takes longer than all the rest. Only what is
    # built already, as a compiler would run for minutes.
    pip = (sys.executable, "-m", "pip", "--python", str(inside), "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--only-binary", ":all:", "-r", str(REQUIREMENTS))
    (site,) = folder.glob("lib/python*/site-packages")
    # The core is built in place, so this is all there is to install.
    (site / "rabble.pth").write_text(f"{ROOT / 'src'}\n")


def run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command)} took more than {INSTALL_S} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(said[-1] if said else f"{command[0]} ended with {done.returncode}")
