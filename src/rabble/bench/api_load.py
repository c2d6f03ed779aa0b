"""The clients of `api`: one loop over many sockets, in an operating-system process of its own. Run
as a file.

`python api_load.py` reads one line for each run from its standard input, JSON with the fields of
`Load`; connects, has each connection answered once, says `ready`, waits for another line, and
prints what it counted. Neither rabble nor any codec is imported: what it sends was encoded before,
and what comes is compared with what has to come.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import resource
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence

#: Of a request: a list of a word and a small number, as in `remote`.
WORD = "add"
#: How many different batches each connection has, one after the other; and its first id.
BATCHES = 8
FIRST = 1_000
RECV_BYTES = 1 << 18
PATIENCE_S = 120.0
HTTP_LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Load:
    """One run.

    :param address: `host:port` of the server.
    :param protocol: `msgpack`, `json` or `http`: see `PROTOCOLS`.
    :param connections: how many there are.
    :param pipelined: how many requests of each are under way.
    :param batches: how many times so many requests are sent, by all of them together.
    """

    address: str
    protocol: str
    connections: int
    pipelined: int
    batches: int


def packed(number: int) -> bytes:
    """A number in msgpack, at most 65535."""
    if number < 128:
        return bytes((number,))
    return b"\xcc%c" % number if number < 256 else b"\xcd" + number.to_bytes(2, "big")


def framed(body: bytes) -> bytes:
    """A frame of the client protocol."""
    return len(body).to_bytes(4, "big") + body


def msgpack_request(number: int, value: int) -> bytes:
    """`[0, number, [WORD, value]]`, framed: the request, and its answer as well."""
    word = bytes((0xA0 | len(WORD),)) + WORD.encode()
    return framed(b"\x93\x00" + packed(number) + b"\x92" + word + packed(value))


def json_request(number: int, value: int) -> bytes:
    """The same as a line of JSON."""
    return json.dumps({"id": number, "msg": [WORD, value]}, separators=(",", ":")).encode() + b"\n"


def json_answer(number: int, value: int) -> bytes:
    """What has to come of it."""
    said = {"id": number, "value": [WORD, value]}
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def http_request(number: int, value: int) -> bytes:
    """The same as the body of a POST."""
    body = json.dumps([WORD, value]).encode()
    head = (
        f"POST /requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def http_body(number: int, value: int) -> bytes:
    """What has to come of it, but for the head, in which there is a date."""
    return json.dumps([WORD, value], separators=(",", ":")).encode()


def same_bytes(data: bytes, expected: Sequence[bytes]) -> bool:
    """Whether all answers of a batch have come. They are in the order of the requests.

    :raises ValueError: if they are not what they have to be.
    """
    (whole,) = expected
    if data == whole:
        return True
    if not whole.startswith(data):
        raise ValueError(f"{whole!r} had to come, and {data!r} came")
    return False


def same_bodies(data: bytes, expected: Sequence[bytes]) -> bool:
    """The same of responses of HTTP, whose heads are the server's.

    :raises ValueError: if they are not what they have to be.
    """
    at = 0
    for body in expected:
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            return False
        length = HTTP_LENGTH.search(data, at, end + 2)
        if not data.startswith(b"HTTP/1.1 200 ", at) or length is None:
            raise ValueError(f"no answer is what begins with {data[at : at + 200]!r}")
        at = end + 4 + int(length[1])
        if len(data) < at:
            return False
        if data[end + 4 : at] != body:
            raise ValueError(f"{body!r} had to come, and {data[end + 4 : at]!r} came")
    return len(data) == at


Make = Callable[[int, int], bytes]

#: What is sent of a request, what has to come, and how it is looked at.
PROTOCOLS: dict[str, tuple[Make, Make, Callable[[bytes, Sequence[bytes]], bool]]] = {
    "msgpack": (msgpack_request, msgpack_request, same_bytes),
    "json": (json_request, json_answer, same_bytes),
    "http": (http_request, http_body, same_bodies),
}


class Client:
    """One connection: what it sends, again and again, and what has to come."""

    def __init__(self, load: Load, number: int) -> None:
        request, answer, self.has_come = PROTOCOLS[load.protocol]
        host, _, port = load.address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), PATIENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        batches = []
        for batch in range(BATCHES):
            first = FIRST + batch * load.pipelined
            numbers = range(first, first + load.pipelined)
            values = [(n, (number * 31 + n) % 100) for n in numbers]
            answers = [answer(*each) for each in values]
            batches.append(
                (
                    b"".join(request(*each) for each in values),
                    answers if self.has_come is same_bodies else [b"".join(answers)],
                )
            )
        self.batches = itertools.cycle(batches)
        self.expected: Sequence[bytes] = ()
        self.come = b""

    def send(self) -> None:
        """The next batch. It is short, and nothing is on the way, so the kernel takes it all."""
        data, self.expected = next(self.batches)
        self.come = b""
        if self.sock.send(data) != len(data):
            raise OSError("the kernel took a part of a batch: choose fewer requests")

    def take(self) -> bool:
        """What came. Whether it was the rest of the batch."""
        data = self.sock.recv(RECV_BYTES)
        if not data:
            raise ConnectionError(f"the server has closed a connection after {self.come!r}")
        self.come = self.come + data if self.come else data
        return self.has_come(self.come, self.expected)


def exchange(clients: Sequence[Client], batches: int) -> None:
    """So many batches, by all of them together, each of which has one at a time."""
    by_fd = {client.sock.fileno(): client for client in clients}
    with select.epoll() as poll:
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)
        to_begin = batches
        under_way = 0
        for client in clients[:batches]:
            client.send()
            to_begin -= 1
            under_way += 1
        while under_way:
            ready = poll.poll(PATIENCE_S)
            if not ready:
                raise TimeoutError("the server answers nothing any more")
            for fd, _ in ready:
                client = by_fd[fd]
                if client.take():
                    if to_begin:
                        to_begin -= 1
                        client.send()
                    else:
                        under_way -= 1


def processor_s() -> float:
    """Seconds of the processor that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(load: Load) -> dict[str, float]:
    """Connect, warm up, wait for the word to go, and measure."""
    clients = [Client(load, number) for number in range(load.connections)]
    try:
        exchange(clients, load.connections)
        print("ready", flush=True)
        sys.stdin.readline()
        used = processor_s()
        start = time.perf_counter()
        exchange(clients, load.batches)
        seconds = time.perf_counter() - start
        return {
            "requests": load.batches * load.pipelined,
            "seconds": seconds,
            "processor_s": processor_s() - used,
        }
    finally:
        for client in clients:
            client.sock.close()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(Load(**json.loads(line)))), flush=True)
