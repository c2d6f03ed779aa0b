"""The gate of a server: what it is asked and told, its canaries, and the pressure of queues.

Nothing here writes to a client. Whatever the gate raises, or the queue in front of it, is reported
as a crash, and from then on the server has no gate: all requests are begun.

Canaries through this node are envelopes to the server's own pid. One through another node is a
request to that node's pid `canary`, which answers it, as its executor comes to it; so it ends as
any request does, with the connection at the latest.

How full queues are is looked at while requests come and go, and for as long as one is known to be
raised; only those that are a quarter full, or were a moment ago, are spoken of.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport INT64_MAX, int64_t

from rabble._core.asks cimport have_asker
from rabble._core.client_messages cimport Canary
from rabble._core.client_server cimport ClientServer
from rabble._core.connection cimport Connection
from rabble._core.dispatch cimport Entry, MailboxLimit
from rabble._core.envelope cimport new_envelope
from rabble._core.executor cimport Executor
from rabble._core.failure cimport what_failed
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.requests cimport Asked, Requests
from rabble._core.texts cimport bounded_repr

__all__ = []

cdef enum:
    LOOK_NS = 10_000_000        # between two looks at how full the queues are
    WAITING_LOOK_NS = 1_000_000  # ... and at whether there is room for what waits
    TOLD_PART = 4               # of its bound: how full a queue is to be spoken of

cdef extern from "Python.h":
    # Declared without `except`: what it raises stays pending until it is taken.
    PyObject* PyObject_VectorcallMethod(
        PyObject* name, PyObject* const* args, size_t nargsf, PyObject* kwnames
    )


cdef object call_gate(
    ClientServer server, str method, object now, object second=None, object third=None
):
    return call_one(server, server.gate, method, now, second, third, None)


cdef object call_front(
    ClientServer server, str method, object first, object second=None, object third=None,
    object fourth=None,
):
    return call_one(server, server.front, method, first, second, third, fourth)


cdef object call_one(
    ClientServer server, object target, str method, object first, object second, object third,
    object fourth,
):
    cdef PyObject* args[5]
    cdef PyObject* result
    if server.gate is None:
        return None
    args[0] = <PyObject*>target
    args[1] = <PyObject*>first
    args[2] = <PyObject*>second
    args[3] = <PyObject*>third
    args[4] = <PyObject*>fourth
    result = PyObject_VectorcallMethod(
        <PyObject*>method, args,
        2 + (second is not None) + (third is not None) + (fourth is not None), NULL,
    )
    if result is NULL:
        error = what_failed()
        server.executor.interrupts.note(error)
        gate_failed(server, error)
        return None
    value = <object>result
    Py_DECREF(value)
    return value


cdef int gate_failed(ClientServer server, object error) except -1:
    """It is asked nothing more: all requests are begun from now on."""
    server.gate = None
    server.executor.crashes += 1
    return server.executor.hooks.call("crashed", server.pid, error)


cdef int64_t checked_number(
    ClientServer server, str method, object value, int64_t other
) except? -1:
    if value is None:
        return other
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        gate_failed(
            server,
            TypeError(
                f"{method}() of a gate returned {bounded_repr(value, 80)}: an int is wanted, "
                f"0 to {INT64_MAX}"
            ),
        )
        return other
    return value


# The clock.

cdef int refresh_gate(ClientServer server) except -1:
    cdef int64_t now = server.executor.now_ns()
    cdef int64_t due
    server.gate_stale = False
    if now >= server.look_ns:
        look_at_queues(server, now)
    due = checked_number(
        server, "next_tick", call_gate(server, "next_tick", now), INT64_MAX
    )
    if server.pressed:
        due = min(due, server.look_ns)
    if server.waiting:
        # Room may come by time alone, of which the gate says nothing.
        due = min(due, now + WAITING_LOOK_NS)
    server.gate_next_ns = due
    return 0


cdef int64_t gate_time_left(ClientServer server, int64_t now, int64_t most) noexcept:
    cdef int64_t left
    if server.gate is None or server.gate_next_ns == INT64_MAX:
        return most
    left = max(server.gate_next_ns - now, 0)
    return left if most < 0 else min(left, most)


cdef int tick_gate(ClientServer server, int64_t now) except -1:
    cdef Executor executor = server.executor
    if now >= server.look_ns:
        look_at_queues(server, now)
    changed = call_gate(server, "tick", now)
    if changed is not None:
        for pid in server.changed(changed):
            executor.run_queue.append(new_envelope(<Pid?>pid, changed, server.pid, None))
    # Nothing else is true here: to ask it might raise.
    if call_gate(server, "canary_due", now) is True:
        server.canaries += 1
        call_gate(server, "canary_sent", now, server.canaries)
        executor.run_queue.append(
            new_envelope(server.pid, Canary(server.canaries), server.pid, None)
        )
    for name, pid in server.nodes:
        if call_gate(server, "canary_due", now, name) is True:
            send_canary(server, now, name, pid)
    return refresh_gate(server)


# Canaries through other nodes.

cdef int send_canary(ClientServer server, int64_t now, object name, Pid to) except -1:
    cdef Executor executor = server.executor
    cdef Requests requests = executor.requests
    cdef PyObject* found = executor.table.find(server.pid)
    cdef Connection connection = None
    cdef CorrelationId cid
    cdef Asked asked
    server.canaries += 1
    call_gate(server, "canary_sent", now, server.canaries, name)
    if executor.routes is not None:
        connection = executor.routes.find(to.node)
    if connection is None or not connection.is_open() or found is NULL:
        # Nobody has to be told of what was never sent.
        call_gate(server, "canary_lost", now, name)
        return 0
    if requests.asks >= requests.asks_max:
        # Counted with its age, as one that does not come back: nobody here gets anything done.
        return 0
    have_asker(executor)
    asked = Asked.__new__(Asked)
    asked.entry = <Entry>found
    asked.cid = cid = CorrelationId(requests.asker, None, requests.next_number())
    asked.to = to
    asked.tag = Canary(server.canaries, name)
    asked.timeout_ms = asked.delay_ms = server.request_ns_max // 1_000_000
    requests.begin_ask(asked)
    executor.run_queue.append(new_envelope(to, None, requests.asker, cid))
    return 0


cdef int canary_back(ClientServer server, Canary canary, str code) except -1:
    if server.gate is None:
        return 0
    if code == "disconnected":
        # The node is down, which says nothing of overload.
        call_gate(server, "canary_lost", server.executor.now_ns(), canary.node)
    elif code != "timeout" and code != "too_many":
        # Also if nobody answers to that pid there: a failure comes by the same way.
        call_gate(server, "canary_back", server.executor.now_ns(), canary.number)
    server.gate_stale = True
    return 0


# Queues.

cdef int look_at_queues(ClientServer server, int64_t now) except -1:
    """Tell the gate how full the queues behind it are."""
    cdef Executor executor = server.executor
    cdef Connection connection
    cdef MailboxLimit limit
    cdef size_t counted
    cdef size_t most = executor.poller.sockets.queue_bytes_max
    cdef dict pressed = {}
    cdef list raised
    server.look_ns = now + LOOK_NS
    call_gate(
        server, "pressure", now, "requests", server.requests.count / <double>server.requests.most
    )
    call_gate(
        server, "pressure", now, "inbox",
        min(executor.inbox.queue.count() / <double>executor.inbox.limit, 1.0),
    )
    if executor.routes is not None:
        for connection in executor.routes.connections:
            counted = connection.counted()
            if counted >= most // TOLD_PART:
                pressed[f"queue to {connection.session.peer}"] = min(counted / <double>most, 1.0)
    if executor.backlog.raised:
        raised = executor.backlog.raised
        executor.backlog.raised = []
        for limit in raised:
            # One that has ended has no pid any more.
            if limit.pid is None or limit.queued < limit.high:
                limit.is_raised = False
            else:
                executor.backlog.raised.append(limit)
                pressed[f"mailbox of {limit.pid}"] = limit.queued / <double>limit.most
    pressed.update(server.pressures())
    for name in server.pressed:
        if name not in pressed:
            call_gate(server, "pressure", now, name, 0.0)
    for name, fraction in pressed.items():
        call_gate(server, "pressure", now, name, fraction)
    server.pressed = pressed
    return 0
