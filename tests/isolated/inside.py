"""What the scripts of these tests begin with: `from tests.isolated.inside import *`."""

# ruff: noqa: F401 - the scripts use them.

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import rabble
from rabble import (
    CallTimeout,
    CorrelationId,
    Envelope,
    ForkedNode,
    Limits,
    Mesh,
    Monitor,
    Node,
    NodeDown,
    NodeStopped,
    NodeUp,
    Process,
    ServiceHandler,
    Shutdown,
    ShutdownTimeout,
    StartTimer,
)
from tests.support import PATIENCE_S, Does, Echo, until
from tests.support import descriptors as descriptors
from tests.support import eventfds as eventfds


class Upper(ServiceHandler):
    """Answers in capitals, and counts how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def handle_envelope(self, envelope: Envelope, service: rabble.Service) -> Any:
        if envelope.sender is None:
            return None
        return Envelope(
            envelope.sender, envelope.msg.upper(), correlation_id=envelope.correlation_id
        )

    def close(self, service: rabble.Service) -> None:
        self.closed += 1


class Witness(Process):
    """Counts how often it is told that its node ends."""

    def __init__(self) -> None:
        self.told = 0

    def init(self) -> Envelope:
        return Envelope(self.executor, Monitor(self.executor))

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        self.told += isinstance(msg, Shutdown)


class Watched:
    """A node with somebody who sees each end that it has."""

    def __init__(self, **options: Any) -> None:
        self.node = rabble.rouse(**options)
        self.witness = Witness()
        self.handler = Upper()
        self.node.spawn(self.witness, "witness")
        self.upper = self.node.register_service(self.handler, "upper").pid
        self.echo = self.node.spawn(Echo(), "echo")
        self.silent = self.node.spawn(Does(lambda process, msg, sender: None), "silent")
        # After this the witness has been heard, and the service has begun.
        assert self.node.call(self.echo, 1, PATIENCE_S) == 1
        assert self.node.call(self.upper, "a", PATIENCE_S) == "A"

    def has_ended_once(self) -> None:
        """To be called after a `shutdown` returned: nothing of the node runs any more."""
        assert self.node.status == "stopped", self.node.status
        assert rabble_threads() == [], rabble_threads()
        assert (self.witness.told, self.handler.closed) == (1, 1), vars(self)


def rabble_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("rabble:")]


def busy(process: Process, msg: Any, sender: Any) -> Envelope:
    """Sends itself every message again, for ever."""
    return Envelope(process.pid, msg)
