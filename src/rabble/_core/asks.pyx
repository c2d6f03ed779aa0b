"""Asks: what processes ask each other, each of which ends exactly once.

The request of an `Ask` is that of a call: it goes out from the pid of all that call on this node,
with a correlation id of the same numbers, so whoever answers, passes it on, crashes or goes away
ends it as he would end the call of a thread. `requests` knows who has it, and which life asked. All
that differs is here: the end goes to that life, as a `Reply` or a `Failed`.

All of it belongs to the executor's thread.
"""

from libc.stdint cimport int64_t

from rabble._core.ask cimport Ask, new_reply
from rabble._core.dispatch cimport CALLBACK, INBOX, PROCESS, Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Executor
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node, same_pid
from rabble._core.notices cimport Undelivered
from rabble._core.requests cimport Asked, Requests
from rabble._core.texts cimport not_a_pid
from rabble._core.timers cimport Timer, delay_ms_of

from rabble._core.messages import Bounced, CallFailed, DeadLetter, DeadLetterReason, Failed

__all__ = []


cdef int begin_ask(Executor executor, Ask ask, Envelope envelope, Entry entry) except -1:
    cdef Requests requests = executor.requests
    cdef object msg = ask.msg
    cdef Undelivered refused = None
    cdef CorrelationId cid
    cdef Envelope request
    cdef object number
    cdef int64_t delay_ms
    if type(ask.to) is not Pid:
        raise not_a_pid("Ask: to", "Pid", ask.to)
    delay_ms = delay_ms_of(ask.timeout_ms)
    if entry is not None and entry.kind != PROCESS and entry.kind != INBOX:
        raise TypeError(f"{entry.pid} asks nobody: a process or a service does")
    if type(msg) is Undelivered and (<Undelivered>msg).envelope is not None:
        # The strict mode found that it cannot travel.
        refused = <Undelivered>msg
        msg = refused.envelope.msg
    if entry is not None and requests.asks >= requests.asks_max:
        error = executor.hooks.target.asks_full(ask.to, requests.asks)
        return executor.notifier.notify(entry, Failed(ask.tag, error), envelope.correlation_id)
    have_asker(executor)
    number = requests.next_number()
    cid = CorrelationId(requests.asker, None, number)
    request = new_envelope(<Pid>ask.to, msg, requests.asker, cid)
    if entry is not None:
        # Of a life that is over the request goes out all the same, as whatever else it sent.
        wait_for(executor, entry, ask, envelope.correlation_id, cid, delay_ms)
    if refused is not None:
        return executor.letters.drop(request, refused.reason, refused.detail)
    executor.follow_up = request
    return 0


cdef int have_asker(Executor executor) except -1:
    if executor.table.find(executor.requests.asker) is NULL:
        # An executor without a table of calls.
        executor.lives.begin_service(
            executor.requests.asker, executor.requests.deliver, CALLBACK
        )
    return 0


cdef int wait_for(
    Executor executor, Entry entry, Ask ask, CorrelationId correlation_id, CorrelationId cid,
    int64_t delay_ms,
) except -1:
    cdef Asked asked = Asked.__new__(Asked)
    asked.entry = entry
    asked.cid = cid
    asked.to = <Pid>ask.to
    asked.tag = ask.tag
    asked.correlation_id = correlation_id
    asked.timeout_ms = ask.timeout_ms
    asked.delay_ms = delay_ms
    return executor.requests.begin_ask(asked)


cdef int take_answer(Executor executor, Asked asked, Envelope envelope) except -1:
    cdef object msg
    cdef object cls
    if executor.lives.guard is not None:
        envelope = arrived(executor, envelope)
    msg = envelope.msg
    cls = type(msg)
    if (
        envelope.sender is not None
        and same_pid(envelope.sender, executor.pid)
        and (cls is DeadLetter or cls is Bounced or cls is CallFailed)
    ):
        msg = Failed(asked.tag, executor.hooks.target.ask_failure(asked.to, msg))
    elif (
        asked.entry.kind == CALLBACK and executor.desk is not None and executor.lives.guard is None
        and executor.desk.take_answer(asked, msg)
    ):
        return 0
    else:
        msg = new_reply(asked.tag, msg)
    return tell(executor, asked, msg)


cdef Envelope arrived(Executor executor, Envelope envelope):
    """Where changes are looked for: as it was sent, or why it cannot be given to anybody."""
    cdef Envelope opened = executor.admission.strict.received(envelope)
    if opened is not None:
        return opened
    letter = DeadLetter(executor.letters.opened(envelope), DeadLetterReason.CHANGED)
    return new_envelope(envelope.to, letter, executor.pid, envelope.correlation_id)


cdef int expire_ask(Executor executor, Asked asked, Timer timer) except -1:
    if executor.timeouts.due_queued > 0:
        executor.timeouts.due_queued -= 1
    if asked.timer is not timer:
        # It ended while this stood in the queue.
        return 0
    error = executor.hooks.target.ask_timeout(asked.to, asked.cid.request, asked.timeout_ms)
    return tell(executor, asked, Failed(asked.tag, error))


cdef int tell(Executor executor, Asked asked, object msg) except -1:
    """It ends, by a message to the life that asked, whose turn this is."""
    executor.requests.end_ask(asked, executor.timeouts)
    return executor.give_notice(asked.entry, msg, asked.correlation_id)


cdef int end_asks_of(Executor executor, NodeId node, str why) except -1:
    """Each in its turn: a reply that came before may stand in the queue."""
    cdef Requests requests = executor.requests
    cdef Asked asked
    cdef Pid pid
    if not requests.asks:
        return 0
    entry = <Entry>executor.table.find(requests.asker)
    for asked in requests.all_asked():
        pid = asked.to
        if type(asked.holder) is Entry:
            pid = (<Entry>asked.holder).pid
        elif asked.holder is not None:
            pid = <Pid>asked.holder
        if same_node(pid.node, node):
            executor.notifier.notify(
                entry, CallFailed(pid, "disconnected", why, 0),
                asked.cid,
            )
    return 0
