"""A key for each node, so that the holder of one cannot be another, without public keys.

Two nodes prove themselves to each other with the key of their *pair*, which each finds from its own
node key and from what the other says it is. This is the scheme of Blundo, De Santis, Herzberg,
Kutten, Vaccaro and Yung, "Perfectly-secure key distribution for dynamic conferences", 1992, after
Blom, "An optimal class of symmetric key generation systems", 1984: an *authority* has a symmetric
polynomial `f(x, y)` over a prime field; a node that is at the point `a` has the polynomial
`f(a, y)`, and the key of the pair of `a` and `b` is `f(a, b)`, which is `f(b, a)`. So no node has
to be told of another one that is new, and who has node keys of at most `COLLUDERS_MAX` nodes learns
nothing of the pair keys of others. (Who has more of them can be any node: as if he had the
authority's key.) The coefficients come from the authority's 32 bytes by HMAC.

A node's point is a hash of its name and of its key's *id*, 16 random bytes: a name that gets a new
key gets another id, and another point. The *fingerprint*, by which a key can be banned, is made of
these two as well, so it is no secret.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

__all__ = ["COLLUDERS_MAX", "KEY_ID_BYTES", "NodeKey", "PRIME", "derived", "fingerprint_of"]

#: Of the field: that of Curve25519.
PRIME = 2**255 - 19
#: The degree of the polynomial in either variable.
COLLUDERS_MAX = 63
KEY_ID_BYTES = 16

POINT_LABEL = b"rabble 1 node key's point"
COEFFICIENT_LABEL = b"rabble 1 node key's coefficient"
PAIR_LABEL = b"rabble 1 pair"
FINGERPRINT_LABEL = b"rabble 1 node key"


@dataclasses.dataclass(frozen=True, slots=True)
class NodeKey:
    """What one node proves itself with.

    :param name: of the node.
    :param key_id: of this key among those that the name ever had.
    :param coefficients: of the node's polynomial, the constant one first. A secret.
    :raises ValueError: if these cannot be one. It never shows the secret.
    """

    name: str
    key_id: bytes
    coefficients: tuple[int, ...] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key_id) != KEY_ID_BYTES:
            raise ValueError(f"the id of a key must be {KEY_ID_BYTES} bytes")
        if len(self.coefficients) != COLLUDERS_MAX + 1:
            raise ValueError(f"a node key has {COLLUDERS_MAX + 1} numbers")
        if not all(0 <= number < PRIME for number in self.coefficients):
            raise ValueError("a number of the node key is out of range")

    @property
    def fingerprint(self) -> bytes:
        """By which the key can be banned, 32 bytes."""
        return fingerprint_of(self.name, self.key_id)

    def pair_key(self, name: str, key_id: bytes) -> bytes:
        """The 32 bytes that only this node and the one of that name and key can know."""
        point, value = point_of(name, key_id), 0
        for coefficient in reversed(self.coefficients):
            value = (value * point + coefficient) % PRIME
        return hmac.digest(value.to_bytes(32, "big"), PAIR_LABEL, "sha256")


def derived(authority: bytes, name: str, key_id: bytes) -> NodeKey:
    """The key of a node.

    :param authority: the 32 bytes from which all node keys of a mesh are made.
    :param key_id: 16 random bytes.
    """
    point = point_of(name, key_id)
    powers = [pow(point, i, PRIME) for i in range(COLLUDERS_MAX + 1)]
    numbers = []
    for j in range(COLLUDERS_MAX + 1):
        terms = (coefficient_of(authority, i, j) * power for i, power in enumerate(powers))
        numbers.append(sum(terms) % PRIME)
    return NodeKey(name, key_id, tuple(numbers))


def coefficient_of(authority: bytes, i: int, j: int) -> int:
    """Of x^i y^j, and of x^j y^i: twice as many bits as the prime has, so that none is likelier."""
    label = COEFFICIENT_LABEL + bytes([min(i, j), max(i, j)])
    return int.from_bytes(hmac.digest(authority, label, "sha512"), "big") % PRIME


def point_of(name: str, key_id: bytes) -> int:
    digest = hashlib.sha512(POINT_LABEL + key_id + name.encode()).digest()
    return int.from_bytes(digest, "big") % PRIME


def fingerprint_of(name: str, key_id: bytes) -> bytes:
    """The fingerprint of a node's key."""
    return hashlib.sha256(FINGERPRINT_LABEL + key_id + name.encode()).digest()
