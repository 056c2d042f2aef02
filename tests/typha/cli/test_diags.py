"""`typha diags`: what is in the archive, and that no secret is."""

import asyncio
import io
import json
import os
import pathlib
import signal
import stat
import tarfile

import pytest
import yaml

from loadtest.apiserver import resources as simulated
from tests.harness import admin_stand, worker_stand
from tests.harness.served import Cluster, mirrors, serving
from tests.typha.cli.test_status import run
from typha import settings
from typha.admin import client
from typha.cli import diags

MARK = "S3cretMark"


def members(archive: bytes) -> dict[str, bytes]:
    """The files of an archive, without their folder."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:
            file = opened.extractfile(member)
            assert file is not None
            assert member.mode == 0o600
            found[member.name.partition("/")[2]] = file.read()
    return found


def mark_kubeconfig(cluster: Cluster) -> None:
    """Every kind of credentials."""
    content = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in content["users"]:
        user["user"] = {"token": f"{MARK}-token"}
    cluster.kubeconfig.write_text(yaml.safe_dump(content))


@pytest.mark.slow
async def test_the_archive_of_a_service_has_no_secret(tmp_path: pathlib.Path) -> None:
    """Marked: the kubeconfig's token, tokens and passwords in the environment, values of objects."""
    path = str(tmp_path / "admin.sock")
    secrets = {
        "K8S_API_TOKEN": f"{MARK}-environment",
        "TYPHA_MAXFRAMEBYTES": "65536",
        "AWS_SECRET_ACCESS_KEY": f"{MARK}-other",
        "HTTPS_PROXY": f"http://user:{MARK}-proxy@127.0.0.1:1",
        **{
            f"TYPHA_{row.name.upper()}": f"{MARK}-{row.name}"
            for row in settings.SETTINGS
            if row.type.label == "string" and any(word in row.name.lower() for word in ("password", "token", "secret"))
        },
    }
    async with Cluster(tmp_path) as cluster:
        mark_kubeconfig(cluster)
        cluster.put("quiet", padding=f"{MARK}-annotation")
        large = {"name": "large", "namespace": "default", "annotations": {"a": f"{MARK}-{'x' * 70_000}"}}
        cluster.simulator.store.create(simulated.PODS, {"metadata": large})
        async with (
            serving(cluster, "--workers", "2", TYPHA_ADMINSOCKET=path, **secrets) as service,
            mirrors(await service.address(), 2),
        ):
            await service.logged("Object cannot be carried")
            await service.metric_is("typha_connections_active", 2)
            await worker_stand.eventually(lambda: service.text.count("Ready for connections") == 2)
            archive = tmp_path / "a.tgz"
            code, output, errors = await run("diags", "--server", path, "-o", str(archive), **secrets)
            assert (code, output, errors) == (0, "", "")
            assert stat.S_IMODE(archive.stat().st_mode) == 0o600
            found = members(archive.read_bytes())

            code, _, errors = await run("diags", "--server", path, "-o", str(archive))
            assert (code, "File exists" in errors) == (1, True)

            os.kill(service.workers()[1], signal.SIGSTOP)
            try:
                code, _, errors = await run("diags", "--server", path, "-o", str(tmp_path / "b.tgz"))
            finally:
                os.kill(service.workers()[1], signal.SIGCONT)
            stuck = members((tmp_path / "b.tgz").read_bytes())
            workers = service.workers()
    assert {"README.txt", "version.txt", "status.json", "clients.json", "settings.json", "metrics.txt"} <= found.keys()
    assert {"health.txt", "hub.txt", "worker-1.txt", "worker-2.txt", "errors.txt"} <= found.keys()
    assert found["errors.txt"] == b""
    for pid in (service.process.pid, *workers):
        assert b"VmRSS" in found[f"processes/{pid}/status"]
        assert not any(name.endswith(("environ", "cmdline")) for name in found)
    assert len(json.loads(found["clients.json"])["clients"]) == 2
    assert b"typha_connections_active 2\n" in found["metrics.txt"]
    assert b"Task watch core/v1/pods" in found["hub.txt"]
    assert b"Object cannot be carried" in found["hub.txt"]
    assert b"Ready for connections" in found["worker-1.txt"]
    names = {one["name"]: one["value"] for one in json.loads(found["settings.json"])}
    assert names["Workers"] == "2"
    assert names["K8S_API_TOKEN"] == "(redacted)"
    assert [name for name, content in found.items() if MARK.encode() in content] == []
    assert stuck["workers-missing.txt"] == b"worker 2 did not answer in time\n"
    assert f"processes/{workers[1]}/status" in stuck


async def test_what_cannot_be_had_is_named(tmp_path: pathlib.Path) -> None:
    made = admin_stand.calico_hub()
    failures: list[str] = []
    file = io.BytesIO()
    async with admin_stand.serving(made, tmp_path) as path:  # it has neither status nor support
        await asyncio.to_thread(diags.write, file, client.Service(path), failures)
    found = members(file.getvalue())
    assert [failure.partition(":")[0] for failure in failures] == ["status", "clients", "support"]
    assert found["errors.txt"].decode().splitlines() == failures
    assert "README.txt" in found
    made.close()


async def test_parts_and_time_are_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diags, "_PART_BYTES_MAX", 500)
    monkeypatch.setattr(client.Service, "get", lambda *_, **__: {"x": "y" * 1000})
    file, failures = io.BytesIO(), list[str]()
    diags.write(file, client.Service("/none"), failures)
    assert max(map(len, members(file.getvalue()).values())) <= 1000
    assert len(members(file.getvalue())["status.json"]) == 500
    assert any(failure.startswith("the end of status.json") for failure in failures)
    monkeypatch.setattr(diags, "_SECONDS_MAX", -1.0)
    file, failures = io.BytesIO(), list[str]()
    diags.write(file, client.Service("/none"), failures)
    assert list(members(file.getvalue())) == ["errors.txt"]
    assert len(failures) == 4


def test_no_archive_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from typha.cli import main

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main.run(["diags"]) == 2
    assert "is no text" in capsys.readouterr().err
