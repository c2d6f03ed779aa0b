"""Links: which lives end together, on this node and across connections.

A link has two ends, each in the entry of the life that has it: whoever asked, both are alike. When
a life ends its links end with it, and what that means to those at the other ends takes its turn in
the run queue, behind all that the life has sent: an `Exiting` each. So a chain of links is followed
delivery by delivery, however long it is. Until then the other end stays where it is, for an
`Unlink` that comes first, of either: after that nothing of the link may follow.

A link that crosses a connection has one end on each node, and both nodes may have asked for it. All
frames from one process to another keep their order, those of links too. What the two directions say
may cross, so each LINK has a reference, and UNLINK and EXIT say which one of the other side's they
have seen: later ones concern what comes after.

All of it belongs to the executor's thread. What comes of an `Exiting` is the matter of `exits`.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.connection cimport Connection
from rabble._core.dispatch cimport INBOX, PROCESS, Entry, Rare, rare_of
from rabble._core.envelope cimport new_envelope
from rabble._core.frame cimport VERSION_OF_LINKS
from rabble._core.ids cimport Pid, same_node
from rabble._core.monitors cimport Monitors

__all__ = []


@cython.final
@cython.no_gc
cdef class Link:
    """One end of a link. It refers to a pid."""


@cython.final
@cython.freelist(64)
cdef class Exiting:
    """The end of a link, for the life at its other end."""


cdef Link find_link(Entry entry, Pid pid):
    if entry.rare is None or entry.rare.links is None:
        return None
    return <Link>entry.rare.links.get(pid)


cdef Link end_for(Entry entry, Pid pid):
    """The end that `entry` has of its link with `pid`, or gets, which is not active then."""
    cdef Rare rare = rare_of(entry)
    cdef Link link
    if rare.links is None:
        rare.links = {}
    link = rare.links.get(pid)
    if link is None:
        link = Link.__new__(Link)
        link.pid = pid
        rare.links[pid] = link
    return link


cdef int forget_if_over(Entry entry, Link link) except -1:
    """Drop an end that is not active, and for which no Exiting waits."""
    cdef dict links
    if link.is_active or link.exiting or entry.rare is None:
        return 0
    links = entry.rare.links
    if links is not None and links.get(link.pid) is link:
        del links[link.pid]
        if not links:
            entry.rare.links = None
    return 0


cdef bint may_link(Entry entry) noexcept:
    return entry.kind == PROCESS or entry.kind == INBOX


cdef void activate(Link link) noexcept:
    link.is_active = True
    link.is_counted = False
    link.first = link.latest = link.theirs = 0


cdef int owned_by(Entry entry, Pid pid) except -1:
    # For as long as there is this end: what an owner's end has queued concerns it still when it is
    # linked with the owner's successor.
    end_for(entry, pid).is_owned = True
    return 0


cdef int leave_connection(Connection connection, Link link) except -1:
    if connection is not None and connection.links.pop(link, None) is not None:
        if link.is_counted:
            connection.monitored_by_count -= 1
    return 0


cdef LinkStatus add_link(Monitors monitors, Entry entry, Pid pid) except? NO_ROOM:
    cdef PyObject* found = monitors.table.find(pid)
    cdef Entry other
    cdef Link mine, theirs
    if found is NULL:
        if same_node(pid.node, entry.pid.node):
            return NOBODY
        return add_remote_link(monitors, entry, pid)
    other = <Entry>found
    mine = end_for(entry, pid)
    mine.is_asked_for = True
    if mine.is_active:
        return LINKED
    try:
        theirs = end_for(other, entry.pid)
        activate(theirs)
        activate(mine)
    finally:
        forget_if_over(entry, mine)
    return LINKED


cdef LinkStatus add_remote_link(Monitors monitors, Entry entry, Pid pid) except? NO_ROOM:
    cdef Connection connection = None
    cdef Link link
    cdef bint was_active
    cdef bint is_written = False
    if monitors.routes is not None:
        connection = monitors.routes.find(pid.node)
    if connection is None or not connection.is_open():
        return NO_CONNECTION
    if entry.kind == PROCESS and monitors.routes.is_untold(connection):
        # As an envelope to that process: it meant a start of the node that is no more.
        return NO_CONNECTION
    if connection.session.version < VERSION_OF_LINKS:
        return NOT_KNOWN
    link = end_for(entry, pid)
    was_active = link.is_active
    try:
        if not was_active:
            connection.links[link] = entry.pid
            activate(link)
        # Each time, as the peer may know of a later life.
        connection.frame_encoder.write_link(entry.pid, pid, connection.references + 1)
        is_written = True
    finally:
        if not is_written and not was_active:
            end_remote(connection, entry, link)
    link.is_asked_for = True
    connection.references += 1
    link.latest = connection.references
    if link.first == 0:
        link.first = link.latest
    monitors.routes.touch(connection)
    return LINKED


cdef int end_remote(Connection connection, Entry entry, Link link) except -1:
    leave_connection(connection, link)
    link.is_active = False
    return forget_if_over(entry, link)


cdef int remove_link(Monitors monitors, Entry entry, Pid asker, Pid pid) except -1:
    # It may have ended since, and have a successor, which can have sent nothing yet then.
    if asker is not None and remove_ended(monitors, asker, pid):
        return 0
    return 0 if entry is None else remove_own(monitors, entry, pid)


cdef int remove_own(Monitors monitors, Entry entry, Pid pid) except -1:
    cdef Link link = find_link(entry, pid)
    cdef Connection connection
    cdef PyObject* found
    cdef Entry other
    cdef Link theirs
    if link is None:
        return 0
    if link.is_owned:
        raise ValueError(
            f"Unlink: {entry.pid} is owned by {pid}, which alone can end this link"
        )
    if link.is_active:
        found = monitors.table.find(pid)
        if found is not NULL:
            other = <Entry>found
            theirs = find_link(other, entry.pid)
            if theirs is not None:
                theirs.is_active = False
                forget_if_over(other, theirs)
        elif monitors.routes is not None:
            connection = monitors.routes.find(pid.node)
            # Written first: without memory for it the link stays, and who asked ends with it.
            if connection is not None and connection.is_open():
                connection.frame_encoder.write_unlink(entry.pid, pid, link.theirs)
                monitors.routes.touch(connection)
            leave_connection(connection, link)
    link.is_cut = True
    link.is_active = False
    link.exiting = 0
    return forget_if_over(entry, link)


cdef bint remove_ended(Monitors monitors, Pid asker, Pid pid) except -1:
    cdef Exiting exiting = monitors.leaving.get((asker, pid))
    if exiting is None:
        return False
    if exiting.connection is None:
        if exiting.link.exiting:
            exiting.link.exiting -= 1
        forget_if_over(exiting.entry, exiting.link)
    elif monitors.routes.find(pid.node) is exiting.connection and exiting.connection.is_open():
        exiting.connection.frame_encoder.write_unlink(asker, pid, exiting.reference)
        monitors.routes.touch(exiting.connection)
    forget_exiting(monitors, exiting)
    # Of nobody: nothing comes of it.
    exiting.pid = None
    return True


cdef int forget_exiting(Monitors monitors, Exiting exiting) except -1:
    cdef Pid to = exiting.to if exiting.entry is None else exiting.entry.pid
    cdef tuple key = (exiting.pid, to)
    if monitors.leaving and monitors.leaving.get(key) is exiting:
        del monitors.leaving[key]
    return 0


cdef Exiting failed_link(Entry entry, Pid pid, object reason):
    cdef Exiting exiting = Exiting.__new__(Exiting)
    exiting.entry = entry
    exiting.link = end_for(entry, pid)
    exiting.link.is_asked_for = True
    exiting.link.exiting += 1
    exiting.pid = pid
    exiting.reason = reason
    return exiting


cdef LinkStatus add_link_for_peer(
    Monitors monitors, Connection connection, Pid about, Pid to, uint64_t reference
) except? NO_CONNECTION:
    cdef PyObject* found = monitors.table.find(to)
    cdef Entry entry
    cdef Link link
    if found is NULL or not may_link(<Entry>found):
        return NOBODY
    entry = <Entry>found
    link = find_link(entry, about)
    if link is None or not link.is_active:
        if connection.monitored_by_count >= monitors.peer_monitors_max:
            return NO_ROOM
        link = end_for(entry, about)
        try:
            connection.links[link] = entry.pid
            activate(link)
        finally:
            forget_if_over(entry, link)
        link.is_counted = True
        connection.monitored_by_count += 1
    link.theirs = reference
    return LINKED


cdef int remove_link_for_peer(
    Monitors monitors, Connection connection, Pid about, Pid to, uint64_t reference
) except -1:
    cdef PyObject* found = monitors.table.find(to)
    cdef Link link = None if found is NULL else find_link(<Entry>found, about)
    if link is None or not link.is_active:
        return 0
    link.theirs = 0
    answer(link, reference)
    if link.first == 0:
        end_remote(connection, <Entry>found, link)
    return 0


cdef Link take_exit(
    Monitors monitors, Connection connection, Pid about, Pid to, uint64_t reference, bint has_ended
):
    cdef PyObject* found = monitors.table.find(to)
    cdef Link link = None if found is NULL else find_link(<Entry>found, about)
    cdef bint concerns = False
    if link is None or not link.is_active:
        return None
    if has_ended and link.theirs != 0:
        link.theirs = 0
        concerns = True
    if answer(link, reference):
        concerns = True
    if link.first == 0 and link.theirs == 0:
        end_remote(connection, <Entry>found, link)
    return link if concerns else None


cdef bint answer(Link link, uint64_t reference) noexcept:
    """The peer has seen what was asked for up to `reference`. Whether it saw anything of this."""
    if link.first == 0 or link.first > reference:
        return False
    if reference >= link.latest:
        link.first = link.latest = 0
    else:
        # A later LINK is under way: it concerns the next life.
        link.first = reference + 1
    return True


cdef list exits_of(Monitors monitors, Pid executor, Entry entry, object reason):
    cdef PyObject* found
    cdef Exiting exiting
    cdef Link link
    cdef list envelopes = []
    cdef dict leaving = {}
    cdef list links = list(entry.rare.links.values())
    # Of those that it has spawned the last one ends first.
    links.reverse()
    for link in links:
        if not link.is_active:
            continue
        exiting = Exiting.__new__(Exiting)
        exiting.pid = entry.pid
        exiting.reason = reason
        exiting.life = entry.life
        found = monitors.table.find(link.pid)
        if found is not NULL:
            exiting.entry = <Entry>found
            exiting.link = find_link(exiting.entry, entry.pid)
        elif monitors.routes is not None:
            exiting.connection = monitors.routes.find(link.pid.node)
            exiting.to = link.pid
            exiting.reference = link.theirs
        if exiting.link is not None or exiting.connection is not None:
            envelopes.append(new_envelope(executor, exiting, None, None))
            leaving[(entry.pid, link.pid)] = exiting
    # Without memory for all of it this is asked again, or the node ends.
    monitors.leaving.update(leaving)
    return envelopes


cdef int end_links(Monitors monitors, Entry entry) except -1:
    cdef PyObject* found
    cdef Link link, theirs
    for link in entry.rare.links.values():
        if not link.is_active:
            continue
        found = monitors.table.find(link.pid)
        if found is not NULL:
            theirs = find_link(<Entry>found, entry.pid)
            if theirs is not None:
                theirs.is_active = False
                theirs.exiting += 1
        elif monitors.routes is not None:
            leave_connection(monitors.routes.find(link.pid.node), link)
    return 0


cdef list cut_connection(Monitors monitors, Connection connection):
    cdef PyObject* found
    cdef Exiting exiting
    cdef Link link
    cdef list all_exiting = []
    cdef dict links = connection.links
    connection.links = {}
    for link, pid in links.items():
        found = monitors.table.find(<Pid>pid)
        if found is NULL:
            continue
        exiting = Exiting.__new__(Exiting)
        exiting.entry = <Entry>found
        exiting.link = link
        exiting.pid = link.pid
        link.is_active = False
        link.exiting += 1
        all_exiting.append(exiting)
    return all_exiting


cdef bint settle_exit(Exiting exiting) except -1:
    cdef Link link = exiting.link
    if link.is_cut:
        return False
    if link.exiting:
        link.exiting -= 1
    forget_if_over(exiting.entry, link)
    return exiting.entry.target is not None
