"""Fields of messages that arrive: which have to come, which fit, and how others are passed over."""

from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM

from rabble._core.buffer_reader cimport (
    BufferReader, beyond, check_length, malformed, read_size, unknown, width_of,
)
from rabble._core.checks cimport Check, fits, misfit
from rabble._core.failure cimport owned, take_failure
from rabble._core.plan cimport CodecBounds, Plan
from rabble._core.texts cimport bounded_str, must_pass, type_name

__all__ = []

# What returns NULL, with its exception pending, instead of raising it.
ctypedef PyObject* (*quiet_default)(PyObject* plan, Py_ssize_t i) noexcept

cdef enum:
    REASON_MAX = 500          # characters of what an exception of the user's says of itself
    NAMES_SHOWN_MAX = 5       # of fields that did not come


cdef str reason_of(object error):
    """What an exception of the user's says of itself, if it can."""
    return f"{type_name(error)}: {bounded_str(error, REASON_MAX)}"


cdef object kind_of(Plan plan):
    if plan.members is not None:
        return "an enum"
    return "a type with functions of its own" if plan.encode is not None else "a message class"


cdef object refuses(BufferReader* r, Plan plan):
    """What to raise for the pending exception, which code of the user's raised for what came."""
    error = take_failure()
    if must_pass(error):
        return error
    refused = unknown(r, f"{plan.name} refuses: {reason_of(error)}")
    refused.__cause__ = error
    return refused


cdef str lacking(Plan plan, Py_ssize_t n):
    """What is said of a message that has too few fields."""
    missing = [plan.fields[i] for i in range(n, plan.count) if plan.defaults[i] is None]
    names = ", ".join(missing[:NAMES_SHOWN_MAX])
    if len(missing) > NAMES_SHOWN_MAX:
        names += ", ..."
    return (
        f"{plan.name} has {plan.count} fields here, but {n} came: there is no default for {names}"
    )


cdef int check_field(BufferReader* r, Plan plan, Py_ssize_t i, object item) except -1:
    check = <object>PyTuple_GET_ITEM(plan.checks, i)
    if not fits(<Check>check, item):
        raise unknown(r, f"{plan.name}.{plan.fields[i]}: {misfit(<Check>check, item)}")
    return 0


cdef object default_of(object plan, Py_ssize_t i):
    is_factory, value = (<Plan>plan).defaults[i]
    return value() if is_factory else value


cdef object default(BufferReader* r, Plan plan, Py_ssize_t i):
    """What a field has that did not come."""
    cdef PyObject* found = (<quiet_default><void*>default_of)(<PyObject*>plan, i)
    if found is NULL:
        raise refuses(r, plan)
    return owned(found)


cdef int skip(CodecBounds bounds, BufferReader* r) except -1:
    """Go over a value, under the same bounds as if it were built.

    What is within an extension is bounded by its length, and not looked at.
    """
    cdef unsigned char tag
    cdef Py_ssize_t _i
    cdef Py_ssize_t n = 0
    cdef Py_ssize_t values = 0    # that this one consists of
    cdef Py_ssize_t size = 0      # bytes that it has besides
    if r.at >= r.end:
        raise malformed(r, "the data ends where a value should begin")
    tag = r.at[0]
    r.at += 1
    if tag < 0x80 or tag >= 0xe0 or tag == 0xc0 or tag == 0xc2 or tag == 0xc3:
        return 0
    if tag == 0xc1:
        raise malformed(r, "0xc1 begins no value of msgpack")
    if tag < 0xa0:
        n = tag & 15
        values = n if tag >= 0x90 else 2 * n
    elif tag < 0xc0:
        size = tag & 31
    elif 0xd4 <= tag <= 0xd8:
        size = (1 << (tag - 0xd4)) + 1
    elif 0xca <= tag <= 0xd3:
        size = width_of(tag)
    else:
        r.at -= 1
        n = read_size(r, width_of(tag))
        if tag >= 0xdc:
            values = n if tag <= 0xdd else 2 * n
        else:
            size = n + 1 if 0xc7 <= tag <= 0xc9 else n
    check_length(r, size)
    r.at += size
    if tag < 0xa0 or tag >= 0xdc:
        enter(bounds, r, n, values)
        for _i in range(values):
            r.owed -= 1
            skip(bounds, r)
        r.depth += 1
    return 0


cdef inline int enter(
    CodecBounds bounds, BufferReader* r, Py_ssize_t n, Py_ssize_t values
) except -1:
    """Go into a container of `n` elements, as the decoder does it but for the memory they take."""
    if values > r.end - r.at - r.owed:
        raise beyond(r, f"{n} elements are announced, {r.end - r.at} bytes are left for all")
    if r.depth == 0:
        raise beyond(r, f"containers are nested deeper than {bounds.depth_max}")
    if n > r.elements:
        raise beyond(r, f"more than {bounds.elements_max} elements in containers")
    r.depth -= 1
    r.elements -= n
    r.owed += values
    return 0
