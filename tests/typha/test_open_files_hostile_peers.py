"""Peers that hold more connections than a service may have open files: it serves its clients all the same."""

import asyncio
import os
import pathlib
import re
import socket
from collections.abc import AsyncIterator

import pytest

from tests.harness import certificates
from tests.harness.served import Cluster, Service, converged, mirrors, serving

pytestmark = pytest.mark.slow

NEW_SEGMENTS = {"TYPHA_SEGMENTBYTES": "65536", "TYPHA_LOGBUDGETBYTES": "2097152"}
"""A segment takes three descriptors of a worker, and there are soon as many as there may be."""


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[Cluster]:
    """An API server with a few pods."""
    async with Cluster(tmp_path) as opened:
        yield opened


async def connect_silently(address: str, count: int) -> list[socket.socket]:
    """Connections that say nothing, made as fast as the kernel takes them."""
    host, _, port = address.partition(":")
    opened = []
    for number in range(count):
        end = socket.socket()
        end.setblocking(False)
        end.connect_ex((host, int(port)))
        opened.append(end)
        if number % 50 == 0:
            await asyncio.sleep(0.01)
    return opened


async def refused(running: Service, at_least: int) -> None:
    """Waits until this many connections have ended for want of a place."""
    for _ in range(1000):
        if await running.metric('typha_disconnects_total{reason="too-many-connections"}') >= at_least:
            return
        await asyncio.sleep(0.05)
    pytest.fail("too few connections were refused")


@pytest.mark.parametrize(
    ("open_files", "workers", "is_tls"),
    [
        (256, 1, False),
        (256, 1, True),
        (256, 0, False),
        (256, 4, True),
        (1024, 1, False),
        (1024, 0, True),
    ],
)
async def test_silent_connections_hurt_neither_clients_nor_newcomers(
    cluster: Cluster, tmp_path: pathlib.Path, open_files: int, workers: int, is_tls: bool
) -> None:
    cluster.open_files = open_files
    (tmp_path / "tls").mkdir()
    files = certificates.make(tmp_path / "tls")
    tls = certificates.client_context(files.authority) if is_tls else None
    variables = {**NEW_SEGMENTS, "TYPHA_SERVERHANDSHAKETIMEOUTSECS": "600"}
    if is_tls:
        variables |= {
            "TYPHA_SERVERKEYFILE": str(files.folder / "server.key"),
            "TYPHA_SERVERCERTFILE": str(files.folder / "server.pem"),
            "TYPHA_CAFILE": str(files.folder / "ca.pem"),
            "TYPHA_CLIENTCN": certificates.AGENT,
        }
    silent: list[socket.socket] = []
    async with (
        serving(cluster, "--workers", str(workers), **variables) as running,
        mirrors(await running.address(), 10, tls=tls) as clients,
    ):
        address = await running.address()
        try:
            for wave in range(3):
                silent += await connect_silently(address, open_files * max(1, workers) // 2)
                for number in range(10):
                    cluster.put(*(f"p{number}" for number in range(20)), padding=f"{wave} {number} " + "x" * 8000)
                    await asyncio.sleep(0.02)
                await converged(cluster, clients)
            await refused(running, 50)
            for pid in running.workers() or [running.process.pid]:
                assert len(os.listdir(f"/proc/{pid}/fd")) < open_files - 50
            async with mirrors(address, 10, tls=tls) as late:
                await converged(cluster, [*clients, *late])
        finally:
            for end in silent:
                end.close()
        assert {client.last_disconnect for client in clients} == {None}
        assert len(running.workers()) == workers
    places = {int(found) for found in re.findall(r"Ready for connections .*at_most=(\d+)", running.text)}
    assert all(open_files // 2 <= found < open_files for found in places)
    assert "Cannot accept connections" not in running.text
    assert "[ERROR]" not in running.text
    assert "too-many-connections" in running.text
    lines = running.text.count("Connection ended")
    assert 0 < lines < 200 * max(1, workers)
