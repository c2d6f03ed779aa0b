# The name of an object's type, without its module. No Python code runs.
cpdef str type_name(object value)

# What an object says of itself, of `most` characters at most (and 200 if it fails).
cpdef str bounded_str(object value, Py_ssize_t most)
cpdef str bounded_repr(object value, Py_ssize_t most)

# Whether an exception, which came while a user's object was looked at, is none of the object's:
# then it is to be raised again.
cpdef bint must_pass(object error) noexcept

# An exception's class and text, whatever its `__str__` does: what a Down says of a crash.
cdef object described(object error)
# Why a message cannot travel: what rabble's own error says, which needs no class in front.
cdef str failure_text(object error)

# What was given, with its type, as an error says it: `the str 'counter'`, or `None`.
cpdef str given(object value)

# The TypeErrors of an argument that had to be a pid, or a correlation id. `what` names it, and
# `wanted` says what it may be.
cdef object not_a_pid(str what, str wanted, object value)
cdef object not_a_correlation_id(str what, str wanted, object value)
