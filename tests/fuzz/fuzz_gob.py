"""Mutates valid Typha streams and feeds them to both ends: `python -m tests.fuzz.fuzz_gob --seconds 60 --seed 1`.

The corpus are the recorded streams and odd inputs of tests/wire. The one thing that may come out is
RemoteProtocolError, after which nothing more comes; no round may take long, or hold more than its input and its limits
explain. A failure prints the seed and the number of the round, which repeat it.
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
"""Of a recorded stream: its beginning is where everything new happens."""
MAX_SECONDS = 2.0
"""For a round: some 1,000 times what the slowest takes."""
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
"""Who it is for: "server", "decoder", or the syncer type that a client asks for."""
_FOLDERS = (
    *(("client-hello", "*.bin", "server"), ("client-to-server-odd", "*.bin", "server")),
    *(("streams", "*.client.bin", "server"), ("streams", "*.server.bin", "client")),
    *(("server-to-client-odd", "*.bin", "client"), ("messages", "*.first.gob", "decoder")),
)


@functools.cache
def corpus() -> tuple[Entry, ...]:
    """The beginnings of all recorded streams."""
    found = [
        ("felix", wire.load("shared-frames/plain-hello-restart.bin") + wire.load("shared-frames/all-after-ack.bin"))
    ]
    for folder, pattern, target in _FOLDERS:
        for path in sorted((wire.FOLDER / folder).glob(pattern)):
            syncer_type = next((name for name in messages.SYNCER_TYPES if name in path.name), messages.FELIX)
            found.append((syncer_type if target == "client" else target, path.read_bytes()[:MAX_STREAM_BYTES]))
    return tuple(entry for entry in found if entry[1])


def mutate(stream: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or put in."""
    mutated = bytearray(stream)
    for _ in range(dice.randrange(1, 5)):
        position = dice.randrange(len(mutated) + 1)
        end = min(len(mutated), position + dice.randrange(1, 32))
        match dice.randrange(6):
            case 0:
                mutated[position:end] = b""
            case 1:
                mutated[position:position] = mutated[position:end]
            case 2:
                mutated[position:end] = dice.randbytes(end - position)
            case 3:
                mutated[position:position] = dice.choice(INTERESTING)
            case 4 if position < len(mutated):
                mutated[position] = dice.randrange(256)
            case _ if position < len(mutated):
                mutated[position] ^= 1 << dice.randrange(8)
    return bytes(mutated)


def recompress(stream: bytes, dice: random.Random) -> bytes:
    """Mutates what is inside the chunks of a stream too, so that a wrong checksum is not all that is ever found."""
    start = stream.find(snappy.IDENTIFIER)
    if start < 0:
        return mutate(stream, dice)
    reader = snappy.ChunkReader()
    reader.receive(stream[start:])
    content = b""
    try:
        while (piece := reader.next_content()) is not None:
            content += piece
    except errors.RemoteProtocolError:
        return mutate(stream, dice)
    return stream[:start] + snappy.IDENTIFIER + snappy.compress(mutate(content, dice) if content else content)


def feed(target: str, stream: bytes, dice: random.Random) -> int:
    """Feeds a stream in pieces; gives the number of messages that came out."""
    if target == "decoder":
        return feed_decoder(stream, dice)
    protocol = connection.Connection(SERVER if target == "server" else CLIENT, limits=LIMITS)
    if target != "server":
        hello = messages.ClientHello(
            syncer_type=target, supports_decoder_restart=True, supported_compression_algorithms=("snappy",)
        )
        protocol.send_hello(hello)
    received = 0
    for piece in pieces(stream, dice):
        protocol.receive_data(piece)
        try:
            while (message := protocol.next_event()) is not None:
                received += 1
                if isinstance(message, messages.ClientHello) and protocol.state is connection.State.ASKED:
                    assert protocol.accept() in (encoder.PLAIN, encoder.SNAPPY)
        except errors.RemoteProtocolError:
            assert protocol.state is connection.State.ERROR
            assert protocol.next_event() is None
            protocol.receive_data(stream)
            assert protocol.next_event() is None
            return received
        assert protocol.pending_bytes <= LIMITS.message_bytes + snappy.CHUNK_BODY_BYTES + snappy.CHUNK_CONTENT_BYTES
    return received


def feed_decoder(stream: bytes, dice: random.Random) -> int:
    """Feeds a stream that is no session to a decoder alone."""
    bare = codec.make_client_decoder(LIMITS)
    received = 0
    for piece in pieces(stream, dice):
        bare.receive(piece)
        try:
            while bare.next_value() is not decoder.NOT_YET:
                received += 1
        except errors.RemoteProtocolError:
            return received
        assert bare.pending_bytes <= LIMITS.message_bytes + len(piece)
    return received


def pieces(stream: bytes, dice: random.Random) -> Iterator[bytes]:
    """A stream in the pieces in which it may be read."""
    position = 0
    while position < len(stream):
        step = dice.choice([7, 100, len(stream), len(stream), len(stream)])
        yield stream[position : position + step]
        position += step


def run(seed: int, *, rounds: int | None = None, seconds: float | None = None) -> tuple[int, int]:
    """Fuzzes for some rounds or seconds; gives rounds run and messages received."""
    entries = corpus()
    deadline = None if seconds is None else time.monotonic() + seconds
    done = received = 0
    while (rounds is None or done < rounds) and (deadline is None or time.monotonic() < deadline):
        dice = random.Random(f"{seed}/{done}")
        target, stream = entries[dice.randrange(len(entries))]
        changed = recompress(stream, dice) if dice.randrange(2) else mutate(stream, dice)
        began = time.process_time()
        try:
            received += feed(target, changed, dice)
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {done}, {target}: {error!r}") from error
        assert time.process_time() - began < MAX_SECONDS, f"seed {seed}, round {done} took too long"
        done += 1
    return done, received


def main() -> None:
    """Runs it by hand."""
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
