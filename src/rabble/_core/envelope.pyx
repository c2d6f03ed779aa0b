"""The envelope: one message on its way.

Envelopes are made and dropped by the million, so making one is the dearest thing a process does.
Two things keep it cheap. The class is final, has a freelist and is not tracked by the garbage
collector: a cycle through an envelope needs a message that refers to its own envelope, which
nothing but the sender could build. And it is called through a vectorcall function of its own: the
way through `tp_new` packs every argument into a tuple and unpacks it again, which costs about as
much as all the rest.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from rabble._core.ids cimport CorrelationId, Pid

__all__ = ["Envelope"]

cdef extern from *:
    """
    #define RABBLE_SET_VECTORCALL(type, function) \
        (((PyTypeObject *)(type))->tp_vectorcall = (vectorcallfunc)(function))

    #define RABBLE_LAYOUT_AGREES(type) \
        (((PyTypeObject *)(type))->tp_basicsize == (Py_ssize_t)sizeof(rabble_fields))
    """
    ctypedef PyObject* (*constructor)(
        PyObject*, PyObject* const*, size_t, PyObject*
    ) except NULL
    void RABBLE_SET_VECTORCALL(object cls, constructor function) noexcept
    bint RABBLE_LAYOUT_AGREES(object cls) noexcept
    Py_ssize_t PyVectorcall_NARGS(size_t nargsf) noexcept


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Envelope:
    """One message on its way: `Envelope(to, msg, sender=None, correlation_id=None)`.

    :param to: the `Pid` of the receiver.
    :param msg: the message; it must not be changed any more.
    :param sender: the `Pid` that said it. A process may leave it out: its executor fills it in.
    :param correlation_id: the request it belongs to, or `None`.
    :raises TypeError: if `to` is no `Pid`, or `sender` or `correlation_id` is of another type.

    Immutable, and safe to hand from thread to thread.
    """

    __match_args__ = ("to", "msg", "sender", "correlation_id")

    def __repr__(self):
        text = f"Envelope({self.to!r}, {self.msg!r}"
        if self.sender is not None:
            text += f", sender={self.sender!r}"
        if self.correlation_id is not None:
            text += f", correlation_id={self.correlation_id!r}"
        return text + ")"

    def __eq__(self, other):
        if type(other) is not Envelope:
            return NotImplemented
        cdef Envelope that = other
        return (
            self.to == that.to
            and self.msg == that.msg
            and self.sender == that.sender
            and self.correlation_id == that.correlation_id
        )

    def __hash__(self):
        return hash((self.to, self.msg, self.sender, self.correlation_id))

    def __reduce__(self):
        return Envelope, (self.to, self.msg, self.sender, self.correlation_id)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        from copy import deepcopy
        return new_envelope(self.to, deepcopy(self.msg, memo), self.sender, self.correlation_id)


cdef object wrong_type(str name, str wanted, object value):
    return TypeError(
        f"Envelope: {name} must be a {wanted}, not {type(value).__name__}: {value!r}"
    )


cdef PyObject* construct(
    PyObject* cls, PyObject* const* args, size_t nargsf, PyObject* kwnames
) except NULL:
    cdef Py_ssize_t given = PyVectorcall_NARGS(nargsf)
    cdef PyObject* fields[4]
    cdef Envelope envelope
    if kwnames is NULL and 2 <= given <= 4:
        fields[0] = args[0]
        fields[1] = args[1]
        fields[2] = args[2] if given > 2 else <PyObject*>None
        fields[3] = args[3] if given > 3 else <PyObject*>None
    else:
        sort_arguments(args, given, kwnames, fields)
    if type(<object>fields[0]) is not Pid:
        raise wrong_type("to", "Pid", <object>fields[0])
    if fields[2] is not <PyObject*>None and type(<object>fields[2]) is not Pid:
        raise wrong_type("sender", "Pid or None", <object>fields[2])
    if fields[3] is not <PyObject*>None and type(<object>fields[3]) is not CorrelationId:
        raise wrong_type("correlation_id", "CorrelationId or None", <object>fields[3])
    envelope = Envelope.__new__(Envelope)
    rabble_fill(<PyObject*>envelope, fields[0], fields[1], fields[2], fields[3])
    Py_INCREF(envelope)
    return <PyObject*>envelope


cdef int sort_arguments(
    PyObject* const* args, Py_ssize_t given, PyObject* kwnames, PyObject** fields
) except -1:
    """Put positional and keyword arguments into the order of the fields."""
    cdef Py_ssize_t i, place
    if given > 4:
        raise TypeError(f"Envelope takes 2 to 4 arguments, {given} were given")
    for i in range(4):
        fields[i] = args[i] if i < given else NULL
    if kwnames is not NULL:
        for i, name in enumerate(<tuple>kwnames):
            if name == "correlation_id":
                place = 3
            elif name == "sender":
                place = 2
            elif name == "msg":
                place = 1
            elif name == "to":
                place = 0
            else:
                raise TypeError(
                    f"Envelope has no argument {name!r}, "
                    f"only to, msg, sender and correlation_id"
                )
            if fields[place] is not NULL:
                raise TypeError(f"Envelope: {name} was given twice")
            fields[place] = args[given + i]
    if fields[0] is NULL or fields[1] is NULL:
        raise TypeError("Envelope needs both: to (a Pid) and msg")
    for i in range(2, 4):
        if fields[i] is NULL:
            fields[i] = <PyObject*>None
    return 0


if not RABBLE_LAYOUT_AGREES(Envelope):
    raise ImportError("rabble._core.envelope: the fields of Envelope do not lie where they should")
RABBLE_SET_VECTORCALL(Envelope, construct)
