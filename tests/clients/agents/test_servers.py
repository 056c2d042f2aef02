"""What the agents' commands share: options, and reading a feed once with a word about what is missing."""

import asyncio

import click
import pytest
from click.testing import CliRunner

from clients import SyncStatus, testing
from clients.agents import servers
from tests.harness import worker_stand

FEED = {"/a": b"1"}


async def test_the_content_of_a_feed_is_read_in_silence() -> None:
    told: list[str] = []
    async with testing.Server(feeds={"felix": FEED}) as server:
        found = await servers.fetch(servers.Servers((server.address,)), feed="felix", agent="t", tell=told.append)
    assert (found, told) == (FEED, [])


async def test_a_person_learns_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.0)
    told: list[str] = []
    async with testing.Server(feeds={"felix": FEED}) as server:
        address = server.address
        server.set_status("felix", SyncStatus.RESYNC)
        fetching = servers.fetch(
            servers.Servers((address,)), feed="felix", agent="t", timeout_seconds=30.0, tell=told.append
        )
        reading = asyncio.create_task(fetching)
        await worker_stand.eventually(lambda: bool(told) and "resync" in told[-1])
        server.set_status("felix", SyncStatus.IN_SYNC)
        assert await reading == FEED
    with pytest.raises(servers.NotInSync, match=r"not in sync after 0.2 s: .*cannot connect"):
        await servers.fetch(servers.Servers((address,)), feed="felix", agent="t", timeout_seconds=0.2, tell=told.append)


@click.command()
@servers.options(required=False)
@click.option("--node")
def _command(*, servers: servers.Servers, node: str) -> None:
    click.echo(f"{servers.addresses} {servers.server_name} {node}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cert-file", __file__], "--cert-file needs --ca-file"),
        (["--key-file", __file__], "--key-file needs --cert-file"),
        (["--ca-file", __file__], "the files for TLS cannot be used"),
    ],
)
def test_files_that_make_no_sense_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(_command, arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_command_gets_its_servers_and_its_own_options() -> None:
    done = CliRunner().invoke(_command, ["--server", "a:1", "--server", "b:2", "--server-name", "c", "--node", "n"])
    assert done.output == "('a:1', 'b:2') c n\n"
