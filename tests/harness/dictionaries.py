"""Dictionaries for tests, trained from updates as the harness makes them."""

import functools
import json

from protocol import messages
from protocol.native import codec, dictionary

SAMPLES = 200


def update(seed: int, number: int) -> messages.Update:
    """The update of a pod. Those of one seed have much in common."""
    labels = {f"label-{place}-{seed}": f"value-{place % 5}" for place in range(8)}
    content = {"kind": "Pod", "metadata": {"name": f"web-{number}", "labels": labels}, "filling": "x" * 40}
    return messages.Update(f"/core/v1/pods/default/web-{number}", json.dumps(content).encode(), str(1000 + number), 2)


def payloads(seed: int) -> list[bytes]:
    """Payloads of deltas of one pod each."""
    return [codec.encode_updates(number, number + 1, [update(seed, number)]) for number in range(SAMPLES)]


@functools.cache
def trained(number: int, max_bytes: int = dictionary.TRAINED_BYTES) -> dictionary.Compression:
    """A dictionary with this number. That of another number has another content."""
    made = dictionary.train(payloads(number), number, max_bytes=max_bytes)
    assert made is not None
    return made
