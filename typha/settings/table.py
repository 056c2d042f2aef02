"""The one table of settings: the original's, then ours, and the variables that other parts read. Pure.

Environment names, keys of the file, flags, defaults and docs/configuration.md all come from `SETTINGS`.
"""

import dataclasses
import enum
from typing import Any, NamedTuple, TypeVar

from typha.settings.types import (
    ValueType,
    authority,
    boolean,
    endpoints,
    existing_file,
    host_address,
    integer,
    one_of,
    path,
    seconds,
    size,
    text,
)

T = TypeVar("T")

_ROW = "row"


class Scope(enum.StrEnum):
    """Whose a setting is; it decides what an invalid value does (see `typha.settings.load`)."""

    ORIGINAL = "original"
    OURS = "ours"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One setting. `name` is the file's key; environment variable, flag and attribute follow from it.

    `non_zero` refuses `none`. `fatal` makes an invalid value end the start even though the setting is the original's.
    """

    name: str
    attribute: str
    type: ValueType[Any]
    default: Any
    unit: str
    scope: Scope
    why: str
    help: str
    non_zero: bool
    fatal: bool

    @property
    def variable(self) -> str:
        """The environment variable in its canonical form (any case is accepted)."""
        return f"TYPHA_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The command-line flag of `typha serve`."""
        words = [("-" + c if _starts_word(self.name, i) else c) for i, c in enumerate(self.name)]
        return "--" + "".join(words).lower()

    @property
    def has_effect(self) -> bool:
        """Whether the service does anything with it."""
        return not self.help.startswith(NO_EFFECT)

    def parse(self, text: str) -> Any:
        """The value of a source's text, which is not empty.

        Raises:
            ValueError: with what was expected.
        """
        if text.lower() != "none":
            return self.type.parse(text)
        if self.non_zero:
            raise ValueError("expected a value other than none")
        return self.type.zero


NO_EFFECT = "Accepted, no effect: "
"""Begins the help of a setting that is parsed for the sake of existing deployments only."""


def original(
    name: str,
    value_type: ValueType[T],
    default: T,
    explanation: str,
    *,
    why: str = "the original's",
    unit: str = "",
    non_zero: bool = False,
    fatal: bool = False,
) -> T:
    """A field for a setting of the original's: same name, default and rules."""
    return _field(default, Row(name, "", value_type, default, unit, Scope.ORIGINAL, why, explanation, non_zero, fatal))


def ours(
    name: str,
    value_type: ValueType[T],
    default: T,
    explanation: str,
    *,
    why: str,
    unit: str = "",
) -> T:
    """A field for a setting of our own: an invalid value ends the start, and so does `none` for a number."""
    non_zero = isinstance(default, int | float) and not isinstance(default, bool)
    return _field(default, Row(name, "", value_type, default, unit, Scope.OURS, why, explanation, non_zero, True))


def _rows(settings: type[Any]) -> tuple[Row, ...]:
    """The table: the rows of the dataclass's fields, in order."""
    found = []
    for field in dataclasses.fields(settings):
        if _ROW in field.metadata:
            found.append(dataclasses.replace(field.metadata[_ROW], attribute=field.name))
    return tuple(found)


def _field(default: T, row: Row) -> T:
    # To the type checker the field's default is a T, so that annotation, default and parser must agree.
    return dataclasses.field(default=default, metadata={_ROW: row})


def _starts_word(name: str, index: int) -> bool:
    """Whether a new word starts at `index`: aB, or the last capital of a run (ABc)."""
    if index == 0 or not name[index].isupper():
        return False
    return not name[index - 1].isupper() or name[index + 1 : index + 2].islower()


MEBIBYTE = 1024 * 1024
PORT_MAXIMUM = 65535

_SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_CLIENT_AUTH = ("RequireAndVerifyClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "NoClientCert")
_NO_ETCD = f"{NO_EFFECT}kubernetes is the only datastore here."
_NO_CUT = f"{NO_EFFECT}a slow client is caught up with the newest values, and not cut off; see NoProgressTimeoutSecs."
_NO_REBALANCING = f"{NO_EFFECT}connections are not rebalanced between replicas yet."
_NO_DEBUG_SERVER = f"{NO_EFFECT}there is no profiling server."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the service, checked and complete; made by `typha.settings.load`, or directly in tests."""

    # The original's

    datastore_type: str = original(
        "DatastoreType",
        one_of("kubernetes", "etcdv3"),
        "kubernetes",
        "Where the cluster's state comes from. `etcdv3`, the original's default, is refused.",
        why="the only one there is here",
        non_zero=True,
        fatal=True,
    )
    etcd_addr: str = original("EtcdAddr", authority(), "127.0.0.1:2379", _NO_ETCD)
    etcd_scheme: str = original("EtcdScheme", one_of("http", "https"), "http", _NO_ETCD)
    etcd_endpoints: str = original("EtcdEndpoints", endpoints(), "", _NO_ETCD)
    etcd_key_file: str = original("EtcdKeyFile", existing_file(), "", _NO_ETCD)
    etcd_cert_file: str = original("EtcdCertFile", existing_file(), "", _NO_ETCD)
    etcd_ca_file: str = original("EtcdCaFile", existing_file(), "", _NO_ETCD)

    log_file_path: str = original(
        "LogFilePath",
        path(),
        "/var/log/calico/typha.log",
        "Log file; its directory is made, and it is opened anew after a rotation. `none` = off. The default path is "
        "tried, with a warning if it cannot be opened; a path that was given must open.",
        fatal=True,
    )
    log_severity_file: str = original(
        "LogSeverityFile", one_of(*_SEVERITIES), "INFO", "Least severity for the log file; `none` = off."
    )
    log_severity_screen: str = original(
        "LogSeverityScreen",
        one_of(*_SEVERITIES),
        "INFO",
        "Least severity for standard output (workers: standard error); `none` = off.",
    )
    log_severity_sys: str = original(
        "LogSeveritySys",
        one_of(*_SEVERITIES),
        "INFO",
        "Least severity for syslog (/dev/log, tag calico-typha), if there is one; `none` = off.",
    )
    early_log_severity_screen: str = original(
        "EarlyLogSeverityScreen",
        one_of(*_SEVERITIES),
        "",
        f"{NO_EFFECT}settings are read before the first line is logged.",
    )

    health_enabled: bool = original("HealthEnabled", boolean(), False, "Serve /liveness and /readiness.")
    health_host: str = original("HealthHost", host_address(), "localhost", "Where the health endpoint listens.")
    health_port: int = original(
        "HealthPort", integer(0, PORT_MAXIMUM), 9098, "The health endpoint's port; 0 = any free one."
    )

    prometheus_metrics_enabled: bool = original("PrometheusMetricsEnabled", boolean(), False, "Serve /metrics.")
    prometheus_metrics_host: str = original(
        "PrometheusMetricsHost", host_address(), "", "Where /metrics listens; empty = all addresses."
    )
    prometheus_metrics_port: int = original(
        "PrometheusMetricsPort", integer(0, PORT_MAXIMUM), 9093, "The port of /metrics; 0 = any free one."
    )
    prometheus_go_metrics_enabled: bool = original(
        "PrometheusGoMetricsEnabled",
        boolean(),
        True,
        "Show metrics of the language's runtime: here `python_*`, in place of `go_*`.",
    )
    prometheus_process_metrics_enabled: bool = original(
        "PrometheusProcessMetricsEnabled", boolean(), True, "Show `process_*`, of the hub's process."
    )
    prometheus_metrics_cert_file: str = original(
        "PrometheusMetricsCertFile",
        text(),
        "",
        "Certificate of /metrics. With it or the key file set, /metrics is HTTPS, and all three files are needed; "
        "changed files are taken up within 10 s.",
    )
    prometheus_metrics_key_file: str = original("PrometheusMetricsKeyFile", text(), "", "Private key of /metrics.")
    prometheus_metrics_ca_file: str = original(
        "PrometheusMetricsCAFile", text(), "", "Certificates that sign the scrapers' ones."
    )
    prometheus_metrics_client_auth: str = original(
        "PrometheusMetricsClientAuth",
        one_of(*_CLIENT_AUTH),
        "NoClientCert",
        "What is asked of a scraper's certificate. RequireAnyClientCert verifies it, too: stricter than the original.",
    )

    snapshot_cache_max_batch_size: int = original(
        "SnapshotCacheMaxBatchSize",
        integer(1),
        100,
        f"{NO_EFFECT}a batch is what came from the API server at once, or while the last was being sent; it ends with "
        "SegmentBytes and MaxFrameBytes.",
        unit="updates",
    )
    server_max_message_size: int = original(
        "ServerMaxMessageSize",
        integer(1),
        100,
        f"{NO_EFFECT}messages are limited by bytes (MaxFrameBytes), not by updates.",
        unit="updates",
    )
    server_max_fall_behind_seconds: float = original(
        "ServerMaxFallBehindSecs", seconds(), 300.0, _NO_CUT, unit="seconds"
    )
    server_new_client_fall_behind_grace_period_seconds: float = original(
        "ServerNewClientFallBehindGracePeriod", seconds(), 300.0, _NO_CUT, unit="seconds"
    )
    server_min_batching_age_threshold_seconds: float = original(
        "ServerMinBatchingAgeThresholdSecs",
        seconds(),
        0.01,
        f"{NO_EFFECT}frames are made once, whatever the lag of a client.",
        unit="seconds",
    )
    server_ping_interval_seconds: float = original(
        "ServerPingIntervalSecs",
        seconds(),
        10.0,
        "A client that got nothing for this long gets a ping. 0 or less = the default.",
        unit="seconds",
    )
    server_pong_timeout_seconds: float = original(
        "ServerPongTimeoutSecs",
        seconds(),
        60.0,
        "A client whose pong is overdue by this much is disconnected. If not more than twice the ping interval, six "
        "times the ping interval is used.",
        unit="seconds",
    )
    server_handshake_timeout_seconds: float = original(
        "ServerHandshakeTimeoutSecs",
        seconds(),
        10.0,
        "A connection's hello must be complete by then. 0 or less = the default.",
        unit="seconds",
    )
    server_write_timeout_seconds: float = original("ServerWriteTimeoutSecs", seconds(), 120.0, _NO_CUT, unit="seconds")

    server_port: int = original(
        "ServerPort",
        integer(-1, PORT_MAXIMUM),
        5473,
        "Port for clients. 0 = the default; -1 = any free one (an addition of ours).",
        why="the original's (0 there, which means 5473)",
    )
    server_host: str = original("ServerHost", host_address(), "", "Address for clients; empty = all addresses.")
    server_key_file: str = original("ServerKeyFile", existing_file(), "", "TLS for clients: private key.")
    server_cert_file: str = original("ServerCertFile", existing_file(), "", "TLS for clients: certificate.")
    ca_file: str = original("CAFile", existing_file(), "", "TLS for clients: certificates that sign theirs.")
    client_cn: str = original("ClientCN", text(), "", "TLS for clients: common name their certificates must have.")
    client_urisan: str = original("ClientURISAN", text(), "", "TLS for clients: URI SAN their certificates must have.")

    debug_memory_profile_path: str = original(
        "DebugMemoryProfilePath", path(), "", f"{NO_EFFECT}there is no heap profile."
    )
    debug_disable_log_dropping: bool = original(
        "DebugDisableLogDropping",
        boolean(),
        False,
        "Wait when the log queue is full, in place of dropping lines. Everything waits, clients included.",
    )
    debug_host: str = original("DebugHost", host_address(), "localhost", _NO_DEBUG_SERVER)
    debug_port: int = original("DebugPort", integer(0, PORT_MAXIMUM), 0, _NO_DEBUG_SERVER)

    connection_rebalancing_mode: str = original(
        "ConnectionRebalancingMode", one_of("none", "kubernetes"), "none", _NO_REBALANCING
    )
    connection_drop_interval_seconds: float = original(
        "ConnectionDropIntervalSecs", seconds(), 1.0, _NO_REBALANCING, unit="seconds"
    )
    shutdown_timeout_seconds: float = original(
        "ShutdownTimeoutSecs",
        seconds(),
        300.0,
        "After SIGTERM the connections are closed one after the other, spread over at most this long.",
        unit="seconds",
    )
    shutdown_connection_drop_interval_max_seconds: float = original(
        "ShutdownConnectionDropIntervalMaxSecs",
        seconds(),
        1.0,
        "Longest pause between two of them: few connections are closed sooner than ShutdownTimeoutSecs allows.",
        unit="seconds",
    )
    max_connections_upper_limit: int = original("MaxConnectionsUpperLimit", integer(1), 10000, _NO_REBALANCING)
    max_connections_lower_limit: int = original("MaxConnectionsLowerLimit", integer(1), 400, _NO_REBALANCING)
    k8s_service_poll_interval_seconds: float = original(
        "K8sServicePollIntervalSecs", seconds(), 30.0, _NO_REBALANCING, unit="seconds"
    )
    k8s_namespace: str = original("K8sNamespace", text(), "kube-system", _NO_REBALANCING)
    k8s_service_name: str = original("K8sServiceName", text(), "calico-typha", _NO_REBALANCING)
    k8s_port_name: str = original("K8sPortName", text(), "calico-typha", _NO_REBALANCING)

    # Ours

    feeds_file: str = ours(
        "FeedsFile",
        existing_file(),
        "",
        "YAML file that defines raw feeds; docs/feeds.example.yaml is an example. Empty = no raw feeds.",
        why="no feed is guessed",
    )
    calico_feeds: str = ours(
        "CalicoFeeds",
        one_of("auto", "true", "false"),
        "auto",
        "Serve Calico's own feeds: felix, bgp, tunnel-ip-allocation, node-status. auto = if there is no FeedsFile, or "
        "the API server lists one of Calico's API groups at start.",
        why="a service of raw feeds alone is ready on a cluster without Calico",
    )
    read_only: bool = ours(
        "ReadOnly",
        boolean(),
        False,
        "Do not create ClusterInformation and the default tiers at start where they are missing.",
        why="the original creates them",
    )
    workers: int = ours(
        "Workers",
        integer(-1, 256),
        -1,
        "Processes that serve clients. -1 = one per core but one, at least one; 0 = the hub serves them itself.",
        why="the hub needs a core while a fan-out is busy",
    )
    log_budget_bytes: int = ours(
        "LogBudgetBytes",
        size(2 * MEBIBYTE),
        64 * MEBIBYTE,
        "Memory for the delta logs of all feeds together. A client further behind is sent newest values only.",
        why="minutes of churn of a large cluster, and small beside its snapshot",
        unit="bytes",
    )
    segment_bytes: int = ours(
        "SegmentBytes",
        size(65536),
        4 * MEBIBYTE,
        "Size of one file of a delta log; memory is freed by whole files. At most half of LogBudgetBytes.",
        why="freeing 1/16 of the budget at a time, with few files to pass to the workers",
        unit="bytes",
    )
    max_frame_bytes: int = ours(
        "MaxFrameBytes",
        size(65536),
        16 * MEBIBYTE,
        "Largest frame that is sent or accepted. A batch that would be larger is split.",
        why="ten times the API server's largest object (1.5 MiB), and a bound on what a client must hold",
        unit="bytes",
    )
    no_progress_timeout_seconds: float = ours(
        "NoProgressTimeoutSecs",
        seconds(1),
        60.0,
        "A client for which bytes wait, and whose host acknowledges none for this long, is disconnected.",
        why="the original's pong timeout: a host that is silent for this long is gone",
        unit="seconds",
    )
    refusal_hold_seconds: float = ours(
        "RefusalHoldSecs",
        seconds(0),
        10.0,
        "How long a refused connection is kept open, silent, before it is closed.",
        why="agents of the original reconnect at once, thousands of times a second",
        unit="seconds",
    )
    max_held_refusals: int = ours(
        "MaxHeldRefusals",
        integer(1, 1_000_000),
        1000,
        "Most refused connections kept at a time in one process; beyond it the oldest is closed.",
        why="a descriptor each: refusals must not use up those of clients",
        unit="connections",
    )
    list_page_size: int = ours(
        "ListPageSize",
        integer(1, 10000),
        500,
        "Objects per page of a list.",
        why="what kubectl uses: small enough to be decoded without a pause",
        unit="objects",
    )
    log_format: str = ours(
        "LogFormat",
        one_of("text", "json"),
        "text",
        "Format of log lines: the original's text, or one JSON object per line.",
        why="the original's, for who parses it already",
    )

    config_invalid_values: int = 0
    """How many values of the original's settings were invalid and replaced by defaults; no row of the table."""


SETTINGS: tuple[Row, ...] = _rows(Settings)

BY_LOWER_NAME: dict[str, Row] = {row.name.lower(): row for row in SETTINGS}


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, for a worker process."""
    return dataclasses.asdict(settings)


def from_dict(values: dict[str, Any]) -> Settings:
    """The settings of `to_dict`."""
    return Settings(**values)


class Variable(NamedTuple):
    """An environment variable without the TYPHA_ prefix, read by another part of the service."""

    name: str
    default: str
    help: str


KUBERNETES_VARIABLES: tuple[Variable, ...] = (
    Variable("KUBECONFIG", "~/.kube/config if it exists, else the pod's service account", "Kubeconfig files."),
    Variable("K8S_CURRENT_CONTEXT", "the kubeconfig's", "Context of the kubeconfig."),
    Variable("K8S_API_ENDPOINT", "the kubeconfig's", "URL of the API server."),
    Variable("K8S_API_TOKEN", "the kubeconfig's", "Bearer token."),
    Variable("K8S_CERT_FILE", "the kubeconfig's", "Client certificate; needs K8S_KEY_FILE."),
    Variable("K8S_KEY_FILE", "the kubeconfig's", "Its private key."),
    Variable("K8S_CA_FILE", "the kubeconfig's", "Certificates that sign the API server's."),
    Variable("K8S_INSECURE_SKIP_TLS_VERIFY", "false", "Do not verify the API server's certificate."),
    Variable("KUBERNETES_SERVICE_HOST", "set in a pod", "Address of the API server, without prefix only."),
    Variable("KUBERNETES_SERVICE_PORT", "set in a pod", "Port of the API server, without prefix only."),
    Variable("K8S_CLIENT_QPS", "-", "Accepted, no effect: a watch per type needs no rate limit."),
    Variable("K8S_CLIENT_BURST", "-", "Accepted, no effect: as K8S_CLIENT_QPS."),
    Variable("USE_POD_CIDR", "-", "Accepted, no effect: blocks and affinities come from their custom resources."),
    Variable(
        "CALICO_API_GROUP",
        "by the groups that the API server lists",
        "Calico's API group: projectcalico.org/v3, or anything else for crd.projectcalico.org/v1.",
    ),
    Variable(
        "TLS_CIPHER_SUITES",
        "nine ECDHE suites",
        "TLS for clients: TLS 1.2's suites by Go's names, with commas; no effect on TLS 1.3.",
    ),
    Variable("TLS_MIN_VERSION", "1.2", "TLS for clients: 1.2 or 1.3."),
)
