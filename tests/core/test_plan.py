"""Plans: what is known of a class is true of it, whatever a registry says of it."""

from __future__ import annotations

import dataclasses
import gc
import sys

import pytest

from rabble._core.codec import Codec
from rabble._core.errors import DecodeError, EncodeError
from rabble.registry import MessageRegistry, Registration, message
from tests.core.codecs import REGISTRY, Empty, ext

#: Of the core's objects, what the caches of CODEC may hold when the tests are done.
KEPT_IN_CACHES = ("ids.NodeId", "ids.Pid")


@pytest.mark.parametrize(
    "bounds",
    [
        {"depth_max": 0},
        {"depth_max": 257},
        {"elements_max": True},
        {"decoded_bytes_max": 0},
        {"message_bytes_max": 1.5},
    ],
)
def test_bounds_are_checked(bounds):
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Codec(REGISTRY, **bounds)


def test_a_slot_of_another_class_is_none():
    """Its offset lies behind the end of the instance."""
    registry = MessageRegistry()

    class Wide:
        __slots__ = tuple(f"f{n}" for n in range(200))

    @message(name="Thin", registry=registry)
    class Thin:
        n: int
        m: int

    one = Thin(1, 2)
    Thin.m = Wide.f199
    codec = Codec(registry)
    with pytest.raises(TypeError, match="f199"):
        codec.encode_message(one)
    with pytest.raises(DecodeError, match="refuses: TypeError"):
        codec.decode_message(ext(1, "Thin", [1, 2]))


def test_two_names_of_one_slot_and_a_slot_that_hides_another():
    registry = MessageRegistry()

    @message(name="Twin", registry=registry)
    class Twin:
        a: object
        b: object

    Twin.b = Twin.a
    codec = Codec(registry)
    assert codec.encode_message(Twin(1, 2)) == ext(1, "Twin", [2, 2])
    data = ext(1, "Twin", [[1], [2]])

    def build():
        for _ in range(1_000):
            assert codec.decode_message(data).a == [2]

    build()
    gc.collect()
    before = sys.getallocatedblocks()
    build()
    gc.collect()
    assert sys.getallocatedblocks() - before < 500

    class Base:
        __slots__ = ("n",)

    @dataclasses.dataclass(frozen=True)
    class Derived(Base):
        __slots__ = ("n",)
        n: int

    registry.register(Derived, "Derived")
    assert codec.decode_message(codec.encode_message(Derived(5))) == Derived(5)


@pytest.mark.parametrize("build", ["slots", "attributes", "tuple", "nothing", None])
def test_a_registry_that_says_how_any_class_is_built(build):
    class Claims(MessageRegistry):
        def registration_named(self, name):
            found = super().registration_named(name)
            return found and dataclasses.replace(found, build=build)

    registry = Claims()

    class Many(dict):
        __slots__ = ("n",)

        def __init__(self, n):
            self.n = n

    registry._by_name["Many"] = Registration(Many, "Many", ("n",))
    many = Codec(registry).decode_message(ext(1, "Many", [1]))
    many["k"] = many.n
    assert many == {"k": 1}


def test_what_stands_in_a_registrys_tables_is_looked_at():
    registry = MessageRegistry()

    @message(name="Order", registry=registry)
    class Order:
        id: int

    codec = Codec(registry)
    data = codec.encode_message(Order(1))
    assert codec.decode_message(data) == Order(1)
    plan = registry.plans_by_name[b"Order"]
    for junk in (None, 5, type(plan).__new__(type(plan)), codec):
        registry.plans_by_class[Order] = junk
        assert codec.encode_message(Order(1)) == data
        registry.plans_by_class.clear()
        registry.plans_by_name[b"Order"] = junk
        try:
            assert codec.encode_message(Order(1)) == data
        except EncodeError:
            registry.plans_by_name.clear()
        registry.plans_by_name[b"Order"] = junk
        try:
            assert codec.decode_message(data) == Order(1)
        except DecodeError:
            registry.plans_by_name.clear()
    registry.plans_by_class[Empty] = plan
    with pytest.raises(EncodeError, match="an? Empty cannot"):
        codec.encode_message(Empty())


def test_a_plan_under_another_name_is_found_by_that_name_only():
    """Anybody can put it there, and take it away again."""
    registry = MessageRegistry()

    @message(name="Order", registry=registry)
    class Order:
        id: int

    codec = Codec(registry)
    data = codec.encode_message(Order(1))
    assert codec.decode_message(data) == Order(1)
    registry.plans_by_name[b"Other"] = registry.plans_by_name[b"Order"]
    for _ in range(2):
        assert codec.decode_message(ext(1, "Other", [1])) == Order(1)
    del registry.plans_by_name[b"Other"]
    with pytest.raises(DecodeError, match="no class is registered as 'Other'"):
        codec.decode_message(ext(1, "Other", [1]))
    assert codec.decode_message(data) == Order(1)
