"""The application that `api-http` is held against: the recipe for FastAPI, with the same work.

It needs fastapi; nothing of rabble imports it where that is not installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request

from rabble.bench.api_side import Answerer
from rabble.node import rouse

__all__ = ["app"]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """A worker is a node for as long as it serves."""
    async with rouse("api@127.0.0.1:0") as node:
        app.state.node = node
        app.state.answerer = node.spawn(Answerer(), "answerer")
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/requests")
async def requests(body: list[Any], request: Request) -> Any:
    """Passes a request on."""
    state = request.app.state
    return await state.node.call_async(state.answerer, body, timeout=10)
