"""The registry of classes that may travel: `@message`, and what is known of each class.

Any value that msgpack carries is a message, and so is an instance of a class that was declared
with `@message`. A name from the wire is looked up here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import threading
import types
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


__all__ = ["MessageRegistry", "Registration", "default_registry", "message"]

WIRE_NAME_BYTES_MAX = 255

#: What an enum's values may be: they must be the same after the way over the wire.
ENUM_VALUES = (type(None), bool, int, float, str, bytes)

C = TypeVar("C", bound=type)


@dataclasses.dataclass(frozen=True)
class Registration:
    """What a registry knows of one class."""

    #: The class itself.
    cls: type
    #: The wire name.
    name: str
    #: Names of the fields, in the order in which they travel; empty for an enum.
    fields: tuple[str, ...]
    #: Members of an enum; `None` for other classes.
    members: tuple[enum.Enum, ...] | None = None
    #: Whether its constructor does nothing but fill the fields, so that it need not be called.
    built_by_slots: bool = False


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
        #: By the class's id: a metaclass may hash and compare its classes as it likes.
        self._by_class: dict[int, Registration] = {}
        self._by_name: dict[str, Registration] = {}

    def register(self, cls: type, name: str | None = None) -> None:
        """Let a class travel.

        :param cls: a frozen dataclass, a `msgspec.Struct`, or an `enum.Enum` that is no `Flag`.
        :param name: its wire name, the same on every node: 1 to 255 bytes of UTF-8 that print and
            have no spaces. By default `module.qualname`.
        :raises TypeError: if the class is of another kind.
        :raises ValueError: if the name is not usable or belongs to another class. A class of the
            same module and qualified name, as a reload makes it, takes the old one's place.
        """
        self._register(cls, name, plain=False)

    def _register(self, cls: type, name: str | None, *, plain: bool) -> None:
        """`plain`: the dataclass's `__init__` is known to be the generated one."""
        if not isinstance(cls, type):
            raise TypeError(f"only a class can be registered as a message, not {cls!r}")
        name = checked_wire_name(cls, name)
        registration = describe(cls, name, plain=plain)
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


def origin(cls: type) -> tuple[str, str]:
    """Where a class was written: a reload makes another class of the same origin."""
    return cls.__module__, cls.__qualname__


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


def describe(cls: type, name: str, *, plain: bool) -> Registration:
    """What a registry has to know of a class, or `TypeError` if such a class cannot travel."""
    if issubclass(cls, enum.Enum):
        # A flag's unnamed combinations are kept by the class for ever, and a peer could send
        # billions of them.
        if issubclass(cls, enum.Flag):
            raise TypeError(f"{cls.__qualname__} is a Flag: send its int value instead")
        members: tuple[enum.Enum, ...] = tuple(cls)
        for member in members:
            if type(member.value) not in ENUM_VALUES:
                raise TypeError(
                    f"{cls.__qualname__}.{member.name} has a {type(member.value).__name__} as its "
                    f"value; only None, bool, int, float, str and bytes can travel"
                )
            if type(member.value) is int and not -(1 << 63) <= member.value < 1 << 64:
                raise TypeError(
                    f"{cls.__qualname__}.{member.name} has an int of {member.value.bit_length()} "
                    f"bits as its value; only -2**63 to 2**64 - 1 can travel"
                )
        return Registration(cls, name, (), members)
    msgspec = sys.modules.get("msgspec")
    if msgspec is not None and issubclass(cls, msgspec.Struct):
        struct_fields: tuple[str, ...] = cls.__struct_fields__  # type: ignore[attr-defined]
        return Registration(cls, name, struct_fields)
    if "__dataclass_fields__" not in cls.__dict__:
        raise TypeError(
            f"{cls.__qualname__} is no dataclass, msgspec.Struct or enum.Enum; "
            f"declare it with @rabble.message"
        )
    if not cls.__dict__["__dataclass_params__"].frozen:
        raise TypeError(
            f"{cls.__qualname__} is a dataclass that can be changed: "
            f"make it @dataclass(frozen=True, slots=True), or leave that to @rabble.message"
        )
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # type: ignore[arg-type]
    for pseudo in cls.__dict__["__dataclass_fields__"].values():
        if pseudo._field_type is dataclasses._FIELD_INITVAR:  # type: ignore[attr-defined]
            raise TypeError(
                f"{cls.__qualname__}.{pseudo.name} is an InitVar, which the receiver cannot know"
            )
    # What would make the constructor do more than fill slots.
    by_slots = (
        plain
        and type(cls) is type
        and all(field.init for field in fields)
        and not hasattr(cls, "__post_init__")
        and cls.__new__ is object.__new__
        and all(
            isinstance(getattr(cls, field.name, None), types.MemberDescriptorType)
            for field in fields
        )
    )
    return Registration(
        cls, name, tuple(field.name for field in fields if field.init), None, by_slots
    )


#: The registry that `@message` fills, and that a node uses unless it is given another.
default_registry = MessageRegistry()


@overload
def message(cls: C, /) -> C: ...


@overload
def message(
    *, name: str | None = None, registry: MessageRegistry | None = None
) -> Callable[[C], C]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, dataclasses.Field))
def message(
    cls: type | None = None,
    /,
    *,
    name: str | None = None,
    registry: MessageRegistry | None = None,
) -> Any:
    """Declare a class whose instances may be sent to other nodes.

    A plain class becomes a frozen, slotted dataclass. A frozen dataclass, an `enum.Enum` or a
    `msgspec.Struct` is registered as it is. Every node that sends or receives it has to import
    the declaration.

    :param name: its wire name. By default `module.qualname`, which changes when the class moves,
        and is another in a script (`__main__`) than where that is imported: name what should last.
    :param registry: where to register it; by default `default_registry`.
    :returns: the class, or a decorator if it was called with arguments alone.
    :raises TypeError: if such a class cannot travel.
    :raises ValueError: if the name is not usable or taken.

    Fields travel by position, so both sides must have the same ones; their types are not checked,
    and a tuple arrives as a list. A `__post_init__` runs at the receiver too, where raising makes
    the message a `DecodeError`.
    """

    def declare(cls: C) -> C:
        if not isinstance(cls, type):
            raise TypeError(f"@message decorates a class, not {cls!r}")
        plain = is_undecorated(cls)
        if plain:
            plain = "__init__" not in cls.__dict__
            made: Any = dataclasses.dataclass(frozen=True, slots=True)(cls)
            cls = made
        (default_registry if registry is None else registry)._register(cls, name, plain=plain)
        return cls

    return declare if cls is None else declare(cls)


def is_undecorated(cls: type) -> bool:
    """Whether `@message` has to make a dataclass of it."""
    msgspec = sys.modules.get("msgspec")
    return not (
        "__dataclass_fields__" in cls.__dict__
        or issubclass(cls, enum.Enum)
        or (msgspec is not None and issubclass(cls, msgspec.Struct))
    )
