"""Tracebacks of frames that never ran: they show where something was raised, and hold nothing.

A frame that ran holds its variables and whoever called it, up to the thread's first, and so the
process, the message and the node. Python makes none that did not run; the C API does, which is how
Cython shows its own functions in a traceback.
"""

from cpython.object cimport PyObject
from types import TracebackType

__all__ = ["traceback_entry"]

cdef extern from *:
    """
    #include <frameobject.h>
    """
    ctypedef struct PyThreadState:
        pass
    PyThreadState *PyThreadState_Get()
    # C declares a PyFrameObject and a PyCodeObject.
    object PyFrame_New "(PyObject *)PyFrame_New" (
        PyThreadState *thread, void *code, object namespace, PyObject *variables
    )


cpdef object traceback_entry(object following, object code, dict namespace, int line):
    """One place of a traceback.

    :param following: the places below, of calls that came later; `None` at the end.
    :param code: of a function, with the names of the function and file to be shown.
    :param namespace: what the frame has for its module's variables.
    :param line: the line to be shown.
    """
    frame = PyFrame_New(PyThreadState_Get(), <void *>code, namespace, NULL)
    # -1: no instruction, so that nobody looks for its columns among those of `code`.
    return TracebackType(following, frame, -1, line)
