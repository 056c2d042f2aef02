"""A real control plane for tests and load tests: etcd and kube-apiserver, started on loopback in a folder of their own.

The binaries are the ones named by `TEST_ASSET_ETCD` and `TEST_ASSET_KUBE_APISERVER` (the convention of Kubernetes'
envtest), else the ones that `make control-plane` built. There is no controller manager and no scheduler: pods stay
pending, deleted namespaces stay terminating, nothing writes but whoever is tested (and the API server itself, a
little).

How old versions end in 410 ("resource version too old"). The API server answers watches from a cache in memory that
keeps recent events whatever etcd has forgotten, so compacting etcd under a running API server changes nothing for its
watches. What works is `expire_history`: SIGKILL the API server, write to etcd so that the current revision lies past
every version a client can hold, compact there, start the API server again. Its cache then begins at the current
revision: a watch from an older version is answered with 410, and an old continue token of a paged LIST as well. (A
mere restart has nearly the same effect, but a client that happens to hold the newest version resumes.) While its
caches fill, the API server answers 429 with Retry-After.

Everything here is synchronous; coroutines call it through `asyncio.to_thread`.
"""

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from prometheus_client import parser

READY_TIMEOUT_SECONDS: Final = 90.0  # a first start takes some 10 s; five times that on a machine that is busy building
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
    """The control plane could not do what was asked; the message has the culprit and the end of its log."""


class BinariesMissingError(ControlPlaneError):
    """There is no kube-apiserver or etcd to start; the message says how to get them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Binaries:
    """The two programs of a control plane."""

    etcd: Path
    api_server: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """What the API server answered: HTTP status and body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body decoded."""
        return json.loads(self.body)


def find_binaries(environment: Mapping[str, str] = os.environ) -> Binaries:
    """The programs to use, the ones named by the environment first.

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

    It is below the kernel's range for outgoing connections: one of those could take the port while the server that is
    to come back on it is down. Every process that uses this function has a block of ports of its own.
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
    """One etcd and one kube-apiserver. `start` it (or use it in a `with`), and `stop` it: it ends only what it started.

    `folder` takes data, keys, logs and kubeconfig files; it should be empty and the caller removes it.
    `url`, `certificate_authority`, `kubeconfig` (an admin's) and `user_kubeconfig` (of a user without any rights) are
    good from `start` on, over kills and restarts: ports, data, tokens and certificate stay.
    """

    def __init__(self, folder: Path, *, binaries: Binaries | None = None, api_server_flags: Sequence[str] = ()) -> None:
        self.folder = folder
        self.binaries = binaries if binaries is not None else find_binaries()
        self.etcd_url = f"http://127.0.0.1:{free_port()}"
        self._etcd_peer_url = f"http://127.0.0.1:{free_port()}"
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts both and returns when the API server is ready. Raises ControlPlaneError, with nothing left running."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tokens.csv").write_text(TOKENS)
        try:
            self._etcd = self._spawn("etcd", self._etcd_command())
            self._wait(self._etcd_answers, what="etcd", process=self._etcd)
            self.start_api_server()
        except BaseException:
            self.stop()
            raise
        self._write_kubeconfig(self.kubeconfig, token=ADMIN_TOKEN)
        self._write_kubeconfig(self.user_kubeconfig, token=USER_TOKEN)

    def stop(self) -> None:
        """Ends both; may be called at any time and more than once."""
        api_server, self._api_server = self._api_server, None
        etcd, self._etcd = self._etcd, None
        for process in (api_server, etcd):
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_SECONDS if process is etcd else STOP_TIMEOUT_SECONDS / 4)
            except subprocess.TimeoutExpired:  # a graceful end waits for watches that may stay open for minutes
                process.kill()
                process.wait()

    def start_api_server(self) -> None:
        """Starts the API server, on the same port and data as before, and returns when it is ready."""
        if self._api_server is not None:
            raise ControlPlaneError("kube-apiserver runs already")
        self._api_server = self._spawn("kube-apiserver", self._api_server_command())
        self._wait(self._api_server_ready, what="kube-apiserver", process=self._api_server)

    def kill(self) -> None:
        """Ends the API server with SIGKILL: connections are reset, nothing is said goodbye to. etcd goes on."""
        if self._api_server is None:
            raise ControlPlaneError("kube-apiserver does not run")
        self._api_server.send_signal(signal.SIGKILL)
        self._api_server.wait()
        self._api_server = None

    def restart(self) -> None:
        """Kills the API server if it runs and starts it again."""
        if self._api_server is not None:
            self.kill()
        self.start_api_server()

    def expire_history(self) -> int:
        """Kills and restarts the API server so that every version seen so far yields 410; returns the first good."""
        if self._api_server is not None:
            self.kill()
        for _ in range(REVISIONS_PAST_EVERY_CLIENT):
            self._etcd_call("/v3/kv/put", {"key": _base64("/outside-the-registry"), "value": _base64("later")})
        revision = self.compact_etcd()
        self.start_api_server()
        return revision

    def compact_etcd(self) -> int:
        """Compacts etcd's history up to its current revision, which it returns. That alone makes no 410: see above."""
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
        """One request to the API server, as the admin unless told otherwise; any HTTP status is an answer.

        Raises OSError if there is no answer at all.
        """
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds, context=self.tls_context()) as answer:
                return Response(status=answer.status, body=answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Response(status=error.code, body=error.read())

    def create(self, path: str, body: object) -> Any:
        """Creates an object in the collection at `path`, returns it as stored. Raises ControlPlaneError on refusal."""
        answer = self.request("POST", path, body)
        if answer.status != 201:
            raise ControlPlaneError(f"POST {path}: {answer.status} {answer.body.decode(errors='replace')}")
        return answer.json()

    def tls_context(self) -> ssl.SSLContext:
        """A client's, that trusts this API server and no other. Good from `start` on."""
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=str(self.certificate_authority))
        return self._tls

    def metrics(self) -> str:
        """The API server's own metrics, in Prometheus' text format."""
        return self.request("GET", "/metrics").body.decode()

    def metric_total(self, name: str, **labels: str) -> float:
        """The sum of the API server's samples called `name` that have all the given labels, e.g. verb="WATCH"."""
        return sum(
            sample.value
            for family in parser.text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def _write_kubeconfig(self, path: Path, *, token: str) -> None:
        authority = base64.b64encode(self.certificate_authority.read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML

    def _etcd_command(self) -> list[str]:
        return [
            str(self.binaries.etcd),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={self._etcd_peer_url}",
            f"--initial-advertise-peer-urls={self._etcd_peer_url}",
            f"--initial-cluster=default={self._etcd_peer_url}",
            "--unsafe-no-fsync",  # a test's data need not outlive the machine
            "--log-level=warn",
        ]

    def _api_server_command(self) -> list[str]:
        certificates = self.certificate_authority.parent
        # The API server makes its certificate and key before it reads this file, so no other tool has to make one.
        key = certificates / "apiserver.key"
        return [
            str(self.binaries.api_server),
            f"--etcd-servers={self.etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={certificates}",
            "--endpoint-reconciler-type=none",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--disable-admission-plugins=ServiceAccount",  # no controller makes the accounts that pods need
            *self._api_server_flags,
        ]

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C at the terminal is for the test run, which then stops the control plane.
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
        except OSError:  # not listening yet, or its certificate not written yet
            return False

    def _etcd_call(self, path: str, body: Mapping[str, object]) -> Any:
        request = urllib.request.Request(self.etcd_url + path, data=json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as answer:
            return json.load(answer)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
