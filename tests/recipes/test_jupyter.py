"""A notebook, by a real kernel: cells that are run twice, interrupted, and the kernel's end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.environment import ROOT
from tests.recipes.web import run, shop_node

pytestmark = pytest.mark.timeout(900)  # the first test may have to make the environment


def test_a_kernel_is_a_node_from_its_cell_to_its_end(tmp_path: Path) -> None:
    node, addr = shop_node()
    script = str(ROOT / "tests" / "recipes" / "run_notebook.py")
    # Nothing of the user's own settings, and nothing is left among them.
    folders = (
        "HOME",
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
    )
    env = {"SHOP_SEEDS": addr, **dict.fromkeys(folders, str(tmp_path))}
    with node, run([script, "shop.ipynb"], env=env) as person:
        person.expect("^rouse: $")
        person.expect(r"^order: Sold\(left=97\)")
        person.expect("^basket: 1$")
        person.expect(r"^basket again: the one of the cell's last run goes on \| 2$")
        person.expect(r"^blocking: RuntimeError: .*write `await node.call_async\(...\)`")
        person.expect(r"^interrupted: it waits \| (CancelledError|KeyboardInterrupt)")
        person.expect("^after it: 3$")
        node.expect(r"up notebook@")
        person.expect("^rouse again: $")
        node.expect(r"down notebook@\S+ incarnation \d+: shutdown")
        node.expect(r"up notebook@")
        person.expect(r"^order again: Sold\(left=94\)")
        person.expect("^another: ")
        person.expect("^another is: .*NAME_CONFLICT")
        # A kernel that is restarted, or ends, ends its nodes.
        node.expect(r"down notebook@\S+ incarnation \d+: shutdown")
        person.expect("^rouse in a new kernel: $")
        person.expect(r"^order there: Sold\(left=91\)")
        node.expect(r"up notebook@")
        node.expect(r"down notebook@\S+ incarnation \d+: shutdown")
        person.expect("^the end")
        person.ended()
