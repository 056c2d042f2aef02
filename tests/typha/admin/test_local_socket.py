"""The Unix socket for operators: who may open and use it, and what it replaces."""

import os
import pathlib
import socket
import stat

import pytest

from typha.admin import local_socket

NOBODY = 65534


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "admin.sock")


def test_opens_with_mode_0600_and_removes_its_file(path: str) -> None:
    before = os.umask(0)
    try:
        listener = local_socket.Listener(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    local_socket.connect(path).close()
    assert local_socket.find([path]) == path
    listener.close()
    assert not os.path.lexists(path)


def test_replaces_the_socket_of_a_killed_service(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with pytest.raises(local_socket.Unusable, match="refused"):
        local_socket.connect(path)
    listener = local_socket.Listener(path)
    local_socket.connect(path).close()
    listener.close()


def test_does_not_take_the_place_of_a_service_that_runs(path: str) -> None:
    listener = local_socket.Listener(path)
    with pytest.raises(local_socket.Unusable, match="another service"):
        local_socket.Listener(path)
    for _ in range(20):  # its backlog is full
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.setblocking(False)
            waiting.connect_ex(path)
    with pytest.raises(local_socket.Unusable, match="another service"):
        local_socket.Listener(path)
    listener.close()


@pytest.mark.parametrize("what", ["file", "directory", "link", "link-to-socket"])
def test_removes_nothing_that_is_no_socket(path: str, tmp_path: pathlib.Path, what: str) -> None:
    other = tmp_path / "other"
    if what == "file":
        other = pathlib.Path(path)
        other.write_text("precious")
    elif what == "directory":
        os.mkdir(path)
    elif what == "link":
        other.write_text("precious")
        os.symlink(other, path)
    else:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(other))
        os.symlink(other, path)
    for use in (local_socket.Listener, local_socket.connect):
        with pytest.raises(local_socket.Unusable, match="no socket"):
            use(path)
    assert os.path.lexists(path)
    assert what == "directory" or other.exists()


def test_neither_replaces_nor_uses_the_socket_of_another_user(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)  # the same seen from the other side
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
        left.listen()
        if not os.geteuid():
            os.chown(path, NOBODY, NOBODY)
        with pytest.raises(local_socket.Unusable, match="belongs to user"):
            local_socket.connect(path)
    with pytest.raises(local_socket.Unusable, match="belongs to user"):
        local_socket.Listener(path)
    assert os.path.lexists(path)


def test_close_leaves_a_file_that_is_another_one(path: str) -> None:
    listener = local_socket.Listener(path)
    os.unlink(path)
    newer = local_socket.Listener(path)
    listener.close()
    local_socket.connect(path).close()
    newer.close()


def test_both_ends_look_at_the_other_user(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = local_socket.Listener(path)
    connected = local_socket.connect(path)
    accepted, address = listener.socket.accept()
    own = os.geteuid()
    assert local_socket.peer_of(accepted, address) == f"uid-{own}"
    monkeypatch.setattr(local_socket, "_user_of", lambda _: 4711)
    with pytest.raises(PermissionError, match="4711"):
        local_socket.peer_of(accepted, address)
    with pytest.raises(local_socket.Unusable, match="4711 answers"):
        local_socket.connect(path)
    for end in (connected, accepted):
        end.close()
    listener.close()


@pytest.mark.parametrize("path", ["admin.sock", "/" + "x" * 107])
def test_refuses_paths_that_no_socket_has(path: str) -> None:
    with pytest.raises(local_socket.Unusable, match="absolute path"):
        local_socket.Listener(path)


def test_finds_one_service_and_names_several(tmp_path: pathlib.Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.sock", "b.sock", "dead.sock")]
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(paths[2])
    listeners = [local_socket.Listener(path) for path in paths[:1]]
    assert local_socket.find(paths) == paths[0]
    listeners.append(local_socket.Listener(paths[1]))
    with pytest.raises(local_socket.Unusable, match=r"several services .*a\.sock, .*b\.sock"):
        local_socket.find(paths)
    for listener in listeners:
        listener.close()
    with pytest.raises(local_socket.Unusable, match="No such file"):
        local_socket.find(paths)
    with pytest.raises(local_socket.Unusable, match=r"no service runs here: .* 1 left by services that were killed"):
        local_socket.find(paths[2:])
    with pytest.raises(local_socket.Unusable, match=r"no service runs here: .* none"):
        local_socket.find([])


def test_the_automatic_path_has_the_port(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    first, second = tmp_path / "run", tmp_path / "shm"
    second.mkdir()
    monkeypatch.setattr(local_socket, "_DIRECTORIES", {str(first): "admin", str(second): "typha-admin"})
    assert local_socket.automatic_path(5473) == f"{second}/typha-admin-5473.sock"
    first.mkdir()
    assert local_socket.automatic_path(5473) == f"{first}/admin-5473.sock"
    listener = local_socket.Listener(local_socket.automatic_path(5473))
    (first / "admin-x.txt").touch()
    assert local_socket.candidates() == [f"{first}/admin-5473.sock"]
    listener.close()
    monkeypatch.setattr(local_socket, "_DIRECTORIES", {str(tmp_path / "none"): "admin"})
    with pytest.raises(local_socket.Unusable, match="can be written to"):
        local_socket.automatic_path(5473)
