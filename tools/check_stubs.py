"""Checks that every hand-written .pyi of the compiled core tells what its module really has."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src" / "rabble" / "_core"


def main() -> int:
    sources = {path.stem for path in CORE.glob("*.pyx")}
    missing = sorted(sources - {path.stem for path in CORE.glob("*.pyi")})
    if missing:
        print("no stub for: " + ", ".join(f"rabble._core.{name}" for name in missing))
        return 1
    return subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", "--concise"),
            *("--mypy-config-file", "pyproject.toml"),
            *("--allowlist", "tools/stubtest_allowlist.txt", "--ignore-unused-allowlist"),
            *(f"rabble._core.{name}" for name in sorted(sources)),
        ],
        cwd=ROOT,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
