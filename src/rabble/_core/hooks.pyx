"""Hooks: what the core calls in the layer above. `rabble.hooks` says what each is for."""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from rabble._core.failure cimport what_failed

__all__ = []

cdef extern from "Python.h":
    # Declared without `except`: what it raises stays pending until it is taken.
    PyObject* PyObject_CallMethodObjArgs(PyObject* obj, PyObject* name, ...)


@cython.final
cdef class HookCaller:
    """The hooks of one executor."""

    cdef int call(self, str what, object about, object error) except -1:
        cdef PyObject* answer = PyObject_CallMethodObjArgs(
            <PyObject*>self.target, <PyObject*>what, <PyObject*>about, <PyObject*>error, NULL
        )
        if answer is not NULL:
            Py_DECREF(<object>answer)
            return 0
        failure = what_failed()
        if self.interrupts.note(failure):
            # It was meant for whatever runs when the time is over.
            raise failure
        self.failed += 1
        return 0
