"""What decides: state machines that get what happened, and the time, as arguments.

Nothing here does I/O, asks a clock or draws from a random source of its own; a test holds it.
"""
