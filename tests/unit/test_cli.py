"""The command as a whole: versions, help, and where its output goes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import rabble
from rabble import cli

VERSION = f"rabble {rabble.__version__} (Python {platform.python_version()})\n"


def run(
    *arguments: str, module: str = "rabble", redirect: str = "", **env: str
) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh"]
        + [sys.executable, "-W", "error", "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **env},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr() == (VERSION, "")


@pytest.mark.parametrize("module", ["rabble", "rabble.cli"])
def test_the_modules_are_the_command(module: str) -> None:
    assert run("--version", module=module) == (0, VERSION, "")


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: rabble ") and "--version" in err


def test_a_command_that_there_is_not() -> None:
    status, out, err = run("nod")
    assert (status, out) == (2, "")
    # From 3.15 on argparse says which one was meant, between the two.
    assert "invalid choice: 'nod'" in err and "(choose from" in err and "Traceback" not in err


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["version"], ["--version"], ["keygen", "FILE"]])
def test_output_that_cannot_be_written_is_told(
    arguments: list[str], buffered: str, tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "key") if name == "FILE" else name for name in arguments]
    assert run(*arguments, redirect=">/dev/full", PYTHONUNBUFFERED=buffered) == (
        1,
        "",
        "rabble: cannot write to standard output: No space left on device\n",
    )


def test_a_pipe_that_nobody_reads() -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "rabble", "version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        # Long before the interpreter has begun.
        process.stdout.close()
        assert process.stderr.read() == "rabble: cannot write to standard output: Broken pipe\n"
    assert process.returncode == 1


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-"])
def test_without_output_it_works_all_the_same(redirect: str) -> None:
    status, out, err = run("version", redirect=redirect)
    assert (status, err) == (0, "")
    assert out == (VERSION if redirect == "2>&-" else "")
