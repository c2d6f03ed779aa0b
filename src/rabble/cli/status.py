"""The exit statuses of the command."""

from __future__ import annotations

__all__ = ["FAILED", "INTERRUPTED", "USAGE_ERROR"]

#: A benchmark or a node failed.
FAILED = 1
#: The arguments, or a file that they name, cannot be used.
USAGE_ERROR = 2
#: As a shell has it of what SIGINT ended.
INTERRUPTED = 130
