"""What tests of sessions share: two nodes, sessions of theirs, and how their bytes read."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import random
import struct
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import UUID

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.errors import SessionError
from rabble._core.frame import FRAME_KINDS, REFUSAL_CODES, split_frame
from rabble._core.frame_decoder import PeerEvent
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.queue import EnvelopeQueue
from rabble._core.session import Session
from rabble.registry import MessageRegistry, message
from tests.reference import session as reference
from tests.reference.session import frame

FOLDER = Path(__file__).parent

REGISTRY = MessageRegistry()
#: Writes in these tests.
A = NodeId("a", "h:1")
#: Reads.
B = NodeId("b", "h:2")
#: Takes no part.
C = NodeId("c", "h:3")
OPEN = frozenset({"caller"})
SENDER = Pid("m", A)
RECEIVER = Pid("n", B)

CACHE_PID, ENVELOPE, FRAGMENT, DOWN = (
    FRAME_KINDS[name] for name in ("CACHE_PID", "ENVELOPE", "FRAGMENT", "DOWN")
)
PROTOCOL, SPOOF, DECODE, DECODE_LIMIT, FRAME_TOO_LARGE, LIMIT = (
    REFUSAL_CODES[name]
    for name in ("PROTOCOL", "SPOOF", "DECODE", "DECODE_LIMIT", "FRAME_TOO_LARGE", "LIMIT")
)


@message(name="Pair", registry=REGISTRY)
class Pair:
    left: object
    right: object


@message(name="Positive", registry=REGISTRY, post_init=True)
class Positive:
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0:
            raise ValueError(f"{self.n} is not positive")


@message(name="Grown", registry=REGISTRY)
class Grown:
    """Of its fields all but the first may be missing; further ones are dropped."""

    a: int
    b: str = "b"
    c: object = None


@dataclasses.dataclass(frozen=True)
class Celsius:
    """Travels by two functions."""

    degrees: int


def celsius(degrees: object) -> Celsius:
    if type(degrees) is not int:
        raise ValueError("degrees are an int")
    return Celsius(degrees)


REGISTRY.register_type(Celsius, "Celsius", lambda value: value.degrees, celsius)


@message(name="Colour", registry=REGISTRY)
class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


BOUNDS = ("depth_max", "elements_max", "decoded_bytes_max")


def session(own=A, peer=B, registry=REGISTRY, **more) -> Session:
    bounds = {k: more.pop(k) for k in BOUNDS if k in more}
    executor = more.pop("executor", Pid("executor", own, "rabble"))
    codec = Codec(registry, **bounds)
    return Session(own, peer, 7, executor, codec=codec, open_names=OPEN, **more)


def reader(**more) -> Session:
    return session(B, A, **more)


def as_tuple(envelope: Envelope):
    """The same as a tuple of the reference."""
    event = envelope.msg
    if type(event) is not PeerEvent:
        return ("envelope", envelope)
    assert envelope.to == Pid("executor", event.session.own, "rabble")
    to, about, cid = event.to, event.about, event.correlation_id
    return {
        4: ("monitor", about, to, event.reference),
        5: ("demonitor", about, to, event.reference),
        6: ("down", to, about, event.reference, event.why, event.life, event.detail),
        7: ("undelivered", to, cid, event.why, event.crash, about, event.detail),
        8: ("lost", event.count),
        9: ("link", about, to, event.reference),
        10: ("unlink", about, to, event.reference),
        11: ("exit", to, about, event.reference, event.why, event.life, event.detail),
        101: ("undecodable", to, about, cid),
        102: ("refused", to, about, cid),
    }[event.kind]


def read(to: Session, data: bytes):
    """What `data` says, and the code that ends the connection, or None."""
    queue = EnvelopeQueue()
    code = None
    try:
        to.decode_into(data, queue)
    except SessionError as error:
        code = error.code
    return [as_tuple(queue.take()) for _ in range(len(queue))], code


def read_by_reference(to: reference.FrameDecoder, data: bytes):
    """The same of the reference."""
    code = None
    del to.events[:]
    try:
        to.read(data)
    except reference.Wrong as wrong:
        code = wrong.code
    return list(to.events), code


def reference_reader(**more) -> reference.FrameDecoder:
    return reference.FrameDecoder(B, A, REGISTRY, OPEN, **more)


def write(to: Session, what) -> None:
    if what[0] == "envelope":
        to.write(*what[1:])
    else:
        getattr(to, what[0])(*what[1:])


def expect_same(data: bytes) -> None:
    """Compiled and reference decoder read the same in these frames, and end for the same reason.

    But for two things that the reference does not tell from malformed bytes: a bound of the
    codec, and a class that is not registered, behind which the compiled one goes on.
    """
    received, code = read(reader(), data)
    expected, expected_code = read_by_reference(reference_reader(), data)
    limit = DECODE if code == DECODE_LIMIT else code
    expected_limit = DECODE if expected_code == DECODE_LIMIT else expected_code
    for place, what in enumerate(received):
        if what[0] == "undecodable":
            received = received[:place]
            limit = DECODE
            break
    assert repr((received, limit)) == repr((expected, expected_limit)), data.hex()


def pair_of(what):
    """Whom of the peer it concerns, and whom of this node: what the order is kept for."""
    if what[0] == "envelope":
        return what[1].sender, what[1].to
    if what[0] == "refused":
        return what[2], what[1]
    if what[0] in ("down", "exit"):
        return what[2], what[1]
    if what[0] in ("link", "unlink"):
        return what[1], what[2]
    return what[0]


def by_pair(sequence):
    found = {}
    for what in sequence:
        found.setdefault(pair_of(what), []).append(what)
    return found


class Lanes:
    """Empties the lanes of a link as the poll loop does: what it took of the bulk lane it sends at
    some time, frame by frame, and what is in the data lane then goes first.
    """

    def __init__(self, writer, deliver):
        self.writer = writer
        self.deliver = deliver
        self.bulk = []

    def take(self, step):
        """Do one of STEPS."""
        if step == "d":
            self.deliver(self.writer.take_data())
        elif step == "b":
            self.take_bulk()
        elif step in "Bh" and self.bulk:
            some = 1 if step == "h" else len(self.bulk)
            self.deliver(self.writer.take_data() + b"".join(self.bulk[:some]))
            del self.bulk[:some]
            self.take_bulk()

    def take_bulk(self):
        self.bulk += frames_in(self.writer.take_bulk(unsent=sum(map(len, self.bulk))))
        self.writer.take_bulk(unsent=sum(map(len, self.bulk)))

    def take_all(self):
        data = self.writer.take_data()
        self.deliver(data + b"".join(self.bulk) + self.writer.take_bulk())


#: Nothing; take the data lane; the bulk lane; send all of that; the first frame of it.
STEPS = "...dbBh"


def frames_in(data):
    """The frames as bytes each."""
    frames = []
    while data:
        length = split_frame(data)[3]
        frames.append(data[:length])
        data = data[length:]
    return frames


def asked_by(asker, msg=1, request=None):
    """A request of `asker` to the receiver, as who is asked first may pass it on."""
    return Envelope(RECEIVER, msg, asker, CorrelationId(asker, None, request))


def names_said(*texts: str) -> bytes:
    return b"".join(
        frame(CACHE_PID, 0, struct.pack(">H", place) + text.encode())
        for place, text in enumerate(texts)
    )


VALUES = (
    (1, (2,)),
    {"x", 7},
    {(1, "x"): frozenset({2**64}), 2.5: bytearray(b"x")},
    [datetime.datetime(2026, 11, 29, fold=1, tzinfo=datetime.UTC), datetime.timedelta(-1, 2)],
    [Decimal("1.10"), Fraction(1, 3), 1j, UUID(int=7), range(3)],
    {Grown(1), Grown(2, "x", (Celsius(3),))},
)
PREAMBLE = names_said("n::b@h:2", "m::a@h:1")


def valid_stream(rng: random.Random) -> list[bytes]:
    writer = session(
        fragment_bytes=rng.choice([16, 64, 65536]), pid_cache_slots=rng.choice([2, 8192])
    )
    pids = [Pid(rng.choice("pqrs"), node, rng.choice([None, "g"])) for node in (A, A, B, B, C)]
    for _ in range(rng.randrange(1, 6)):
        sender, to = rng.choice(pids[:2]), rng.choice(pids[2:4])
        cid = rng.choice([None, CorrelationId(rng.choice(pids), 1, rng.getrandbits(63))])
        msg = rng.choice(
            [None, 7, "text", [1, "x", {"k": 2.5}], Pair(1, sender), b"x" * 40, *VALUES]
        )
        rng.choice(
            [
                lambda: writer.write(Envelope(to, msg, sender, cid)),  # noqa: B023
                lambda: writer.write(Envelope(to, msg, rng.choice([None, sender]), cid)),  # noqa: B023
                lambda: writer.monitor(sender, to, rng.getrandbits(64)),  # noqa: B023
                lambda: writer.down(to, sender, 5, rng.randrange(1, 7), 7, "why"),  # noqa: B023
                lambda: writer.link(sender, to, rng.getrandbits(64)),  # noqa: B023
                lambda: writer.unlink(sender, to, rng.getrandbits(64)),  # noqa: B023
                lambda: writer.exit(to, sender, 5, rng.randrange(1, 7), 7, "why"),  # noqa: B023
                lambda: writer.write(Envelope(to, msg, to, CorrelationId(to)), sender),  # noqa: B023
                lambda: writer.undelivered(  # noqa: B023
                    to,  # noqa: B023
                    cid,  # noqa: B023
                    rng.choice([*range(1, 10), 15, 17, 18, 20, 22]),
                    rng.choice([0, 7, 1 << 63]),
                    rng.choice([None, sender]),  # noqa: B023
                    rng.choice(["", "why"]),
                ),
            ]
        )()
    return frames_in(writer.take_data() + writer.take_bulk())


def mutate(rng: random.Random, frames: list[bytes]) -> bytes:
    frames = list(frames)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = rng.randrange(len(frames))
        one = bytearray(frames[place])
        kind = rng.randrange(7)
        if kind == 0:
            one[rng.randrange(len(one))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            one[rng.randrange(len(one))] = rng.choice([0, 1, 0x7F, 0x80, 0xC1, 0xC7, 0xDF, 0xFF])
        elif kind == 2:
            # A body that is longer or shorter, in a frame that says so.
            body = one[6:]
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
            one = bytearray(frame(one[4], one[5], bytes(body)))
        elif kind == 3:
            one[5] = rng.randrange(64)
        elif kind == 4:
            one[4] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 16, 19, 20])
        elif kind == 5:
            frames.insert(rng.randrange(len(frames) + 1), bytes(one))
            continue
        else:
            del frames[place]
            if not frames:
                return b""
            continue
        frames[place] = bytes(one)
    return b"".join(frames)
