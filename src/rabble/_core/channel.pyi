"""Channels: what a connection says, from its lanes to its socket, and how it ends."""
