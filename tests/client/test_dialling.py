"""Which address is dialled next, and when; addresses as people write them; the bounds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble.client import ClientLimits
from rabble.client.addresses import ServerAddress, parse_addresses
from rabble.client.dialling import Dialling


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Fraction:
    """Jitter that is always the same part of its range."""

    def __init__(self, part: float) -> None:
        self.part = part
        self.asked: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float, /) -> float:
        self.asked.append((a, b))
        return a + (b - a) * self.part


def dialling(*addresses: str, part: float = 1.0) -> tuple[Dialling, Time, Fraction]:
    limits = ClientLimits(redial_first_ms=100, redial_most_ms=1_000, redial_settled_ms=500)
    clock, rng = Time(), Fraction(part)
    return Dialling(parse_addresses(addresses), limits, clock, rng), clock, rng


def test_the_first_dial_is_due_at_once():
    of, _, rng = dialling("a:1")
    assert (str(of.address), of.wait_s(), rng.asked) == ("a:1", 0.0, [])


def test_addresses_go_around_and_the_wait_comes_after_all():
    of, clock, rng = dialling("a:1", "b:2", "c:3", part=0.5)
    seen = []
    for _ in range(2):
        for _ in range(3):
            assert of.wait_s() == 0
            seen.append(of.address.host)
            of.failed("nobody")
        assert of.wait_s() > 0
        clock.now += of.wait_s()
    assert seen == list("abcabc")
    assert rng.asked == [(0, 0.1), (0, 0.2)]


def test_the_ceiling_doubles_up_to_its_bound_and_never_overflows():
    of, clock, rng = dialling("a:1")
    for _ in range(2_000):
        of.failed("nobody")
        clock.now += of.wait_s()
    ceilings = [most for _, most in rng.asked]
    assert ceilings[:5] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert set(ceilings[4:]) == {1.0}


def test_a_connection_that_lasted_is_dialled_again_at_once_and_one_that_did_not_is_a_failure():
    of, clock, _ = dialling("a:1", "b:2")
    of.failed("nobody")
    of.connected()
    clock.now += 0.5
    of.lost("broke")
    assert (of.address.host, of.wait_s(), of.reason) == ("b", 0.0, "broke")
    of.connected()
    of.lost("broke at once")
    assert of.address.host == "a"
    of.failed("nobody")
    assert of.wait_s() == pytest.approx(0.1)


def test_what_counts_is_when_the_connection_ended_and_not_when_that_was_noticed():
    of, clock, _ = dialling("a:1")
    of.connected()
    ended = clock.now + 0.1
    clock.now += 60
    of.lost("broke", at=ended)
    assert of.wait_s() == pytest.approx(0.1)


@pytest.mark.parametrize(("code", "host"), [("drain", "b"), ("full", "b"), ("idle", "a")])
def test_a_goodbye_may_lead_elsewhere(code, host):
    of, clock, _ = dialling("a:1", "b:2")
    of.connected()
    clock.now += 1
    of.lost("goodbye", code)
    assert (of.address.host, of.wait_s()) == (host, 0.0)


def test_what_is_raised_says_all():
    of, _, _ = dialling("a:1", "[::1]:2", "/run/api")
    for _ in range(3):
        of.failed(f"{of.address}: nobody")
    error = of.not_connected()
    assert str(error) == (
        "not connected to a:1, [::1]:2, /run/api: /run/api: nobody; "
        "the next dial is due in 0.10 s; the request was not sent"
    )
    assert (error.sent, error.detail) == (False, "/run/api: nobody")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:80", ServerAddress("host", 80)),
        ("127.0.0.1:1", ServerAddress("127.0.0.1", 1)),
        ("[::1]:65535", ServerAddress("::1", 65535)),
        ("/run/api.sock", ServerAddress("", 0, "/run/api.sock")),
        ("./a:b/c", ServerAddress("", 0, "./a:b/c")),
    ],
)
def test_addresses(text, address):
    assert parse_addresses((text,)) == (address,)
    assert str(address) == text


@pytest.mark.parametrize("text", ["unix:/run/a", "unix:a", "unix:a:1"])
def test_an_address_of_a_server_with_a_unix_socket_is_one_of_a_client(text):
    (address,) = parse_addresses((text,))
    assert address == ServerAddress("", 0, text.removeprefix("unix:"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "unix:",
            "unix:a\0",
            "",
            "host",
            "host:",
            ":80",
            "host:0",
            "host:65536",
            "host:8o",
            "::1:80",
            "[]:80",
        ),
        *("a b:80", "x@host:80", "host:٨٠", "/run/\0", "host:123456", "[::1:80"),
        # Names that no look-up takes.
        *("a..b:80", ".:80", "a" * 64 + ":80", "é" * 100 + ":80"),
    ],
)
def test_what_is_no_address_says_how_to_write_one(text):
    with pytest.raises(ValueError, match="host:port"):
        parse_addresses((text,))


def test_addresses_are_given_one_by_one():
    with pytest.raises(ValueError, match="needs an address"):
        parse_addresses(())
    with pytest.raises(TypeError, match="one by one"):
        parse_addresses((["a:1", "b:2"],))  # type: ignore[arg-type]


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text):
    try:
        (address,) = parse_addresses((text,))
    except ValueError:
        return
    assert parse_addresses((str(address),)) == (address,)


def test_every_limit_has_a_range_and_says_it():
    for field in dataclasses.fields(ClientLimits):
        least, most = field.metadata["range"]
        assert least <= field.default <= most
        for value in (least, most):
            assert getattr(ClientLimits(**{field.name: value}), field.name) == value
        for value in (least - 1, most + 1, True, 5.0, "5", None):
            with pytest.raises(ValueError, match=f"{field.name} must be an int, {least} to {most}"):
                ClientLimits(**{field.name: value})
