"""A real control plane for tests and load tests: etcd and kube-apiserver on loopback, with a folder of their own.

The binaries are those named by `TEST_ASSET_ETCD` and `TEST_ASSET_KUBE_APISERVER` (the convention of Kubernetes'
envtest), or else those that `make control-plane` built. There is no controller manager and no scheduler: pods stay
pending, deleted namespaces stay terminating. Only the test writes, and to a small degree the API server itself.

How to make the API server answer 410 ("resource version too old"): it answers watches from a cache in memory, which
keeps recent events even if etcd has forgotten them. So compacting etcd under a running API server does not affect its
watches. `expire_history` works: SIGKILL the API server, write to etcd so that the current revision is later than every
version a client can hold, compact there, and start the API server again. Its cache then starts at the current revision.
A watch from an older version gets 410, and so does an old continue token of a paged LIST. (After a plain restart, a
client that holds the newest version could resume.) While its caches fill, the API server answers 429 with Retry-After.

Everything here is synchronous; coroutines call it through `asyncio.to_thread`.
"""

import base64
import dataclasses
import functools
import hashlib
import http
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from loadtest.environment import kubeconfig
from loadtest.reporting import measure

READY_TIMEOUT_SECONDS: Final = 180.0  # a first start takes some 10 s; ten times that on a busy machine
STOP_TIMEOUT_SECONDS: Final = 20.0
POLL_INTERVAL_SECONDS: Final = 0.1
REQUEST_TIMEOUT_SECONDS: Final = 30.0
REVISIONS_PAST_EVERY_CLIENT: Final = 20
LOG_TAIL_LINES: Final = 15
PORT_BLOCK_SIZE: Final = 300

SOURCES: Final = Path(__file__).resolve().parents[2] / "tools" / "control-plane"
SOURCES_IN_DIGEST: Final = (
    "go.mod",
    "go.sum",
    "etcd/main.go",
    "kube-apiserver/main.go",
)  # as in tools/control-plane/build.sh

ADMIN_TOKEN: Final = "admin-token-of-a-test"
USER_TOKEN: Final = "user-token-of-a-test"
TOKENS: Final = f'{ADMIN_TOKEN},admin,1,"system:masters"\n{USER_TOKEN},user,2\n'


class ControlPlaneError(Exception):
    """The control plane failed; the message names the process and has the end of its log."""


class BinariesMissingError(ControlPlaneError):
    """kube-apiserver or etcd is missing; the message says how to get it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Binaries:
    """The two programs of a control plane."""

    etcd: Path
    api_server: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """An answer of the API server: HTTP status and body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body decoded."""
        return json.loads(self.body)


def find_binaries(environment: Mapping[str, str] = os.environ) -> Binaries:
    """The programs to use; those named by the environment come first.

    Raises BinariesMissingError with what to do about it.
    """
    folder = _built_folder(environment)
    etcd = Path(environment.get("TEST_ASSET_ETCD") or folder / "etcd")
    api_server = Path(environment.get("TEST_ASSET_KUBE_APISERVER") or folder / "kube-apiserver")
    missing = [str(path) for path in (etcd, api_server) if not os.access(path, os.X_OK)]
    if not missing:
        return Binaries(etcd=etcd, api_server=api_server)
    advice = (
        "run `make control-plane` (it builds both once, in about 6 minutes), or set TEST_ASSET_ETCD and "
        "TEST_ASSET_KUBE_APISERVER to other binaries, or leave these tests out with TYPHA_TESTS_WITHOUT_CONTROL_PLANE=1"
    )
    raise BinariesMissingError(f"no real control plane: {' and '.join(missing)} missing; {advice}")


def _built_folder(environment: Mapping[str, str]) -> Path:
    digest = hashlib.sha256()
    for name in SOURCES_IN_DIGEST:
        source = SOURCES / name
        digest.update(source.read_bytes() if source.exists() else b"")
    cache = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "/")) / ".cache")
    return Path(cache) / "typha-control-plane" / digest.hexdigest()[:16] / "bin"


def free_port(host: str = "127.0.0.1") -> int:
    """A free TCP port that no other process takes before the caller listens on it.

    The port is below the kernel's range for outgoing connections. Otherwise a client's connection could take it while
    the server is down, before it restarts on it. Every process that uses this function has its own block of ports.
    """
    for port in itertools.islice(_own_ports(), PORT_BLOCK_SIZE):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ControlPlaneError("no free port below 32000")


@functools.cache
def _own_ports() -> Iterator[int]:
    """The ports of the first block that no other process has, over and over.

    A socket in Linux' abstract namespace marks a block as taken; the kernel frees it when the process ends.
    """
    blocks = [range(first, first + PORT_BLOCK_SIZE) for first in range(20_000, 32_000, PORT_BLOCK_SIZE)]
    for block in blocks:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0typha-load-test-ports-{block.start}")
        except OSError:
            claim.close()
            continue
        claim.detach()  # stays open as long as this process
        return itertools.cycle(block)
    raise ControlPlaneError(f"{len(blocks)} processes use the ports of tests")


class ControlPlane:
    """One etcd and one kube-apiserver: `start` and `stop` them, or use a `with` block. It ends only what it started.

    `folder` is for data, keys, logs and kubeconfig files; it should be empty, and the caller removes it. `url`,
    `certificate_authority`, `kubeconfig` (of an admin) and `user_kubeconfig` (of a user without any rights) are valid
    from `start` on. Ports, data, tokens and certificate stay the same over kills and restarts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Binaries | None = None,
        api_server_flags: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        """The API server listens on the address `host`, etcd always on loopback."""
        self.folder = folder
        self.binaries = binaries if binaries is not None else find_binaries()
        self.etcd_url = f"http://127.0.0.1:{free_port()}"
        self._etcd_peer_url = f"http://127.0.0.1:{free_port()}"
        self._port = free_port()
        self._host = host
        self.url = f"https://{host}:{self._port}"
        self.kubeconfig = folder / "admin.kubeconfig"
        self.user_kubeconfig = folder / "user.kubeconfig"
        self.certificate_authority = folder / "certificates" / "apiserver.crt"
        self._api_server_flags = tuple(api_server_flags)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api_server: subprocess.Popen[bytes] | None = None
        self._tls: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start both and return when the API server is ready. After a ControlPlaneError nothing runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tokens.csv").write_text(TOKENS)
        try:
            self._etcd = self._spawn("etcd", self._etcd_command())
            self._wait(self._etcd_answers, what="etcd", process=self._etcd)
            self.start_api_server()
        except BaseException:
            self.stop()
            raise
        authority = self.certificate_authority.read_bytes()
        for path, token in ((self.kubeconfig, ADMIN_TOKEN), (self.user_kubeconfig, USER_TOKEN)):
            kubeconfig.write(path, self.url, token=token, authority=authority)

    def stop(self) -> None:
        """End both; may be called at any time, and more than once."""
        api_server, self._api_server = self._api_server, None
        etcd, self._etcd = self._etcd, None
        for process in (api_server, etcd):
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_SECONDS if process is etcd else STOP_TIMEOUT_SECONDS / 4)
            except subprocess.TimeoutExpired:  # a graceful end waits for watches, which may stay open for minutes
                process.kill()
                process.wait()

    def start_api_server(self) -> None:
        """Start the API server with the same port and data, and return when it is ready."""
        if self._api_server is not None:
            raise ControlPlaneError("kube-apiserver runs already")
        self._api_server = self._spawn("kube-apiserver", self._api_server_command())
        self._wait(self._api_server_ready, what="kube-apiserver", process=self._api_server)

    def kill(self) -> None:
        """End the API server with SIGKILL, which resets its connections. etcd keeps running."""
        if self._api_server is None:
            raise ControlPlaneError("kube-apiserver does not run")
        self._api_server.send_signal(signal.SIGKILL)
        self._api_server.wait()
        self._api_server = None

    def restart(self) -> None:
        """Kill the API server if it runs, and start it again."""
        if self._api_server is not None:
            self.kill()
        self.start_api_server()

    def expire_history(self) -> int:
        """Kill and restart the API server, so that every version so far gives 410; returns the first valid version."""
        if self._api_server is not None:
            self.kill()
        for _ in range(REVISIONS_PAST_EVERY_CLIENT):
            self._etcd_call("/v3/kv/put", {"key": _base64("/outside-the-registry"), "value": _base64("later")})
        revision = self.compact_etcd()
        self.start_api_server()
        return revision

    def compact_etcd(self) -> int:
        """Compact etcd's history up to its current revision; returns it. This alone gives no 410: see the module."""
        answer = self._etcd_call("/v3/kv/range", {"key": _base64("/outside-the-registry")})
        revision = int(answer["header"]["revision"])
        self._etcd_call("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str = ADMIN_TOKEN,
        content_type: str = "application/json",
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> Response:
        """Send a request to the API server, as the admin by default; any HTTP status is an answer.

        The API server answers 429 before it has begun with a request, so this is sent again until
        READY_TIMEOUT_SECONDS are over. Raises OSError if there is no answer.
        """
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        answer = self._send(request, timeout_seconds)
        while answer.status == http.HTTPStatus.TOO_MANY_REQUESTS and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_SECONDS)
            answer = self._send(request, timeout_seconds)
        return answer

    def _send(self, request: urllib.request.Request, timeout_seconds: float) -> Response:
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds, context=self.tls_context()) as answer:
                return Response(status=answer.status, body=answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Response(status=error.code, body=error.read())

    def create(self, path: str, body: object) -> Any:
        """Create an object in the collection at `path`; returns it as stored. Raises ControlPlaneError."""
        answer = self.request("POST", path, body)
        if answer.status != 201:
            raise ControlPlaneError(f"POST {path}: {answer.status} {answer.body.decode(errors='replace')}")
        return answer.json()

    @property
    def api_server_pid(self) -> int:
        """Process id of kube-apiserver. Raises ControlPlaneError if it does not run."""
        if self._api_server is None:
            raise ControlPlaneError("kube-apiserver does not run")
        return self._api_server.pid

    def tls_context(self) -> ssl.SSLContext:
        """A client's context that trusts this API server only. Valid from `start` on."""
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=str(self.certificate_authority))
        return self._tls

    def metrics(self) -> str:
        """The API server's own metrics, in Prometheus' text format."""
        return self.request("GET", "/metrics").body.decode()

    def metric_total(self, name: str, **labels: str) -> float:
        """Sum of the API server's samples with this name and all these labels, such as verb="WATCH"."""
        return measure.Metrics(self.metrics()).total(name, **labels)

    def _etcd_command(self) -> list[str]:
        return [
            str(self.binaries.etcd),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={self._etcd_peer_url}",
            f"--initial-advertise-peer-urls={self._etcd_peer_url}",
            f"--initial-cluster=default={self._etcd_peer_url}",
            "--unsafe-no-fsync",  # a test's data need not survive the machine
            "--log-level=warn",
        ]

    def _api_server_command(self) -> list[str]:
        certificates = self.certificate_authority.parent
        # The API server creates its certificate and key before it reads this file, so no other tool is needed.
        key = certificates / "apiserver.key"
        return [
            str(self.binaries.api_server),
            f"--etcd-servers={self.etcd_url}",
            f"--bind-address={self._host}",
            f"--advertise-address={self._host}",
            f"--secure-port={self._port}",
            f"--cert-dir={certificates}",
            "--endpoint-reconciler-type=none",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--disable-admission-plugins=ServiceAccount",  # no controller creates the accounts that pods need
            *self._api_server_flags,
        ]

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            # A session of its own, so that Ctrl-C reaches only the test run, which then stops the control plane.
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _wait(self, ready: Callable[[], bool], *, what: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while not ready():
            status = process.poll()
            if status is not None:
                raise ControlPlaneError(f"{what} ended with status {status}:\n{self._log_tail(what)}")
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"{what} not ready in {READY_TIMEOUT_SECONDS:.0f} s:\n{self._log_tail(what)}")
            time.sleep(POLL_INTERVAL_SECONDS)

    def _log_tail(self, what: str) -> str:
        lines = (self.folder / f"{what}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _etcd_answers(self) -> bool:
        try:
            self._etcd_call("/v3/maintenance/status", {})
        except OSError:
            return False
        return True

    def _api_server_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz").status == 200
        except OSError:  # it does not listen yet, or has not written its certificate yet
            return False

    def _etcd_call(self, path: str, body: Mapping[str, object]) -> Any:
        request = urllib.request.Request(self.etcd_url + path, data=json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as answer:
            return json.load(answer)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
