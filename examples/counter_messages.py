"""What the clients and the servers of counter_api.py say to each other: both sides import it.

A client needs nothing else of the servers, and not the compiled core either.
"""

from __future__ import annotations

import rabble
from rabble import Request


@rabble.message(name="counter_api.Total")
class Total:
    """What all clients have counted, as far as a server knows."""

    value: int


@rabble.message(name="counter_api.Counted")
class Counted(Request[Total]):
    """Says how much a client has counted so far, so it may be said twice; answered with `Total`."""

    client: str
    count: int


@rabble.message(name="counter_api.GetTotal")
class GetTotal(Request[Total]):
    """Asks a server for its `Total`."""


@rabble.message(name="counter_api.Watch")
class Watch:
    """From now on each `Total` of the server is pushed, the first at once. It has no answer."""
