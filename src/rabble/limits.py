"""Every bound of a node, with its unit in its name, in one place."""

from __future__ import annotations

import dataclasses
import os

from rabble.texts import argument_text

__all__ = ["Limits"]


FRAGMENT_BYTES_MIN = 16
#: What a frame may have besides a fragment: three pids in full, and more.
FRAGMENT_HEAD_BYTES_MAX = 4_096
#: Of whatever is counted: it fits into a C int.
COUNT_MAX = 2**31 - 1
#: 24.8 days in milliseconds: what epoll takes as a timeout.
MS_MAX = 2**31 - 1
#: The longest that TCP_KEEPIDLE and TCP_KEEPINTVL take, in milliseconds.
HEARTBEAT_MS_MAX = 32_767_000
#: What a codec takes.
MESSAGE_BYTES_MAX = 2**31
#: Of what each node keeps of each member, and sends to all.
ENTRIES_MAX = 2**20


def bounded(default: int, least: int, most: int) -> int:
    """A field with that default, of `least` to `most`."""
    field: int = dataclasses.field(default=default, metadata={"range": (least, most)})
    return field


def fragment_bytes_default() -> int:
    """16 KiB; a test run may set another, to see every message cut."""
    return int(os.environ.get("RABBLE_FRAGMENT_BYTES", 16 * 1024))


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of one node; each has a default and a defined answer when it is reached.

    Each has a range, which the codec, the sockets and the kernel take: see docs/reference.md.

    :raises ValueError: if a bound is no int of its range, or does not agree with another one: a
        fragment has to fit into a frame, a message into what may be unfinished, and a peer has two
        heartbeats at least before it is down. It says which bound, what was given and what is
        allowed.
    """

    #: Envelopes of other threads that wait for the executor. Beyond it `send` raises `QueueFull`.
    inbox_envelopes_max: int = bounded(16_777_216, 1, COUNT_MAX)
    #: Envelopes that wait in the inbox of a service or mailbox. Beyond it: `MAILBOX_FULL`.
    service_inbox_envelopes_max: int = bounded(1_048_576, 1, COUNT_MAX)
    #: Calls of `Node.call` and `Node.call_async` that wait for their reply. Beyond it: `QueueFull`.
    calls_max: int = bounded(65_536, 1, COUNT_MAX)
    #: Requests of processes and services (`Ask`) that wait for their ends. Beyond it an `Ask` ends
    #: by `Failed` with `QueueFull`.
    asks_max: int = bounded(1_048_576, 1, COUNT_MAX)
    #: Calls of `join`, `leave`, `ban` and `lift_ban` that the thread of the mesh has not come to.
    #: Beyond it they raise `QueueFull`.
    mesh_commands_max: int = bounded(4_096, 1, COUNT_MAX)
    #: Names that a node exports, to be spawned by others. Beyond it `export` raises `ValueError`.
    exports_max: int = bounded(1_024, 1, COUNT_MAX)
    #: Bytes of one encoded message.
    message_bytes_max: int = bounded(64 * 1024 * 1024, 1, MESSAGE_BYTES_MAX)
    #: How deep containers may be nested in a message.
    message_depth_max: int = bounded(64, 1, 256)
    #: Elements of all containers of one message together; no more than it has bytes.
    message_elements_max: int = bounded(64 * 1024 * 1024, 1, 2**31)
    #: Bytes of memory that the objects of one message may take where it is decoded, by an estimate.
    message_decoded_bytes_max: int = bounded(512 * 1024 * 1024, 1, 2**40)
    #: Reports of crashed processes per second; the others are counted as suppressed.
    log_reports_per_second_max: int = bounded(10, 1, COUNT_MAX)
    #: Reports that wait to be written to the log. Beyond it they are counted as suppressed.
    log_reports_waiting_max: int = bounded(256, 1, COUNT_MAX)
    #: Milliseconds after which a `receive` that has not returned is reported with its stack.
    receive_report_after_ms: int = bounded(450, 1, MS_MAX)
    #: Milliseconds after which a node whose executor makes no progress is `stalled`.
    stalled_after_ms: int = bounded(5_000, 1, MS_MAX)
    #: Milliseconds of having said nothing to a peer after which PING is said; a peer that has been
    #: silent for longer may be replaced by a new connection of the same start of that node. Nodes
    #: of one mesh should have the same: of a connection it may be the peer's that counts.
    heartbeat_ms: int = bounded(1_000, 1, HEARTBEAT_MS_MAX)
    #: Milliseconds of silence after which a peer is down; at least twice `heartbeat_ms`.
    down_after_ms: int = bounded(8_000, 1, MS_MAX)
    #: Connections that are being dialled at once, of hosts that are looked up and of others, each;
    #: other dials wait. It begins with 4, and grows up to that while handshakes are quick.
    dials_max: int = bounded(64, 1, COUNT_MAX)
    #: Dials per second of members that were never reached, of which only others tell: so many of
    #: those that were not tried yet, and so many others. More of them wait.
    unreached_dials_per_second_max: int = bounded(10, 1, COUNT_MAX)
    #: Milliseconds of the first wait before a peer is dialled again; it doubles with each failure.
    redial_first_ms: int = bounded(100, 1, MS_MAX)
    #: Milliseconds that this wait grows to.
    redial_most_ms: int = bounded(30_000, 1, MS_MAX)
    #: Milliseconds of the least wait after a peer refused the version, the cluster or the proof, or
    #: was removed itself.
    redial_refused_ms: int = bounded(30_000, 1, MS_MAX)
    #: Milliseconds that a connection has to last for the wait to start again from the first.
    redial_settled_ms: int = bounded(10_000, 1, MS_MAX)
    #: Milliseconds that the node with the greater name leaves the dialling to the other one; while
    #: connections come up it does so for longer, up to twenty times.
    dial_hold_back_ms: int = bounded(500, 1, MS_MAX)
    #: Names of peers whose latest incarnation is remembered though nobody wants them.
    peers_remembered_max: int = bounded(1_024, 1, COUNT_MAX)
    #: Guests that are connected at once. Beyond it they are refused (`LIMIT`); 0 lets none in.
    guests_max: int = bounded(256, 0, COUNT_MAX)
    #: Milliseconds that `shutdown` has, if it is not told otherwise.
    shutdown_ms: int = bounded(5_000, 1, MS_MAX)
    #: Milliseconds that one address of a peer has to take the connection.
    connect_ms: int = bounded(2_000, 1, MS_MAX)
    #: Handshakes that peers began and that go on. Beyond it one of those from the address with most
    #: of them is dropped: the oldest that said nothing, or else the oldest.
    handshakes_max: int = bounded(1_024, 1, COUNT_MAX)
    #: Milliseconds between two digests of the membership.
    digest_ms: int = bounded(10_000, 1, MS_MAX)
    #: Milliseconds after the last change of it, or the last new connection, when a digest comes
    #: out of turn.
    digest_settled_ms: int = bounded(1_000, 1, MS_MAX)
    #: Milliseconds for which changes of the membership are gathered before peers are told.
    gossip_gather_ms: int = bounded(100, 1, MS_MAX)
    #: Milliseconds between two looks at the host names and the file of seeds.
    seeds_refresh_ms: int = bounded(30_000, 1, MS_MAX)
    #: Milliseconds between two looks at the files of the mesh's key and of the node's certificate.
    credentials_refresh_ms: int = bounded(30_000, 1, MS_MAX)
    #: Bytes of one frame from a peer. Beyond it the connection is closed. The whole membership has
    #: to fit into one: beyond it `join` and whatever would bring more are refused. Peers are not
    #: told: nodes of one mesh should have the same.
    frame_bytes_max: int = bounded(1024 * 1024, FRAGMENT_BYTES_MIN + FRAGMENT_HEAD_BYTES_MAX, 2**31)
    #: Bytes of a message that is not cut into fragments.
    fragment_bytes_max: int = dataclasses.field(
        default_factory=fragment_bytes_default, metadata={"range": (FRAGMENT_BYTES_MIN, 2**31)}
    )
    #: Bytes that came of all messages together that peers send in fragments and have not finished.
    #: Beyond it the connection whose message has most of them is closed. At least
    #: `message_bytes_max`.
    unfinished_bytes_max: int = bounded(512 * 1024 * 1024, 1, 2**40)
    #: Milliseconds that a frame may take from its first byte to its last, and that may pass between
    #: two fragments of a message.
    frame_partial_ms_max: int = bounded(60_000, 1, MS_MAX)
    #: Bytes that wait for one peer. Beyond it envelopes for that peer become `PEER_BUSY`.
    peer_queue_bytes_max: int = bounded(8 * 1024 * 1024, 64, 2**40)
    #: Processes of this node that one peer's processes may monitor, each pair counted.
    peer_monitors_max: int = bounded(65_536, 1, COUNT_MAX)
    #: Bytes that each direction of a TLS connection keeps, besides what the kernel does.
    tls_buffer_bytes_max: int = bounded(256 * 1024, 1, 2**26)
    #: Milliseconds that a whole handshake may take. Beyond it the connection is closed. What the
    #: node itself is late, as it is given no processor, does not count, up to eight times as long.
    handshake_ms: int = bounded(5_000, 1, MS_MAX)
    #: Members of a mesh. Beyond it `join` and whatever would bring more are refused.
    membership_members_max: int = bounded(1_024, 1, ENTRIES_MAX)
    #: Names that left, and starts whose joins were all dropped, which are remembered of each. The
    #: earliest is forgotten beyond it. Nodes of one mesh should have the same.
    membership_retired_max: int = bounded(256, 1, ENTRIES_MAX)
    #: Concurrent joins of one member that are kept; beyond it the lower ones are dropped.
    membership_dots_per_member_max: int = bounded(4, 1, ENTRIES_MAX)
    #: Bans that are known, those that are over included. Beyond it one that is over is forgotten,
    #: and if none is, the earliest. Nodes of one mesh should have the same, as of the next one.
    bans_max: int = bounded(256, 1, ENTRIES_MAX)
    #: Seconds that a ban may take: 400 days, as long as a certificate of `rabble cert` is good for.
    #: Of one that others tell of it is for this node alone: it is over here so many seconds after
    #: it was said, and others are told what was told.
    ban_seconds_max: int = bounded(400 * 86_400, 1, 2**31 - 1)
    #: Names that the processes of one node have. Beyond it a `Register` is refused, and of a peer
    #: nothing more is taken in. Nodes of one mesh should have the same, as of the next three.
    names_max: int = bounded(16_384, 1, ENTRIES_MAX)
    #: Groups that the processes of one node are members of.
    groups_max: int = bounded(4_096, 1, ENTRIES_MAX)
    #: Members of one group on one node.
    group_members_max: int = bounded(16_384, 1, ENTRIES_MAX)
    #: Bytes of the names and groups of one node together, each entry with 32 besides its texts.
    directory_bytes_max: int = bounded(4 * 1024 * 1024, 1, 2**30)
    #: Milliseconds for which a `Register` waits for the other nodes to know of it.
    name_claim_ms: int = bounded(5_000, 1, MS_MAX)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, most = field.metadata["range"]
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"Limits: {field.name} must be an int, {least} to {most}, "
                    f"not {argument_text(value)}"
                )
        most = self.frame_bytes_max - FRAGMENT_HEAD_BYTES_MAX
        if not FRAGMENT_BYTES_MIN <= self.fragment_bytes_max <= most:
            raise ValueError(
                f"Limits: fragment_bytes_max must be {FRAGMENT_BYTES_MIN} to {most}, which "
                f"frame_bytes_max has room for, not {self.fragment_bytes_max}"
            )
        least = 2 * self.heartbeat_ms
        if self.down_after_ms < least:
            raise ValueError(
                f"Limits: down_after_ms must be at least {least}, twice heartbeat_ms, not "
                f"{self.down_after_ms}: a peer that has nothing to say is heard once in "
                f"heartbeat_ms, and would be down between two heartbeats"
            )
        if self.unfinished_bytes_max < self.message_bytes_max:
            raise ValueError(
                f"Limits: unfinished_bytes_max must be at least message_bytes_max, "
                f"{self.message_bytes_max}, not {self.unfinished_bytes_max}: a message that comes "
                f"in fragments could not be finished"
            )
