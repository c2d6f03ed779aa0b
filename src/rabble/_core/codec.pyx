"""The codec: envelopes and messages to msgpack and back.

One class for both directions, of which `encode` and `decode` have one each; a connection, which
writes and reads bytes of its own, goes to these directly.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from rabble._core.buffer_reader import DecodeError, DecodeLimitError, UnknownMessageError
from rabble._core.decoder cimport Decoder
from rabble._core.encoder cimport Encoder
from rabble._core.encoder import EncodeError
from rabble._core.envelope cimport Envelope
from rabble._core.texts cimport bounded_repr

__all__ = ["Codec", "DecodeError", "DecodeLimitError", "EncodeError", "UnknownMessageError"]

cdef enum:
    DEPTH_MAX_MAX = 256       # every level takes some 300 bytes of stack


@cython.final
cdef class Codec:
    """Encodes and decodes by the classes of one registry.

    :param registry: the `MessageRegistry` of the classes that may be sent and built.
    :param message_bytes_max: bytes of one encoded message or envelope.
    :param depth_max: how deep containers may be nested, 1 to 256.
    :param elements_max: elements of all containers of one message together; an entry of a dict is
        one element, and so is a field of a message.
    :raises ValueError: if a bound is not usable.

    Tuples arrive as lists. Any thread may use it, also several.
    """

    def __cinit__(
        self, registry not None, *, message_bytes_max=64 << 20, depth_max=64, elements_max=65536
    ):
        for name, value, most in (
            ("message_bytes_max", message_bytes_max, 1 << 31),
            ("depth_max", depth_max, DEPTH_MAX_MAX),
            ("elements_max", elements_max, 1 << 31),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(
                    f"Codec: {name} must be 1 to {most}, not {bounded_repr(value, 100)}"
                )
        self.registry = registry
        self.message_bytes_max = message_bytes_max
        self.depth_max = depth_max
        self.elements_max = elements_max
        self.encoder = Encoder(registry, message_bytes_max, depth_max, elements_max)
        self.decoder = Decoder(registry, message_bytes_max, depth_max, elements_max)

    def encode_message(self, msg):
        """The bytes of a message. Raises `EncodeError`."""
        return self.encoder.encode_message(msg)

    def decode_message(self, bytes data not None):
        """The message that `encode_message` was given. Raises `DecodeError`."""
        return self.decoder.read_whole(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )

    def encode_envelope(self, Envelope env not None):
        """The bytes of an envelope. Raises `EncodeError`."""
        if env.to is None:
            raise TypeError("an envelope that was never filled cannot be encoded")
        return self.encoder.encode_envelope(env)

    def decode_envelope(self, bytes data not None):
        """The envelope that `encode_envelope` was given. Raises `DecodeError`."""
        return self.decoder.read_envelope(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )
