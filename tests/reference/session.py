"""What two nodes say, once more: slow, short, and written from docs/internals/wire-protocol.md.

Tests take the numbers of the wire from here: so they are checked against the page, and not against
the code.

What is written and read are tuples: ("envelope", Envelope),
("monitor", watcher, watched, reference), ("demonitor", watcher, watched, reference),
("down", watcher, watched, reference, why, life, detail),
("undelivered", to, correlation id, why, crash, about, detail), ("lost", count); read only are
("refused", to, sender, correlation id) and ("undecodable", ...).
"""

from __future__ import annotations

import struct
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.registry import MessageRegistry
from tests.reference import codec

# Kinds of frames: of the data and bulk lanes, and of the control lane.
CACHE_PID, ENVELOPE, FRAGMENT, MONITOR, DEMONITOR, DOWN, UNDELIVERED, LOST = range(1, 9)
LINK, UNLINK, EXIT = range(9, 12)
PING, PONG, BYE, MEMBERSHIP, WINDOW_UPDATE = range(16, 21)

# Flags: of an ENVELOPE, which shares some with other kinds; of a FRAGMENT; of PING and PONG.
FLAG_SENDER, FLAG_CID, FLAG_CONNECTION, FLAG_REQUEST = 1, 2, 4, 8
FLAG_FULL, FLAG_FORWARDED = 16, 32
FLAG_FIRST, FLAG_LAST = 1, 2
FLAG_IDLE = 1
ENVELOPE_FLAGS = 63

# Why a connection is refused or ended, as far as frames are the reason.
FRAME_TOO_LARGE, DECODE, DECODE_LIMIT, PROTOCOL, SPOOF, TIMEOUT, LIMIT, SHUTDOWN = range(13, 21)

#: The kind of a `DownReason`, as a DOWN has it.
DOWN_CODES = {"stopped": 1, "crashed": 2, "no_process": 3, "shutdown": 4, "refused": 5, "linked": 6}
#: A `DeadLetterReason`, as an UNDELIVERED has it.
UNDELIVERED_CODES = {
    "no_process": 1,
    "mailbox_full": 2,
    "process_crashed": 3,
    "node_shutdown": 4,
    "refused": 5,
    "undecodable": 6,
    "unencodable": 7,
    "peer_busy": 8,
    "not_connected": 9,
    "no_receiver": 10,
    "changed": 11,
}
#: The kind of a `DownReason`, as an UNDELIVERED of a request that was taken has it.
UNANSWERED_CODES = {"stopped": 17, "crashed": 18, "shutdown": 20, "linked": 22}
#: An UNDELIVERED of a request that is another node's from now on.
PASSED_ON = 15
WHYS = {*UNDELIVERED_CODES.values(), *UNANSWERED_CODES.values(), PASSED_ON}

# Of each kind: the flags that it has, and the bytes its body may take.
SHAPES = {
    CACHE_PID: (0, range(2 + 8, 2 + 1025 + 1)),
    ENVELOPE: (ENVELOPE_FLAGS, range(3, 1 << 32)),
    FRAGMENT: (FLAG_FIRST | FLAG_LAST, range(1, 1 << 32)),
    MONITOR: (0, [12]),
    DEMONITOR: (0, [12]),
    DOWN: (FLAG_FULL, range(21, 2 * 1027 + 17 + 1000 + 1)),
    LINK: (FLAG_FULL, range(12, 2 * 1027 + 8 + 1)),
    UNLINK: (FLAG_FULL, range(12, 2 * 1027 + 8 + 1)),
    EXIT: (FLAG_FULL, range(21, 2 * 1027 + 17 + 1000 + 1)),
    UNDELIVERED: (FLAG_CID | FLAG_CONNECTION | FLAG_REQUEST, range(2 + 11, 20 + 11 + 2025 + 1)),
    LOST: (FLAG_FULL, [4]),
    PING: (FLAG_IDLE, [16]),
    PONG: (FLAG_IDLE, [16]),
    BYE: (0, range(2, 2 + 255 + 1)),
    MEMBERSHIP: (0, range(1, 1 << 32)),
    WINDOW_UPDATE: (0, [8]),
}


class Wrong(ValueError):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def need(condition: object, code: int = PROTOCOL) -> None:
    if not condition:
        raise Wrong(code)


def frame(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack(">IBB", 2 + len(body), kind, flags) + body


def split_frame(data: bytes, frame_bytes_max: int = 1 << 20) -> tuple[int, int, bytes, int] | None:
    """The first frame: kind, flags, body, length of the whole."""
    if len(data) < 4:
        return None
    (length,) = struct.unpack(">I", data[:4])
    need(length >= 2)
    need(length <= frame_bytes_max, FRAME_TOO_LARGE)
    if len(data) < 6:
        return None
    kind, flags, size = data[4], data[5], length - 2
    need(kind in SHAPES)
    allowed, sizes = SHAPES[kind]
    need(not flags & ~allowed and size in sizes)
    if kind in (ENVELOPE, UNDELIVERED):
        need(agree(flags))
        pid = 2 + 8 if flags & FLAG_FULL else 2
        bits = [flags >> n & 1 for n in range(4)]
        head = pid * (1 + bits[0] + bits[1]) + 8 * (bits[2] + bits[3])
        need(size > head if kind == ENVELOPE else 11 <= size - head <= 11 + 1025 + 1000)
    if kind == BYE and len(data) >= 4 + length:
        need(size == 2 + data[7])
    if kind == FRAGMENT and flags & FLAG_FIRST:
        need(size > 4)
    if kind in (LINK, UNLINK):
        need(size >= 2 * (2 + 8) + 8 if flags & FLAG_FULL else size == 12)
    if kind in (DOWN, EXIT):
        need(size >= 2 * (2 + 8) + 17 if flags & FLAG_FULL else size <= 21 + 1000)
    if len(data) < 4 + length:
        return None
    return kind, flags, data[6 : 4 + length], 4 + length


def agree(flags: int) -> bool:
    """Whether what belongs to a correlation id comes with one, and what was passed on with both."""
    needs_cid = FLAG_CONNECTION | FLAG_REQUEST | FLAG_FORWARDED
    return bool(
        (flags & FLAG_CID or not flags & needs_cid)
        and (flags & FLAG_SENDER or not flags & FLAG_FORWARDED)
    )


class FrameEncoder:
    """Encodes; `places` are those of the table that it uses, which it fills one after the other."""

    def __init__(
        self,
        own: NodeId,
        registry: MessageRegistry,
        fragment_bytes: int = 65536,
        places: tuple[int, ...] = tuple(range(8192)),
    ) -> None:
        assert len(places) >= 3
        self.own = own
        self.registry = registry
        self.fragment_bytes = fragment_bytes
        self.places = places
        self.names: dict[int, Pid] = {}
        self.used = 0
        self.data: list[bytes] = []
        self.bulk: list[bytes] = []
        self.pairs: set[tuple[Pid | None, Pid]] = set()

    def index(self, pid: Pid) -> bytes:
        known = [place for place, name in self.names.items() if name == pid]
        place = known[0] if known else self.places[self.used % len(self.places)]
        if not known:
            self.used += 1
            self.names[place] = pid
            self.data.append(frame(CACHE_PID, 0, struct.pack(">H", place) + str(pid).encode()))
        return struct.pack(">H", place)

    def indexes(self, *pids: Pid) -> list[bytes]:
        """Those of several pids, none of which may have taken another's place."""
        found = [self.index(pid) for pid in pids]
        again = [self.index(pid) for pid in pids]
        return found if found == again else self.indexes(*pids)

    def text(self, pid: Pid) -> bytes:
        data = str(pid).encode()
        return struct.pack(">H", len(data)) + data

    def write(self, what: tuple[Any, ...]) -> None:
        kind = what[0]
        if kind == "envelope":
            self.envelope(*what[1:])
        elif kind in ("monitor", "demonitor"):
            body = b"".join(self.indexes(*what[1:3])) + struct.pack(">Q", what[3])
            self.data.append(frame(MONITOR if kind == "monitor" else DEMONITOR, 0, body))
        elif kind in ("link", "unlink"):
            _, own, theirs, reference = what
            tail = struct.pack(">Q", reference)
            self.behind(LINK if kind == "link" else UNLINK, (own, theirs), (own, theirs), tail)
        elif kind in ("down", "exit"):
            _, watcher, watched, reference, why, life, detail = what
            tail = struct.pack(">QBQ", reference, why, life) + detail.encode()
            number = DOWN if kind == "down" else EXIT
            self.behind(number, (watched, watcher), (watcher, watched), tail)
        elif kind == "undelivered":
            _, to, cid, why, crash, about, detail = what
            pids = [to] if cid is None else [to, cid.pid]
            flags, numbers = self.numbers(cid)
            name = b"\0\0" if about is None else self.text(about)
            tail = struct.pack(">BQ", why, crash) + name + detail.encode()
            body = b"".join(self.indexes(*pids)) + numbers + tail
            self.data.append(frame(UNDELIVERED, flags, body))
        elif kind == "lost":
            self.data.append(frame(LOST, 0, struct.pack(">I", what[1])))
        else:
            raise ValueError(kind)

    def behind(self, kind: int, pair: tuple[Pid, Pid], pids: tuple[Pid, Pid], tail: bytes) -> None:
        """Write it in the lane in which it follows what the one of a pair sent to the other."""
        if pair in self.pairs:
            self.bulk.append(frame(kind, FLAG_FULL, b"".join(map(self.text, pids)) + tail))
        else:
            self.data.append(frame(kind, 0, b"".join(self.indexes(*pids)) + tail))

    def numbers(self, cid: CorrelationId | None) -> tuple[int, bytes]:
        flags, data = 0, b""
        if cid is not None:
            flags = FLAG_CID
            if cid.connection is not None:
                flags, data = flags | FLAG_CONNECTION, data + struct.pack(">Q", cid.connection)
            if cid.request is not None:
                flags, data = flags | FLAG_REQUEST, data + struct.pack(">Q", cid.request)
        return flags, data

    def envelope(self, e: Envelope, forwarder: Pid | None = None) -> None:
        message = codec.encode(self.registry, e.msg)
        sender, cid = e.sender, e.correlation_id
        flags, numbers = self.numbers(cid)
        if sender is not None and sender.node != self.own:
            assert cid is not None and cid.pid == sender
            sender = forwarder or Pid("executor", self.own, "rabble")
            flags |= FLAG_FORWARDED
        pids = [p for p in (e.to, sender, cid and cid.pid) if p]
        flags |= 0 if e.sender is None else FLAG_SENDER
        if len(message) <= self.fragment_bytes and (e.sender, e.to) not in self.pairs:
            body = b"".join(self.indexes(*pids)) + numbers + message
            self.data.append(frame(ENVELOPE, flags, body))
            return
        self.pairs.add((e.sender, e.to))
        flags |= FLAG_FULL
        body = b"".join(self.text(pid) for pid in pids) + numbers + message
        if len(message) <= self.fragment_bytes:
            self.bulk.append(frame(ENVELOPE, flags, body))
            return
        whole = bytes([flags]) + body
        starts = range(0, len(whole), self.fragment_bytes)
        for start in starts:
            part = whole[start : start + self.fragment_bytes]
            first, last = start == 0, start == starts[-1]
            claimed = struct.pack(">I", len(whole)) if first else b""
            place = FLAG_FIRST * first | FLAG_LAST * last
            self.bulk.append(frame(FRAGMENT, place, claimed + part))

    def take_bulk(self) -> bytes:
        data = b"".join(self.bulk)
        self.bulk.clear()
        self.pairs.clear()
        return data

    def take_data(self) -> bytes:
        data = b"".join(self.data)
        self.data.clear()
        return data


class FrameDecoder:
    """Decodes."""

    def __init__(
        self,
        own: NodeId,
        peer: NodeId,
        registry: MessageRegistry,
        open_names: frozenset[str] = frozenset(),
        message_bytes_max: int = 64 << 20,
    ) -> None:
        self.own = own
        self.peer = peer
        self.registry = registry
        self.open_names = open_names
        self.message_bytes_max = message_bytes_max
        self.names: dict[int, Pid] = {}
        self.whole = b""
        self.claimed: int | None = None
        self.events: list[tuple[Any, ...]] = []

    def read(self, data: bytes) -> None:
        """Append to `events` what these frames say."""
        while data:
            found = split_frame(data)
            need(found is not None)
            assert found is not None
            kind, flags, body, length = found
            data = data[length:]
            self.read_frame(kind, flags, body)

    def read_frame(self, kind: int, flags: int, body: bytes) -> None:
        if kind == CACHE_PID:
            index = struct.unpack(">H", body[:2])[0]
            need(index < 8192)
            self.names[index] = self.parse(body[2:])
        elif kind == ENVELOPE:
            self.read_envelope(flags, body)
        elif kind == FRAGMENT:
            self.read_fragment(flags, body)
        elif kind in (MONITOR, DEMONITOR):
            watcher, body = self.pid(0, body, self.peer)
            watched, body = self.pid(0, body, self.own)
            (reference,) = struct.unpack(">Q", body)
            name = "monitor" if kind == MONITOR else "demonitor"
            self.events.append((name, watcher, watched, reference))
        elif kind in (LINK, UNLINK):
            one, body = self.pid(flags, body, self.peer)
            other, body = self.pid(flags, body, self.own)
            need(len(body) == 8)
            (reference,) = struct.unpack(">Q", body)
            self.events.append(("link" if kind == LINK else "unlink", one, other, reference))
        elif kind in (DOWN, EXIT):
            watcher, body = self.pid(flags, body, self.own)
            watched, body = self.pid(flags, body, self.peer)
            need(17 <= len(body) <= 1017)
            reference, why, life = struct.unpack(">QBQ", body[:17])
            need(why in DOWN_CODES.values(), DECODE)
            detail = self.decoded(body[17:])
            name = "down" if kind == DOWN else "exit"
            self.events.append((name, watcher, watched, reference, why, life, detail))
        elif kind == UNDELIVERED:
            to, _, cid, body = self.head(flags, body)
            (why, crash), body = struct.unpack(">BQ", body[:9]), body[9:]
            need(why in WHYS, DECODE)
            about, rest = None, body[2:]
            if body[:2] != b"\0\0":
                about, rest = self.pid(FLAG_FULL, body, None if why == PASSED_ON else self.peer)
            need(len(rest) <= 1000)
            what = ("undelivered", to, cid, why, crash, about, self.decoded(rest))
            self.events.append(what)
        elif kind == LOST:
            self.events.append(("lost", struct.unpack(">I", body)[0]))

    def read_envelope(self, flags: int, body: bytes) -> None:
        to, sender, cid, message = self.head(flags, body)
        if to.group == "rabble" and to.name not in self.open_names:
            self.events.append(("refused", to, sender, cid))
            return
        need(len(message) <= self.message_bytes_max, DECODE_LIMIT)
        try:
            msg = codec.decode(self.registry, message)
        except (ValueError, RecursionError):
            raise Wrong(DECODE) from None
        self.events.append(("envelope", Envelope(to, msg, sender, cid)))

    def read_fragment(self, flags: int, body: bytes) -> None:
        if flags & FLAG_FIRST:
            need(self.claimed is None)
            self.claimed, body = struct.unpack(">I", body[:4])[0], body[4:]
            need(self.claimed <= self.message_bytes_max + 1 + 3 * 1027 + 16, FRAME_TOO_LARGE)
            inner = body[0]
            need(inner & FLAG_FULL and inner <= ENVELOPE_FLAGS and agree(inner))
        need(self.claimed is not None)
        self.whole += body
        need(len(self.whole) <= self.claimed)
        if flags & FLAG_LAST:
            need(len(self.whole) == self.claimed)
            self.read_envelope(self.whole[0], self.whole[1:])
            self.whole, self.claimed = b"", None

    def head(self, flags: int, body: bytes) -> tuple[Pid, Pid | None, CorrelationId | None, bytes]:
        sender = cid = None
        to, body = self.pid(flags, body, self.own)
        if flags & FLAG_SENDER:
            sender, body = self.pid(flags, body, self.peer)
        if flags & FLAG_CID:
            asker, body = self.pid(flags, body, None)
            if flags & FLAG_FORWARDED:
                # It passes on what another node's process asked, and no part of its runtime.
                need(asker.node != self.peer, SPOOF)
                need(asker.group != "rabble" or asker.name == "calls", SPOOF)
                sender = asker
            numbers: list[int | None] = [None, None]
            given = [flag for flag in (FLAG_CONNECTION, FLAG_REQUEST) if flags & flag]
            need(len(body) >= 8 * len(given))
            for place, flag in enumerate((FLAG_CONNECTION, FLAG_REQUEST)):
                if flags & flag:
                    numbers[place] = struct.unpack(">Q", body[:8])[0]
                    body = body[8:]
                    need(numbers[place] < 1 << 63, DECODE)
            cid = CorrelationId(asker, *numbers)
        need(body)
        return to, sender, cid, body

    def pid(self, flags: int, body: bytes, node: NodeId | None) -> tuple[Pid, bytes]:
        need(len(body) >= 2)
        number, body = struct.unpack(">H", body[:2])[0], body[2:]
        if flags & FLAG_FULL:
            need(0 < number <= len(body))
            pid, body = self.parse(body[:number]), body[number:]
        else:
            need(number in self.names)
            pid = self.names[number]
        need(node is None or pid.node == node, SPOOF)
        return pid, body

    def parse(self, data: bytes) -> Pid:
        try:
            return Pid.parse(data.decode())
        except ValueError:
            raise Wrong(DECODE) from None

    def decoded(self, data: bytes) -> str:
        try:
            return data.decode()
        except ValueError:
            raise Wrong(DECODE) from None
