# Contexts: what decimal's context and each other ContextVar hold in the executor's thread.
#
# CPython has them in a Context, which the thread's state refers to and which is made when the first
# of them is set: while there is none, every ContextVar has its default. So one look at the state
# tells whether a delivery left something behind, and to let go of that takes no memory. Of
# decimal's context the same holds, though it is changed in place: the first who asks for it in a
# thread without a Context has one made for it, and set.
#
# There is no function for that in the C API: `PyContext_Enter` needs a Context, one more for each
# delivery that leaves something. greenlet, too, exchanges them in the state.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint64_t

cdef enum:
    FINALIZERS_MAX = 16      # how often what goes may set something again

cdef extern from "Python.h":
    ctypedef struct Thread "PyThreadState":
        PyObject* context            # owned; NULL: nothing was set
        uint64_t context_ver         # what ContextVars remember of a Context is only true with it
    Thread* this_thread "PyThreadState_Get" () noexcept

# Have the thread go on in another context; returns the one before. Both are owned, or NULL.
cdef inline PyObject* swap_context(Thread* thread, PyObject* context) noexcept:
    cdef PyObject* former = thread.context
    thread.context = context
    thread.context_ver += 1
    return former

# Let go of all that was set. No exception may be pending, as what goes may run anybody's code;
# which may set something itself, that goes as well.
cdef inline void clear_context(Thread* thread) noexcept:
    cdef int _
    for _ in range(FINALIZERS_MAX):
        if thread.context is NULL:
            return
        Py_DECREF(<object>swap_context(thread, NULL))
