"""A program that does not shut its node down ends all the same, and in peace."""

from __future__ import annotations

import random

import pytest

from tests.isolated.script import Script, run

# The bodies leave a node running. Draining has half of `shutdown_ms`, so what is busy gets less.
SHAPES = {
    "idle": """
        Watched()
    """,
    "busy": """
        node = rabble.rouse(limits=Limits(shutdown_ms=200))
        node.send(node.spawn(Does(busy), "busy"), "on")
    """,
    "service": """
        watched = Watched()
        watched.node.send(watched.upper, "from nobody")
    """,
    "timers": """
        watched = Watched()
        for number in range(100):
            watched.node.send(
                watched.node.pid("executor", "rabble"),
                StartTimer(CorrelationId(watched.silent, request=number), number * 1_000),
                sender=watched.silent,
            )
    """,
    "two nodes": """
        one, two = Watched(), Watched(node_id="other@127.0.0.1:0")
    """,
    "sys.exit": """
        with_it = Watched()
        sys.exit(0)
    """,
    "a long loop in receive": """
        # It is interrupted, which the log tells.
        logging.getLogger("rabble").addHandler(logging.NullHandler())
        node = rabble.rouse(limits=Limits(shutdown_ms=3_000))
        running = threading.Event()

        def loop(process, msg, sender):
            running.set()
            while True:
                pass

        node.send(node.spawn(Does(loop), "loop"), "on")
        running.wait()
    """,
    "a thread in mailbox.receive": """
        watched = Watched()
        box = watched.node.mailbox()

        def wait():
            try:
                box.receive()
            except NodeStopped:
                pass

        threading.Thread(target=wait).start()
    """,
    "a daemon that calls": """
        watched = Watched()
        calling = threading.Event()

        def call():
            try:
                while True:
                    watched.node.call(watched.echo, 1)
                    calling.set()
            except NodeStopped:
                pass

        threading.Thread(target=call, daemon=True).start()
        calling.wait()
    """,
    "a node made too late": """
        # The thread goes on after the main thread, and after the hook that ends the nodes.
        def rouse():
            threading.main_thread().join()
            while not threading._SHUTTING_DOWN:
                pass
            try:
                rabble.rouse()
            except NodeStopped:
                pass

        threading.Thread(target=rouse).start()
    """,
    "asyncio": """
        watched = Watched()

        async def ask():
            task = asyncio.ensure_future(watched.node.call_async(watched.silent, 1))
            assert await watched.node.call_async(watched.echo, 1) == 1

        asyncio.run(ask())
    """,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_program_ends_without_shutdown(shape: str) -> None:
    assert run(SHAPES[shape]) == ""


def test_an_exception_leaves_main_and_nothing_else_is_said() -> None:
    with Script("Watched()\nraise LookupError('as asked')") as script:
        script.end(1)
        lines = script.errors().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "LookupError: as asked"
    assert sum(not line.startswith(" ") for line in lines) == 2, lines


def test_a_receive_that_blocks_in_c_is_named_and_keeps_no_other_node() -> None:
    body = """
        other = Watched(node_id="other@127.0.0.1:0")
        stuck = rabble.rouse("stuck@127.0.0.1:0", limits=Limits(shutdown_ms=200))
        blocked = threading.Event()

        def block(process, msg, sender):
            blocked.set()
            time.sleep(1_000)

        stuck.send(stuck.spawn(Does(block), "blocks"), "on")
        blocked.wait()
        import atexit
        atexit.register(lambda: print(other.node.status, stuck.status))
    """
    with Script(body) as script:
        assert script.end() == "stopped stopping\n"
        last = script.errors().splitlines()[-1]
    assert last.endswith(
        "ShutdownTimeout: stuck@127.0.0.1:0 did not end: "
        "receive of blocks::stuck@127.0.0.1:0 does not return"
    )


def test_a_node_that_gets_no_thread_leaves_nothing_behind() -> None:
    run("""
        start = threading.Thread.start
        for allowed in range(3):
            def start_few(thread):
                global allowed
                if allowed == 0:
                    raise RuntimeError("can't start new thread")
                allowed -= 1
                start(thread)

            threading.Thread.start = start_few
            try:
                node = rabble.rouse()
            except RuntimeError as error:
                assert str(error) == "can't start new thread"
                gc.collect()
            else:
                node.shutdown()
            for thread in threading.enumerate():
                if thread is not threading.main_thread():
                    thread.join()
    """)


@pytest.mark.soak
@pytest.mark.timeout(1_200)
def test_two_hundred_programs_end_without_shutdown() -> None:
    seed = random.randrange(2**32)
    source = random.Random(seed)
    for number in range(200):
        shape = source.choice(sorted(SHAPES))
        try:
            assert run(SHAPES[shape]) == ""
        except AssertionError as error:
            raise AssertionError(f"number {number}, {shape}, seed {seed}") from error
