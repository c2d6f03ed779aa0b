"""Monitors: which process is told of whose end, on this node and across connections.

A monitor is a pair of pids: `monitoring`, which is told, and `monitored`, whose end it is told of.
What a pair means is the same whether it stays on this node or crosses a connection; only where it
is noted differs, see the summary. All of it belongs to the executor's thread.

What crosses a connection takes its time: a DOWN may be under way while its monitor is taken back
and set again, by then for the next life of that name. So each MONITOR has a reference, which the
DOWN that answers it repeats, and each monitored life is told of once.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.dispatch cimport EXECUTOR, PROCESS, Entry
from rabble._core.envelope cimport new_envelope
from rabble._core.failure cimport take_failure
from rabble._core.ids cimport Pid, same_node, same_pid
from rabble._core.notices cimport Notice
from rabble._core.pid_slots cimport PidSet, next_item
from rabble._core.connection cimport Connection

__all__ = ["Monitors", "RemoteMonitor"]

# Called so that what it raises stays pending: it returns -1 then.
ctypedef int (*quiet_demonitor)(Monitors monitors, Pid monitoring, Pid monitored) noexcept


@cython.final
@cython.no_gc
cdef class RemoteMonitor:
    """A pair whose monitored process lives on another node. It refers to nothing."""


@cython.final
cdef class Monitors:
    """The pairs of one node, each in the entries and connections at its ends."""

    def __cinit__(self):
        self.leaving = {}

    cdef MonitorStatus add(self, Entry entry, Pid pid) except? TOO_MANY:
        cdef PyObject* found = self.table.find(pid)
        cdef Entry target
        cdef bint known
        if found is NULL:
            if same_node(pid.node, entry.pid.node):
                return NO_PROCESS
            if self.routes is None:
                return UNREACHABLE
            # In this order, here as below: where there is no memory for the second one the process
            # ends, and takes its pair back with it. So its successor is not told of it.
            known = entry.monitoring is not None and entry.monitoring.has(pid)
            if entry.monitoring is None:
                entry.monitoring = PidSet()
            entry.monitoring.put(pid)
            if add_remote(self, entry, pid):
                return MONITORED
            if not known:
                entry.monitoring.drop(pid)
            return UNREACHABLE
        target = <Entry>found
        if target.monitored_by is None:
            target.monitored_by = {}
        if entry.monitoring is None:
            entry.monitoring = PidSet()
        entry.monitoring.put(pid)
        target.monitored_by[entry.pid] = True
        return MONITORED

    cdef int remove(self, Entry entry, Pid pid) except -1:
        cdef PyObject* found = self.table.find(pid)
        if found is not NULL and (<Entry>found).monitored_by is not None:
            (<Entry>found).monitored_by.pop(entry.pid, None)
        if entry.monitoring is not None:
            if entry.monitoring.drop(pid) and found is NULL and self.routes is not None:
                remove_remote(self, entry.pid, pid)
        return 0

    cdef MonitorStatus add_for_peer(
        self, Connection connection, Pid monitoring, Pid monitored, uint64_t reference
    ) except? UNREACHABLE:
        cdef PyObject* found = self.table.find(monitored)
        cdef Entry target
        cdef dict pairs
        if found is NULL or (<Entry>found).kind == EXECUTOR:
            return NO_PROCESS
        target = <Entry>found
        pairs = connection.monitored_by.get(monitored)
        if pairs is None or monitoring not in pairs:
            if connection.monitored_by_count >= self.peer_monitors_max:
                return TOO_MANY
        if target.monitored_by is None:
            target.monitored_by = {}
        if pairs is None:
            pairs = connection.monitored_by[monitored] = {}
        known = monitoring in pairs
        pairs[monitoring] = reference
        if not known:
            # Counted when it stands there, and not if there is no memory for it.
            connection.monitored_by_count += 1
        target.monitored_by[monitoring] = reference
        return MONITORED

    cdef int remove_for_peer(
        self, Connection connection, Pid monitoring, Pid monitored, uint64_t reference
    ) except -1:
        cdef PyObject* found = self.table.find(monitored)
        cdef dict pairs = connection.monitored_by.get(monitored)
        if pairs is None or pairs.get(monitoring) != reference:
            return 0
        del pairs[monitoring]
        connection.monitored_by_count -= 1
        if not pairs:
            del connection.monitored_by[monitored]
        if found is not NULL and (<Entry>found).monitored_by is not None:
            (<Entry>found).monitored_by.pop(monitoring, None)
        return 0

    cdef Entry take_down(
        self, Connection connection, Pid monitoring, Pid monitored, uint64_t reference
    ):
        """The entry that is to be sent the `Down` of a peer's process, if it still monitors it."""
        cdef PyObject* found
        cdef RemoteMonitor remote
        cdef dict pairs = connection.monitoring.get(monitored)
        remote = None if pairs is None else pairs.get(monitoring)
        if remote is None or not remote.first <= reference <= remote.latest:
            return None
        if reference != remote.latest:
            # Sent before the later MONITOR came there, which goes on: it concerns the next life.
            remote.first = reference + 1
            found = self.table.find(monitoring)
            return None if found is NULL else <Entry>found
        del pairs[monitoring]
        if not pairs:
            del connection.monitoring[monitored]
        return self.forget_remote(monitoring, monitored)

    cdef Entry forget_remote(self, Pid monitoring, Pid monitored):
        cdef PyObject* found = self.table.find(monitoring)
        if found is NULL:
            return None
        if (<Entry>found).monitoring is not None:
            (<Entry>found).monitoring.drop(monitored)
        return <Entry>found

    cdef int forget_monitored_by(self, Pid pid, dict monitored_by) except -1:
        cdef PyObject* found
        cdef Connection connection
        cdef dict pairs
        # Its own monitor of itself has nobody left to tell.
        monitored_by.pop(pid, None)
        for monitoring in monitored_by:
            found = self.table.find(<Pid>monitoring)
            if found is not NULL:
                if (<Entry>found).monitoring is not None:
                    (<Entry>found).monitoring.drop(pid)
            elif self.routes is not None:
                connection = self.routes.find((<Pid>monitoring).node)
                pairs = None if connection is None else connection.monitored_by.get(pid)
                if pairs is not None:
                    if pairs.pop(monitoring, None) is not None:
                        connection.monitored_by_count -= 1
                    if not pairs:
                        del connection.monitored_by[pid]
        return 0

    cdef int forget_monitoring(self, Pid pid, PidSet monitoring) except -1:
        cdef PyObject* found
        cdef PyObject* item
        cdef Pid monitored
        cdef size_t place = 0
        # The life is over, so nothing is added to its set or removed meanwhile.
        while True:
            item = next_item(&monitoring.slots, &place)
            if item is NULL:
                return 0
            monitored = <Pid>item
            found = self.table.find(monitored)
            if found is not NULL:
                if (<Entry>found).monitored_by is not None:
                    (<Entry>found).monitored_by.pop(pid, None)
            elif self.routes is not None:
                if (<quiet_demonitor><void*>remove_remote)(self, pid, monitored) < 0:
                    # The peer is not told, but its Down of that is not for anybody here.
                    take_failure()

    cdef list farewells(self, Pid executor, Pid pid, dict monitored_by, object down):
        cdef PyObject* found
        cdef Notice notice
        cdef Connection connection
        cdef list envelopes = []
        for monitoring, reference in monitored_by.items():
            if same_pid(<Pid>monitoring, pid):
                # Its own monitor of itself has nobody left to tell.
                continue
            notice = Notice.__new__(Notice)
            notice.msg = down
            found = self.table.find(<Pid>monitoring)
            if found is not NULL:
                notice.entry = <Entry>found
            elif self.routes is not None:
                connection = self.routes.find((<Pid>monitoring).node)
                if connection is None:
                    # That node is told nothing any more: to its processes all of this one is down.
                    continue
                notice.connection = connection
                notice.monitoring = <Pid>monitoring
                notice.reference = reference
            else:
                continue
            envelopes.append(new_envelope(executor, notice, None, None))
        return envelopes

    cdef dict forget_connection(self, Connection connection):
        cdef PyObject* found
        cdef dict monitored_there, monitored_here, pairs
        monitored_there, connection.monitoring = connection.monitoring, {}
        monitored_here, connection.monitored_by = connection.monitored_by, {}
        connection.monitored_by_count = 0
        for monitored, pairs in monitored_here.items():
            found = self.table.find(<Pid>monitored)
            if found is not NULL and (<Entry>found).monitored_by is not None:
                for monitoring in pairs:
                    (<Entry>found).monitored_by.pop(monitoring, None)
        return monitored_there


cdef bint add_remote(Monitors monitors, Entry entry, Pid monitored) except -1:
    """Monitor a process of another node. False if no connection leads to the start of it meant."""
    cdef Connection connection = monitors.routes.find(monitored.node)
    cdef Pid monitoring = entry.pid
    cdef RemoteMonitor remote
    cdef dict pairs
    if connection is None or not connection.is_open():
        return False
    if entry.kind == PROCESS and monitors.routes.is_untold(connection):
        # As an envelope to that process: it meant a start of the node that is no more.
        return False
    pairs = connection.monitoring.get(monitored)
    if pairs is None:
        pairs = connection.monitoring[monitored] = {}
    connection.references += 1
    remote = pairs.get(monitoring)
    if remote is None:
        remote = RemoteMonitor.__new__(RemoteMonitor)
        remote.first = connection.references
        pairs[monitoring] = remote
    remote.latest = connection.references
    connection.frame_encoder.write_monitor(monitoring, monitored, remote.latest)
    monitors.routes.touch(connection)
    return True


cdef int remove_remote(Monitors monitors, Pid monitoring, Pid monitored) except -1:
    cdef Connection connection = monitors.routes.find(monitored.node)
    cdef dict pairs = None if connection is None else connection.monitoring.get(monitored)
    cdef RemoteMonitor remote = None if pairs is None else pairs.pop(monitoring, None)
    if remote is not None:
        if not pairs:
            del connection.monitoring[monitored]
        if connection.is_open():
            connection.frame_encoder.write_demonitor(monitoring, monitored, remote.latest)
            monitors.routes.touch(connection)
    return 0
