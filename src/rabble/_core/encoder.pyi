from typing import final

from rabble._core.plan import CodecBounds

__all__ = ["Encoder"]

@final
class Encoder(CodecBounds): ...
