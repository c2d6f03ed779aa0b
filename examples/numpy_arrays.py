"""Arrays and scalars of numpy as messages: a type of another library, with two functions each.

    pip install numpy; python examples/numpy_arrays.py

`register_type` is for classes that are nobody's to declare. What `decode` is given came from a
peer, so it looks at it: an array of objects would be unpickled, and is not let in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import rabble
from rabble.registry import default_registry


def encode_array(array: np.ndarray[Any, Any]) -> list[Any]:
    if array.dtype.kind not in "biufcSU":
        raise TypeError(f"an array of dtype {array.dtype} does not travel")
    return [array.dtype.str, list(array.shape), array.tobytes()]


def decode_array(parts: list[Any]) -> np.ndarray[Any, Any]:
    form, shape, data = parts
    dtype = np.dtype(form)
    if dtype.kind not in "biufcSU":
        raise TypeError(f"an array of dtype {dtype} does not travel")
    # A copy: what `frombuffer` gives alone cannot be written to.
    return np.frombuffer(data, dtype).reshape(shape).copy()


def register(registry: rabble.MessageRegistry) -> None:
    """Let arrays and the usual scalars travel."""
    registry.register_type(np.ndarray, "numpy.ndarray", encode_array, decode_array)
    for scalar in (np.bool_, np.int32, np.int64, np.float32, np.float64):
        # `item` is the plain int, float or bool.
        name = f"numpy.{scalar.__name__}"
        registry.register_type(scalar, name, lambda value: value.item(), scalar)


@rabble.message(name="numpy_arrays.Samples")
class Samples:
    rate: int
    values: np.ndarray[Any, Any]


class Averager(rabble.Process):
    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
        return rabble.Envelope(sender, msg.values.mean(axis=0), correlation_id=correlation_id)


def main() -> None:
    register(default_registry)
    # Strict: every message goes through the codec, as if to another node.
    with rabble.rouse(strict=True) as node:
        pid = node.spawn(Averager(), "averager")
        answer = node.call(pid, Samples(44_100, np.array([[1.0, 2.0], [3.0, 4.0]])))
        print(f"{answer.dtype} {answer.tolist()}")
        answer = node.call(pid, Samples(44_100, np.array([1.0, 2.0])))
        print(type(answer).__name__, answer)


if __name__ == "__main__":
    main()
