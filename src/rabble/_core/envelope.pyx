"""The envelope: one message on its way.

Envelopes are made and dropped by the million, so making one is the dearest thing a process does.
Three things keep it cheap.

It is called through a vectorcall function of its own: the way through `tp_new` packs every argument
into a tuple and unpacks it again, which costs about as much as all the rest.

It is allocated and freed by functions of its own, with a free list: what Cython generates fills the
fields with None first, and counts None's references up and down.

And the garbage collector is told of an envelope only if its message is of a type that the collector
knows. An envelope never changes, its pids and its correlation id refer to nothing but text and
numbers, so a cycle through it must go through its message: one that holds an int, a str or bytes
is in no cycle. The price is the collector's head of 16 bytes in each envelope.

An envelope to `None`, as the answer to a request without a sender is one, goes to nobody: it has a
receiver whose name is empty, which no pid of a user or a peer can be. Only what Python sees of it
is `None`. So nothing has to ask for it but what finds that no process and no connection has that
pid.
"""

cimport cython
from cpython.object cimport PyObject

from rabble._core.failure cimport owned
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.texts cimport bounded_repr, not_a_correlation_id, not_a_pid

__all__ = ["Envelope", "reply"]

cdef extern from *:
    """
    #include <string.h>

    /* The same fields as Envelope, as its .pxd has them: checked when the module is loaded. */
    typedef struct {
        PyObject_HEAD
        PyObject *to, *msg, *sender, *correlation_id;
    } rabble_fields;

    #define RABBLE_LIKELY(x) __builtin_expect(!!(x), 1)
    #define RABBLE_UNLIKELY(x) __builtin_expect(!!(x), 0)

    static PyTypeObject *rabble_envelope_type = NULL;

    #if CYTHON_USE_FREELISTS
    #define RABBLE_FREE_MAX 1024
    static PyObject *rabble_free[RABBLE_FREE_MAX];
    static int rabble_free_count = 0;
    #endif

    /* What decides whether the collector is told. None also stands for what the collector has
       cleared; of that it is told still. */
    #define RABBLE_MAY_BE_TRACKED(msg) (PyType_IS_GC(Py_TYPE(msg)) || (msg) == Py_None)

    static PyObject *rabble_make(PyObject *to, PyObject *msg, PyObject *sender,
                                 PyObject *correlation_id) {
        rabble_fields *made;
        /* First: an allocation may collect, and what runs then may drop what these are borrowed
           from. */
        Py_INCREF(to);
        Py_INCREF(msg);
        Py_INCREF(sender);
        Py_INCREF(correlation_id);
    #if CYTHON_USE_FREELISTS
        if (RABBLE_LIKELY(rabble_free_count > 0)) {
            made = (rabble_fields *)rabble_free[--rabble_free_count];
            Py_SET_REFCNT((PyObject *)made, 1);
        } else {
            made = PyObject_GC_New(rabble_fields, rabble_envelope_type);
        }
    #else
        /* Past no counter and no sanitizer. */
        made = (rabble_fields *)rabble_envelope_type->tp_alloc(rabble_envelope_type, 0);
        if (made != NULL) PyObject_GC_UnTrack(made);
    #endif
        if (RABBLE_UNLIKELY(made == NULL)) {
            Py_DECREF(to);
            Py_DECREF(msg);
            Py_DECREF(sender);
            Py_DECREF(correlation_id);
            return NULL;
        }
        made->to = to;
        made->msg = msg;
        made->sender = sender;
        made->correlation_id = correlation_id;
        if (PyType_IS_GC(Py_TYPE(msg))) PyObject_GC_Track(made);
        return (PyObject *)made;
    }

    /* An envelope in an envelope in an envelope, a million deep, is taken apart one by one: each
       that would end the next in its own end would overflow the C stack. (What lies between two
       envelopes otherwise, a list or an instance, has the interpreter's own guard.) */
    static void rabble_drop(PyObject *self) {
        while (self != NULL) {
            rabble_fields *fields = (rabble_fields *)self;
            PyObject *msg = fields->msg, *next = NULL;
            if (RABBLE_MAY_BE_TRACKED(msg)) {
                PyObject_GC_UnTrack(self);
                if (Py_TYPE(msg) == rabble_envelope_type && Py_REFCNT(msg) == 1) next = msg;
            }
            Py_DECREF(fields->to);
            Py_DECREF(fields->sender);
            Py_DECREF(fields->correlation_id);
    #if CYTHON_USE_FREELISTS
            if (RABBLE_LIKELY(rabble_free_count < RABBLE_FREE_MAX))
                rabble_free[rabble_free_count++] = self;
            else
                PyObject_GC_Del(self);
    #else
            rabble_envelope_type->tp_free(self);
    #endif
            /* Last: it may run code, which may make and drop envelopes. */
            if (next == NULL) Py_DECREF(msg);
            self = next;
        }
    }

    static int rabble_traverse(PyObject *self, visitproc visit, void *arg) {
        Py_VISIT(((rabble_fields *)self)->msg);
        return 0;
    }

    /* The message alone closes cycles; a receiver that is there for ever needs no look for None. */
    static int rabble_clear(PyObject *self) {
        PyObject *msg = ((rabble_fields *)self)->msg;
        Py_INCREF(Py_None);
        ((rabble_fields *)self)->msg = Py_None;
        Py_DECREF(msg);
        return 0;
    }

    /* Envelope.__new__ called by name: the same as Envelope(...), so that none is blank. */
    static PyObject *rabble_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
        return PyObject_VectorcallDict(
            (PyObject *)type, &PyTuple_GET_ITEM(args, 0), (size_t)PyTuple_GET_SIZE(args), kwargs);
    }

    static int rabble_init(PyObject *self, PyObject *args, PyObject *kwargs) { return 0; }

    static PyObject *rabble_nobody = NULL;

    static PyObject *rabble_get_to(PyObject *self, void *closure) {
        PyObject *to = ((rabble_fields *)self)->to;
        if (to == rabble_nobody) to = Py_None;
        Py_INCREF(to);
        return to;
    }

    /* Whether the fields lie where they should. */
    static int rabble_set_up(PyObject *type, vectorcallfunc construct, PyObject *nobody) {
        PyGetSetDef *field;
        rabble_envelope_type = (PyTypeObject *)type;
        for (field = rabble_envelope_type->tp_getset; field != NULL; field++) {
            if (field->name == NULL) return 0;
            if (strcmp(field->name, "to") == 0) break;
        }
        if (field == NULL) return 0;
        field->get = rabble_get_to;
        Py_INCREF(nobody);
        rabble_nobody = nobody;
        if (rabble_envelope_type->tp_basicsize != (Py_ssize_t)sizeof(rabble_fields)) return 0;
        rabble_envelope_type->tp_vectorcall = construct;
        rabble_envelope_type->tp_dealloc = rabble_drop;
        rabble_envelope_type->tp_traverse = rabble_traverse;
        rabble_envelope_type->tp_clear = rabble_clear;
        rabble_envelope_type->tp_new = rabble_new;
        rabble_envelope_type->tp_init = rabble_init;
        return 1;
    }
    """
    ctypedef PyObject* (*constructor)(
        PyObject*, PyObject* const*, size_t, PyObject*
    ) except NULL
    PyObject* rabble_make(
        PyObject* to, PyObject* msg, PyObject* sender, PyObject* correlation_id
    ) except NULL
    object make "rabble_make"(object to, object msg, object sender, object correlation_id)
    bint rabble_set_up(object cls, constructor function, object nobody) noexcept
    Py_ssize_t PyVectorcall_NARGS(size_t nargsf) noexcept

cdef extern from *:
    """
    /* On failure it returns whatever is not 0. */
    #define RABBLE_ENTER_RECURSIVE_CALL(where) (Py_EnterRecursiveCall(where) ? -1 : 0)
    """
    int enter_recursive_call "RABBLE_ENTER_RECURSIVE_CALL"(const char* where) except -1
    void Py_LeaveRecursiveCall() noexcept


@cython.final
cdef class Envelope:
    """One message on its way: `Envelope(to, msg, sender=None, correlation_id=None)`.

    :param to: the `Pid` of the receiver. One to `None` becomes a `NO_RECEIVER` dead letter: so a
        process may answer to the sender of any request, also where there is none.
    :param msg: the message; it must not be changed any more.
    :param sender: the `Pid` that said it. A process may leave it out: its executor fills it in.
    :param correlation_id: the request it belongs to, or `None`.
    :raises TypeError: if one of the three is of another type.

    Immutable, and safe to hand from thread to thread.
    """

    __match_args__ = ("to", "msg", "sender", "correlation_id")

    def __repr__(self):
        text = f"Envelope({seen(self.to)!r}, {self.msg!r}"
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
        # A message may be an envelope again, and hashing looks for no end of the C stack itself.
        enter_recursive_call(" while an Envelope is hashed")
        try:
            return hash((self.to, self.msg, self.sender, self.correlation_id))
        finally:
            Py_LeaveRecursiveCall()

    def __reduce__(self):
        return Envelope, (seen(self.to), self.msg, self.sender, self.correlation_id)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        from copy import deepcopy
        return new_envelope(self.to, deepcopy(self.msg, memo), self.sender, self.correlation_id)


cdef Envelope new_envelope(Pid to, object msg, Pid sender, CorrelationId correlation_id):
    return <Envelope>make(to, msg, sender, correlation_id)


# Whom an envelope to None goes to: its names are empty, which those of other pids cannot be.
cdef Pid NOBODY = Pid("nobody", NodeId("nobody", "nobody:0"))
NOBODY.name = NOBODY.node.name = ""


cdef bint is_to_nobody(Envelope envelope) noexcept:
    return envelope.to is NOBODY


cdef Pid seen(Pid to):
    """A receiver as Python sees it."""
    return None if to is NOBODY else to


cdef PyObject* construct(
    PyObject* cls, PyObject* const* args, size_t nargsf, PyObject* kwnames
) except NULL:
    cdef Py_ssize_t given = PyVectorcall_NARGS(nargsf)
    cdef PyObject* fields[4]
    if kwnames is NULL and 2 <= given <= 4:
        fields[0] = args[0]
        fields[1] = args[1]
        fields[2] = args[2] if given > 2 else <PyObject*>None
        fields[3] = args[3] if given > 3 else <PyObject*>None
    else:
        sort_arguments(args, given, kwnames, fields)
    return checked(fields[0], fields[1], fields[2], fields[3])


cdef inline PyObject* checked(
    PyObject* to, PyObject* msg, PyObject* sender, PyObject* correlation_id
) except NULL:
    if type(<object>to) is not Pid:
        if to is not <PyObject*>None:
            raise not_a_pid("Envelope: to", "Pid or None", <object>to)
        to = <PyObject*>NOBODY
    if sender is not <PyObject*>None and type(<object>sender) is not Pid:
        raise not_a_pid("Envelope: sender", "Pid or None", <object>sender)
    if correlation_id is not <PyObject*>None and type(<object>correlation_id) is not CorrelationId:
        raise not_a_correlation_id(
            "Envelope: correlation_id", "CorrelationId or None", <object>correlation_id
        )
    return rabble_make(to, msg, sender, correlation_id)


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
                    f"Envelope has no argument {bounded_repr(name, 200)}, "
                    f"only to, msg, sender and correlation_id"
                )
            if fields[place] is not NULL:
                raise TypeError(f"Envelope: {name} was given twice")
            fields[place] = args[given + i]
    if fields[0] is NULL or fields[1] is NULL:
        raise TypeError("Envelope needs both: to (a Pid, or None for nobody) and msg")
    for i in range(2, 4):
        if fields[i] is NULL:
            fields[i] = <PyObject*>None
    return 0


if not rabble_set_up(Envelope, construct, NOBODY):
    raise ImportError("rabble._core.envelope: the fields of Envelope do not lie where they should")


def reply(msg, sender, correlation_id):
    """The answer to a request: an envelope to who sent it, with the request's correlation id.

    :param msg: what is answered.
    :param sender: as `receive` was given it. `None`, the sender of what a thread sent without one,
        is nobody: then the answer becomes a `NO_RECEIVER` dead letter.
    :param correlation_id: as `receive` was given it. By this an `Ask`, or a call, knows its answer.
    :raises TypeError: if `sender` or `correlation_id` is of another type.

    From any thread. A process returns the envelope, a service sends it.
    """
    return owned(checked(
        <PyObject*>sender, <PyObject*>msg, <PyObject*>None, <PyObject*>correlation_id
    ))
