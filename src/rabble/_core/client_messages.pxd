cdef class Answer:
    cdef readonly object request     # RequestId
    cdef readonly object value

cdef class Fail:
    cdef readonly object request     # RequestId
    cdef readonly object code        # str
    cdef readonly object text        # str

cdef class Push:
    cdef readonly object msg

cdef class CloseConnection:
    cdef readonly object reason      # str

cdef class ClientAsk:
    cdef readonly object to          # Pid
    cdef readonly object msg
    cdef readonly object request     # RequestId
    cdef readonly object timeout_ms  # a number, or None

cdef class Incoming:
    cdef readonly object msg
    cdef readonly object id          # int, or None: no answer is expected
    cdef readonly object priority    # -1, 0 or 1

cdef class Outgoing:
    cdef readonly object kind        # "answer", "failure", "nack", "push" or "goodbye"
    cdef readonly object id          # of the first three; else None
    cdef readonly object value       # of an answer, or what is pushed
    cdef readonly object code        # of a failure or goodbye; else ""
    cdef readonly object text        # of a failure, nack or goodbye; else ""
    cdef readonly object retry_after_ms  # of a nack; else 0

cdef class Canary:
    cdef readonly object number
    cdef readonly object node        # "": this one

# A handler returned something else: the error to raise.
cdef object wrong_output(object handler, object value)
