"""The replicated counter, driven from asyncio: many increments under way at once."""

from __future__ import annotations

import asyncio

from replicated_counter import GetTotal, Increment, start

import rabble

INCREMENTS = 100


async def count() -> None:
    async with rabble.rouse() as node:
        replicas = start(node)
        calls = (node.call_async(replicas[0], Increment(1)) for _ in range(INCREMENTS))
        answers = await asyncio.gather(*calls)
        print(f"{len(answers)} increments answered, the last with {answers[-1].value}")
        totals = await asyncio.gather(*(node.call_async(pid, GetTotal()) for pid in replicas))
        for pid, total in zip(replicas, totals, strict=True):
            print(f"{pid.name} has {total.value}")
        if len({total.value for total in totals}) != 1:
            raise SystemExit("the replicas differ")
        print("all three are equal")


if __name__ == "__main__":
    asyncio.run(count())
