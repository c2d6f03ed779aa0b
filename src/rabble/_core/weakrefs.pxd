# Weak references: what one refers to, by the function that each version of CPython has for it.

from cpython.object cimport PyObject

cdef extern from *:
    """
    /* What a weak reference refers to, or None: owned. */
    static PyObject *rabble_referent(PyObject *ref) {
    #if PY_VERSION_HEX >= 0x030D0000
        PyObject *found;
        int known = PyWeakref_GetRef(ref, &found);
        return known < 0 ? NULL : known ? found : Py_NewRef(Py_None);
    #else
        PyObject *found = PyWeakref_GetObject(ref);
        return found == NULL ? NULL : Py_NewRef(found);
    #endif
    }
    """
    object referent "rabble_referent"(object ref)

cdef extern from "Python.h":
    object PyWeakref_NewRef(object obj, PyObject* callback)
