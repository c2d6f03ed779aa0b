"""Keys and certificates that change while a node runs: what new connections are made with."""

from __future__ import annotations

import dataclasses
import functools
import logging
import ssl
from collections.abc import Callable
from typing import Any

from rabble.cluster.config import Credentials, Mesh, credentials_of
from rabble.cluster.io.tls import TlsConfig, TlsContexts
from rabble.cluster.io.watched_files import WatchedFiles
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.status import StatusBoard
from rabble.errors import KeyFileError
from rabble.limits import Limits

__all__ = ["Renewal"]

#: Of the end of the node's certificate it is warned so many days before, and so often.
WARNING_DAYS = 30
WARN_EVERY_S = 86_400.0
#: Files that have changed are looked at again after so many seconds, and read if they stand still.
SETTLED_S = 1.0
REMEDY = (
    "put a file there that can be used, and it is read without a restart; the next start needs it"
)


def read_contexts(tls: TlsConfig, cert: str, key: str, ca: str) -> TlsContexts:
    """The contexts of files, made as by `tls`, which may be of a class of the application's."""
    return TlsContexts.read(dataclasses.replace(tls, cert=cert, key=key, ca=ca))


class Renewal:
    """The keys, and the contexts of TLS, of the files as they are by now.

    For the cluster server's thread.

    :param name: of the node, for the log.
    :param status_board: is told of the keys, and when the certificate ends.
    :param now: monotonic seconds, as everywhere.
    :raises KeyFileError: if the files cannot be used at the start.

    In a mesh without TLS the contexts are `None`, and without a key there are no keys.
    """

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        status_board: StatusBoard,
        runtime: ClusterRuntime,
        limits: Limits,
        now: float,
    ) -> None:
        self._name = name
        self._status_board = status_board
        self._runtime = runtime
        self._refresh_s = limits.credentials_refresh_ms / 1000
        self._tls: WatchedFiles[TlsContexts] | None = None
        self._key_file: WatchedFiles[Credentials] | None = None
        #: What this node proves itself with. For any thread, as is `certificate_fingerprint`.
        self.credentials = Credentials()
        if mesh.key is None or isinstance(mesh.key, bytes):
            self.credentials = mesh.read_credentials()
        else:
            self._key_file = WatchedFiles([mesh.key], self._read_credentials)
            self.credentials = self._key_file.content
        if mesh.tls is not None:
            files = [mesh.tls.cert, mesh.tls.key, mesh.tls.ca]
            self._tls = WatchedFiles(files, functools.partial(read_contexts, mesh.tls))
            status_board.certificate_ends_at = self._tls.content.ends_at
        status_board.key_ids = self.credentials.ids
        #: When to call `tick`; `None` if there are no files.
        self.next_tick = None if self._tls is None and self._key_file is None else now
        self._warn_at = now

    @property
    def client(self) -> ssl.SSLContext | None:
        """For what is dialled."""
        return None if self._tls is None else self._tls.content.client

    @property
    def certificate_fingerprint(self) -> bytes | None:
        """The fingerprint of the public key in the node's certificate."""
        return None if self._tls is None else self._tls.content.fingerprint

    @property
    def server(self) -> ssl.SSLContext | None:
        """For what is accepted."""
        return None if self._tls is None else self._tls.content.server

    def tick(
        self,
        now: float,
        use_client: Callable[[ssl.SSLContext], None],
        use_server: Callable[[ssl.SSLContext], None],
    ) -> None:
        """Look at the files if it is time to.

        :param use_client: called with the context for what is dialled from now on, if it is new.
        :param use_server: the same for what is accepted.
        """
        if self.next_tick is None or now < self.next_tick:
            return
        self.next_tick = now + self._refresh_s
        try:
            if self._key_file is not None and self._is_new(self._key_file, "keys"):
                self._use_keys(self._key_file.content)
        finally:
            if self._tls is not None:
                if self._is_new(self._tls, "certificates"):
                    use_client(self._tls.content.client)
                    use_server(self._tls.content.server)
                    self._status_board.certificate_ends_at = self._tls.content.ends_at
                    self._warn_at = now
                    text = "the certificates have changed; new connections use them"
                    self._report(logging.INFO, text)
                self._warn_of_end(now)
        watched = (self._key_file, self._tls)
        if any(files is not None and files.is_settling for files in watched):
            self.next_tick = now + min(SETTLED_S, self._refresh_s)

    def _read_credentials(self, path: str) -> Credentials:
        """What the key file holds, if nodes that have what is used so far take it."""
        found, kinds = credentials_of(path, self._name), ("a cluster", "one node")
        has_own, had_own = (each.node_key is not None for each in (found, self.credentials))
        if self.credentials.ids and has_own != had_own:
            raise KeyFileError(
                f"{path}: the key of {kinds[has_own]}, in place of the key of {kinds[had_own]}: "
                f"who has the one refuses who has the other. To change from one to the other stop "
                f"all nodes of the mesh"
            )
        return found

    def _is_new(self, files: WatchedFiles[Any], what: str) -> bool:
        """Whether files have another content; a file that cannot be used is reported."""
        try:
            return files.renew()
        except KeyFileError as error:
            self._report(logging.WARNING, f"the {what} stay those of before: {error}; {REMEDY}")
            return False

    def _use_keys(self, credentials: Credentials) -> None:
        self.credentials = credentials
        own, *others = self._status_board.key_ids = credentials.ids
        accepted = f", and {others[0]} is accepted, too" if others else ", and no other is accepted"
        if credentials.node_key is not None:
            accepted = ", which is its own"
        text = f"the key file has changed; this node proves itself with the key {own}{accepted}"
        self._report(logging.INFO, f"{text}, where connections begin from now on")

    def _warn_of_end(self, now: float) -> None:
        days = self._status_board.certificate_days_left()
        if days is None or days >= WARNING_DAYS or now < self._warn_at:
            return
        self._warn_at = now + WARN_EVERY_S
        if days > 0:
            self._report(logging.WARNING, f"its certificate ends in {days:.1f} days")
        else:
            self._report(logging.WARNING, "its certificate has ended: nobody new will take it")

    def _report(self, level: int, text: str) -> None:
        self._runtime.report(level, functools.partial(str, f"{self._name}: {text}"))
