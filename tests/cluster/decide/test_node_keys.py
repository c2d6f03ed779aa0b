"""The keys of nodes: each pair has one of its own, which the two find and nobody else."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rabble.cluster.decide.node_keys import (
    COLLUDERS_MAX,
    KEY_ID_BYTES,
    PRIME,
    NodeKey,
    derived,
    fingerprint_of,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "node_keys.json").read_text())
AUTHORITY = bytes(range(32))
NAMES = ["a", "b", "c", "\u0416"]


def key_of(name: str, authority: bytes = AUTHORITY, number: int = 1) -> NodeKey:
    return derived(authority, name, bytes([number]) * KEY_ID_BYTES)


def test_both_nodes_of_a_pair_find_the_same_key_and_no_other_pair_has_it() -> None:
    keys = [key_of(name) for name in NAMES]
    found = {}
    for one, two in itertools.combinations(keys, 2):
        pair_key = one.pair_key(two.name, two.key_id)
        assert pair_key == two.pair_key(one.name, one.key_id) and len(pair_key) == 32
        found[one.name, two.name] = pair_key
    assert len(set(found.values())) == len(found)


def test_a_new_key_of_a_name_is_another_one_and_so_is_that_of_another_authority() -> None:
    b = key_of("b")
    keys = [key_of("a"), key_of("a", number=2), key_of("a", authority=bytes(32))]
    found = {key.pair_key(b.name, b.key_id) for key in keys}
    assert len(found) == 3
    assert b.pair_key("a", keys[0].key_id) != b.pair_key("a", keys[1].key_id)
    assert b.pair_key("a", keys[2].key_id) != keys[2].pair_key("b", b.key_id)
    # The fingerprint is that of the name and the id, and tells nothing of the authority.
    assert [key.fingerprint for key in keys] == [fingerprint_of("a", key.key_id) for key in keys]
    assert keys[0].fingerprint != keys[1].fingerprint == fingerprint_of("a", keys[1].key_id)


def test_the_holder_of_one_key_cannot_pass_for_another_node() -> None:
    """Whatever of the two names and ids it claims, it lacks the key that the third one expects."""
    a, b, c = (key_of(name) for name in "abc")
    expected = b.pair_key(a.name, a.key_id)
    assert c.pair_key(b.name, b.key_id) != expected
    assert c.pair_key(a.name, a.key_id) != expected


def test_a_key_does_not_show_its_secret() -> None:
    key = key_of("a")
    assert repr(key) == f"NodeKey(name='a', key_id={key.key_id!r})"


@pytest.mark.parametrize(
    "parts",
    [
        ("a", bytes(15), (1,) * 64),
        ("a", bytes(16), (1,) * 63),
        ("a", bytes(16), (PRIME, *(1,) * 63)),
        ("a", bytes(16), (-1, *(1,) * 63)),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_its_numbers(parts: Any) -> None:
    with pytest.raises(ValueError) as caught:
        NodeKey(*parts)
    assert str(PRIME) not in str(caught.value)


def test_the_vectors_are_what_the_page_says() -> None:
    """The whole polynomial, of both variables, with nothing but hashlib and hmac."""
    p = 2**255 - 19
    authority = bytes.fromhex(VECTORS["authority"])

    def point(side: Any) -> int:
        said = b"rabble 1 node key's point" + bytes.fromhex(side["id"]) + side["name"].encode()
        return int.from_bytes(hashlib.sha512(said).digest(), "big") % p

    def coefficient(i: int, j: int) -> int:
        said = b"rabble 1 node key's coefficient" + bytes([min(i, j), max(i, j)])
        return int.from_bytes(hmac.new(authority, said, hashlib.sha512).digest(), "big") % p

    a, b = (point(side) for side in VECTORS["nodes"])
    size = range(64)
    shares = [
        [sum(coefficient(i, j) * pow(at, i, p) for i in size) % p for j in size] for at in (a, b)
    ]
    value = sum(number * pow(b, j, p) for j, number in enumerate(shares[0])) % p
    pair_key = hmac.new(value.to_bytes(32, "big"), b"rabble 1 pair", hashlib.sha256).hexdigest()
    assert VECTORS["pair key"] == pair_key
    for side, share in zip(VECTORS["nodes"], shares, strict=True):
        assert side["first numbers"] == [number.to_bytes(32, "big").hex() for number in share[:2]]
        said = b"rabble 1 node key" + bytes.fromhex(side["id"]) + side["name"].encode()
        assert side["fingerprint"] == hashlib.sha256(said).hexdigest()


def test_keys_are_those_of_the_vectors() -> None:
    keys = [
        derived(bytes.fromhex(VECTORS["authority"]), side["name"], bytes.fromhex(side["id"]))
        for side in VECTORS["nodes"]
    ]
    for key, side in zip(keys, VECTORS["nodes"], strict=True):
        numbers = [number.to_bytes(32, "big").hex() for number in key.coefficients]
        assert numbers[:2] == side["first numbers"] and len(numbers) == COLLUDERS_MAX + 1
        assert key.fingerprint.hex() == side["fingerprint"]
    one, two = keys
    assert one.pair_key(two.name, two.key_id).hex() == VECTORS["pair key"]
