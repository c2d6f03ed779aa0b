"""Notices: what the runtime asks of an executor, each the message of an envelope to its pid."""

__all__: list[str] = []
