from typing import Any, final

__all__ = ["Check"]

@final
class Check:
    def __new__(
        cls,
        kind: str,
        text: str,
        *,
        base: type | None = None,
        parts: tuple[Any, ...] = (),
        item: Check | None = None,
        entry: Check | None = None,
    ) -> Check: ...
    def fits(self, value: object) -> bool: ...
    def misfit(self, value: object) -> str | None: ...
    @property
    def text(self) -> str: ...
