"""Mutates valid native streams and feeds them to both ends: `python -m tests.fuzz.fuzz_native --seconds 60 --seed 1`.

A round may only raise RemoteProtocolError, and must return nothing after it. A failure prints the seed and the number
of the round, which reproduce it.
"""

import argparse
import random
import time

from protocol import digest, errors, messages
from protocol.native import codec, connection, frames

MAX_FRAME_BYTES = 64 * 1024


def client_stream() -> bytes:
    """The bytes that a client sends in a session."""
    protocol = connection.Connection(connection.Role.CLIENT)
    hello = messages.ClientHello(
        feed="pods",
        agent="fuzz",
        features=frozenset(messages.Feature),
        resume=messages.ResumePosition(bytes(16), 7),
        chunk_digests=(1, 2**64 - 1),
        subscription={"kinds": ("Pod",)},
    )
    for message in (hello, messages.Pong(0), messages.Pong(9), messages.Goodbye("client-closed")):
        protocol.send(message)
    return protocol.data_to_send()


def server_stream() -> bytes:
    """The bytes that a server sends in a session."""
    pairs = [(f"/core/v1/pods/default/web-{number}", b'{"kind":"Pod"}' * 20) for number in range(20)]
    total = digest.state_digest(pairs)
    updates = tuple(messages.Update(key, value, "1", 1) for key, value in pairs)
    session: list[messages.Message] = [
        messages.ServerHello(version=1, feed="pods", incarnation=bytes(16), features=frozenset({"zstd"})),
        messages.Ping(),
        messages.SnapshotBegin(5, 20, 1),
        messages.SnapshotChunk(0, total, True, updates[:10]),
        messages.SnapshotChunk(0, total, False, updates[10:]),
        messages.SnapshotEnd(5, 20, total),
        messages.Status(5, messages.SyncStatus.IN_SYNC),
        messages.Updates(5, 6, (messages.Update("/k", None, "2", 3),)),
        messages.Goodbye("shutting-down", "bye", 1000),
    ]
    compressor = frames.make_compressor()
    packed = [frames.pack_frame(codec.encode(message), compressor=compressor) for message in session]
    return frames.PREFACE + b"".join(packed)


def mutate(stream: bytes, rng: random.Random) -> bytes:
    """Changes, removes, repeats or inserts some bytes."""
    mutated = bytearray(stream)
    for _ in range(rng.randrange(1, 6)):
        position = rng.randrange(len(mutated) + 1)
        end = min(len(mutated), position + rng.randrange(1, 32))
        match rng.randrange(5):
            case 0:
                mutated[position:end] = b""
            case 1:
                mutated[position:position] = mutated[position:end]
            case 2:
                mutated[position:end] = rng.randbytes(end - position)
            case 3:
                mutated[position:position] = rng.choice(
                    [b"\x00", b"\xff", b"\xc0", b"\xdd\xff\xff\xff\xff", b"\x91" * 40]
                )
            case _ if position < len(mutated):
                mutated[position] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def feed(role: connection.Role, stream: bytes, rng: random.Random) -> int:
    """Feeds a stream in pieces. Returns the number of messages received."""
    protocol = connection.Connection(role, max_frame_bytes=MAX_FRAME_BYTES)
    received = 0
    position = 0
    while position < len(stream):
        step = rng.choice([1, 7, 100, len(stream)])
        protocol.receive_data(stream[position : position + step])
        position += step
        try:
            while protocol.next_event() is not None:
                received += 1
        except errors.RemoteProtocolError:
            assert protocol.state is connection.State.ERROR
            assert protocol.next_event() is None
            protocol.receive_data(stream)
            assert protocol.next_event() is None
            return received
    assert protocol.pending_bytes <= MAX_FRAME_BYTES + frames.HEADER.size
    return received


def run(seed: int, *, rounds: int | None = None, seconds: float | None = None) -> tuple[int, int]:
    """Runs for a number of rounds or seconds. Returns the number of rounds and of messages received."""
    streams = [(connection.Role.SERVER, client_stream()), (connection.Role.CLIENT, server_stream())]
    deadline = None if seconds is None else time.monotonic() + seconds
    done = received = 0
    while (rounds is None or done < rounds) and (deadline is None or time.monotonic() < deadline):
        rng = random.Random(f"{seed}/{done}")
        role, stream = streams[done % 2]
        try:
            received += feed(role, mutate(stream, rng), rng)
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {done}, {role.value}: {error!r}") from error
        done += 1
    return done, received


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    done, received = run(arguments.seed, seconds=arguments.seconds)
    parser.exit(0, f"{done} rounds, {received} messages received, no failure\n")


if __name__ == "__main__":
    main()
