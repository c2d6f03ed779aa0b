"""A web shop: FastAPI in front, a process of another node behind it.

uvicorn fastapi_shop:app --workers 2
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from shop import Order, Sold, SoldOut
from web_node import MESH, own_name

import rabble


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Each worker process is a node for as long as it serves."""
    with own_name() as name:
        async with rabble.rouse(name, mesh=MESH) as node:
            app.state.node = node
            yield


app = FastAPI(lifespan=lifespan)


class OrderBody(BaseModel):
    """What a client sends."""

    item: str
    count: int = Field(gt=0)


class OrderAnswer(BaseModel):
    """What a client is answered."""

    left: int
    served_by: str


@app.post("/orders")
async def order(body: OrderBody, request: Request) -> OrderAnswer:
    node: rabble.Node = request.app.state.node
    stock = await node.names.whereis_async("stock")
    if stock is None:
        raise HTTPException(503, "the shop is closed", {"Retry-After": "1"})
    match await node.call_async(stock, Order(body.item, body.count), timeout=10):
        case SoldOut(left):
            raise HTTPException(409, f"{left} left")
        case Sold(left):
            return OrderAnswer(left=left, served_by=node.node_id.name)


@app.get("/node")
async def whoami(request: Request) -> dict[str, object]:
    node: rabble.Node = request.app.state.node
    status = node.cluster_status()
    return {
        "node": str(node.node_id),
        "incarnation": status.incarnation,
        "up": sorted(peer.node.name for peer in status.connections),
    }


@app.exception_handler(rabble.RabbleError)
async def failed(request: Request, error: Exception) -> JSONResponse:
    """A crash, or what cannot be sent, is a defect; all else (a node is gone, say) passes."""
    if isinstance(error, rabble.ProcessCrashed | rabble.EncodeError | rabble.DecodeError):
        return JSONResponse({"detail": str(error)}, 500)
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
