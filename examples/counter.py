"""A counter: one process that is told numbers and asked for their total."""

from typing import Any

import rabble


class Counter(rabble.Process):
    def __init__(self) -> None:
        self.total = 0

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
        if msg == "total":
            return rabble.Envelope(sender, self.total, correlation_id=correlation_id)
        self.total += msg
        return None


with rabble.rouse() as node:
    counter = node.spawn(Counter(), "counter")
    for number in 1, 2, 3:
        node.send(counter, number)
    print("the total is", node.call(counter, "total"))
