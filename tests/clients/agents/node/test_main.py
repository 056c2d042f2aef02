"""The commands as people and tests start them: as processes, on files, and on a running service."""

import asyncio
import json
import pathlib
import subprocess
import sys

import pytest

from clients import testing
from clients.agents.node import objects
from protocol import messages
from tests.harness import felix_recordings as recordings
from typha.cli import watch_output

COMMAND = (sys.executable, "-m", "clients.agents.node")


def run(*arguments: str, standard_input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], input=standard_input, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_judge_answers_what_recordings_ask() -> None:
    """A series of steps on one node, with verdicts of the last."""
    recording = recordings.load("sequences")["policy-space-selector"]
    node, expected = next(iter(recording["expect"].items()))
    question = {
        "node": node,
        "steps": recording["steps"],
        "flows": expected["verdicts"]["flows"],
        "addresses": expected["verdicts"]["addresses"],
    }
    done = run("judge", standard_input=json.dumps(question))
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert len(answer["states"]) == len(recording["steps"])
    for recorded, got in zip(recordings.states_of(expected), answer["states"], strict=True):
        assert list(recordings.differences(recorded, got, {})) == []
    assert list(recordings.verdict_differences(expected["verdicts"], answer["verdicts"], {})) == []


@pytest.mark.parametrize("question", ["", "{", "[]", "{}", '{"node": "n1"}'])
def test_judge_refuses_what_is_no_question(question: str) -> None:
    done = run("judge", standard_input=question)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: not a question")


@pytest.mark.slow
def test_explain_reads_folders_of_objects(tmp_path: pathlib.Path) -> None:
    objects = recordings.load("scenarios")["mix-everything"]["objects"]
    (tmp_path / "folder").mkdir()
    for number, found in enumerate(objects):
        (tmp_path / "folder" / f"{number}.json").write_text(json.dumps(found))
    (tmp_path / "folder" / "README.md").write_text("not an object")
    arguments = ("explain", "--objects", str(tmp_path / "folder"))
    done = run(*arguments, "--from", "lab/batch", "--to", "8.8.8.8", "--port", "udp/53")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lab/batch (10.65.0.41) -> 8.8.8.8, udp port 53: ALLOWED\n")
    done = run(*arguments, "--from", "lab/batch", "--to", "shop/web-1", "--port", "tcp/8080")
    assert done.returncode == 1
    assert "denied by KubernetesClusterNetworkPolicy admin" in done.stdout


def test_a_dump_may_be_what_typha_watch_prints(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output = watch_output.JsonOutput()
    changes = [("/a", b"text"), ("/b", b"\xff"), ("/c", None)]
    output.write_updates([messages.Update(key, value, "1", 1) for key, value in changes])
    output.write_status(messages.SyncStatus.IN_SYNC)
    assert list(objects.parse_dump(capfdbinary.readouterr().out)) == changes


def test_explain_reads_a_dump_of_the_feed(tmp_path: pathlib.Path) -> None:
    dump = tmp_path / "feed.jsonl"
    [changes] = recordings.steps_of(recordings.load("scenarios")["mix-everything"])
    lines = [{"key": key, "value": value and value.decode()} for key, value in changes]
    dump.write_text("\n".join(map(json.dumps, lines)))
    done = run("explain", "--dump", str(dump), "--from", "shop/db", "--to", "shop/web-1", "--port", "tcp/8080")
    assert (done.returncode, done.stderr) == (0, "")
    dump.write_text('{"value": "x"}')
    done = run("explain", "--dump", str(dump), "--from", "shop/db", "--to", "shop/web-1", "--port", "tcp/8080")
    assert (done.returncode, done.stderr) == (2, "Error: line 1 of the dump: not a line with a key\n")
    dump.write_text('{"key": "/a"}\n\nroot:x:0')
    done = run("explain", "--dump", str(dump), "--from", "shop/db", "--to", "shop/web-1", "--port", "tcp/8080")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: line 3 of the dump: ")


async def test_explain_asks_a_running_service() -> None:
    [changes] = recordings.steps_of(recordings.load("scenarios")["mix-everything"])
    values = {key: value for key, value in changes if value is not None}
    async with testing.Server(feeds={"felix": values}) as server:
        arguments = ("--from", "lab/batch", "--to", "shop/web-1", "--port", "tcp/8080")
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "explain", "--server", server.address, *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    assert process.returncode == 1
    assert b"denied by KubernetesClusterNetworkPolicy admin" in output


@pytest.mark.parametrize(
    "flow", ["tcp/99999", "tcp/http", "udp/-1", "tcp", "icmp/70000", "tcp/80 from x", "tcp/" + "9" * 5000]
)
def test_a_flow_that_is_none_gets_no_answer(flow: str, tmp_path: pathlib.Path) -> None:
    dump = tmp_path / "dump.json"
    dump.write_text("")
    done = run("explain", "--dump", str(dump), "--from", "10.0.0.1", "--to", "10.0.0.2", "--port", flow)
    assert done.returncode == 2
    assert "not a flow" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --server, --objects and --dump"),
        (("--server", "x:1", "--dump", "-"), "give one of --server, --objects and --dump"),
    ],
)
def test_explain_needs_one_source(arguments: tuple[str, ...], message: str) -> None:
    done = run("explain", *arguments, "--from", "a", "--to", "b", "--port", "tcp/1")
    assert done.returncode == 2
    assert message in done.stderr
