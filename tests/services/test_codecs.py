"""Codecs of clients: JSON lines, plain lines, protobuf, and a user's own; over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Node
from rabble.services.codecs import (
    FunctionCodec,
    Incoming,
    JsonLines,
    LengthFraming,
    LineFraming,
    Outgoing,
    PlainLines,
    Protobuf,
    decode_json,
    decode_line,
    encode_json,
    encode_line,
)
from rabble.services.server_handler import (
    Answer,
    ConnectionHandler,
    Fail,
    Push,
    RequestId,
    ServerOutput,
)
from rabble.services.server_limits import ServerLimits
from rabble.services.tcp_server import TcpServer
from tests.clients import Client, Ended, adding
from tests.support import until


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Saying(ConnectionHandler):
    """Answers with what it is told; fails, pushes or raises on demand."""

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        if request is None:
            return Push(msg)
        if msg == "fail":
            return Fail(request, "failed", "as  asked")
        if msg == "tuple":
            return Answer(request, {1, 2})
        if msg == "push":
            return [Push("pushed"), Answer(request, "done")]
        return Answer(request, msg)


def say(client: Client, text: str) -> str:
    client.sock.sendall(text.encode() + b"\n")
    return client.line()


def test_json_lines(node: Node) -> None:
    limits = ServerLimits(requests_max=1, drain_ms=20)
    with TcpServer(node, Saying, codec=JsonLines) as server, Client(server.address) as client:
        assert json.loads(say(client, '{"id":1,"msg":[1,null,"ä"]}')) == {
            "id": 1,
            "value": [1, None, "ä"],
        }
        assert json.loads(say(client, '{"msg":"x","more":1}')) == {"push": "x"}
        assert json.loads(say(client, '{"id":2,"msg":"fail","priority":1}\r')) == {
            "id": 2,
            "error": "failed",
            "text": "as  asked",
        }
        said = json.loads(say(client, '{"id":3,"msg":"tuple"}'))
        assert (said["id"], said["error"]) == (3, "failed") and "not JSON" in said["text"]
        assert json.loads(say(client, "{}"))["goodbye"] == "malformed"
        with pytest.raises(Ended):
            client.take(1)
    with adding(node, codec=JsonLines, limits=limits) as server, Client(server.address) as client:
        client.sock.sendall(b'{"id":1,"msg":"hold"}\n')
        until(lambda: server.status().in_flight == 1)
        assert json.loads(say(client, '{"id":2,"msg":1}'))["nack_ms"] == limits.retry_after_ms


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"[]",
        b"5",
        b"{}",
        b'{"id":1}',
        b'{"msg":1}{"msg":2}',
        b"\xff",
        b"[" * 100_000,
        b"NaN",
        b'{"id":1,"msg":NaN}',
        b'{"id":1,"msg":[-Infinity]}',
    ],
)
def test_what_is_no_line_of_json(node: Node, line: bytes) -> None:
    with TcpServer(node, Saying, codec=JsonLines) as server, Client(server.address) as client:
        client.sock.sendall(line + b"\n")
        assert client.json()["goodbye"] == "malformed"
        with pytest.raises(Ended):
            client.take(1)


@pytest.mark.parametrize("id", ['"1"', "-1", "1.5", "true", str(2**53), "[]"])
def test_what_is_no_id_in_json(node: Node, id: str) -> None:
    with TcpServer(node, Saying, codec=JsonLines) as server, Client(server.address) as client:
        client.sock.sendall(f'{{"id":{id},"msg":1}}\n'.encode())
        assert client.json()["goodbye"] == "malformed"


def test_plain_lines_are_answered_in_their_order(node: Node) -> None:
    with TcpServer(node, Saying, codec=PlainLines) as server, Client(server.address) as client:
        assert say(client, "hello") == "hello"
        assert say(client, "grüße\r") == "grüße"
        assert say(client, "fail") == "ERROR failed as asked"
        assert say(client, "tuple").startswith("ERROR failed TypeError: a line is a")
        assert say(client, "push") == "pushed"
        assert client.line() == "done"
        client.sock.sendall(b"".join(b"%d\n" % number for number in range(500)))
        assert [client.line() for _ in range(500)] == [str(number) for number in range(500)]
        client.sock.sendall(b"\xff\n")
        assert client.line().startswith("GOODBYE malformed")


def test_a_line_that_is_too_long_or_not_finished(node: Node) -> None:
    limits = ServerLimits(frame_bytes_max=100, partial_frame_ms_max=50)
    with TcpServer(node, Saying, codec=PlainLines, limits=limits) as server:
        with Client(server.address) as client:
            assert say(client, "x" * 100) == "x" * 100
            client.sock.sendall(b"x" * 101)
            assert client.line().startswith("GOODBYE too_large")
        with Client(server.address) as client:
            client.sock.sendall(b"half a li")
            assert client.line().startswith("GOODBYE timeout")


def test_a_codec_of_a_user_s_two_functions(node: Node) -> None:
    def decode(data: bytes) -> Incoming:
        head, _, rest = data.partition(b" ")
        return Incoming(rest.decode(), int(head) if head != b"-" else None)

    def encode(out: Outgoing) -> bytes:
        if out.value == "boom":
            raise RuntimeError("as asked")
        return f"{out.kind} {out.id} {out.value or out.code}".encode()

    codec = FunctionCodec(decode, encode, LineFraming(b"\0"))
    with TcpServer(node, Saying, codec=codec) as server, Client(server.address) as client:
        client.sock.sendall(b"7 hello\0- push\0008 boom\0x\0")
        assert client.take(15) == b"answer 7 hello\0"
        assert client.take(15) == b"push None push\0"
        assert client.take(17) == b"failure 8 failed\0"
        assert client.take(23) == b"goodbye None malformed\0"
        with pytest.raises(Ended):
            client.take(1)


def test_a_codec_that_cannot_even_say_goodbye_closes_its_connection_only(node: Node) -> None:
    armed: list[bool] = []

    def encode(out: Outgoing) -> bytes:
        if armed and out.kind != "answer":
            raise RuntimeError("never")
        return str(out.value).encode()

    codec = FunctionCodec(lambda data: Incoming(data.decode(), 1), encode, LineFraming())
    with TcpServer(node, Saying, codec=codec) as server:
        armed.append(True)
        with Client(server.address) as client, Client(server.address) as well:
            client.sock.sendall(b"fail\n")
            with pytest.raises(Ended):
                client.take(1)
            assert say(well, "hello") == "hello"


def test_a_codec_that_cannot_make_its_goodbyes_is_refused(node: Node) -> None:
    def encode(out: Outgoing) -> bytes:
        raise RuntimeError("never")

    with pytest.raises(RuntimeError, match="never"):
        TcpServer(node, Saying, codec=FunctionCodec(Incoming, encode, LengthFraming()))


@pytest.mark.parametrize("delimiter", [b"", b"\r\n", "\n", 10])
def test_what_is_no_delimiter(delimiter: Any) -> None:
    with pytest.raises(ValueError, match="must be one byte"):
        LineFraming(delimiter)


def test_the_functions_of_lines_by_themselves() -> None:
    assert decode_json(b'{"msg": {"a": 1}, "id": 4, "priority": -1}') == Incoming({"a": 1}, 4, -1)
    assert json.loads(encode_json(Outgoing("goodbye", code="idle", text="x"))) == {
        "goodbye": "idle",
        "text": "x",
    }
    with pytest.raises(ValueError):
        encode_json(Outgoing("answer", 1, float("nan")))
    assert decode_line(b"a\r") == Incoming("a", 0)
    assert encode_line(Outgoing("nack", 1, retry_after_ms=120)) == b"BUSY 120"
    assert encode_line(Outgoing("failure", 1, code="timeout")) == b"ERROR timeout"


class Request:
    """As much of a class that protobuf makes as the codec asks for."""

    def __init__(self, **fields: Any) -> None:
        self.id, self.text = fields["id"] or 0, fields["text"]
        self.has_id = fields["id"] is not None

    def HasField(self, name: str) -> bool:
        assert name == "id"
        return self.has_id

    @staticmethod
    def FromString(data: bytes) -> Request:
        head, _, rest = data.decode().partition(":")
        return Request(id=int(head) if head else None, text=rest)


class Response:
    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def SerializeToString(self) -> bytes:
        return json.dumps(self.fields).encode()

    @staticmethod
    def FromString(data: bytes) -> Response:
        return Response(**json.loads(data))


class Reading(ConnectionHandler):
    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        return Push(msg.text) if request is None else Answer(request, msg.text)


def test_protobuf_by_the_methods_that_its_classes_have(node: Node) -> None:
    def frame(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    codec = Protobuf(Request, Response)
    with TcpServer(node, Reading, codec=codec) as server, Client(server.address) as client:

        def receive() -> Any:
            return json.loads(client.take(int.from_bytes(client.take(4), "big")))

        client.sock.sendall(frame(b"7:hello") + frame(b":push") + frame(b"x:"))
        assert receive() == {"id": 7, "value": "hello"}
        assert receive() == {"value": "push"}
        assert receive()["code"] == "malformed"
    nack = codec.encode(Outgoing("nack", 3, text="busy", retry_after_ms=9))
    assert json.loads(nack) == {"id": 3, "code": "", "text": "busy", "retry_after_ms": 9}


def test_protobuf_itself(node: Node) -> None:
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    descriptor_pool = pytest.importorskip("google.protobuf.descriptor_pool")
    message_factory = pytest.importorskip("google.protobuf.message_factory")
    file = descriptor_pb2.FileDescriptorProto(name="clients.proto", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    request = file.message_type.add(name="Request")
    request.field.add(name="id", number=1, type=kinds.TYPE_UINT64, label=1, proto3_optional=True)
    request.oneof_decl.add(name="_id")
    request.field[0].oneof_index = 0
    request.field.add(name="text", number=2, type=kinds.TYPE_STRING, label=1)
    response = file.message_type.add(name="Response")
    for number, (name, kind) in enumerate(
        [
            ("id", kinds.TYPE_UINT64),
            ("code", kinds.TYPE_STRING),
            ("text", kinds.TYPE_STRING),
            ("retry_after_ms", kinds.TYPE_UINT32),
            ("value", kinds.TYPE_STRING),
        ],
        1,
    ):
        response.field.add(name=name, number=number, type=kind, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in ("Request", "Response")
    ]
    with TcpServer(node, Reading, codec=Protobuf(*made)) as server:
        with Client(server.address) as client:
            data = made[0](id=7, text="hello").SerializeToString()
            client.sock.sendall(len(data).to_bytes(4, "big") + data)
            answer = made[1].FromString(client.take(int.from_bytes(client.take(4), "big")))
            assert (answer.id, answer.value) == (7, "hello")
