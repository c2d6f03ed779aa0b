"""Marks for tests that cannot run everywhere; each says what is missing."""

from __future__ import annotations

import pytest

from tests.faults.rig.netns import missing

#: For tests that make namespaces.
requires_root_network = pytest.mark.skipif(
    missing() is not None, reason=f"no network namespaces here: {missing()}"
)
