"""What holds for every test: the core is newer than its sources, and a failure can be replayed."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import cimports

# A shared machine stalls now and then, which says nothing about the code: no deadline. The blob
# that a failure prints replays it with @reproduce_failure.
settings.register_profile("rabble", deadline=None, print_blob=True)
settings.register_profile("thorough", settings.get_profile("rabble"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rabble"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to run against an extension older than its source: its results would be another's."""
    # A shell starts what it runs in the background with it ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    package = importlib.util.find_spec("rabble")
    assert package is not None and package.submodule_search_locations is not None
    (folder,) = package.submodule_search_locations
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {
        source.stem: Path(folder, "_core", source.stem + suffix)
        for source in cimports.CORE.glob("*.pyx")
    }
    if stale := cimports.stale_modules(built):
        raise pytest.UsageError(
            f"not built since their sources changed: {', '.join(stale)}. "
            "Run `make build`, then test again."
        )
    importlib.import_module("tests.support")  # sets how soon threads switch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A test that is over holds nothing: else the last of a module would keep its nodes alive."""
    if isinstance(item, pytest.Function):
        item.funcargs.clear()


@pytest.fixture(scope="module", autouse=True)
def _everything_is_let_go_of(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the debug build: what the tests of a module made of the core's classes is gone again.

    But for what the module's `KEPT_IN_CACHES` names, and plans and checks of registered classes.
    """
    from rabble._core import debug

    gc.collect()
    before = debug.live_counts()
    yield
    gc.collect()
    after = debug.live_counts()
    kept = {"plan.Plan", "checks.Check", *getattr(request.module, "KEPT_IN_CACHES", ())}
    left = {n: after[n] - before[n] for n in after if after[n] != before[n] and n not in kept}
    assert not left, f"objects of the core that this module left behind: {left}"
