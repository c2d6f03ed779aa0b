"""What an exception, or nobody at all, leaves behind: no call, no mailbox, no descriptor, no thread."""

from __future__ import annotations

import pytest

from tests.isolated.script import run

# Raises at one bytecode after the other, in the frames of rabble, until a run meets no more.
AT_EVERY_BYTECODE = """
    PACKAGE = os.path.dirname(rabble.__file__)

    def raises_at(place):
        left = place

        def trace(frame, event, argument):
            nonlocal left
            if frame.f_code.co_filename.endswith((".pyx", ".pxd")):
                return None
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        return trace, lambda: left > 0

    # CPython 3.12 looks whether any frame wants this when tracing begins, and not later.
    sys._getframe().f_trace_opcodes = True
    # What is raised in a finalizer is printed, which is not what this looks at.
    sys.unraisablehook = lambda unraisable: None

    def at_every_bytecode(do, look):
        for place in itertools.count(1):
            trace, is_over = raises_at(place)
            sys.settrace(trace)
            try:
                do()
            except (KeyboardInterrupt, CallTimeout):
                pass
            finally:
                sys.settrace(None)
            look(place)
            if is_over():
                break
        assert place > 50, place
"""

CALLS = {
    "reply": "node.call(echo, 1, PATIENCE_S)",
    "timeout": "node.call(silent, 1, 0)",
    "asyncio": "asyncio.run(node.call_async(echo, 1, PATIENCE_S))",
    "asyncio timeout": "asyncio.run(node.call_async(silent, 1, 0))",
}


@pytest.mark.parametrize("how", CALLS)
def test_a_call_that_an_exception_ends_anywhere_leaves_nothing(how: str) -> None:
    run(f"""
        {AT_EVERY_BYTECODE}
        node = rabble.rouse()
        echo = node.spawn(Echo(), "echo")
        silent = node.spawn(Does(lambda process, msg, sender: None), "silent")

        def look(place):
            if len(node._calls):
                gc.collect()
            assert len(node._calls) == 0, place

        at_every_bytecode(lambda: {CALLS[how]}, look)
        assert node.call(echo, 1, PATIENCE_S) == 1
        # What is kept of those that went is bounded, too.
        for _ in range(1_000):
            node._calls.begin(rabble.calls.Reply(), echo)
        assert len(node._calls) == 0
        assert len(node._calls._by_number) < 100
        node.shutdown()
    """)


def test_a_mailbox_that_an_exception_ends_anywhere_leaves_nothing() -> None:
    run(f"""
        {AT_EVERY_BYTECODE}
        node = rabble.rouse()
        echo = node.spawn(Echo(), "echo")
        before = len(eventfds())

        def use():
            with node.mailbox() as box:
                box.send(echo, 1)
                box.receive(PATIENCE_S)

        at_every_bytecode(use, lambda place: gc.collect())
        until(lambda: len(node.processes()) == 1)
        assert not node._mailboxes and not node._dropped
        until(lambda: len(eventfds()) == before)
        node.shutdown()
    """)


@pytest.mark.parametrize("how", ["dropped", "stopped", "closed"])
def test_mailboxes_without_end_keep_no_descriptors(how: str) -> None:
    run(f"""
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        node = rabble.rouse()
        kept = []
        for number in range(1_000):
            box = node.mailbox()
            pid = box.pid
            if {how!r} == "stopped":
                node.stop(pid)
                until(lambda: box._inbox.closed)
                kept.append(box)
            elif {how!r} == "closed":
                box.close()
                kept.append(box)
        del box
        until(lambda: node.processes() == {{}})
        until(lambda: not node._dropped)
        assert len(eventfds()) < 16, descriptors()
        node.shutdown()
    """)


def test_what_a_dropped_mailbox_was_sent_has_a_witness_and_its_monitors_hear() -> None:
    run("""
        node = rabble.rouse()
        witness = node.mailbox()
        node.subscribe_dead_letters(witness.pid)
        box = node.mailbox("dropped")
        pid = box.pid
        witness.send(node.pid("executor", "rabble"), Monitor(pid))
        witness.send(pid, "unread")
        until(lambda: len(box))
        del box
        got = [witness.receive(PATIENCE_S).msg for _ in range(2)]
        (letter,) = [msg for msg in got if isinstance(msg, rabble.DeadLetter)]
        assert letter.envelope.msg == "unread"
        (down,) = [msg for msg in got if isinstance(msg, rabble.Down)]
        assert down == rabble.Down(pid, rabble.DownReason("stopped"))
        assert node.mailbox("dropped").pid == pid
        node.shutdown()
    """)


def test_a_thread_that_waits_in_a_mailbox_hears_of_its_end() -> None:
    run("""
        node = rabble.rouse()
        for end in (lambda box: box.close(), lambda box: node.stop(box.pid)):
            box = node.mailbox()
            waits = threading.Event()
            heard = []

            def wait():
                waits.set()
                for timeout in (None, float("inf")):
                    try:
                        box.receive(timeout)
                    except NodeStopped as error:
                        heard.append(error)

            threads = [threading.Thread(target=wait) for _ in range(3)]
            for thread in threads:
                thread.start()
            waits.wait()
            end(box)
            for thread in threads:
                thread.join()
            assert len(heard) == 6
            assert box._inbox.fileno() == -1
        node.shutdown()
    """)


def test_descriptors_are_given_back_by_a_node_whose_mailboxes_are_kept() -> None:
    run("""
        kept = []

        def live():
            node = rabble.rouse()
            boxes = [node.mailbox() for _ in range(10)]
            for box in boxes:
                node.send(box.pid, 1)
            kept.extend(boxes)
            until(lambda: all(len(box) for box in boxes))
            node.shutdown()
            # What was left can still be read.
            assert boxes[0].receive().msg == 1
            return [box._inbox.fileno() for box in boxes]

        assert live() == [-1] * 10
    """)


# Raises at each place that `do` comes by, once.
AT_EVERY_PLACE = """
    from rabble import node as node_module

    PACKAGE = os.path.dirname(rabble.__file__)

    class Raised(BaseException):
        pass

    def follow(wanted, seen):
        def trace(frame, event, argument):
            file = frame.f_code.co_filename
            if not file.startswith(PACKAGE) or file.endswith((".pyx", ".pxd")):
                return None
            place = (file, frame.f_lineno, event)
            if event != "exception" and place not in seen:
                seen[place] = None
                if place == wanted:
                    raise Raised(place)
            return trace

        return trace

    def places_of(do):
        seen = {}
        sys.settrace(follow(None, seen))
        try:
            do()
        finally:
            sys.settrace(None)
        return list(seen)

    def at_every_place(do, look):
        places = places_of(do)
        look(None)
        assert len(places) > 20
        for place in places:
            sys.settrace(follow(place, {}))
            try:
                do()
            except Raised:
                pass
            finally:
                sys.settrace(None)
            look(place)
"""


@pytest.mark.parametrize("options", ["", "strict=True", "mesh=Mesh()", "mesh=Mesh(key=bytes(32))"])
def test_a_node_that_is_half_made_leaves_nothing(options: str) -> None:
    run(f"""
        {AT_EVERY_PLACE}
        logging.raiseExceptions = False
        logging.getLogger("rabble").addHandler(logging.NullHandler())
        logging.getLogger("rabble").propagate = False
        made = []

        def look(place):
            if made:
                # It was made, and what was raised came after that.
                made.pop().shutdown()
            gc.collect()
            assert rabble_threads() == [], (place, rabble_threads())
            assert not node_module._running, place
            left = descriptors()
            assert len(left) <= len(before), (place, before, left)

        rabble.rouse({options}).shutdown()
        gc.collect()
        before = descriptors()
        at_every_place(lambda: made.append(rabble.rouse({options})), look)
    """)


@pytest.mark.parametrize(
    "what",
    ["node.register_service(Upper(), 'one')", "node.mailbox('one')"],
    ids=["service", "mailbox"],
)
def test_what_is_half_registered_leaves_nothing(what: str) -> None:
    run(f"""
        {AT_EVERY_PLACE}
        node = rabble.rouse()
        made = []

        def look(place):
            if made:
                each = made.pop()
                each.stop() if isinstance(each, rabble.Service) else each.close()
                del each
            gc.collect()
            until(lambda: node.processes() == {{}})
            until(lambda: node.executor_status().services == 0 and not node._mailboxes)
            until(lambda: "rabble:local:one" not in rabble_threads())
            until(lambda: len(eventfds()) == before)

        before = len(eventfds())
        at_every_place(lambda: made.append({what}), look)
        node.shutdown()
    """)


def test_a_service_whose_thread_cannot_start_leaves_nothing() -> None:
    run("""
        with rabble.rouse() as node:
            start = threading.Thread.start

            def refuse(thread):
                # What comes meanwhile is lost, and has a witness.
                node.send(node.pid("one"), "lost")
                until(lambda: node.processes()[node.pid("one")] == 1)
                raise RuntimeError("can't start new thread")

            threading.Thread.start = refuse
            try:
                node.register_service(Upper(), "one")
            except RuntimeError as error:
                assert "can't start" in str(error)
            else:
                raise AssertionError("it started")
            finally:
                threading.Thread.start = start
            until(lambda: node.processes() == {})
            until(lambda: node.executor_status().dead_letters == {"no_process": 1})
            assert node.executor_status().services == 0
            assert node.call(node.register_service(Upper(), "one").pid, "a", PATIENCE_S) == "A"
    """)
