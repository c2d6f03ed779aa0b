# Cython's `except X as e:` takes for granted that an exception has a traceback. It has none when
# there was no memory for one, and then the clause drops a reference that is not there: the
# interpreter crashes. So no `except` clause of the core has a body that does anything (a test holds
# that): what may fail is called so that it returns a status and leaves its exception pending, and
# this takes it. The same holds for what `finally` does, which is safe, as Cython checks there.

from cpython.object cimport PyObject

cdef extern from *:
    """
    #ifndef RABBLE_FAILURE
    #define RABBLE_FAILURE
    /* The pending exception, which is pending no longer; None if there is none. */
    static inline PyObject *rabble_take_failure(void) {
        PyObject *error;
    #if PY_VERSION_HEX >= 0x030C0000
        error = PyErr_GetRaisedException();
    #else
        PyObject *type, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        if (type != NULL) {
            /* Not by PyErr_NormalizeException, which ends the interpreter if there is no memory
               for exceptions about missing memory. */
            if (error == NULL || !PyExceptionInstance_Check(error)) {
                PyObject *made;
                if (error == NULL || error == Py_None)
                    made = PyObject_CallNoArgs(type);
                else if (PyTuple_Check(error))
                    made = PyObject_Call(type, error, NULL);
                else
                    made = PyObject_CallOneArg(type, error);
                if (made == NULL) PyErr_Clear();
                Py_XDECREF(error);
                error = made;
                if (error != NULL && !PyExceptionInstance_Check(error)) Py_CLEAR(error);
            }
            if (error != NULL && traceback != NULL)
                PyException_SetTraceback(error, traceback);
            Py_DECREF(type);
            Py_XDECREF(traceback);
        }
    #endif
        if (error == NULL) {
            error = Py_None;
            Py_INCREF(error);
        }
        return error;
    }
    #define RABBLE_OWNED(value) ((PyObject *)(value))
    #endif
    """
    # The pending exception, which is pending no longer; None if there is none.
    object take_failure "rabble_take_failure" ()

    # A new reference that a call has returned, and that is not NULL, as an object.
    object owned "RABBLE_OWNED" (PyObject* value)

cdef extern from "Python.h":
    # Whether one is pending, borrowed; and whether the pending one is of a class.
    void* pending_failure "PyErr_Occurred" () noexcept
    bint PyErr_ExceptionMatches(object cls) noexcept
    # The same of one that was taken. (`isinstance` asks the exception, which may be a user's.)
    bint PyErr_GivenExceptionMatches(object error, object cls) noexcept

# The exception of a call that says that it failed; it is pending no longer.
cdef object what_failed()
