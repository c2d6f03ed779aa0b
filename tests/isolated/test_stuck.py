"""A `receive` that never returns, a signal meanwhile, and a crash of all."""

from __future__ import annotations

import re
import signal

import pytest

from tests.faults.meshes import SLACK_S
from tests.isolated.script import Script, run


def test_a_receive_that_never_returns_is_reported_and_ended_by_sigterm() -> None:
    body = f"""
        MOST_S = {1 + SLACK_S}
        began = 0.0

        def stands_here(process, msg, sender):
            global began
            began = time.monotonic()
            while True:
                pass

        def emit(record):
            said = record.getMessage()
            if "has not returned" in said:
                assert "in stands_here" in said, said
                assert 0.45 <= float(said.split("for ")[1].split(" s")[0]) < MOST_S
                assert time.monotonic() - began < MOST_S
                print(said.splitlines()[0].split(" for ")[0])
                # The report came after more than `stalled_after_ms`.
                print(node.status)
            else:
                print(said.splitlines()[0])

        handler = logging.Handler()
        handler.emit = emit
        logging.getLogger("rabble").addHandler(handler)
        node = rabble.rouse(limits=Limits(stalled_after_ms=300, shutdown_ms=3_000))
        signal.signal(signal.SIGTERM, lambda number, frame: node.shutdown())
        box = node.mailbox()
        node.send(node.spawn(Does(stands_here), "stuck"), "go")
        try:
            box.receive()
        except NodeStopped:
            print(node.status)
    """
    with Script(body) as script:
        script.expect("stuck::local@127.0.0.1:0: receive has not returned")
        script.expect("stalled")
        script.signal(signal.SIGTERM)
        script.expect("stuck::local@127.0.0.1:0 crashed (crash 1)")
        script.expect("stopped")
        assert script.end_well() == ""


@pytest.mark.parametrize("where", ["receive", "service"])
def test_what_blocks_in_c_is_named_and_left_to_os_exit(where: str) -> None:
    said = run(f"""
        node = rabble.rouse()
        blocked = threading.Event()

        def block():
            blocked.set()
            time.sleep(1_000)

        class Blocks(ServiceHandler):
            def handle_envelope(self, envelope, service):
                block()

        if {where!r} == "receive":
            pid = node.spawn(Does(lambda process, msg, sender: block()), "blocks")
        else:
            pid = node.register_service(Blocks(), "blocks").pid
        node.send(pid, "go")
        blocked.wait()
        for _ in range(2):
            try:
                node.shutdown(0.2)
            except ShutdownTimeout as error:
                print(error)
        print(node.status, flush=True)
        os._exit(0)
    """)
    kept = {
        "receive": "receive of blocks::local@127.0.0.1:0 does not return",
        "service": "these threads run: rabble:local:blocks",
    }[where]
    assert said == f"local@127.0.0.1:0 did not end: {kept}\n" * 2 + "stopping\n"


def test_a_crash_of_the_whole_process_leaves_a_trace_of_each_thread() -> None:
    body = """
        node = rabble.rouse()

        def crashes(process, msg, sender):
            # To the very thread, as a wild pointer would.
            signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)

        node.send(node.spawn(Does(crashes), "crashes"), "go")
        node.mailbox().receive()
    """
    with Script(body) as script:
        # A sanitizer, if there is one, ends it by a signal of its own.
        code = script.wait()
        errors = script.errors()
    assert code < 0
    assert "Fatal Python error: Segmentation fault" in errors
    assert re.search(r"Current thread .*\n  File .*, line \d+ in crashes\n", errors)
    assert " in receive\n" in errors
