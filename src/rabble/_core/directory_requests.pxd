from libc.stdint cimport uint64_t

from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Executor
from rabble._core.ids cimport Pid

cdef class Asked:
    # What a process asked of the directory, with the lives that it concerns.
    cdef readonly object request
    cdef readonly Pid pid              # who is to have a name, say
    cdef readonly uint64_t life        # ... in which life; 0: nobody has that pid
    cdef readonly Pid asker            # who is answered
    cdef readonly uint64_t asker_life

cdef class DirectoryPort:
    # What the directory does with its executor, in that one's thread.
    cdef Executor executor
    cdef readonly Pid pid              # the directory's

    cdef Entry entry(self)

# Whether a message is a request to the directory.
cdef bint is_directory_request(object msg) noexcept
# Hand a request of `asker` to the directory, which monitors whom it concerns from now on.
cdef int ask_directory(Executor executor, Pid directory, Entry asker, Envelope envelope) except -1
