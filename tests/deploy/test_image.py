"""The image that the Dockerfile makes: what is in it, and that it runs where nothing is allowed."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import re
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from clients import errors
from protocol.reasons import DisconnectReason
from tests.harness import certificates, container, served
from tests.harness.repository import ROOT
from typha.worker import tls

pytestmark = [pytest.mark.image, pytest.mark.slow]

MEBIBYTE = 1 << 20
UNPACKED_BYTES_MAX = 76 * MEBIBYTE
PACKED_BYTES_MAX = 28 * MEBIBYTE
"""What a node fetches. docs/decisions/image.md says what the sizes are made of."""
SCRIPT = ROOT / "tests" / "harness" / "container.py"
PROGRAMS = {"python3", "python3.13", "typha", "calico", "calico-typha"}
BUILD_DATE, COMMIT = "1970-01-01T00:00:00Z", "0123456789abcdef"
"""What tools/image/build.sh passes."""
TLS = {
    "TYPHA_SERVERKEYFILE": f"{container.FOLDER}/tls/server.key",
    "TYPHA_SERVERCERTFILE": f"{container.FOLDER}/tls/server.pem",
    "TYPHA_CAFILE": f"{container.FOLDER}/tls/ca.pem",
    "TYPHA_CLIENTCN": certificates.AGENT,
}


def files(image: pathlib.Path) -> Iterator[pathlib.Path]:
    """Everything in the image that has content."""
    for path in (image / "bundle" / "rootfs").rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


def blob(image: pathlib.Path, digest: str) -> bytes:
    """A part of the OCI layout."""
    algorithm, name = digest.split(":")
    return (image / "oci" / "blobs" / algorithm / name).read_bytes()


def manifest(image: pathlib.Path) -> Any:
    [entry] = json.loads((image / "oci" / "index.json").read_text())["manifests"]
    return json.loads(blob(image, entry["digest"]))


def config(image: pathlib.Path) -> Any:
    return json.loads(blob(image, manifest(image)["config"]["digest"]))


def in_container(image: pathlib.Path, user: int, folder: pathlib.Path, *arguments: str) -> tuple[str, ...]:
    """A command that runs the image's entry point, or another program of it."""
    return sys.executable, "-P", str(SCRIPT), str(image / "bundle"), str(user), str(folder), *arguments


async def run(image: pathlib.Path, folder: pathlib.Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Runs a program of the image to its end; exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *in_container(image, 10001, folder, *arguments),
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), served.TIMEOUT_SECONDS)
    return await process.wait(), output.decode()


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[served.Cluster]:
    tmp_path.chmod(0o755)
    async with served.Cluster(tmp_path) as opened:
        (tmp_path / "tls").mkdir()
        yield opened


def variables(cluster: served.Cluster) -> dict[str, str]:
    """As the container sees its files."""
    return cluster.variables() | {
        "KUBECONFIG": f"{container.FOLDER}/{cluster.kubeconfig.name}",
        "TYPHA_FEEDSFILE": f"{container.FOLDER}/{cluster.feeds_file.name}",
    }


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def ready(port: int) -> None:
    """Wait until the service says that it is ready."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(served.TIMEOUT_SECONDS):
        while True:
            async with session.get(f"http://127.0.0.1:{port}/readiness") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("user", "engine"), [(10001, ""), (10001, tls.RUSTLS), (999, tls.OPENSSL)], ids=["plain", "rustls", "openssl"]
)
async def test_it_serves_without_any_privilege(
    image: pathlib.Path, cluster: served.Cluster, free_port: int, user: int, engine: str
) -> None:
    context, extra = None, dict[str, str]()
    if engine:
        issued = certificates.make(cluster.folder / "tls")
        context, extra = certificates.client_context(issued.authority), TLS | {"TYPHA_TLSENGINE": engine}
    cluster.command = in_container(image, user, cluster.folder, "serve")
    health = {"TYPHA_HEALTHENABLED": "true", "TYPHA_HEALTHHOST": "127.0.0.1", "TYPHA_HEALTHPORT": str(free_port)}
    async with served.serving(cluster, "--workers", "2", **(variables(cluster) | extra | health)) as service:
        address = await service.address()
        async with served.mirrors(address, 10, tls=context) as clients:
            cluster.put("p1", "new")
            await served.converged(cluster, clients)
            await ready(free_port)
            code, output = await run(image, cluster.folder, "/usr/bin/calico", "health", "--port", str(free_port))
            assert code == 0, output

            running = [status_of(pid) for pid in served.processes_of_session(service.process.pid)]
            confined = [status for status in running if status["Uid"].split() == [str(user)] * 4]
            assert len(running) - len(confined) == 1  # what stands in for the runtime
            assert len(confined) >= 3
            for status in confined:
                assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
                assert status["NoNewPrivs"] == "1"

            service.process.terminate()
            assert await service.ends() == 0
            ends = [client.last_disconnect for client in clients]
            assert {end.error.reason for end in ends if end and isinstance(end.error, errors.ServerGoodbye)} == {
                DisconnectReason.SHUTTING_DOWN
            }
    assert "Drained" in service.text
    assert not re.search(r"\[(ERROR|FATAL)\]", service.text)
    assert "Traceback" not in service.text
    if engine:
        assert re.search(rf"engine=\"?{engine}", service.text)


@pytest.mark.parametrize(
    "arguments",
    [
        ("version",),
        ("component", "typha", "version"),
        ("/usr/bin/calico", "version"),
        ("/usr/bin/calico", "component", "typha", "version"),
        ("/usr/bin/calico-typha", "--version"),
        ("/usr/bin/typha", "version"),
    ],
)
async def test_it_tells_its_version_by_the_originals_names(
    image: pathlib.Path, tmp_path: pathlib.Path, arguments: tuple[str, ...]
) -> None:
    code, output = await run(image, tmp_path, *arguments)
    assert code == 0, output
    version = config(image)["config"]["Labels"]["org.opencontainers.image.version"]
    wanted = f"Version:      v{version}\nBuild date:   {BUILD_DATE}\nGit commit:   {COMMIT}\n"
    assert output == wanted


async def test_it_starts_by_the_originals_command_line(image: pathlib.Path, cluster: served.Cluster) -> None:
    cluster.command = in_container(image, 10001, cluster.folder, "/usr/bin/calico", "component", "typha")
    async with served.serving(cluster, **variables(cluster)) as service:
        async with served.mirrors(await service.address(), 1) as clients:
            await served.converged(cluster, clients)
        service.process.terminate()
        assert await service.ends() == 0


async def test_check_and_config_work_in_it(image: pathlib.Path, cluster: served.Cluster) -> None:
    code, output = await run(image, cluster.folder, "check", "--json", **variables(cluster))
    found = {finding["check"]: finding["status"] for finding in json.loads(output)["findings"]}
    assert found["API server"] != "failed"
    assert code == (1 if "failed" in found.values() else 0)
    code, output = await run(image, cluster.folder, "config", "--json", **variables(cluster))
    assert code == 0
    assert f"{container.FOLDER}/feeds.yaml" in output


def test_it_says_what_it_is(image: pathlib.Path) -> None:
    found = config(image)["config"]
    assert found["User"] == "999:999"
    assert set(found["ExposedPorts"]) == {"5473/tcp", "9093/tcp", "9098/tcp"}
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in found["Labels"].items()}
    assert labels.pop("description")
    assert labels.pop("version") == re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[0]
    assert {name: value for name, value in labels.items() if not name.startswith("io.buildah")} == {
        "title": "typha",
        "licenses": "Apache-2.0",
        "source": "https://example.org/typha",
        "revision": COMMIT,
        "created": BUILD_DATE,
    }


def test_its_size(image: pathlib.Path) -> None:
    packed_bytes = sum(layer["size"] for layer in manifest(image)["layers"])
    unpacked_bytes = sum(path.stat().st_size for path in files(image))
    assert packed_bytes < PACKED_BYTES_MAX
    assert unpacked_bytes < UNPACKED_BYTES_MAX


def test_its_only_programs_are_python_and_typha(image: pathlib.Path) -> None:
    root = image / "bundle" / "rootfs"
    assert {path.name for path in (root / "usr/bin").iterdir()} == PROGRAMS
    executable = {
        path.relative_to(root).as_posix()
        for path in files(image)
        if path.stat().st_mode & 0o111 and ".so" not in path.name
    }
    assert {path for path in executable if not path.startswith(("usr/bin/", "opt/typha/bin/"))} == set()
    folders = {path.name for path in root.rglob("*") if path.is_dir()}
    assert folders & {"pip", "setuptools", "ensurepip", "loadtest", "tests", "test", "kubernetes_asyncio"} == set()


def test_nobody_gets_rights_by_its_files(image: pathlib.Path) -> None:
    root = image / "bundle" / "rootfs"
    for path in root.rglob("*"):
        details = path.lstat()
        if not path.is_symlink():
            assert details.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH) == 0, path
            assert (details.st_uid, details.st_gid) == (0, 0), path
            assert "security.capability" not in os.listxattr(path), path
            # User 10001 is nobody's owner and in no group.
            assert details.st_mode & (0o005 if path.is_dir() else 0o004), path


def test_it_has_neither_secrets_nor_traces_of_the_build(image: pathlib.Path) -> None:
    root = image / "bundle" / "rootfs"
    secret = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}")
    trace = re.compile(rb"/(build|image|root|tmp/pip[^/]*)/[A-Za-z_.-]+/")
    for path in files(image):
        content = path.read_bytes()
        assert not secret.search(content), path
        name = path.relative_to(root).as_posix()
        is_ours = path.suffix != ".so" or "typha_rustls" in name  # what others compile has their paths
        if name.startswith("opt/typha") and is_ours and (found := trace.search(content)):
            pytest.fail(f"{name} has {found[0]!r}")
    assert not [path for path in files(image) if path.name in ("direct_url.json", "pip.conf")]
    assert b"/run/authorities.pem" not in gzip.decompress(blob(image, manifest(image)["layers"][0]["digest"]))


def test_every_module_is_compiled_once_and_its_date_is_not_looked_at(image: pathlib.Path) -> None:
    root = image / "bundle" / "rootfs"
    compiled = {path for path in files(image) if path.suffix == ".pyc"}
    sources = {path for path in files(image) if path.suffix == ".py" and path.is_relative_to(root / "opt")}
    assert len(sources) > 400
    assert {path.parent / "__pycache__" / f"{path.stem}.cpython-313.pyc" for path in sources} <= compiled
    assert {path.read_bytes()[4:8] for path in compiled} == {b"\x01\0\0\0"}  # PEP 552: by hash, not checked
    assert not [path for path in compiled if ".opt-" in path.name]


def test_scanners_find_its_packages(image: pathlib.Path) -> None:
    root = image / "bundle" / "rootfs"
    packages = {path.name: path.read_text() for path in (root / "var/lib/dpkg/status.d").iterdir()}
    assert {"libc6", "libssl3t64", "python3.13-minimal", "ca-certificates"} <= set(packages)
    for name, text in packages.items():
        assert re.search(rf"^Package: {re.escape(name)}$", text, re.M)
        assert re.search(r"^Version: \S+$", text, re.M)
    shared = [path for path in files(image) if path.is_relative_to(root / "usr/lib") and ".so" in path.name]
    assert len(shared) > 20
    licences = {path.name for path in (root / "usr/share/doc").iterdir() if (path / "copyright").exists()}
    assert {"libc6", "libssl3t64", "ca-certificates"} <= licences


def test_its_layers_are_what_the_manifest_says(image: pathlib.Path) -> None:
    for part in (manifest(image)["config"], *manifest(image)["layers"]):
        assert hashlib.sha256(blob(image, part["digest"])).hexdigest() == part["digest"].split(":")[1]
    dates = {int(path.lstat().st_mtime) for path in (image / "bundle" / "rootfs").rglob("*")}
    with contextlib.suppress(KeyError):
        dates.remove(0)
    assert dates == set()
