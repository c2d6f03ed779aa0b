"""Changes to an input that keep most of it what the target takes: frames, messages, states."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from rabble.cluster.decide import handshake_wire as wire
from tests.cluster.decide.test_handshake import garbled
from tests.core.sessions import mutate, valid_stream
from tests.fuzz.targets import FRAMES_MAX
from tests.reference import session as slow_session

#: Numbers and tags that are the first or last of something.
ODD = (
    0,
    1,
    0x0F,
    0x10,
    0x1F,
    0x20,
    0x7F,
    0x80,
    0x8F,
    0x90,
    0xA0,
    0xC0,
    0xC1,
    0xC7,
    0xD4,
    0xDF,
    0xFF,
)
LARGE = (0, 1, 2**7, 2**15 - 1, 2**16, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
#: One of each type, most of them what a codec writes.
EXTENSIONS = (
    (1, b"\xa5Grown\x91\x01"),
    (1, b"\xa5Grown\x92\x01\xa1x"),
    (1, b"\xa5Grown\x95\x01\xa1x\xc0\x92\x01\x81\x01\xa1\xff\xc7\x02\x63\xc1\xc1"),
    (1, b"\xa5Grown\xdc\x00\x04\x01\xa1x\xc0\xd4\x07\x80"),
    (6, b"\xa7Celsius\x07"),
    (6, b"\xa7Celsius\xa1x"),
    (3, b"a@h:1"),
    (4, b"p::a@h:1"),
    (7, b"\x92\x01\xc0"),
    (8, b"\x92\x01\xa1a"),
    (9, b"\x91\xc7\x03\x07\x92\x01\x02"),
    (10, b"bytes"),
    (11, b"\x01" + bytes(8)),
    (11, b"\xff\x7f" + b"\xff" * 7),
    (12, b"\x07\xea\x0b\x1d"),
    (13, b"\x17\x3b\x3b\x8f\x42\x3f"),
    (14, b"\x07\xea\x0b\x1d\x17\x3b\x3b\x0f\x42\x3f"),
    (14, b"\x07\xea\x0b\x1d\x17\x3b\x3b\x0f\x42\x3f\xc7\x00\x10"),
    (14, b"\x07\xea\x0b\x1d\x17\x3b\x3b\x80\x00\x00\xc7\x03\x11UTC"),
    (15, b"\xff\xff\xff\xff\x00\x01\x51\x7f\x00\x0f\x42\x3f"),
    (16, b"\xce\xd6\x93\xa4\x00\xa3CET"),
    (17, b"Europe/Berlin"),
    (18, b"-1.10E+7"),
    (18, b"sNaN7"),
    (19, b"\xff\x02"),
    (20, b"\x3f\xf0" + bytes(6) + b"\x80" + bytes(7)),
    (21, bytes(range(16))),
    (22, b"\x00\x0a\x02"),
)
#: Options and pieces, in front of what is said.
HEADS = {
    "handshake": 2,
    "frames": 0,
    "session": 1,
    "message": 0,
    "membership": 1,
    "lies": 0,
    "peer": 0,
    "directory": 0,
    "clients": 6,
    "answers": 2,
    "poller": 2,
    "records": 5,
}


def mutated(target: str, data: bytes, rng: random.Random) -> bytes:
    """One change or a few, in the manner of the target, or of any."""
    size = HEADS[target]
    head, body = bytearray(data[:size].ljust(size, b"\0")), data[size:]
    if size and rng.randrange(4) == 0:
        head[rng.randrange(size)] = rng.randrange(256)
    change = CHANGES[target] if rng.randrange(4) else change_bytes
    return bytes(head) + change(body, rng)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice(ODD)
            case 2:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
            case 3:
                del out[at : at + rng.randrange(1, 9)]
            case 4:
                other = rng.randrange(len(out) + 1)
                out[at:at] = out[other : other + rng.randrange(1, 33)]
            case 5:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(LARGE) & (1 << 8 * width) - 1
                out[at : at + width] = number.to_bytes(width, "big")
    return bytes(out)


def change_frames(data: bytes, rng: random.Random) -> bytes:
    found, rest = [], data
    while len(rest) >= 6:
        size = 4 + int.from_bytes(rest[:4], "big")
        if not 6 <= size <= len(rest):
            break
        found.append(rest[:size])
        rest = rest[size:]
    if not found or rng.randrange(16) == 0:
        found[:0] = valid_stream(rng)
    if rng.randrange(8) == 0:
        found.insert(rng.randrange(len(found) + 1), control_frame(rng))
    if rng.randrange(8) == 0:
        # In a body of the same length.
        place = rng.randrange(len(found))
        body = change_bytes(found[place][6:], rng)[: FRAMES_MAX // 2]
        found[place] = slow_session.frame(*found[place][4:6], body)
        return b"".join(found) + rest
    return mutate(rng, found) + rest


def control_frame(rng: random.Random) -> bytes:
    kind = rng.choice((8, 16, 17, 18, 19, 20))
    number = struct.pack(">Q", rng.choice(LARGE))
    body = {
        8: number[:4],
        16: number + number,
        17: number + number,
        18: bytes([rng.randrange(25), 1]) + b"x",
        19: b"\x80",
        20: number,
    }[kind]
    return slow_session.frame(kind, rng.choice((0, 0, 1)) if kind in (16, 17) else 0, body)


def change_message(data: bytes, rng: random.Random) -> bytes:
    """A token more, or around it, or in another one's place."""
    at = rng.randrange(len(data) + 1)
    token = msgpack.packb(junk(rng, 2))
    match rng.randrange(6):
        case 0:
            return data[:at] + token + data[at:]
        case 1:
            return data[:at] + token + data[at + len(token) :]
        case 2:
            return bytes([0x91]) + data if rng.random() < 0.5 else b"\x81\xa1k" + data
        case 3 if len(data) < 1 << 16:
            code = rng.choice((1, 2, 3, 4, 5, 5, 0xFF, *range(7, 23)))
            width = rng.choice((1, 2, 4))
            tag = {1: 0xC7, 2: 0xC8, 4: 0xC9}[width]
            size = len(data) & (1 << 8 * width) - 1
            return bytes([tag]) + size.to_bytes(width, "big") + bytes([code]) + data
        case 4:
            # Several in one, which is an array then.
            return bytes([0x92]) + data + token
    return change_bytes(data, rng)


def junk(rng: random.Random, depth: int) -> Any:
    match rng.randrange(8 if depth else 6):
        case 0:
            return rng.choice((None, True, False, -1, -33, 1.5, float("nan")))
        case 1:
            return rng.choice(LARGE)
        case 2:
            return rng.choice(("", "a", "b", "n0", "h:1", "h:2", "x" * 32, "é", "p::a@h:1", "Pair"))
        case 3:
            return rng.randbytes(rng.randrange(4))
        case 4:
            return msgpack.ExtType(*rng.choice(EXTENSIONS))
        case 5:
            return rng.randrange(10)
        case 6:
            return [junk(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {rng.choice("svmdk"): junk(rng, depth - 1) for _ in range(rng.randrange(3))}


def change_state(data: bytes, rng: random.Random) -> bytes:
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
    except Exception:
        return change_bytes(data, rng)
    states = value if isinstance(value, list) else [value]
    for _ in range(rng.choice((1, 1, 2, 4))):
        state = rng.choice(states) if states else None
        if not isinstance(state, dict) or rng.randrange(12) == 0:
            states.append({key: [] for key in "svm"} if rng.random() < 0.9 else junk(rng, 3))
            continue
        change_rows(state, rng)
    return msgpack.packb(states[:6])


def change_rows(state: dict[Any, Any], rng: random.Random) -> None:
    key = rng.choice("svm")
    rows = state.get(key)
    if not isinstance(rows, list):
        state[key] = []
        return
    row = rng.choice(rows) if rows else None
    match rng.randrange(6):
        case 0 | 1 if isinstance(row, list) and row:
            place = rng.randrange(len(row))
            row[place] = junk(rng, 1) if rng.randrange(8) == 0 else cell(key, place, rng)
        case 2 if rows:
            rows.remove(row)
        case 3:
            state[key] = [*rows, junk(rng, 2)] if rng.randrange(4) == 0 else rows[::-1]
        case _:
            width = {"s": 5, "v": 4, "m": 5}[key]
            rows.append([cell(key, place, rng) for place in range(width)])
            if key == "m" and isinstance(state.get("v"), list):
                # A join in force was seen.
                state["v"].append([*rows[-1][:3], 0])
    for each in "svm":
        if isinstance(state.get(each), list) and rng.randrange(8):
            try:
                state[each] = sorted({tuple(one[:3]): one for one in state[each]}.values())
            except TypeError:
                continue


def cell(key: str, place: int, rng: random.Random) -> Any:
    """What may stand in that place of a row."""
    if place == 0 or (key, place) == ("m", 3):
        return rng.choice(("a", "b", "c", "n0", "x"))
    if place == 4:
        return rng.choice(("h:1", "h:2", "h:3") + (None,) * (key == "s"))
    least = 0 if place == 3 else 1
    top = 2**64 - 1 if place == 1 else 2**63 - 1
    return rng.choice((least, 1, 2, 3, 4, 5, rng.randrange(1, 9), top))


def change_handshake(data: bytes, rng: random.Random) -> bytes:
    """Things done to what is said; half of them with a length that says so."""
    out = garbled(rng, data)
    if rng.random() < 0.5 and out.startswith(wire.MAGIC) and len(data) >= wire.HELLO_HEAD:
        first = wire.HELLO_HEAD + int.from_bytes(data[8:10], "big") + len(out) - len(data)
        out = out[:8] + ((first - wire.HELLO_HEAD) & 0xFFFF).to_bytes(2, "big") + out[10:]
    return out


#: Of lines, JSON and words: what decides.
WORDS = (
    b'"id":1',
    b'"id":null',
    b'"id":9007199254740992',
    b'"msg":',
    b'"value":',
    b'"error":"failed"',
    b'"nack_ms":5',
    b'"push":1',
    b'"goodbye":"drain"',
    b'"text":',
    b'"priority":-1',
    b"NaN",
    b"1e999",
    b"[" * 70,
    b"\\ud800",
    b"\xff",
    b"\r",
    b"BUSY 120",
    b"ERROR failed x",
    b"GOODBYE drain",
    b"raise ",
    b"odd ",
    b"yes ",
    b"unwritable",
    b"unframable",
    b"unbyted",
    b"p1 ",
)


def change_said(data: bytes, rng: random.Random) -> bytes:
    """Frames of a client or of a server, by length or by delimiter: put, taken, moved, changed."""
    frames, rest = [], data
    while len(rest) >= 4 and (size := 4 + int.from_bytes(rest[:4], "big")) <= len(rest):
        frames.append(rest[4:size])
        rest = rest[size:]
    end = b"" if frames else rng.choice((b"\n", b"\n", b"\0"))
    if end:
        *frames, rest = data.split(end)
    if not frames:
        return change_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(frames))
        match rng.randrange(8):
            case 0:
                frames.insert(place, frames[rng.randrange(len(frames))])
            case 1 if len(frames) > 1:
                del frames[place]
            case 2:
                frames.append(frames.pop(place))
            case 3:
                at = rng.randrange(len(frames[place]) + 1)
                frames[place] = frames[place][:at] + rng.choice(WORDS) + frames[place][at:]
            case 4:
                kind = rng.choice((0, 0, 0, 1, 1, 2, 3, 4))
                said = [kind, *(junk(rng, 2) for _ in range(rng.randrange(1, 5)))]
                if kind < 3 and rng.random() < 0.8:
                    said[1] = rng.randrange(8)
                frames.insert(place, msgpack.packb(said))
            case 5:
                frames[place] = change_message(frames[place], rng)
            case 6:
                rest = rng.choice((b"", frames[place][:5], rng.randbytes(3)))
            case _:
                frames[place] = change_bytes(frames[place], rng)
    if end:
        return end.join([*frames, rest])
    return b"".join(struct.pack(">I", len(each)) + each for each in frames) + rest


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "handshake": change_handshake,
    "frames": change_frames,
    "session": change_frames,
    "message": change_message,
    "membership": change_state,
    "lies": change_bytes,
    "peer": change_bytes,
    "directory": change_bytes,
    "clients": change_said,
    "answers": change_said,
    "poller": change_frames,
    "records": change_frames,
}
