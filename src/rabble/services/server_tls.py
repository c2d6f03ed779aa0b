"""TLS for clients: certificates that may change, and handshakes that are bounded."""

from __future__ import annotations

import collections
import dataclasses
import os
import selectors
import socket
import ssl
from collections.abc import Callable

from rabble.cluster.io.keys import read_private
from rabble.cluster.io.watched_files import WatchedFiles
from rabble.errors import KeyFileError

__all__ = ["Handshake", "Handshakes", "ServerTls"]

#: Files that have changed are looked at again after so many seconds, and read if they stand still.
SETTLED_S = 1.0


@dataclasses.dataclass(frozen=True)
class ServerTls:
    """The files that a server needs to speak TLS with clients, all in PEM.

    They are read again when they change, for new connections.

    :param cert: the server's certificate, followed by intermediate ones if there are any.
    :param key: its private key, not encrypted, which only its owner may read.
    :param client_ca: the certificates of the authorities that issue those of clients: then each
        client has to show one (mutual TLS). `None` lets in clients without one.
    """

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]
    client_ca: str | os.PathLike[str] | None = None

    @property
    def files(self) -> list[str | os.PathLike[str]]:
        """The paths of all of them."""
        return [self.cert, self.key, *([] if self.client_ca is None else [self.client_ca])]

    def watched(self) -> WatchedFiles[ssl.SSLContext]:
        """The context of the files as they are by now. For one thread.

        :raises KeyFileError: says which file cannot be used, and why.
        """
        return WatchedFiles(self.files, server_context)


def server_context(cert: str, key: str, client_ca: str | None = None) -> ssl.SSLContext:
    """The context of some files.

    :raises KeyFileError: says which file cannot be used, and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Each connection shows its certificates anew: a session would outlive them.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    read_private(key)
    try:
        # Without a password OpenSSL would ask for one at the terminal, and wait.
        context.load_cert_chain(cert, key, password=b"")
    except (OSError, ValueError) as error:
        raise KeyFileError(
            f"{cert}, {key}: not a certificate in PEM and its private key, not encrypted: {error}"
        ) from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=client_ca)
        except (OSError, ValueError) as error:
            raise KeyFileError(f"{client_ca}: no certificates in PEM: {error}") from error
    return context


@dataclasses.dataclass(eq=False)
class Handshake:
    """One that goes on."""

    sock: ssl.SSLSocket
    peer: str
    host: str
    ends_at: float
    events: int = selectors.EVENT_READ


class Handshakes:
    """The TLS handshakes of a server's clients. For the thread that accepts.

    :param selector: of that thread; the data of each key is the `Handshake`.
    :param most: how many may go on: beyond it the oldest is dropped.
    :param within_s: seconds that each has.
    :param done: called with the socket, peer and host of each that is done.
    :param dropped: called with the host of each that came to nothing.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        most: int,
        within_s: float,
        done: Callable[[ssl.SSLSocket, str, str], None],
        dropped: Callable[[str], None],
    ) -> None:
        self._selector = selector
        self._most = most
        self._within_s = within_s
        self._done = done
        self._dropped = dropped
        #: The oldest first: each has as long as the others.
        self._going_on: collections.OrderedDict[Handshake, None] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._going_on)

    def begin(
        self, context: ssl.SSLContext, sock: socket.socket, peer: str, host: str, now: float
    ) -> None:
        """Begin one with a socket that was accepted, which is this object's from now on."""
        while len(self._going_on) >= self._most:
            self._drop(next(iter(self._going_on)))
        try:
            stream = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            self._dropped(host)
            raise
        handshake = Handshake(stream, peer, host, now + self._within_s)
        self._going_on[handshake] = None
        self._selector.register(stream, handshake.events, handshake)

    def proceed(self, handshake: Handshake) -> None:
        """Its socket is ready."""
        if handshake not in self._going_on:
            return
        events = selectors.EVENT_READ
        try:
            handshake.sock.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            events = selectors.EVENT_WRITE
        except (OSError, ValueError):
            # What a client does wrong is its own matter.
            self._drop(handshake)
            return
        else:
            self._selector.unregister(handshake.sock)
            del self._going_on[handshake]
            self._done(handshake.sock, handshake.peer, handshake.host)
            return
        if events != handshake.events:
            handshake.events = events
            self._selector.modify(handshake.sock, events, handshake)

    def expire(self, now: float) -> None:
        """Drop those whose time is over."""
        while self._going_on and (oldest := next(iter(self._going_on))).ends_at <= now:
            self._drop(oldest)

    def next_end(self) -> float | None:
        """When the next one's time is over."""
        return next(iter(self._going_on)).ends_at if self._going_on else None

    def drop_all(self) -> None:
        """The server ends."""
        while self._going_on:
            self._drop(next(iter(self._going_on)))

    def close_inherited(self) -> None:
        """In a forked child: close its copies."""
        for handshake in self._going_on:
            handshake.sock.close()

    def _drop(self, handshake: Handshake) -> None:
        self._selector.unregister(handshake.sock)
        del self._going_on[handshake]
        handshake.sock.close()
        self._dropped(handshake.host)
