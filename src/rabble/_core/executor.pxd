# The executor: the one thread that owns the run queue and calls `receive`.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from rabble._core.backlog cimport Backlog
from rabble._core.dispatch cimport DispatchTable, Entry, EntryKind, Scene
from rabble._core.envelope cimport Envelope
from rabble._core.idle cimport Idle
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.inbox cimport Inbox
from rabble._core.monitors cimport Monitors
from rabble._core.poller cimport Connection
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.routes cimport Routes
from rabble._core.timers cimport TimerWheel

cdef enum Added:
    # What became of a spawn.
    ADDED = 0
    NAME_TAKEN = 1       # the name is in use
    ENDING = 2           # the executor ends
    FULL = 3             # too much waits for it

cdef class MessageHandler:
    # Who handles the control messages of one executor: see `system_messages`.
    cdef int handle(self, Envelope envelope) except -1
    # A connection has come to its end, which the executor notices between two deliveries.
    cdef int disconnect(self, Connection connection) except -1

cdef class Executor:
    cdef readonly NodeId node
    cdef readonly Pid pid                  # where control messages go
    cdef readonly DispatchTable table
    cdef EnvelopeQueue run_queue           # touched by the executor's thread only
    cdef Inbox inbox                       # filled by the other threads
    cdef Backlog backlog                   # what is known of what stands in the run queue
    cdef Routes routes                     # to other nodes; None without a mesh
    cdef Monitors monitors                 # who is told of whose end
    cdef TimerWheel wheel                  # ticks are milliseconds since `epoch_ns`
    cdef list due                          # timers that fired and are not queued yet, next one last
    cdef Py_ssize_t due_queued             # timers that fired and stand in the run queue
    cdef object protocol                   # the module that defines the control messages
    cdef object process_class              # the base class of processes
    cdef Py_ssize_t runtime_offset         # where in a process its `_runtime` lies
    cdef unsigned int born_after_forks     # how many forks led to where it was made
    cdef MessageHandler system_messages    # handles the control messages
    cdef object hooks                      # told of crashes and dead letters (see `__init__`)
    cdef object codec                      # strict mode: every message goes through it; or None
    cdef object local_classes              # ids of the classes that the strict mode lets pass
    cdef object clock                      # handed-in clock in ns, or None for CLOCK_MONOTONIC
    cdef Scene scene                       # what its processes may ask: batch, seed, its pid
    cdef int64_t epoch_ns                  # when tick 0 of the wheel was
    cdef int64_t stride                    # how many deliveries until the next look at the clock
    cdef Idle idle                         # what it does while it has nothing to do
    cdef volatile bint is_stopping         # drain, then end
    cdef volatile int64_t stop_ns          # ... by this time at the latest
    cdef bint checks                       # whether what is sent is looked at: limits, strict mode
    cdef uint64_t lives                    # processes ever spawned
    cdef uint64_t other_lives              # services, mailboxes and callbacks ever added
    cdef PyObject* current                 # whose `receive` runs: its Entry, which its caller holds
    cdef object failure                    # what the last failed `receive` raised
    cdef dict letter_subscribers           # Pid -> Entry of who is told of every dead letter
    cdef dict node_subscribers             # Pid -> Entry of who is told of nodes that come and go
    cdef bint shutdown_sent                # who monitors the executor was told that the node ends
    cdef bint in_turn                      # a turn is on: `step` and `run` refuse
    cdef bint ended                        # nothing is told to anybody any more
    cdef readonly int64_t delivered
    cdef readonly int64_t processes
    cdef readonly int64_t crashes
    cdef readonly int64_t failed_reports   # how often the hooks raised when they were told
    cdef readonly dict dead_letters        # reason -> how many
    cdef readonly bint running             # in `run`
    cdef readonly bint failed              # `run` ended by an exception: known without memory, too
    cdef bint has_run
    cdef unsigned long thread_id           # whose thread that is
    cdef bint interrupting                 # Interrupted was asked for and not yet seen
    cdef int64_t interrupted_at            # `delivered`, when that was considered last

    cdef int64_t now_ns(self) except -1
    cdef int turn(self, int64_t most) except -1
    cdef int poll(self, int64_t now) except -1
    cdef int wait(self, int64_t most) except -1
    cdef int deliver(self, Envelope envelope) except -1
    cdef int give_to_process(self, Entry entry, Envelope envelope) except -1
    cdef bint emit(self, Entry entry, PyObject* result) except -1
    cdef int emit_item(self, Entry entry, object item, int owners, list fresh) except -1
    cdef int crash(self, Entry entry, Envelope envelope) except -1
    cdef object checked(self, Envelope envelope)
    cdef int admit(self, Envelope envelope) except -1
    cdef int set_checks(self) except -1
    cdef int take_in(self) except -1
    cdef int route(self, Envelope envelope) except -1
    cdef int receive(self) except -1
    cdef int send_undelivered(self, Envelope envelope, object reason) except -1
    cdef int drop(self, Envelope envelope, object reason) except -1
    cdef int remove_entry(self, Entry entry, object reason) except -1
    cdef object detach(self, Entry entry)
    cdef list farewells(self, Entry entry, dict monitored_by, object reason)
    cdef int tell_ended(self, Entry entry, object monitored_by, object reason) except -1
    cdef int subscribe(self, Entry entry, dict subscribers, int which, bint wanted) except -1
    cdef int tell(self, Pid to, object msg, CorrelationId correlation_id=*) except -1
    cdef int notify(self, Entry entry, object msg, CorrelationId correlation_id=*) except -1
    cdef int notify_now(self, Entry entry, object msg, CorrelationId correlation_id=*) except -1
    cdef int notify_all(self, dict subscribers, object msg) except -1
    cdef int call_hook(self, str what, object about, object error) except -1
    cdef bint accept(self, Envelope envelope) except -1
    cdef bint put(self, Envelope envelope) except -1
    cdef Added add(
        self, Pid pid, object process, object mailbox_max, bint from_outside
    ) except? FULL
    cdef bint add_target(self, Pid pid, object target, EntryKind kind) except -1
    cdef bint drained(self) noexcept
    cdef int64_t time_left(self, int64_t now, int64_t most) noexcept
    cdef bint start(self, Entry entry) except -1
    cdef int give_to_target(self, Entry entry, Envelope envelope) except -1
    cdef int refuse(self, Envelope envelope, object error) except -1
    cdef int tell_shutdown(self) except -1
    cdef int send_shutdown(self, Pid to) except -1
    cdef int absorb_interrupt(self) except -1
    cdef int fire(self, int64_t now) except -1
    cdef int handle_control(self, Envelope envelope) except -1
    cdef int ask(self, object request) except -1

# Look at what other nodes sent, which has just been queued, as mailboxes have limits.
cdef int admit_newest(Executor executor, size_t count) except -1
