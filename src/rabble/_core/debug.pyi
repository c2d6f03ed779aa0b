__all__ = ["CAPACITIES", "ENABLED", "live_counts"]

CAPACITIES: dict[str, int]
ENABLED: bool

def live_counts() -> dict[str, int]: ...
