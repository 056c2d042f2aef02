"""The one table of settings: the original's, then ours, and the variables that other parts read. Pure.

Environment names, keys of the file, flags, defaults and docs/configuration.md all come from `SETTINGS`.
"""

import dataclasses
from typing import Any, NamedTuple

from typha.settings import rows
from typha.settings.original import OriginalSettings
from typha.settings.rows import ours
from typha.settings.types import boolean, existing_file, integer, one_of, seconds, size

MEBIBYTE = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings(OriginalSettings):
    """All settings of the service, checked and complete; made by `typha.settings.load`, or directly in tests."""

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


SETTINGS: tuple[rows.Row, ...] = rows.rows(Settings)

BY_LOWER_NAME: dict[str, rows.Row] = {row.name.lower(): row for row in SETTINGS}


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
