"""What the agent says about itself: status file, metrics, and what it does not support."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from clients.agents.node import desired
from clients.agents.node.dataplane import base
from clients.agents.node.dataplane.programmer import Programmer

STATUS_SECONDS = 1.0
"""The status file is written at most this often."""

NAMES_MAX = 20
"""How many of a kind the status lists; the rest is counted."""


@dataclass(slots=True)
class Facts:
    """What the run knows beside the data plane."""

    node: str
    server: str = ""
    """The server that it is connected to."""
    in_sync: bool = False
    stale: bool = False
    """Whether the map is that of the state file: no server has confirmed it in this run."""
    updates: int = 0
    refused: int = 0
    """Values of the feed that did not decode."""
    disconnects: int = 0
    programmed_at: float | None = None
    """Unix time at which the last changes were in the kernel."""
    unsupported: frozenset[str] = field(default_factory=frozenset)


class LineLimit:
    """Allows a number of log lines a minute."""

    def __init__(self, lines: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._now = now
        self._began = -60.0
        self._asked = 0

    def allows(self) -> bool:
        """Whether one more line may be written."""
        if self._now() - self._began >= 60.0:
            self._began, self._asked = self._now(), 0
        self._asked += 1
        return self._asked <= self._lines


class StatusFile:
    """A JSON file for `python -m clients.agents.node status`. Readers see an old one or a new one, never a part."""

    def __init__(self, path: pathlib.Path | None, *, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._written_at = -STATUS_SECONDS

    def write(self, facts: Facts, programmer: Programmer) -> None:
        """Writes the file, unless it is too soon.

        Raises:
            OSError: it cannot be written.
        """
        if self._path is None or self._now() - self._written_at < STATUS_SECONDS:
            return
        self._written_at = self._now()
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(status(facts, programmer), indent=2))
        partial.replace(self._path)


def status(facts: Facts, programmer: Programmer) -> dict[str, Any]:
    """Everything that a person may want to know at a glance."""
    counters = programmer.counters
    return {
        "node": facts.node,
        "pid": os.getpid(),
        "written_at": time.time(),
        "connected_to": facts.server,
        "in_sync": facts.in_sync,
        "stale": facts.stale,
        "ready": programmer.state.settings.ready,
        "programmed_at": facts.programmed_at,
        "programmed": programmer.numbers(),
        "transactions": counters.transactions,
        "repairs": counters.repairs,
        "failures": counters.failures,
        "refused_values": facts.refused,
        "not_supported": sorted(facts.unsupported),
        "cut_off": programmer.refused_endpoints[:NAMES_MAX],
        "pending": dict(list(programmer.pending.items())[:NAMES_MAX]),
        "pending_in_all": len(programmer.pending),
    }


def unsupported(state: desired.State) -> frozenset[str]:
    """What the state asks for and the agent does not do."""
    values = {name.lower(): value.strip().lower() for name, value in state.settings.values.items()}
    policies = {
        key for key, policy in state.policies.items() if _has_unsupported(policy) and not desired.is_staged(key)
    }
    found = {
        "host endpoints: policies for them are not enforced": bool(state.host_endpoints),
        "IP-in-IP: the agent makes no such tunnel": state.settings.ipip,
        "eBPF: policies are enforced by nftables": values.get("bpfenabled", "") not in base.NO,
        "WireGuard: packets of workloads to the pools' addresses on other nodes are dropped": base.defaults(
            state.settings
        ).encrypted,
        "IPv6: its packets from and to workloads are dropped": state.settings.vxlan_v6
        or any(":" in net for endpoint in state.endpoints.values() for net in endpoint.nets),
        "floating addresses": any(endpoint.translations for endpoint in state.endpoints.values()),
        f"conditions of rules, which never allow anything: {', '.join(sorted(policies)[:NAMES_MAX])}": bool(policies),
    }
    return frozenset(text for text, is_there in found.items() if is_there)


def _has_unsupported(policy: desired.Policy) -> bool:
    return any(rule.unsupported for rule in (*policy.ingress, *policy.egress))


class Metrics(Collector):
    """The metrics of the agent, read from its counters when they are asked for."""

    def __init__(self, facts: Facts, programmer: Programmer) -> None:
        self._facts = facts
        self._programmer = programmer

    def collect(self) -> Iterator[Metric]:
        """Yields all families."""
        facts, counters = self._facts, self._programmer.counters
        for name, text, number in (
            ("updates", "Changes received from the feed.", facts.updates),
            ("values_refused", "Values of the feed that did not decode.", facts.refused),
            ("disconnects", "Connections to a server that ended or failed.", facts.disconnects),
            ("transactions", "Transactions of nftables that the kernel took.", counters.transactions),
            ("transactions_failed", "Transactions that the kernel refused.", counters.failed_transactions),
            ("repairs", "Transactions because the table was not as the agent left it.", counters.repairs),
            ("listings", "How often the whole table was read.", counters.listings),
            ("route_changes", "Routes, neighbours and devices set or removed.", counters.route_changes),
            ("addresses_forgotten", "Addresses whose connections were ended.", counters.forgotten_addresses),
        ):
            yield CounterMetricFamily(f"typha_node_{name}", text, number)
        failures = CounterMetricFamily("typha_node_failures", "What failed, by part.", labels=["part"])
        for part, number in counters.failures.copy().items():
            failures.add_metric([part], number)
        yield failures
        programmed = GaugeMetricFamily("typha_node_programmed", "What is programmed, by kind.", labels=["kind"])
        for kind, number in self._programmer.numbers().items():
            programmed.add_metric([kind], number)
        yield programmed
        for name, text, value in (
            ("in_sync", "1 while the feed is complete and current.", facts.in_sync),
            ("stale", "1 while the map is that of the state file, and no server has confirmed it.", facts.stale),
            ("connected", "1 while a server is connected.", bool(facts.server)),
            ("pending", "Routes and settings of interfaces that could not be set.", len(self._programmer.pending)),
            ("endpoints_cut_off", "Workloads without a program.", len(self._programmer.refused_endpoints)),
            ("not_supported", "Features that are asked for and that the agent lacks.", len(facts.unsupported)),
            ("programmed_timestamp_seconds", "When changes were last in the kernel.", facts.programmed_at or 0.0),
        ):
            yield GaugeMetricFamily(f"typha_node_{name}", text, float(value))
