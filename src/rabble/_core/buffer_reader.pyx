"""Reading: a cursor over a stranger's bytes, and what is said of bytes that are wrong."""

from rabble._core.failure cimport PyErr_GivenExceptionMatches, take_failure

from rabble._core.errors import (
    DecodedSizeError, DecodeError, DecodeLimitError, UnknownMessageError,
)

__all__ = []


cdef object malformed(BufferReader* r, str what):
    return DecodeError(f"byte {r.at - r.start}: {what}")


cdef object unknown(BufferReader* r, str what):
    return UnknownMessageError(f"byte {r.at - r.start}: {what}")


cdef object beyond(BufferReader* r, str what):
    return DecodeLimitError(f"byte {r.at - r.start}: {what}")


cdef object too_large(BufferReader* r, str what):
    return DecodedSizeError(f"byte {r.at - r.start}: {what}")


cdef object not_utf8(BufferReader* r):
    error = take_failure()
    if not PyErr_GivenExceptionMatches(error, UnicodeDecodeError):
        return error
    return malformed(r, f"a string is not UTF-8: {error.reason}")
