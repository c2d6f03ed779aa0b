"""What the clients of `api` send, and that they find out who answers wrongly."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest

from rabble._core.codec import Codec
from rabble.bench import api, api_load
from rabble.bench.sides import Side
from rabble.registry import MessageRegistry
from tests.support import PATIENCE_S


@pytest.mark.parametrize("number", [0, 127, 128, 255, 256, 1_000, 65_535])
def test_a_request_is_a_frame_of_the_client_protocol(number: int) -> None:
    frame = api_load.msgpack_request(number, 7)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert Codec(MessageRegistry()).decode_message(frame[4:]) == [0, number, [api_load.WORD, 7]]


def test_a_request_in_json_and_its_answer_are_lines() -> None:
    assert json.loads(api_load.json_request(5, 7)) == {"id": 5, "msg": ["add", 7]}
    assert json.loads(api_load.json_answer(5, 7)) == {"id": 5, "value": ["add", 7]}
    assert api_load.json_request(5, 7).endswith(b"\n")


@pytest.mark.parametrize(("data", "complete"), [(b"", False), (b"ab", False), (b"abcd", True)])
def test_answers_may_come_in_pieces(data: bytes, complete: bool) -> None:
    assert api_load.same_bytes(data, [b"abcd"]) is complete


@pytest.mark.parametrize("data", [b"abX", b"abcde"])
def test_an_answer_that_is_another_one_is_found_out(data: bytes) -> None:
    with pytest.raises(ValueError, match="had to come"):
        api_load.same_bytes(data, [b"abcd"])


def response(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\ndate: now\r\n\r\n" % (status, len(body)) + body


def test_responses_of_http_are_told_apart_by_their_lengths() -> None:
    whole = response(b"[1]") + response(b"[22]")
    assert [api_load.same_bodies(whole[:n], [b"[1]", b"[22]"]) for n in range(len(whole))] == (
        [False] * len(whole)
    )
    assert api_load.same_bodies(whole, [b"[1]", b"[22]"])


@pytest.mark.parametrize(
    "data", [response(b"[2]"), response(b"[1]", b"500 No"), b"HTTP/1.1 200 OK\r\n\r\n[1]"]
)
def test_a_response_that_is_another_one_is_found_out(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"had to come|no answer is"):
        api_load.same_bodies(data, [b"[1]"])


def wrong_server(answer: Callable[[bytes], bytes]) -> str:
    """One that answers the first thing that a client says, and all that it says later, so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            sock.settimeout(PATIENCE_S)
            while data := sock.recv(1 << 16):
                sock.sendall(answer(data))

    threading.Thread(target=serve).start()
    host, port = listener.getsockname()
    return f"{host}:{port}"


def test_the_clients_end_when_they_are_answered_wrongly(capfd: pytest.CaptureFixture[str]) -> None:
    address = wrong_server(lambda data: data[:-1] + b"?")
    with Side(file=api.LOAD) as clients:
        load = api_load.Load(address, "msgpack", 1, 4, 1)
        with pytest.raises(RuntimeError, match="ended with status 1"):
            api.served(clients, load, os.getpid())
    assert "had to come" in capfd.readouterr().err


def test_who_answers_rightly_is_counted_and_what_it_takes() -> None:
    # The answer of the protocol in msgpack is its request.
    address = wrong_server(lambda data: data)
    with Side(file=api.LOAD) as clients:
        sample = api.served(clients, api_load.Load(address, "msgpack", 1, 4, 50), os.getpid())
    assert sample.messages == 200
    assert sample.details["server_us"] > 0
    assert sample.details["clients_us"] > 0


def test_the_processor_time_is_that_of_a_process_and_its_children() -> None:
    with Side(
        program=[
            "sh",
            "-c",
            "echo $$; read a; i=0; while [ $i -lt 99999 ]; do i=$((i+1)); done; echo done; read b",
        ]
    ) as child:
        assert int(child.read()) == child.pid
        before = api.processor_s(os.getpid()) - time.process_time()
        child.write("go")
        child.expect("done")
        assert api.processor_s(os.getpid()) - time.process_time() > before
        child.write("end")
