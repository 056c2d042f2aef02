"""`typha watch` as a process: its output and its exit codes."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from clients import testing
from protocol import messages
from protocol.typha import connection, encoder
from protocol.typha import messages as typha
from tests.harness import authorities, interrupts, trust_cases
from tests.harness.repository import ROOT

FEEDS = {"pods": {"/b": b"2", "/a": b"\xff", "/B": "é".encode()}}


@contextlib.asynccontextmanager
async def watching(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from typha.cli import watch; watch.watch()", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C"},
        preexec_fn=interrupts.restore,
    )
    try:
        async with asyncio.timeout(180):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(*arguments: str) -> tuple[int, str, str]:
    async with watching(*arguments) as process:
        output, problems = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), problems.decode()


async def read_line(process: asyncio.subprocess.Process) -> dict[str, object]:
    assert process.stdout is not None
    line: dict[str, object] = json.loads(await process.stdout.readline())
    return line


async def test_json_lines() -> None:
    async with (
        testing.Server(feeds={"pods": {"/a": b"1"}}) as server,
        watching(server.address, "--feed", "pods", "--json") as process,
    ):
        first = await read_line(process)
        assert list(first) == ["key", "value", "revision", "v3_resource_version", "update_type", "ttl"]
        assert await read_line(process) == {"status": "in-sync"}
        server.put("pods", "/b", b"2")
        assert (await read_line(process))["key"] == "/b"
        server.set_status("pods", messages.SyncStatus.RESYNC)
        assert await read_line(process) == {"status": "resync"}
        process.send_signal(signal.SIGINT)
        _, problems = await process.communicate()
        assert process.returncode == 130
        assert problems.decode() == f"connected to {server.address}\n"


async def test_until_in_sync_prints_the_sorted_map() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        code, output, problems = await run(server.address, "--feed", "pods", "--json", "--until-in-sync")
    assert code == 0, problems
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["key"] for line in lines] == ["/B", "/a", "/b"]
    assert [line.get("value") for line in lines] == ["é", None, "2"]
    assert lines[1]["value_base64"] == "/w=="
    assert {line["update_type"] for line in lines} == {1}


async def test_until_in_sync_as_text() -> None:
    async with testing.Server(feeds={"pods": {"/a": b"1"}}) as server:
        code, output, _ = await run(server.address, "--feed", "pods", "--until-in-sync")
    assert (code, output) == (0, "+ /a  1 bytes  @1\n")


async def test_a_timeout_exits_3() -> None:
    async with testing.Server(feeds=FEEDS, status=messages.SyncStatus.RESYNC) as server:
        arguments = (server.address, "--feed", "pods", "--json", "--until-in-sync", "--timeout", "0.5")
        code, output, problems = await run(*arguments)
    assert (code, output) == (3, "")
    assert "feed pods was not in sync within 0.5 s" in problems


async def test_a_refusal_exits_4() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        for arguments in ([], ["--json"], ["--json", "--until-in-sync"]):
            code, output, problems = await run(server.address, "--feed", "podz", *arguments)
            assert (code, output) == (4, "")
            assert problems == f"refused by {server.address}: unknown-feed: no feed 'podz'\n"


async def test_a_draining_server_is_retried() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        server.refuse("shutting-down", retry_after_seconds=0.05)
        async with watching(server.address, "--feed", "pods", "--json", "--until-in-sync") as process:
            await server.wait_hellos(2)
            server.refuse(None)
            output, _ = await process.communicate()
            assert process.returncode == 0
            assert len(output.splitlines()) == 3


async def test_a_closed_output_pipe_exits_0() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        arguments = f"{server.address} --feed pods --json"
        program = f"{sys.executable} -c 'from typha.cli import watch; watch.watch()' {arguments}"
        shell = await asyncio.create_subprocess_shell(
            f"({program}; echo exit $? >&2) | head -n 1",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        communication = asyncio.create_task(shell.communicate(), name="communicate")
        while not communication.done():
            await asyncio.wait([communication], timeout=0.05)
            server.put("pods", "/more", str(server.feeds["pods"].sequence).encode())
        output, problems = communication.result()
    assert len(output.splitlines()) == 1
    assert problems.decode() == f"connected to {server.address}\nexit 0\n"


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server_context)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    ca_file, cert_file, key_file = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca_file)
    own = authority.issue_cert("agent.example")
    own.private_key_pem.write_to_path(key_file)
    own.cert_chain_pems[0].write_to_path(cert_file)
    files = ["--ca-file", str(ca_file), "--cert-file", str(cert_file), "--key-file", str(key_file)]
    async with testing.Server(feeds=FEEDS, tls=server_context) as server:
        code, output, problems = await run(server.address, "--feed", "pods", "--json", "--until-in-sync", *files)
    assert code == 0, problems
    assert len(output.splitlines()) == 3


async def test_an_intermediate_authority_is_enough(tmp_path: Path) -> None:
    authority = authorities.issue("intermediate", authorities.issue("root"))
    server_context = trust_cases.server_context((authorities.issue("s", authority, names=trust_cases.here()),))
    (tmp_path / "ca.pem").write_bytes("# Größe\n".encode() + authority.pem)
    async with testing.Server(feeds=FEEDS, tls=server_context) as server:
        code, output, problems = await run(
            server.address, "--feed", "pods", "--until-in-sync", "--ca-file", str(tmp_path / "ca.pem")
        )
    assert code == 0, problems
    assert len(output.splitlines()) == 3


@pytest.mark.slow
async def test_usage_errors_exit_2(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for arguments, problem in (
        ([], "--feed"),
        (["--feed", "pods", "typha:port"], "bad port"),
        (["--feed", "pods", "--timeout", "0"], "--timeout"),
        (["--feed", "pods", "--protocol", "gob"], "--protocol"),
        (["--feed", "pods", "--key-file", str(empty)], "--key-file needs --cert-file"),
        (["--feed", "pods", "--cert-file", str(empty)], "--cert-file"),
        (["--feed", "pods", "--ca-file", "missing.pem"], "missing.pem"),
        (["--feed", "pods", "--ca-file", str(empty)], "empty.pem: contains no certificate"),
    ):
        code, output, problems = await run(*arguments)
        assert (code, output) == (2, "")
        assert problem in problems


async def answer_as_typha(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves Typha's protocol: two objects, a ping, "in sync" and a deletion."""
    server = connection.Connection(connection.Role.SERVER)
    made = encoder.TyphaEncoder(compress=True)
    while data := await reader.read(65_536):
        server.receive_data(data)
        while (message := server.next_event()) is not None:
            match message:
                case typha.ClientHello():
                    assert (message.syncer_type, message.info) == ("bgp", "typha-watch")
                    assert server.accept() == encoder.SNAPPY
                case typha.Ack():
                    updates = [messages.Update("/b", b"2", "2", 1), messages.Update("/a", b"\xff", "1", 1)]
                    writer.write(server.data_to_send() + made.make_ping(1))
                    writer.writelines(frame.data for frame in made.updates(0, updates))
                    writer.write(made.status(2, messages.SyncStatus.IN_SYNC).data)
                case typha.Pong():
                    writer.write(made.updates(2, [messages.Update("/b", None, "3", 3)])[0].data)
        writer.write(server.data_to_send())
    writer.close()


async def test_typhas_protocol() -> None:
    server = await asyncio.start_server(answer_as_typha, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        arguments = (f"{host}:{port}", "--feed", "bgp", "--protocol", "typha", "--json")
        code, output, problems = await run(*arguments, "--until-in-sync")
        assert code == 0, problems
        assert [(line["key"], line["revision"]) for line in map(json.loads, output.splitlines())] == [
            ("/a", "1"),
            ("/b", "2"),
        ]
        async with watching(*arguments) as process:
            lines = [await read_line(process) for _ in range(4)]
        assert sorted(str(line["key"]) for line in lines[:2]) == ["/a", "/b"]
        assert lines[2] == {"status": "in-sync"}
        assert (lines[3]["key"], lines[3]["update_type"]) == ("/b", 3)
