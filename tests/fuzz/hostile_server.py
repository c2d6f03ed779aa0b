"""A server that means harm to `rabble.client`, decided by bytes: what a client makes of them.

Whatever comes, in whatever pieces, a client raises `ProtocolError` at worst, once and then each
time; ends each request once, by an event that is its own; and keeps no more than came, of which no
more than a frame waits. However the bytes are cut, they say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rabble.client.errors import ProtocolError
from rabble.client.events import Event, Goodbye, Push, Undecoded, error_of
from rabble.client.framing import Framing, JsonLines, MsgpackFrames, PlainLines
from rabble.client.limits import ClientLimits
from rabble.client.protocol import ClientProtocol
from rabble.errors import DecodeError, RabbleError
from tests.core import sessions

#: Options and pieces.
HEAD = 2
FRAMINGS = (MsgpackFrames, JsonLines, PlainLines)
#: Pieces in which a stream arrives.
SIZES = (1, 2, 3, 7, 20, 64, 500, 4_096)
IN_FLIGHT = 20


def play(data: bytes) -> int:
    """Say it to a client, in pieces and whole; the number of events that came of it."""
    if len(data) < HEAD:
        return 0
    options, choice, said = data[0], data[1], data[HEAD:]
    limits = ClientLimits(
        frame_bytes_max=(64, 4_096)[options >> 4 & 1],
        message_depth_max=(64, 4)[options >> 5 & 1],
        message_decoded_bytes_max=1 << 20,
        in_flight_max=IN_FLIGHT,
    )
    kind = FRAMINGS[options & 3 if options & 3 < 3 else 0]
    one, other = (
        hear(kind(sessions.REGISTRY, limits), cut, limits, options >> 6)
        for cut in (pieces(said, choice), [said])
    )
    assert one == other, (one, other)
    return len(one)


def pieces(said: bytes, choice: int) -> Iterator[bytes]:
    sizes = SIZES[choice & 7], SIZES[choice >> 3 & 7]
    at = turn = 0
    while at < len(said):
        yield said[at : at + sizes[turn]]
        at += sizes[turn]
        turn ^= 1


def hear(
    framing: Framing, said: Iterable[bytes], limits: ClientLimits, abandons: int
) -> list[tuple[Any, ...]]:
    """What a client with requests in flight is told, as text, so that NaNs are equal."""
    of: ClientProtocol[str] = ClientProtocol(framing, limits.in_flight_max)
    waiting = {n: str(n) for n in range(IN_FLIGHT - 2)}
    for n, waiter in waiting.items():
        assert of.request(waiter, "x")[0] == n
    for n in range(abandons):
        of.abandon(n, waiting[n])
    gone = {n: waiting.pop(n) for n in range(abandons)}
    found: list[tuple[Any, ...]] = []
    for piece in said:
        of.feed(piece)
        try:
            for waiter, event in of.events():
                found.append(checked(waiter, event, waiting))
                assert not isinstance(event, Goodbye) or not list(of.events())
        except ProtocolError as error:
            assert len(str(error)) < 1_000, error
            found.append(("broken",))
            break
        if found and found[-1][1:2] == ("Goodbye",):
            break
        assert waits(framing) <= limits.frame_bytes_max + 4
    if found and found[-1] == ("broken",):
        for _ in range(2):
            # It is the end: nothing of what follows is looked at, nor kept.
            of.feed(b"\0" * 10)
            try:
                list(of.events())
            except ProtocolError:
                continue
            raise AssertionError("what is broken was mended")
    assert of.late <= len(gone)
    left = of.end()
    assert sorted(left) == sorted(waiting.values()), (left, waiting)
    return found


def checked(waiter: str | None, event: Event, waiting: dict[int, str]) -> tuple[Any, ...]:
    """An event is what it says, and its request waits no more."""
    if isinstance(event, Goodbye):
        assert waiter is None
        return (None, "Goodbye", event.code, event.text)
    if isinstance(event, Push):
        assert waiter is None
        return (None, "Push", repr(event.msg))
    if event.id is None:
        assert isinstance(event, Undecoded) and waiter is None
        return (None, "Undecoded")
    assert waiting.pop(event.id) == waiter, ("another one's answer", event)
    error = error_of(event)
    assert error is None or isinstance(error, RabbleError), error
    if isinstance(event, Undecoded):
        assert isinstance(event.error, DecodeError)
        return (waiter, "Undecoded")
    return (waiter, repr(event))


def waits(framing: Framing) -> int:
    """Bytes that came and say nothing yet."""
    if isinstance(framing, MsgpackFrames):
        return len(framing._received)
    assert isinstance(framing, JsonLines | PlainLines)
    return len(framing._lines._received)
