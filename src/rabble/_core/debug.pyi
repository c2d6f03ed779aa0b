__all__ = ["ENABLED", "live_counts"]

ENABLED: bool

def live_counts() -> dict[str, int]: ...
