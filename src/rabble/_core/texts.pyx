"""Texts of objects that users made: bounded, and no failure of the caller.

A user's `__str__` may raise anything, SystemExit too, and what it returns may be huge. So no error
and no log of the runtime words such an object but by these functions, which return a text whatever
happens. Only what is not the object's own passes: `Interrupted`, and a KeyboardInterrupt in the
main thread, which is the user's who presses Ctrl-C.

Where Python lets one, a text is bounded before it is made: of a str, bytes, int or container, and
of an exception whose class has no `__str__` of its own, only the beginning is worded. What a
class's own method makes is cut, which does not take back the time that it took.
"""

from cpython.object cimport PyObject
import threading

from rabble._core.errors import Interrupted, RabbleError
from rabble._core.failure cimport PyErr_GivenExceptionMatches, owned, take_failure

__all__ = ["bounded_repr", "bounded_str", "given", "must_pass", "type_name"]

cdef extern from *:
    """
    #include <string.h>

    #define RABBLE_NAME_BYTES_MAX 200

    static PyObject *rabble_type_name(PyObject *value, PyObject *fallback) {
        const char *name = Py_TYPE(value)->tp_name;
        const char *dot = strrchr(name, '.');
        PyObject *text;
        if (dot != NULL) name = dot + 1;
        /* Of a character that is cut in two nothing is left. */
        text = PyUnicode_DecodeUTF8(name, strnlen(name, RABBLE_NAME_BYTES_MAX), "ignore");
        if (text == NULL) {
            PyErr_Clear();
            Py_INCREF(fallback);
            text = fallback;
        }
        return text;
    }

    /* An exception whose class leaves its text to BaseException, which words `args`. */
    static inline int rabble_is_plain_error(PyObject *value, int as_repr) {
        PyTypeObject *base = (PyTypeObject *)PyExc_BaseException;
        if (!PyExceptionInstance_Check(value)) return 0;
        return as_repr ? Py_TYPE(value)->tp_repr == base->tp_repr
                       : Py_TYPE(value)->tp_str == base->tp_str;
    }

    /* KeyError's own text is the repr of its key. */
    static inline int rabble_is_key_error(PyObject *value, int as_repr) {
        return !as_repr && PyExceptionInstance_Check(value)
            && Py_TYPE(value)->tp_str == ((PyTypeObject *)PyExc_KeyError)->tp_str;
    }

    static inline PyObject *rabble_args(PyObject *error) {
        PyObject *args = ((PyBaseExceptionObject *)error)->args;
        if (args == NULL) return PyTuple_New(0);
        Py_INCREF(args);
        return args;
    }
    """
    str rabble_type_name(object value, str fallback)
    bint rabble_is_plain_error(object value, bint as_repr) noexcept
    bint rabble_is_key_error(object value, bint as_repr) noexcept
    tuple rabble_args(object error)

cdef extern from "Python.h":
    # These also return what only is a subclass of str.
    object PyObject_Str(object value)
    object PyObject_Repr(object value)
    # ... of which this makes a str.
    str PyUnicode_Substring(object text, Py_ssize_t start, Py_ssize_t end)
    Py_ssize_t PyUnicode_GetLength(object text) except -1

cdef enum:
    DEPTH_MAX = 8           # how deep what is in containers is worded
    INT_BITS_MAX = 2048     # of a longer int only its length is said

# Made once, so that they are there when memory is not.
cdef str NO_NAME = "object"
cdef str NO_TEXT = "an object whose text could not be made"

# A function that returns NULL, with its exception pending, instead of raising it.
ctypedef PyObject* (*quiet_words)(PyObject* value, Py_ssize_t most, bint as_repr) noexcept
ctypedef PyObject* (*quiet_excuse)(PyObject* value, PyObject* error, bint as_repr) noexcept


cpdef str type_name(object value):
    """The name of an object's type, without its module, of 200 bytes at most."""
    return rabble_type_name(value, NO_NAME)


cpdef str bounded_str(object value, Py_ssize_t most):
    """`str(value)`, cut to `most` characters; what is wrong with it if there is none."""
    return guarded(value, most, False)


cpdef str bounded_repr(object value, Py_ssize_t most):
    """`repr(value)`, cut to `most` characters; what is wrong with it if there is none."""
    return guarded(value, most, True)


cdef str guarded(object value, Py_ssize_t most, bint as_repr):
    cdef PyObject* text = (<quiet_words><void*>top_words)(<PyObject*>value, most, as_repr)
    if text is not NULL:
        return <str>owned(text)
    error = take_failure()
    if must_pass(error):
        raise error
    text = (<quiet_excuse><void*>excuse)(<PyObject*>value, <PyObject*>error, as_repr)
    if text is not NULL:
        return <str>owned(text)
    error = take_failure()
    if must_pass(error):
        raise error
    return NO_TEXT


cpdef bint must_pass(object error) noexcept:
    """Whether an exception interrupts the thread, whatever code it came from."""
    if PyErr_GivenExceptionMatches(error, Interrupted):
        return True
    if not PyErr_GivenExceptionMatches(error, KeyboardInterrupt):
        return False
    return threading.get_ident() == threading.main_thread().ident


cdef str excuse(object value, object error, bint as_repr):
    what = "repr" if as_repr else "str"
    return f"{with_article(type_name(value))} whose {what} raises {type_name(error)}"


cdef str with_article(str name):
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


cdef str top_words(object value, Py_ssize_t most, bint as_repr):
    most = max(most, 0)
    return cut(words(value, most, as_repr, DEPTH_MAX), most)


cdef str cut(str text, Py_ssize_t most):
    if PyUnicode_GetLength(text) <= most:
        return text
    if most <= 3:
        return PyUnicode_Substring(text, 0, most)
    return PyUnicode_Substring(text, 0, most - 3) + "..."


cdef str words(object value, Py_ssize_t most, bint as_repr, int depth):
    """The text, or a beginning of it that is longer than `most`."""
    cdef Py_ssize_t size
    cls = type(value)
    if cls is str:
        size = len(<str>value)
        if size > most:
            # One more than wanted: so who cuts it sees that there is more.
            value = PyUnicode_Substring(value, 0, most + 1)
        return repr(value) if as_repr else <str>value
    if cls is bytes:
        return repr((<bytes>value)[:most + 1] if len(<bytes>value) > most else value)
    if cls is bytearray:
        return repr((<bytearray>value)[:most + 1])
    if cls is int:
        size = value.bit_length()
        return str(value) if size <= INT_BITS_MAX else f"<an int of {size} bits>"
    if cls is list or cls is tuple or cls is set or cls is frozenset or cls is dict:
        return container_words(value, most, depth)
    if rabble_is_plain_error(value, as_repr) or rabble_is_key_error(value, as_repr):
        if depth == 0:
            return "..."
        args = rabble_args(value)
        if as_repr:
            text = container_words(args, most, depth - 1)
            if text.endswith(",)"):
                text = text[:len(text) - 2] + ")"
            return type_name(value) + text
        if len(args) == 0:
            return ""
        as_repr = rabble_is_key_error(value, False)
        return words(args[0] if len(args) == 1 else args, most, as_repr, depth - 1)
    text = PyObject_Repr(value) if as_repr else PyObject_Str(value)
    return PyUnicode_Substring(text, 0, min(PyUnicode_GetLength(text), most + 1))


cdef str container_words(object value, Py_ssize_t most, int depth):
    """A list, tuple, set, frozenset or dict, of which no more elements are looked at than shown."""
    cdef Py_ssize_t size = 0
    cdef list parts = []
    cdef str part
    cls = type(value)
    if not value and (cls is set or cls is frozenset):
        return f"{cls.__name__}()"
    # A copy would be as long as it; one that grows meanwhile says so, or shows what has come.
    for item in (<dict>value).items() if cls is dict else value:
        if depth == 0 or size > most:
            parts.append("...")
            break
        if cls is dict:
            part = (
                f"{words(item[0], most - size, True, depth - 1)}: "
                f"{words(item[1], most - size, True, depth - 1)}"
            )
        else:
            part = words(item, most - size, True, depth - 1)
        size += len(part) + 2
        parts.append(part)
    inside = ", ".join(parts)
    if cls is list:
        return f"[{inside}]"
    if cls is tuple:
        return f"({inside},)" if len(parts) == 1 else f"({inside})"
    if cls is frozenset:
        return "frozenset({" + inside + "})"
    return "{" + inside + "}"


cdef enum:
    DETAIL_CHARS_MAX = 500

# Made once: there when memory is not.
cdef str NO_WORDS = "an exception for whose text there was no memory"

ctypedef PyObject* (*quiet_description)(PyObject* error) noexcept


cdef object described(object error):
    cdef PyObject* text = (<quiet_description><void*>description)(<PyObject*>error)
    if text is NULL:
        take_failure()
        return NO_WORDS
    return owned(text)


cdef str failure_text(object error):
    if PyErr_GivenExceptionMatches(error, RabbleError):
        return bounded_str(error, DETAIL_CHARS_MAX)
    return <str>described(error)


cdef object description(object error):
    return f"{type_name(error)}: {bounded_str(error, DETAIL_CHARS_MAX)}"


cdef enum:
    ARGUMENT_CHARS_MAX = 100


cpdef str given(object value):
    """What a caller gave, with its type, as an error says it: `the str 'counter'`, or `None`."""
    if value is None:
        return "None"
    return f"the {type_name(value)} {bounded_repr(value, ARGUMENT_CHARS_MAX)}"


cdef object not_a_pid(str what, str wanted, object value):
    if type(value) is not str:
        advice = "what node.spawn and node.pid return is one"
    elif "@" in <str>value:
        advice = f"write Pid.parse({bounded_repr(value, ARGUMENT_CHARS_MAX)})"
    else:
        advice = f"write node.pid({bounded_repr(value, ARGUMENT_CHARS_MAX)})"
    return TypeError(f"{what} must be a {wanted}, not {given(value)}; {advice}")


cdef object not_a_correlation_id(str what, str wanted, object value):
    return TypeError(
        f"{what} must be a {wanted}, not {given(value)}; write CorrelationId(pid, request=1), "
        f"or pass on the one that receive was given"
    )
