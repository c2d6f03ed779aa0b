"""The check that refuses an extension older than its source notices what it should."""

from __future__ import annotations

import os

from tests.cimports import stale_modules


def lay_out(core, ages: dict[str, int]) -> None:
    texts = {
        "low.pxd": "cdef class Low:\n    pass\n",
        "low.pyx": "cdef class Low:\n    pass\n",
        "high.pxd": "from .low cimport (\n    Low,\n)\n",
        "high.pyx": '"""from .other cimport nothing"""\n',
        "other.pyx": "cimport cython\n",
        "other.pxd": "",
    }
    for name, text in texts.items():
        path = core / name
        path.write_text(text)
        os.utime(path, (ages.get(name, 100), ages.get(name, 100)))
    for name in ("low.so", "high.so", "other.so"):
        (core / name).touch()
        os.utime(core / name, (200, 200))


def stale(core) -> list[str]:
    return stale_modules({name: core / f"{name}.so" for name in ("low", "high", "other")}, core)


def test_built_after_its_sources(tmp_path) -> None:
    lay_out(tmp_path, {})
    assert stale(tmp_path) == []


def test_a_changed_source(tmp_path) -> None:
    lay_out(tmp_path, {"other.pyx": 300})
    assert stale(tmp_path) == ["other"]


def test_a_changed_pxd_reaches_those_that_cimport_it(tmp_path) -> None:
    lay_out(tmp_path, {"low.pxd": 300})
    assert stale(tmp_path) == ["high", "low"]


def test_a_module_that_was_never_built(tmp_path) -> None:
    lay_out(tmp_path, {})
    (tmp_path / "low.so").unlink()
    assert stale(tmp_path) == ["low"]
