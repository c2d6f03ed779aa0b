"""Strict mode, for tests: what arrives is what was sent, and nobody changes it on its way.

`Strict` has every local message encoded and decoded, and compares what arrives with what was sent.
`Changes` hands over the object itself, as a node without strict mode does, and finds out who
changed it: it keeps the bytes of each message from its send until its receiver has handled it.

Nothing here asks a user's object whether it is equal to another: two values are equal if they are
of the same type and their parts are.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from rabble._core.envelope import Envelope
from rabble._core.errors import EncodeError
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.texts import bounded_repr, given, must_pass, type_name
from rabble.messages import LOCAL_CLASSES, DeadLetter, DeadLetterReason

if TYPE_CHECKING:
    from rabble._core.executor import Executor
    from rabble.process import Output, Process

__all__ = ["Changes", "Difference", "Strict"]

#: Those whose own `==` says it all, and runs nobody's code.
EXACT = frozenset({type(None), bool, int, str, bytes, bytearray, Pid, NodeId, CorrelationId})
#: Those whose `repr` has all that they are: NaN, the sign of a zero, the fold of a time.
BY_REPR = frozenset(
    {
        float,
        complex,
        range,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        datetime.timezone,
        zoneinfo.ZoneInfo,
        decimal.Decimal,
        fractions.Fraction,
        uuid.UUID,
    }
)
#: Elements of a set that are equal to none by their hash, each compared with each.
UNHASHED_MAX = 256
#: Characters of a key in a path.
KEY_CHARS_MAX = 60
#: Messages that a receiver changed and that others may still be given: who changed them is known.
CHANGED_KEPT_MAX = 64


class MessageCodec(Protocol):
    """What a message goes through on its way to another node."""

    def encode_message(self, msg: Any) -> Any:
        """The bytes of a message."""

    def decode_message(self, data: Any) -> Any:
        """The message of those bytes."""


#: Where a value lies in a message: what leads to what it is in, and the last step from there.
Path = tuple["Path", str] | None


class Difference:
    """Two values that should be equal, and where they lie.

    :param path: where.
    :param sent: the one that was sent.
    :param found: the one that is there instead.
    """

    def __init__(self, path: Path, sent: Any, found: Any) -> None:
        steps = []
        while path is not None:
            path, step = path
            steps.append(step)
        self.path = "msg" + "".join(reversed(steps))
        self.sent = sent
        self.found = found

    def words(self, verb: str) -> str:
        """As a sentence: what was sent, and what `verb` instead."""
        return f"{self.path}: {given(self.sent)} was sent, and {given(self.found)} {verb}"


class Strict:
    """Says how each message arrives, or why it cannot.

    Belongs to the executor's thread.

    :param codec: of the node: as its connections encode and decode.
    """

    #: Makes what is called instead of a process's `receive`; `None` leaves it.
    guard: Callable[[Process, Callable[..., Output]], Callable[..., Output]] | None = None
    #: An envelope as it was sent, of one on its way; `None` if they are the same.
    opened: Callable[[Envelope], Envelope] | None = None

    def __init__(self, codec: MessageCodec) -> None:
        self._codec = codec
        self._registry = getattr(codec, "registry", None)

    def arriving(self, envelope: Envelope) -> Any:
        """The message of an envelope as another node would be given it.

        :raises EncodeError: if it does not travel, or would arrive as another; says where.

        Raises also what the message's own code raises, which is a reason not to travel as well.
        """
        return self._through_codec(envelope.msg)[1]

    def _through_codec(self, msg: Any) -> tuple[Any, Any]:
        """The bytes of a message, and what arrives."""
        data = self._codec.encode_message(msg)
        arrived = self._codec.decode_message(data)
        different = self.difference(msg, arrived)
        if different is not None:
            raise EncodeError(f"it would arrive as another: {different.words('arrives')}")
        return data, arrived

    def difference(self, sent: Any, found: Any) -> Difference | None:
        """The first difference of two values, or `None` if they are equal, and of equal types.

        It ends: it goes no deeper than the one of the two that was decoded.
        """
        # A stack of its own: the values may be nested deeper than calls may be.
        left: list[tuple[Any, Any, Path]] = [(sent, found, None)]
        while left:
            a, b, path = left.pop()
            if a is b:
                continue
            cls = type(a)
            if cls is not type(b):
                return Difference(path, a, b)
            if cls in EXACT:
                if a != b:
                    return Difference(path, a, b)
            elif cls in BY_REPR:
                if repr(a) != repr(b):
                    return Difference(path, a, b)
            elif cls is set or cls is frozenset:
                different = self._set_difference(a, b, path)
                if different is not None:
                    return different
            else:
                parts = self._parts(a, b, path)
                if parts is None:
                    return Difference(path, a, b)
                left.extend(reversed(parts))
        return None

    def _parts(self, a: Any, b: Any, path: Path) -> list[tuple[Any, Any, Path]] | None:
        """What is to be compared for two values of one class; `None` if they differ for certain."""
        cls = type(a)
        if cls is dict:
            return dict_parts(a, b, path)
        if issubclass(cls, enum.Enum):
            # They were not the same member.
            return None
        names = self._fields(cls)
        if names:
            return [
                (getattr(a, name, None), getattr(b, name, None), (path, f".{name}"))
                for name in names
            ]
        if issubclass(cls, (list, tuple)):
            a, b = tuple(a), tuple(b)
            if len(a) != len(b):
                return None
            return [(x, y, (path, f"[{i}]")) for i, (x, y) in enumerate(zip(a, b, strict=True))]
        # What the program registered by functions of its own, or has no fields.
        return [] if self._same_bytes(a, b) else None

    def _same_bytes(self, a: Any, b: Any) -> bool:
        try:
            return bool(self._codec.encode_message(a) == self._codec.encode_message(b))
        except ValueError:
            return False

    def _fields(self, cls: type) -> tuple[str, ...]:
        """The fields of a registered class: those that travel, and those that are compared."""
        if self._registry is None or cls not in self._registry:
            return ()
        names = dict.fromkeys(self._registry.fields_of(cls))
        if "__dataclass_fields__" in cls.__dict__:
            fields = dataclasses.fields(cls)
            names.update(dict.fromkeys(field.name for field in fields if field.compare))
        return tuple(names)

    def _set_difference(self, a: Any, b: Any, path: Path) -> Difference | None:
        if len(a) != len(b):
            return Difference(path, a, b)
        by_hash: dict[int, list[Any]] = {}
        for element in b:
            by_hash.setdefault(hash(element), []).append(element)
        unmatched = [
            element
            for element in a
            if not self._take_equal(element, by_hash.get(hash(element), []))
        ]
        # NaN has another hash each time, and so has all that it is in.
        others = [element for elements in by_hash.values() for element in elements]
        if len(unmatched) > UNHASHED_MAX:
            return Difference(path, a, b)
        for element in unmatched:
            if not self._take_equal(element, others):
                # Beside one that it is not equal to.
                step = f"{{{bounded_repr(element, KEY_CHARS_MAX)}}}"
                return Difference((path, step), element, others[0])
        return None

    def _take_equal(self, element: Any, others: list[Any]) -> bool:
        for i, other in enumerate(others):
            if self.difference(element, other) is None:
                del others[i]
                return True
        return False


def dict_parts(
    a: dict[Any, Any], b: dict[Any, Any], path: Path
) -> list[tuple[Any, Any, Path]] | None:
    """The pairs of two dicts, in their order, which travels too."""
    if len(a) != len(b):
        return None
    parts: list[tuple[Any, Any, Path]] = []
    # Not by `items`: CPython 3.11 crashes if there is no memory for an iterator over those.
    pairs = zip(list(a), list(a.values()), list(b), list(b.values()), strict=True)
    for key, x, other_key, y in pairs:
        shown = bounded_repr(key, KEY_CHARS_MAX)
        if type(key) is not str or key != other_key:
            parts.append((key, other_key, (path, f".key({shown})")))
        parts.append((x, y, (path, f"[{shown}]")))
    return parts


class Sealed:
    """A message on its way within a node, and the bytes that it was when it was sent."""

    __slots__ = ("data", "msg")

    def __init__(self, msg: Any, data: Any) -> None:
        self.msg = msg
        self.data = data


class Changes(Strict):
    """As `Strict`, but each receiver is given the very object, and who changes it is found.

    A message that was changed before it was delivered becomes a `CHANGED` dead letter. A process or
    service that changes what it was given crashes when it returns. All of it is reported.

    `send`, `send_envelope`, `post` and `received` are for any thread, the others for the
    executor's.

    :param codec: of the node.
    :param report: takes the words of what was found, to be logged. From any thread.
    """

    executor: Executor

    def __init__(self, codec: MessageCodec, report: Callable[[Callable[[], str]], None]) -> None:
        super().__init__(codec)
        self._report = report
        self._changed: collections.deque[tuple[Any, Pid]] = collections.deque(
            maxlen=CHANGED_KEPT_MAX
        )
        self._local_ids = frozenset(map(id, LOCAL_CLASSES))
        self.guard = self._guarded
        self.opened = as_sent

    # Sent.

    def arriving(self, envelope: Envelope) -> Any:
        """The message to be queued. Raises as `Strict.arriving` does."""
        if type(envelope.msg) is Sealed:
            # By the thread that sent it.
            return envelope.msg
        data, _ = self._through_codec(envelope.msg)
        return Sealed(envelope.msg, data) if self._stays_here(envelope.to) else envelope.msg

    def send(
        self,
        to: Pid,
        msg: Any,
        *,
        sender: Pid | None = None,
        correlation_id: CorrelationId | None = None,
    ) -> None:
        """As `Node.send`: the message is what it is now, whatever becomes of it in the queue."""
        self.executor.send(to, self._sealed(to, msg), sender=sender, correlation_id=correlation_id)

    def post(self, envelope: Envelope) -> bool:
        """As `Executor.post`."""
        return self.executor.post(self._with_sealed(envelope))

    def send_envelope(self, envelope: Envelope) -> None:
        """As `Executor.send_envelope`."""
        self.executor.send_envelope(self._with_sealed(envelope))

    def _with_sealed(self, envelope: Envelope) -> Envelope:
        msg = self._sealed(envelope.to, envelope.msg)
        if msg is envelope.msg:
            return envelope
        return Envelope(envelope.to, msg, envelope.sender, envelope.correlation_id)

    def _stays_here(self, to: Pid | None) -> bool:
        return type(to) is Pid and to.node == self.executor.node

    def _sealed(self, to: Pid | None, msg: Any) -> Any:
        if not self._stays_here(to) or to == self.executor.pid or id(type(msg)) in self._local_ids:
            return msg
        try:
            return Sealed(msg, self._through_codec(msg)[0])
        except BaseException as error:
            if must_pass(error):
                raise
            # The executor finds that too, and says so.
            return msg

    # Delivered.

    def received(self, envelope: Envelope) -> Envelope | None:
        """An envelope as it was sent, for its receiver; `None` if its message was changed."""
        sealed = envelope.msg
        if type(sealed) is not Sealed:
            return envelope
        envelope = as_sent(envelope)
        return envelope if self._is_unchanged(sealed, envelope) else None

    def callback(
        self, deliver: Callable[[Envelope], None], answers: bool
    ) -> Callable[[Envelope], None]:
        """What takes the envelopes of a pid of the runtime's own.

        :param deliver: what takes those that were not changed.
        :param answers: whether it waits for each of them, and is told of what does not come.
        """

        def take(envelope: Envelope) -> None:
            opened = self.received(envelope)
            if opened is not None:
                deliver(opened)
            elif answers:
                letter = DeadLetter(as_sent(envelope), DeadLetterReason.CHANGED)
                correlation_id = envelope.correlation_id
                deliver(Envelope(envelope.to, letter, self.executor.pid, correlation_id))

        return take

    def check_unchanged_by(self, receiver: Pid, envelope: Envelope) -> None:
        """Raise if a receiver has changed what it was given.

        :param envelope: as it was on its way.
        """
        if type(envelope.msg) is Sealed:
            self._check_after(envelope.msg, receiver, envelope.sender, f"{receiver}")

    def _guarded(self, process: Process, receive: Callable[..., Output]) -> Callable[..., Output]:
        """What is called instead of the `receive` of a process."""

        def guarded(msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
            if type(msg) is not Sealed:
                return receive(msg, sender, correlation_id)
            pid = process.pid
            if not self._is_unchanged(msg, Envelope(pid, msg.msg, sender, correlation_id)):
                return None
            name = f"{type_name(process)}.receive"
            output = receive(msg.msg, sender, correlation_id)
            if output is None or isinstance(output, (Envelope, list, tuple)):
                self._check_after(msg, pid, sender, name)
                return output
            return self._to_the_end(output, msg, pid, sender, name)

        return guarded

    def _to_the_end(
        self, output: Output, sealed: Sealed, pid: Pid, sender: Pid | None, name: str
    ) -> Output:
        """A generator works on as it is gone through."""
        if not isinstance(output, Iterable):
            # No output: that is said by who takes it.
            return output

        def all_of_it() -> Iterator[Envelope]:
            yield from output
            self._check_after(sealed, pid, sender, name)

        return all_of_it()

    # Changed.

    def _change(self, sealed: Sealed) -> Difference | None:
        try:
            if self._codec.encode_message(sealed.msg) == sealed.data:
                return None
        except BaseException as error:
            if must_pass(error):
                raise
            # It is one no longer.
        return self.difference(self._codec.decode_message(sealed.data), sealed.msg)

    def _is_unchanged(self, sealed: Sealed, envelope: Envelope) -> bool:
        change = self._change(sealed)
        if change is None:
            return True
        receiver, sender = envelope.to, envelope.sender
        blamed = [pid for msg, pid in list(self._changed) if msg is sealed.msg]
        if blamed:
            who = f"{blamed[-1]}, which was given the same object, changed it in its receive"
        else:
            who = (
                f"only who holds the object can have changed it: {sender or 'its sender'} kept it, "
                f"or shares what is in it with others"
            )
        text = (
            f"the {type_name(sealed.msg)} from {sender} to {receiver} was changed between its send "
            f"and its delivery, {change.words('is there now')}; {who}. Send a copy, or what cannot "
            f"be changed"
        )
        self._report(lambda: text)
        self.executor.undeliverable(envelope, DeadLetterReason.CHANGED)
        return False

    def _check_after(self, sealed: Sealed, receiver: Pid, sender: Pid | None, name: str) -> None:
        change = self._change(sealed)
        if change is None:
            return
        self._changed.append((sealed.msg, receiver))
        raise RuntimeError(
            f"{name} changed the {type_name(sealed.msg)} that {sender or 'somebody'} sent to "
            f"{receiver} while it handled it: {change.words('is there now')}; others may hold the "
            f"same object, so work on a copy"
        )


def as_sent(envelope: Envelope) -> Envelope:
    """An envelope as its sender made it, of one on its way."""
    sealed = envelope.msg
    if type(sealed) is not Sealed:
        return envelope
    return Envelope(envelope.to, sealed.msg, envelope.sender, envelope.correlation_id)
