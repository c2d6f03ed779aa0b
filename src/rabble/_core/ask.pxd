cdef class Ask:
    cdef readonly object to            # whom: a Pid
    cdef readonly object msg           # what
    cdef readonly object timeout_ms    # milliseconds, 0 to 366 days
    cdef readonly object tag           # comes back; not looked at

cdef class Reply:
    cdef readonly object tag           # the one of the Ask
    cdef readonly object value         # what was answered

# Make one, past the arguments.
cdef inline Reply new_reply(object tag, object value):
    cdef Reply reply = Reply.__new__(Reply)
    reply.tag = tag
    reply.value = value
    return reply
