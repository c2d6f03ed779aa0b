"""Certificates that change while a node runs: new contexts for new connections."""

from __future__ import annotations

import functools
import logging
import ssl
from collections.abc import Callable

from rabble.cluster.config import Mesh
from rabble.cluster.io.tls import TlsContexts
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.status import StatusBoard
from rabble.errors import KeyFileError
from rabble.limits import Limits

__all__ = ["Renewal"]

#: Of the end of the node's certificate it is warned so many days before, and so often.
WARNING_DAYS = 30
WARN_EVERY_S = 86_400.0


class Renewal:
    """The contexts of TLS, of the files as they are by now. For the cluster server's thread.

    :param name: of the node, for the log.
    :param status_board: is told when the certificate ends.
    :param now: monotonic seconds, as everywhere.
    :raises KeyFileError: if the files cannot be used at the start.

    In a mesh without TLS there is nothing to do, and the contexts are `None`.
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
        self._refresh_s = limits.certificates_refresh_ms / 1000
        self._contexts = None if mesh.tls is None else TlsContexts(mesh.tls)
        #: When to call `tick`; `None` without TLS.
        self.next_tick: float | None = None
        self._warn_at = now
        if self._contexts is not None:
            status_board.certificate_ends_at = self._contexts.ends_at
            self.next_tick = now

    @property
    def client(self) -> ssl.SSLContext | None:
        """For what is dialled."""
        return None if self._contexts is None else self._contexts.client

    @property
    def key(self) -> bytes | None:
        """The fingerprint of the public key in the node's certificate."""
        return None if self._contexts is None else self._contexts.key

    @property
    def server(self) -> ssl.SSLContext | None:
        """For what is accepted."""
        return None if self._contexts is None else self._contexts.server

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
        contexts = self._contexts
        if contexts is None or self.next_tick is None or now < self.next_tick:
            return
        self.next_tick = now + self._refresh_s
        try:
            if contexts.renew():
                use_client(contexts.client)
                use_server(contexts.server)
                self._status_board.certificate_ends_at = contexts.ends_at
                self._warn_at = now
                self._report(
                    logging.INFO, "the certificates have changed; new connections use them"
                )
        except KeyFileError as error:
            self._report(logging.ERROR, f"the certificates stay those of before: {error}")
        days = self._status_board.certificate_days_left()
        if days is not None and days < WARNING_DAYS and now >= self._warn_at:
            self._warn_at = now + WARN_EVERY_S
            if days > 0:
                self._report(logging.WARNING, f"its certificate ends in {days:.1f} days")
            else:
                self._report(logging.WARNING, "its certificate has ended: nobody new will take it")

    def _report(self, level: int, text: str) -> None:
        self._runtime.report(level, functools.partial(str, f"{self._name}: {text}"))
