"""Exits: what the end of a life does to those that it was linked with.

`links` knows who that is, and sees to it that each learns once, in its turn. Here the one whose
turn it is is ended, or told. All of it belongs to the executor's thread.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.connection cimport Connection
from rabble._core.dispatch cimport INBOX, Entry
from rabble._core.envelope cimport new_envelope
from rabble._core.executor cimport Executor
from rabble._core.failure cimport what_failed
from rabble._core.frame cimport LINK, UNLINK
from rabble._core.frame_decoder cimport PeerEvent
from rabble._core.ids cimport Pid, same_pid
from rabble._core.links cimport (
    LINKED,
    NO_CONNECTION,
    NO_ROOM,
    NOBODY,
    Exiting,
    Link,
    LinkStatus,
    add_link,
    add_link_for_peer,
    cut_connection,
    failed_link,
    forget_exiting,
    may_link,
    remove_link_for_peer,
    settle_exit,
    take_exit,
)

from rabble._core.messages import DOWN_CODES, DOWN_KINDS, DownReason, Exit

__all__ = []

# Called so that what it raises stays pending: it returns -1 then.
ctypedef int (*quiet_stop)(Executor executor, Entry entry, object reason) noexcept


cdef int begin_link(Executor executor, Entry entry, Pid pid) except -1:
    cdef PyObject* found = executor.table.find(pid)
    cdef LinkStatus status
    check_linking(entry)
    if found is not NULL and not may_link(<Entry>found):
        raise ValueError(
            f"Link: {pid} is the runtime's own, which ends with its node; no link is needed"
        )
    if same_pid(pid, entry.pid):
        return 0
    status = add_link(executor.monitors, entry, pid)
    if status == LINKED:
        return 0
    if status == NOBODY:
        reason = DownReason("no_process")
    elif status == NO_CONNECTION:
        reason = DownReason("disconnected", f"no connection leads to {pid.node}")
    else:
        reason = DownReason(
            "refused", f"{pid.node} runs a version of rabble that knows no links"
        )
    # In its turn: what a life that has ended sent may stand in the queue.
    executor.run_queue.append(
        new_envelope(executor.pid, failed_link(entry, pid, reason), None, None)
    )
    return 0


cdef int check_linking(Entry entry) except -1:
    if not may_link(entry):
        raise TypeError(f"{entry.pid} links with nobody: a process or a service does")
    return 0


cdef int handle_link_event(Executor executor, PeerEvent event, Connection connection) except -1:
    cdef Exiting exiting
    cdef LinkStatus status
    cdef Entry entry
    cdef Link link
    cdef bint has_ended
    if event.kind == UNLINK:
        return remove_link_for_peer(
            executor.monitors, connection, event.about, event.to, event.reference
        )
    if event.kind != LINK:
        kind = DOWN_KINDS[event.why]
        has_ended = kind != "no_process" and kind != "refused"
        link = take_exit(
            executor.monitors, connection, event.about, event.to, event.reference, has_ended
        )
        if link is None:
            return 0
        # Held: the table's may be the only other reference.
        entry = <Entry>executor.table.find(event.to)
        # At once: what the next life of that name has sent may stand in the queue already.
        return exit_by(
            executor, entry, link, event.about, DownReason(kind, event.detail), event.life
        )
    status = add_link_for_peer(
        executor.monitors, connection, event.about, event.to, event.reference
    )
    if status == LINKED:
        return 0
    reason = DownReason("no_process")
    if status == NO_ROOM:
        reason = DownReason(
            "refused",
            f"{executor.node} lets a peer monitor and link with no more than "
            f"Limits.peer_monitors_max, {executor.monitors.peer_monitors_max}",
        )
    exiting = Exiting.__new__(Exiting)
    exiting.connection = connection
    exiting.to = event.about
    exiting.reference = event.reference
    exiting.pid = event.to
    exiting.reason = reason
    executor.run_queue.append(new_envelope(executor.pid, exiting, None, None))
    return 0


cdef int handle_exiting(Executor executor, Exiting exiting) except -1:
    if exiting.pid is None:
        # Somebody made it, or it was taken back.
        return 0
    forget_exiting(executor.monitors, exiting)
    if exiting.connection is None:
        if not settle_exit(exiting):
            return 0
        return exit_by(
            executor, exiting.entry, exiting.link, exiting.pid, exiting.reason, exiting.life
        )
    if executor.routes.find(exiting.to.node) is not exiting.connection:
        # It has ended, and all links across it have.
        return 0
    exiting.connection.frame_encoder.write_exit(
        exiting.to, exiting.pid, exiting.reference, DOWN_CODES[exiting.reason.kind], exiting.life,
        exiting.reason.detail,
    )
    return executor.routes.touch(exiting.connection)


cdef int exit_by(
    Executor executor, Entry entry, Link link, Pid pid, object reason, uint64_t life
) except -1:
    """One that was linked with `pid` is ended, or told."""
    if entry.kind == INBOX and not link.is_owned:
        if not link.is_asked_for:
            return 0
    elif link.is_owned or not entry.traps_exits:
        if reason.kind == "stopped" and not link.is_owned:
            return 0
        reason = passed_on(pid, reason)
        if (<quiet_stop><void*>stop)(executor, entry, reason) < 0:
            error = what_failed()
            if entry.target is None:
                raise error
            # There is no memory for an end in order.
            return executor.crash(entry, None, error)
        return 0
    return executor.give_notice(entry, Exit(pid, reason, life))


cdef object passed_on(Pid pid, object reason):
    """With which reason one ends that was linked with `pid`: the same along a chain of any length.

    A `shutdown` stays one, as in OTP: it is no failure that a supervisor would make good.
    """
    if reason.kind == "shutdown" or reason.kind == "linked":
        return reason
    detail = f": {reason.detail}" if reason.detail else ""
    return DownReason("linked", f"{pid}: {reason.kind}{detail}")


cdef int stop(Executor executor, Entry entry, object reason) except -1:
    return executor.stop(entry, reason)


cdef int exit_connection(Executor executor, Connection connection, object reason) except -1:
    cdef Exiting exiting
    for exiting in cut_connection(executor.monitors, connection):
        exiting.reason = reason
        executor.run_queue.append(new_envelope(executor.pid, exiting, None, None))
    return 0
