"""Where the decoder is, what it may still take, and how a value is passed over unseen."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from rabble._core.errors import (
    DecodedSizeError,
    DecodeError,
    DecodeLimitError,
    UnknownMessageError,
)
from rabble.client.values import COST_CONTAINER, COST_ELEMENT

__all__ = ["NUMBERS", "WIDTHS", "Cursor"]

NUMBERS = {0xCA + place: struct.Struct(f">{form}") for place, form in enumerate("fdBHIQbhiq")}
SIZES = {1: struct.Struct(">B"), 2: struct.Struct(">H"), 4: struct.Struct(">I")}
#: For each tag that a size follows: in how many bytes.
BINARY_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
WIDTHS = BINARY_WIDTHS | {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


class Cursor:
    """A place in the bytes of one message, and its bounds.

    :param data: the bytes.
    :param message_bytes_max: as of `PlainCodec`, and so are the other bounds.
    """

    __slots__ = ("at", "data", "depth", "depth_max", "elements", "end", "memory", "owed")

    def __init__(
        self,
        data: bytes,
        message_bytes_max: int,
        depth_max: int,
        elements_max: int,
        decoded_bytes_max: int,
    ) -> None:
        self.data = data
        self.at = 0
        #: Of the whole, or of the extension that is read.
        self.end = len(data)
        #: Elements that were announced and not read yet: each takes a byte at least.
        self.owed = 0
        self.depth_max = self.depth = depth_max
        self.elements = elements_max
        self.memory = decoded_bytes_max
        if self.end > message_bytes_max:
            raise self.beyond(f"{self.end} bytes are more than the {message_bytes_max} allowed")

    # What is wrong, and where.

    def malformed(self, what: str) -> DecodeError:
        return DecodeError(f"byte {self.at}: {what}")

    def unknown(self, what: str) -> UnknownMessageError:
        return UnknownMessageError(f"byte {self.at}: {what}")

    def beyond(self, what: str) -> DecodeLimitError:
        return DecodeLimitError(f"byte {self.at}: {what}")

    # Bounds.

    def take(self, n: int) -> bytes:
        """The next bytes, of a length that was announced."""
        if n > self.end - self.at:
            raise self.beyond(f"{n} bytes are announced, {self.end - self.at} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def claim(self, n: int, bytes_min: int) -> None:
        """Enter a container of `n` elements that take at least `bytes_min` bytes."""
        if bytes_min > self.end - self.at - self.owed:
            raise self.beyond(
                f"{n} elements are announced, {self.end - self.at} bytes are left for all"
            )
        if self.depth == 0:
            raise self.beyond(f"containers are nested deeper than {self.depth_max}")
        self.elements -= n
        if self.elements < 0:
            raise self.beyond("too many elements in containers")
        self.spend(COST_CONTAINER + COST_ELEMENT * n)
        self.depth -= 1
        self.owed += bytes_min

    def spend(self, cost: int) -> None:
        """Charge memory, by the wire's estimate, before it is taken."""
        self.memory -= cost
        if self.memory < 0:
            raise DecodedSizeError(f"byte {self.at}: it would take too much memory, by estimate")

    # Parts of values.

    def read_size(self, width: int) -> int:
        if self.end - self.at < width:
            raise self.malformed("the data ends within a size")
        self.at += width
        size: int = SIZES[width].unpack_from(self.data, self.at - width)[0]
        return size

    def header(self, short: int, mask: int, tags: Sequence[int]) -> int:
        """The length of the str or array that begins here; -1 if none does."""
        if self.at >= self.end:
            return -1
        tag = self.data[self.at]
        if tag & ~mask & 0xFF == short:
            self.at += 1
            return tag & mask
        if tag not in tags:
            return -1
        self.at += 1
        return self.read_size(WIDTHS[tag])

    def str_header(self) -> int:
        return self.header(0xA0, 0x1F, (0xD9, 0xDA, 0xDB))

    def array_header(self) -> int:
        """The length of the array that begins here; -1 if none does."""
        return self.header(0x90, 0x0F, (0xDC, 0xDD))

    def skip(self) -> None:
        """Go over a value, under the same bounds as if it were built.

        What is within an extension is bounded by its length, and not looked at.
        """
        if self.at >= self.end:
            raise self.malformed("the data ends where a value should begin")
        tag = self.data[self.at]
        self.at += 1
        n = values = size = 0
        if tag < 0x80 or tag >= 0xE0 or tag in (0xC0, 0xC2, 0xC3):
            return
        if tag < 0xA0:
            n = tag & 15
            values = n if tag >= 0x90 else 2 * n
        elif tag < 0xC0:
            size = tag & 31
        elif tag in NUMBERS:
            size = NUMBERS[tag].size
        elif 0xD4 <= tag <= 0xD8:
            size = (1 << (tag - 0xD4)) + 1
        elif tag in WIDTHS:
            n = self.read_size(WIDTHS[tag])
            if tag >= 0xDC:
                values = n if tag <= 0xDD else 2 * n
            else:
                size = n + 1 if 0xC7 <= tag <= 0xC9 else n
        else:
            raise self.malformed("0xc1 begins no value of msgpack")
        if size > self.end - self.at:
            raise self.beyond(f"{size} bytes are announced, {self.end - self.at} are left")
        self.at += size
        if tag < 0xA0 or tag >= 0xDC:
            if values > self.end - self.at - self.owed:
                raise self.beyond(
                    f"{n} elements are announced, {self.end - self.at} bytes are left"
                )
            if self.depth == 0:
                raise self.beyond(f"containers are nested deeper than {self.depth_max}")
            self.elements -= n
            if self.elements < 0:
                raise self.beyond("too many elements in containers")
            self.depth -= 1
            self.owed += values
            for _ in range(values):
                self.owed -= 1
                self.skip()
            self.depth += 1
