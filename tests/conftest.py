"""What holds for every test: the core is newer than its sources, and a failure can be replayed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests import cimports

# A shared machine stalls now and then, which says nothing about the code: no deadline. The blob
# that a failure prints replays it with @reproduce_failure.
settings.register_profile("rabble", deadline=None, print_blob=True)
settings.register_profile("thorough", settings.get_profile("rabble"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rabble"))


def stale_modules(built: dict[str, Path], core: Path = cimports.CORE) -> list[str]:
    """Of the core's modules (short name to extension file), those older than a source of theirs."""
    stale = []
    for name, extension in built.items():
        newest = max((path.stat().st_mtime for path in cimports.sources(name, core)), default=0.0)
        if extension.stat().st_mtime < newest:
            stale.append(name)
    return sorted(stale)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run against an extension older than its source: its results would be another's."""
    prefix = cimports.PACKAGE + "."
    loaded = {
        name.removeprefix(prefix): Path(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith(prefix) and getattr(module, "__file__", None)
    }
    if stale := stale_modules(loaded):
        raise pytest.UsageError(
            f"older than their sources: {', '.join(stale)}. Run `make build`, then test again."
        )
