"""The gate in front of a server: what it lets in, what it refuses, whose turn it is.

Pure decisions: what happens and the time go in, what is to be done comes out. The server acts.
"""

from rabble.services.gate.fair_queue import FairQueue

__all__ = ["FairQueue"]
