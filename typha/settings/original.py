"""The settings the original has, by its names and with its defaults. One field is one row of the table. Pure."""

import dataclasses

from typha.settings.rows import NO_EFFECT, original
from typha.settings.types import (
    authority,
    boolean,
    endpoints,
    existing_file,
    host_address,
    integer,
    one_of,
    path,
    seconds,
    text,
)

PORT_MAXIMUM = 65535

_SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_CLIENT_AUTH = ("RequireAndVerifyClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "NoClientCert")
_NO_ETCD = f"{NO_EFFECT}kubernetes is the only datastore here."
_NO_CUT = f"{NO_EFFECT}a slow client is caught up with the newest values, and not cut off; see NoProgressTimeoutSecs."
_NO_REBALANCING = f"{NO_EFFECT}connections are not rebalanced between replicas yet."
_NO_DEBUG_SERVER = f"{NO_EFFECT}there is no profiling server."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OriginalSettings:
    """Settings of the original's; zero or negative timings have been replaced by their built-in defaults."""

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
