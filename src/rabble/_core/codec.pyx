"""The codec: envelopes and messages to msgpack and back.

One class for both directions, of which `encoder` and `decoder` have one each; a session, which
writes and reads bytes of its own, goes to these directly.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from rabble._core.decoder cimport Decoder
from rabble._core.encoder cimport Encoder
from rabble._core.envelope cimport Envelope, is_to_nobody
from rabble._core.plan cimport CodecBounds

__all__ = ["Codec"]


@cython.final
cdef class Codec(CodecBounds):
    """Encodes and decodes by the classes of one registry.

    :param registry: the `MessageRegistry` of the classes that may be sent and built.
    :param message_bytes_max: bytes of one encoded message or envelope; 64 MiB unless it is given.
    :param depth_max: how deep containers may be nested, 1 to 256; else 64.
    :param elements_max: elements of all containers of one message together, else 64 Mi; an entry
        of a dict is one element, and so is a field of a message.
    :param decoded_bytes_max: bytes of memory that the objects of one message may take where it is
        decoded, by estimate; else 512 MiB.
    :raises ValueError: if a bound is not usable.

    What is decoded equals what was encoded and is of the same types. Any thread may use it, also
    several.
    """

    def __cinit__(self, registry, **bounds):
        self.encoder = Encoder(registry, **bounds)
        self.decoder = Decoder(registry, **bounds)

    @property
    def fields_dropped(self):
        """Fields that came with messages since the start and that their classes do not have here.
        """
        return self.decoder.fields_dropped

    def encode_message(self, msg):
        """The bytes of a message.

        :raises EncodeError: if something in it does not travel, or a bound is exceeded.
        """
        return self.encoder.encode_message(msg)

    def decode_message(self, bytes data not None):
        """The message that `encode_message` was given.

        :raises DecodeError: if the bytes are none, or the registry has no such class; a
            `DecodeLimitError` if a bound is exceeded.
        """
        return self.decoder.read_whole(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )

    def encode_envelope(self, Envelope env not None):
        """The bytes of an envelope.

        :raises EncodeError: as `encode_message` does.
        """
        if is_to_nobody(env):
            raise TypeError("an envelope to None goes to nobody, and has no encoding")
        return self.encoder.encode_envelope(env)

    def decode_envelope(self, bytes data not None):
        """The envelope that `encode_envelope` was given.

        :raises DecodeError: as `decode_message` does.
        """
        return self.decoder.read_envelope(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )
