"""Is the installed wheel whole? Run by an interpreter that has nothing but the wheel:

python -I smoke.py
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path, PurePath

import rabble


class Counter(rabble.Process):
    def __init__(self) -> None:
        self.total = 0

    def receive(self, msg, sender, correlation_id):
        if isinstance(msg, int):
            self.total += msg
            return None
        return rabble.Envelope(sender, self.total, correlation_id=correlation_id)


def check_place() -> None:
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    assert str(Path(rabble.__file__).parent.parent) in installed, rabble.__file__


def check_files() -> None:
    files = [PurePath(file) for file in importlib.metadata.files("rabble") or []]
    names = {str(file) for file in files}
    assert "rabble/py.typed" in names
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    compiled = [file for file in files if file.name.endswith(suffix)]
    assert compiled, "no compiled module"
    for file in compiled:
        module = file.name.removesuffix(suffix)
        assert f"rabble/_core/{module}.pyi" in names, module
        assert f"rabble/_core/{module}.pxd" in names, module
        importlib.import_module(f"rabble._core.{module}")
    assert not [file for file in files if file.suffix in (".pyx", ".c")]


def check_node() -> None:
    with rabble.rouse() as node:
        counter = node.spawn(Counter(), "counter")
        for number in range(1, 1_001):
            node.send(counter, number)
        assert node.call(counter, "total") == 500_500


def check_command() -> None:
    command = Path(sysconfig.get_path("scripts"), "rabble")
    done = subprocess.run([command, "version"], check=True, capture_output=True, text=True)
    assert importlib.metadata.version("rabble") in done.stdout, done.stdout


if __name__ == "__main__":
    check_place()
    check_files()
    check_node()
    check_command()
    version = importlib.metadata.version("rabble")
    print(f"rabble {version} on Python {sys.version.split()[0]}: whole")
