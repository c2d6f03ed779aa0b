"""What decides: state machines that are told what happened, and what time it is.

Nothing here does I/O, asks a clock or draws from a random source of its own; a test holds it.
"""
