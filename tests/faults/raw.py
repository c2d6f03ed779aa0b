"""A peer made of a plain socket, which does the handshake and then says whatever it is told to."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable

from rabble import Node, NodeId, Pid
from rabble._core.codec import Codec
from rabble._core.frame import split_frame
from rabble._core.session import Session
from rabble.cluster.decide.handshake import (
    Authenticate,
    Established,
    Failed,
    Handshake,
    HandshakeConfig,
    Role,
    Send,
)
from rabble.registry import MessageRegistry
from tests.reference.records import Sealer, Verifier
from tests.reference.session import BYE, LOST, frame
from tests.support import KEY, PATIENCE_S

CLUSTER = "test"


def dial(node: Node) -> socket.socket:
    """A connection to a node, with nothing said yet."""
    host, _, port = node.node_id.addr.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def read_to_end(sock: socket.socket) -> bytes:
    """All that still comes. A reset is an end, too."""
    said = b""
    try:
        while data := sock.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    return said


class RawPeer:
    """Dials a node and does the handshake; what it came to is in `ended`.

    :param to: whom to dial.
    :param proof: changes what is said as PROOF.
    :param authenticated: asks for a stream that is authenticated, which it has on loopback
        otherwise only if the node asks.
    """

    def __init__(
        self,
        to: Node,
        name: str = "raw",
        *,
        addr: str = "127.0.0.1:1",
        key: bytes | None = KEY,
        cluster: str = CLUSTER,
        incarnation: int | None = None,
        join: bool = False,
        versions: tuple[int, int] = (1, 1),
        receive_buffer: int | None = None,
        proof: Callable[[bytes], bytes] = bytes,
        authenticated: bool = False,
    ) -> None:
        self.node = NodeId(name, addr)
        self.incarnation = time.time_ns() if incarnation is None else incarnation
        config = HandshakeConfig(
            self.node,
            self.incarnation,
            cluster,
            key,
            secured=key is None,
            authenticate_loopback=authenticated,
            versions=versions,
        )
        nonce = os.urandom(32)
        handshake = Handshake(
            Role.INITIATOR, config, nonce, time.monotonic(), join, on_loopback=True
        )
        self.sock = dial(to)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._heard = b""
        self.sealer: Sealer | None = None
        self.verifier: Verifier | None = None
        self.session: Session | None = None
        self.said: list[bytes] = []
        self.ended = self._carry(handshake, proof)

    def _carry(
        self, handshake: Handshake, proof: Callable[[bytes], bytes]
    ) -> Established | Failed | None:
        actions = handshake.start()
        while True:
            for action in actions:
                match action:
                    case Send(data):
                        self._write(data)
                    case Authenticate(_, data):
                        self._write(proof(data))
                    case Established(peer, leftover, keys):
                        if keys is not None:
                            self.sealer, self.verifier = Sealer(keys[0]), Verifier(keys[1])
                        self._heard = self._verified(leftover)
                        codec = Codec(MessageRegistry())
                        executor = Pid("executor", self.node, "rabble")
                        self.session = Session(
                            self.node, peer.node, peer.incarnation, executor, codec=codec
                        )
                        return action
                    case Failed():
                        return action
            try:
                data = self.sock.recv(4096)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            actions = handshake.receive(data, time.monotonic())

    def _write(self, data: bytes) -> None:
        self.said.append(data)
        self.sock.sendall(data)

    def say(self, data: bytes) -> None:
        """Send bytes, whatever they are; as records, if the stream is authenticated."""
        self.sock.sendall(data if self.sealer is None else self.sealer.seal_all(data))

    def _verified(self, data: bytes) -> bytes:
        if self.verifier is None:
            return data
        verified = self.verifier.take(data)
        assert not self.verifier.wrong
        return verified

    def frame(self) -> tuple[int, int, bytes] | None:
        """The next frame: kind, flags and body. None at the end of the stream."""
        while (found := split_frame(self._heard)) is None:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._heard += self._verified(data)
        kind, flags, body, size = found
        self._heard = self._heard[size:]
        return kind, flags, body

    @staticmethod
    def whole(found: tuple[int, int, bytes]) -> bytes:
        """The bytes of a frame again."""
        return frame(*found)

    @staticmethod
    def lost(count: int) -> bytes:
        """The frame that says that so many envelopes were lost."""
        return frame(LOST, 0, struct.pack(">I", count))

    def wait_for(self, wanted: int) -> bytes | None:
        """The body of the next frame of that kind; others are passed over."""
        while (found := self.frame()) is not None:
            if found[0] == wanted:
                return found[2]
        return None

    def goodbye(self) -> int | None:
        """The code of the BYE that it is told, up to the end of the stream."""
        body = self.wait_for(BYE)
        return None if body is None else body[0]

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
