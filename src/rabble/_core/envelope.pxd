# The envelope: one message on its way.

from cpython.object cimport PyObject

from rabble._core.ids cimport CorrelationId, Pid

cdef class Envelope:
    cdef readonly Pid to                          # whom it is for
    cdef readonly object msg                      # what is said; not to be changed after sending
    cdef readonly Pid sender                      # who said it; the executor fills in None
    cdef readonly CorrelationId correlation_id    # which request it belongs to, or None


cdef extern from *:
    """
    #ifndef RABBLE_FILL
    #define RABBLE_FILL
    /* The same fields as Envelope, as its .pxd has them: checked when the module is loaded. */
    typedef struct {
        PyObject_HEAD
        PyObject *to, *msg, *sender, *correlation_id;
    } rabble_fields;

    /* Fill an envelope fresh from tp_new, which has put None everywhere. Field by field Cython
       would count None down and compare it with 0, four times in a row on one memory cell. */
    static inline void rabble_fill(PyObject *envelope, PyObject *to, PyObject *msg,
                                   PyObject *sender, PyObject *correlation_id) {
        rabble_fields *fields = (rabble_fields *)envelope;
    #if PY_VERSION_HEX < 0x030C0000
        Py_None->ob_refcnt -= 4;
    #endif
        Py_INCREF(to);
        Py_INCREF(msg);
        Py_INCREF(sender);
        Py_INCREF(correlation_id);
        fields->to = to;
        fields->msg = msg;
        fields->sender = sender;
        fields->correlation_id = correlation_id;
    }
    #endif
    """
    void rabble_fill(
        PyObject* envelope,
        PyObject* to,
        PyObject* msg,
        PyObject* sender,
        PyObject* correlation_id,
    ) noexcept


cdef inline Envelope new_envelope(
    Pid to, object msg, Pid sender, CorrelationId correlation_id
):
    cdef Envelope envelope = Envelope.__new__(Envelope)
    rabble_fill(
        <PyObject*>envelope,
        <PyObject*>to,
        <PyObject*>msg,
        <PyObject*>sender,
        <PyObject*>correlation_id,
    )
    return envelope
