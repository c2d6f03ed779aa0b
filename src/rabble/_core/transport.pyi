"""Transports: what a connection sends, from its lanes to its socket, and how it ends."""
