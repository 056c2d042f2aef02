"""The scenario of a fleet that comes back: what its readers count, and one small run."""

import pathlib
import socket

import pytest

from loadtest.scenarios import resume
from protocol import messages
from protocol.native import codec, frames


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
def test_a_reader_finds_the_first_status_that_is_not_catching_up(piece: int) -> None:
    stream = frames.PREFACE
    for message in (
        messages.ServerHello(version=1, feed="felix", incarnation=bytes(16)),
        messages.Status(3, messages.SyncStatus.CATCHING_UP),
        messages.Updates(3, 9, (messages.Update("/k", b"\x93\x07" * 50_000, "1", 1),)),
        messages.Ping(),
        messages.Status(1 << 60, messages.SyncStatus.IN_SYNC),
    ):
        stream += frames.pack_frame(codec.encode(message))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader = resume.Reader(listener.getsockname(), b"hello")
        server, _ = listener.accept()
        with server, reader.socket:
            assert server.recv(5) == b"hello"
            found = [
                status
                for start in range(0, len(stream), piece)
                for status in reader._statuses(stream[start : start + piece])
            ]
            assert found == [messages.SyncStatus.CATCHING_UP, messages.SyncStatus.IN_SYNC]
            server.sendall(b"")
            assert not reader.read()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_small_fleet(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    await resume.measure(tmp_path, agents=20, pods=300, restarts_only=False)
    rows = [line.split("|")[1:5] for line in capsys.readouterr().out.splitlines()[2:]]
    sizes = {(case.strip(), way.strip()): float(size.split()[0].replace(",", "")) for case, way, size, _ in rows}
    assert len(sizes) == 20
    for case in ("cut in the network", "another replica or a restart, 0 more changes"):
        assert sizes[case, "digests"] < 1.0 < sizes[case, "whole snapshots"]
    assert sizes["cut in the network", "position"] < 1.0
