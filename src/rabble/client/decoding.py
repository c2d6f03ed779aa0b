"""The decoder of the wire's values in plain Python, under the same bounds as the compiled one.

What it reads comes from a stranger. Nothing is allocated for what was only announced: a container's
count is first held against the bytes that are left, less those that the containers around it still
need, and against the budgets. Depth is bounded, and only classes of the registry are ever built.
That is why it is no `msgpack.Unpacker`, which takes a place of eight bytes for each element that an
array announces, a thousand levels deep.
"""

from __future__ import annotations

import enum
import struct
import zoneinfo
from collections import Counter
from collections.abc import Callable
from datetime import UTC, timezone, tzinfo
from typing import Any

from rabble._classes import Registration
from rabble.client.cursor import NUMBERS, WIDTHS, Cursor
from rabble.client.instances import instance_of, reason_of, zone_names
from rabble.client.values import (
    BODY_READERS,
    COST_ATTRIBUTES,
    COST_CONTAINER,
    COST_ELEMENT,
    COST_ENTRY,
    COST_MEMBER,
    COST_PID,
    COST_SET,
    COST_VALUE,
    EXT_CORRELATION_ID,
    EXT_DATETIME,
    EXT_DECIMAL,
    EXT_ENUM,
    EXT_FRACTION,
    EXT_FROZENSET,
    EXT_INT,
    EXT_MESSAGE,
    EXT_NODE_ID,
    EXT_PID,
    EXT_RANGE,
    EXT_SET,
    EXT_TIME,
    EXT_TIMEZONE,
    EXT_TUPLE,
    EXT_TYPE,
    EXT_ZONEINFO,
    NUMBER_BYTES_MAX,
    SAME_HASH_MAX,
    ZONE_BYTES_MAX,
    OpaqueId,
    core_ids,
    datetime_from,
    fraction_of,
    range_of,
    time_from,
    timezone_of,
)
from rabble.registry import MessageRegistry

__all__ = ["Checks", "Reader"]

#: Extensions around each other, each of which is no container.
NESTED_MAX = 2
#: By wire name: how many changes its registry had seen, the registration, a check of each field.
Checks = dict[str, tuple[int, Registration, tuple[Any, ...]]]


class Reader(Cursor):
    """Reads one message: see `Cursor`, whose arguments it takes.

    :param registry: the classes that may be built.
    :param checks: what `checks_of` worked out before, and keeps.
    """

    __slots__ = ("checks", "hashed", "nested", "registry", "same_hash")

    def __init__(
        self, registry: MessageRegistry, data: bytes, checks: Checks, *bounds: int
    ) -> None:
        super().__init__(data, *bounds)
        self.registry = registry
        self.checks = checks
        #: Extensions around what is read that are no containers; sets and keys around it.
        self.nested = 0
        self.hashed = 0
        #: Of what was read: most elements of one hash, by all levels.
        self.same_hash = 1

    def whole(self) -> Any:
        """The message.

        :raises DecodeError: if the bytes are none.
        """
        value = self.read()
        if self.at != self.end:
            raise self.malformed(f"{self.end - self.at} bytes too many")
        return value

    # What msgpack has types for.

    def read(self) -> Any:
        """The next value.

        :raises DecodeError: if none is there.
        """
        at = self.at
        if at >= self.end:
            raise self.malformed("the data ends where a value should begin")
        tag = self.data[at]
        self.at = at + 1
        if tag < 0x80:
            return tag
        if tag < 0x90:
            return self.read_map(tag & 15)
        if tag < 0xA0:
            return self.read_list(tag & 15)
        if tag < 0xC0:
            return self.read_str(tag & 31)
        if tag >= 0xE0:
            return tag - 256
        if tag == 0xC0:
            return None
        if tag == 0xC2:
            return False
        if tag == 0xC3:
            return True
        number = NUMBERS.get(tag)
        if number is not None:
            if self.end - self.at < number.size:
                raise self.malformed("the data ends within a number")
            self.at += number.size
            return number.unpack_from(self.data, self.at - number.size)[0]
        if 0xD4 <= tag <= 0xD8:
            return self.read_ext(1 << (tag - 0xD4))
        width = WIDTHS.get(tag)
        if width is None:
            raise self.malformed("0xc1 begins no value of msgpack")
        n = self.read_size(width)
        if tag <= 0xC6:
            return self.take(n)
        if tag <= 0xC9:
            return self.read_ext(n)
        if tag <= 0xDB:
            return self.read_str(n)
        return self.read_list(n) if tag <= 0xDD else self.read_map(n)

    def read_str(self, n: int) -> str:
        data = self.take(n)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            self.at -= n
            raise self.malformed(f"a str is not UTF-8: {error.reason}") from None

    def read_items(self, n: int) -> list[Any]:
        self.claim(n, n)
        items = []
        for _ in range(n):
            self.owed -= 1
            items.append(self.read())
        self.depth += 1
        return items

    def read_list(self, n: int) -> list[Any]:
        return self.read_items(n)

    def read_map(self, n: int) -> dict[Any, Any]:
        self.claim(n, 2 * n)
        self.spend(COST_ENTRY * n)
        keys: list[Any] = []
        items: list[Any] = []
        outer, most = self.same_hash, 1
        for _ in range(n):
            self.owed -= 1
            self.hashed += 1
            self.same_hash = 1
            keys.append(self.read())
            self.hashed -= 1
            most = max(most, self.same_hash)
            self.owed -= 1
            self.same_hash = 1
            items.append(self.read())
            outer = max(outer, self.same_hash)
        self.same_hash = max(outer, most * self.most_of_one_hash(keys))
        self.check_same_hash()
        found: dict[Any, Any] = self.hashing(lambda: dict(zip(keys, items, strict=True)))
        if len(found) != n:
            raise self.unknown("a map has the same key twice")
        self.depth += 1
        return found

    def most_of_one_hash(self, items: list[Any]) -> int:
        """How many have the same hash at most; those of str are no secret of a stranger's."""
        if all(type(item) is str for item in items):
            return 1
        counts = self.hashing(lambda: Counter(map(hash, items)))
        return max(counts.values(), default=1)

    def check_same_hash(self) -> None:
        if self.same_hash > SAME_HASH_MAX:
            raise self.unknown(
                f"more than {SAME_HASH_MAX} elements of a set, or keys of a map, have the same hash"
            )

    def hashing(self, make: Callable[[], Any]) -> Any:
        """What hashes and compares elements, which may be a user's code."""
        try:
            return make()
        except MemoryError:
            raise
        except Exception as error:
            raise self.unknown(
                f"an element of a set, or a key of a map, cannot be one here: {reason_of(error)}"
            ) from error

    # Extensions.

    def read_ext(self, size: int) -> Any:
        if self.at >= self.end:
            raise self.malformed("the data ends within an extension")
        code = self.data[self.at]
        self.at += 1
        if size > self.end - self.at:
            raise self.beyond(f"{size} bytes are announced, {self.end - self.at} are left")
        outer_end, outer_owed = self.end, self.owed
        self.end, self.owed = self.at + size, 0
        reader = CONTAINERS.get(code)
        value = reader(self, code) if reader is not None else self.read_other(code, size)
        if self.at != self.end:
            raise self.malformed(f"{self.end - self.at} bytes too many in an extension")
        self.end, self.owed = outer_end, outer_owed
        return value

    def read_other(self, code: int, size: int) -> Any:
        """What an extension is that is no container.

        Such a one may be in another one, as a time zone in a datetime, and in that no more: so they
        need no depth, and have an end.
        """
        if code == EXT_PID:
            return self.read_id(code, size)
        if self.nested == NESTED_MAX:
            raise self.malformed(f"an extension of type {code} is in one that has none")
        if code in (EXT_DATETIME, EXT_TIME):
            return self.read_moment(code, size)
        self.nested += 1
        if code == EXT_ENUM:
            value = self.read_enum()
        elif code in (EXT_NODE_ID, EXT_CORRELATION_ID):
            value = self.read_id(code, size)
        elif code in BODY_READERS or code in (EXT_FRACTION, EXT_RANGE, EXT_TIMEZONE, EXT_ZONEINFO):
            value = self.read_value(code, size)
        else:
            raise self.malformed(f"extension type {code} is unknown")
        self.nested -= 1
        return value

    def valued(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """What a body is, or a DecodeError that says what is wrong with it."""
        try:
            return make(*arguments)
        except (ValueError, OverflowError, struct.error) as error:
            raise self.malformed(str(error)[:200]) from None

    def read_value(self, code: int, size: int) -> Any:
        self.spend(COST_VALUE)
        if code == EXT_FRACTION:
            return self.valued(fraction_of, self.read(), self.read())
        if code == EXT_RANGE:
            return self.valued(range_of, self.read(), self.read(), self.read())
        if code == EXT_TIMEZONE:
            return self.read_timezone()
        if code == EXT_ZONEINFO:
            return self.read_zone_info(size)
        if self.hashed and size > NUMBER_BYTES_MAX and code in (EXT_INT, EXT_DECIMAL):
            raise self.beyond(
                f"a number of {size} bytes is in a set or a key, where {NUMBER_BYTES_MAX} may be"
            )
        return self.valued(BODY_READERS[code], self.take(size))

    def read_moment(self, code: int, size: int) -> Any:
        """A datetime or time."""
        self.spend(COST_VALUE)
        fixed = 10 if code == EXT_DATETIME else 6
        if size < fixed:
            raise self.malformed("a datetime or time ends within its numbers")
        body = self.take(fixed)
        zone: tzinfo | None = None
        if self.data[self.at : self.end] == b"\xc7\0\x10":
            # What UTC is written as.
            self.at += 3
            zone = UTC
        elif self.at != self.end:
            self.nested += 1
            zone = self.read()
            self.nested -= 1
            if type(zone) is not timezone and type(zone) is not zoneinfo.ZoneInfo:
                raise self.malformed("the tzinfo of a datetime or time is none")
        return self.valued(datetime_from if code == EXT_DATETIME else time_from, body, zone)

    def read_timezone(self) -> timezone:
        if self.at == self.end:
            return UTC
        offset = self.read()
        name = None
        if self.at != self.end:
            name = self.read()
            if type(name) is not str:
                raise self.malformed("the name of a timezone is no str")
        found: timezone = self.valued(timezone_of, offset, name)
        return found

    def read_zone_info(self, size: int) -> zoneinfo.ZoneInfo:
        if size > ZONE_BYTES_MAX:
            raise self.malformed(f"the key of a time zone takes {size} bytes, not 1 to 255")
        name = self.read_str(size)
        # By a name from the wire nothing is looked for: zoneinfo would, among modules too.
        if name not in zone_names():
            raise self.unknown(
                f"the time zone {ascii(name)} is not on this machine: install tzdata"
            )
        return zoneinfo.ZoneInfo(name)

    def read_id(self, code: int, size: int) -> Any:
        self.spend(COST_PID)
        ids = core_ids()
        if ids is None:
            return OpaqueId(code, self.take(size))
        if code != EXT_CORRELATION_ID:
            cls = ids.Pid if code == EXT_PID else ids.NodeId
            text = self.read_str(size)
            return self.valued(cls.parse, text)
        n = self.str_header()
        if n < 0:
            raise self.malformed("a correlation id begins with the text of a pid")
        pid = self.valued(ids.Pid.parse, self.read_str(n))
        connection, request = self.read(), self.read()
        for number in (connection, request):
            if number is not None and not (type(number) is int and 0 <= number < 1 << 63):
                raise self.malformed("a number of a correlation id is not nil or 0 to 2**63 - 1")
        return ids.CorrelationId(pid, connection, request)

    def read_tuple(self, code: int) -> tuple[Any, ...]:
        n = self.array_header()
        if n < 0:
            raise self.malformed("a tuple is no array")
        return tuple(self.read_items(n))

    def read_set(self, code: int) -> set[Any] | frozenset[Any]:
        n = self.array_header()
        outer = self.same_hash
        if n < 0:
            raise self.malformed("a set is no array")
        self.claim(n, n)
        self.spend(COST_SET + COST_MEMBER * n)
        self.hashed += 1
        self.same_hash = 1
        items = []
        for _ in range(n):
            self.owed -= 1
            items.append(self.read())
        self.same_hash *= self.most_of_one_hash(items)
        self.check_same_hash()
        kind: type[set[Any]] | type[frozenset[Any]] = set if code == EXT_SET else frozenset
        found: set[Any] | frozenset[Any] = self.hashing(lambda: kind(items))
        if len(found) != n:
            raise self.unknown("a set has the same element twice")
        self.hashed -= 1
        self.same_hash = max(outer, self.same_hash)
        self.depth += 1
        return found

    # What a registry has.

    def registered(self, what: str) -> Registration:
        n = self.str_header()
        if n < 0:
            raise self.malformed(f"{what} begins with a wire name")
        name = self.read_str(n)
        found = self.registry.registration_named(name)
        if found is None:
            raise self.unknown(
                f"no class is registered as {ascii(name[:80])}; the receiver builds only what it "
                f"registered itself"
            )
        return found

    def read_enum(self) -> enum.Enum:
        registration = self.registered("an enum's member")
        if registration.members is None:
            raise self.unknown(f"{registration.name} is no enum here")
        value = self.read()
        for member in registration.members:
            if type(member.value) is type(value) and member.value == value:
                return member
        raise self.unknown(f"{registration.name} has no member of that value")

    def read_type(self, code: int) -> Any:
        """A value that a function of the user's makes of what came."""
        registration = self.registered("a value of a registered type")
        if registration.decode is None:
            raise self.unknown(f"{registration.name} is no registered type here")
        self.claim(1, 1)
        self.owed -= 1
        item = self.read()
        self.depth += 1
        return self.built(registration, registration.decode, item)

    def read_message(self, code: int) -> Any:
        registration = self.registered("a message")
        if registration.members is not None or registration.encode is not None:
            raise self.unknown(f"{registration.name} is no message class here")
        n = self.array_header()
        if n < 0:
            raise self.malformed(f"no array of fields comes after the name {registration.name}")
        fields, defaults = registration.fields, registration.defaults
        if lacking := [
            field
            for field, default in list(zip(fields, defaults, strict=True))[n:]
            if default is None
        ]:
            raise self.unknown(
                f"{registration.name} has {len(fields)} fields here, but {n} came: there is no "
                f"default for {', '.join(lacking[:5])}"
            )
        self.claim(n, n)
        if registration.build not in ("slots", "tuple"):
            self.spend(COST_ATTRIBUTES)
        if n < len(fields):
            # Defaults take memory that no byte of the message stands for.
            self.spend((COST_CONTAINER + COST_ELEMENT) * (len(fields) - n))
        given: dict[str, Any] = {}
        for field, check in zip(fields[:n], self.checks_of(registration), strict=False):
            self.owed -= 1
            item = given[field] = self.read()
            if check is not None and not check.fits(item):
                raise self.unknown(f"{registration.name}.{field}: {check.misfit(item)}")
        for _ in range(n - len(fields)):
            self.owed -= 1
            self.skip()
        if n > len(fields):
            self.registry.note_dropped(n - len(fields))
        value = self.built(registration, instance_of, registration, given)
        self.depth += 1
        return value

    def checks_of(self, registration: Registration) -> tuple[Any, ...]:
        """The check of each field, or None; good for as long as no class is added."""
        changes = self.registry.changes
        known = self.checks.get(registration.name)
        if known is None or known[0] != changes or known[1] is not registration:
            found = tuple(check for check, _ in self.registry.checks_of(registration))
            known = self.checks[registration.name] = changes, registration, found
        return known[2]

    def built(self, registration: Registration, make: Callable[..., Any], *arguments: Any) -> Any:
        """An instance, by code that may be the user's."""
        try:
            value = make(*arguments)
        except MemoryError:
            raise
        except Exception as error:
            raise self.unknown(f"{registration.name} refuses: {reason_of(error)}") from error
        if type(value) is not registration.cls:
            raise self.unknown(
                f"{registration.name}: a {type(value).__qualname__} was built instead"
            )
        return value


CONTAINERS: dict[int, Callable[[Reader, int], Any]] = {
    EXT_MESSAGE: Reader.read_message,
    EXT_TYPE: Reader.read_type,
    EXT_TUPLE: Reader.read_tuple,
    EXT_SET: Reader.read_set,
    EXT_FROZENSET: Reader.read_set,
}
