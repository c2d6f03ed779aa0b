from typing import final

from rabble._core.plan import CodecBounds

__all__ = ["Decoder"]

@final
class Decoder(CodecBounds):
    @property
    def fields_dropped(self) -> int: ...
