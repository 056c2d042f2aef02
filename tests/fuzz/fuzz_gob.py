"""Mutates valid Typha streams and feeds them to both ends: `python -m tests.fuzz.fuzz_gob --seconds 60 --seed 1`.

The corpus consists of the recorded streams and odd inputs in tests/wire. A round may only raise RemoteProtocolError,
and must return nothing after it. It must finish within the time limit, and buffer no more than the limits allow. A
failure prints the seed and the number of the round, which reproduce it.
"""

import argparse
import functools
import random
import resource
import time
from collections.abc import Iterator

from protocol import errors
from protocol.gob import decoder
from protocol.typha import codec, connection, encoder, messages, snappy
from tests import wire

CLIENT, SERVER = connection.Role.CLIENT, connection.Role.SERVER
LIMITS = decoder.Limits(message_bytes=64 * 1024, skipped_values=16 * 1024)
MAX_STREAM_BYTES = 6000
"""Length to which recorded streams are cut: later data repeats the beginning."""
MAX_SECONDS = 2.0
"""Time limit of a round: about 1,000 times the slowest one."""
INTERESTING = [
    b"\x00",
    b"\xff",
    b"\xf8\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x7f\x03",
    b"\xff\x81\x03",
    b"\x01\x01\x08",
    b"\x10",
]

Entry = tuple[str, bytes]
"""The target ("server", "decoder", or the syncer type that a client asks for) and the stream."""
_FOLDERS = (
    *(("client-hello", "*.bin", "server"), ("client-to-server-odd", "*.bin", "server")),
    *(("streams", "*.client.bin", "server"), ("streams", "*.server.bin", "client")),
    *(("server-to-client-odd", "*.bin", "client"), ("messages", "*.first.gob", "decoder")),
)


@functools.cache
def corpus() -> tuple[Entry, ...]:
    """The beginning of each recorded stream."""
    found = [
        ("felix", wire.load("shared-frames/plain-hello-restart.bin") + wire.load("shared-frames/all-after-ack.bin"))
    ]
    for folder, pattern, target in _FOLDERS:
        for path in sorted((wire.FOLDER / folder).glob(pattern)):
            syncer_type = next((name for name in messages.SYNCER_TYPES if name in path.name), messages.FELIX)
            found.append((syncer_type if target == "client" else target, path.read_bytes()[:MAX_STREAM_BYTES]))
    return tuple(entry for entry in found if entry[1])


def mutate(stream: bytes, rng: random.Random) -> bytes:
    """Changes, removes, repeats or inserts some bytes."""
    mutated = bytearray(stream)
    for _ in range(rng.randrange(1, 5)):
        position = rng.randrange(len(mutated) + 1)
        end = min(len(mutated), position + rng.randrange(1, 32))
        match rng.randrange(6):
            case 0:
                mutated[position:end] = b""
            case 1:
                mutated[position:position] = mutated[position:end]
            case 2:
                mutated[position:end] = rng.randbytes(end - position)
            case 3:
                mutated[position:position] = rng.choice(INTERESTING)
            case 4 if position < len(mutated):
                mutated[position] = rng.randrange(256)
            case _ if position < len(mutated):
                mutated[position] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def recompress(stream: bytes, rng: random.Random) -> bytes:
    """Mutates the content of the chunks and compresses it again, so that the checksums are valid."""
    start = stream.find(snappy.IDENTIFIER)
    if start < 0:
        return mutate(stream, rng)
    reader = snappy.ChunkReader()
    reader.receive(stream[start:])
    content = b""
    try:
        while (piece := reader.next_content()) is not None:
            content += piece
    except errors.RemoteProtocolError:
        return mutate(stream, rng)
    return stream[:start] + snappy.IDENTIFIER + snappy.compress(mutate(content, rng) if content else content)


def feed(target: str, stream: bytes, rng: random.Random) -> int:
    """Feeds a stream in pieces. Returns the number of messages received."""
    if target == "decoder":
        return feed_decoder(stream, rng)
    protocol = connection.Connection(SERVER if target == "server" else CLIENT, limits=LIMITS)
    if target != "server":
        hello = messages.ClientHello(
            syncer_type=target, supports_decoder_restart=True, supported_compression_algorithms=("snappy",)
        )
        protocol.send_hello(hello)
    received = 0
    for piece in pieces(stream, rng):
        protocol.receive_data(piece)
        try:
            while (message := protocol.next_event()) is not None:
                received += 1
                if isinstance(message, messages.ClientHello) and protocol.state is connection.State.HELLO_RECEIVED:
                    assert protocol.accept() in (encoder.PLAIN, encoder.SNAPPY)
        except errors.RemoteProtocolError:
            assert protocol.state is connection.State.ERROR
            assert protocol.next_event() is None
            protocol.receive_data(stream)
            assert protocol.next_event() is None
            return received
        assert protocol.pending_bytes <= LIMITS.message_bytes + snappy.CHUNK_BODY_BYTES + snappy.CHUNK_CONTENT_BYTES
    return received


def feed_decoder(stream: bytes, rng: random.Random) -> int:
    """Feeds a stream to a decoder without a connection."""
    bare = codec.make_client_decoder(LIMITS)
    received = 0
    for piece in pieces(stream, rng):
        bare.receive(piece)
        try:
            while bare.next_value() is not decoder.NEED_DATA:
                received += 1
        except errors.RemoteProtocolError:
            return received
        assert bare.pending_bytes <= LIMITS.message_bytes + len(piece)
    return received


def pieces(stream: bytes, rng: random.Random) -> Iterator[bytes]:
    """Splits a stream into pieces."""
    position = 0
    while position < len(stream):
        step = rng.choice([7, 100, len(stream), len(stream), len(stream)])
        yield stream[position : position + step]
        position += step


def run(seed: int, *, rounds: int | None = None, seconds: float | None = None) -> tuple[int, int]:
    """Runs for a number of rounds or seconds. Returns the number of rounds and of messages received."""
    entries = corpus()
    deadline = None if seconds is None else time.monotonic() + seconds
    done = received = 0
    while (rounds is None or done < rounds) and (deadline is None or time.monotonic() < deadline):
        rng = random.Random(f"{seed}/{done}")
        target, stream = entries[rng.randrange(len(entries))]
        changed = recompress(stream, rng) if rng.randrange(2) else mutate(stream, rng)
        began = time.process_time()
        try:
            received += feed(target, changed, rng)
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {done}, {target}: {error!r}") from error
        assert time.process_time() - began < MAX_SECONDS, f"seed {seed}, round {done} took too long"
        done += 1
    return done, received


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    run(arguments.seed, rounds=1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done, received = run(arguments.seed, seconds=arguments.seconds)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    parser.exit(0, f"{done} rounds, {received} messages received, no failure; memory grew by {grown} kB\n")


if __name__ == "__main__":
    main()
