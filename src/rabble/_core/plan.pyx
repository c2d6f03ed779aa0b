"""What both halves of the codec know: the extension types, and the plans of registered classes."""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.type cimport PyType_Check

__all__ = ["Plan"]

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

    /* Whether instances come from `object.__new__`, which does no more than take their memory. */
    static int rabble_is_made_plainly(PyObject *cls) {
        return ((PyTypeObject *)cls)->tp_new == PyBaseObject_Type.tp_new;
    }
    """
    Py_ssize_t rabble_slot_offset(object cls, object descriptor) noexcept
    bint rabble_is_made_plainly(object cls) noexcept


@cython.final
cdef class Plan:
    """How instances of one registered class are written and built."""

    def __dealloc__(self):
        PyMem_Free(self.offsets)


cdef Plan plan_of(object registry, object registration):
    cdef bytes name = registration.name.encode()
    found = registry.plans_by_name.get(name)
    if type(found) is not Plan:
        found = make_plan(registration)
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
    plan.fields = tuple(registration.fields)
    plan.count = len(plan.fields)
    slots = [rabble_slot_offset(plan.cls, getattr(plan.cls, name, None)) for name in plan.fields]
    # Two names may be of one slot, which a builder would fill twice.
    if -1 not in slots and len(set(slots)) == len(slots):
        plan.offsets = <Py_ssize_t*>PyMem_Malloc((len(slots) or 1) * sizeof(Py_ssize_t))
        if plan.offsets is NULL:
            raise MemoryError
        for i in range(plan.count):
            plan.offsets[i] = slots[i]
    plan.built_by_slots = (
        plan.offsets is not NULL
        and bool(registration.built_by_slots)
        and rabble_is_made_plainly(plan.cls)
    )
    return plan
