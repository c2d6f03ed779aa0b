"""Which module of the compiled core refers to which, and so which one is out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CORE = Path(__file__).resolve().parent.parent / "src" / "rabble" / "_core"
PACKAGE = "rabble._core"
# A module is compiled, or inline in its users, or plain Python that the compiled ones import.
SUFFIXES = (".pyx", ".pxd", ".py")

_FROM = re.compile(r"^\s*from\s+(?P<module>\S+)\s+c?import\s+(?P<names>[^#]+)")
_PLAIN = re.compile(r"^\s*c?import\s+(?P<modules>[^#]+)")


def statements(source: Path) -> Iterator[tuple[str, str]]:
    """Every module that the file imports or cimports: (absolute dotted name, the line).

    `from package import name` gives both `package` and `package.name`: either may be the module.
    """
    text = re.sub(r'("""|\'\'\')(.*?)\1', "", source.read_text(), flags=re.S)
    text = re.sub(r"\(([^()]*)\)", lambda found: found[1].replace("\n", " "), text)
    for line in text.splitlines():
        if found := _FROM.match(line):
            module = absolute(found["module"])
            yield module, line
            for name in _names(found["names"]):
                yield f"{module}.{name}", line
        elif found := _PLAIN.match(line):
            for name in _names(found["modules"]):
                yield name, line


def _names(listed: str) -> list[str]:
    return [part.split()[0] for part in listed.split(",") if part.strip()]


def absolute(module: str) -> str:
    """`.ids` and `..limits`, as written in a file of the core, with the package spelled out."""
    dots = len(module) - len(module.lstrip("."))
    if not dots:
        return module
    parts = PACKAGE.split(".")
    return ".".join([*parts[: len(parts) - dots + 1], *filter(None, [module.lstrip(".")])])


def core_files(core: Path = CORE) -> list[Path]:
    """The sources of the core's modules, but for what makes a package of them."""
    files = (path for path in core.iterdir() if path.suffix in SUFFIXES)
    return sorted(path for path in files if path.stem != "__init__")


def core_modules(source: Path) -> set[str]:
    """The short names of the core's modules that the file refers to."""
    known = {path.stem for path in core_files(source.parent)}
    found = set()
    for module, _ in statements(source):
        if module.startswith(PACKAGE + "."):
            found.add(module.removeprefix(PACKAGE + ".").split(".")[0])
    return found & known - {source.stem}


def sources(name: str, core: Path = CORE) -> set[Path]:
    """The files that are compiled into module `name`: its own, and every .pxd it can see."""
    files: set[Path] = set()
    waiting = [core / f"{name}.pyx", core / f"{name}.pxd"]
    while waiting:
        file = waiting.pop()
        if file not in files and file.exists():
            files.add(file)
            waiting += [core / f"{other}.pxd" for other in core_modules(file)]
    return files


def stale_modules(built: dict[str, Path], core: Path = CORE) -> list[str]:
    """Of modules (short name to extension file), those missing or older than a source of theirs."""
    return sorted(
        name
        for name, extension in built.items()
        if not extension.exists()
        or extension.stat().st_mtime < max(path.stat().st_mtime for path in sources(name, core))
    )
