"""Lives: the beginning and the end of processes and services.

A life is what an `Entry` stands for: one run of a process under a name, from its spawn until it
stops or crashes; its successor under the same name is another. Any thread may begin one; only the
executor's ends one.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.limits cimport UINT_MAX

from rabble._core.dispatch cimport (
    DEAD_LETTERS,
    INBOX,
    NODES,
    PROCESS,
    Entry,
    EntryKind,
    MailboxLimit,
)
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport Pid
from rabble._core.inbox cimport Inbox
from rabble._core.links cimport end_links, exits_of
from rabble._core.pid_slots cimport PidSet, PidSlots, drop_slots, next_item
from rabble._core.texts cimport bounded_repr, given as words_of, type_name

from functools import partial
from types import FunctionType

from rabble._core.messages import Down

__all__ = []

cdef enum:
    HIGH_PART = 4              # of what a mailbox holds: from there on its filling is of interest,
    HIGH_LEAST = 10            # ... unless it holds fewer than so many

cdef extern from *:
    """
    #include <structmember.h>
    /* -1 if it is no slot of that class for an object. */
    static Py_ssize_t rabble_member_offset(PyObject *type, PyObject *member) {
        PyMemberDescrObject *slot = (PyMemberDescrObject *)member;
        if (!PyType_Check(type) || Py_TYPE(member) != &PyMemberDescr_Type) return -1;
        if (!PyType_IsSubtype((PyTypeObject *)type, PyDescr_TYPE(member))) return -1;
        return slot->d_member->type == T_OBJECT_EX ? slot->d_member->offset : -1;
    }
    #define RABBLE_IS_INSTANCE(object, type) \
        PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)(type))
    """
    Py_ssize_t member_offset "rabble_member_offset"(object cls, object member) noexcept
    # By the layout itself: `isinstance` believes what an object says of its class.
    bint RABBLE_IS_INSTANCE(object value, object cls) noexcept

cdef extern from *:
    """
    enum { RABBLE_FITS, RABBLE_ASYNC, RABBLE_TOO_FEW, RABBLE_TOO_MANY, RABBLE_KEYWORDS };

    /* Whether a plain function can be called with so many positional arguments, and answers at
       once. What `inspect.signature` would say, without its objects; and nothing of what a
       decorator claims, for it is the function itself that is called. */
    static inline int rabble_fit(PyObject *function, Py_ssize_t given) {
        PyFunctionObject *fields = (PyFunctionObject *)function;
        PyCodeObject *code = (PyCodeObject *)fields->func_code;
        Py_ssize_t i, optional = 0;
        PyObject *varnames, *name, *defaults;
        int fit;
        if (code->co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR))
            return RABBLE_ASYNC;
        if (given > code->co_argcount && !(code->co_flags & CO_VARARGS)) return RABBLE_TOO_FEW;
        if (fields->func_defaults != NULL && PyTuple_Check(fields->func_defaults))
            optional = PyTuple_GET_SIZE(fields->func_defaults);
        if (given < code->co_argcount - optional) return RABBLE_TOO_MANY;
        if (code->co_kwonlyargcount == 0) return RABBLE_FITS;
        if (fields->func_kwdefaults == NULL) return RABBLE_KEYWORDS;
        /* Held: a key with an __eq__ of its own may give the function others of both. */
        Py_INCREF(code);
        defaults = Py_NewRef(fields->func_kwdefaults);
        fit = RABBLE_FITS;
        varnames = PyCode_GetVarnames(code);
        if (varnames == NULL) PyErr_Clear();
        for (i = 0; varnames != NULL && i < code->co_kwonlyargcount; i++) {
            name = PyTuple_GET_ITEM(varnames, code->co_argcount + i);
            if (PyDict_GetItemWithError(defaults, name) == NULL) {
                PyErr_Clear();
                fit = RABBLE_KEYWORDS;
                break;
            }
        }
        Py_XDECREF(varnames);
        Py_DECREF(defaults);
        Py_DECREF(code);
        return fit;
    }

    /* What a class, or one it inherits from, has under a name: without asking anybody. */
    #define RABBLE_IN_CLASS(object, name) ((PyObject *)_PyType_Lookup(Py_TYPE(object), name))
    """
    int RABBLE_FITS, RABBLE_ASYNC, RABBLE_TOO_FEW, RABBLE_TOO_MANY, RABBLE_KEYWORDS
    int rabble_fit(object function, Py_ssize_t given) noexcept
    PyObject* RABBLE_IN_CLASS(object value, object name) noexcept

cdef extern from "Python.h":
    bint PyType_Check(object value) noexcept
    bint PyType_IsSubtype(type value, type base) noexcept
    bint PyMethod_Check(object obj) noexcept
    PyObject* PyMethod_GET_FUNCTION(object method) noexcept
    PyObject* PyMethod_GET_SELF(object method) noexcept
    bint PyObject_GC_IsTracked(PyObject* obj) noexcept
    void PyObject_GC_Track(PyObject* obj) noexcept
    void PyObject_GC_UnTrack(PyObject* obj) noexcept


@cython.final
cdef class Lives:
    """The lives of one executor's processes and services.

    :param process_class: the base class of processes, which has a slot `_runtime`.
    """

    def __cinit__(self, process_class not None):
        self.process_class = process_class
        self.runtime_offset = member_offset(process_class, process_class._runtime)
        self.undefined_receive = getattr(process_class, "receive", None)
        if self.runtime_offset < 0:
            raise TypeError(
                f"process_class must be a class with a slot _runtime, "
                f"not {bounded_repr(process_class, 200)}"
            )

    cdef int check(self, Pid pid, object process, object mailbox_max) except -1:
        if pid.group is not None and pid.group == self.pid.group:
            raise ValueError(f"the group {pid.group!r} is for the node's own services")
        if not RABBLE_IS_INSTANCE(process, self.process_class):
            raise not_a_process(process, self.process_class)
        if mailbox_max is not None:
            if type(mailbox_max) is not int or not 1 <= mailbox_max < 1 << 31:
                raise ValueError(
                    f"mailbox_max must be 1 to 2**31 - 1, not {bounded_repr(mailbox_max, 200)}"
                )
        return 0

    cdef Entry prepare(self, Pid pid, object process, object mailbox_max):
        cdef Entry entry
        cdef MailboxLimit limit = None
        cdef object bound
        cdef int fit
        self.check(pid, process, mailbox_max)
        if mailbox_max is not None:
            limit = MailboxLimit.__new__(MailboxLimit)
            limit.most = mailbox_max
            limit.high = limit.most // HIGH_PART if limit.most >= HIGH_LEAST else UINT_MAX
            limit.pid = pid
        entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = process
        entry.runtime = self.scene
        entry.kind = PROCESS
        entry.limit = limit
        # The plain function is called with the process as its first argument: a bound method for
        # each process would cost 80 bytes, and a shift of the arguments per call. (Asking for the
        # process's __dict__ would make one, where CPython keeps the attributes without.)
        bound = process.receive
        if (
            PyMethod_Check(bound)
            and PyMethod_GET_SELF(bound) is <PyObject*>process
            and type(<object>PyMethod_GET_FUNCTION(bound)) is FunctionType
        ):
            entry.receive = <object>PyMethod_GET_FUNCTION(bound)
            entry.takes_self = True
            if entry.receive is self.undefined_receive:
                raise TypeError(
                    f"{type_name(process)} does not define receive(self, msg, sender, "
                    f"correlation_id), which a process handles its messages by"
                )
            fit = rabble_fit(entry.receive, 4)
            if fit != RABBLE_FITS:
                raise unfit(process, "receive", fit)
        else:
            entry.receive = bound
            check_callable(process, bound)
        if self.guard is not None:
            entry.receive = self.guard(process, bound)
            entry.takes_self = False
        # It runs in the executor's thread, soon, or before a message that comes sooner.
        entry.unstarted = type(process).init is not self.process_class.init
        if entry.unstarted:
            check_method(process, "init", 1)
        entry.terminates = type(process).terminate is not self.process_class.terminate
        if entry.terminates:
            check_method(process, "terminate", 2)
        traps_exits = type(process).traps_exits
        if type(traps_exits) is not bool:
            raise TypeError(
                f"{type_name(process)}.traps_exits must be True or False, "
                f"not {words_of(traps_exits)}"
            )
        entry.traps_exits = traps_exits
        return entry

    cdef PyObject** runtime_of(self, object process) noexcept:
        """Where the entry of a process lies.

        Asking for an attribute that is not set yet costs an exception, and the `__setattr__` of a
        frozen class would refuse.
        """
        return <PyObject**>(<char*><PyObject*>process + self.runtime_offset)

    cdef object former_of(self, object process):
        """What this very object was when it ran before, or `None`. `ValueError` if it runs now."""
        cdef PyObject** runtime = self.runtime_of(process)
        cdef object former = None
        if runtime[0] is not NULL:
            former = <object>runtime[0]
            if type(former) is Entry and (<Entry>former).target is process:
                raise ValueError(
                    f"this {type_name(process)} runs already, as {(<Entry>former).pid}; "
                    f"spawn a new instance for every process"
                )
        return former

    cdef bint begin(self, Entry entry) except -1:
        cdef PyObject** runtime = self.runtime_of(entry.target)
        cdef PyObject* former = runtime[0]
        if entry.limit is not None:
            entry.limit.counted_from = self.backlog.popped + self.run_queue.count()
        if not self.table.add(entry):
            return False
        # Even numbers: how many services there are does not change what processes draw at random.
        self.spawned += 1
        entry.life = 2 * self.spawned
        Py_INCREF(entry)
        runtime[0] = <PyObject*>entry
        self.processes += 1
        if PyObject_GC_IsTracked(<PyObject*>entry.target):
            PyObject_GC_UnTrack(<PyObject*>entry.target)
            entry.untracked = True
        if entry.limit is not None:
            self.backlog.add_limit()
        # The caller holds it, so that nobody's code runs here.
        Py_XDECREF(former)
        return True

    cdef bint begin_service(self, Pid pid, object target, EntryKind kind) except -1:
        cdef Entry entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = target
        entry.runtime = self.scene
        entry.kind = kind
        if not self.table.add(entry):
            return False
        self.added += 1
        entry.life = 2 * self.added + 1
        return True

    cdef int subscribe(self, Entry entry, int which, bint wanted) except -1:
        cdef dict subscribers = self.node_subscribers if which == NODES else self.letter_subscribers
        if wanted:
            subscribers[entry.pid] = entry
            entry.subscribed |= which
        else:
            subscribers.pop(entry.pid, None)
            entry.subscribed &= ~which
        return 0

    cdef int end(self, Entry entry, object reason, unsigned long long crash=0) except -1:
        """What takes memory comes first, so no monitor misses the end of a life that is over."""
        cdef list envelopes = self.farewells(entry, entry.monitored_by, reason)
        cdef Envelope envelope
        if self.requests.has(entry):
            envelopes.append(self.requests.unanswered(entry, reason.kind, reason.detail, crash))
        self.run_queue.reserve(len(envelopes))
        self.detach(entry)
        self.forget_links(entry)
        for envelope in envelopes:
            self.run_queue.append(envelope)
        return 0

    cdef int end_with_node(self, Entry entry, object reason) except -1:
        """The same without a `Down` or an exit: who would be told ends too, and nodes are told all.
        """
        cdef Envelope envelope
        if self.requests.has(entry):
            envelope = self.requests.unanswered(entry, reason.kind, reason.detail, 0)
            self.run_queue.append(envelope)
        self.detach(entry)
        self.forget_links(entry)
        return 0

    cdef dict detach(self, Entry entry):
        """Take a process or service out of all that knows it; returns the pids that monitored it.

        Nothing here may fail: a life that is half taken out would be there for ever.
        """
        cdef dict timers = entry.timers
        cdef PidSet monitoring = entry.monitoring
        cdef dict monitored_by = entry.monitored_by
        self.table.remove(entry.pid)
        self.backlog.note_ended(entry.pid)
        entry.timers = entry.monitoring = entry.monitored_by = None
        if entry.kind == PROCESS:
            self.processes -= 1
        if entry.limit is not None:
            entry.limit.pid = None
            self.backlog.remove_limit()
        if entry.subscribed:
            self.subscribe(entry, DEAD_LETTERS, False)
            self.subscribe(entry, NODES, False)
        if timers is not None:
            self.timeouts.cancel_all(timers)
        if entry.rare is not None and entry.rare.asks is not NULL:
            self.requests.forget_asks(entry, self.timeouts)
        if monitored_by is not None:
            self.monitors.forget_monitored_by(entry.pid, monitored_by)
        if entry.rare is not None and entry.rare.links is not None:
            end_links(self.monitors, entry)
        if entry.kind == INBOX:
            # Its owner takes what is left, and learns that nothing follows.
            (<Inbox>entry.target).close()
        self.let_go(entry)
        if monitoring is not None:
            self.monitors.forget_monitoring(entry.pid, monitoring)
        return monitored_by

    cdef int tell_ended(self, Entry entry, dict monitored_by, object reason) except -1:
        """Queue what monitors and links are told of a life that has ended, behind what it sent."""
        for envelope in self.farewells(entry, monitored_by, reason):
            self.run_queue.append(envelope)
        self.forget_links(entry)
        return 0

    cdef list farewells(self, Entry entry, dict monitored_by, object reason):
        cdef list envelopes = None
        cdef list exits
        if monitored_by:
            envelopes = self.monitors.farewells(
                self.pid, entry.pid, monitored_by, Down(entry.pid, reason, entry.life)
            )
        if entry.rare is not None and entry.rare.links is not None:
            exits = exits_of(self.monitors, self.pid, entry, reason)
            if envelopes is None:
                # (What extends an empty list is leaked by CPython 3.11 if there is no memory.)
                return exits
            envelopes += exits
        return [] if envelopes is None else envelopes

    cdef void forget_links(self, Entry entry) noexcept:
        if entry.rare is not None:
            entry.rare.links = None

    cdef int clear(self) except -1:
        """Cut what refers to each other. What a process does at its end finds an empty table."""
        cdef PidSlots taken
        cdef PyObject* item
        cdef Entry entry
        cdef size_t place = 0
        self.table.clear(&taken)
        self.requests.clear()
        self.processes = 0
        self.letter_subscribers.clear()
        self.node_subscribers.clear()
        while True:
            item = next_item(&taken, &place)
            if item is NULL:
                break
            entry = <Entry>item
            entry.timers = entry.monitored_by = entry.monitoring = None
            self.forget_links(entry)
            self.let_go(entry)
        drop_slots(&taken)
        return 0

    cdef void let_go(self, Entry entry) noexcept:
        """Drop what an entry that is in no table any more refers to, its target last."""
        entry.receive = None
        if entry.rare is not None:
            self.requests.drop_asks(entry)
            if entry.rare.held is NULL and entry.rare.links is None:
                entry.rare = None
            else:
                # It ended without having answered these, or with links: that is still to be told.
                entry.rare.random_source = None
        entry.takes_self = False
        if entry.untracked:
            entry.untracked = False
            if not PyObject_GC_IsTracked(<PyObject*>entry.target):
                PyObject_GC_Track(<PyObject*>entry.target)
        entry.target = None


# What cannot be spawned, and why. Asked at each spawn, and cheap: a few fields of a function.

cdef object not_a_process(object value, object process_class):
    advice = ""
    if PyType_Check(value) and PyType_IsSubtype(<type>value, <type>process_class):
        advice = ": that is the class, of which an instance is wanted"
    return TypeError(f"only a Process can be spawned, not {words_of(value)}{advice}")


cdef int check_fit(object process, str name, object function, Py_ssize_t given) except -1:
    """Whether a plain function can be called with that many arguments, and is no coroutine's."""
    cdef int fit = rabble_fit(function, given)
    if fit != RABBLE_FITS:
        raise unfit(process, name, fit)
    return 0


cdef int check_callable(object process, object called) except -1:
    """The same of a `receive` that is no plain method: as far as can be told without calling it.

    What is neither function nor method, nor known to be one underneath, may take anything.
    """
    cdef Py_ssize_t given = 3
    cdef PyObject* found
    if PyMethod_Check(called):
        called = <object>PyMethod_GET_FUNCTION(called)
        given = 4
    elif type(called) is partial and not called.keywords:
        given += len(called.args)
        called = called.func
    elif type(called) is not FunctionType:
        if not callable(called):
            raise TypeError(
                f"{type_name(process)}.receive must be a method, receive(self, msg, sender, "
                f"correlation_id), not {words_of(called)}"
            )
        found = RABBLE_IN_CLASS(called, "__call__")
        if found is not NULL:
            called = <object>found
            given = 4
    if type(called) is FunctionType:
        check_fit(process, "receive", called, given)
    return 0


cdef int check_method(object process, str name, Py_ssize_t given) except -1:
    cdef PyObject* found = RABBLE_IN_CLASS(process, name)
    cdef object function
    cdef int fit
    if found is NULL or type(<object>found) is not FunctionType:
        return 0
    function = <object>found
    fit = rabble_fit(function, given)
    # Unless the process has one of its own in front of its class's.
    if fit != RABBLE_FITS and getattr(getattr(process, name), "__func__", None) is function:
        raise unfit(process, name, fit)
    return 0


cdef object unfit(object process, str name, int fit):
    shape = "receive(self, msg, sender, correlation_id)"
    if name != "receive":
        shape = "init(self)" if name == "init" else "terminate(self, reason)"
    method = f"{type_name(process)}.{name}"
    if fit == RABBLE_ASYNC:
        return TypeError(
            f"{method} is async, but the executor waits for nothing: make it a plain "
            f"def {shape} that returns envelopes, and leave what waits to a service or to asyncio "
            f"outside of the process"
        )
    problem = "needs a keyword argument"
    if fit == RABBLE_TOO_FEW:
        problem = "takes too few arguments"
    elif fit == RABBLE_TOO_MANY:
        problem = "takes too many arguments"
    return TypeError(f"{method} {problem}: write it as {shape}")
