"""What is measured in an interpreter that does nothing else."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["COMMAND", "alone"]

#: Not with -m: the package imports these modules itself.
COMMAND = "import importlib, sys; importlib.import_module(sys.argv[1]).main(*sys.argv[2:])"


def alone(module: str, *arguments: object, patience_s: float) -> str:
    """What a module's `main` prints there.

    :raises RuntimeError: if it fails, with what it had to say.
    """
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=patience_s,
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr}")
    return done.stdout
