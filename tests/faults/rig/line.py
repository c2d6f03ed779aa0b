"""One direction of a bad network: what becomes of each packet, and when. No clock, no I/O."""

from __future__ import annotations

import dataclasses
import math
import random
import struct

MTU = 1500
TCP, UDP, ICMPV6 = 6, 17, 58
#: Where the checksum is, counted from the transport's header.
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMPV6: 2}


@dataclasses.dataclass(frozen=True)
class Weather:
    """What happens to packets on their way in one direction. Probabilities are 0 to 1."""

    #: Each packet takes `delay_s`, give or take up to `jitter_s`. Order is kept.
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    #: One bit is flipped; the checksum is wrong then and the kernel drops the packet.
    corrupt: float = 0.0
    #: One bit of TCP or UDP payload is flipped and the checksum set right: the bit arrives.
    falsify: float = 0.0
    #: Held back by `reorder_s` more, while others overtake it.
    reorder: float = 0.0
    reorder_s: float = 0.01
    #: A token bucket, if above 0: so many bits a second, after a burst of `burst_bytes`. What
    #: would wait behind more than `queue_bytes` is dropped.
    rate_bit_s: float = 0.0
    burst_bytes: int = 2 * MTU
    queue_bytes: int = 256 * 1024
    #: Nothing passes.
    cut: bool = False

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "corrupt", "falsify", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: a probability is 0 to 1")
        for name in ("delay_s", "jitter_s", "reorder_s", "rate_bit_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}: needs a finite number from 0")
        if self.burst_bytes < MTU or self.queue_bytes < MTU:
            raise ValueError(f"burst_bytes and queue_bytes must hold a packet of {MTU} bytes")


CLEAR = Weather()


@dataclasses.dataclass
class Counters:
    """What became of the packets of a line. `seen` = `cut` + `lost` + `overflowed` + the rest, each
    of which was handed on once, or twice if `duplicated`."""

    seen: int = 0
    seen_bytes: int = 0
    cut: int = 0
    lost: int = 0
    overflowed: int = 0
    duplicated: int = 0
    corrupted: int = 0
    falsified: int = 0
    reordered: int = 0
    handed_on: int = 0


class Line:
    """One direction between two hosts: decides what becomes of each packet."""

    def __init__(self, rng: random.Random, weather: Weather = CLEAR) -> None:
        self.rng = rng
        self.weather = weather
        self.counters = Counters()
        self._free_at = -math.inf  # when the bucket would be full again, had it no bound
        self._last_due = -math.inf

    def carry(self, packet: bytes, now: float) -> list[tuple[float, bytes]]:
        """What arrives of a packet, and when."""
        weather, counters = self.weather, self.counters
        # As many draws for every packet, so that one more fault does not change all that follow.
        loss, twice, corrupt, falsify, late, jitter, bit = (self.rng.random() for _ in range(7))
        counters.seen += 1
        counters.seen_bytes += len(packet)
        if weather.cut:
            counters.cut += 1
            return []
        if loss < weather.loss:
            counters.lost += 1
            return []
        due = now
        if weather.rate_bit_s:
            cost_s = len(packet) * 8 / weather.rate_bit_s
            filled_s = weather.burst_bytes * 8 / weather.rate_bit_s
            due = max(now, self._free_at + cost_s - filled_s)
            if (due - now) * weather.rate_bit_s > weather.queue_bytes * 8:
                counters.overflowed += 1
                return []
            self._free_at = max(now, self._free_at) + cost_s
        due += max(0.0, weather.delay_s + weather.jitter_s * (2 * jitter - 1))
        due = max(due, self._last_due)
        if falsify < weather.falsify and (false := falsified(packet, bit)) is not None:
            counters.falsified += 1
            packet = false
        if corrupt < weather.corrupt:
            counters.corrupted += 1
            packet = corrupted(packet, bit)
        if late < weather.reorder:
            counters.reordered += 1
            due += weather.reorder_s
        else:
            self._last_due = due
        copies = 1
        if twice < weather.duplicate:
            counters.duplicated += 1
            copies = 2
        counters.handed_on += copies
        return [(due, packet)] * copies


def transport(packet: bytes) -> tuple[int, int] | None:
    """Protocol and offset of what an IP packet carries; None for fragments and extension headers
    other than those that the rig meets."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        (fragment,) = struct.unpack_from("!H", packet, 6)
        return None if fragment & 0x3FFF else (packet[9], (packet[0] & 15) * 4)
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return packet[6], 40
    return None


def _flip(packet: bytes, start: int, bit: float) -> tuple[bytearray, int]:
    """A copy with one bit after `start` flipped, chosen by `bit` from 0 to 1; and where."""
    changed = bytearray(packet)
    at = start * 8 + int(bit * (len(packet) - start) * 8)
    changed[at // 8] ^= 1 << at % 8
    return changed, at // 8


def corrupted(packet: bytes, bit: float) -> bytes:
    """One bit behind the IP header is flipped, where a checksum covers it."""
    found = transport(packet)
    if found is None or found[1] >= len(packet):
        return bytes(_flip(packet, 0, bit)[0])
    return bytes(_flip(packet, found[1], bit)[0])


def falsified(packet: bytes, bit: float) -> bytes | None:
    """One bit of the payload is flipped, and the checksum right; None if there is no payload."""
    found = transport(packet)
    if found is None or found[0] not in (TCP, UDP):
        return None
    protocol, start = found
    header = (packet[start + 12] >> 4) * 4 if protocol == TCP else 8
    if len(packet) <= start + header:
        return None
    changed, at = _flip(packet, start + header, bit)
    # RFC 1624: from the old sum and the word that changed.
    place = start + CHECKSUM_AT[protocol]
    (total,) = struct.unpack_from("!H", changed, place)
    shift = 8 if (at - start) % 2 == 0 else 0
    total = (~total & 0xFFFF) + (~(packet[at] << shift) & 0xFFFF) + (changed[at] << shift)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", changed, place, ~total & 0xFFFF or (0xFFFF if protocol == UDP else 0))
    return bytes(changed)


def destination(packet: bytes) -> bytes | None:
    """The address that an IP packet goes to, as bytes."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return packet[16:20]
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return packet[24:40]
    return None
