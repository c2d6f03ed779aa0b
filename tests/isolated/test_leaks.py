"""What an exception leaves behind, or nobody: no call, no mailbox, no descriptor, no thread."""

from __future__ import annotations

import pytest

from tests.isolated.script import run
from tests.support import PATIENCE_S

CALLS = {
    "reply": "node.call(echo, 1, PATIENCE_S)",
    "timeout": "node.call(silent, 1, 0)",
    "asyncio": "asyncio.run(node.call_async(echo, 1, PATIENCE_S))",
    "asyncio timeout": "asyncio.run(node.call_async(silent, 1, 0))",
}


@pytest.mark.parametrize("how", CALLS)
def test_a_call_that_an_exception_ends_anywhere_leaves_nothing(how: str) -> None:
    run(f"""
        from tests.isolated.raising import at_every_bytecode

        node = rabble.rouse()
        echo = node.spawn(Echo(), "echo")
        silent = node.spawn(Does(lambda process, msg, sender: None), "silent")
        box = node.mailbox()

        def look(place):
            # The executor drops a call after it has ended it: by this reply, it has.
            box.send(echo, place)
            box.receive(PATIENCE_S)
            if len(node._runtime.calls):
                gc.collect()
            assert len(node._runtime.calls) == 0, place

        def call():
            try:
                {CALLS[how]}
            except CallTimeout:
                pass

        # What a coroutine does is compiled, but for the way in.
        at_every_bytecode(call, look, least={100 if "asyncio" not in how else 5})
        assert node.call(echo, 1, PATIENCE_S) == 1
        # What is kept of those that went is bounded, too.
        for _ in range(1_000):
            node._runtime.calls.begin(rabble.calls.Reply(), echo)
        assert len(node._runtime.calls) == 0
        assert len(node._runtime.calls.requests) == 0
        node.shutdown()
    """)


def test_a_mailbox_that_an_exception_ends_anywhere_leaves_nothing() -> None:
    run("""
        from tests.isolated.raising import at_every_bytecode

        node = rabble.rouse()
        echo = node.spawn(Echo(), "echo")
        before = len(eventfds())

        def use():
            with node.mailbox() as box:
                box.send(echo, 1)
                box.receive(PATIENCE_S)

        # What is there already need not be looked through each time.
        gc.collect()
        gc.freeze()
        at_every_bytecode(use, lambda place: gc.collect())
        until(lambda: len(node.processes()) == 1)
        assert not node._mailboxes.refs and not node._mailboxes.dropped
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
        until(lambda: not node._mailboxes.dropped)
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
        before = len(eventfds())
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
            assert len(eventfds()) == before
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
            return len(eventfds())

        # Those of the nodes themselves.
        assert live() <= 2
    """)


def test_unread_mail_that_names_its_mailbox_keeps_nothing() -> None:
    run("""
        def live():
            with rabble.rouse() as node:
                box = node.mailbox()
                node.send(box.pid, [box, node])
                until(lambda: len(box))

        live()
        gc.collect()
        before = descriptors()
        for _ in range(20):
            live()
        gc.collect()
        assert len(descriptors()) == len(before)
    """)


@pytest.mark.parametrize("options", ["", "strict=True", "mesh=Mesh()", "mesh=Mesh(key=bytes(32))"])
def test_a_node_that_is_half_made_leaves_nothing(options: str) -> None:
    body = f"""
        from tests.isolated.raising import at_every_place

        from rabble import _shutdown

        logging.raiseExceptions = False
        logging.getLogger("rabble").addHandler(logging.NullHandler())
        logging.getLogger("rabble").propagate = False
        made = []

        def look(place):
            if made:
                # It was made, and what was raised came after that.
                made.pop().shutdown()
            elif place and place[2] == "return":
                # It was just made, and nobody got it: the interpreter's end would be its own.
                while _shutdown.running:
                    _shutdown.running.copy().pop().shutdown()
            gc.collect()
            assert rabble_threads() == [], (place, rabble_threads())
            assert not _shutdown.running, place
            left = descriptors()
            assert len(left) <= len(before), (place, before, left)

        rabble.rouse({options}).shutdown()
        gc.collect()
        before = descriptors()
        at_every_place(lambda: made.append(rabble.rouse({options})), look)
    """
    # Some hundred nodes, each of them looked for among all objects.
    run(body, patience_s=4 * PATIENCE_S)


@pytest.mark.parametrize(
    "what",
    ["node.register_service(Upper(), 'one')", "node.mailbox('one')"],
    ids=["service", "mailbox"],
)
def test_what_is_half_registered_leaves_nothing(what: str) -> None:
    run(f"""
        from tests.isolated.raising import at_every_place

        node = rabble.rouse()
        made = []

        def look(place):
            if made:
                each = made.pop()
                each.stop() if isinstance(each, rabble.Service) else each.close()
                del each
            elif place and place[2] == "return":
                # It was just made, and nobody got it: it ends with its node.
                for each in list(node._runtime.services):
                    each.stop()
                each = None
            gc.collect()
            until(lambda: node.processes() == {{}})
            until(lambda: node.executor_status().services == 0 and not node._mailboxes.refs)
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
