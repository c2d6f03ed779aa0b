"""Distribution: what happens per connection, and what other nodes send besides envelopes.

What passes per message stays in `routes` and the executor. All of it belongs to the executor's
thread, and runs between two deliveries.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.asks cimport end_asks_of
from rabble._core.dispatch cimport CALLBACK, Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Executor
from rabble._core.exits cimport exit_connection, handle_link_event
from rabble._core.frame cimport (
    CODE_DUPLICATE, CODE_PROTOCOL, DEMONITOR, DOWN, EXIT, LINK, LOST, MONITOR, UNDELIVERED, UNLINK,
    VERSION_OF_LINKS,
)
from rabble._core.frame_decoder cimport EVENT_UNDECODABLE, PeerEvent
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node
from rabble._core.monitors cimport NO_PROCESS, TOO_MANY, MonitorStatus
from rabble._core.notices cimport Connected, Notice
from rabble._core.connection cimport Connection
from rabble._core.requests cimport Unanswered
from rabble._core.session cimport Session

from rabble._core.messages import (
    DOWN_CODES,
    DOWN_KINDS,
    PASSED_ON,
    UNANSWERED_CODES,
    UNANSWERED_KINDS,
    UNDELIVERED_REASONS,
    Bounced,
    CallFailed,
    DeadLetterReason,
    Down,
    DownReason,
    Lost,
    NodeDown,
    NodeUp,
)

__all__ = []

cdef str REPLACED = "another connection has taken its place"


cdef int add_connection(Executor executor, Connection connection) except -1:
    """A connection to a node is established."""
    cdef Connection old = executor.routes.by_name.get(connection.session.peer.name)
    cdef Connected told
    if old is not None:
        if old.number > connection.number:
            # A third one has come before this one's turn.
            connection.close(CODE_DUPLICATE, REPLACED)
            return 0
        if has_last_words(executor, old):
            # They have their turns first: a Down among them comes before the next life of its pid.
            told = Connected.__new__(Connected)
            told.connection = connection
            executor.run_queue.append(new_envelope(executor.pid, told, None, None))
            return 0
        end_connection(executor, old)
    executor.routes.add(connection)
    told = Connected.__new__(Connected)
    told.connection = connection
    told.is_told = True
    # Right before the first NodeUp: nobody but those who are told runs between them.
    executor.run_queue.append(new_envelope(executor.pid, told, None, None))
    up = NodeUp(
        connection.session.peer, connection.session.incarnation, connection.session.labels
    )
    return executor.notifier.notify_all(executor.node_subscribers, up)


cdef bint has_last_words(Executor executor, Connection old) except -1:
    """Whether something that came by a connection which another replaces was not delivered yet.

    All that has come is queued at the first look, and nothing more is read.
    """
    cdef size_t before = executor.run_queue.count()
    if not old.is_replaced:
        old.is_replaced = True
        old.close(CODE_DUPLICATE, REPLACED)
        executor.routes.receive_all(old, executor.run_queue)
        if executor.backlog.limited and executor.run_queue.count() != before:
            executor.admission.admit_newest(executor.run_queue.count() - before)
        if executor.run_queue.count() != before:
            old.batch_end = executor.backlog.popped + executor.run_queue.count()
    return <Py_ssize_t>(old.batch_end - executor.backlog.popped) > 0


cdef int note_told(Executor executor, Connection connection) except -1:
    """What processes returned before they were told of a connection stands in the queue by now."""
    connection.is_told = True
    connection.told_mark = executor.backlog.popped + executor.run_queue.count()
    return 0


cdef int end_connection(Executor executor, Connection connection) except -1:
    """A connection has come to its end: so has, for this node, all that lives behind it."""
    cdef dict pairs, monitored_there
    cdef Envelope envelope
    cdef Entry entry
    cdef list places = []
    cdef NodeId node = connection.session.peer
    if not executor.routes.remove(connection):
        return 0
    # What was sent before must not reach the node's next start.
    executor.poll(executor.scene.batch_ns)
    dropped = executor.backlog.take_all_for(node, places)
    executor.routes.moved_up(places)
    for envelope in dropped:
        executor.letters.drop(envelope, DeadLetterReason.NOT_CONNECTED)
    executor.system_messages.end_producing(connection)
    executor.requests.forget_node(node)
    executor.routes.shrunk(executor.backlog.popped + executor.run_queue.count())
    monitored_there = executor.monitors.forget_connection(connection)
    why = executor.hooks.target.why_ended(connection)
    if why == "shutdown":
        reason = DownReason("shutdown", f"{node} ended")
    else:
        reason = DownReason(
            "disconnected", f"the connection to {node} ended: {why}"
        )
    for monitored, pairs in monitored_there.items():
        down = Down(monitored, reason)
        for monitoring in pairs:
            entry = executor.monitors.forget_remote(<Pid>monitoring, <Pid>monitored)
            if entry is not None:
                executor.notifier.notify(entry, down)
    exit_connection(executor, connection, reason)
    end_asks_of(executor, node, why)
    down = NodeDown(node, connection.session.incarnation, why)
    executor.notifier.notify_all(executor.node_subscribers, down)
    executor.hooks.target.disconnected(connection)
    return 0


cdef int handle_event(Executor executor, PeerEvent event) except -1:
    cdef Session session
    cdef Connection connection
    if type(event.session) is not Session or executor.routes is None:
        return 0
    session = <Session>event.session
    connection = executor.routes.find(session.peer)
    if connection is None or connection.session is not session:
        # It ended, and all that it meant with it, while this stood in the queue.
        return 0
    if event.kind == MONITOR:
        return add_monitor(executor, event, connection)
    if event.kind == DEMONITOR:
        return remove_monitor(executor, event, connection)
    if event.kind == DOWN:
        return deliver_down(executor, event, connection)
    if event.kind == LINK or event.kind == UNLINK or event.kind == EXIT:
        return handle_link_event(executor, event, connection)
    if event.kind == UNDELIVERED:
        return note_undelivered(executor, event)
    if event.kind == LOST:
        return count_lost(executor, connection, event.count)
    return drop_unfit(executor, event)


cdef int add_monitor(Executor executor, PeerEvent event, Connection connection) except -1:
    """A process of the peer monitors one of this node."""
    cdef Notice notice
    cdef MonitorStatus status = executor.monitors.add_for_peer(
        connection, event.about, event.to, event.reference
    )
    if status == NO_PROCESS:
        # In its turn: what a life that has ended sent may stand in the queue.
        notice = Notice.__new__(Notice)
        notice.connection = connection
        notice.monitoring = event.about
        notice.reference = event.reference
        notice.msg = Down(event.to, DownReason("no_process"))
        executor.run_queue.append(new_envelope(executor.pid, notice, None, None))
    elif status == TOO_MANY:
        connection.frame_encoder.write_down(
            event.about, event.to, event.reference, DOWN_CODES["refused"], 0,
            f"{executor.node} lets a peer monitor no more than "
            f"Limits.peer_monitors_max, {executor.monitors.peer_monitors_max}",
        )
        executor.routes.touch(connection)
    return 0


cdef int remove_monitor(Executor executor, PeerEvent event, Connection connection) except -1:
    return executor.monitors.remove_for_peer(
        connection, event.about, event.to, event.reference
    )


cdef int deliver_down(Executor executor, PeerEvent event, Connection connection) except -1:
    """A process of the peer ended that one of this node monitors, if it still does."""
    cdef Entry entry = executor.monitors.take_down(
        connection, event.to, event.about, event.reference
    )
    if entry is None:
        return 0
    kind = DOWN_KINDS[event.why]
    # At once: what the next life of that name has sent may stand in the queue already.
    return executor.give_notice(
        entry,
        Down(
            event.about, DownReason(kind, event.detail), event.life
        ),
    )


cdef int note_undelivered(Executor executor, PeerEvent event) except -1:
    """An envelope became a dead letter at the peer, or a request is not answered there."""
    cdef PyObject* found
    if event.why == PASSED_ON:
        return note_passed_on(executor, event)
    if event.why in UNANSWERED_KINDS:
        return tell_call(
            executor, event.to, event.correlation_id,
            CallFailed(event.about, UNANSWERED_KINDS[event.why], event.detail, event.crash),
        )
    reason = UNDELIVERED_REASONS[event.why]
    bounce = Bounced(
        event.session.peer, event.to, reason, event.correlation_id, event.detail, event.crash,
        event.about,
    )
    found = executor.table.find(event.to)
    if found is not NULL and (<Entry>found).kind == CALLBACK:
        executor.notifier.notify(<Entry>found, bounce, event.correlation_id)
    return executor.notifier.notify_all(executor.letters.subscribers, bounce)


cdef int tell_call(
    Executor executor, Pid to, CorrelationId correlation_id, object failed
) except -1:
    cdef PyObject* found = executor.table.find(to)
    if found is not NULL and (<Entry>found).kind == CALLBACK and correlation_id is not None:
        executor.notifier.notify(<Entry>found, failed, correlation_id)
    return 0


cdef int note_passed_on(Executor executor, PeerEvent event) except -1:
    """A peer passed the request of a call of this node on to another node."""
    cdef Pid to = event.about
    cdef object key
    if to is None or event.correlation_id is None:
        return 0
    key = executor.requests.key_of(event.correlation_id)
    if type(key) is not int or same_node(to.node, executor.node):
        return 0
    if executor.routes.find(to.node) is None:
        # That node went before this was known.
        return tell_call(
            executor, event.to, event.correlation_id,
            CallFailed(to, "disconnected", f"no connection leads to {to.node}", 0),
        )
    return executor.requests.passed_on(key, to)


cdef int tell_unanswered(Executor executor, Unanswered unanswered) except -1:
    """Tell those that wait: behind all that the life has sent, so an answer of its comes first."""
    cdef Connection connection
    cdef CorrelationId cid
    cdef Pid pid
    if unanswered.entry is None:
        return 0
    pid = unanswered.entry.pid
    failed = CallFailed(pid, unanswered.kind, unanswered.detail, unanswered.crash)
    for key in unanswered.keys:
        if executor.requests.holder_of(key) is not unanswered.entry:
            # It was answered, passed on, or is waited for no longer.
            continue
        executor.requests.drop(key)
        if type(key) is int:
            cid = CorrelationId(executor.requests.asker, None, key)
            tell_call(executor, executor.requests.asker, cid, failed)
            continue
        cid = <CorrelationId>key
        connection = None if executor.routes is None else executor.routes.find(cid.pid.node)
        if connection is not None and connection.is_open():
            connection.frame_encoder.write_undelivered(
                cid.pid, cid, UNANSWERED_CODES[kind_for(connection, unanswered.kind)],
                unanswered.crash, pid, unanswered.detail,
            )
            executor.routes.touch(connection)
    return 0


cdef int drop_unfit(Executor executor, PeerEvent event) except -1:
    """An envelope came that is for nobody here, or that this node cannot build."""
    cdef Envelope envelope = new_envelope(event.to, None, event.about, event.correlation_id)
    if event.kind == EVENT_UNDECODABLE:
        executor.hooks.call("undecodable", envelope, event.detail)
        executor.letters.drop(envelope, DeadLetterReason.UNDECODABLE, event.detail)
        if event.about is not None and event.correlation_id is None:
            # The one dead letter whose sender is told in any case: it is a defect of theirs.
            executor.letters.tell_peer(
                event.about, None, DeadLetterReason.UNDECODABLE, event.to, event.detail, 0
            )
    else:
        executor.letters.drop(envelope, DeadLetterReason.REFUSED)
    return 0


cdef int send_down(
    Executor executor, Connection connection, Pid monitoring, uint64_t reference, object down
) except -1:
    """A process of this node ended that one of the peer's monitors."""
    if executor.routes.find(monitoring.node) is not connection:
        # That connection has ended, and for this node all processes behind it have.
        return 0
    reason = down.reason
    connection.frame_encoder.write_down(
        monitoring, down.pid, reference, DOWN_CODES[kind_for(connection, reason.kind)], down.life,
        reason.detail,
    )
    return executor.routes.touch(connection)


cdef str kind_for(Connection connection, str kind):
    """That of a `DownReason`, for a peer that may not know of links."""
    if kind == "linked" and connection.session.version < VERSION_OF_LINKS:
        return "crashed"
    return kind


cdef int count_lost(Executor executor, Connection connection, object count) except -1:
    """A peer dropped envelopes that were for this node, because its queue was full."""
    cdef Entry entry
    cdef NodeId peer = connection.session.peer
    if not connection.may_have_lost(count):
        connection.close(CODE_PROTOCOL, f"it cannot have dropped {count} envelopes by now")
        return 0
    reason = DeadLetterReason.LOST
    executor.letters.counts[reason] = executor.letters.counts.get(reason, 0) + count
    for entry in list(executor.letters.subscribers.values()):
        # At once: what stands in the queue came after the gap, and must not be seen before.
        executor.give_notice(entry, Lost(peer, count))
    return 0
