"""What a test asks about the build: its capacities, and in the debug build counts of objects."""

__all__ = ["CAPACITIES", "ENABLED", "live_counts"]

CAPACITIES: dict[str, int]
ENABLED: bool

def live_counts() -> dict[str, int]: ...
