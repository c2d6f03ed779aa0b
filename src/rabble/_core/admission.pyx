"""Admission: what is looked at before an envelope is queued: shape, strict mode, mailbox limits.

The plain case, one envelope and nothing to be looked at, never comes here: see `Executor.finish`.
All of it belongs to the executor's thread.
"""

cimport cython
from cpython.object cimport PyObject

from rabble._core.ask cimport Ask
from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.failure cimport owned, what_failed
from rabble._core.ids cimport Pid, same_pid
from rabble._core.inbox cimport Inbox
from rabble._core.notices cimport Undelivered
from rabble._core.texts cimport bounded_repr, failure_text, must_pass, type_name

from types import CoroutineType

from rabble._core.messages import DeadLetterReason

__all__ = []

cdef extern from *:
    """
    #define RABBLE_IS_ITERABLE(object) \
        (Py_TYPE(object)->tp_iter != NULL || PySequence_Check(object))
    #define RABBLE_TYPE(object) ((PyObject *)Py_TYPE(object))
    """
    bint RABBLE_IS_ITERABLE(object value) noexcept
    PyObject* RABBLE_TYPE(object value) noexcept

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* obj) noexcept

# Called so that what it raises stays pending: it returns NULL then.
ctypedef PyObject* (*quiet_codec)(Admission admission, Envelope envelope) noexcept


@cython.final
cdef class Admission:
    """The admission to one executor's run queue."""

    cdef int take_in(self, Inbox inbox) except -1:
        """Move what other threads sent into the run queue.

        Just what stands there now: a producer that is faster than this would keep all others
        waiting. Where there is no memory for the envelopes, they stay in the inbox until there is.
        """
        cdef size_t begin = self.backlog.popped + self.run_queue.count()
        cdef size_t left = inbox.queue.count()
        cdef Envelope envelope
        if not self.backlog.looks_at_each:
            if not self.run_queue.take_all(inbox.queue):
                return 0
            return self.backlog.note_span(begin)
        if not self.run_queue.has_room(left):
            return 0
        while left != 0 and inbox.queue.count() != 0:
            left -= 1
            envelope = inbox.queue.take()
            # Counted one by one: somebody's code may run, and others send meanwhile.
            begin = self.backlog.popped + self.run_queue.count()
            self.admit_outside(envelope)
            self.backlog.note_span(begin)
        return 0

    cdef int take_item(self, Entry entry, object item, int owners, list fresh) except -1:
        """Queue one envelope, its sender filled in; or put it into `fresh`, to be looked at.

        The sender is filled in in place if its `owners` are all the references there are; an
        envelope that somebody else holds too, to send it again perhaps, is copied.
        """
        cdef PyObject* borrowed = <PyObject*>item
        cdef Envelope envelope
        if type(item) is not Envelope:
            raise wrong_output(entry, item)
        if (<Envelope>item).sender is None:
            if Py_REFCNT(borrowed) != owners:
                envelope = new_envelope(
                    (<Envelope>item).to,
                    (<Envelope>item).msg,
                    entry.pid,
                    (<Envelope>item).correlation_id,
                )
            else:
                (<Envelope>item).sender = entry.pid
                envelope = <Envelope>item
        else:
            envelope = <Envelope>item
        if fresh is not None:
            fresh.append(self.checked(envelope))
        else:
            self.run_queue.append(envelope)
        return 0

    cdef object checked(self, Envelope envelope):
        """Strict mode: the envelope as another node would get it, or why it cannot go there.

        The latter as an `Undelivered`: also whatever the message's own code raised.
        """
        cdef PyObject* copied
        cdef Undelivered letter
        if self.strict is None:
            return envelope
        if type(envelope.msg) is Ask and same_pid(envelope.to, self.pid):
            return self.checked_ask(envelope)
        if (
            <size_t>RABBLE_TYPE(envelope.msg) in self.local_classes
            or same_pid(envelope.to, self.pid)
        ):
            return envelope
        copied = (<quiet_codec><void*>recoded)(self, envelope)
        if copied is not NULL:
            return owned(copied)
        error = what_failed()
        if type(error) is MemoryError or must_pass(error):
            # That is nothing of the message's.
            raise error
        self.hooks.call("unencodable", envelope, error)
        letter = Undelivered.__new__(Undelivered)
        letter.envelope = envelope
        letter.reason = DeadLetterReason.UNENCODABLE
        letter.detail = failure_text(error)
        return letter

    cdef Envelope checked_ask(self, Envelope envelope):
        """The same of the request that an `Ask` stands for; the `Undelivered` is its message then.
        """
        cdef Ask ask = <Ask>envelope.msg
        cdef object msg
        if type(ask.to) is not Pid:
            # Which is found in its turn.
            return envelope
        msg = self.checked(new_envelope(<Pid>ask.to, ask.msg, envelope.sender, None))
        if type(msg) is Envelope:
            msg = (<Envelope>msg).msg
        return new_envelope(
            envelope.to, Ask(ask.to, msg, ask.timeout_ms, ask.tag), envelope.sender,
            envelope.correlation_id,
        )

    cdef int admit(self, Envelope envelope) except -1:
        """Queue an envelope if its receiver's mailbox has room for it."""
        if not self.backlog.put(envelope):
            return self.dead_letters.drop(envelope, DeadLetterReason.MAILBOX_FULL)
        return 0

    cdef int admit_outside(self, Envelope envelope) except -1:
        cdef PyObject* copied
        if self.strict is not None:
            copied = (<quiet_codec><void*>check)(self, envelope)
            if copied is NULL:
                error = what_failed()
                self.hooks.interrupts.note(error)
                self.hooks.call("unencodable", envelope, error)
                return self.dead_letters.drop(
                    envelope, DeadLetterReason.UNENCODABLE, failure_text(error)
                )
            item = owned(copied)
            if type(item) is not Envelope:
                return self.dead_letters.drop(
                    (<Undelivered>item).envelope, (<Undelivered>item).reason,
                    (<Undelivered>item).detail,
                )
            envelope = <Envelope>item
        return self.admit(envelope)

    cdef int admit_newest(self, size_t count) except -1:
        cdef list fresh = []
        cdef Envelope envelope
        cdef size_t position
        for position in range(self.run_queue.tail - count, self.run_queue.tail):
            # Only the list grows, so what is in the queue stays where it is.
            fresh.append(<object>self.run_queue.slots[position & self.run_queue.mask])
        self.run_queue.drop_newest(count)
        for envelope in fresh:
            self.admit(envelope)
        return 0


cdef int admit_output(Admission admission, Entry entry, object output) except -1:
    cdef list fresh = None
    cdef int owners = 0
    cdef size_t before = admission.run_queue.count()
    cdef bint checks = admission.backlog.looks_at_each
    if checks:
        fresh = []
    if type(output) is Envelope:
        admission.take_item(entry, output, 1, fresh)
    elif type(output) is list or type(output) is tuple:
        # An envelope that only this list holds, which only the executor holds, is nobody
        # else's; one of a list that is kept elsewhere is.
        if Py_REFCNT(<PyObject*>output) == 1:
            owners = 2
        if type(output) is list:
            for item in <list>output:
                admission.take_item(entry, item, owners, fresh)
        else:
            for item in <tuple>output:
                admission.take_item(entry, item, owners, fresh)
    elif RABBLE_IS_ITERABLE(output):
        for item in output:
            admission.take_item(entry, item, 0, fresh)
    else:
        raise wrong_output(entry, output)
    if checks:
        # Nothing of it failed: now each goes where there is room for it.
        for item in fresh:
            if type(item) is Envelope:
                admission.admit(<Envelope>item)
            else:
                admission.dead_letters.drop(
                    (<Undelivered>item).envelope, (<Undelivered>item).reason,
                    (<Undelivered>item).detail,
                )
    elif admission.backlog.limited:
        # A generator that spawned what has a limit, and sent to it.
        admission.admit_newest(admission.run_queue.count() - before)
    return 0


cdef object check(Admission admission, Envelope envelope):
    return admission.checked(envelope)


cdef object recoded(Admission admission, Envelope envelope):
    """The envelope with its message as it arrives."""
    msg = admission.strict.arriving(envelope)
    return new_envelope(envelope.to, msg, envelope.sender, envelope.correlation_id)


cdef object wrong_output(Entry entry, object value):
    advice = ""
    if type(value) is CoroutineType:
        value.close()
        advice = ": a process waits for nothing, so make it a plain def"
    return TypeError(
        f"{type_name(entry.target)}.receive returned {bounded_repr(value, 200)} "
        f"(a {type_name(value)}); it may return None, one Envelope, or an iterable of "
        f"Envelopes{advice}"
    )
