"""Helpers for tests of processes, and of programs that are made of nodes.

`World` is a node without threads: nothing happens in it but what a test asks for, and time goes on
when it is told to. For pytest the fixtures `rabble_world` and `rabble_rouse` come with the package.
"""

from rabble.testing.world import Crash, Probe, World

__all__ = ["Crash", "Probe", "World"]
