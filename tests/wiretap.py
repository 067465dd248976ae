"""All that this process and its actors serialize for each other, as Python objects."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import cloudpickle
import jax
import numpy as np
import pytest


@contextlib.contextmanager
def tapped() -> Iterator[list[Any]]:
    """The list of what is serialized here, and of what comes serialized, from here on.

    What goes from node to node are the very objects that come here too.
    """
    from ray._private.serialization import SerializationContext

    seen: list[Any] = []
    serialize = SerializationContext.serialize
    deserialize = SerializationContext.deserialize_objects

    def sent(self, value):
        seen.append(value)
        return serialize(self, value)

    def came(self, *args, **options):
        values = deserialize(self, *args, **options)
        seen.extend(values)
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SerializationContext, "serialize", sent)
        patch.setattr(SerializationContext, "deserialize_objects", came)
        yield seen


class _Pickler(cloudpickle.Pickler):
    """Notes every array on its way; Ray's references stand for what is looked at by itself."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.arrays: list[np.ndarray] = []

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, np.ndarray | jax.Array):
            self.arrays.append(np.asarray(obj))
        return "reference" if type(obj).__name__ == "ObjectRef" else None


def looked_into(seen: Sequence[Any]) -> tuple[list[np.ndarray], list[bytes]]:
    """All arrays in what was serialized, however deep, and its bytes."""
    arrays: list[np.ndarray] = []
    blobs = []
    for value in seen:
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(value)
        arrays += pickler.arrays
        blobs.append(file.getvalue())
    return arrays, blobs


def leaked(secrets: Sequence[bytes], blobs: Sequence[bytes]) -> list[int]:
    """The numbers of the secrets whose bytes are in one of the blobs."""
    everything = b"|".join(blobs)
    return [number for number, secret in enumerate(secrets) if secret in everything]
