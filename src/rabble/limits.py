"""Every bound of a node, with its unit in its name, in one place."""

from __future__ import annotations

import dataclasses
import os

__all__ = ["Limits"]


FRAGMENT_BYTES_MIN = 16
#: What a frame may have besides a fragment: three pids in full, and more.
FRAGMENT_HEAD_BYTES_MAX = 4_096


def fragment_bytes_default() -> int:
    """16 KiB; a test run may set another, to see every message cut."""
    return int(os.environ.get("RABBLE_FRAGMENT_BYTES", 16 * 1024))


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of one node; each has a default and a defined answer when it is reached.

    :raises ValueError: if a bound is not a positive int, or a fragment does not fit into a frame.
    """

    #: Envelopes of other threads that wait for the executor. Beyond it `send` raises `QueueFull`.
    inbox_envelopes_max: int = 16_777_216
    #: Envelopes that wait in the inbox of a service or mailbox. Beyond it: `MAILBOX_FULL`.
    service_inbox_envelopes_max: int = 1_048_576
    #: Calls of `Node.call` and `Node.call_async` that wait for their reply. Beyond it: `QueueFull`.
    calls_max: int = 65_536
    #: Names that a node exports, to be spawned by others. Beyond it `export` raises `ValueError`.
    exports_max: int = 1_024
    #: Bytes of one encoded message.
    message_bytes_max: int = 64 * 1024 * 1024
    #: How deep containers may be nested in a message.
    message_depth_max: int = 64
    #: Elements of all containers of one message together.
    message_elements_max: int = 65_536
    #: Reports of crashed processes per second; the others are counted as suppressed.
    log_reports_per_second_max: int = 10
    #: Reports that wait to be written to the log. Beyond it they are counted as suppressed.
    log_reports_waiting_max: int = 256
    #: Milliseconds after which a `receive` that has not returned is reported with its stack.
    receive_report_after_ms: int = 450
    #: Milliseconds after which a node whose executor makes no progress is `stalled`.
    stalled_after_ms: int = 5_000
    #: Milliseconds of having said nothing to a peer after which PING is said; a peer that has been
    #: silent for longer may be replaced by a new connection of the same start of that node.
    heartbeat_ms: int = 1_000
    #: Milliseconds of silence after which a peer is down.
    down_after_ms: int = 8_000
    #: Connections that are being dialled at once; other dials wait.
    dials_max: int = 64
    #: Milliseconds of the first wait before a peer is dialled again; it doubles with each failure.
    redial_first_ms: int = 100
    #: Milliseconds that this wait grows to.
    redial_most_ms: int = 30_000
    #: Milliseconds of the least wait after a peer refused the version, the cluster or the proof.
    redial_refused_ms: int = 30_000
    #: Milliseconds that a connection has to last for the wait to start again from the first.
    redial_settled_ms: int = 10_000
    #: Milliseconds that the node with the greater name leaves the dialling to the other one.
    dial_hold_back_ms: int = 500
    #: Names of peers whose latest incarnation is remembered though nobody wants them.
    peers_remembered_max: int = 1_024
    #: Milliseconds that `shutdown` has, if it is not told otherwise.
    shutdown_ms: int = 5_000
    #: Milliseconds that one address of a peer has to take the connection.
    connect_ms: int = 2_000
    #: Handshakes that peers began and that go on. Beyond it the oldest is dropped.
    handshakes_max: int = 1_024
    #: Milliseconds between two digests of the membership.
    digest_ms: int = 10_000
    #: Milliseconds between two looks at the host names and the file of seeds.
    seeds_refresh_ms: int = 30_000
    #: Bytes of one frame from a peer. Beyond it the connection is closed.
    frame_bytes_max: int = 1024 * 1024
    #: Bytes of a message that is not cut into fragments.
    fragment_bytes_max: int = dataclasses.field(default_factory=fragment_bytes_default)
    #: Milliseconds that a frame may take from its first byte to its last.
    frame_partial_ms_max: int = 60_000
    #: Bytes that wait for one peer. Beyond it envelopes for that peer become `PEER_BUSY`.
    peer_queue_bytes_max: int = 8 * 1024 * 1024
    #: Processes of this node that one peer's processes may monitor, each pair counted.
    peer_watches_max: int = 65_536
    #: Bytes that each direction of a TLS connection keeps, besides what the kernel does.
    relay_buffer_bytes_max: int = 256 * 1024
    #: Milliseconds that a whole handshake may take. Beyond it the connection is closed.
    handshake_ms: int = 5_000
    #: Members of a mesh. Beyond it `join` and whatever would bring more are refused.
    membership_members_max: int = 1_024
    #: Names that left, and starts whose joins were all dropped, which are remembered of each. The
    #: earliest is forgotten beyond it. Nodes of one mesh should have the same.
    membership_retired_max: int = 256
    #: Concurrent joins of one member that are kept; beyond it the lower ones are dropped.
    membership_dots_per_member_max: int = 4

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"Limits: {field.name} must be a positive int, not {value!r}")
        most = self.frame_bytes_max - FRAGMENT_HEAD_BYTES_MAX
        if not FRAGMENT_BYTES_MIN <= self.fragment_bytes_max <= most:
            raise ValueError(
                f"Limits: fragment_bytes_max must be {FRAGMENT_BYTES_MIN} to {most}, which "
                f"frame_bytes_max has room for, not {self.fragment_bytes_max}"
            )
