"""loadtest.environment.control_plane without a control plane: which binaries it takes, and its error messages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.environment import control_plane


def program(path: Path, text: str = "exit 3") -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_binaries_of_the_environment_come_first(tmp_path: Path) -> None:
    etcd, api_server = program(tmp_path / "a"), program(tmp_path / "b")
    environment = {"TEST_ASSET_ETCD": str(etcd), "TEST_ASSET_KUBE_APISERVER": str(api_server)}
    assert control_plane.find_binaries(environment) == control_plane.Binaries(etcd=etcd, api_server=api_server)


def test_missing_binaries_are_named_with_the_ways_to_get_them(tmp_path: Path) -> None:
    advice = (
        r"kube-apiserver missing; run `make control-plane` .* TEST_ASSET_ETCD .* TYPHA_TESTS_WITHOUT_CONTROL_PLANE=1"
    )
    with pytest.raises(control_plane.BinariesMissingError, match=advice):
        control_plane.find_binaries({"HOME": str(tmp_path), "PATH": str(tmp_path)})


def test_the_build_script_and_the_search_use_the_same_folder(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    with pytest.raises(control_plane.BinariesMissingError) as missing:
        control_plane.find_binaries(environment)
    for path in re.findall(rf"{tmp_path}/\S+", str(missing.value)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        program(Path(path))

    script = control_plane.SOURCES / "build.sh"
    built = subprocess.run([script], env=environment, capture_output=True, check=True, text=True)

    assert built.stderr == ""  # nothing was built
    assert control_plane.find_binaries(environment).etcd.parent == Path(built.stdout.strip())


def test_a_program_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    broken = program(tmp_path / "etcd", "echo cannot open the data; exit 7")
    plane = control_plane.ControlPlane(
        tmp_path / "run", binaries=control_plane.Binaries(etcd=broken, api_server=broken)
    )
    with pytest.raises(control_plane.ControlPlaneError, match=r"etcd ended with status 7:\ncannot open the data"):
        plane.start()


def test_a_stopped_control_plane_cannot_be_killed(tmp_path: Path) -> None:
    broken = program(tmp_path / "etcd")
    plane = control_plane.ControlPlane(
        tmp_path / "run", binaries=control_plane.Binaries(etcd=broken, api_server=broken)
    )
    with pytest.raises(control_plane.ControlPlaneError, match="does not run"):
        plane.kill()
    plane.stop()


def test_free_ports_are_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert control_plane.free_port() < lowest


def test_two_processes_never_get_the_same_free_port() -> None:
    count = control_plane.PORT_BLOCK_SIZE // 2
    own = [control_plane.free_port() for _ in range(count)]
    code = f"from loadtest.environment import control_plane as c; print(*[c.free_port() for _ in range({count})])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert len({*own, *map(int, other)}) == 2 * count


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEST_ASSET_ETCD", "TEST_ASSET_KUBE_APISERVER"):
        monkeypatch.setenv(name, str(program(tmp_path / name)))
    assert control_plane.find_binaries().etcd == Path(os.environ["TEST_ASSET_ETCD"])
