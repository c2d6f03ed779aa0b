from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from rabble._core.admission cimport Admission
from rabble._core.backlog cimport Backlog
from rabble._core.dead_letters cimport DeadLetters
from rabble._core.dispatch cimport DispatchTable, Entry, Scene
from rabble._core.envelope cimport Envelope
from rabble._core.hooks cimport HookCaller
from rabble._core.idle cimport Idle
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.inbox cimport Inbox
from rabble._core.interrupts cimport Interrupts
from rabble._core.lives cimport Lives
from rabble._core.monitors cimport Monitors
from rabble._core.notices cimport Notifier
from rabble._core.connection cimport Connection
from rabble._core.contexts cimport Thread
from rabble._core.poller cimport Poller
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.requests cimport Asked, Requests
from rabble._core.routes cimport Routes
from rabble._core.timeouts cimport Timeouts

cdef enum Added:
    # What became of a spawn.
    ADDED = 0
    NAME_TAKEN = 1       # the name is in use
    ENDING = 2           # the executor ends
    FULL = 3             # too much waits for it

cdef class MessageHandler:
    # The handlers of one executor's control messages: see `system_messages`.
    cdef bint has_producers      # some wait for room in the queue to a peer ...
    # ... of which there may be some by now.
    cdef int let_produce(self) except -1
    # A connection has ended, or the node ends (None): those that wait for it are told.
    cdef int end_producing(self, Connection connection) except -1
    cdef int handle(self, Envelope envelope) except -1
    # Whether the runtime sends such a message, and no process.
    cdef bint is_own(self, object msg) noexcept
    # A reply to what a process asked, or why none comes.
    cdef int end_ask(self, Asked asked, Envelope envelope) except -1
    # What was begun just now is owned, by a process of whatever node; or is not there.
    cdef int own(self, Pid pid, Pid owner) except -1
    # End what is owned so, in order: False if `pid` is not. Of the class `told` it is sent `msg`.
    cdef bint end_owned(
        self, Pid pid, Pid owner, object reason, object told, object msg
    ) except -1
    # A connection has come to its end, which the executor notices between two deliveries.
    cdef int disconnect(self, Connection connection) except -1

cdef class Desk:
    # What serves the clients of one executor's servers: see `client_desk`. All in its thread.
    # What a client was passed on for has been answered, in the turn of the answer. False if that is
    # to be told by a message.
    cdef bint take_answer(self, Asked asked, object value) except -1
    # Take in some of what they sent, and look at their sockets before if so told.
    cdef int serve(self, bint looks) except -1
    # Send what was written to them.
    cdef int flush(self) except -1
    # The lesser of `most` and the time until something is to be done; `most` -1 is without end.
    cdef int64_t time_left(self, int64_t now_ns, int64_t most) noexcept
    # The node ends: begin nothing, and close each connection when what was begun is answered.
    cdef int drain(self) except -1
    # The executor has ended: what was begun is not answered any more.
    cdef int end(self) except -1

cdef class Executor:
    cdef readonly NodeId node
    cdef readonly Pid pid                  # where control messages go
    cdef readonly DispatchTable table
    cdef EnvelopeQueue run_queue           # touched by the executor's thread only
    cdef Inbox inbox                       # filled by the other threads
    cdef Backlog backlog                   # what is known of what stands in the run queue
    cdef Admission admission               # what is looked at before it is queued
    cdef Routes routes                     # to other nodes; None without a mesh
    cdef Poller poller                     # of the sockets; None without a mesh and a server
    cdef Desk desk                         # of clients; None without a server
    cdef Lives lives                       # the beginning and the end of processes
    cdef Monitors monitors                 # which process is told of whose end
    cdef Requests requests                 # which life has the request of which call
    cdef Timeouts timeouts                 # the timers of processes
    cdef DeadLetters letters               # what was not delivered
    cdef Notifier notifier                 # sends what the runtime has to say
    cdef dict node_subscribers             # Pid -> Entry of those that are sent NodeUp, NodeDown
    cdef Py_ssize_t asks_max               # how many requests of processes may wait
    cdef MessageHandler system_messages    # handles the control messages
    cdef Envelope follow_up                # to be delivered in place of the control message; None
    cdef HookCaller hooks                  # told of crashes and what cannot be encoded
    cdef Interrupts interrupts             # end a `receive` that does not return
    cdef Scene scene                       # what its processes may ask: batch, seed, its pid
    cdef uint64_t connected                # how many connections it was to be told of
    cdef readonly Idle idle                # what it does while it has nothing to do

    cdef object clock                      # handed-in clock in ns, or None for CLOCK_MONOTONIC
    cdef unsigned int born_after_forks     # how many forks led to where it was made
    cdef int64_t stride                    # deliveries until the next look at the clock ...
    cdef int64_t quick                     # ... and, if each is looked at, the fast ones in a row
    cdef PyObject* current                 # whose `receive` runs: its Entry, which its caller holds
    cdef Thread* thread                    # in which it runs, and has a context of its own
    cdef volatile bint is_stopping         # drain, then end
    cdef volatile int64_t stop_ns          # ... by this time at the latest
    cdef volatile int64_t last_words_ns    # ... and by this time those that have last words
    cdef list last_words                   # entries that may have some, the next last; or None
    cdef bint shutdown_sent                # its monitors were sent Shutdown
    cdef bint in_turn                      # a turn is on: `step` and `run` refuse
    cdef bint has_run
    cdef readonly bint running             # in `run`
    cdef readonly bint failed              # `run` ended by an exception: known without memory, too
    cdef readonly int64_t delivered
    cdef readonly int64_t crashes
    cdef int64_t crash_latest              # ... of that which was reported last
    cdef readonly int64_t crash_number     # of the crash that is being reported; 0 while none is
    cdef str crash_detail                  # of the last crash: its exception, as text
    cdef str unencodable_detail            # why `route` could not encode an envelope

    # What other threads ask.
    cdef bint accept(self, Envelope envelope) except -1
    cdef bint put(self, Envelope envelope) except -1
    cdef int ask(self, object request) except -1
    cdef Added add(
        self, Pid pid, object process, object mailbox_max, bint from_outside
    ) except? FULL

    # The loop.
    cdef PyObject* begin_in_thread(self) noexcept
    cdef void end_in_thread(self, PyObject* context) noexcept
    cdef int64_t now_ns(self) except -1
    cdef int turn(self, int64_t most) except -1
    cdef int poll(self, int64_t now) except -1
    cdef int receive(self, bint looks) except -1
    cdef int wait(self, int64_t most) except -1
    cdef int64_t time_left(self, int64_t most) except -2
    cdef bint drained(self) noexcept
    cdef bint has_forked(self) noexcept

    # One delivery.
    cdef int deliver(self, Envelope envelope) except -1
    cdef int deliver_request(self, Envelope envelope) except -1
    cdef int give_to_process(self, Entry entry, Envelope envelope) except -1
    cdef int give_to_target(self, Entry entry, Envelope envelope) except -1
    cdef int give_notice(self, Entry entry, object msg, CorrelationId correlation_id=*) except -1
    cdef bint start(self, Entry entry) except -1
    cdef int stop(self, Entry entry, object reason) except -1
    cdef bint terminate(self, Entry entry, object reason) except -1
    cdef int finish(self, Entry entry, PyObject* result, Envelope envelope) except -1
    cdef int finish_output(self, Entry entry, PyObject* result, Envelope envelope) except -1
    cdef int crash(self, Entry entry, Envelope envelope, object error) except -1
    # Returns a `SendStatus`; unless it is SENT the envelope is a dead letter.
    cdef int route(self, Envelope envelope) except -1
    cdef int handle_control(self, Envelope envelope) except -1
    cdef int refuse(self, Envelope envelope, object error) except -1

    # The end.
    cdef int tell_shutdown(self) except -1
    cdef bint terminate_next(self) except -1
    cdef int send_shutdown(self, Pid to) except -1
