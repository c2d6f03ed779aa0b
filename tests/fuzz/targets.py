"""What a stranger's bytes must not do: one function a target, which raises on a finding only.

Compiled code is held against the slow Python of tests/reference. That also is what guides the
fuzzer: it sees which branches of the Python were taken, and the two have the same ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import socket
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from rabble._core.codec import Codec
from rabble._core.connection import Connection
from rabble._core.errors import DecodeError, DecodeLimitError, FrameError
from rabble._core.frame import FRAME_KINDS, split_frame
from rabble._core.ids import NodeId
from rabble._core.poller import Poller
from rabble.cluster.decide import handshake_wire as wire
from rabble.cluster.decide.bans import ROW_BYTES_MAX, Bans
from rabble.cluster.decide.handshake import Established, Failed, HandshakeConfig
from rabble.cluster.decide.membership import Changes, Membership, MembershipError
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.limits import Limits
from tests.cluster.decide import test_handshake as hands
from tests.core import sessions
from tests.core.strategies import same
from tests.fuzz.directory_lies import play as play_directory
from tests.fuzz.hostile_clients import play as play_clients
from tests.fuzz.hostile_server import play as play_answers
from tests.fuzz.lies import play
from tests.fuzz.lying_peer import play as play_peer
from tests.reference import codec as slow_codec
from tests.reference import records as slow_records
from tests.reference import session as slow_session
from tests.support import TINY

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]

#: Pieces in which a stream arrives, of which an input's first bytes choose.
SIZES = (1, 3, 7, 35, 50, 83, 300, 4096)


def pieces(said: bytes, choice: int) -> Iterator[bytes]:
    """Cut a stream into pieces of two sizes in turn."""
    sizes = SIZES[choice & 7], SIZES[choice >> 3 & 7]
    at = turn = 0
    while at < len(said):
        yield said[at : at + sizes[turn]]
        at += sizes[turn]
        turn ^= 1


# Handshake: options, pieces, stream. What it came to does not depend on how a turn was cut, and
# nobody is believed who does not have the key.

INITIATES, KEYED, REFUSES, WAITS, DIALLED, NEWER, PROVES, BY_BYTES = (1 << n for n in range(8))


def handshake(data: bytes) -> None:
    if len(data) < 2:
        return
    options, said = data[0], data[2:]
    if options & PROVES:
        said = with_proof(options, said)
    side = new_side(options)
    for piece in pieces(said, data[1]):
        side.hear(piece)
    check_side(options, side)
    if options & BY_BYTES:
        check_cuts(options, said, data[1])


@functools.cache
def config_of(options: int, own: HandshakeConfig) -> HandshakeConfig:
    return dataclasses.replace(
        own,
        key=own.key if options & KEYED else None,
        secured=True,
        versions=(1, 3) if options & NEWER else (1, 1),
    )


def new_side(options: int) -> hands.Side:
    if options & INITIATES:
        expected = hands.B if options & DIALLED else None
        return hands.initiator(config_of(options & (KEYED | NEWER), hands.AT_A), expected=expected)
    verdict = Refusal(RefusalCode.STALE_INCARNATION, "böse", 7) if options & REFUSES else None
    return hands.responder(
        config_of(options & (KEYED | NEWER), hands.AT_B),
        verdict=verdict,
        answers=not options & WAITS,
        certified=frozenset({"alpha", "beta"}) if options & DIALLED else None,
    )


def with_proof(options: int, said: bytes) -> bytes:
    """The same with the PROOF, behind the HELLO, of somebody who has the key."""
    first = wire.HELLO_HEAD + int.from_bytes(said[8:10], "big")
    hello, rest = said[:first], said[first + 3 + 32 * bool(options & KEYED) :]
    key = hands.KEY if options & KEYED else None
    nonce = hands.NONCE_A if options & INITIATES else hands.NONCE_B
    own = hands.AT_A if options & INITIATES else hands.AT_B
    # Over TLS, which is where there are certificates, no stream is authenticated.
    secured = options & DIALLED and not options & INITIATES
    flags = wire.KEY_FLAG if secured and options & KEYED else None
    mine = hands.hello_of(
        config_of(options & (KEYED | NEWER), own),
        nonce,
        **({} if flags is None else {"flags": flags}),
    )
    both = mine + hello if options & INITIATES else hello + mine

    def proof(label: bytes, before: bytes) -> bytes:
        body = wire.proof_of(key, label, hashlib.sha256(before).digest())
        return wire.follow_up(wire.PROOF, body)

    whole = proof(wire.INITIATOR_LABEL, both)
    if options & INITIATES:
        whole = proof(wire.RESPONDER_LABEL, both + whole)
    return hello + whole + rest


def check_side(options: int, side: hands.Side) -> None:
    believed = side.judged is not None or isinstance(side.end, Established)
    side.tick(4.9)
    side.tick(5.0)
    assert side.end is not None
    if isinstance(side.end, Failed):
        assert side.end.text.isascii() and side.end.text.isprintable(), side.end
        believed |= side.end.authenticated
    if believed:
        assert side.received.startswith(wire.MAGIC)
        assert with_proof(options, side.received) == side.received, "believed without a proof"
    if not options & INITIATES and side.sent:
        assert side.received.startswith(wire.MAGIC), "an answer for who is no node"
    assert len(side.sent) <= 2_048


def check_cuts(options: int, said: bytes, choice: int) -> None:
    """Byte by byte, and in pieces that end where this side has its turn: the outcome is one."""
    one, other = new_side(options), new_side(options)
    turns, heard = [], 0
    while heard < len(said) and one.end is None:
        before = len(one.sent), one.judged
        one.hear(said[heard : heard + 1])
        heard += 1
        if (len(one.sent), one.judged) != before:
            turns.append(heard)
    start = 0
    for end in [*turns, len(said)]:
        for piece in pieces(said[start:end], choice):
            other.hear(piece)
        start = end
    assert one.sent == other.sent, (one.end, other.end)
    assert outcome(one) == outcome(other)


def outcome(side: hands.Side) -> object:
    """How it ended, without the words; and without what followed, for only pieces bring that."""
    if isinstance(side.end, Failed):
        return dataclasses.replace(side.end, text="")
    return side.end and side.end.peer


# Frames: where a frame ends, and that what is wrong is seen at its sixth byte.


def frames(data: bytes) -> None:
    while True:
        try:
            found = split_frame(data, 65_536)
            code = 0
        except FrameError as error:
            found, code = None, error.code
        try:
            expected, expected_code = slow_session.split_frame(data, 65_536), 0
        except slow_session.Wrong as wrong:
            expected, expected_code = None, wrong.code
        assert (found, code) == (expected, expected_code)
        # Of a BYE the seventh byte is how long its text is.
        if code and data[4:5] != bytes([FRAME_KINDS["BYE"]]):
            with contextlib.suppress(FrameError):
                raise AssertionError(f"a body is waited for: {split_frame(data[:6], 65_536)}")
        if found is None:
            return
        kind, flags, body, size = found
        assert slow_session.frame(kind, flags, body) == data[:size]
        for part in (3, 5, 6, size // 2, size - 1):
            assert part >= size or split_frame(data[:part], 65_536) is None
        data = data[size:]


# Link: the fragment size with which it is said again, and frames.


def session(data: bytes) -> None:
    if not data:
        return
    stream = data[1:]
    sessions.expect_same(stream)
    heard, _ = sessions.read(sessions.reader(), stream)
    said = [what for what in map(sayable, heard) if what]
    if not said:
        return
    writer = sessions.session(
        fragment_bytes=16 + data[0], pid_cache_slots=2 if data[0] & 1 else 8192
    )
    for what in said:
        sessions.write(writer, what)
    again, code = sessions.read(sessions.reader(), writer.take_data() + writer.take_bulk())
    assert code is None, code
    assert comparable(sessions.by_pair(again)) == comparable(sessions.by_pair(said))


def comparable(found: dict[Any, list[Any]]) -> dict[Any, list[Any]]:
    """With messages that are equal also where they are NaNs, or sets in another order."""
    return {
        pair: [
            (what[1].to, what[1].sender, what[1].correlation_id, Same(what[1].msg))
            if what[0] == "envelope"
            else what
            for what in events
        ]
        for pair, events in found.items()
    }


class Same:
    """A value that is equal to what is the same in the sense of `strategies.same`."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and same(self.value, other.value)

    __hash__ = None  # type: ignore[assignment]


def sayable(what: tuple[Any, ...]) -> tuple[Any, ...] | None:
    # Of no envelopes nothing is said to be lost.
    if what[0] in ("refused", "undecodable") or what == ("lost", 0):
        return None
    if what[0] in ("down", "exit"):
        # What is said is in normal form C, and cut.
        text = unicodedata.normalize("NFC", what[6])
        return (*what[:6], text) if len(text.encode()) <= 1_000 else None
    if what[0] == "undelivered":
        text = unicodedata.normalize("NFC", what[6])
        return (*what[:6], text) if len(text.encode()) <= 1_000 else None
    return what


# Message: msgpack. What the codec refuses and other libraries take is listed in `STRICT`.

STRICT = ("an extension type", "a key twice in a map")
GENEROUS = Codec(sessions.REGISTRY, depth_max=256, elements_max=1 << 31)
NARROW = Codec(sessions.REGISTRY, depth_max=4, elements_max=16, decoded_bytes_max=2_000)


def message(data: bytes) -> None:
    value, refused = decoded(GENEROUS, data)
    try:
        expected, malformed = slow_codec.decode(sessions.REGISTRY, data), False
    except (ValueError, RecursionError):
        expected, malformed = None, True
    if isinstance(refused, DecodeLimitError) and not malformed:
        assert data.count(b"\x91") + data.count(b"\x81") > 200, refused
        return
    assert malformed == (refused is not None), refused
    assert same(value, expected), (value, expected)
    found: set[str] = set()
    theirs, wrong = decoded_by_msgpack(data, found)
    if refused is None:
        assert wrong is None, f"msgpack refuses: {wrong!r}"
        again = GENEROUS.encode_message(value)
        assert same(GENEROUS.decode_message(again), value)
        if not found:
            assert same(theirs, value)
            assert msgpack.packb(value) == again
            if msgspec is not None:
                assert same(msgspec.msgpack.decode(data), value)
    elif wrong is None:
        assert found or isinstance(refused, DecodeLimitError), f"msgpack accepts: {refused!r}"
    less, narrow = decoded(NARROW, data)
    if refused is None and narrow is None:
        assert same(less, value)
    elif refused is None:
        assert isinstance(narrow, DecodeLimitError), narrow
    else:
        assert narrow is not None


def decoded(codec: Codec, data: bytes) -> tuple[Any, DecodeError | None]:
    try:
        return codec.decode_message(data), None
    except DecodeError as error:
        return None, error


def decoded_by_msgpack(data: bytes, found: set[str]) -> tuple[Any, Exception | None]:
    """What msgpack makes of it; `found` is given those of `STRICT` that are in it."""

    def extension(code: int, body: bytes) -> None:
        found.add(STRICT[0])

    def pairs(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
        keys = [key for key, _ in items]
        if len(set(keys)) != len(keys):
            found.add(STRICT[1])
        return dict(items)

    try:
        value = msgpack.unpackb(
            data, ext_hook=extension, object_pairs_hook=pairs, strict_map_key=False
        )
    except Exception as error:
        # Of extension type -1, a time, it looks into the body.
        return None, error
    if b"\xff" in data and has_time(value):
        found.add(STRICT[0])
    return value, None


def has_time(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(has_time, [*value, *value.values()]))
    if isinstance(value, list):
        return any(map(has_time, value))
    return isinstance(value, msgpack.Timestamp)


# Membership: options, then a state, or an array of them, as msgpack. A state is taken whole or not
# at all, and those that are taken can be in any order. So are bans, `b` in place of a state.

PLAIN = Codec(sessions.REGISTRY)
WIDE = Limits(membership_dots_per_member_max=100)
TIGHT = Limits(
    membership_members_max=4,
    membership_retired_max=2,
    membership_dots_per_member_max=2,
    bans_max=2,
)
OWN = NodeId("n0", "h:1")


def membership(data: bytes) -> None:
    value, refused = decoded(PLAIN, data[1:])
    # Names of the onlookers below.
    if refused is not None or b"zz" in data:
        return
    limits = TIGHT if data[0] & 1 else WIDE
    own, bans = Membership(OWN, 3, limits), Bans(OWN, limits)
    states = []
    for each in as_list(value):
        if type(each) is dict and "b" in each:
            check_bans(bans, each["b"], limits)
        elif merged(own, each, limits) is not None:
            states.append(each)
    if limits is TIGHT:
        # Where things are forgotten, the order matters.
        return
    onlookers = [Membership(NodeId("zz", "h:1"), 1, WIDE) for _ in range(2)]
    for onlooker, order in zip(onlookers, (states, states[::-1]), strict=True):
        for state in order:
            onlooker.merge(state)
    assert onlookers[0].encoded() == onlookers[1].encoded()


def check_bans(bans: Bans, rows: object, limits: Limits) -> None:
    before, now = bans.rows(0.0), 1_000.0
    try:
        changes = bans.merge(rows, 0.0, ("n1",))
    except MembershipError as error:
        assert len(str(error)) < 400 and str(error).isascii(), error
        assert bans.rows(0.0) == before, "taken in by half"
        return
    after = bans.rows(0.0)
    assert len(bans) <= limits.bans_max
    assert all(0.0 <= ban.until <= limits.ban_seconds_max for ban in bans.in_force(0.0))
    assert all(len(PLAIN.encode_message(row)) <= ROW_BYTES_MAX for row in after)
    assert {row[0] for row in after} >= {*changes.learned, *changes.confirmed} - {"n1"}
    # What it says then is what others take, and that says the same.
    other = Bans(NodeId("zz-2", "h:1"), limits)
    sent = PLAIN.decode_message(PLAIN.encode_message(after))
    assert sent == after
    other.merge(sent, now)
    assert other.summary(now) == bans.summary(0.0)
    assert [row[:-1] for row in other.rows(now)] == [row[:-1] for row in after]
    assert not bans.merge(sent, 0.0).learned


def as_list(value: object) -> list[Any]:
    return value if type(value) is list else [value]


def merged(own: Membership, state: object, limits: Limits) -> Changes | None:
    before, members = own.encoded(), own.members()
    try:
        changes = own.merge(state)
    except MembershipError as error:
        assert len(str(error)) < 400 and str(error).isascii(), error
        assert (own.encoded(), own.members()) == (before, members), "taken in by half"
        return None
    after = own.members()
    assert changes.state_changed == (own.encoded() != before) or limits is TIGHT
    assert set(changes.added) == set(after.values()) - set(members.values())
    assert set(changes.removed) == set(members.values()) - set(after.values())
    assert len(after) <= limits.membership_members_max
    # What it says then is a state that others take, and that says the same.
    other = Membership(NodeId("zz-2", "h:1"), 1, WIDE)
    sent = PLAIN.decode_message(own.encoded())
    assert sent == own.state()
    other.merge(sent)
    assert other.members() == {**after, "zz-2": other.own}
    assert not own.merge(sent).state_changed
    if limits is WIDE:
        assert not own.merge(state).state_changed, "the same is news again"
    return changes


# Lies: what honest nodes do, and what a member says of them. They agree when it is gone.


def lies(data: bytes) -> int:
    return play(data).steps


# Peer: the same said to whole control planes, over connections, in virtual time.


def peer(data: bytes) -> int:
    return play_peer(data).steps


# Directory: the same of names and groups.


def directory(data: bytes) -> int:
    return play_directory(data).happened["lie"]


# Clients: options, pieces, bounds, what happens when; and what they say to a server.


def clients(data: bytes) -> int:
    return play_clients(data).steps


# Answers: options, pieces, and what a server says to a client.


def answers(data: bytes) -> None:
    play_answers(data)


# Poller: options, pieces, and what a peer writes.

MEMBERSHIP, BYE, PING, PONG, WINDOW_UPDATE = (
    FRAME_KINDS[name] for name in ("MEMBERSHIP", "BYE", "PING", "PONG", "WINDOW_UPDATE")
)
FRAMES_MAX = 65_536


def poller(data: bytes) -> None:
    if len(data) < 2:
        return
    said = data[2:10_002]

    def check(heard: bytes, connection: Connection, answered: bytes) -> None:
        check_heard(said, heard, connection, answered)

    listen(said, data[0], data[1], 1, check)


def listen(
    said: bytes,
    options: int,
    choice: int,
    looks: int,
    check: Callable[[bytes, Connection, bytes], None],
    stream_keys: tuple[bytes, bytes] | None = None,
) -> None:
    """Have a poller read what a peer writes, and check what it heard of it, and answered."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        poll = Poller(
            heartbeat_ms=60_000, frame_bytes_max=FRAMES_MAX, queue_bytes_max=1 << 20,
            partial_ms_max=60_000,
        )  # fmt: skip
        early = said[: SIZES[options >> 1 & 7]] if options & 16 else b""
        connection = poll.attach(ours.detach(), sessions.session(), early, stream_keys=stream_keys)
        heard = [poll.take_frames(connection, 100)]
        for piece in pieces(said[len(early) :], choice):
            with contextlib.suppress(ConnectionError):
                theirs.send(piece)
            poll.poll()
            if options & 1:
                heard.append(poll.take_frames(connection, 100))
        # In the tiny build a look reads seven bytes.
        for _ in range(2 * len(said) + 10 if TINY else looks):
            poll.poll()
            while some := poll.take_frames(connection, SIZES[options >> 5]):
                heard.append(some)
        check(b"".join(heard), connection, answers_of(theirs))
    poll.poll()
    poll.poll()
    assert not connection.open and poll.connections == 0


def answers_of(theirs: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while some := theirs.recv(1 << 20):
            said += some
    return said


def check_heard(
    said: bytes, heard: bytes, connection: Connection, answered: bytes, wrong_behind: int = 0
) -> None:
    """`wrong_behind`: the code of what is wrong behind what was said."""
    expected, code = stream(said)
    if code == 0 and not (expected and expected[-1][0] == BYE):
        code = wrong_behind
    control = [(kind, body) for kind, _, body in expected if kind in (MEMBERSHIP, BYE)]
    ended = code or (control[-1][1][0] if control and control[-1][0] == BYE else 0)
    is_over = bool(code or (control and control[-1][0] == BYE))
    for lane in (False, True):
        here = [each for each in stream(heard)[0] if is_bulk(*each[:2]) == lane]
        assert here == [each for each in expected if each[0] < PING and is_bulk(*each[:2]) == lane]
    assert connection.take_control() == control
    assert (connection.open, connection.code) == (not is_over, ended)
    replies, wrong = stream(answered)
    assert not wrong
    if control and control[-1][0] == BYE:
        return  # The descriptor was closed, with what was unread.
    pinged = [body[:8] for kind, _, body in expected if kind == PING]
    ponged = [body[:8] for kind, _, body in replies if kind == PONG]
    # What waited is left out before a BYE.
    assert ponged == pinged if not code else ponged == pinged[: len(ponged)]
    byes = [body[0] for kind, _, body in replies if kind == BYE]
    assert byes == ([code] if code else [])
    assert {kind for kind, _, _ in replies} <= {PONG, BYE, WINDOW_UPDATE}


def stream(data: bytes) -> tuple[list[tuple[int, int, bytes]], int]:
    """The whole frames up to a BYE, and the code of the error behind them, or 0."""
    found: list[tuple[int, int, bytes]] = []
    while True:
        try:
            one = slow_session.split_frame(data, FRAMES_MAX)
        except slow_session.Wrong as wrong:
            return found, wrong.code
        if one is None:
            return found, 0
        found.append(one[:3])
        if one[0] == BYE:
            return found, 0
        data = data[one[3] :]


# Records: options, pieces, what somebody on the way does and to which record, the size of records,
# and what a peer says in them.

SENT, RECEIVED = bytes(range(32)), bytes(range(32, 64))


def records(data: bytes) -> None:
    if len(data) < 5:
        return
    options, choice, act, number, size = data[:5]
    said, sealer = data[5:5_005], slow_records.Sealer(RECEIVED)
    sealed = [sealer.seal(piece) for piece in pieces(said, size)]
    wire = meddled(sealed, act, number)
    verifier = slow_records.Verifier(RECEIVED)
    verified = verifier.take(wire)
    assert said.startswith(verified), "what was not said is verified"

    def check(heard: bytes, connection: Connection, answered: bytes) -> None:
        answers = slow_records.Verifier(SENT)
        plain = answers.take(answered)
        assert not answers.wrong and not answers.waits
        wrong = RefusalCode.INTEGRITY if verifier.wrong else 0
        check_heard(verified, heard, connection, plain, wrong)

    listen(wire, options, choice, len(sealed) + 2, check, (SENT, RECEIVED))


def meddled(sealed: list[bytes], act: int, number: int) -> bytes:
    """What arrives of these records if somebody does that to one of them."""
    if not sealed or act >= 192:
        return b"".join(sealed)
    at = number % len(sealed)
    one, before, after = sealed[at], b"".join(sealed[:at]), b"".join(sealed[at + 1 :])
    match act % 12:
        case 0:
            bit = act * 37 % (8 * len(one))
            one = one[: bit // 8] + bytes([one[bit // 8] ^ 1 << bit % 8]) + one[bit // 8 + 1 :]
        case 1:
            one = b""
        case 2:
            one = one + one
        case 3:
            one = sealed[at - 1] + one
        case 4:
            one, after = after[: len(sealed[-1])] + one, after[len(sealed[-1]) :]
        case 5:
            one = slow_records.seal(SENT, at, one[slow_records.HEAD :])
        case 6:
            one = slow_records.seal(RECEIVED, at + 1, one[slow_records.HEAD :])
        case 7:
            one = one[: act % len(one)]
        case 8:
            one = one[slow_records.HEAD :]
        case 9:
            one = slow_session.frame(MEMBERSHIP, 0, b"\x80") + one
        case 10:
            one = (len(one) - 21).to_bytes(4, "big") + one[4:-1]
        case 11:
            one = one + b"\xff" * (act % 24)
    return before + one + after


def is_bulk(kind: int, flags: int) -> bool:
    return kind == 3 or bool(kind in (2, 6, 8) and flags & 16)


#: Some say how many steps their input was.
TARGETS: dict[str, Callable[[bytes], int | None]] = {
    each.__name__: each
    for each in (
        handshake,
        frames,
        session,
        message,
        membership,
        lies,
        peer,
        directory,
        clients,
        answers,
        poller,
        records,
    )  # fmt: skip
}
