__all__ = ["ENDS"]

ENDS: tuple[str, ...]
