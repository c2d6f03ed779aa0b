"""What both halves of the codec know: the extension types, and the plans of registered classes."""

from typing import final

__all__ = ["Plan"]

@final
class Plan: ...
