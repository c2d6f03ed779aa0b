"""Frames: what a connection's stream of bytes is cut into."""

__all__ = ["FrameError", "split_frame"]

class FrameError(ValueError):
    code: int
    def __init__(self, code: int) -> None: ...

def split_frame(data: bytes, frame_bytes_max: int = ...) -> tuple[int, int, bytes, int] | None: ...
