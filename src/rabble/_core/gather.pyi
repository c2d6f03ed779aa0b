"""The gather writer: frames of the bulk lane, whose bytes may stay in the messages."""

__all__: list[str] = []
