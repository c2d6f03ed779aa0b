"""What a person does with a notebook, for test_jupyter.py; run where jupyter_client is.

    python run_notebook.py NOTEBOOK

It drives a real kernel, and prints what the cells give.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import nbformat
from nbclient import NotebookClient

WAITS = """
class Silent(rabble.Process):
    def receive(self, msg, sender, correlation_id):
        return None
print("it waits", flush=True)
await node.call_async(node.spawn(Silent(), "silent"), "hello", timeout=float("inf"))
"""


class Person:
    """Runs cells, and looks at what they give."""

    def __init__(self, path: str) -> None:
        self.notebook = nbformat.read(path, as_version=4)
        self.code = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        self.client = NotebookClient(
            self.notebook, timeout=60, kernel_name="python3", allow_errors=True
        )

    async def run(self, cell: Any) -> str:
        """Run a cell of the notebook, or a new one of this text; what stands below it then."""
        if isinstance(cell, str):
            cell = nbformat.v4.new_code_cell(cell)
            self.notebook.cells.append(cell)
        await self.client.async_execute_cell(cell, self.notebook.cells.index(cell))
        return shown(cell)

    async def interrupt(self, text: str) -> str:
        """Run a cell that waits for ever, and interrupt it once it has printed something."""
        cell = nbformat.v4.new_code_cell(text)
        self.notebook.cells.append(cell)
        running = asyncio.create_task(self.run(cell))
        while not cell.outputs:
            assert not running.done()
            await asyncio.sleep(0.01)
        await self.client.km.interrupt_kernel()
        return await running


def shown(cell: Any) -> str:
    """What a cell shows, without colours and tracebacks."""
    texts = []
    for output in cell.outputs:
        match output["output_type"]:
            case "stream":
                texts.append(output["text"].strip())
            case "error":
                texts.append(f"{output['ename']}: {output['evalue']}")
            case _:
                texts.append(output["data"]["text/plain"])
    return " | ".join(texts)


async def main() -> None:
    person = Person(sys.argv[1])
    rouse, order, basket = person.code

    def say(what: str, text: str) -> None:
        print(f"{what}: {text}", flush=True)

    async with person.client.async_setup_kernel():
        say("rouse", await person.run(rouse))
        say("order", await person.run(order))
        say("basket", await person.run(basket))
        say("basket again", await person.run(basket))
        say("blocking", await person.run("node.call(basket, 1)"))
        say("interrupted", await person.interrupt(WAITS))
        say("after it", await person.run("await node.call_async(basket, 1)"))
        say("rouse again", await person.run(rouse))
        say("order again", await person.run(order))
        # The mistake: another node of the same name, while the first one lives.
        another = "another = rabble.rouse('notebook@127.0.0.1:0', mesh=Mesh('shop', seeds=seeds))"
        say("another", await person.run(another))
        refused = "while not another.cluster_status().refusals:\n    await asyncio.sleep(0.01)\n"
        say("another is", await person.run(refused + "another.cluster_status().refusals"))
        await person.client.km.restart_kernel(now=False)
        await person.client.kc.wait_for_ready()
        say("rouse in a new kernel", await person.run(rouse))
        say("order there", await person.run(order))
        await person.client.km.shutdown_kernel(now=False)
    print("the end", flush=True)


asyncio.run(main())
