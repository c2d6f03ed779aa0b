"""The desk: where an executor serves the clients of its node's servers.

Handlers of connections run as processes do, in the executor's thread: with one interpreter lock a
second thread would only take turns with it, and here they can be tested, simulated and replayed as
processes are. In each turn the desk takes a bounded batch of whole frames, a few of each connection
before the next has its turn, so that who sends ten thousand does not delay who sends one. What is
written goes out at the end of the turn, one system call for each connection.

A request of a client is in `ClientRequests` from the moment that it is given to a handler, and ends
once: with an answer, a failure, or its connection. What a handler asks for it by `ask` is a request
of the runtime's own as well, see `requests`: so the crash of who has it, say, ends it at once.

Bytes that are being read stand in the desk's own buffer, and what is being written in its codec's:
neither is touched by anything that a user's code could call, and no place in the run queue is kept.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t

from rabble._core.asks cimport have_asker
from rabble._core.byte_queue cimport drop
from rabble._core.capacities cimport BYTE_QUEUE_BYTES_KEPT
from rabble._core.client_batch cimport BATCH_VISITS_MAX, Visit, take_batch
from rabble._core.client_codec cimport NO_ID, OUT_FAILURE, OUT_NACK, ClientCodec
from rabble._core.client_gate cimport call_gate, gate_time_left, refresh_gate, tick_gate
from rabble._core.client_messages cimport (
    Answer,
    ClientAsk,
    CloseConnection,
    Fail,
    Push,
    wrong_output,
)
from rabble._core.client_replies cimport (
    answer,
    end_request,
    expire_requests,
    fail,
    flush_one,
    part,
    pass_answer,
    place_of,
    push,
    relent,
    touch,
    waits,
    write,
)
from rabble._core.client_server cimport ClientConnection, ClientServer
from rabble._core.client_socket cimport (
    BY_LENGTH,
    CLIENT_CLOSED,
    CLIENT_OPEN,
    END_DRAIN,
    deafen_client,
    whole_frame,
)
from rabble._core.client_waiting cimport (
    drop_waiting,
    let_in,
    note_request,
    refuse_waiting,
    take_admitted,
)
from rabble._core.contexts cimport clear_context
from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Desk, Executor
from rabble._core.failure cimport what_failed
from rabble._core.ids cimport CorrelationId, Pid, new_correlation_id
from rabble._core.linux cimport (
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from rabble._core.notices cimport Undelivered
from rabble._core.requests cimport Asked, Requests
from rabble._core.texts cimport failure_text, not_a_pid
from rabble._core.timers cimport delay_ms_of
from rabble._core.transport cimport Sockets

from rabble._core.client_socket import ENDS
from rabble._core.errors import UnknownMessageError

__all__ = ["ClientDesk"]

cdef extern from "Python.h":
    # Declared without `except`: what they raise stays pending until it is taken.
    PyObject* PyObject_VectorcallMethod(
        PyObject* name, PyObject* const* args, size_t nargsf, PyObject* kwnames
    )
    PyObject* PyObject_CallNoArgs(PyObject* callable)
    int PyException_SetTraceback(object error, object traceback) except -1

# The same functions, called so that what they raise stays pending: they return -1 then.
ctypedef int (*quiet_read)(ClientCodec codec, const unsigned char* data, Py_ssize_t size) noexcept
ctypedef int (*quiet_emit)(ClientDesk desk, ClientConnection conn, PyObject* output) noexcept


@cython.final
cdef class ClientDesk(Desk):
    """Where an executor serves clients. It looks at sockets already. Called once for each.

    :param executor: whose; it serves clients from now on.
    """

    def __cinit__(self, Executor executor not None):
        self.executor = executor
        self.poller = executor.poller
        self.clients = &self.poller.sockets.clients
        self.servers = []

    def __dealloc__(self):
        drop(&self.taken)

    def open(self, ClientServer server not None):
        """Serve a server's clients from now on. For the thread that opens it."""
        self.servers = self.servers + [server]
        self.executor.desk = self
        # A gate may have something to do by the clock, which an executor that sleeps does not know.
        self.executor.inbox.wake()
        self.executor.idle.recall()

    def forget(self, ClientServer server not None):
        """Serve it no more; its connections are closed. For any thread."""
        self.servers = [each for each in self.servers if each is not server]

    cdef int serve(self, bint looks) except -1:
        cdef Visit visits[BATCH_VISITS_MAX]
        cdef Visit* visit
        cdef Sockets* s = &self.poller.sockets
        cdef const unsigned char* data
        cdef int count, n
        if looks:
            self.look()
        if not self.clients.pending:
            return 0
        self.taken.head = self.taken.tail = 0
        self.taken_ns = self.executor.now_ns()
        if pthread_mutex_trylock(&s.lock) == 0:
            count = take_batch(s, &self.taken, visits)
            pthread_mutex_unlock(&s.lock)
        else:
            with nogil:
                pthread_mutex_lock(&s.lock)
                count = take_batch(s, &self.taken, visits)
                pthread_mutex_unlock(&s.lock)
        data = self.taken.data + self.taken.head
        # One that is closed while it is taken stands here twice, and its first visit lets it go.
        for n in range(count):
            Py_INCREF(<object>visits[n].connection)
        try:
            for n in range(count):
                visit = &visits[n]
                self.visit(
                    <ClientConnection>visit.connection, data, visit.size, visit.state, visit.end
                )
                if self.executor.has_forked():
                    # A handler forked, and returned in the child: what waits is the parent's.
                    break
                data += visit.size
        finally:
            for n in range(count):
                Py_DECREF(<object>visits[n].connection)
        if self.taken.capacity > BYTE_QUEUE_BYTES_KEPT:
            drop(&self.taken)
        return 0

    cdef int look(self) except -1:
        cdef ClientServer server
        cdef Executor executor = self.executor
        cdef int64_t now = executor.now_ns()
        cdef Sockets* s = &self.poller.sockets
        # With connections of peers the executor has looked, unless it is about to end.
        if self.clients.connections != 0 and (s.connections == 0 or executor.is_stopping):
            self.poller.look()
        for server in self.servers:
            if server.wants_drain and not server.draining:
                self.begin_drain(server)
            if server.wants_close:
                self.cut(server)
            elif server.requests.count != 0 or server.gate is not None:
                expire_requests(server, now)
                if server.gate is not None and now >= server.gate_next_ns:
                    # Not an earlier time than it was just told.
                    tick_gate(server, executor.now_ns())
            if server.held and executor.run_queue.count() == 0:
                relent(server)
        return 0

    cdef int visit(
        self, ClientConnection conn, const unsigned char* data, size_t size, int state, int end
    ) except -1:
        """Handle what was taken of a connection. It is held by the caller's arguments."""
        cdef ClientServer server = conn.server
        cdef size_t begun
        cdef bint has_length = server.rules.framing == BY_LENGTH
        if not conn.is_begun and not conn.is_over and state == CLIENT_OPEN:
            self.begin(conn)
            if self.executor.has_forked():
                return 0
        while size and not conn.is_over:
            begun = whole_frame(&server.rules, data, size)
            if has_length:
                self.handle(conn, data + 4, begun - 4)
            else:
                self.handle(conn, data, begun - 1)
            if self.executor.has_forked():
                return 0
            data += begun
            size -= begun
        if state != CLIENT_OPEN:
            self.finish(conn, ENDS[end], True)
        if state == CLIENT_CLOSED:
            if server.connections.pop(conn.number, None) is not None:
                server.closed(conn.host)
                if server.draining and not server.connections:
                    server.notify()
            return 0
        return touch(conn)

    cdef int flush(self) except -1:
        cdef ClientServer server
        cdef ClientConnection conn
        cdef list dirty
        for server in self.servers:
            if server.waiting:
                self.decide(server)
            dirty = server.dirty
            if dirty:
                server.dirty = []
                for conn in dirty:
                    flush_one(conn)
            if server.gate_stale:
                refresh_gate(server)
            if server.waiting and server.gate is None:
                # It has failed, and nothing waits any longer: the next turn begins all of it.
                server.wake()
        return 0

    # Frames and envelopes to handlers.

    cdef int begin(self, ClientConnection conn) except -1:
        """Make the handler of a connection, and have it begin."""
        cdef PyObject* made
        cdef PyObject* found
        conn.is_begun = True
        if conn.server.entry is None:
            found = self.executor.table.find(conn.server.pid)
            if found is NULL:
                # The server has come to its end meanwhile.
                part(conn, ENDS[END_DRAIN], "the server ends")
                return self.finish(conn, ENDS[END_DRAIN], False)
            conn.server.entry = <Entry>found
        clear_context(self.executor.thread)
        self.executor.current = <PyObject*>conn.server.entry
        try:
            made = PyObject_CallNoArgs(<PyObject*>conn.server.make_handler)
            if made is NULL:
                return self.crashed(conn, what_failed())
            conn.handler = <object>made
            Py_DECREF(<object>made)
        finally:
            self.executor.current = NULL
        self.call(conn, "attach", 1, <PyObject*>conn, NULL, NULL)
        if conn.is_over:
            return 0
        return self.call(conn, "init", 0, NULL, NULL, NULL)

    cdef int handle(
        self, ClientConnection conn, const unsigned char* data, Py_ssize_t size
    ) except -1:
        """Read one frame, and give its message to the handler."""
        cdef ClientServer server = conn.server
        cdef ClientCodec codec = server.codec
        cdef CorrelationId request = None
        cdef int64_t id
        cdef int status, priority
        clear_context(self.executor.thread)
        status = (<quiet_read><void*>read_frame)(codec, data, size)
        id = codec.id
        msg = codec.msg
        priority = codec.priority
        codec.msg = None
        if status < 0:
            error = what_failed()
            self.executor.interrupts.note(error)
            if id != NO_ID and isinstance(error, UnknownMessageError):
                # The frame is whole: it is that message which is not known here.
                server.failed += 1
                return write(conn, OUT_FAILURE, id, None, "malformed", failure_text(error), 0)
            part(conn, "malformed", failure_text(error))
            return self.finish(conn, "malformed", True)
        server.messages += 1
        if id != NO_ID:
            if codec.is_ordered:
                id = conn.next_id
                conn.next_id += 1
            request = self.begin_request(conn, id, msg, priority)
            if request is None:
                return 0
        elif server.draining:
            return 0
        return self.call(
            conn, "handle_message", 2, <PyObject*>msg, <PyObject*>request, NULL
        )

    cdef CorrelationId begin_request(
        self, ClientConnection conn, int64_t id, object msg, int priority
    ):
        """Note a request; `None` if it was refused instead, or waits for the gate."""
        cdef ClientServer server = conn.server
        # Not from when those before it were handled: for its client it has begun no later.
        cdef int64_t now = self.taken_ns
        cdef int64_t retry_ms = 0
        cdef str text = "the server ends"
        if id <= conn.id_newest and waits(conn, id):
            server.failed += 1
            write(conn, OUT_FAILURE, id, None, "duplicate", f"request {id} waits already", 0)
            return None
        if server.draining:
            retry_ms = server.retry_ms
        elif server.requests.count >= server.requests.most:
            text = "too many requests wait already"
            retry_ms = server.retry_ms
        elif server.gate is not None:
            now = self.executor.now_ns()
            server.gate_stale = True
            if not let_in(server, conn, id, msg, priority, now):
                return None
        if retry_ms:
            server.refused += 1
            write(conn, OUT_NACK, id, None, "", text, retry_ms)
            return None
        return note_request(conn, id, now)

    cdef int decide(self, ClientServer server) except -1:
        """Begin what has waited for the gate and is let in now."""
        cdef ClientConnection conn
        cdef CorrelationId request
        cdef int64_t now = self.executor.now_ns()
        for conn, id, msg in take_admitted(server, now):
            if conn.is_over:
                # What came before it ended the connection.
                server.failed += 1
                call_gate(server, "ended", self.executor.now_ns(), now, False)
            else:
                request = note_request(conn, id, now)
                self.call(
                    conn, "handle_message", 2, <PyObject*>msg, <PyObject*>request, NULL
                )
                if self.executor.has_forked():
                    break
        return 0

    cdef int call(
        self, ClientConnection conn, str method, Py_ssize_t count, PyObject* first,
        PyObject* second, PyObject* third,
    ) except -1:
        """Call a method of the handler, and send what it returns. If it raises, that is its end."""
        cdef Executor executor = self.executor
        cdef PyObject* args[4]
        cdef PyObject* result
        # Held: it may be let go of meanwhile.
        handler = conn.handler
        args[0] = <PyObject*>handler
        args[1] = first
        args[2] = second
        args[3] = third
        clear_context(executor.thread)
        executor.current = <PyObject*>conn.server.entry
        try:
            result = PyObject_VectorcallMethod(<PyObject*>method, args, count + 1, NULL)
            if result is NULL:
                return self.crashed(conn, what_failed())
            if result is <PyObject*>None:
                Py_DECREF(<object>result)
                return 0
            if (<quiet_emit><void*>emit_output)(self, conn, result) < 0:
                self.crashed(conn, what_failed())
            Py_DECREF(<object>result)
        finally:
            executor.current = NULL
        return 0

    cdef int crashed(self, ClientConnection conn, object error) except -1:
        """A handler failed: end its connection and nothing else."""
        cdef Executor executor = self.executor
        executor.interrupts.note(error)
        executor.crashes += 1
        executor.crash_number = executor.crashes
        executor.hooks.call("crashed", conn.server.pid, error)
        executor.crash_number = 0
        PyException_SetTraceback(error, None)
        if not conn.is_over:
            part(conn, "crashed", "the server failed to handle this connection")
            self.finish(conn, "crashed", False)
        return 0

    # What handlers return.

    cdef int emit(self, ClientConnection conn, object output) except -1:
        cdef list items
        if is_output(output):
            return self.emit_one(conn, output)
        # All of it before any of it is sent: a generator may raise.
        if type(output) is not list and type(output) is not tuple:
            if not hasattr(type(output), "__iter__"):
                raise wrong_output(conn.handler, output)
        items = list(output)
        for item in items:
            if not is_output(item):
                raise wrong_output(conn.handler, item)
        for item in items:
            self.emit_one(conn, item)
        return 0

    cdef int emit_one(self, ClientConnection conn, object item) except -1:
        cdef object cls = type(item)
        cdef Envelope envelope
        cdef int32_t place
        if cls is Envelope:
            envelope = <Envelope>item
            if envelope.sender is None or envelope.correlation_id is None:
                envelope = new_envelope(
                    envelope.to, envelope.msg,
                    conn.server.pid if envelope.sender is None else envelope.sender,
                    conn.id if envelope.correlation_id is None else envelope.correlation_id,
                )
            return self.send(envelope)
        if conn.is_over:
            # Nobody is there to be told.
            return 0
        if cls is ClientAsk:
            return self.ask(conn, <ClientAsk>item)
        if cls is Answer:
            place = place_of(conn, (<Answer>item).request)
            return 0 if place < 0 else answer(conn, place, (<Answer>item).value)
        if cls is Push:
            return push(conn, (<Push>item).msg)
        if cls is Fail:
            place = place_of(conn, (<Fail>item).request)
            if place < 0:
                return 0
            return fail(conn, place, (<Fail>item).code, (<Fail>item).text)
        part(conn, (<CloseConnection>item).reason, "")
        return self.finish(conn, (<CloseConnection>item).reason, True)

    cdef int send(self, Envelope envelope) except -1:
        """Queue an envelope of a handler's, as what a process returns is queued."""
        cdef Executor executor = self.executor
        cdef Undelivered letter
        if not executor.backlog.looks_at_each:
            executor.run_queue.append(envelope)
            return 0
        checked = executor.admission.checked(envelope)
        if type(checked) is Envelope:
            return executor.admission.admit(<Envelope>checked)
        letter = <Undelivered>checked
        return executor.letters.drop(letter.envelope, letter.reason, letter.detail)

    cdef int ask(self, ClientConnection conn, ClientAsk ask) except -1:
        """Ask somebody, for a request that ends with what comes back."""
        cdef Executor executor = self.executor
        cdef Requests requests = executor.requests
        cdef ClientServer server = conn.server
        cdef int64_t delay_ms = server.delay_ms
        cdef int32_t place = place_of(conn, ask.request)
        cdef CorrelationId cid
        cdef Asked asked
        if type(ask.to) is not Pid:
            raise not_a_pid("ask: to", "Pid", ask.to)
        if ask.timeout_ms is not None:
            delay_ms = min(delay_ms, delay_ms_of(ask.timeout_ms))
        if place < 0:
            return 0
        if requests.asks >= requests.asks_max:
            return fail(
                conn, place, "too_many", f"{requests.asks_max} requests of processes wait already"
            )
        have_asker(executor)
        asked = Asked.__new__(Asked)
        asked.entry = server.entry
        requests.numbers += 1
        asked.cid = cid = new_correlation_id(requests.asker, None, requests.numbers)
        asked.to = <Pid>ask.to
        asked.tag = ask.request
        asked.timeout_ms = server.request_ms if ask.timeout_ms is None else delay_ms
        asked.delay_ms = delay_ms
        requests.begin_ask(asked)
        server.requests.slots[place].asked = asked.number
        return self.send(new_envelope(<Pid>ask.to, ask.msg, requests.asker, cid))

    cdef bint take_answer(self, Asked asked, object value) except -1:
        cdef ClientServer server
        if type(asked.tag) is not CorrelationId:
            # A canary's.
            return False
        for server in self.servers:
            if server.entry is asked.entry and asked.entry.target is not None:
                asked.entry.delivered += 1
                self.executor.requests.end_ask(asked, self.executor.timeouts)
                pass_answer(server, <CorrelationId>asked.tag, value)
                return True
        return False

    cdef int finish(self, ClientConnection conn, object reason, bint tells) except -1:
        """The connection is over: so are its requests, and its handler is told."""
        if conn.is_over:
            return 0
        conn.is_over = True
        if conn.server.waiting:
            drop_waiting(conn.server, conn)
        while conn.first >= 0:
            end_request(conn, conn.first, False)
        if conn.handler is not None and tells:
            self.call(conn, "closed", 1, <PyObject*>reason, NULL, NULL)
        conn.handler = None
        return 0

    # What the clock does.

    cdef int64_t time_left(self, int64_t now_ns, int64_t most) noexcept:
        cdef ClientServer server
        cdef int64_t left
        for server in self.servers:
            if server.held:
                return 0
            left = gate_time_left(server, now_ns, server.requests.time_left(now_ns))
            if left >= 0:
                most = left if most < 0 else min(left, most)
        return most

    # The end.

    cdef int begin_drain(self, ClientServer server) except -1:
        cdef Sockets* s = &self.poller.sockets
        cdef ClientConnection conn
        server.draining = True
        refuse_waiting(server)
        with nogil:
            pthread_mutex_lock(&s.lock)
            server.rules.deaf = True
            pthread_mutex_unlock(&s.lock)
        for conn in list(server.connections.values()):
            with nogil:
                pthread_mutex_lock(&s.lock)
                deafen_client(&s.clients, conn.socket)
                pthread_mutex_unlock(&s.lock)
            touch(conn)
        server.notify()
        return 0

    cdef int cut(self, ClientServer server) except -1:
        """Close what has not come to its end in time, and serve it no more."""
        cdef ClientConnection conn
        for conn in list(server.connections.values()):
            self.finish(conn, ENDS[END_DRAIN], True)
            if self.executor.has_forked():
                return 0
        server.dirty = []
        server.held = []
        server.cut()
        self.forget(server)
        server.notify()
        return 0

    cdef int drain(self) except -1:
        cdef ClientServer server
        for server in self.servers:
            server.wants_drain = True
            if not server.draining:
                self.begin_drain(server)
        return self.flush()

    cdef int end(self) except -1:
        """What was begun fails, with a word to the client; no handler is called any more."""
        cdef ClientServer server
        cdef ClientConnection conn
        for server in self.servers:
            server.draining = True
            refuse_waiting(server)
            for conn in list(server.connections.values()):
                while conn.first >= 0 and not conn.is_over:
                    fail(conn, conn.first, "disconnected", "the node has ended")
                self.finish(conn, ENDS[END_DRAIN], False)
                touch(conn)
            server.notify()
        return self.flush()


cdef inline bint is_output(object item) noexcept:
    cdef object cls = type(item)
    return (
        cls is Envelope or cls is ClientAsk or cls is Answer or cls is Push or cls is Fail
        or cls is CloseConnection
    )


# What is called so that its exception stays pending.

cdef int read_frame(ClientCodec codec, const unsigned char* data, Py_ssize_t size) except -1:
    return codec.read(data, size)


cdef int emit_output(ClientDesk desk, ClientConnection conn, PyObject* output) except -1:
    return desk.emit(conn, <object>output)
