"""Checks what two type checkers make of tests/types and of the examples, both as strict as can be.

In tests/types a line that is wrong has the complaints beside it, as `# mypy: CODE # pyright: RULE`.
There are to be no others, and none in the examples.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted((ROOT / "tests" / "types").glob("*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

#: Where, and what.
Complaint = tuple[str, int, str]


def expected(checker: str) -> set[Complaint]:
    return {
        (path.name, number, code)
        for path in PROGRAMS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for codes in re.findall(rf"# {checker}:([ \w-]+)", line)
        for code in codes.split()
    }


def of_mypy() -> set[Complaint]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--hide-error-context", "--no-pretty"),
            *("--show-error-codes", "--config-file", "", "--explicit-package-bases"),
            *map(str, PROGRAMS + EXAMPLES),
        ],
        cwd=ROOT,
        env={"MYPYPATH": f"{ROOT / 'examples'}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^(.+?):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1 and not found):
        sys.exit(f"mypy: {done.stdout}{done.stderr}")
    return {(Path(file).name, int(line), code) for file, line, code in found}


def of_pyright() -> set[Complaint]:
    config = {
        "typeCheckingMode": "strict",
        "include": [str(path) for path in PROGRAMS + EXAMPLES],
        "extraPaths": [str(ROOT / "src"), str(ROOT / "examples")],
        # A method that is overridden may have parameters of other names; the core has stubs alone.
        "reportMissingModuleSource": False,
        "reportUnusedExpression": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pyrightconfig.json")
        file.write_text(json.dumps(config))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "basedpyright", "--outputjson"),
                *("--pythonpath", sys.executable, "--project", str(file)),
            ],
            capture_output=True,
            text=True,
        )
    try:
        said = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):
        sys.exit(f"pyright: {done.stdout}{done.stderr}")
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each.get("rule", "error"))
        for each in said
        if each["severity"] == "error"
    }


def main() -> int:
    status = 0
    for checker, look in (("mypy", of_mypy), ("pyright", of_pyright)):
        found, wanted = look(), expected(checker)
        for complaints, how in ((found - wanted, "complains of"), (wanted - found, "lets pass")):
            for file, line, code in sorted(complaints):
                print(f"{checker} {how} {file}:{line}: {code}")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
