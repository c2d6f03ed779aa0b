"""What both halves of the codec know: the extension types, and the plans of registered classes."""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc

__all__ = ["Plan"]

cdef extern from *:
    """
    #include <structmember.h>

    /* Where a slot's value lies in an instance; -1 if `descriptor` is no slot. */
    static Py_ssize_t rabble_slot_offset(PyObject *descriptor) {
        PyMemberDef *member;
        if (Py_TYPE(descriptor) != &PyMemberDescr_Type) return -1;
        member = ((PyMemberDescrObject *)descriptor)->d_member;
        return member->type == T_OBJECT_EX ? member->offset : -1;
    }
    """
    Py_ssize_t rabble_slot_offset(object descriptor) noexcept


@cython.final
cdef class Plan:
    """How instances of one registered class are written and built."""

    def __dealloc__(self):
        PyMem_Free(self.offsets)


cdef Plan plan_of(object registry, object cls):
    cdef Plan plan
    cdef bytes name
    registration = registry.registration_of(cls)
    if registration is None:
        return None
    name = registration.name.encode()
    plan = registry.plans_by_name.get(name)
    if plan is None:
        plan = make_plan(registration)
        registry.plans_by_name[name] = plan
    return plan


cdef Plan make_plan(object registration):
    cdef Plan plan = Plan.__new__(Plan)
    cdef Py_ssize_t i
    plan.cls = registration.cls
    plan.name = registration.name
    if registration.members is not None:
        plan.members = {member.value: member for member in registration.members}
        return plan
    plan.fields = tuple(registration.fields)
    plan.count = len(plan.fields)
    slots = [rabble_slot_offset(getattr(plan.cls, name, None)) for name in plan.fields]
    if -1 not in slots:
        plan.offsets = <Py_ssize_t*>PyMem_Malloc((len(slots) or 1) * sizeof(Py_ssize_t))
        if plan.offsets is NULL:
            raise MemoryError
        for i in range(plan.count):
            plan.offsets[i] = slots[i]
    plan.built_by_slots = plan.offsets is not NULL and registration.built_by_slots
    return plan
