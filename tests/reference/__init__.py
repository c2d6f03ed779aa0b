"""Slow, obviously right versions of what is compiled."""
