from typing import final

__all__ = ["BulkPairs"]

@final
class BulkPairs: ...
