"""A node that is ended by anybody, however often, ends once, and nobody waits for ever."""

from __future__ import annotations

import signal

import pytest

from tests.isolated.script import Script, run


@pytest.mark.parametrize("end", ["shutdown", "request_shutdown"])
def test_a_receive_ends_its_node(end: str) -> None:
    run(f"""
        watched = Watched()
        node = watched.node
        asks = Does(lambda process, msg, sender: node.{end}())
        with node.mailbox() as box:
            node.send(node.spawn(asks, "asks"), "end")
            try:
                box.receive()
            except NodeStopped:
                pass
        node.shutdown()
        watched.has_ended_once()
    """)


@pytest.mark.parametrize("end", ["shutdown", "request_shutdown"])
@pytest.mark.parametrize("where", ["init", "handle_envelope", "close"])
def test_a_service_ends_its_node(end: str, where: str) -> None:
    run(f"""
        watched = Watched()
        node = watched.node

        class Ends(ServiceHandler):
            def init(self, service):
                self.say("init")

            def handle_envelope(self, envelope, service):
                self.say("handle_envelope")
                service.stop()

            def close(self, service):
                self.say("close")

            def say(self, here):
                if here == {where!r}:
                    node.{end}()

        with node.mailbox() as box:
            try:
                node.send(node.register_service(Ends(), "ends").pid, "end")
            except NodeStopped:
                assert {where!r} == "init"
            try:
                box.receive()
            except NodeStopped:
                pass
        node.shutdown()
        watched.has_ended_once()
    """)


# In each of these somebody says `ready` when the main thread is there, or is about to be.
WAITING = {
    "call": """
        try:
            node.call(says_ready, "hello", PATIENCE_S)
        except NodeStopped:
            done = True
    """,
    # A signal that comes right before the loop falls asleep is handled when the loop wakes up next:
    # that is asyncio's affair (it has `add_signal_handler` for that), so here it does so soon.
    "call_async": """
        async def asks():
            asking = asyncio.ensure_future(node.call_async(says_ready, "hello", PATIENCE_S))
            while not asking.done():
                await asyncio.wait([asking], timeout=0.1)
            return asking.result()

        try:
            asyncio.run(asks())
        except NodeStopped:
            done = True
    """,
    "receive": """
        box = node.mailbox()
        print("ready")
        try:
            box.receive()
        except NodeStopped:
            done = True
    """,
    "plain Python": """
        print("ready")
        while not ended:
            pass
        done = True
    """,
    "join": """
        worker = threading.Thread(target=gate.wait)
        worker.start()
        print("ready")
        worker.join()
        done = True
    """,
}


@pytest.mark.parametrize("where", WAITING)
def test_a_signal_handler_ends_the_node(where: str) -> None:
    body = f"""
        watched = Watched()
        node = watched.node
        ended = []
        gate = threading.Event()
        done = False

        def end(number, frame):
            node.shutdown()
            watched.has_ended_once()
            ended.append(number)
            gate.set()

        signal.signal(signal.SIGTERM, end)
        says_ready = node.spawn(Does(lambda process, msg, sender: print("ready")), "says_ready")
        {WAITING[where].strip()}
        while not ended:
            pass
        assert done
        node.shutdown()
        watched.has_ended_once()
    """
    with Script(body) as script:
        script.expect("ready")
        script.signal(signal.SIGTERM)
        script.end_well()


@pytest.mark.parametrize("where", ["call", "receive"])
def test_a_signal_that_another_thread_got_is_handled_while_this_one_waits(where: str) -> None:
    """As is one that comes just before the wait begins, which cannot be brought about."""
    body = f"""
        watched = Watched()
        node = watched.node
        ended = []
        done = False

        def end(number, frame):
            node.shutdown()
            ended.append(number)

        def get_it():
            input()
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, end)
        threading.Thread(target=get_it).start()
        says_ready = node.spawn(Does(lambda process, msg, sender: print("ready")), "says_ready")
        {WAITING[where].strip()}
        assert done and ended
    """
    with Script(body) as script:
        script.expect("ready")
        script.write("go")
        script.end_well()


def test_a_signal_handler_ends_the_node_while_it_is_being_ended() -> None:
    body = """
        watched = Watched()
        node = watched.node
        ended = []
        gate = threading.Event()

        def slow(process, msg, sender):
            while node.status != "stopping":
                pass
            print("stopping")
            gate.wait(PATIENCE_S)

        def end(number, frame):
            gate.set()
            node.shutdown()
            watched.has_ended_once()
            ended.append(number)

        signal.signal(signal.SIGTERM, end)
        node.send(node.spawn(Does(slow), "slow"), "go")
        node.shutdown(PATIENCE_S)
        watched.has_ended_once()
        assert ended == [signal.SIGTERM]
    """
    with Script(body) as script:
        script.expect("stopping")
        script.signal(signal.SIGTERM)
        script.end_well()


# What a thread may be doing when a signal comes. A handler runs between two bytecodes, so there
# is a finite number of places: each gets its signal, one node per place.
INTERRUPTED = {
    "call": "node.call(watched.echo, 1)",
    "call_async": "asyncio.run(node.call_async(watched.echo, 1))",
    "receive": "box.send(watched.echo, 1), box.receive()",
    "mailbox": "node.mailbox().close()",
    "register_service": "node.register_service(Upper(), 'another')",
    "shutdown": "node.shutdown()",
}


HANDLED = [(what, "node.shutdown(PATIENCE_S)") for what in INTERRUPTED]
# threading itself is not made for an exception in each of its own places.
HANDLED += [(what, "raise KeyboardInterrupt") for what in ("call", "receive", "mailbox")]


@pytest.mark.parametrize(("what", "handler"), HANDLED)
def test_a_signal_may_come_at_every_bytecode(what: str, handler: str) -> None:
    run(f"""
        followed = (os.path.dirname(rabble.__file__), threading.__file__)

        def end(number, frame):
            {handler}

        def ignore(frame, event, argument):
            return ignore

        def trace(frame, event, argument):
            global left
            if frame.f_code.co_filename.endswith((".pyx", ".pxd")):
                # In a line-trace build, whose frames take no None.
                return ignore
            if not frame.f_code.co_filename.startswith(followed):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left == 0:
                    signal.raise_signal(signal.SIGTERM)
            return trace

        signal.signal(signal.SIGTERM, end)
        # CPython 3.12 looks whether any frame wants this when tracing begins, and not later.
        sys._getframe().f_trace_opcodes = True
        left = 0
        for place in itertools.count(1):
            watched = Watched()
            node = watched.node
            box = node.mailbox()
            left = place
            sys.settrace(trace)
            try:
                {INTERRUPTED[what]}
            except (NodeStopped, KeyboardInterrupt):
                pass
            finally:
                sys.settrace(None)
            node.shutdown()
            watched.has_ended_once()
            if left > 0:
                break
        # What a coroutine does is compiled, but for the way in.
        assert place > {5 if what == "call_async" else 20}
    """)


def test_sigint_interrupts_a_call_and_the_node_is_shut_down() -> None:
    body = """
        watched = Watched()
        says_ready = Does(lambda process, msg, sender: print("ready"))
        try:
            with watched.node as node:
                node.call(node.spawn(says_ready, "says_ready"), "hello", PATIENCE_S)
        except KeyboardInterrupt:
            watched.has_ended_once()
            raise
    """
    with Script(body) as script:
        script.expect("ready")
        script.signal(signal.SIGINT)
        script.end(-signal.SIGINT)
        assert script.errors().splitlines()[-1] == "KeyboardInterrupt"


def test_descriptors_and_threads_are_given_back_by_the_end_of_a_node() -> None:
    run("""
        def live():
            with Watched().node as node, node.mailbox() as box:
                timer = StartTimer(CorrelationId(box.pid), 100_000)
                box.send(node.pid("executor", "rabble"), timer)
                box.send(node.pid("echo"), 1)
                assert box.receive(PATIENCE_S).msg == 1
                asyncio.run(node.call_async(node.pid("echo"), 1))

        live()
        gc.collect()
        before = descriptors(), threading.active_count()
        for _ in range(50):
            live()
        gc.collect()
        assert (descriptors(), threading.active_count()) == before
    """)


def test_twice_and_from_eight_threads_at_once() -> None:
    run("""
        for _ in range(20):
            watched = Watched()
            together = threading.Barrier(9)
            ended = []

            def end():
                together.wait()
                watched.node.shutdown()
                watched.has_ended_once()
                ended.append(True)

            threads = [threading.Thread(target=end) for _ in range(8)]
            for thread in threads:
                thread.start()
            together.wait()
            watched.node.shutdown()
            watched.node.shutdown()
            for thread in threads:
                thread.join()
            assert len(ended) == 8
            watched.has_ended_once()
    """)


def test_nodes_left_running_end_although_the_end_of_one_raises() -> None:
    body = """
        logging.getLogger("rabble").addHandler(logging.NullHandler())
        nodes = [rabble.rouse(f"n{number}@127.0.0.1:0", mesh=Mesh()) for number in range(3)]

        def fail():
            raise LookupError("a defect")

        nodes[1]._runtime.request_shutdown = fail
        nodes[1]._runtime.cluster.drain = fail
        says = nodes[2].spawn(Does(lambda process, msg, sender: None), "says")
        nodes[2].send(nodes[2].pid("executor", "rabble"), Monitor(says), sender=says)
        print("ready")
    """
    with Script(body) as script:
        script.expect("ready")
        script.wait()
        assert "ShutdownTimeout: n1@127.0.0.1:" in script.errors()
        assert "LookupError: a defect" in script.errors()


def test_whoever_is_interrupted_as_the_poll_thread_begins_leaves_none_that_nobody_ends() -> None:
    """Else the interpreter would wait for it for ever."""
    run("""
        from rabble.services.server import ConnectionHandler, TcpServer

        begin = threading.Thread.start
        begun = []

        def start(thread):
            begin(thread)
            if thread.name.endswith(":poll"):
                begun.append(thread)
                if len(begun) == 1:
                    raise KeyboardInterrupt

        threading.Thread.start = start
        for again in (False, True):
            node = rabble.rouse()
            del begun[:]
            try:
                TcpServer(node, ConnectionHandler)
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("it was not interrupted")
            if again:
                with TcpServer(node, ConnectionHandler) as server:
                    assert server.status().connections == 0
            node.shutdown()
            assert node.status == "stopped", node.failure
            for thread in begun:
                thread.join()
    """)
