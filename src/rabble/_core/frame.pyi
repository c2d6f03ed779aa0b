__all__ = ["FRAME_KINDS", "PROTOCOL_VERSIONS", "REFUSAL_CODES", "split_frame"]

FRAME_KINDS: dict[str, int]
PROTOCOL_VERSIONS: tuple[int, int]
REFUSAL_CODES: dict[str, int]

def split_frame(
    data: bytes, frame_bytes_max: int = 1048576
) -> tuple[int, int, bytes, int] | None: ...
