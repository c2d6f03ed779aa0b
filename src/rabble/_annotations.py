"""Annotations of fields, made into checks of what arrives.

What cannot be checked without asking code of a user's is left: it passes, and `unchecked` names it.
"""

from __future__ import annotations

import collections.abc
import enum
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rabble._core.checks import Check
else:
    try:
        from rabble._core.checks import Check
    except ModuleNotFoundError:
        # Where only clients run, without the compiled core.
        from rabble._plain_checks import Check

__all__ = ["field_checks"]

#: How deep an annotation is followed; deeper, and around in a circle, nothing is checked.
NESTED_MAX = 16
#: Of how many parts an annotation may consist; of one with more nothing is checked. They share
#: parts easily, and then their number doubles with each level.
PARTS_MAX = 10_000
#: Characters of an annotation in an error.
TEXT_CHARS_MAX = 100

TEXTS = (str, bytes, bytearray, range)
#: What the abstract classes stand for, of the types that arrive.
ABSTRACT: dict[Any, tuple[type, ...]] = {
    collections.abc.Sequence: (list, tuple, *TEXTS),
    collections.abc.MutableSequence: (list, bytearray),
    collections.abc.Collection: (list, tuple, set, frozenset, dict, *TEXTS),
    collections.abc.Iterable: (list, tuple, set, frozenset, dict, *TEXTS),
    collections.abc.Container: (list, tuple, set, frozenset, dict, *TEXTS),
    collections.abc.Reversible: (list, tuple, dict, *TEXTS),
    collections.abc.Set: (set, frozenset),
    collections.abc.MutableSet: (set,),
    collections.abc.Mapping: (dict,),
    collections.abc.MutableMapping: (dict,),
}
#: Of which an argument says what is allowed.
WRAPPERS = {
    getattr(typing, name)
    for name in ("Final", "Required", "NotRequired", "ReadOnly", "ClassVar")
    if hasattr(typing, name)
}
#: What may stand for a number; PEP 484 says so.
NUMBERS: dict[Any, tuple[type, ...]] = {float: (float, int), complex: (complex, float, int)}

#: What older annotations say for the builtin classes.
BARE: tuple[tuple[Any, type], ...] = (
    (typing.Tuple, tuple),  # noqa: UP006 - it is what is looked for
    (typing.List, list),  # noqa: UP006
    (typing.Dict, dict),  # noqa: UP006
    (typing.Set, set),  # noqa: UP006
    (typing.FrozenSet, frozenset),  # noqa: UP006
)

#: A check, `None` if it lets everything pass, and whether it says all that the annotation does.
Compiled = tuple[Check | None, bool]

LEFT: Compiled = (None, False)
ANYTHING: Compiled = (None, True)


def field_checks(
    cls: type, fields: Iterable[str], is_registered: Callable[[type], bool]
) -> tuple[Compiled, ...]:
    """The check of each field of a class.

    :param is_registered: whether instances of a class may arrive.
    :raises MemoryError: rather than leave a field unchecked for ever, as what is made is kept.
    """
    try:
        hints = annotations_of(cls, fields)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - an annotation may run anything
        hints = {}
    return tuple(
        guarded(hints[name], cls, is_registered) if name in hints else LEFT for name in fields
    )


def guarded(annotation: Any, cls: type, is_registered: Callable[[type], bool]) -> Compiled:
    try:
        if has_more_parts(annotation, PARTS_MAX):
            return LEFT
        return Compiler(cls, is_registered).compile(annotation, NESTED_MAX)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a metaclass may raise anything
        return LEFT


def annotations_of(cls: type, fields: Iterable[str]) -> dict[str, Any]:
    """The annotations of fields, those that can be resolved now."""
    here = {cls.__name__: cls}
    try:
        return typing.get_type_hints(cls, localns=here, include_extras=True)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - one that cannot be resolved spoils all
        pass
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in raw_annotations(base).items():
            if name not in fields:
                continue
            found.pop(name, None)
            alone: Any = types.SimpleNamespace(__annotations__={name: annotation})
            names = {**vars(sys.modules.get(base.__module__, types)), **here}
            try:
                found.update(typing.get_type_hints(alone, names, here, include_extras=True))
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - left unchecked
                continue
    return found


def raw_annotations(base: type) -> dict[str, Any]:
    """A class's own annotations, as they were written."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(base, format=annotationlib.Format.FORWARDREF)
    return dict(base.__dict__.get("__annotations__", {}))


def has_more_parts(annotation: Any, most: int) -> bool:
    """Whether an annotation consists of more parts, of which one that is shared counts each time.

    Asked first: to print such a one takes as long as to follow it.
    """
    parts = [annotation]
    while parts and most >= 0:
        most -= 1
        part = parts.pop()
        if typing.get_origin(part) is not typing.Literal:
            parts.extend(typing.get_args(part))
    return most < 0


class Compiler:
    """Makes the check of one annotation of a class."""

    def __init__(self, cls: type, is_registered: Callable[[type], bool]) -> None:
        self.cls = cls
        self.is_registered = is_registered
        self.parts_left = PARTS_MAX

    def compile(self, annotation: Any, nested: int) -> Compiled:
        """The check of an annotation that is nested in others."""
        # Aliases have parts as well.
        self.parts_left -= 1
        if nested == 0 or self.parts_left < 0:
            return LEFT
        nested -= 1
        if annotation is Any or annotation is object:
            return ANYTHING
        if annotation is None or annotation is type(None):
            return Check("instance", "None", base=type(None)), True
        if annotation is getattr(typing, "LiteralString", Any):
            return self.of_class(str)
        if annotation is getattr(typing, "Self", Any):
            return self.of_class(self.cls)
        supertype = getattr(annotation, "__supertype__", None)
        if isinstance(annotation, typing.NewType) and supertype is not None:
            return self.compile(supertype, nested)
        if isinstance(annotation, typing.TypeVar):
            return self.of_type_var(annotation, nested)
        if hasattr(typing, "TypeAliasType") and isinstance(annotation, typing.TypeAliasType):
            return self.compile(annotation.__value__, nested)
        for bare, builtin in BARE:
            if annotation is bare:
                return self.of_class(builtin)
        origin = typing.get_origin(annotation)
        if origin is not None:
            return self.of_alias(annotation, origin, typing.get_args(annotation), nested)
        if isinstance(annotation, type):
            return self.of_class(annotation)
        return LEFT

    def of_type_var(self, variable: typing.TypeVar, nested: int) -> Compiled:
        """What a variable is bound to, as what it stands for is not known here."""
        if variable.__constraints__:
            check, _ = self.of_union(str(variable), variable.__constraints__, nested)
            return check, False
        if variable.__bound__ is not None:
            check, _ = self.compile(variable.__bound__, nested)
            return check, False
        return LEFT

    def of_class(self, cls: type) -> Compiled:
        text = cls.__qualname__.rpartition("<locals>.")[2]
        if cls in NUMBERS:
            return Check("types", text, parts=NUMBERS[cls]), True
        if cls in ABSTRACT:
            return Check("abstract", text, parts=ABSTRACT[cls]), True
        if typing.is_typeddict(cls):
            return Check("instance", text, base=dict), False
        if not self.is_registered(cls):
            if type(cls).__instancecheck__ is not type.__instancecheck__:
                return LEFT
            # What pydantic makes of a field with such an annotation may be of any class.
            if hasattr(cls, "__get_pydantic_core_schema__"):
                return LEFT
        return Check("instance", text, base=cls), True

    def of_union(self, text: str, members: Iterable[Any], nested: int) -> Compiled:
        checks = []
        whole = True
        for member in members:
            check, complete = self.compile(member, nested)
            whole = whole and complete
            if check is None:
                return None, complete
            checks.append(check)
        return Check("union", text, parts=tuple(checks)), whole

    def of_alias(self, alias: Any, origin: Any, args: tuple[Any, ...], nested: int) -> Compiled:
        """`origin[args]`."""
        text = text_of(alias)
        if origin is typing.Annotated or origin in WRAPPERS:
            return self.compile(args[0], nested)
        if origin is typing.Union or origin is types.UnionType:
            return self.of_union(text, args, nested)
        if origin is typing.Literal:
            known = all(isinstance(arg, str | bytes | int | enum.Enum | None) for arg in args)
            return (Check("literal", text, parts=args), True) if known else LEFT
        if origin is tuple:
            return self.of_tuple(text, args, nested)
        if origin in (list, set, frozenset):
            item, complete = self.compile(args[0], nested)
            return Check("items", text, base=origin, item=item), complete
        if origin is dict:
            return self.of_entries("entries", text, (), args, nested)
        if origin in ABSTRACT:
            return self.of_entries("abstract", text, ABSTRACT[origin], args, nested)
        if origin is type or origin is collections.abc.Callable:
            return LEFT
        if hasattr(typing, "TypeAliasType") and isinstance(origin, typing.TypeAliasType):
            return self.compile(origin.__value__[args], nested)
        if isinstance(origin, type):
            # A generic class: what stands in the brackets, its instances do not say.
            return self.of_class(origin)[0], False
        return LEFT

    def of_tuple(self, text: str, args: tuple[Any, ...], nested: int) -> Compiled:
        if len(args) == 2 and args[1] is Ellipsis:
            item, complete = self.compile(args[0], nested)
            return Check("items", text, base=tuple, item=item), complete
        if any(is_many(arg) for arg in args):
            return Check("items", text, base=tuple), False
        parts = [self.compile(arg, nested) for arg in args]
        check = Check("places", text, parts=tuple(part for part, _ in parts))
        return check, all(complete for _, complete in parts)

    def of_entries(
        self, kind: str, text: str, parts: tuple[type, ...], args: tuple[Any, ...], nested: int
    ) -> Compiled:
        """A dict, or what an abstract class stands for: of items, or of keys and values."""
        compiled = [self.compile(arg, nested) for arg in args]
        item = compiled[0][0] if compiled else None
        entry = compiled[1][0] if len(compiled) > 1 else None
        check = Check(kind, text, parts=parts, item=item, entry=entry)
        return check, all(complete for _, complete in compiled)


def is_many(arg: Any) -> bool:
    """Whether it stands for several places of a tuple."""
    if isinstance(arg, typing.TypeVarTuple):
        return True
    return typing.get_origin(arg) is typing.Unpack or getattr(arg, "__unpacked__", False) is True


def text_of(annotation: Any) -> str:
    """An annotation, as its class wrote it or nearly so."""
    text = repr(annotation).replace("typing.", "").replace("collections.abc.", "")
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 3] + "..."
