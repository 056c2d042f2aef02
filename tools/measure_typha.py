"""Compares the cost of Typha's protocol with the native protocol: CPU time of frames and hellos, and memory.

PYTHONPATH=. .venv/bin/python tools/measure_typha.py
"""

import functools
import random
import sys
import time
import tracemalloc
from collections.abc import Callable

from protocol import encoding, messages
from protocol.native import connection as native
from protocol.native import encoder as native_encoder
from protocol.typha import codec, connection, encoder
from protocol.typha import messages as typha_messages

VALUE_BYTES = 958
"""The same as in the measurement of the Go encoder: 3.2, 10 and 79 us for 1, 10 and 100 updates, per client."""
ROUNDS = 7
CALLS = 200
CONNECTIONS = 1000

HELLO = typha_messages.ClientHello(
    hostname="node-a",
    info="felix",
    version="v3.33.0",
    syncer_type="felix",
    supports_decoder_restart=True,
    supported_compression_algorithms=("snappy",),
    supports_modern_policy_keys=True,
    client_connection_id=2**64 - 1,
)
HELLO_BYTES = codec.CLIENT.definitions + codec.encode(HELLO, types=codec.CLIENT)
ANSWERS = codec.encode(typha_messages.Ack(), types=codec.CLIENT) + codec.encode(
    typha_messages.Pong(bytes([1]) + bytes(14)), types=codec.CLIENT
)


def say(what: str, figure: float, unit: str) -> None:
    """Print one figure."""
    sys.stdout.write(f"{what:<64}{figure:>10.2f} {unit}\n")


def microseconds(action: Callable[[], object]) -> float:
    """Mean CPU time per call, in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(CALLS):
            action()
        best = min(best, time.process_time() - begun)
    return best / CALLS * 1e6


def update(number: int) -> messages.Update:
    """An update that looks like JSON and compresses about as well as real objects."""
    dice = random.Random(number)
    text = ",".join(f'"label-{place}":"{dice.getrandbits(40):010x}"' for place in range(40))
    key = f"/calico/resources/v3/projectcalico.org/workloadendpoints/ns-{number % 50}/node-{number}-k8s-pod-eth0"
    return messages.Update(key, text.encode()[:VALUE_BYTES], str(100_000 + number), 2, str(100_000 + number))


def serve_typha() -> connection.Connection:
    """A server connection after the handshake, an ack and a pong."""
    server = connection.Connection(connection.Role.SERVER)
    server.receive_data(HELLO_BYTES)
    server.next_event()
    server.accept()
    server.data_to_send()
    server.receive_data(ANSWERS)
    while server.next_event() is not None:
        pass
    server.data_to_send()
    return server


def serve_native(hello: bytes) -> native.Connection:
    """A server connection of the native protocol after the handshake."""
    server = native.Connection(native.Role.SERVER)
    server.receive_data(hello)
    server.next_event()
    server.send(messages.ServerHello(version=1, feed="felix", incarnation=bytes(16)))
    server.data_to_send()
    return server


def memory_bytes(make: Callable[[], object]) -> float:
    """Mean memory of a connection."""
    make()
    tracemalloc.start()
    kept = [make() for _ in range(CONNECTIONS)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / len(kept)


def main() -> None:
    """Measure and print everything."""
    updates = [update(number) for number in range(100)]
    encoders: list[encoding.Encoder] = [
        *(encoder.TyphaEncoder(compress=compress) for compress in (True, False)),
        *(native_encoder.NativeEncoder(zstd=zstd) for zstd in (False, True)),
    ]
    for count in (1, 10, 100):
        for made in encoders:
            some = updates[:count]
            frames = made.updates(0, some)
            say(f"{made.name}: frame of {count} updates", microseconds(functools.partial(made.updates, 0, some)), "us")
            say(f"{made.name}: size of the frame", sum(len(frame.data) for frame in frames), "B")
    reader = codec.make_client_decoder()
    reader.receive(codec.SERVER.definitions)
    for count in (1, 10, 100):
        message = codec.encode_key_values([codec.encode_update(one) for one in updates[:count]])

        def decode(data: bytes = message) -> None:
            reader.receive(data)
            reader.next_value()

        say(f"decode a message of {count} updates", microseconds(decode), "us")

    def decode_hello() -> None:
        fresh = codec.make_server_decoder()
        fresh.receive(HELLO_BYTES)
        fresh.next_value()

    say("decode a hello", microseconds(decode_hello), "us")
    say("the whole handshake, with an ack and a pong", microseconds(serve_typha), "us")
    native_client = native.Connection(native.Role.CLIENT)
    native_client.send(messages.ClientHello(feed="felix", agent="felix"))
    native_hello = native_client.data_to_send()
    say("the native handshake", microseconds(lambda: serve_native(native_hello)), "us")
    say("memory of a connection", memory_bytes(serve_typha), "B")
    say("memory of a native connection", memory_bytes(lambda: serve_native(native_hello)), "B")


if __name__ == "__main__":
    main()
