"""Reading: a cursor over a stranger's bytes, and what is said of bytes that are wrong."""

from rabble._core.failure cimport PyErr_GivenExceptionMatches, take_failure

__all__ = ["DecodeError", "DecodeLimitError", "UnknownMessageError"]


class DecodeError(ValueError):
    """The bytes are no message; says what is wrong and where."""


class DecodeLimitError(DecodeError):
    """The bytes exceed a bound, or announce more than they hold."""


class UnknownMessageError(DecodeError):
    """The bytes are well-formed so far, but the registry has no such class, or it refuses."""


cdef object malformed(BufferReader* r, str what):
    return DecodeError(f"byte {r.at - r.start}: {what}")


cdef object unknown(BufferReader* r, str what):
    return UnknownMessageError(f"byte {r.at - r.start}: {what}")


cdef object beyond(BufferReader* r, str what):
    return DecodeLimitError(f"byte {r.at - r.start}: {what}")


cdef object not_utf8(BufferReader* r):
    error = take_failure()
    if not PyErr_GivenExceptionMatches(error, UnicodeDecodeError):
        return error
    return malformed(r, f"a string is not UTF-8: {error.reason}")
