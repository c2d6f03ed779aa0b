"""What both halves of the codec know: their bounds, extension types, and plans of classes."""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.type cimport PyType_Check
import sys

from rabble._core.checks cimport Check, quick_class
from rabble._core.texts cimport bounded_repr

__all__ = ["CodecBounds", "Plan"]

cdef enum:
    DEPTH_MAX_MAX = 256       # every level takes some 300 bytes of stack

cdef extern from *:
    """
    #include <structmember.h>

    /* Where a slot's value lies in an instance of `cls`; -1 if `descriptor` is no slot of it. Any
       class may have another one's descriptor as an attribute, whose offset means nothing here. */
    static Py_ssize_t rabble_slot_offset(PyObject *cls, PyObject *descriptor) {
        PyMemberDef *member;
        if (Py_TYPE(descriptor) != &PyMemberDescr_Type) return -1;
        if (!PyType_IsSubtype((PyTypeObject *)cls, PyDescr_TYPE(descriptor))) return -1;
        member = ((PyMemberDescrObject *)descriptor)->d_member;
        return member->type == T_OBJECT_EX ? member->offset : -1;
    }

    /* Whether instances come from `object.__new__`, or that of `base`, which do no more than take
       their memory. */
    static int rabble_is_made_plainly(PyObject *cls, PyObject *base) {
        PyTypeObject *type = (PyTypeObject *)cls;
        if (type->tp_itemsize != 0) return 0;
        if (PyType_HasFeature(type, Py_TPFLAGS_IS_ABSTRACT)) return 0;
        if (type->tp_new == PyBaseObject_Type.tp_new) return 1;
        return base != Py_None && PyType_IsSubtype(type, (PyTypeObject *)base)
            && type->tp_new == ((PyTypeObject *)base)->tp_new;
    }

    /* Whether it is a tuple with a name, and nothing that C code made of one. */
    static int rabble_is_named_tuple(PyObject *cls) {
        PyTypeObject *type = (PyTypeObject *)cls;
        while (type != NULL && type != &PyTuple_Type) {
            if (!PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) return 0;
            if (type->tp_itemsize != PyTuple_Type.tp_itemsize) return 0;
            /* A sequence of C's, as `time.struct_time`, counts its items by itself. */
            if (type->tp_dict == NULL) return 0;
            if (PyDict_GetItemString(type->tp_dict, "n_sequence_fields") != NULL) return 0;
            type = type->tp_base;
        }
        return type == &PyTuple_Type;
    }
    """
    Py_ssize_t rabble_slot_offset(object cls, object descriptor) noexcept
    bint rabble_is_made_plainly(object cls, object base) noexcept
    bint rabble_is_named_tuple(object cls) noexcept


cdef class CodecBounds:
    """The registry and the bounds of a codec, checked where they come in.

    :param registry: the `MessageRegistry` of the classes that may be sent and built.
    :param message_bytes_max: bytes of one encoded message or envelope, 1 to 2**31.
    :param depth_max: how deep containers may be nested, 1 to 256.
    :param elements_max: elements of all containers of one message together, 1 to 2**31; an entry of
        a dict is one element, and so is a field of a message.
    :param decoded_bytes_max: bytes of memory that the objects of one message may take where it is
        decoded, by the estimate of `values.pxd`, 1 to 2**40.
    :raises ValueError: if a bound is not usable.
    """

    def __cinit__(
        self, registry not None, *, message_bytes_max=64 << 20, depth_max=64,
        elements_max=64 << 20, decoded_bytes_max=512 << 20,
    ):
        for name, value, most in (
            ("message_bytes_max", message_bytes_max, 1 << 31),
            ("depth_max", depth_max, DEPTH_MAX_MAX),
            ("elements_max", elements_max, 1 << 31),
            ("decoded_bytes_max", decoded_bytes_max, 1 << 40),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(
                    f"Codec: {name} must be 1 to {most}, not {bounded_repr(value, 100)}"
                )
        self.registry = registry
        self.message_bytes_max = message_bytes_max
        self.depth_max = depth_max
        self.elements_max = elements_max
        self.decoded_bytes_max = decoded_bytes_max


@cython.final
cdef class Plan:
    """How instances of one registered class are written and built."""

    def __dealloc__(self):
        PyMem_Free(self.offsets)
        PyMem_Free(self.quick)


cdef Plan plan_of(object registry, object registration):
    cdef bytes name = registration.name.encode()
    found = registry.plans_by_name.get(name)
    if type(found) is not Plan or (<Plan>found).cls is None:
        found = make_plan(registration)
        (<Plan>found).key = name
        registry.plans_by_name[name] = found
    return <Plan>found


cdef Plan make_plan(object registration):
    cdef Plan plan = Plan.__new__(Plan)
    cdef Py_ssize_t i
    if not PyType_Check(registration.cls):
        raise TypeError("what is registered is no class")
    plan.cls = registration.cls
    plan.name = registration.name
    if registration.members is not None:
        plan.members = {}
        for member in registration.members:
            # Asked for now: what an enum's `value` is may be a method of the user's.
            value = member.value
            plan.members[value] = (type(value), member)
        return plan
    if registration.encode is not None:
        plan.encode = registration.encode
        plan.decode = registration.decode
        return plan
    plan.maker = plan.cls if registration.maker is None else registration.maker
    plan.fields = tuple(registration.fields)
    plan.count = len(plan.fields)
    plan.defaults = tuple(registration.defaults)
    if len(plan.defaults) != plan.count:
        plan.defaults = (None,) * plan.count
    plan.required = plan.count
    while plan.required and plan.defaults[plan.required - 1] is not None:
        plan.required -= 1
    slots = [rabble_slot_offset(plan.cls, getattr(plan.cls, name, None)) for name in plan.fields]
    # Two names may be of one slot, which a builder would fill twice.
    if -1 not in slots and len(set(slots)) == len(slots):
        plan.offsets = <Py_ssize_t*>PyMem_Malloc((len(slots) or 1) * sizeof(Py_ssize_t))
        if plan.offsets is NULL:
            raise MemoryError
        for i in range(plan.count):
            plan.offsets[i] = slots[i]
    plan.build = build_of(plan, registration.build)
    return plan


cdef int build_of(Plan plan, object wanted):
    """How instances are built: as the registry says, where the class itself does not forbid it."""
    if wanted == "tuple":
        return BUILD_TUPLE if rabble_is_named_tuple(plan.cls) else BUILD_CALL
    if wanted != "slots" and wanted != "attributes":
        return BUILD_CALL
    # A Struct, whose memory its own base class takes, has slots.
    struct = getattr(sys.modules.get("msgspec"), "Struct", None) if wanted == "slots" else None
    if not rabble_is_made_plainly(plan.cls, struct if PyType_Check(struct) else None):
        return BUILD_CALL
    if wanted == "slots":
        return BUILD_SLOTS if plan.offsets is not NULL else BUILD_CALL
    for name in plan.fields:
        if type(name) is not str:
            return BUILD_CALL
    return BUILD_ATTRIBUTES


cdef tuple checks_of(object registry, object registration):
    return tuple([check for check, _ in registry.checks_of(registration)])


cdef int make_ready(Plan plan, tuple checks) except -1:
    cdef Py_ssize_t i
    cdef PyObject** quick
    if plan.is_ready:
        return 0
    if len(checks) != plan.count:
        checks = (None,) * plan.count
    for check in checks:
        if check is not None and type(check) is not Check:
            raise TypeError("what the registry has as a check is none")
    quick = <PyObject**>PyMem_Malloc((plan.count or 1) * sizeof(PyObject*))
    if quick is NULL:
        raise MemoryError
    for i in range(plan.count):
        check = checks[i]
        quick[i] = NULL
        if check is not None:
            cls = quick_class(<Check>check)
            # A check is the class of nothing: so it never passes at once. Both are kept by it.
            quick[i] = <PyObject*>check if cls is None else <PyObject*>cls
    plan.checks = checks
    plan.quick = quick
    plan.is_ready = True
    return 0
