"""Classes that may travel: what each kind has as fields, and how its instances are built.

An instance that arrives is filled with what its sender had, without its constructor, wherever that
is known to do nothing but fill fields: a `__post_init__`, a validator or a converter did its work
where the object was made.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from rabble._cells import adopt

__all__ = ["Default", "Registration", "described", "made_dataclass", "origin", "type_of_names"]

#: What an enum's values may be: they must be the same after the way over the wire.
ENUM_VALUES = (type(None), bool, int, float, str, bytes)
#: Classes written in Python whose instances have content that is no field.
CONTENTS = (collections.UserDict, collections.UserList, collections.UserString)
#: How instances are laid out, as no metaclass says it.
LAYOUT = tuple(type.__dict__[name] for name in ("__flags__", "__basicsize__", "__itemsize__"))
#: `Py_TPFLAGS_IMMUTABLETYPE`, which classes have that are not written in Python.
IMMUTABLE = 1 << 8
#: Metaclasses that leave alone what they make.
METACLASSES = (type, abc.ABCMeta, type(typing.Protocol))

#: A default value, or a function that makes it and whether it is that; `None` is no default.
Default = tuple[bool, Any] | None


@dataclasses.dataclass(frozen=True)
class Registration:
    """What a registry knows of one class."""

    #: The class itself.
    cls: type
    #: The wire name.
    name: str
    #: Names of the fields, in the order in which they travel; empty for an enum.
    fields: tuple[str, ...] = ()
    #: Members of an enum; `None` for other classes.
    members: tuple[enum.Enum, ...] | None = None
    #: How an instance is built: `slots` and `attributes` fill it, `tuple` makes a named tuple, and
    #: `call` gives `maker` the fields by name.
    build: str = "call"
    #: What is called to make one; `None` is the class.
    maker: Callable[..., Any] | None = None
    #: For each field its default, or `None`.
    defaults: tuple[Default, ...] = ()
    #: Whether fields are checked against their annotations.
    check: bool = True
    #: Of a type with functions of its own: what gives a value to write, and what takes it.
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None


def origin(cls: type) -> tuple[str, str]:
    """Where a class was written: a reload makes another class of the same origin.

    What its metaclass makes of these names is not asked.
    """
    module = type.__dict__["__module__"].__get__(cls)
    name = type.__dict__["__qualname__"].__get__(cls)
    return module if type(module) is str else "", name


def library_class(library: str, name: str) -> type | None:
    """A class of a library, if that has been imported: else nothing is a subclass of it."""
    found = getattr(sys.modules.get(library), name, None)
    return found if isinstance(found, type) else None


def is_a(cls: type, library: str, name: str) -> bool:
    base = library_class(library, name)
    return base is not None and issubclass(cls, base)


def made_dataclass(cls: type) -> type:
    """The frozen, slotted dataclass that a plain class becomes; the class itself if it is none."""
    if "__dataclass_fields__" in cls.__dict__ or "__attrs_attrs__" in cls.__dict__:
        return cls
    if typing.is_typeddict(cls):
        raise TypeError(
            f"{cls.__qualname__} is a TypedDict, whose instances are plain dicts: "
            f"they travel as they are, so leave the decorator out"
        )
    if (
        issubclass(cls, enum.Enum | tuple)
        or is_a(cls, "msgspec", "Struct")
        or is_a(cls, "pydantic", "BaseModel")
    ):
        return cls
    if getattr(cls, "_is_protocol", False):
        raise TypeError(f"{cls.__qualname__} is a Protocol, of which there are no instances")
    if hasattr(cls, "__attrs_attrs__"):
        raise TypeError(f"{cls.__qualname__} inherits from an attrs class: make it @attrs.frozen")
    if makes_classes(type(cls)):
        raise TypeError(
            f"{cls.__qualname__} is made by the metaclass {type(cls).__qualname__}, which may make "
            f"of it what it likes: {ADVICE}"
        )
    check_content(cls)
    made: Any = dataclasses.dataclass(frozen=True, slots=True)
    replaced: type = made(cls)
    adopt(cls, replaced)
    return replaced


def check_content(cls: type) -> None:
    """Raise `TypeError` if instances have content besides fields, as a list's items."""
    for base in cls.__mro__:
        # What is written in C and has memory of its own: `object` has none, nor has `Generic`.
        flags, size, item_size = (own.__get__(base) for own in LAYOUT)
        is_sized = flags & IMMUTABLE and (size > object.__basicsize__ or item_size)
        if is_sized or any(base is known for known in CONTENTS):
            raise TypeError(
                f"{cls.__qualname__} is a {origin(base)[1]} besides its fields, which would not "
                f"travel: make that a field, or {ADVICE}"
            )


def makes_classes(metaclass: type) -> bool:
    """Whether it has a say in what its classes or their instances are made of."""
    own = {"__new__", "__init__", "__call__", "__prepare__"}
    return any(
        not own.isdisjoint(base.__dict__)
        for base in metaclass.__mro__
        if base is not object and not any(base is known for known in METACLASSES)
    )


ADVICE = "register it with two functions, registry.register_type(cls, name, encode, decode)"


def described(
    cls: type, name: str, *, plain: bool = False, check: bool = True, post_init: bool = False
) -> Registration:
    """What a registry has to know of a class, or `TypeError` if such a class cannot travel.

    :param plain: the dataclass's `__init__` is known to be the generated one.
    :param post_init: whether its constructor runs on arrival, with all that it does.
    """
    if issubclass(cls, enum.Enum):
        found = enum_described(cls, name)
    elif is_a(cls, "msgspec", "Struct"):
        found = struct_described(cls, name, post_init)
    elif is_a(cls, "pydantic", "BaseModel"):
        found = model_described(cls, name, post_init)
    elif "__attrs_attrs__" in cls.__dict__:
        check_content(cls)
        found = attrs_described(cls, name, post_init)
    elif issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
        found = named_tuple_described(cls, name)
    elif "__dataclass_fields__" in cls.__dict__:
        check_content(cls)
        found = dataclass_described(cls, name, plain, post_init)
    else:
        raise TypeError(
            f"{cls.__qualname__} is no dataclass, NamedTuple, msgspec.Struct or enum.Enum; "
            f"declare it with @rabble.message, or {ADVICE}"
        )
    if post_init and found.build != "call":
        raise TypeError(f"{cls.__qualname__} has no __post_init__ to run: leave post_init out")
    return dataclasses.replace(found, check=check)


def type_of_names(names: Any) -> tuple[str, ...]:
    """Names of fields, each the one object that attributes are found by."""
    return tuple(sys.intern(str(name)) for name in names)


def enum_described(cls: type[enum.Enum], name: str) -> Registration:
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
        if member.value != member.value:
            raise TypeError(
                f"{cls.__qualname__}.{member.name} is NaN, to which nothing that arrives is equal"
            )
        if type(member.value) is int and not -(1 << 63) <= member.value < 1 << 64:
            raise TypeError(
                f"{cls.__qualname__}.{member.name} has an int of {member.value.bit_length()} "
                f"bits as its value; only -2**63 to 2**64 - 1 can travel"
            )
    return Registration(cls, name, members=members)


def struct_described(cls: Any, name: str, post_init: bool) -> Registration:
    fields = type_of_names(cls.__struct_fields__)
    known = tuple(map(struct_default, cls.__struct_defaults__))
    defaults = (None,) * (len(fields) - len(known)) + known
    runs = post_init and hasattr(cls, "__post_init__")
    return Registration(cls, name, fields, build="call" if runs else "slots", defaults=defaults)


def struct_default(default: Any) -> Default:
    if default is sys.modules["msgspec"].NODEFAULT:
        return None
    if type(default).__module__.startswith("msgspec") and hasattr(default, "factory"):
        return True, default.factory
    return False, default


def named_tuple_described(cls: Any, name: str) -> Registration:
    fields = type_of_names(cls._fields)
    known = getattr(cls, "_field_defaults", {})
    defaults = tuple((False, known[field]) if field in known else None for field in fields)
    build = "tuple" if is_made_of_items(cls) else "call"
    return Registration(cls, name, fields, build=build, defaults=defaults)


def is_made_of_items(cls: Any) -> bool:
    """Whether a named tuple's class is called as `namedtuple` made it: nothing is done besides."""
    for base in cls.__mro__:
        own = base.__dict__
        if "__init__" in own and base is not object:
            return False
        new = own.get("__new__")
        if "_fields" in own:
            code = getattr(getattr(new, "__func__", new), "__code__", None)
            return code is not None and code.co_filename == "<string>"
        if new is not None:
            return False
    return False


def model_described(cls: Any, name: str, post_init: bool) -> Registration:
    if not cls.model_config.get("frozen"):
        raise TypeError(
            f"{cls.__qualname__} is a pydantic model that can be changed: "
            f"declare it with frozen=True, class {cls.__name__}(BaseModel, frozen=True)"
        )
    if cls.model_config.get("extra") == "allow":
        raise TypeError(
            f"{cls.__qualname__} takes extra fields, which would not travel: "
            f"leave extra='allow' out, and have a dict as a field"
        )
    model = sys.modules["pydantic"].BaseModel
    runs = post_init or cls.__init__ is not model.__init__ or cls.__new__ is not object.__new__
    maker = functools.partial(validated_model if runs else filled_model, cls)
    fields = cls.model_fields
    defaults: tuple[Default, ...] = tuple(
        None if field.is_required() else (False, None) for field in fields.values()
    )
    return Registration(cls, name, type_of_names(fields), maker=maker, defaults=defaults)


def filled_model(cls: Any, /, **values: Any) -> Any:
    """A pydantic model of fields that were validated where it was made, under their own names.

    As `model_construct` does it, which looks for aliases first.
    """
    model = cls.__new__(cls)
    given = set(values)
    for name, field in cls.model_fields.items():
        if name not in values:
            values[name] = field.get_default(call_default_factory=True, validated_data=values)
    put = object.__setattr__
    put(model, "__dict__", values)
    put(model, "__pydantic_fields_set__", given)
    put(model, "__pydantic_extra__", None)
    put(model, "__pydantic_private__", None)
    if cls.__pydantic_post_init__:
        # Makes the private attributes, which do not travel.
        model.model_post_init(None)
    return model


def validated_model(cls: Any, /, **values: Any) -> Any:
    if is_a(cls, "pydantic", "RootModel"):
        return cls.model_validate(values["root"])
    by_alias = {}
    for name, value in values.items():
        field = cls.model_fields[name]
        alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
        by_alias[alias or name] = value
    return cls.model_validate(by_alias)


def attrs_described(cls: Any, name: str, post_init: bool) -> Registration:
    properties = getattr(cls, "__attrs_props__", None)
    frozen = getattr(properties, "is_frozen", None)
    if frozen is None:
        frozen = getattr(cls.__setattr__, "__name__", "") == "_frozen_setattrs"
    if not frozen:
        raise TypeError(
            f"{cls.__qualname__} is an attrs class that can be changed: make it @attrs.frozen"
        )
    hashing = getattr(cls.__hash__, "__code__", None)
    if hashing is not None and "_attrs_cached_hash" in (*hashing.co_names, *hashing.co_consts):
        raise TypeError(f"{cls.__qualname__} keeps its hash: leave cache_hash=True out")
    attributes = cls.__attrs_attrs__
    init = cls.__dict__.get("__init__")
    code = getattr(init, "__code__", None)
    generated = code is not None and code.co_filename.startswith("<attrs generated ")
    if generated and not post_init and is_filled(cls):
        build = build_of(cls, [attribute.name for attribute in attributes])
        maker = None
    else:
        build = "call"
        attributes = [attribute for attribute in attributes if attribute.init]
        aliases = {attribute.name: attribute.alias for attribute in attributes}
        maker = functools.partial(called_by_alias, cls, aliases)
    return Registration(
        cls,
        name,
        type_of_names(attribute.name for attribute in attributes),
        build=build,
        maker=maker,
        defaults=tuple(attrs_default(attribute.default) for attribute in attributes),
    )


def attrs_default(default: Any) -> Default:
    attr = sys.modules["attr"]
    if default is attr.NOTHING:
        return None
    if isinstance(default, attr.Factory):
        return None if default.takes_self else (True, default.factory)
    return False, default


def called_by_alias(cls: Any, aliases: dict[str, str], /, **values: Any) -> Any:
    return cls(**{aliases[name]: value for name, value in values.items()})


def dataclass_described(cls: Any, name: str, plain: bool, post_init: bool) -> Registration:
    if not cls.__dict__["__dataclass_params__"].frozen:
        raise TypeError(
            f"{cls.__qualname__} is a dataclass that can be changed: "
            f"make it @dataclass(frozen=True, slots=True), or leave that to @rabble.message"
        )
    fields = dataclasses.fields(cls)
    runs = post_init and hasattr(cls, "__post_init__")
    if not runs and is_filled(cls) and (plain or has_generated_init(cls)):
        build = build_of(cls, [field.name for field in fields])
    else:
        build = "call"
        fields = tuple(field for field in fields if field.init)
        check_constructor(cls, [field.name for field in fields])
    return Registration(
        cls,
        name,
        type_of_names(field.name for field in fields),
        build=build,
        defaults=tuple(map(field_default, fields)),
    )


def field_default(field: dataclasses.Field[Any]) -> Default:
    if field.default_factory is not dataclasses.MISSING:
        return True, field.default_factory
    return None if field.default is dataclasses.MISSING else (False, field.default)


def is_filled(cls: type) -> bool:
    """Whether calling the class does nothing but take memory and call `__init__`."""
    new: Any = cls.__new__
    return new is object.__new__ and type(cls).__call__ is type.__call__


def build_of(cls: type, fields: list[str]) -> str:
    """How an instance is filled: its slots, or by its attributes."""
    found = [inspect.getattr_static(cls, field, None) for field in fields]
    is_slotted = all(isinstance(one, types.MemberDescriptorType) for one in found)
    return "slots" if is_slotted else "attributes"


def check_constructor(cls: Any, fields: list[str]) -> None:
    """Hold a constructor that has to be called against what it will be given."""
    for pseudo in cls.__dict__["__dataclass_fields__"].values():
        if pseudo._field_type is dataclasses._FIELD_INITVAR:  # type: ignore[attr-defined]
            raise TypeError(
                f"{cls.__qualname__}.{pseudo.name} is an InitVar, which the receiver cannot know "
                f"when it calls the constructor"
            )
    try:
        inspect.signature(cls).bind(**dict.fromkeys(fields))
    except TypeError as error:
        raise TypeError(
            f"{cls.__qualname__} has an __init__ of its own that does not take its fields by name "
            f"({error}): leave it to the dataclass, or {ADVICE}"
        ) from None
    except ValueError:
        pass


def has_generated_init(cls: Any) -> bool:
    """Whether `__init__` is what a dataclass of the same fields is given."""
    own = getattr(cls.__dict__.get("__init__"), "__code__", None)
    if own is None:
        return False
    specs = []
    for field in cls.__dict__["__dataclass_fields__"].values():
        kind = field._field_type
        if kind is dataclasses._FIELD_CLASSVAR:  # type: ignore[attr-defined]
            continue
        is_init = kind is dataclasses._FIELD_INITVAR  # type: ignore[attr-defined]
        again = dataclasses.field(
            default=field.default,
            default_factory=field.default_factory,
            init=field.init,
            kw_only=field.kw_only,
        )
        specs.append((field.name, dataclasses.InitVar[Any] if is_init else Any, again))
    namespace = {"__post_init__": lambda self: None} if hasattr(cls, "__post_init__") else {}
    for slots in (False, True):
        try:
            fresh: Any = dataclasses.make_dataclass(
                "Fresh", specs, namespace=dict(namespace), frozen=True, slots=slots
            )
        except (TypeError, ValueError):
            continue
        if shape(fresh.__init__.__code__) == shape(own):
            return True
    return False


def shape(code: types.CodeType) -> tuple[Any, ...]:
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_consts,
        code.co_argcount,
        code.co_kwonlyargcount,
    )
