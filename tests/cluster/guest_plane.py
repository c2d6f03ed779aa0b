"""The control plane of a guest, whose turns the test takes."""

from __future__ import annotations

import collections
import itertools
import os
import random
import selectors
import time

from rabble import Limits, Mesh, NodeId
from rabble.cluster.config import guest_id
from rabble.cluster.control_plane import ControlPlane
from tests.cluster.plane import KEY, QUICK, Plane, Runtime, make_poller


class GuestPlane(Plane):
    """As `Plane`, of a guest: it listens nowhere."""

    def __init__(self, name: str | NodeId, first_incarnation: int = 1, **limits: int) -> None:
        mesh = Mesh(key=KEY, guest=True)
        self.limits = Limits(**{**QUICK, **limits})
        self.own = guest_id(name, mesh)
        self.runtime = Runtime(self.own)
        self.commands = collections.deque()
        self.selector = selectors.DefaultSelector()
        self.poller = make_poller(self.limits)
        self.plane = ControlPlane(
            self.own,
            mesh,
            (),
            self.poller,
            self.runtime,
            self.selector,
            post=self.commands.append,
            limits=self.limits,
            clock=time.monotonic,
            rng=random.Random(1),
            token_bytes=os.urandom,
            new_incarnation=itertools.count(first_incarnation).__next__,
        )
        self.plane.sockets.seeds.start()
