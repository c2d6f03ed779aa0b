"""An installation without the compiled modules: the client works, and what does not says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from rabble._core.codec import Codec
from rabble.registry import MessageRegistry
from tests.cimports import CORE
from tests.client.servers import Peer, Script

VECTORS = Path(__file__).parent / "vectors" / "values.json"

#: As if none of them had been built: the pure modules of the core are found, the others are not.
HIDE = f"""
import importlib.machinery, sys
COMPILED = {sorted(path.stem for path in CORE.glob("*.pyx"))!r}

class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.startswith("rabble._core.") and name.rpartition(".")[2] in COMPILED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
"""


def run(body: str, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDE + body, *argv],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


CALLS = """
import dataclasses, enum
import rabble, rabble.client

@rabble.message(name="Get")
class Get(rabble.Request[int]):
    key: str
    more: list[int] = dataclasses.field(default_factory=list)

@rabble.message(name="Colour")
class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass(frozen=True)
class Own:
    n: int

registry = rabble.MessageRegistry()
registry.register(Get, "Get")
registry.register(Own, "Own")
registry.register(Colour, "Colour")
with rabble.client.Client(sys.argv[1], registry=registry) as client:
    for msg in (Get("k"), Own(5), Colour.RED, {"a": (1, {2})}):
        assert client.call(msg) == msg, msg
    try:
        client.call("wrong")
    except rabble.DecodeError as error:
        print(error)
assert not [name for name in sys.modules if name.startswith("rabble._core.") and
            name.rpartition(".")[2] in COMPILED]
print("worked")
"""


def test_a_client_calls_with_classes_and_holds_them_against_their_annotations() -> None:
    # Get, with an int as its key.
    wrong = b"\xc7\x07\x01\xa3Get\x92\x05\x90"

    def serve(peer: Peer) -> None:
        while (said := peer.frame()) is not None:
            head = len(b"\x93\0" + msgpack.packb(said[1]))
            value = wrong if said[2] == "wrong" else peer.last[head:]
            peer.send_encoded(said[1], value)

    with Script(serve) as server:
        out = run(CALLS, server.address)
    assert "Get.key: expected str, but an int (5) came" in out
    assert out.endswith("worked\n")


def test_the_vectors_are_read_and_written() -> None:
    body = """
import json
from rabble.client.codec import codec_of
from rabble.client.limits import ClientLimits
from rabble.registry import default_registry
codec = codec_of(default_registry, ClientLimits())
print(type(codec).__name__)
for vector in json.loads(sys.argv[1])["vectors"]:
    data = bytes.fromhex(vector["hex"])
    assert codec.encode_message(codec.decode_message(data)) == data, vector
"""
    assert run(body, VECTORS.read_text()) == "PlainCodec\n"


def test_what_needs_the_core_says_so() -> None:
    body = """
import rabble
for name in ("Node", "Pid", "Process"):
    try:
        getattr(rabble, name)
    except ImportError as error:
        assert "needs rabble's compiled core" in str(error), error
        assert "rabble.client" in str(error)
    else:
        raise AssertionError(name)
print(sorted({"Node", "Pid"} & set(dir(rabble))), rabble.Request.__name__, rabble.RabbleError)
from rabble import client, MessageRegistry, message
"""
    assert run(body) == "['Node', 'Pid'] Request <class 'rabble.errors.RabbleError'>\n"


def test_on_a_free_threaded_python_the_lock_stays_as_it_is() -> None:
    body = "sys._is_gil_enabled = lambda: False\nimport rabble.client; print('worked')"
    assert run(body) == "worked\n"


@pytest.mark.parametrize(
    "vector", json.loads(VECTORS.read_text())["vectors"], ids=lambda vector: vector["python"][:40]
)
def test_the_compiled_codec_agrees_with_the_vectors(vector: dict[str, str]) -> None:
    codec = Codec(MessageRegistry())
    data = bytes.fromhex(vector["hex"])
    assert codec.encode_message(codec.decode_message(data)) == data
