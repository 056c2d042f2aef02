"""The Unix socket for operators: where it is, and who may open and use it.

It has mode 0600, and both ends look at the other's user. The server answers root and its own user. A client speaks to a
socket whose owner and server are root or its own user: /dev/shm is everybody's, and somebody else may have put a socket
there.
"""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterable
from typing import Any

AUTOMATIC = "auto"
_DIRECTORIES = {"/run/typha": "admin", "/dev/shm": "typha-admin"}
"""Where the socket may be, and how its name begins. The second can be written to in every container of Kubernetes, even
if the root is read-only."""
_MODE = 0o600
_BACKLOG = 8
_PATH_BYTES_MAX = 107
_CONNECT_SECONDS = 2.0
_SHOWN_MAX = 3
_PEER = struct.Struct("3i")


class Unusable(Exception):
    """There is no socket that may be used; the message says why."""


def automatic_path(port: int) -> str:
    """Where a service with this port for clients has its socket."""
    for directory, prefix in _DIRECTORIES.items():
        if os.access(directory, os.W_OK | os.X_OK):
            return f"{directory}/{prefix}-{port}.sock"
    raise Unusable(f"none of {', '.join(_DIRECTORIES)} can be written to")


def candidates() -> list[str]:
    """The sockets that are where services put them."""
    found: list[str] = []
    for directory, prefix in _DIRECTORIES.items():
        with contextlib.suppress(OSError):
            names = sorted(name for name in os.listdir(directory) if name.startswith(f"{prefix}-"))
            found += [f"{directory}/{name}" for name in names if name.endswith(".sock")]
    return found


def _user_of(connected: socket.socket) -> int:
    """The user of the process at the other end."""
    user: int = _PEER.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1]
    return user


def _is_trusted(user: int) -> bool:
    return user in (0, os.geteuid())


def peer_of(connected: socket.socket, _address: Any) -> str:
    """The name of the peer, for the log.

    Raises:
        PermissionError: it is neither root nor the user of this process.
    """
    user = _user_of(connected)
    if not _is_trusted(user):
        raise PermissionError(f"user {user} may not use the admin socket")
    return f"uid-{user}"


class Listener:
    """A listening socket. `close` removes its file, unless the file is another one by then."""

    def __init__(self, path: str) -> None:
        """Opens it. A socket of the same user that nobody listens on is replaced; nothing else is ever removed.

        Raises:
            Unusable: something is in the way.
            OSError: it cannot be opened.
        """
        if len(os.fsencode(path)) > _PATH_BYTES_MAX or not os.path.isabs(path):
            raise Unusable(f"{path!r} is no absolute path of {_PATH_BYTES_MAX} bytes at most")
        self.path = path
        with contextlib.ExitStack() as on_failure:
            self.socket = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self.socket.setblocking(False)
            os.fchmod(self.socket.fileno(), _MODE)  # before it has a name: there is no moment with another mode
            _remove_stale(path)
            self.socket.bind(path)
            self._identity = _identity(os.lstat(path))
            self.socket.listen(_BACKLOG)
            on_failure.pop_all()

    def close(self) -> None:
        """Closes the socket, and removes its file."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if _identity(os.lstat(self.path)) == self._identity:
                os.unlink(self.path)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Unusable(f"{path} exists, and is no socket")
    if found.st_uid != os.geteuid():
        raise Unusable(f"{path} belongs to user {found.st_uid}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # of a service that was killed
            return
        except OSError:  # its backlog is full: somebody listens
            pass
    raise Unusable(f"another service listens on {path}")


def connect(path: str) -> socket.socket:
    """A connection to a service's socket.

    Raises:
        Unusable: there is none, or it is somebody else's.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise Unusable(f"{path} is no socket")
        if not _is_trusted(found.st_uid):
            raise Unusable(f"{path} belongs to user {found.st_uid}")
        connected.settimeout(_CONNECT_SECONDS)
        connected.connect(path)
        if not _is_trusted(_user_of(connected)):
            raise Unusable(f"user {_user_of(connected)} answers on {path}")
    except OSError as error:
        connected.close()
        raise Unusable(f"{path}: {error.strerror or error}") from error
    except Unusable:
        connected.close()
        raise
    return connected


def find(paths: Iterable[str] | None = None) -> str:
    """The path of the one service here.

    Raises:
        Unusable: there is none, or there are several.
    """
    alive: list[str] = []
    failures: list[str] = []
    left = 0
    for path in candidates() if paths is None else paths:
        try:
            connect(path).close()
            alive.append(path)
        except Unusable as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                left += 1
            else:
                failures.append(str(error))
    if len(alive) == 1:
        return alive[0]
    if alive:
        raise Unusable(f"several services run here; choose one by --server: {', '.join(alive)}")
    if failures:
        raise Unusable("; ".join(failures[:_SHOWN_MAX]))
    what = f"{left} left by services that were killed" if left else "none"
    raise Unusable(f"no service runs here: sockets in {', '.join(_DIRECTORIES)}: {what}")
