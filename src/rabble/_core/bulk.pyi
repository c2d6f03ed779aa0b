"""The bulk lane as it is written: whole frames, whose bytes may stay in the messages."""

__all__: list[str] = []
