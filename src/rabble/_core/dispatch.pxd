from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from rabble._core.ids cimport Pid
from rabble._core.pid_slots cimport PidSet, PidSlots, find_item

cdef enum EntryKind:
    PROCESS = 0      # `target` is a Process: its receive is called
    INBOX = 1        # `target` is an Inbox: the envelope is put into it
    CALLBACK = 2     # `target` is called with the envelope; it must be short and must not block
    EXECUTOR = 3     # the executor itself: control messages

cdef enum Subscription:
    # What an entry is told of; bits of `Entry.subscribed`.
    NODES = 1            # nodes that come and go
    DEAD_LETTERS = 2

cdef class MailboxLimit:
    # How many envelopes may wait for a process, and how many do.
    cdef unsigned int most
    cdef unsigned int queued       # waiting in the run queue, of those counted
    cdef size_t counted_from       # where in the run queue counting began: at the spawn
    cdef unsigned int early        # of those that stood there before it, how many were met
    cdef unsigned int high         # so many are worth telling who asks how full mailboxes are
    cdef bint is_raised            # that was noted
    cdef Pid pid                   # whose it is; None when that life has ended

cdef class Scene:
    # What a process may ask of where it runs. No way leads from here to the executor.
    cdef readonly Pid pid          # the executor's, to which control messages go
    cdef int64_t batch_ns          # when the executor's current batch began
    cdef str seed                  # of the processes' random sources

cdef class Rare:
    # What few lives have, made when it is first needed: so that the others have no room for it.
    cdef object random_source      # made when first asked for
    cdef PyObject* asks            # the newest Asked whose end it waits for, borrowed; or NULL
    cdef PyObject* held            # the newest Asked whose request it has, borrowed; or NULL
    cdef dict links                # pid that it is linked with -> Link; None while there are none

cdef class Entry:
    # One life of a process or service: its successor under the same name has another entry.
    cdef readonly Pid pid
    cdef readonly object target    # see EntryKind; None once it was removed
    cdef object receive            # PROCESS: the function to call
    cdef readonly object runtime   # where it runs: a Scene; the executor's own, too
    cdef dict monitored_by         # pid that monitors it -> True, or a peer's reference; or None
    cdef PidSet monitoring         # pids that this one monitors; None while there are none
    cdef dict timers               # correlation id -> running Timer; None while there are none
    cdef Rare rare                 # None: it has nothing of that
    cdef MailboxLimit limit        # None: no limit
    cdef readonly uint64_t life            # number of this spawn, unique in the node's incarnation
    cdef readonly int64_t delivered        # envelopes given to it
    cdef readonly unsigned char kind       # EntryKind
    cdef unsigned char takes_self  # `receive` is the class's function, to be called with `target`
    cdef unsigned char untracked   # the garbage collector was told to leave `target` out
    cdef unsigned char unstarted   # `init` is still to be called
    cdef unsigned char terminates  # its class has a `terminate`, which was not called yet
    cdef unsigned char traps_exits  # it is told of a link's end, and not ended by it
    cdef unsigned char subscribed  # Subscription

# What is rare of an entry, made if it has none.
cdef Rare rare_of(Entry entry)

cdef class DispatchTable:
    cdef PidSlots entries          # Entry each
    cdef uint64_t epoch            # unique among all tables; a new one whenever an entry goes

    # Raises MemoryError, and then nothing was added. Whatever else there is cannot fail.
    cdef bint add(self, Entry entry) except -1
    cdef Entry remove(self, Pid pid)
    # Empty it: `taken` has all entries then, in the order of their lives.
    cdef void clear(self, PidSlots* taken) noexcept
    cdef inline PyObject* find(self, Pid pid) noexcept:
        """The entry of `pid`, borrowed, or NULL.

        An entry that was found once stays where it is until some entry of this table goes, so
        the pid remembers it for as long as the epoch is the same: most dispatches look no further.
        """
        cdef PyObject* found
        if pid.found_in == self.epoch:
            return pid.found
        found = find_item(&self.entries, pid)
        if found is not NULL:
            pid.found = found
            pid.found_in = self.epoch
        return found
