"""`Ask` and `Reply`: the messages of `messages` that go as often as envelopes do.

They are dataclasses as the others are, but compiled: a frozen one in Python takes as long to make
as three envelopes take to deliver.
"""

cimport cython
from cython.dataclasses cimport dataclass

__all__ = ["Ask", "Reply"]


@cython.final
@cython.freelist(64)
@dataclass(frozen=True)
cdef class Ask:
    """Asks another process or service: a request, and exactly one `Reply` or `Failed` in answer.

    :ivar to: the `Pid` that is asked, of whatever node.
    :ivar msg: what it is asked.
    :ivar timeout_ms: milliseconds, 0 to 366 days, after which it fails if nothing has come.
    :ivar tag: comes back with the answer: whatever helps to go on from there. Not looked at.

    The request takes the place of this message among what its sender says. Who is asked is given
    the sender and the correlation id of a call, and answers by an envelope to that sender with that
    correlation id: see `rabble.reply`. The end comes as soon as it is known, and to the life that
    asked alone: when that is over, nobody is told. It has the correlation id of this message.
    """

    to: object
    msg: object
    timeout_ms: object
    tag: object = None

    def __reduce__(self):
        return Ask, (self.to, self.msg, self.timeout_ms, self.tag)


@cython.final
@cython.freelist(64)
@dataclass(frozen=True)
cdef class Reply:
    """The answer to an `Ask`.

    :ivar tag: the one of the `Ask`.
    :ivar value: what was answered.
    """

    tag: object
    value: object

    def __reduce__(self):
        return Reply, (self.tag, self.value)
