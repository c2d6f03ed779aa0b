"""Every bound of a server, with its unit in its name."""

from __future__ import annotations

import dataclasses

from rabble.limits import COUNT_MAX, MS_MAX, bounded
from rabble.texts import argument_text

__all__ = ["ServerLimits"]

#: What the core's table of requests holds.
REQUESTS_MAX = 2**24


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """The bounds of one `TcpServer`; each has a default and a defined answer when it is reached.

    :raises ValueError: if a bound is no int of its range; it says which, what was given and what is
        allowed.
    """

    #: Connections of clients, those whose TLS handshake goes on included. Beyond it one is told
    #: `full` and closed.
    connections_max: int = bounded(16_384, 1, COUNT_MAX)
    #: Connections from one address. Beyond it: the same. Not of a Unix socket.
    connections_per_address_max: int = bounded(16_384, 1, COUNT_MAX)
    #: Requests of one connection that wait for their ends. Beyond it nothing more of it is taken
    #: in until one has ended, and soon nothing more is read.
    requests_per_connection_max: int = bounded(128, 1, REQUESTS_MAX)
    #: Requests of all connections that wait. Beyond it they are refused, by a Nack.
    requests_max: int = bounded(65_536, 1, REQUESTS_MAX)
    #: Requests of all connections that may wait for the gate, if there is one. Beyond it the newest
    #: of the connection that has most of them is refused.
    gate_requests_max: int = bounded(1_024, 1, REQUESTS_MAX)
    #: The same of one connection. Beyond it the one that comes is refused.
    gate_requests_per_connection_max: int = bounded(64, 1, REQUESTS_MAX)
    #: Milliseconds that a request waits for the gate before it is refused.
    gate_wait_ms_max: int = bounded(20, 1, MS_MAX)
    #: Milliseconds that a request may take; then it fails with `timeout`.
    request_ms_max: int = bounded(30_000, 1, MS_MAX)
    #: Milliseconds after which a client may try again what was refused for want of room.
    retry_after_ms: int = bounded(100, 1, MS_MAX)
    #: Bytes of one frame of a client. Beyond it: goodbye `too_large`.
    frame_bytes_max: int = bounded(1024 * 1024, 1, 2**31 - 16)
    #: Milliseconds that a frame may take from its first byte to its last. Then: `timeout`.
    partial_frame_ms_max: int = bounded(10_000, 1, MS_MAX)
    #: Milliseconds for which nothing may come and no request waits. Then: `idle`.
    idle_ms_max: int = bounded(600_000, 1, MS_MAX)
    #: Bytes that wait for a client that does not read. At half of it nothing more of that client is
    #: begun; beyond it: `slow`.
    write_buffer_bytes_max: int = bounded(4 * 1024 * 1024, 2, 2**40)
    #: Milliseconds for which a client may read nothing while something waits. Then: `slow`.
    write_stalled_ms_max: int = bounded(30_000, 1, MS_MAX)
    #: Milliseconds that a client has to take its goodbye and close its side.
    linger_ms_max: int = bounded(1_000, 1, MS_MAX)
    #: TLS handshakes that go on. Beyond it the oldest is dropped.
    handshakes_max: int = bounded(256, 1, COUNT_MAX)
    #: Milliseconds that a TLS handshake may take.
    handshake_ms_max: int = bounded(5_000, 1, MS_MAX)
    #: Bytes that each direction of a TLS connection keeps, besides what the kernel does.
    tls_buffer_bytes_max: int = bounded(64 * 1024, 1, 2**26)
    #: Milliseconds between two looks at the files of the certificate.
    credentials_refresh_ms: int = bounded(30_000, 1, MS_MAX)
    #: Milliseconds that `close` leaves to requests that were begun, if it is not told otherwise.
    drain_ms: int = bounded(5_000, 0, MS_MAX)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, most = field.metadata["range"]
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"ServerLimits: {field.name} must be an int, {least} to {most}, "
                    f"not {argument_text(value)}"
                )
