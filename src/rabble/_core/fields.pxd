from rabble._core.buffer_reader cimport BufferReader
from rabble._core.plan cimport CodecBounds, Plan

# What an exception of the user's says of itself, if it can.
cdef str reason_of(object error)

# What kind of class a plan is of, in words.
cdef object kind_of(Plan plan)

# What to raise for the pending exception, which code of the user's raised for what came.
cdef object refuses(BufferReader* r, Plan plan)

# What is said of a message that has too few fields.
cdef str lacking(Plan plan, Py_ssize_t n)

# Raise if what came is not what the annotation of the field says.
cdef int check_field(BufferReader* r, Plan plan, Py_ssize_t i, object item) except -1

# What a field has that did not come.
cdef object default(BufferReader* r, Plan plan, Py_ssize_t i)

# Go over a value, of which nothing is built, under the bounds of what is built.
cdef int skip(CodecBounds bounds, BufferReader* r) except -1
