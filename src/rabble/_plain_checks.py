"""The checks of `rabble._core.checks` in plain Python, for where the compiled core is not.

A client that runs without the core holds what arrives against the same annotations. What is
accepted, and what an error says, is the same; the tests of the compiled ones run on these, too.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Check"]

KINDS = frozenset(
    ("instance", "types", "literal", "union", "items", "places", "entries", "abstract")
)
#: Characters of the value that did not fit, and of an annotation.
GIVEN_CHARS_MAX = 100
TEXT_CHARS_MAX = 200
#: What is compared by a literal, whose `==` is none of a user's.
COMPARED = (int, str, bytes, bool, type(None))
#: Of these it is known what they are; of another class a user may have said that it is a Sequence.
KNOWN = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(list, tuple, dict, set, frozenset, range),
)


class Check:
    """Whether a value is what an annotation says: see `rabble._core.checks.Check`."""

    __slots__ = ("cls", "entry", "item", "kind", "parts", "text")

    def __init__(
        self,
        kind: str,
        text: str,
        *,
        base: type | None = None,
        parts: tuple[Any, ...] = (),
        item: Check | None = None,
        entry: Check | None = None,
    ) -> None:
        needs_class = kind in ("instance", "items")
        if kind not in KINDS or needs_class != isinstance(base, type):
            raise TypeError("Check: a kind and a class that do not go together")
        for part in parts:
            if kind in ("types", "abstract") and not isinstance(part, type):
                raise TypeError("Check: a part is no class")
            if kind in ("union", "places") and not (
                type(part) is Check or (part is None and kind == "places")
            ):
                raise TypeError("Check: a part is no check")
        self.kind = kind
        self.cls: Any = base
        self.parts = parts
        self.item = item
        self.entry = entry
        self.text = text[:TEXT_CHARS_MAX]

    def fits(self, value: object) -> bool:
        """Whether a value is what is expected. No code of the value's runs."""
        kind = self.kind
        if kind == "instance":
            return is_of(self.cls, value)
        if kind == "types":
            return any(is_of(part, value) for part in self.parts)
        if kind == "union":
            return any(part.fits(value) for part in self.parts)
        if kind == "literal":
            return any(is_the(part, value) for part in self.parts)
        if kind == "items":
            return is_of(self.cls, value) and (self.item is None or self.items_fit(value))
        if kind == "places":
            return (
                isinstance(value, tuple)
                and tuple.__len__(value) == len(self.parts)
                and all(
                    part is None or part.fits(item)
                    for part, item in zip(self.parts, tuple.__iter__(value), strict=True)
                )
            )
        if kind == "entries":
            return is_of(dict, value) and self.entries_fit(value)
        if any(is_of(part, value) for part in self.parts):
            if is_of(dict, value):
                return self.entries_fit(value)
            return self.item is None or self.items_fit(value)
        return not is_one_of(value, KNOWN)

    def items_fit(self, value: Any) -> bool:
        """Whether each item fits; a subclass of a user's may iterate as it likes."""
        assert self.item is not None
        if type(value) is dict:
            return self.entries_fit(value)
        if is_of(list, value):
            return all(map(self.item.fits, list.__iter__(value)))
        if is_of(tuple, value):
            return all(map(self.item.fits, tuple.__iter__(value)))
        return not is_one_of(value, KNOWN) or all(map(self.item.fits, value))

    def entries_fit(self, value: Any) -> bool:
        """Whether each key and each value of a dict fits."""
        return all(
            (self.item is None or self.item.fits(key))
            and (self.entry is None or self.entry.fits(entry))
            for key, entry in dict.items(value)
        )

    def misfit(self, value: object) -> str | None:
        """What of a value does not fit, and what was expected there; `None` if it fits."""
        if self.fits(value):
            return None
        path = []
        check: Check = self
        while (found := first_misfit(check, value)) is not None:
            step, check, value = found
            path.append(step)
        where = "".join(path)
        where = f" at {where.lstrip()[:GIVEN_CHARS_MAX]}" if where else ""
        return f"expected {check.text}{where}, but {given(value)} came"


def is_of(cls: type, value: object) -> bool:
    """`isinstance`, by the real class of the value and its real bases."""
    return any(base is cls for base in type.__dict__["__mro__"].__get__(type(value)))


def is_one_of(value: object, classes: tuple[type, ...]) -> bool:
    return any(cls is type(value) for cls in classes)


def is_the(wanted: object, value: object) -> bool:
    if value is wanted:
        return True
    return type(value) is type(wanted) and is_one_of(value, COMPARED) and value == wanted


def first_misfit(check: Check, value: Any) -> tuple[str, Check, object] | None:
    """The part of a container that does not fit: how it is reached, its check, and itself."""
    if check.kind == "places":
        if is_of(tuple, value) and tuple.__len__(value) == len(check.parts):
            for n, (part, item) in enumerate(zip(check.parts, tuple.__iter__(value), strict=True)):
                if part is not None and not part.fits(item):
                    return f"[{n}]", part, item
        return None
    if check.kind == "items":
        if not is_of(check.cls, value):
            return None
    elif check.kind == "abstract":
        if not is_one_of(value, check.parts):
            return None
    elif check.kind != "entries" or type(value) is not dict:
        return None
    if type(value) is dict:
        for key, entry in value.items():
            if check.item is not None and not check.item.fits(key):
                return " a key", check.item, key
            if check.entry is not None and not check.entry.fits(entry):
                return f"[{brief(key)}]", check.entry, entry
        return None
    if check.item is None or not is_one_of(value, KNOWN):
        return None
    for n, item in enumerate(value):
        if not check.item.fits(item):
            is_set = type(value) in (set, frozenset)
            return " an element" if is_set else f"[{n}]", check.item, item
    return None


def brief(value: object) -> str:
    """A plain value; of any other its type, as its own `__repr__` is a user's."""
    if is_one_of(value, (str, bytes, int, float, bool, type(None))):
        text = repr(value)
        return text if len(text) <= GIVEN_CHARS_MAX else text[: GIVEN_CHARS_MAX - 3] + "..."
    return type(value).__qualname__


def given(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__qualname__
    article = "an" if name[:1] in "AEIOUaeiou" else "a"
    if is_one_of(value, (str, bytes, int, float, bool)):
        return f"{article} {name} ({brief(value)})"
    if is_one_of(value, (list, tuple, set, frozenset, dict)):
        return f"{article} {name} of {len(value)}"
    return f"{article} {name}"
