"""Names: `NodeId`, `Pid` and `CorrelationId`, immutable values checked where they enter."""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport Py_EQ, Py_GT, Py_LE, Py_LT, Py_NE
from cpython.unicode cimport PyUnicode_Check

import ipaddress
import unicodedata

from rabble._core.texts cimport bounded_repr, type_name

__all__ = [
    "CorrelationId",
    "HOST_CHARS_MAX",
    "NAME_BYTES_MAX",
    "NodeId",
    "Pid",
    "RESERVED_GROUP",
    "host_problem",
    "misleading",
]

NAME_BYTES_MAX = 255
#: Of a host's name in ASCII (RFC 1035, 2.3.4), and of what stands between two of its dots.
HOST_CHARS_MAX = 253

cdef enum:
    LABEL_CHARS_MAX = 63

cdef str RESERVED = "rabble"
#: The group of the pids that are the node's own: executor, calls, spawner.
RESERVED_GROUP = RESERVED

# Characters that are not shown, besides those of category Cf: the Default_Ignorable_Code_Points of
# Unicode, and the blank of Braille.
cdef object INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
) | frozenset(map(chr, (*range(0xfe00, 0xfe10), *range(0xe0100, 0xe01f0))))
# Scripts of which a word may have several, and Latin besides.
cdef object EAST_ASIAN = frozenset((
    "BOPOMOFO", "CJK", "HANGUL", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA", "KATAKANA-HIRAGANA",
))
# Scripts some of whose everyday letters Unicode has as compatibility characters.
cdef object COMPOSED = frozenset(("ARMENIAN", "LAO", "THAI", "TIBETAN"))

cdef extern from "Python.h":
    str PyUnicode_FromObject(object value)

cdef extern from *:
    """
    /* The same fields as CorrelationId, as its .pxd has them: checked when the module is loaded. */
    typedef struct {
        PyObject_HEAD
        PyObject *pid, *connection, *request;
        Py_hash_t hash_value;
        PyObject *asked;
    } rabble_correlation;

    #if CYTHON_USE_FREELISTS
    #define RABBLE_FREE_MAX 256
    static PyObject *rabble_free[RABBLE_FREE_MAX];
    static int rabble_free_count = 0;
    #endif

    static PyObject *rabble_correlation_id(PyObject *type, PyObject *pid, PyObject *connection,
                                           long long request, Py_hash_t hash_value) {
        rabble_correlation *made;
        PyObject *number = PyLong_FromLongLong(request);
        if (number == NULL) return NULL;
    #if CYTHON_USE_FREELISTS
        if (rabble_free_count > 0) {
            made = (rabble_correlation *)rabble_free[--rabble_free_count];
            Py_SET_REFCNT((PyObject *)made, 1);
        } else
    #endif
        made = (rabble_correlation *)((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, 0);
        if (made == NULL) {
            Py_DECREF(number);
            return NULL;
        }
        made->asked = NULL;
        Py_INCREF(pid);
        Py_INCREF(connection);
        made->pid = pid;
        made->connection = connection;
        made->request = number;
        made->hash_value = hash_value;
        return (PyObject *)made;
    }
    /* What it refers to are names and numbers: nobody's code runs. */
    static void rabble_drop_id(PyObject *self) {
        rabble_correlation *fields = (rabble_correlation *)self;
        /* One that was refused when it was made has not all of them. */
        Py_XDECREF(fields->pid);
        Py_XDECREF(fields->connection);
        Py_XDECREF(fields->request);
    #if CYTHON_USE_FREELISTS
        if (rabble_free_count < RABBLE_FREE_MAX) {
            rabble_free[rabble_free_count++] = self;
            return;
        }
    #endif
        Py_TYPE(self)->tp_free(self);
    }
    static int rabble_set_up(PyObject *type) {
        ((PyTypeObject *)type)->tp_dealloc = rabble_drop_id;
        return ((PyTypeObject *)type)->tp_basicsize == (Py_ssize_t)sizeof(rabble_correlation);
    }
    /* Of an int that is not negative. */
    #ifdef PyHASH_MODULUS
    #define RABBLE_HASH_OF(number) ((Py_hash_t)((size_t)(number) % PyHASH_MODULUS))
    #else
    #define RABBLE_HASH_OF(number) ((Py_hash_t)((size_t)(number) % _PyHASH_MODULUS))
    #endif
    """
    CorrelationId rabble_correlation_id(
        object cls, object pid, object connection, long long request, Py_hash_t hash_value
    )
    Py_hash_t hash_of "RABBLE_HASH_OF" (int64_t number) noexcept
    bint rabble_set_up(object cls) noexcept

cdef inline bint is_plain_ascii(str text) noexcept:
    """Whether every character is printable ASCII that separates nothing: the common case."""
    cdef Py_UCS4 c
    for c in text:
        if c < 0x21 or c > 0x7e or c == u":" or c == u"@":
            return False
    return True


cdef str exact_str(object value, str what):
    """The text of a str, as a str and no subclass, whose methods could say anything."""
    if type(value) is str:
        return <str>value
    if not PyUnicode_Check(value):
        raise TypeError(
            f"{what} must be a str, not {type_name(value)}: {bounded_repr(value, 80)}"
        )
    return PyUnicode_FromObject(value)


cdef Py_ssize_t utf8_size(str text) noexcept:
    """How many bytes it takes; -1 if it has lone surrogates."""
    cdef Py_UCS4 c
    cdef Py_ssize_t size = 0
    for c in text:
        if 0xd800 <= c <= 0xdfff:
            return -1
        size += 1 if c < 0x80 else 2 if c < 0x800 else 3 if c < 0x10000 else 4
    return size


def misleading(text):
    """How a name pretends to be another one, or hides something; `None` if it does not.

    Not seen are names of one script that look like one of another script, such as five Cyrillic
    letters that read "apple", and characters that are alike within a script, as l, I and 1 are.
    """
    if text.startswith(" ") or text.endswith(" "):
        return "it begins or ends with a space"
    if text.isascii():
        return None
    scripts = set()
    for c in text:
        category = unicodedata.category(c)
        if category == "Cf" or c in INVISIBLE:
            return f"it has U+{ord(c):04X}, which is not shown, or changes the direction of text"
        if category == "Zs" and c != " ":
            return f"it has U+{ord(c):04X}, a space other than the usual one"
        if category[0] != "L" and category != "Nd":
            continue
        script = unicodedata.name(c, "").partition(" ")[0]
        if unicodedata.decomposition(c).startswith("<") and script not in COMPOSED:
            plain = unicodedata.normalize("NFKC", c)
            return f"it has U+{ord(c):04X}, which looks like {ascii(plain)}: write that"
        if category != "Nd":
            scripts.add("CJK" if script in EAST_ASIAN else script)
    if len(scripts) > 1 and scripts != {"CJK", "LATIN"}:
        words = " and ".join(sorted(scripts)[:3])
        return f"it has letters of several scripts, {words}, some of which look alike"
    return None


cdef str checked_name(object value, str what):
    cdef str text = exact_str(value, what)
    cdef Py_ssize_t length = len(text)
    cdef Py_ssize_t size
    if 0 < length <= 255 and is_plain_ascii(text):
        return text
    problem = None
    if length == 0:
        problem = "it is empty"
    elif length > 4 * NAME_BYTES_MAX:
        # Not looked at any further, however long it is.
        problem = f"it has {length} characters, at most {NAME_BYTES_MAX} bytes are allowed"
    elif "::" in text or text.startswith(":") or text.endswith(":"):
        problem = "it has '::' in it, or ':' at an end, which separates the parts of a pid"
    elif "@" in text:
        problem = "it has '@' in it, which separates a node's name from its address"
    else:
        size = utf8_size(text)
        if size < 0:
            problem = "it has lone surrogates, which UTF-8 does not carry"
        if problem is None and size > NAME_BYTES_MAX:
            problem = f"it takes {size} bytes of UTF-8, at most {NAME_BYTES_MAX} are allowed"
        if problem is None and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
            problem = "it has control characters"
        if problem is None and not unicodedata.is_normalized("NFC", text):
            problem = "it is not in Unicode normal form C (use unicodedata.normalize('NFC', name))"
        if problem is None:
            problem = misleading(text)
    if problem is not None:
        raise ValueError(f"{what} {ascii(shortened(text))} is not usable: {problem}")
    return text


cdef str shortened(str text):
    return text if len(text) <= 80 else text[:77] + "..."


def host_problem(str host not None):
    """Why this can be no host: a name in ASCII, an IPv4 address, or an IPv6 one in brackets.

    `socket.getaddrinfo` raises no OSError, but UnicodeError, for a name with an empty or too long
    label: such a name must not come as far as that.

    :returns: the reason, or `None`. A name that passes need not be anybody's.
    """
    cdef Py_UCS4 c
    cdef Py_ssize_t label = 0
    if host.startswith("["):
        try:
            if host.endswith("]"):
                ipaddress.IPv6Address(host[1 : len(host) - 1])
                return None
        except ValueError:
            pass
        return "what is in brackets is no IPv6 address"
    if not host or len(host) > HOST_CHARS_MAX:
        return f"the host has {len(host)} characters, 1 to {HOST_CHARS_MAX} are allowed"
    for c in host:
        if c == u"[" or c == u"]":
            return "the host has a bracket in it: an IPv6 address has two, around it"
        if c != u".":
            label += 1
            if label > LABEL_CHARS_MAX:
                return f"the host has more than {LABEL_CHARS_MAX} characters between two dots"
        elif label == 0:
            return "the host has a dot in front, or two in a row"
        else:
            label = 0
    return None


cdef str checked_addr(object value):
    cdef str text = exact_str(value, "address")
    shown = ascii(shortened(text))
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"address {shown} is not usable: write it as 'host:port'")
    if len(text) > NAME_BYTES_MAX or not text.isascii() or not text.isprintable():
        raise ValueError(
            f"address {shown} is not usable: at most {NAME_BYTES_MAX} printable ASCII characters"
        )
    if "@" in host or " " in host:
        raise ValueError(f"address {shown} is not usable: the host has '@' or a space in it")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"address {shown} is not usable: write an IPv6 host as '[::1]:port'")
    if not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"address {shown} is not usable: the port must be 0 to 65535")
    problem = host_problem(host)
    if problem is not None:
        raise ValueError(f"address {shown} is not usable: {problem}")
    return text


cdef object checked_number(object value, str what):
    if value is None:
        return None
    if type(value) is not int:
        raise TypeError(
            f"{what} must be an int or None, not {type_name(value)}: {bounded_repr(value, 80)}"
        )
    cdef int overflow = 0
    if PyLong_AsLongLongAndOverflow(value, &overflow) < 0 or overflow:
        raise ValueError(f"{what} must be 0 to 2**63 - 1, not {bounded_repr(value, 80)}")
    return value


cdef inline Py_hash_t mixed(Py_hash_t a, Py_hash_t b) noexcept:
    """Combine two hashes (boost's hash_combine), never the -1 that means an error."""
    cdef Py_hash_t h = <Py_hash_t>(
        <size_t>a ^ (<size_t>b + 0x9e3779b97f4a7c15ULL + (<size_t>a << 6) + (<size_t>a >> 2))
    )
    return -2 if h == -1 else h


cdef object ordered(object left, object right, int op):
    if op == Py_LT:
        return left < right
    if op == Py_LE:
        return left <= right
    if op == Py_GT:
        return left > right
    return left >= right


cdef bint same_node(NodeId a, NodeId b) noexcept:
    return a is b or (
        a.hash_value == b.hash_value and a.name == b.name and a.addr == b.addr
    )


cdef bint same_pid(Pid a, Pid b) noexcept:
    """Whether two pids name the same process."""
    return a is b or (
        a.hash_value == b.hash_value
        and a.name == b.name
        and a.group == b.group
        and same_node(a.node, b.node)
    )


cdef bint is_reserved(Pid pid) noexcept:
    return pid.group is not None and pid.group == RESERVED


# None of these three is seen by the garbage collector, and none can be part of a cycle: what they
# refer to is of exactly str, int and each other's classes, which refer to nothing else. Neither can
# they be nested: a chain of them ends after three.
@cython.final
@cython.no_gc
cdef class NodeId:
    """The name of a node: a value, safe to share between threads.

    :param name: 1 to 255 bytes of UTF-8 in normal form C, without control characters, `::` or `@`;
        without spaces at its ends, and whatever else is not shown or looks like another letter.
    :param addr: `host:port`, an IPv6 host in brackets, where peers reach the node. A name has at
        most 253 characters, 63 between two dots, and no dot in front or behind another.
    :raises ValueError: says which part is wrong, and why.

    Its text form is `name@host:port`.
    """

    __match_args__ = ("name", "addr")

    def __cinit__(self, name not None, addr not None):
        self.name = checked_name(name, "node name")
        self.addr = checked_addr(addr)
        self.hash_value = mixed(hash(self.name), hash(self.addr))

    @staticmethod
    def parse(text):
        """Read the text form, `name@host:port`. Raises `ValueError` if it is not one."""
        text = exact_str(text, "a node id's text")
        name, at, addr = text.partition("@")
        if not at:
            raise ValueError(
                f"{ascii(shortened(text))} is no node id: write it as 'name@host:port'"
            )
        return NodeId(name, addr)

    def __str__(self):
        return f"{self.name}@{self.addr}"

    def __repr__(self):
        return f"NodeId({self.name!r}, {self.addr!r})"

    def __hash__(self):
        return self.hash_value

    def __richcmp__(self, other, int op):
        if type(other) is not NodeId:
            return NotImplemented
        if op == Py_EQ:
            return same_node(self, <NodeId>other)
        if op == Py_NE:
            return not same_node(self, <NodeId>other)
        return ordered((self.name, self.addr), (other.name, other.addr), op)

    def __reduce__(self):
        return NodeId, (self.name, self.addr)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Pid:
    """The name of a process or service: a value, safe to share between threads.

    :param name: checked as a node's name is.
    :param node: the `NodeId` it lives on.
    :param group: the tenant it belongs to, or `None`.
    :raises ValueError: says which part is wrong, and why.

    Its text form is `name::node`, or `group::name::node`.
    """

    __match_args__ = ("name", "node", "group")

    def __cinit__(self, name not None, NodeId node not None, group=None):
        self.name = checked_name(name, "process name")
        self.node = node
        self.hash_value = mixed(hash(self.name), node.hash_value)
        if group is not None:
            self.group = checked_name(group, "group")
            self.hash_value = mixed(self.hash_value, hash(self.group))

    @staticmethod
    def parse(text):
        """Read the text form, `name::node` or `group::name::node`, or raise `ValueError`."""
        text = exact_str(text, "a pid's text")
        # The node's own address may hold '::' (an IPv6 host), so only what is in front of its '@'
        # is split.
        head, at, addr = text.partition("@")
        parts = head.split("::")
        if not at or not 2 <= len(parts) <= 3:
            raise ValueError(
                f"{ascii(shortened(text))} is no pid: write it as 'name::node@host:port' "
                f"or 'group::name::node@host:port'"
            )
        *group, name, node_name = parts
        return Pid(name, NodeId(node_name, addr), group[0] if group else None)

    def __str__(self):
        if self.group is None:
            return f"{self.name}::{self.node}"
        return f"{self.group}::{self.name}::{self.node}"

    def __repr__(self):
        if self.group is None:
            return f"Pid({self.name!r}, {self.node!r})"
        return f"Pid({self.name!r}, {self.node!r}, {self.group!r})"

    def __hash__(self):
        return self.hash_value

    def __richcmp__(self, other, int op):
        if type(other) is not Pid:
            return NotImplemented
        if op == Py_EQ:
            return same_pid(self, <Pid>other)
        if op == Py_NE:
            return not same_pid(self, <Pid>other)
        # A pid without a group comes before all with one.
        return ordered(
            (self.node, self.group is not None, self.group or "", self.name),
            (other.node, other.group is not None, other.group or "", other.name),
            op,
        )

    def __reduce__(self):
        return Pid, (self.name, self.node, self.group)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


# Made and dropped for each request, by functions of its own with a free list, as envelopes are.
@cython.final
@cython.no_gc
cdef class CorrelationId:
    """Matches a reply to its request, and to the client connection it came from.

    :param pid: who asked.
    :param connection: number of the client connection, 0 to 2**63 - 1, or `None`.
    :param request: number of the request, 0 to 2**63 - 1, or `None`.

    A value, safe to share between threads.
    """

    __match_args__ = ("pid", "connection", "request")

    def __cinit__(self, Pid pid not None, connection=None, request=None):
        self.pid = pid
        self.connection = checked_number(connection, "connection")
        self.request = checked_number(request, "request")
        self.hash_value = mixed(
            mixed(pid.hash_value, hash(self.connection)), hash(self.request)
        )

    def next_request(self):
        """The correlation id of the asker's next request: 0 after none, else one higher.

        :raises ValueError: after 2**63 - 1, which is the last one.
        """
        return CorrelationId(
            self.pid, self.connection, 0 if self.request is None else self.request + 1
        )

    def __repr__(self):
        return f"CorrelationId({self.pid!r}, {self.connection!r}, {self.request!r})"

    def __hash__(self):
        return self.hash_value

    def __richcmp__(self, other, int op):
        if type(other) is not CorrelationId:
            return NotImplemented
        cdef CorrelationId that = other
        if op == Py_EQ or op == Py_NE:
            same = (
                self.hash_value == that.hash_value
                and same_pid(self.pid, that.pid)
                and self.connection == that.connection
                and self.request == that.request
            )
            return same if op == Py_EQ else not same
        return ordered(
            (self.pid, optional_key(self.connection), optional_key(self.request)),
            (that.pid, optional_key(that.connection), optional_key(that.request)),
            op,
        )

    def __reduce__(self):
        return CorrelationId, (self.pid, self.connection, self.request)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


if not rabble_set_up(CorrelationId):
    raise ImportError("rabble._core.ids: the fields of CorrelationId lie elsewhere than here")


cdef CorrelationId new_correlation_id(Pid pid, object connection, int64_t request):
    cdef Py_hash_t hash_value = mixed(mixed(pid.hash_value, hash(connection)), hash_of(request))
    return rabble_correlation_id(CorrelationId, pid, connection, request, hash_value)


cdef object optional_key(object number):
    """A sort key that puts `None` before every number."""
    return -1 if number is None else number
