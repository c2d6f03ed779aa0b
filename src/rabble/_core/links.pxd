from libc.stdint cimport uint64_t

from rabble._core.connection cimport Connection
from rabble._core.dispatch cimport Entry
from rabble._core.ids cimport Pid
from rabble._core.monitors cimport Monitors

cdef enum LinkStatus:
    LINKED = 0
    NOBODY = 1           # nobody who can be linked with has that pid
    NO_CONNECTION = 2    # none leads to that pid's node
    NOT_KNOWN = 3        # that node is of a version without links
    NO_ROOM = 4          # the peer has as many monitors and links as it may

cdef class Link:
    # One end of a link, in `Rare.links` of the life that has it.
    cdef Pid pid                   # who is at the other end
    cdef bint is_active            # the link is there; False: it has ended, and its Exiting waits
    cdef size_t exiting            # how many Exitings for it stand in the run queue
    cdef bint is_cut               # it was taken back: these concern nobody any more
    cdef bint is_asked_for         # who has this end asked for it
    cdef bint is_owned             # who has this end may not outlive the other one
    # Of a link that crosses a connection.
    cdef bint is_counted           # the peer began it, and is counted for it
    cdef uint64_t first            # reference of the oldest LINK sent that no EXIT has answered ...
    cdef uint64_t latest           # ... and of the latest one; 0: there is none
    cdef uint64_t theirs           # reference of the latest LINK that came; 0: none did

cdef class Exiting:
    # What the end of a life means to one that it was linked with, in its turn of the run queue.
    cdef Entry entry               # the latter, of this node; or None:
    cdef Link link                 # ... and its end of the link
    cdef Connection connection     # the latter is at the other end of this ...
    cdef Pid to                    # ... and which ...
    cdef uint64_t reference        # ... by which of its LINKs
    cdef Pid pid                   # who ended
    cdef object reason             # why: a DownReason
    cdef uint64_t life             # which life; 0: none ended

# Whether it can have links: a process or a service can.
cdef bint may_link(Entry entry) noexcept

# Whoever has `entry` is owned by `pid`, with which it is linked.
cdef int owned_by(Entry entry, Pid pid) except -1

# The end that `entry` has of its link with `pid`, or None.
cdef Link find_link(Entry entry, Pid pid)
# What a process asks. `add_link` leaves everything as it was unless it returns LINKED.
cdef LinkStatus add_link(Monitors monitors, Entry entry, Pid pid) except? NO_ROOM
# `entry` is that of `asker`, or None: it has ended since, and its Exiting stands behind that.
cdef int remove_link(Monitors monitors, Entry entry, Pid asker, Pid pid) except -1
# Whose turn it is can be taken back no more.
cdef int forget_exiting(Monitors monitors, Exiting exiting) except -1
# An Exiting of a link that could not be made, which can be taken back like another.
cdef Exiting failed_link(Entry entry, Pid pid, object reason)

# What a peer asks and tells; `about` is its process. `take_exit` returns the end of the link that
# the EXIT of `about` is the end of, or None.
cdef LinkStatus add_link_for_peer(
    Monitors monitors, Connection connection, Pid about, Pid to, uint64_t reference
) except? NO_CONNECTION
cdef int remove_link_for_peer(
    Monitors monitors, Connection connection, Pid about, Pid to, uint64_t reference
) except -1
cdef Link take_exit(
    Monitors monitors, Connection connection, Pid about, Pid to, uint64_t reference, bint has_ended
)

# The end of a life, in two parts: envelopes with an Exiting for each that it is linked with; and
# the end of these links, which cannot fail. The former may be made after the latter, too.
cdef list exits_of(Monitors monitors, Pid executor, Entry entry, object reason)
cdef int end_links(Monitors monitors, Entry entry) except -1
# The end of a connection: an Exiting, without its reason, for each link that crossed it.
cdef list cut_connection(Monitors monitors, Connection connection)
# Whether the end of a link, whose turn it is, concerns its life still.
cdef bint settle_exit(Exiting exiting) except -1
