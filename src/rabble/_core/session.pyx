"""The session: one connection's encoder and decoder, from objects to frames and back.

A session is a `FrameEncoder` and a `FrameDecoder`, which share the codec and know nothing of each
other. What a peer can make a session hold is bounded:

- 2 x 8,192 references to pids and what is known of them, 204 KiB, taken with the first pid. The
  pids that the peer sent take some 200 bytes each, 4.5 KiB at worst (three names and an address of
  255 bytes, as wide characters): some 2 MiB, 36 MiB at worst;
- of a message in fragments at most 4 MiB or twice the bytes that came, and no more than
  `message_bytes_max` and a head of 3 KiB; of those of several sessions together what
  `UnfinishedMessages` says;
- the codec's caches of 256 pids and 256 keys of maps.

What it holds to be sent is bounded by the poll loop, which is asked before something is written.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

from rabble._core.capacities cimport PID_CACHE_SLOTS_USED
from rabble._core.codec cimport Codec
from rabble._core.envelope cimport Envelope, is_to_nobody
from rabble._core.failure cimport owned
from rabble._core.fragments cimport UnfinishedMessages
from rabble._core.frame cimport HEAD_MAX, PID_CACHE_SLOTS, VERSION_MAX
from rabble._core.frame_decoder cimport FrameDecoder
from rabble._core.frame_encoder cimport FrameEncoder
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.inbox cimport monotonic_ns
from rabble._core.queue cimport EnvelopeQueue

__all__ = ["Session"]

cdef enum:
    FRAGMENT_BYTES_MIN = 16


cdef Envelope filled(Envelope envelope):
    """The same, unless it goes to nobody."""
    if is_to_nobody(envelope):
        raise TypeError("an envelope to None goes to nobody: no other node is sent it")
    return envelope


@cython.final
cdef class Session:
    """The encoder and decoder of one connection. Not thread-safe: the executor's thread owns it.

    :param own: this node.
    :param peer: the other one.
    :param incarnation: of the peer.
    :param executor: the pid on this node that is sent a `PeerEvent` for what is no envelope.
    :param codec: used by nothing else at the same time.
    :param fragment_bytes: longer messages are cut into parts of that size; 16 or more.
    :param message_bytes_max: bytes of one message, in both directions; no more than the codec's,
        which it is unless it is given.
    :param peer_message_bytes_max: of the longest message that the peer takes; as many as this node
        unless it is given.
    :param frame_bytes_max: bytes of the longest frame that is read, without its length field.
    :param open_names: the names of group `rabble` that the peer may send to.
    :param pid_cache_slots: how many slots of the pid cache are used for writing: a power of two, 2
        to 8,192.
    :param unfinished: counts the bytes of messages that come in fragments, among those of others;
        `None` if nothing does.
    :param labels: that the peer gives itself.
    :param version: of the protocol, that both sides use.
    :raises ValueError: if a bound is not usable.
    """

    def __cinit__(
        self, NodeId own not None, NodeId peer not None, uint64_t incarnation,
        Pid executor not None, *, Codec codec not None, Py_ssize_t fragment_bytes=65536,
        message_bytes_max=None, peer_message_bytes_max=None, Py_ssize_t frame_bytes_max=1 << 20,
        open_names=frozenset(), Py_ssize_t pid_cache_slots=PID_CACHE_SLOTS_USED,
        UnfinishedMessages unfinished=None, frozenset labels=frozenset(), int version=VERSION_MAX,
    ):
        if message_bytes_max is None:
            message_bytes_max = codec.message_bytes_max
        if not 1 <= message_bytes_max <= codec.message_bytes_max:
            raise ValueError(
                f"Session: message_bytes_max must be 1 to {codec.message_bytes_max}, which is the "
                f"codec's, not {message_bytes_max}"
            )
        if peer_message_bytes_max is None or peer_message_bytes_max > message_bytes_max:
            peer_message_bytes_max = message_bytes_max
        most = frame_bytes_max - HEAD_MAX - 2
        if not FRAGMENT_BYTES_MIN <= fragment_bytes <= most:
            raise ValueError(
                f"Session: fragment_bytes must be {FRAGMENT_BYTES_MIN} to {most}, which leaves "
                f"room in a frame of {frame_bytes_max}, not {fragment_bytes}"
            )
        if not 2 <= pid_cache_slots <= PID_CACHE_SLOTS or pid_cache_slots & (pid_cache_slots - 1):
            raise ValueError(
                f"Session: pid_cache_slots must be a power of two, 2 to {PID_CACHE_SLOTS}, "
                f"not {pid_cache_slots}"
            )
        if executor.node != own:
            raise ValueError(f"Session: {executor} is not the executor of {own}")
        if own == peer:
            raise ValueError(f"Session: {own} does not need a connection to itself")
        self.own = own
        self.peer = peer
        self.incarnation = incarnation
        self.labels = labels
        self.version = version
        self.codec = codec
        self.frame_encoder = FrameEncoder(
            own, peer, executor, codec.encoder, fragment_bytes, message_bytes_max,
            peer_message_bytes_max, pid_cache_slots,
        )
        self.frame_decoder = FrameDecoder(
            self, own, peer, executor, codec.decoder, frozenset(open_names), message_bytes_max,
            frame_bytes_max, version, unfinished,
        )

    @property
    def fragment_bytes(self):
        """Longer messages are cut into parts of that size."""
        return self.frame_encoder.fragment_bytes

    @property
    def message_bytes_max(self):
        """Bytes of the longest message, in both directions."""
        return self.frame_encoder.message_bytes_max

    @property
    def frame_bytes_max(self):
        """Bytes of the longest frame that is read."""
        return self.frame_decoder.frame_bytes_max

    @property
    def unfinished_ns(self):
        """How long no part of the message came that comes in parts, in ns; 0 if none does."""
        cdef int64_t part_ns = self.frame_decoder.fragments.part_ns
        return max(monotonic_ns() - part_ns, 1) if part_ns else 0

    # For tests and benchmarks: the same as the poll loop and the executor do, in Python's terms.

    def write(self, Envelope envelope not None, Pid forwarder=None):
        """Append an envelope to its lane.

        :param forwarder: who passes it on, if it is a request of another node's; else the executor.
        :raises EncodeError: if its message cannot travel, or one of its pids must not be there.
        """
        self.frame_encoder.write_envelope(filled(envelope), forwarder)

    def write_all(self, list envelopes not None):
        """Append several envelopes, in order.

        :raises EncodeError: as `write` does, when those before it are there.
        """
        cdef FrameEncoder frame_encoder = self.frame_encoder
        for envelope in envelopes:
            frame_encoder.write_envelope(filled(<Envelope?>envelope), None)

    def monitor(self, Pid monitoring not None, Pid monitored not None, uint64_t reference):
        """Write that `monitoring`, of this node, monitors `monitored`, of the peer."""
        self.frame_encoder.write_monitor(monitoring, monitored, reference)

    def demonitor(self, Pid monitoring not None, Pid monitored not None, uint64_t reference):
        """Write that it does no longer."""
        self.frame_encoder.write_demonitor(monitoring, monitored, reference)

    def down(
        self, Pid monitoring not None, Pid monitored not None, uint64_t reference, int why,
        uint64_t life, str detail="",
    ):
        """Write that this life of `monitored`, of this node, has ended; 0: no life is known."""
        self.frame_encoder.write_down(monitoring, monitored, reference, why, life, detail)

    def link(self, Pid linking not None, Pid linked not None, uint64_t reference):
        """Write that `linking`, of this node, links with `linked`, of the peer."""
        self.frame_encoder.write_link(linking, linked, reference)

    def unlink(self, Pid linking not None, Pid linked not None, uint64_t reference):
        """Write that it ends the link; `reference` is the other's last LINK that was seen."""
        self.frame_encoder.write_unlink(linking, linked, reference)

    def exit(
        self, Pid linked not None, Pid ended not None, uint64_t reference, int why, uint64_t life,
        str detail="",
    ):
        """Write that this life of `ended`, of this node, was linked with `linked` and has ended."""
        self.frame_encoder.write_exit(linked, ended, reference, why, life, detail)

    def undelivered(
        self, Pid to not None, CorrelationId correlation_id, int why, uint64_t crash=0,
        Pid about=None, str detail="",
    ):
        """Write that an envelope of `to`, of the peer, became a dead letter here."""
        self.frame_encoder.write_undelivered(to, correlation_id, why, crash, about, detail)

    def refuse(self, Envelope envelope not None):
        """Note that an envelope was dropped instead of written; it is one of those of `lost`."""
        self.frame_encoder.note_refused(filled(envelope))

    def lost(self, uint32_t count):
        """Write that `count` envelopes for the peer were dropped."""
        self.frame_encoder.write_lost(count)

    def take_data(self):
        """The bytes of the data lane, which is empty then."""
        return self.frame_encoder.take_data()

    def take_bulk(self, size_t unsent=0):
        """The bytes of the bulk lane, which is empty then.

        :param unsent: how many of these bytes the poll loop holds from now on.
        """
        return self.frame_encoder.take_bulk(unsent)

    def encode(self, Envelope envelope not None):
        """The bytes of an envelope, with whatever else waited in both lanes.

        :raises EncodeError: as `write` does.
        """
        self.frame_encoder.write_envelope(filled(envelope), None)
        return self.take_data() + self.take_bulk()

    def decode(self, bytes data not None):
        """The list of the envelopes in `data`, which is whole frames.

        :raises SessionError: if the connection is to end; then nothing more can be decoded.
        """
        cdef EnvelopeQueue queue = EnvelopeQueue()
        cdef size_t _n
        self.decode_into(data, queue)
        return [owned(queue.take_owned()) for _n in range(queue.count())]

    def decode_into(self, bytes data not None, EnvelopeQueue queue not None):
        """The same into a queue, which also has what came before an error."""
        self.frame_decoder.read_batch(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), queue, NULL
        )
