"""The tree of errors: one root, and the standard bases that say what kind of failure it is."""

from __future__ import annotations

import copy
import pickle

import pytest

import rabble
from rabble import RabbleError, errors
from rabble._core import errors as core_errors
from rabble.cli.node import AppError
from rabble.cli.node_settings import SettingsError

PUBLIC = [getattr(rabble, name) for name in errors.__all__]
#: What the core raises and the runtime alone catches, but for `Interrupted`.
INTERNAL = [core_errors.FrameError, core_errors.SessionError, core_errors.UnknownMessageError]
STANDARD = {
    "CallTimeout": TimeoutError,
    "DecodeError": ValueError,
    "DecodeLimitError": ValueError,
    "EncodeError": ValueError,
    "JoinTimeout": TimeoutError,
    "KeyFileError": ValueError,
    "NameTaken": ValueError,
    "ShutdownTimeout": TimeoutError,
}


@pytest.mark.parametrize(
    "error", [*PUBLIC, *INTERNAL, AppError, SettingsError], ids=lambda e: e.__name__
)
def test_the_errors_have_one_root(error: type[Exception]) -> None:
    assert issubclass(error, RabbleError)


def test_what_interrupts_a_receive_is_no_error_that_a_program_catches() -> None:
    assert not issubclass(core_errors.Interrupted, Exception)


@pytest.mark.parametrize("error", PUBLIC, ids=lambda e: e.__name__)
def test_a_traceback_shows_the_name_that_an_error_is_imported_by(error: type[Exception]) -> None:
    assert error.__module__ == "rabble.errors"
    assert getattr(errors, error.__name__) is error


@pytest.mark.parametrize("error", PUBLIC, ids=lambda e: e.__name__)
def test_an_error_is_the_same_once_it_was_pickled(error: type[Exception]) -> None:
    found = pickle.loads(pickle.dumps(error("why")))
    assert (type(found), found.args) == (error, ("why",))


@pytest.mark.parametrize(("name", "base"), STANDARD.items())
def test_an_error_has_the_standard_base_of_its_kind(name: str, base: type[Exception]) -> None:
    assert issubclass(getattr(rabble, name), base)


def test_errors_of_other_kinds_have_no_standard_base() -> None:
    others = [error for error in PUBLIC if error.__name__ not in STANDARD]
    assert [e for e in others if issubclass(e, ValueError | TypeError | OSError)] == []


def test_no_connection_is_a_kind_of_no_process() -> None:
    assert issubclass(rabble.NotConnected, rabble.NoProcess)


@pytest.mark.parametrize("error", PUBLIC, ids=lambda e: e.__name__)
def test_an_error_says_what_it_is_for(error: type[Exception]) -> None:
    assert "__doc__" in vars(error) and error.__doc__


@pytest.mark.parametrize("error", PUBLIC, ids=lambda e: e.__name__)
def test_what_an_error_knows_goes_along_when_it_is_copied(error: type[RabbleError]) -> None:
    """And its text as a developer sees it is stable: that of the class and what it says."""
    failed = error("why")
    assert (failed.pid, failed.node, failed.detail, failed.crash) == (None, None, "", 0)
    node = rabble.NodeId("n", "h:1")
    failed.pid, failed.node, failed.detail, failed.crash = rabble.Pid("p", node), node, "why", 7
    for again in (copy.copy(failed), copy.deepcopy(failed), pickle.loads(pickle.dumps(failed))):
        assert type(again) is error and vars(again) == vars(failed)
        assert repr(again) == repr(failed) == f"{error.__name__}('why')"


@pytest.mark.parametrize(
    "error", [core_errors.FrameError(16), core_errors.SessionError(13, "no")], ids=repr
)
def test_an_error_of_the_wire_is_the_same_once_it_was_pickled(error: Exception) -> None:
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error) and str(again) == str(error)
        assert vars(again) == vars(error)
