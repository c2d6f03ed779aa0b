"""The sockets that a server listens on, and their addresses as text."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Any

from rabble.addresses import split_address

__all__ = ["ListeningSockets", "peer_of"]

BACKLOG = 4_096
UNIX = "unix:"


class ListeningSockets:
    """Where a server listens. For the thread that opens it, and then for the one that accepts.

    :param bind: `host:port`; port 0 takes a free one. Or `unix:PATH`, of a socket in the file
        system: a stale one, at which nobody listens, is replaced.
    :param mode: of such a file: who may connect. By default the owner alone.
    :param reuse_port: let other processes listen there too (SO_REUSEPORT): the kernel spreads the
        connections over them.
    :raises ValueError: if `bind` is neither.
    :raises OSError: if it cannot be done; says what and where.
    """

    def __init__(self, bind: str, *, mode: int = 0o600, reuse_port: bool = False) -> None:
        self.sockets: list[socket.socket] = []
        self._path: str | None = None
        self._file: tuple[int, int] | None = None
        try:
            if bind.startswith(UNIX):
                self._listen_at_path(bind.removeprefix(UNIX), mode)
            else:
                self._listen_at_address(bind, reuse_port)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where clients connect: as `bind`, with the port that it got."""
        return self._address

    def close(self) -> None:
        """Listen no longer. The file of a Unix socket is removed, if it is still this one."""
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        if self._path is not None:
            with contextlib.suppress(OSError):
                status = os.lstat(self._path)
                if (status.st_dev, status.st_ino) == self._file:
                    os.unlink(self._path)
            self._path = None

    def close_inherited(self) -> None:
        """In a forked child: close its copies."""
        for sock in self.sockets:
            sock.close()

    def _listen_at_address(self, bind: str, reuse_port: bool) -> None:
        host, port = split_address(bind)
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        for family, kind, proto, _, where in dict.fromkeys(found):
            sock = socket.socket(family, kind, proto)
            self.sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((where[0], port, *where[2:]))
                sock.listen(BACKLOG)
            except OSError as error:
                raise OSError(
                    error.errno, f"cannot listen on {bind} ({where[0]}): {error.strerror}"
                ) from error
            port = sock.getsockname()[1]
        self._address = f"{bind.rpartition(':')[0]}:{port}"

    def _listen_at_path(self, path: str, mode: int) -> None:
        if not path:
            raise ValueError("bind: write unix:PATH, with the path of the socket")
        remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(sock)
        sock.setblocking(False)
        try:
            sock.bind(path)
        except OSError as error:
            # A path that is too long is no error of the system's, and has no number.
            why = error.strerror or error
            raise OSError(error.errno, f"cannot listen on {path}: {why}") from error
        status = os.lstat(path)
        self._path, self._file = path, (status.st_dev, status.st_ino)
        # Before it listens nobody can connect, whatever mode it began with.
        os.chmod(path, mode)
        sock.listen(BACKLOG)
        self._address = UNIX + path


def remove_stale(path: str) -> None:
    """Remove the socket that a server left behind which was killed. Anything else stays.

    :raises OSError: if somebody listens there.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass
        else:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {path}: another server does")


def peer_of(sock: socket.socket, where: Any) -> tuple[str, str]:
    """The address of a client as text, and what of it counts for the bound by address.

    :param where: as `accept` gave it.
    """
    if sock.family == socket.AF_UNIX:
        return UNIX + sock.getsockname(), ""
    host, port = str(where[0]), where[1]
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), host
