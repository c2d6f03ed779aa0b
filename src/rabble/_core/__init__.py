"""The data plane: compiled, and importing nothing from the layers above it.

Its modules, in order: each refers to those before it only, which a test holds by reading this.

    values:   capacities errors failure contexts weakrefs texts tracebacks ids envelope ask messages
    names:    directory_messages client_messages
    local:    queue inbox timers pid_slots dispatch timeouts backlog
    bytes:    byteorder buffer_writer buffer_reader
    codec:    checks plan values fields collisions encoder decoder codec
    wire:     frame byte_queue gather bulk_pairs fragments frame_encoder frame_decoder session
    sockets:  linux mac record client_socket transport receive connection keep_alive poller
    lives:    routes notices requests monitors links lives
    running:  interrupts hooks dead_letters admission idle executor
    handling: asks producers exits distribution directory_requests system_messages
    asking:   calls
    clients:  client_codec client_requests client_server client_gate client_replies
    desk:     client_waiting client_batch client_desk client_receiver
    tests:    debug
"""

import importlib
import sys
import warnings


def need_the_lock() -> None:
    """On a free-threaded Python: have the interpreter lock switched on, and say so once.

    CPython does it when it loads a module that does not declare itself ready to run without, and
    warns in words that name the module and advise to switch the lock off again. The core rests on
    the lock: it warns in words of its own, and where the lock was forbidden it does not load.
    """
    is_on = getattr(sys, "_is_gil_enabled", None)
    if is_on is None or is_on():
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The global interpreter lock", RuntimeWarning)
        try:
            importlib.import_module("rabble._core.debug")
        except ModuleNotFoundError:
            # Where only clients run, without the compiled modules: none of them needs the lock.
            return
    if not is_on():
        raise ImportError(
            "rabble needs the interpreter lock, which PYTHON_GIL=0 or -X gil=0 forbids: "
            "start this free-threaded Python without it, and rabble switches the lock on."
        )
    warnings.warn(
        "rabble has switched the interpreter lock on: its core relies on it, so on this "
        "free-threaded Python threads take turns as on any other.",
        RuntimeWarning,
        stacklevel=2,
    )


need_the_lock()
