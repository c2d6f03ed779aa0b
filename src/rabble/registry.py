"""The registry of classes that may travel: `@message`, and what is known of each class.

Any value that msgpack carries is a message, and so is an instance of a class that was declared
with `@message`, or of a type that was registered with functions of its own. A name from the wire is
looked up here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import fractions
import threading
import unicodedata
import uuid
import zoneinfo
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from rabble._annotations import Compiled, field_checks
from rabble._classes import Registration, described, made_dataclass, origin

try:
    from rabble._core.ids import CorrelationId, NodeId, Pid
except ModuleNotFoundError:
    # Where only clients run, without the compiled core, nothing is of these classes.
    IDS: tuple[type, ...] = ()
else:
    IDS = (Pid, NodeId, CorrelationId)

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


__all__ = ["MessageRegistry", "Registration", "default_registry", "message"]

WIRE_NAME_BYTES_MAX = 255

#: What travels as it is: what it becomes is no program's to say.
PLAIN_TYPES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(list, dict, tuple, set, frozenset, range),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(zoneinfo.ZoneInfo, decimal.Decimal, fractions.Fraction, uuid.UUID),
    *IDS,
)

C = TypeVar("C", bound=type)
T = TypeVar("T")


class MessageRegistry:
    """The classes that may travel, each under its wire name.

    A receiver builds only what its own registry has. Any thread may use it, and classes may be
    added while nodes run; none is removed, so it is bounded by the code that declares them.
    """

    def __init__(self) -> None:
        #: Held while a class is added, and while a codec works out how to write or build one.
        self.lock = threading.RLock()
        #: What codecs worked out, by class and by the wire name's bytes. Emptied by `register`.
        self.plans_by_class: dict[object, object] = {}
        self.plans_by_name: dict[bytes, object] = {}
        #: How often a class was added. What was worked out before that may be of another class.
        self.changes = 0
        #: Fields that came with messages and that their classes do not have here, by all nodes.
        self.fields_dropped = 0
        #: By the class's id: a metaclass may hash and compare its classes as it likes.
        self._by_class: dict[int, Registration] = {}
        self._by_name: dict[str, Registration] = {}

    def register(
        self, cls: type, name: str | None = None, *, check: bool = True, post_init: bool = False
    ) -> None:
        """Let a class travel.

        :param cls: a frozen dataclass, a `NamedTuple`, a `msgspec.Struct`, a frozen pydantic model
            or attrs class, or an `enum.Enum` that is no `Flag`.
        :param name: its wire name, the same on every node: 1 to 255 bytes of UTF-8 that print and
            have no spaces. By default `module.qualname`.
        :param check: as of `message`, and so is `post_init`.
        :raises TypeError: if the class is of another kind.
        :raises ValueError: if the name is not usable or belongs to another class. A class of the
            same module and qualified name, as a reload makes it, takes the old one's place.
        """
        self._register(cls, name, plain=False, check=check, post_init=post_init)

    def register_type(
        self,
        cls: type[T],
        name: str,
        encode: Callable[[T], Any],
        decode: Callable[[Any], T],
    ) -> None:
        """Let instances of any class travel, by two functions.

        :param cls: the class; its subclasses do not travel by it.
        :param name: its wire name, as of `register`.
        :param encode: gives a value that can be sent, for an instance.
        :param decode: gives an instance of this very class, for what arrived of that value. It is
            given what a peer sent, so it has to look at it, and may raise.
        :raises TypeError: if it is no class, or travels without, or a function cannot be called.
        :raises ValueError: if the name is not usable or taken.

        Both run while a message is encoded or decoded, in whatever thread does that. What they
        raise makes it an `EncodeError` or a `DecodeError` that says so.
        """
        if not isinstance(cls, type):
            raise TypeError(f"only a class can be registered as a type, not {cls!r}")
        if any(cls is plain for plain in PLAIN_TYPES):
            raise TypeError(f"{cls.__qualname__} travels as it is; a subclass of it may be given")
        if not callable(encode) or not callable(decode):
            raise TypeError(f"register_type({cls.__qualname__}): two functions are needed")
        name = checked_wire_name(cls, name)
        self._add(Registration(cls, name, check=False, encode=encode, decode=decode))

    def _register(
        self, cls: type, name: str | None, *, plain: bool, check: bool, post_init: bool
    ) -> None:
        """`plain`: the dataclass's `__init__` is known to be the generated one."""
        if not isinstance(cls, type):
            raise TypeError(f"only a class can be registered as a message, not {cls!r}")
        name = checked_wire_name(cls, name)
        self._add(described(cls, name, plain=plain, check=check, post_init=post_init))

    def _add(self, registration: Registration) -> None:
        cls, name = registration.cls, registration.name
        with self.lock:
            known = self._by_name.get(name)
            if known is not None and origin(known.cls) != origin(cls):
                raise ValueError(
                    f"the wire name {name!r} belongs to {'.'.join(origin(known.cls))}; "
                    f"give {'.'.join(origin(cls))} another: @message(name=...)"
                )
            before = self._by_class.get(id(cls))
            if before is not None and before.name != name:
                raise ValueError(
                    f"{'.'.join(origin(cls))} is registered already, as {before.name!r}"
                )
            if known is not None:
                del self._by_class[id(known.cls)]
            self._by_class[id(cls)] = registration
            self._by_name[name] = registration
            self.changes += 1
            self.plans_by_class.clear()
            self.plans_by_name.clear()

    def name_of(self, cls: type) -> str:
        """The wire name of a class. From any thread.

        :raises LookupError: if it is not registered.
        """
        registration = self.registration_of(cls)
        if registration is None:
            raise LookupError(f"{cls!r} is not registered; declare it with @rabble.message")
        return registration.name

    def class_of(self, name: str) -> type:
        """The class of a wire name. From any thread.

        :raises LookupError: if none is registered under it.
        """
        registration = self.registration_named(name)
        if registration is None:
            raise LookupError(f"no class is registered as {name!r}")
        return registration.cls

    def fields_of(self, cls: type) -> tuple[str, ...]:
        """Names of a class's fields in the order in which they travel. From any thread.

        :returns: no name for an enum.
        :raises LookupError: if it is not registered.
        """
        self.name_of(cls)
        return self._by_class[id(cls)].fields

    def unchecked(self, cls: type) -> tuple[str, ...]:
        """Names of a class's fields whose annotations are not, or not wholly, checked.

        Those are annotations that only code of a program's own could check, that cannot be
        resolved, or that say of a generic class what it is of. From any thread.

        :returns: all names if the class was registered with `check=False`.
        :raises LookupError: if it is not registered.
        """
        self.name_of(cls)
        registration = self._by_class[id(cls)]
        checks = self.checks_of(registration)
        return tuple(
            name
            for name, (_, complete) in zip(registration.fields, checks, strict=True)
            if not complete
        )

    def checks_of(self, registration: Registration) -> tuple[Compiled, ...]:
        """For each field its check, or `None`, and whether that says all of its annotation."""
        if not registration.check:
            return ((None, False),) * len(registration.fields)
        return field_checks(registration.cls, registration.fields, self.__contains__)

    def note_dropped(self, count: int) -> None:
        """Count fields that a decoder dropped. From any thread."""
        with self.lock:
            self.fields_dropped += count

    def replaced_by(self, cls: type) -> str | None:
        """The wire name of the class that took the place of this one, declared anew; else none."""
        for registration in list(self._by_name.values()):
            if registration.cls is not cls and origin(registration.cls) == origin(cls):
                return registration.name
        return None

    def registration_of(self, cls: type) -> Registration | None:
        """All that is known of a class; `None` if it is not registered."""
        return self._by_class.get(id(cls))

    def registration_named(self, name: str) -> Registration | None:
        """All that is known of the class of a wire name; `None` if there is none."""
        return self._by_name.get(name)

    def __contains__(self, cls: object) -> bool:
        return id(cls) in self._by_class

    def __len__(self) -> int:
        return len(self._by_class)


def checked_wire_name(cls: type, name: str | None) -> str:
    """The wire name to use, or `ValueError`."""
    if name is None:
        name = ".".join(origin(cls))
    elif not isinstance(name, str):
        raise TypeError(f"a wire name must be a str, not {type(name).__name__}: {name!r}")
    problem = None
    if not name:
        problem = "it is empty"
    elif not name.isprintable() or any(c.isspace() for c in name):
        problem = "it has spaces or characters that do not print"
    elif len(name.encode()) > WIRE_NAME_BYTES_MAX:
        problem = f"it takes more than {WIRE_NAME_BYTES_MAX} bytes of UTF-8"
    elif not unicodedata.is_normalized("NFC", name):
        problem = "it is not in Unicode normal form C (use unicodedata.normalize('NFC', name))"
    if problem is not None:
        raise ValueError(f"the wire name {ascii(name[:80])} is not usable: {problem}")
    return name


#: The registry that `@message` fills, and that a node uses unless it is given another.
default_registry = MessageRegistry()


@overload
def message(cls: C, /) -> C: ...


@overload
def message(
    *,
    name: str | None = None,
    registry: MessageRegistry | None = None,
    check: bool = True,
    post_init: bool = False,
) -> Callable[[C], C]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, dataclasses.Field))
def message(
    cls: type | None = None,
    /,
    *,
    name: str | None = None,
    registry: MessageRegistry | None = None,
    check: bool = True,
    post_init: bool = False,
) -> Any:
    """Declare a class whose instances may be sent to other nodes.

    A plain class becomes a frozen, slotted dataclass. A frozen dataclass, a `NamedTuple`, an
    `enum.Enum`, a `msgspec.Struct`, a frozen pydantic model or a frozen attrs class is registered
    as it is. Every node that sends or receives it has to import the declaration.

    :param name: its wire name. By default `module.qualname`, which changes when the class moves,
        and is another in a script (`__main__`) than where that is imported: name what should last.
    :param registry: where to register it; by default `default_registry`.
    :param check: whether fields that arrive are held against their annotations; one that does not
        fit makes the message a `DecodeError` that names it. `MessageRegistry.unchecked` says which
        annotations are not understood.
    :param post_init: whether the constructor runs at the receiver, with its `__post_init__`, its
        validators and converters; where it raises, the message is a `DecodeError`. Without, the
        fields are filled with what the sender had.
    :returns: the class, or a decorator if it was called with arguments alone.
    :raises TypeError: if such a class cannot travel.
    :raises ValueError: if the name is not usable or taken.

    Fields travel by position. A class grows at its end: fields that a message of an older version
    lacks get their defaults, and fields that came last and are not known here are dropped.
    """

    def declare(cls: C) -> C:
        if not isinstance(cls, type):
            raise TypeError(f"@message decorates a class, not {cls!r}")
        made: Any = made_dataclass(cls)
        plain = made is not cls and "__init__" not in cls.__dict__
        (default_registry if registry is None else registry)._register(
            made, name, plain=plain, check=check, post_init=post_init
        )
        replaced: C = made
        return replaced

    return declare if cls is None else declare(cls)
