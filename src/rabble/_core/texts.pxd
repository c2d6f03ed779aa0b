# What is said of objects that users made: bounded, and no failure of who asks.

# The name of an object's type, without its module. No Python code runs.
cpdef str type_name(object value)

# What an object says of itself, of `most` characters at most (and 200 if it fails).
cpdef str bounded_str(object value, Py_ssize_t most)
cpdef str bounded_repr(object value, Py_ssize_t most)

# Whether an exception, which came while a user's object was looked at, is none of the object's:
# then it is to be raised again.
cdef bint must_pass(object error) noexcept
