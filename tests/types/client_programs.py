"""Programs of clients that are right and wrong, for the type checkers; nothing here is run."""

from __future__ import annotations

import rabble
from rabble import Request
from rabble.client import AsyncClient, Client, JsonLines, RetryBudget, RetryPolicy


@rabble.message(name="GetPrice")
class GetPrice(Request[int]):
    item: str


@rabble.message(name="Plain")
class Plain:
    item: str


def blocking(client: Client) -> int:
    price: int = client.call(GetPrice("chair"))
    name: str = client.call(GetPrice("chair"))  # mypy: assignment # pyright: reportAssignmentType
    anything: str = client.call(Plain("chair"), timeout=1, priority=1)
    client.send(Plain(anything))
    client.call(GetPrice("chair"), 1.0, 1)  # mypy: call-overload # pyright: reportCallIssue
    for push in client.pushes():
        print(push, name)
    print(client.rocess)  # mypy: attr-defined # pyright: reportAttributeAccessIssue reportUnknownMemberType reportUnknownArgumentType
    print(rabble.Rocess)  # mypy: attr-defined # pyright: reportAttributeAccessIssue reportUnknownMemberType reportUnknownArgumentType
    return price


async def asynchronous() -> int:
    policy = RetryPolicy(attempts_max=5, budget=RetryBudget(ratio=0.2))
    async with AsyncClient("a:1", "b:2", framing=JsonLines, retry=policy) as client:
        await client.send("x")
        async for push in client.pushes(timeout=1.0):
            print(push)
        return await client.call(GetPrice("chair"))
