"""The sockets of a control plane: what listens, dials, shakes hands, finds seeds, speaks TLS."""

from __future__ import annotations

import functools
import selectors
import socket
from collections.abc import Callable, Collection, Sequence

from rabble._core.ids import NodeId
from rabble.addresses import Address
from rabble.cluster.config import Mesh
from rabble.cluster.decide.handshake import HandshakeConfig
from rabble.cluster.failures import Failures
from rabble.cluster.io.connector import Connector
from rabble.cluster.io.handshake_runner import HandshakeRunner
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.io.listener import Listener
from rabble.cluster.io.resolver import Resolver
from rabble.cluster.io.seeds import ADDRESSES_MAX, Seeds
from rabble.cluster.io.tls_proxy import TlsProxy
from rabble.cluster.renewal import Renewal
from rabble.cluster.runtime import ClusterRuntime
from rabble.limits import Limits

__all__ = ["Sockets"]


class Sockets:
    """All that has sockets before they are connections, put together; for one thread.

    :param renewal: has the contexts of TLS, and new ones when the files have changed.
    :param selector: of that thread; the data of each key is a `Ready`.
    :param listeners: owned from now on.
    :param failures: is told of what ends a single look-up or connection.
    :param post: has something done in that thread.
    :param accept: is called when a listener is ready, and `proceed` when a handshake is.
    :param config: what this node brings to a handshake.
    :param next_id: gives the connection that another node began its id.
    :param seed_looked_up: is told what a seed stands for, as `Seeds` says.
    :param seed_added: is called with an address to dial, `seed_dropped` with one to dial no longer;
        `seeds_dialled` tells those where nobody has answered yet, given the time.

    The other parameters are those of `ControlPlane`.
    """

    def __init__(
        self,
        own: NodeId,
        mesh: Mesh,
        renewal: Renewal,
        listeners: Sequence[socket.socket],
        runtime: ClusterRuntime,
        selector: selectors.BaseSelector,
        failures: Failures,
        *,
        limits: Limits,
        clock: Callable[[], float],
        token_bytes: Callable[[int], bytes],
        post: Callable[[Callable[[], None]], None],
        accept: Callable[[socket.socket, int], None],
        proceed: Callable[[HandshakeSocket, int], None],
        config: Callable[[], HandshakeConfig],
        next_id: Callable[[], int],
        seed_looked_up: Callable[[str, Collection[str] | OSError], None],
        seed_added: Callable[[str, Address], None],
        seed_dropped: Callable[[str], None],
        seeds_dialled: Callable[[float], Collection[str]],
    ) -> None:
        def resolver(what: str, waiting_max: int) -> Resolver:
            failed = functools.partial(runtime.failed, f"a thread that looks up {what}")
            name = f"rabble:{own.name}:{what}"
            return Resolver(name, failed, failures, waiting_max=waiting_max, clock=clock)

        self._renewal = renewal
        self.tls_proxy: TlsProxy | None = None
        if mesh.tls is not None:
            self.tls_proxy = TlsProxy(
                f"rabble:{own.name}:tls",
                buffer_bytes_max=limits.tls_buffer_bytes_max,
                clock=clock,
                failed=functools.partial(runtime.failed, "the TLS proxy"),
                failures=failures,
            )
        self.handshakes = HandshakeRunner(
            selector, ready=proceed, config=config, clock=clock, token_bytes=token_bytes
        )
        self.connector = Connector(
            self.handshakes,
            context=renewal.client,
            loopback_only=mesh.open_to_all,
            resolver=resolver("names", limits.dials_max),
            hearsay_resolver=resolver("hearsay", limits.dials_max),
            limits=limits,
            clock=clock,
        )
        self.listener = Listener(
            self.handshakes,
            selector,
            listeners,
            ready=accept,
            next_id=next_id,
            context=renewal.server,
            limits=limits,
            clock=clock,
        )
        # A resolver of its own: a seed's host that no name server knows takes long to look up, and
        # no dial of a member waits for that.
        self.seeds = Seeds(
            mesh.seeds,
            mesh.seed_file,
            resolver("seeds", ADDRESSES_MAX),
            looked_up=seed_looked_up,
            added=seed_added,
            dropped=seed_dropped,
            dialled=seeds_dialled,
            post=post,
            report=runtime.report,
            refresh_s=limits.seeds_refresh_ms / 1000,
            clock=clock,
        )

    def drop(self, connection_id: int) -> bool:
        """Drop a dial or a handshake without a word. False if there is none of that id."""
        # A dial is at its host name or at a socket, never at both.
        return self.connector.drop(connection_id) or self.handshakes.drop(connection_id)

    def __contains__(self, connection_id: int) -> bool:
        return connection_id in self.connector or connection_id in self.handshakes

    def renew(self, now: float) -> None:
        """Look at the files of keys and certificates, for what is connected from now on."""
        self._renewal.tick(now, self.connector.renew, self.listener.renew)

    def next_tick(self) -> float | None:
        """When listener, connector or a handshake has something to do."""
        parts = (self.handshakes, self.listener, self.connector)
        times = [time for part in parts if (time := part.next_tick()) is not None]
        return min(times, default=None)

    def drain(self) -> None:
        """Listen no longer, and drop the dials that no peer can take for a connection yet."""
        self.listener.close()
        self.connector.drop_all()
        self.handshakes.drop_unauthenticated_dials()

    # The end, in steps that may be taken twice; see `take_steps`.

    def close_handshakes(self) -> None:
        """Close the listeners and every socket whose handshake goes on."""
        self.listener.close()
        self.handshakes.close()
        self.connector.close()

    def close_inherited(self) -> None:
        """In a forked child: close its copies of all these sockets."""
        self.listener.close_inherited()
        self.handshakes.close_inherited()
        if self.tls_proxy is not None:
            self.tls_proxy.close_inherited()

    def close_seeds(self) -> None:
        """Look for seeds no longer."""
        self.seeds.close()

    def stop_tls_proxy(self) -> None:
        """End the thread of the TLS connections."""
        if self.tls_proxy is not None:
            self.tls_proxy.stop()
