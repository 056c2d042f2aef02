"""The table of settings. Each setting is one field of `Settings`, and one `Row` of `SETTINGS`. Pure.

The rows define the environment variables, the keys of the configuration file, the flags, the defaults and the tables
in docs/configuration.md. `KUBERNETES_VARIABLES` lists, for that page only, the variables that other modules read.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from typha.settings.types import (
    ValueType,
    agent_releases,
    authority,
    boolean,
    endpoints,
    existing_file,
    host_address,
    integer,
    one_of,
    path,
    ratio,
    replicas,
    seconds,
    size,
    text,
)

T = TypeVar("T")

_ROW = "row"


class Scope(enum.StrEnum):
    """Where a setting comes from: the original has it too, or only this service. See `typha.settings.load`."""

    ORIGINAL = "original"
    OURS = "ours"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One setting."""

    name: str
    """Key in the configuration file; the variable and the flag are derived from it."""
    attribute: str
    """Field of `Settings`."""
    type: ValueType[Any]
    default: Any
    unit: str
    scope: Scope
    why: str
    """Why this default."""
    help: str
    non_zero: bool
    """The value `none` is invalid."""
    fatal: bool
    """An invalid value ends the process. Otherwise it is a warning, and the default applies."""

    @property
    def variable(self) -> str:
        """The environment variable, in its canonical case. Any case is accepted."""
        return f"TYPHA_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of `typha serve`."""
        words = [("-" + c if _starts_word(self.name, i) else c) for i, c in enumerate(self.name)]
        return "--" + "".join(words).lower()

    @property
    def has_effect(self) -> bool:
        """Whether any part of the service uses the setting."""
        return not self.help.startswith(NO_EFFECT)

    def parse(self, text: str) -> Any:
        """Convert non-empty text from a source to a value.

        Raises:
            ValueError: the text is not valid; the message says what was expected.
        """
        if text.lower() != "none":
            return self.type.parse(text)
        if self.non_zero:
            raise ValueError("expected a value other than none")
        return self.type.zero


NO_EFFECT = "Accepted, no effect: "
"""Prefix of the help of settings that are parsed only so that existing deployments start."""


def _original(
    name: str,
    value_type: ValueType[T],
    default: T,
    explanation: str,
    *,
    why: str = "same as the original",
    unit: str = "",
    non_zero: bool = False,
    fatal: bool = False,
) -> T:
    """A field for a setting that the original has, with the same name, default and rules."""
    return _field(default, Row(name, "", value_type, default, unit, Scope.ORIGINAL, why, explanation, non_zero, fatal))


def _ours(
    name: str,
    value_type: ValueType[T],
    default: T,
    explanation: str,
    *,
    why: str,
    unit: str = "",
) -> T:
    """A field for a setting that only this service has. Invalid values are fatal, and so is `none` for a number."""
    non_zero = isinstance(default, int | float) and not isinstance(default, bool)
    return _field(default, Row(name, "", value_type, default, unit, Scope.OURS, why, explanation, non_zero, True))


def _rows(settings: type[Any]) -> tuple[Row, ...]:
    """The rows of a dataclass's fields, in order."""
    found = []
    for field in dataclasses.fields(settings):
        if _ROW in field.metadata:
            found.append(dataclasses.replace(field.metadata[_ROW], attribute=field.name))
    return tuple(found)


def _field(default: T, row: Row) -> T:
    # Declared as T, so that mypy checks the field's annotation against the default and the value type.
    return dataclasses.field(default=default, metadata={_ROW: row})


def _starts_word(name: str, index: int) -> bool:
    """Whether a word starts at `index`: at the B of aB, or at the last capital of a run (the B of ABc)."""
    if index == 0 or not name[index].isupper():
        return False
    return not name[index - 1].isupper() or name[index + 1 : index + 2].islower()


MEBIBYTE = 1024 * 1024
PORT_MAXIMUM = 65535

_SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_CLIENT_AUTH = ("RequireAndVerifyClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "NoClientCert")
_NO_ETCD = f"{NO_EFFECT}kubernetes is the only supported datastore."
_NO_DISCONNECT = (
    f"{NO_EFFECT}a slow client is caught up with the newest values instead of being disconnected; see "
    "NoProgressTimeoutSecs."
)
_NO_DEBUG_SERVER = f"{NO_EFFECT}the service has no profiling server."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked and complete. `typha.settings.load` builds it; tests also build it directly."""

    # Settings of the original. `load` replaces timings of zero or less by the original's built-in defaults.

    datastore_type: str = _original(
        "DatastoreType",
        one_of("kubernetes", "etcdv3"),
        "kubernetes",
        "Source of the cluster's state. `etcdv3`, the original's default, is rejected.",
        why="the only datastore that is supported",
        non_zero=True,
        fatal=True,
    )
    etcd_addr: str = _original("EtcdAddr", authority(), "127.0.0.1:2379", _NO_ETCD)
    etcd_scheme: str = _original("EtcdScheme", one_of("http", "https"), "http", _NO_ETCD)
    etcd_endpoints: str = _original("EtcdEndpoints", endpoints(), "", _NO_ETCD)
    etcd_key_file: str = _original("EtcdKeyFile", existing_file(), "", _NO_ETCD)
    etcd_cert_file: str = _original("EtcdCertFile", existing_file(), "", _NO_ETCD)
    etcd_ca_file: str = _original("EtcdCaFile", existing_file(), "", _NO_ETCD)

    log_file_path: str = _original(
        "LogFilePath",
        path(),
        "/var/log/calico/typha.log",
        "Log file; `none` disables it. The service creates the directory and the file (mode 0640), and reopens it "
        "after a rotation. If the default path cannot be opened, the service logs a warning; a configured path must "
        "open.",
        fatal=True,
    )
    log_severity_file: str = _original(
        "LogSeverityFile", one_of(*_SEVERITIES), "INFO", "Minimum severity for the log file; `none` disables it."
    )
    log_severity_screen: str = _original(
        "LogSeverityScreen",
        one_of(*_SEVERITIES),
        "INFO",
        "Minimum severity for standard output (workers: standard error); `none` disables it.",
    )
    log_severity_sys: str = _original(
        "LogSeveritySys",
        one_of(*_SEVERITIES),
        "INFO",
        "Minimum severity for syslog (/dev/log, tag calico-typha), if it exists; `none` disables it.",
    )
    early_log_severity_screen: str = _original(
        "EarlyLogSeverityScreen",
        one_of(*_SEVERITIES),
        "",
        f"{NO_EFFECT}the service reads its settings before it logs the first line.",
    )

    health_enabled: bool = _original("HealthEnabled", boolean(), False, "Serve /liveness and /readiness.")
    health_host: str = _original("HealthHost", host_address(), "localhost", "Address of the health endpoints.")
    health_port: int = _original(
        "HealthPort", integer(0, PORT_MAXIMUM), 9098, "Port of the health endpoints; 0 = any free port."
    )

    prometheus_metrics_enabled: bool = _original("PrometheusMetricsEnabled", boolean(), False, "Serve /metrics.")
    prometheus_metrics_host: str = _original(
        "PrometheusMetricsHost", host_address(), "", "Address of /metrics; empty = all addresses."
    )
    prometheus_metrics_port: int = _original(
        "PrometheusMetricsPort", integer(0, PORT_MAXIMUM), 9093, "Port of /metrics; 0 = any free port."
    )
    prometheus_go_metrics_enabled: bool = _original(
        "PrometheusGoMetricsEnabled",
        boolean(),
        True,
        "Export metrics of the language runtime: `python_*`, where the original has `go_*`.",
    )
    prometheus_process_metrics_enabled: bool = _original(
        "PrometheusProcessMetricsEnabled", boolean(), True, "Export `process_*` metrics of the hub process."
    )
    prometheus_metrics_cert_file: str = _original(
        "PrometheusMetricsCertFile",
        text(),
        "",
        "Certificate of /metrics. If this or the key file is set, /metrics uses HTTPS and needs all three files. "
        "Changed files are reloaded within 10 s.",
    )
    prometheus_metrics_key_file: str = _original("PrometheusMetricsKeyFile", text(), "", "Private key of /metrics.")
    prometheus_metrics_ca_file: str = _original(
        "PrometheusMetricsCAFile", text(), "", "CA certificates for the certificates of scrapers."
    )
    prometheus_metrics_client_auth: str = _original(
        "PrometheusMetricsClientAuth",
        one_of(*_CLIENT_AUTH),
        "NoClientCert",
        "Policy for client certificates of scrapers. Unlike in the original, RequireAnyClientCert also verifies the "
        "certificate.",
    )

    snapshot_cache_max_batch_size: int = _original(
        "SnapshotCacheMaxBatchSize",
        integer(1),
        100,
        f"{NO_EFFECT}a batch holds the changes that arrived together or during the previous send. SegmentBytes and "
        "MaxFrameBytes limit it.",
        unit="updates",
    )
    server_max_message_size: int = _original(
        "ServerMaxMessageSize",
        integer(1),
        100,
        f"{NO_EFFECT}messages are limited in bytes (MaxFrameBytes), not in updates.",
        unit="updates",
    )
    server_max_fall_behind_seconds: float = _original(
        "ServerMaxFallBehindSecs", seconds(), 300.0, _NO_DISCONNECT, unit="seconds"
    )
    server_new_client_fall_behind_grace_period_seconds: float = _original(
        "ServerNewClientFallBehindGracePeriod", seconds(), 300.0, _NO_DISCONNECT, unit="seconds"
    )
    server_min_batching_age_threshold_seconds: float = _original(
        "ServerMinBatchingAgeThresholdSecs",
        seconds(),
        0.01,
        f"{NO_EFFECT}a batch is encoded once, regardless of how far behind a client is.",
        unit="seconds",
    )
    server_ping_interval_seconds: float = _original(
        "ServerPingIntervalSecs",
        seconds(),
        10.0,
        "Keepalive: a client that has received nothing for this long gets a ping. 0 or less = the default.",
        unit="seconds",
    )
    server_pong_timeout_seconds: float = _original(
        "ServerPongTimeoutSecs",
        seconds(),
        60.0,
        "Keepalive: a client is disconnected if its pong does not arrive for this long. A value of at most twice the "
        "ping interval is replaced by six times the ping interval.",
        unit="seconds",
    )
    server_handshake_timeout_seconds: float = _original(
        "ServerHandshakeTimeoutSecs",
        seconds(),
        10.0,
        "Time for a new connection to complete its TLS handshake and its hello. 0 or less = the default.",
        unit="seconds",
    )
    server_write_timeout_seconds: float = _original(
        "ServerWriteTimeoutSecs", seconds(), 120.0, _NO_DISCONNECT, unit="seconds"
    )

    server_port: int = _original(
        "ServerPort",
        integer(-1, PORT_MAXIMUM),
        5473,
        "Port for clients. 0 = the default; -1 = any free port (the original does not have this value).",
        why="same as the original (0 there, which means 5473)",
    )
    server_host: str = _original("ServerHost", host_address(), "", "Address for clients; empty = all addresses.")
    server_key_file: str = _original("ServerKeyFile", existing_file(), "", "TLS for clients: the server's private key.")
    server_cert_file: str = _original(
        "ServerCertFile", existing_file(), "", "TLS for clients: the server's certificate."
    )
    ca_file: str = _original("CAFile", existing_file(), "", "TLS for clients: CA certificates for client certificates.")
    client_cn: str = _original("ClientCN", text(), "", "TLS for clients: required common name of client certificates.")
    client_urisan: str = _original(
        "ClientURISAN", text(), "", "TLS for clients: required URI SAN of client certificates."
    )

    debug_memory_profile_path: str = _original(
        "DebugMemoryProfilePath",
        path(),
        "",
        f"{NO_EFFECT}the service writes no heap profile. SIGUSR1 makes it log a diagnosis, with its memory.",
    )
    debug_disable_log_dropping: bool = _original(
        "DebugDisableLogDropping",
        boolean(),
        False,
        "Block when the log queue is full, instead of dropping lines. This stalls the whole process, clients included.",
    )
    debug_host: str = _original("DebugHost", host_address(), "localhost", _NO_DEBUG_SERVER)
    debug_port: int = _original("DebugPort", integer(0, PORT_MAXIMUM), 0, _NO_DEBUG_SERVER)

    connection_rebalancing_mode: str = _original(
        "ConnectionRebalancingMode",
        one_of("none", "kubernetes"),
        "none",
        "Rebalancing: with kubernetes, the limit of connections follows the number of replicas and nodes, and a "
        "replica that alone has lost the API server hands its clients over to the others; with none the limit is "
        "MaxConnectionsUpperLimit.",
    )
    connection_drop_interval_seconds: float = _original(
        "ConnectionDropIntervalSecs",
        seconds(),
        1.0,
        "Rebalancing: pause between two clients that are sent to other replicas, while there are more than the limit.",
        unit="seconds",
    )
    shutdown_timeout_seconds: float = _original(
        "ShutdownTimeoutSecs",
        seconds(),
        300.0,
        "Drain: after SIGTERM, the service closes connections one by one, over at most this long.",
        unit="seconds",
    )
    shutdown_connection_drop_interval_max_seconds: float = _original(
        "ShutdownConnectionDropIntervalMaxSecs",
        seconds(),
        1.0,
        "Drain: longest pause between two closed connections. Few connections drain sooner than ShutdownTimeoutSecs.",
        unit="seconds",
    )
    max_connections_upper_limit: int = _original(
        "MaxConnectionsUpperLimit",
        integer(1),
        10000,
        "Rebalancing: highest limit of connections, and the limit while replicas or nodes cannot be counted. No "
        "connection is refused.",
    )
    max_connections_lower_limit: int = _original(
        "MaxConnectionsLowerLimit", integer(1), 400, "Rebalancing: lowest limit of connections."
    )
    k8s_service_poll_interval_seconds: float = _original(
        "K8sServicePollIntervalSecs",
        seconds(),
        30.0,
        "Rebalancing: pause between two looks at the replicas' Service.",
        unit="seconds",
    )
    k8s_namespace: str = _original(
        "K8sNamespace", text(), "kube-system", "Rebalancing: namespace of the replicas' Service."
    )
    k8s_service_name: str = _original(
        "K8sServiceName", text(), "calico-typha", "Rebalancing: the Service whose addresses are the replicas."
    )
    k8s_port_name: str = _original(
        "K8sPortName",
        text(),
        "calico-typha",
        "Rebalancing: the port of the Service that an address must have to count.",
    )

    # Settings that only this service has.

    feeds_file: str = _ours(
        "FeedsFile",
        existing_file(),
        "",
        "YAML file that defines raw feeds, such as docs/feeds.example.yaml. Empty = no raw feeds.",
        why="only the user knows which feeds are needed",
    )
    calico_feeds: str = _ours(
        "CalicoFeeds",
        one_of("auto", "true", "false"),
        "auto",
        "Serve Calico's feeds: felix, bgp, tunnel-ip-allocation and node-status. auto = serve them if there is no "
        "FeedsFile, or if the API server lists one of Calico's API groups at start.",
        why="a service with only raw feeds becomes ready on a cluster without Calico",
    )
    read_only: bool = _ours(
        "ReadOnly",
        boolean(),
        False,
        "Do not create missing ClusterInformation and default tiers at start.",
        why="the original creates them",
    )
    tls_engine: str = _ours(
        "TlsEngine",
        one_of("auto", "ssl", "rustls"),
        "auto",
        "TLS for clients: what does its work. auto = rustls, if it is installed (as in the image) and can do what the "
        "other settings ask for, otherwise ssl; ssl = Python's module, with OpenSSL; rustls = nothing else.",
        why="rustls takes half of the CPU and a third of the memory",
    )
    peer_addresses: str = _ours(
        "PeerAddresses",
        replicas(),
        "",
        "Replicas that a stale one asks, as HOST:PORT with commas, beside those of ConnectionRebalancingMode. A "
        "replica may be in its own list.",
        why="replicas outside Kubernetes have no Service",
    )
    upstream: str = _ours(
        "Upstream",
        replicas("elected"),
        "",
        "Replicas that feed this one in place of the API server, as HOST:PORT with commas; one at a time is followed. "
        "`elected`: of all replicas, one watches the API server, and the others follow it. Empty = every replica "
        "watches the API server.",
        why="a fleet of a few replicas costs the API server little, as with the original",
    )
    upstream_fallback_after_seconds: float = _ours(
        "UpstreamFallbackAfterSecs",
        seconds(),
        30.0,
        "How long a replica must have been without an upstream, while the API server answers, before it watches the "
        "API server itself.",
        why="longer than the election of another replica takes, and its first lists",
        unit="seconds",
    )
    stale_hand_over_after_seconds: float = _ours(
        "StaleHandOverAfterSecs",
        seconds(),
        30.0,
        "How long a replica must have lost the API server before it hands its clients over to others that have not "
        "lost it. It asks them up to 15 s earlier.",
        why="an API server that restarts is away for some seconds, and every move costs a snapshot",
        unit="seconds",
    )
    stale_hand_over_spread_seconds: float = _ours(
        "StaleHandOverSpreadSecs",
        seconds(),
        60.0,
        "Time over which a stale replica's clients are moved, in random order.",
        why="the others serve the snapshots of a thousand clients in a second, and need not",
        unit="seconds",
    )
    workers: int = _ours(
        "Workers",
        integer(-1, 256),
        -1,
        "Number of worker processes that serve clients. -1 = one less than the CPUs that the process may use, by "
        "affinity and by the quotas of its cgroups, but at least one and at most three; 0 = the hub serves clients "
        "itself.",
        why="the hub needs a CPU of its own during a fan-out, and one worker serves thousands of clients",
    )
    log_budget_bytes: int = _ours(
        "LogBudgetBytes",
        size(2 * MEBIBYTE),
        64 * MEBIBYTE,
        "Memory for the delta logs of all feeds together. A client that falls out of the log is caught up with the "
        "newest values only. The default is at most a quarter of the memory limit of the cgroup, but at least two "
        "segments.",
        why="holds minutes of changes in a large cluster, and is small compared with its snapshot",
        unit="bytes",
    )
    segment_bytes: int = _ours(
        "SegmentBytes",
        size(65536),
        4 * MEBIBYTE,
        "Size of a segment file of a delta log. Memory is freed one segment at a time. At most half of LogBudgetBytes.",
        why="frees 1/16 of the budget at a time, and leaves few files to pass to the workers",
        unit="bytes",
    )
    max_frame_bytes: int = _ours(
        "MaxFrameBytes",
        integer(65536, 16 * MEBIBYTE),
        16 * MEBIBYTE,
        "Largest frame that the service sends to a client of the native protocol. More is split into several frames. "
        "A value that leaves less than 32 KiB for the rest of its frame is rejected.",
        why="ten times the API server's largest object (1.5 MiB), and a limit on what a client must buffer",
        unit="bytes",
    )
    no_progress_timeout_seconds: float = _ours(
        "NoProgressTimeoutSecs",
        seconds(1),
        60.0,
        "A client is disconnected if data waits for it and its host acknowledges no bytes for this long.",
        why="the original's pong timeout: a host that is silent for this long is gone",
        unit="seconds",
    )
    refusal_hold_seconds: float = _ours(
        "RefusalHoldSecs",
        seconds(0),
        10.0,
        "How long a rejected connection stays open before it is closed. A client of the native protocol is told why "
        "first, and usually closes at once.",
        why="agents of the original reconnect immediately, thousands of times per second",
        unit="seconds",
    )
    max_held_refusals: int = _ours(
        "MaxHeldRefusals",
        integer(1, 1_000_000),
        1000,
        "Most rejected connections that one process keeps open. Above this limit, the oldest is closed.",
        why="each one takes a file descriptor, and clients need these more",
        unit="connections",
    )
    list_page_size: int = _ours(
        "ListPageSize",
        integer(1, 10000),
        500,
        "Objects per page of a list request.",
        why="the same as kubectl; decoding one page does not stall the event loop",
        unit="objects",
    )
    agent_releases: str = _ours(
        "AgentReleases",
        agent_releases(),
        "",
        "Releases of Felix agents by patterns of the versions that they name, where their own choice is wrong: "
        "`pattern=release`, comma-separated, such as `*-acme*=3.31`. The first that matches counts.",
        why="the versions of Calico's own builds are understood",
    )
    admin_socket: str = _ours(
        "AdminSocket",
        path(),
        "auto",
        "Unix socket for `typha status`, `get`, `explain` and `diags`. `auto`: /run/typha/admin-PORT.sock if that "
        "directory can be written to, else /dev/shm/typha-admin-PORT.sock, with the port for clients. `none`: off.",
        why="operators need it in every container, also with a read-only root, and without a change to manifests",
    )
    status_page_enabled: bool = _ours(
        "StatusPageEnabled",
        boolean(),
        False,
        "Serve the status page for browsers: clients, feeds, the last hour. Anybody who reaches the port can read it.",
        why="the page has no authentication",
    )
    status_page_host: str = _ours(
        "StatusPageHost",
        host_address(),
        "localhost",
        "Address of the status page; empty = all addresses. Requests for another host name are refused.",
        why="reached by `kubectl port-forward`, and from nowhere else",
    )
    status_page_port: int = _ours(
        "StatusPagePort",
        integer(0, PORT_MAXIMUM),
        9097,
        "Port of the status page; 0 = any free port.",
        why="no component of Calico uses it",
    )
    log_format: str = _ours(
        "LogFormat",
        one_of("text", "json"),
        "text",
        "Format of log lines: the original's text, or one JSON object per line.",
        why="existing log parsers continue to work",
    )

    tracing_sample_ratio: float = _ours(
        "TracingSampleRatio",
        ratio(),
        0.0,
        "Share of updates that are traced with OpenTelemetry, from the watch event to the last client; 0 = none. Where "
        "traces go is set by the OTEL_ variables. Needs typha[otel].",
        why="tracing needs a collector, and libraries that no other part uses",
    )

    config_invalid_values: int = 0
    """Number of invalid values that were replaced by defaults. Not a setting: it has no row in the table."""


SETTINGS: tuple[Row, ...] = _rows(Settings)

BY_LOWER_NAME: dict[str, Row] = {row.name.lower(): row for row in SETTINGS}


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, to pass them to a worker process."""
    return dataclasses.asdict(settings)


def from_dict(values: dict[str, Any]) -> Settings:
    """The settings from the result of `to_dict`."""
    return Settings(**values)


class Variable(NamedTuple):
    """An environment variable without the prefix TYPHA_, which another module reads."""

    name: str
    default: str
    help: str


def variable_value(variable: Variable, environment: Mapping[str, str]) -> tuple[str, str]:
    """The variable's name in the environment, and its value: empty if it is not set."""
    prefixed = f"CALICO_{variable.name}"
    if variable.name.startswith(_MAY_HAVE_PREFIX) and environment.get(prefixed):
        return prefixed, environment[prefixed]
    return variable.name, environment.get(variable.name, "")


_MAY_HAVE_PREFIX = ("K8S_", "KUBECONFIG", "USE_POD_CIDR")

KUBERNETES_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "KUBECONFIG",
        "$HOME/.kube/config if it exists, else the pod's service account",
        "Kubeconfig files, with colons between them: of entries with one name, the first one counts.",
    ),
    Variable("K8S_CURRENT_CONTEXT", "the kubeconfig's", "Context in the kubeconfig."),
    Variable("K8S_API_ENDPOINT", "the kubeconfig's", "URL of the API server. Without https://, it is plain http."),
    Variable("K8S_API_TOKEN", "the kubeconfig's", "Bearer token. The token file of the kubeconfig takes precedence."),
    Variable("K8S_CERT_FILE", "the kubeconfig's", "Client certificate; needs K8S_KEY_FILE."),
    Variable("K8S_KEY_FILE", "the kubeconfig's", "Private key of the client certificate."),
    Variable("K8S_CA_FILE", "the kubeconfig's", "CA certificates for the API server's certificate."),
    Variable("K8S_INSECURE_SKIP_TLS_VERIFY", "false", "Do not verify the API server's certificate."),
    Variable("KUBERNETES_SERVICE_HOST", "set in a pod", "Address of the API server. Cannot have the prefix CALICO_."),
    Variable("KUBERNETES_SERVICE_PORT", "set in a pod", "Port of the API server. Cannot have the prefix CALICO_."),
    Variable("HTTPS_PROXY", "-", "Proxy for an API server with https://. Also lower-case, as the next two."),
    Variable("HTTP_PROXY", "-", "Proxy for an API server with http://."),
    Variable(
        "NO_PROXY", "-", "Names, addresses and networks without a proxy, comma-separated. Loopback never has one."
    ),
    Variable("K8S_CLIENT_QPS", "-", f"{NO_EFFECT}one watch per resource type needs no rate limit."),
    Variable("K8S_CLIENT_BURST", "-", f"{NO_EFFECT}see K8S_CLIENT_QPS."),
    Variable(
        "USE_POD_CIDR",
        "false",
        "Pods get their addresses from their node's pod CIDRs (host-local IPAM). Blocks and tunnel addresses come from "
        "the nodes then, not from Calico's IPAM.",
    ),
    Variable(
        "CALICO_API_GROUP",
        "chosen from the groups that the API server lists",
        "Calico's API group: projectcalico.org/v3; any other value means crd.projectcalico.org/v1.",
    ),
    Variable(
        "TLS_CIPHER_SUITES",
        "nine ECDHE suites",
        "TLS for clients: cipher suites for TLS 1.2 by their Go names, comma-separated. No effect on TLS 1.3.",
    ),
    Variable("TLS_MIN_VERSION", "1.2", "TLS for clients: minimum version, 1.2 or 1.3."),
)
