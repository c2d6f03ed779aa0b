"""The hotel's web side: what a client sends goes to the room as it is, once it is valid.

uvicorn bookings_web:app
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from bookings import Booking, Confirmed, Full
from fastapi import FastAPI, HTTPException, Request
from web_node import MESH, own_name

import rabble


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with own_name() as name:
        async with rabble.rouse(name, mesh=MESH) as node:
            app.state.node = node
            yield


app = FastAPI(lifespan=lifespan)


@app.post("/bookings")
async def book(booking: Booking, request: Request) -> Confirmed:
    node: rabble.Node = request.app.state.node
    room = await node.names.whereis_async("room")
    if room is None:
        raise HTTPException(503, "nobody is at the desk", {"Retry-After": "1"})
    match await node.call_async(room, booking, timeout=10):
        case Confirmed() as confirmed:
            return confirmed
        case Full(until=until):
            raise HTTPException(409, f"full until {until}")
        case other:
            raise TypeError(f"the room answered {other!r}")
