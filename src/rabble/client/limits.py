"""The bounds of a client."""

from __future__ import annotations

import dataclasses
from typing import Any

from rabble.texts import argument_text

__all__ = ["ClientLimits"]


def bounded(default: int, least: int, most: int) -> Any:
    return dataclasses.field(default=default, metadata={"range": (least, most)})


@dataclasses.dataclass(frozen=True)
class ClientLimits:
    """The bounds of one `Client` or `AsyncClient`.

    :raises ValueError: if a bound is no int of its range; it says which, what was given and what is
        allowed.
    """

    #: Bytes of one frame, or line, that is sent or received. Beyond it a message is refused with
    #: `EncodeError`, and the connection to a server that announces more is closed.
    frame_bytes_max: int = bounded(16 * 1024 * 1024, 64, 2**31)
    #: How deep containers may be nested in a message.
    message_depth_max: int = bounded(64, 1, 256)
    #: Elements of all containers of one message together.
    message_elements_max: int = bounded(16 * 1024 * 1024, 1, 2**31)
    #: Bytes of memory that the objects of one message may take where it is decoded, by estimate.
    message_decoded_bytes_max: int = bounded(128 * 1024 * 1024, 1, 2**40)
    #: Requests in flight on the connection, those included that nobody waits for any more. Beyond
    #: it a call raises `QueueFull`.
    in_flight_max: int = bounded(16_384, 1, 2**31)
    #: Bytes of frames that wait to be sent, while the server does not read. Beyond it whoever has
    #: more to send waits; it may be exceeded by one frame.
    out_bytes_max: int = bounded(1024 * 1024, 1, 2**40)
    #: Pushes that wait to be taken. Beyond it the oldest are dropped, which whoever takes the next
    #: one is told by `PushesLost`.
    pushes_max: int = bounded(1_024, 1, 2**31)
    #: Milliseconds that one address has to take the connection, with its TLS handshake.
    connect_ms: int = bounded(2_000, 1, 2**31 - 1)
    #: Milliseconds of the first wait after all addresses failed; it doubles with each round.
    redial_first_ms: int = bounded(100, 1, 2**31 - 1)
    #: Milliseconds that this wait grows to.
    redial_most_ms: int = bounded(10_000, 1, 2**31 - 1)
    #: Milliseconds that a connection has to last for the wait to start again from the first.
    redial_settled_ms: int = bounded(1_000, 1, 2**31 - 1)
    #: Milliseconds after which a machine that does not confirm what it is sent is taken for dead.
    dead_after_ms: int = bounded(30_000, 1_000, 2**31 - 1)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, most = field.metadata["range"]
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"ClientLimits: {field.name} must be an int, {least} to {most}, "
                    f"not {argument_text(value)}"
                )
