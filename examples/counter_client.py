"""A client of counter_api.py: counts one each second, at whichever of its servers is there.

python counter_client.py ann 127.0.0.1:7001 127.0.0.1:7002 127.0.0.1:7003
"""

from __future__ import annotations

import secrets
import sys
import time

from counter_messages import Counted

from rabble import RabbleError
from rabble.client import Client, RetryPolicy


class Counting:
    """Counts as one client. A context manager, which ends the connection.

    What it says is its own count so far, so it says it again when it does not know whether it was
    heard: `lost=True`.
    """

    def __init__(self, name: str, *addresses: str) -> None:
        self.name = f"{name}-{secrets.token_hex(8)}"
        self.count = 0
        self.client = Client(*addresses, retry=RetryPolicy(lost=True))

    def add(self, by: int) -> int:
        """Count, and return the total of all clients."""
        self.count += by
        return self.client.call(Counted(self.name, self.count)).value

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


def main(name: str, *addresses: str) -> None:
    with Counting(name, *addresses) as counting:
        while True:
            try:
                print(f"the total is {counting.add(1)}", flush=True)
            except RabbleError as error:
                # The next count has this one in it.
                print(f"not counted yet: {error}", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
