"""What handlers of clients return, and what codecs of clients read and write.

They are made for each request, and so compiled, as `Ask` is.
"""

cimport cython
from cython.dataclasses cimport dataclass

from rabble._core.texts cimport bounded_repr, type_name

__all__ = [
    "Answer",
    "Canary",
    "ClientAsk",
    "CloseConnection",
    "Fail",
    "Incoming",
    "Outgoing",
    "Push",
    "ask",
]

cdef extern from *:
    """
    /* On failure it returns whatever is not 0. */
    #define RABBLE_ENTER_RECURSIVE_CALL(where) (Py_EnterRecursiveCall(where) ? -1 : 0)
    """
    int enter_recursive_call "RABBLE_ENTER_RECURSIVE_CALL"(const char* where) except -1
    void Py_LeaveRecursiveCall() noexcept


cdef Py_hash_t hash_of(object field) except -1:
    """Of a message with this field alone, which may be such a message again, a million deep."""
    enter_recursive_call(" while a message is hashed")
    try:
        return hash((field,))
    finally:
        Py_LeaveRecursiveCall()


@cython.final
@cython.freelist(64)
@dataclass(frozen=True)
cdef class Answer:
    """The answer to a request of a client. It ends the request.

    :ivar request: the `RequestId` that the handler was given. If that request has ended, by its
        timeout say, nothing is sent, and it is counted as late.
    :ivar value: what is answered; whatever the server's codec can write.
    """

    request: object
    value: object


@cython.final
@dataclass(frozen=True)
cdef class Fail:
    """A request of a client fails. It ends the request.

    :ivar request: as of an `Answer`.
    :ivar code: a short word for programs, at most 32 characters of ASCII; as `failed`.
    :ivar text: more for people.
    """

    request: object
    code: object
    text: object = ""


@cython.final
@cython.freelist(64)
@dataclass(frozen=True)
cdef class Push:
    """A message to the client that answers nothing.

    :ivar msg: whatever the server's codec can write.
    """

    msg: object

    def __hash__(self):
        return hash_of(self.msg)


@cython.final
@dataclass(frozen=True)
cdef class CloseConnection:
    """Close the connection, behind what was sent before. Its requests end with it.

    :ivar reason: the code of the goodbye that the client is sent, a short word.
    """

    reason: object = "closed"

    def __hash__(self):
        return hash_of(self.reason)


@cython.final
@cython.freelist(64)
@dataclass(frozen=True)
cdef class ClientAsk:
    """A request of a client is passed on, and answered by what comes back. `ask` makes it.

    :ivar to: the `Pid` that is asked, of whatever node.
    :ivar msg: what it is asked.
    :ivar request: the `RequestId` that the handler was given.
    :ivar timeout_ms: milliseconds; `None` is for as long as the server gives a request.
    """

    to: object
    msg: object
    request: object
    timeout_ms: object = None


def ask(to, msg, request, timeout_ms=None):
    """Ask a process, and have the client answered with what it replies.

    The reply goes to the client without any code of the handler's. If none can come the request
    fails at once, with `no_process`, `crashed` or `disconnected`; or with `timeout`.

    :param to: whom, on this node or another.
    :param msg: what it is asked, which must not be changed any more.
    :param request: as `handle_message` was given it.
    :param timeout_ms: milliseconds; by default, and at most, `ServerLimits.request_ms_max`.
    :returns: what the handler returns, alone or among others. For any thread.
    """
    # Past `ClientAsk(...)`, which takes its arguments by way of a tuple.
    cdef ClientAsk made = ClientAsk.__new__(ClientAsk)
    made.to = to
    made.msg = msg
    made.request = request
    made.timeout_ms = timeout_ms
    return made


@cython.final
@cython.freelist(64)
@dataclass(frozen=True)
cdef class Incoming:
    """What a codec has read: one frame of a client.

    :ivar msg: the message.
    :ivar id: of a request, an int that is unique among those of the connection that wait; `None`:
        it is no request, and nothing is answered. With a codec whose answers are in order any int.
    :ivar priority: -1 may be refused earlier, 0 is usual, 1 is let through longer.
    """

    msg: object
    id: object = None
    priority: object = 0


@cython.final
@cython.freelist(64)
@dataclass(frozen=True)
cdef class Outgoing:
    """What a codec is to write: one frame for a client.

    :ivar kind: `answer`, `failure`, `nack`, `push` or `goodbye`.
    :ivar id: of the request, for the first three; else `None`.
    :ivar value: of an answer; or what is pushed.
    :ivar code: of a failure or a goodbye: a short word.
    :ivar text: of a failure, a nack or a goodbye: for people.
    :ivar retry_after_ms: of a nack: after so many milliseconds it may be tried again.
    """

    kind: object
    id: object = None
    value: object = None
    code: object = ""
    text: object = ""
    retry_after_ms: object = 0


@cython.final
@dataclass(frozen=True)
cdef class Canary:
    """What a gate sends through the run queue to see how long that takes.

    :ivar number: which one.
    :ivar node: the name of the node through which it goes; empty: this one.
    """

    number: object
    node: object = ""


cdef object wrong_output(object handler, object value):
    return TypeError(
        f"{type_name(handler)} returned {bounded_repr(value, 200)} (a {type_name(value)}); "
        f"it may return None, or one or an iterable of Envelope, Answer, Fail, Push, "
        f"CloseConnection and what ask() returns"
    )
