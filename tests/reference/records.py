"""The records of an authenticated stream in slow Python, from RFC 8439 and the protocol's page."""

from __future__ import annotations

import struct

HEAD = 20
BODY_MAX = 81_920


def quarter(x: list[int], a: int, b: int, c: int, d: int) -> None:
    for one, other, third, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[one] = (x[one] + x[other]) & 0xFFFFFFFF
        x[third] ^= x[one]
        x[third] = (x[third] << turn | x[third] >> (32 - turn)) & 0xFFFFFFFF


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """RFC 8439, 2.3."""
    begin = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key)]
    begin += [counter, *struct.unpack("<3I", nonce)]
    x = list(begin)
    for _ in range(10):
        for n in range(4):
            quarter(x, n, 4 + n, 8 + n, 12 + n)
        for n in range(4):
            quarter(x, n, 4 + (n + 1) % 4, 8 + (n + 2) % 4, 12 + (n + 3) % 4)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(x, begin, strict=True)))


def poly1305(key: bytes, data: bytes) -> bytes:
    """RFC 8439, 2.5."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at : at + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def one_time_key(key: bytes, number: int) -> bytes:
    """RFC 8439, 2.6: the nonce is the number of the record."""
    return chacha20_block(key, 0, bytes(4) + struct.pack("<Q", number))[:32]


def seal(key: bytes, number: int, body: bytes) -> bytes:
    """A record."""
    assert 1 <= len(body) <= BODY_MAX
    return struct.pack(">I", len(body)) + poly1305(one_time_key(key, number), body) + body


class Sealer:
    """What one side sends."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.count = 0

    def seal(self, body: bytes) -> bytes:
        self.count += 1
        return seal(self.key, self.count - 1, body)

    def seal_all(self, stream: bytes, size: int = BODY_MAX) -> bytes:
        """A stream in records of so many bytes."""
        return b"".join(self.seal(stream[at : at + size]) for at in range(0, len(stream), size))


class Verifier:
    """What one side receives; `wrong` when something was not the next record of the peer."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.count = 0
        self.waits = b""
        self.wrong = False

    def take(self, data: bytes) -> bytes:
        """The bytes of the stream that are verified by now and were not before."""
        self.waits += data
        verified = b""
        while not self.wrong and len(self.waits) >= 4:
            size = int.from_bytes(self.waits[:4], "big")
            if 1 <= size <= BODY_MAX:
                if len(self.waits) < HEAD + size:
                    break
                record, self.waits = self.waits[: HEAD + size], self.waits[HEAD + size :]
                if seal(self.key, self.count, record[HEAD:]) == record:
                    self.count += 1
                    verified += record[HEAD:]
                    continue
            self.wrong = True
        return verified


def records_of(data: bytes) -> list[bytes]:
    """Whole records, one by one, whatever their tags are."""
    found = []
    while data:
        size = HEAD + int.from_bytes(data[:4], "big")
        assert size <= len(data), "half a record"
        found.append(data[:size])
        data = data[size:]
    return found
