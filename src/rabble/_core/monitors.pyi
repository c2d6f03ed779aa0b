from typing import final

__all__ = ["Monitors", "RemoteMonitor"]

@final
class RemoteMonitor: ...

@final
class Monitors: ...
