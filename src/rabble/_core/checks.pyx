"""Checks: whether a value that arrived is what the annotation of its field says.

A check is made once from an annotation, by `rabble._annotations`, and knows classes by their
identity and their real bases: what a metaclass or an object says of itself is not asked. A message
within a message was checked where it was built, so a check ends at its class.
"""

cimport cython
from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE

from rabble._core.texts cimport bounded_repr, type_name

__all__ = ["Check"]

cdef extern from "Python.h":
    bint PyType_Check(object value) noexcept
    bint PyType_IsSubtype(PyTypeObject* cls, PyTypeObject* base) noexcept
    bint PyList_Check(object value) noexcept
    bint PyTuple_Check(object value) noexcept
    bint PyDict_Check(object value) noexcept
    bint PyObject_RichCompareBool(object left, object right, int how) except -1
    int Py_EQ

cdef enum:
    GIVEN_CHARS_MAX = 100     # of the value that did not fit
    TEXT_CHARS_MAX = 200      # of an annotation
    SEARCHED_MAX = 8          # values of a literal that are compared one by one

cdef dict KINDS = {
    "instance": KIND_INSTANCE,
    "types": KIND_TYPES,
    "literal": KIND_LITERAL,
    "union": KIND_UNION,
    "items": KIND_ITEMS,
    "places": KIND_PLACES,
    "entries": KIND_ENTRIES,
    "abstract": KIND_ABSTRACT,
}

# What is compared by a literal, whose `==` is none of a user's.
cdef tuple COMPARED = (int, str, bytes, bool, type(None))
# Of these it is known what they are; of another class a user may have said that it is a Sequence.
cdef tuple KNOWN = (
    type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset,
    range,
)


@cython.final
cdef class Check:
    """Whether a value is what an annotation says. Immutable, for any thread.

    :param kind: `instance`, `types`, `literal`, `union`, `items`, `places`, `entries`, `abstract`.
    :param text: what is expected, as an error words it.
    :param base: a class, of `instance` and `items`.
    :param parts: classes of `types` and `abstract`, values of `literal`, checks of `union` and
        `places`, where `None` lets anything pass.
    :param item: the check of each item, or each key of a dict.
    :param entry: the check of each value of a dict.
    :raises TypeError: if these do not go together.
    """

    def __cinit__(
        self, str kind not None, str text not None, *, base=None, tuple parts=(), Check item=None,
        Check entry=None,
    ):
        self.kind = KINDS.get(kind, 0)
        needs_class = self.kind == KIND_INSTANCE or self.kind == KIND_ITEMS
        if self.kind == 0 or needs_class != bool(PyType_Check(base)):
            raise TypeError("Check: a kind and a class that do not go together")
        for part in parts:
            if self.kind == KIND_TYPES or self.kind == KIND_ABSTRACT:
                if not PyType_Check(part):
                    raise TypeError("Check: a part is no class")
            elif self.kind == KIND_UNION or self.kind == KIND_PLACES:
                if not (part is None and self.kind == KIND_PLACES or type(part) is Check):
                    raise TypeError("Check: a part is no check")
        self.cls = base
        self.known = None
        if self.kind == KIND_LITERAL and len(parts) > SEARCHED_MAX:
            compared = [part for part in parts if is_one_of(part, COMPARED)]
            self.known = frozenset([(type(part), part) for part in compared])
            parts = tuple([part for part in parts if not is_one_of(part, COMPARED)])
        self.parts = parts
        self.item = item
        self.entry = entry
        self.text = text[:TEXT_CHARS_MAX]

    def fits(self, value):
        """Whether a value is what is expected. No code of the value's runs."""
        return fits(self, value)

    def misfit(self, value):
        """What of a value does not fit, and what was expected there; `None` if it fits."""
        return None if fits(self, value) else misfit(self, value)


cdef inline bint is_of(object cls, object value) noexcept:
    """`isinstance`, by the real class of the value and its real bases."""
    cdef PyObject* own = RABBLE_CLASS(value)
    return own is <PyObject*>cls or PyType_IsSubtype(<PyTypeObject*>own, <PyTypeObject*>cls)


cdef inline bint is_one_of(object value, tuple classes) noexcept:
    """Whether a value's class is among these; `in` would ask its metaclass, perhaps a user's."""
    cdef Py_ssize_t i
    for i in range(PyTuple_GET_SIZE(classes)):
        if PyTuple_GET_ITEM(classes, i) is RABBLE_CLASS(value):
            return True
    return False


cdef object quick_class(Check check):
    if check.kind == KIND_TYPES:
        return check.parts[0]
    if check.kind == KIND_INSTANCE or (check.kind == KIND_ITEMS and check.item is None):
        return check.cls
    return None


cdef bint fits(Check check, object value) except -1:
    cdef Py_ssize_t i
    cdef int kind = check.kind
    if kind == KIND_INSTANCE:
        return is_of(check.cls, value)
    if kind == KIND_TYPES:
        for i in range(PyTuple_GET_SIZE(check.parts)):
            if is_of(<object>PyTuple_GET_ITEM(check.parts, i), value):
                return True
        return False
    if kind == KIND_UNION:
        for i in range(PyTuple_GET_SIZE(check.parts)):
            if fits(<Check>PyTuple_GET_ITEM(check.parts, i), value):
                return True
        return False
    if kind == KIND_LITERAL:
        if check.known is not None and is_one_of(value, COMPARED):
            return (type(value), value) in check.known
        for i in range(PyTuple_GET_SIZE(check.parts)):
            if is_the(<object>PyTuple_GET_ITEM(check.parts, i), value):
                return True
        return False
    if kind == KIND_ITEMS:
        return is_of(check.cls, value) and (check.item is None or items_fit(check, value))
    if kind == KIND_PLACES:
        if not PyTuple_Check(value) or PyTuple_GET_SIZE(value) != PyTuple_GET_SIZE(check.parts):
            return False
        for i in range(PyTuple_GET_SIZE(check.parts)):
            part = <object>PyTuple_GET_ITEM(check.parts, i)
            if part is not None and not fits(<Check>part, <object>PyTuple_GET_ITEM(value, i)):
                return False
        return True
    if kind == KIND_ENTRIES:
        return PyDict_Check(value) and entries_fit(check, value)
    return fits_abstract(check, value)


cdef bint is_the(object wanted, object value) except -1:
    if value is wanted:
        return True
    if type(value) is not type(wanted) or not is_one_of(value, COMPARED):
        return False
    return PyObject_RichCompareBool(value, wanted, Py_EQ)


cdef bint items_fit(Check check, object value) except -1:
    cdef Py_ssize_t i = 0
    if PyList_Check(value):
        while i < PyList_GET_SIZE(value):
            if not fits(check.item, <object>PyList_GET_ITEM(value, i)):
                return False
            i += 1
        return True
    if PyTuple_Check(value):
        for i in range(PyTuple_GET_SIZE(value)):
            if not fits(check.item, <object>PyTuple_GET_ITEM(value, i)):
                return False
        return True
    if type(value) is dict:
        return entries_fit(check, value)
    # A subclass of a user's may iterate as it likes.
    if is_one_of(value, KNOWN):
        for item in value:
            if not fits(check.item, item):
                return False
    return True


cdef bint entries_fit(Check check, object value) except -1:
    cdef PyObject* key
    cdef PyObject* entry
    cdef Py_ssize_t place = 0
    if check.item is None and check.entry is None:
        return True
    while PyDict_Next(value, &place, &key, &entry):
        if check.item is not None and not fits(check.item, <object>key):
            return False
        if check.entry is not None and not fits(check.entry, <object>entry):
            return False
    return True


cdef bint fits_abstract(Check check, object value) except -1:
    cdef Py_ssize_t i
    for i in range(PyTuple_GET_SIZE(check.parts)):
        if is_of(<object>PyTuple_GET_ITEM(check.parts, i), value):
            if PyDict_Check(value):
                return entries_fit(check, value)
            return check.item is None or items_fit(check, value)
    return not is_one_of(value, KNOWN)


cdef str misfit(Check check, object value):
    cdef list path = []
    while True:
        found = first_misfit(check, value)
        if found is None:
            break
        step, check, value = found
        path.append(step)
    where = "".join(path)
    where = f" at {where.lstrip()[:GIVEN_CHARS_MAX]}" if where else ""
    return f"expected {check.text}{where}, but {given(value)} came"


cdef object first_misfit(Check check, object value):
    """The part of a container that does not fit: how it is reached, its check, and itself."""
    cdef Py_ssize_t n = 0
    if check.kind == KIND_PLACES:
        if PyTuple_Check(value) and PyTuple_GET_SIZE(value) == PyTuple_GET_SIZE(check.parts):
            for n in range(PyTuple_GET_SIZE(value)):
                part = check.parts[n]
                item = <object>PyTuple_GET_ITEM(value, n)
                if part is not None and not fits(part, item):
                    return f"[{n}]", part, item
        return None
    if check.kind == KIND_ITEMS:
        if not is_of(check.cls, value):
            return None
    elif check.kind == KIND_ABSTRACT:
        if not is_one_of(value, check.parts):
            return None
    elif check.kind != KIND_ENTRIES or type(value) is not dict:
        return None
    if type(value) is dict:
        for key, entry in (<dict>value).items():
            if check.item is not None and not fits(check.item, key):
                return " a key", check.item, key
            if check.entry is not None and not fits(check.entry, entry):
                return f"[{brief(key)}]", check.entry, entry
        return None
    if check.item is None or not is_one_of(value, KNOWN):
        return None
    for item in value:
        if not fits(check.item, item):
            if type(value) is set or type(value) is frozenset:
                return " an element", check.item, item
            return f"[{n}]", check.item, item
        n += 1
    return None


cdef str brief(object value):
    """A plain value; of any other its type, as its own `__repr__` is a user's."""
    cls = type(value)
    if cls is str or cls is bytes or cls is int or cls is float or cls is bool or value is None:
        return bounded_repr(value, GIVEN_CHARS_MAX)
    return type_name(value)


cdef str given(object value):
    cls = type(value)
    if value is None:
        return "None"
    name = type_name(value)
    article = "an" if name[:1] in "AEIOUaeiou" else "a"
    if cls is str or cls is bytes or cls is int or cls is float or cls is bool:
        return f"{article} {name} ({brief(value)})"
    if cls is list or cls is tuple or cls is set or cls is frozenset or cls is dict:
        return f"{article} {name} of {len(value)}"
    return f"{article} {name}"
