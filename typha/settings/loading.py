"""Settings of the service: from flags, environment, file and defaults to one checked object.

Sources, high to low: flags, environment, file, default. An invalid value of one of the original's settings is a warning
and its default; of a setting of ours it ends the start (`ConfigurationError`, exit code 2). `python -m typha.settings`
prints the tables of docs/configuration.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from typha.settings.sources import ConfigurationError, Source, from_environment, from_file, from_flags
from typha.settings.table import BY_LOWER_NAME, SETTINGS, Row, Scope, Settings

DEFAULT_CONFIG_FILE = "/etc/calico/typha.cfg"

_SHOWN_NAMES_LIMIT = 50
_SHOWN_VALUE_LIMIT = 100
_CLIENT_TLS_FILES = ("ServerKeyFile", "ServerCertFile", "CAFile")
_CLIENT_TLS_NAMES = ("ClientCN", "ClientURISAN")
_METRICS_TLS_FILES = ("PrometheusMetricsCertFile", "PrometheusMetricsKeyFile", "PrometheusMetricsCAFile")


class Notice(NamedTuple):
    """Something to log once logging works: `level` is a method name of the logger."""

    level: str
    event: str
    fields: dict[str, Any]


class Loaded(NamedTuple):
    """Settings, what is to be said about them, and the names of those that some source gave a usable value for."""

    settings: Settings
    notices: tuple[Notice, ...]
    given: frozenset[str]


def load(
    *,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    config_file: str | None = None,
    default_config_file: str = DEFAULT_CONFIG_FILE,
    strict: bool = False,
) -> Loaded:
    """Read and check the settings.

    Args:
        flags: raw values by setting name.
        environment: all of it; only TYPHA_ variables are looked at.
        config_file: an INI file that must be readable; None = the default path, if it is there.
        strict: unknown names and invalid values of any setting end the start.

    Raises:
        ConfigurationError: with one line that names the culprit.
    """
    file = from_file(config_file or default_config_file, must_exist=config_file is not None)
    loader = _Loader(strict=strict)
    for source in (file, from_environment(environment), from_flags(flags)):
        loader.take(source)
    _check_client_tls(loader)
    settings = Settings(**loader.values, config_invalid_values=loader.invalid_values)
    _check(settings)
    return Loaded(_with_fallbacks(settings, loader.notices), tuple(loader.notices), frozenset(loader.given))


class _Loader:
    """Takes sources from low to high precedence; a later value replaces an earlier one."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self.values: dict[str, Any] = {}  # by attribute
        self.given: set[str] = set()
        self.unusable: set[str] = set()
        self.invalid_values = 0
        self.notices: list[Notice] = []

    def take(self, source: Source) -> None:
        for name in source.repeated[:_SHOWN_NAMES_LIMIT]:
            self._say("warning", "Setting is given twice, the later counts", name=_shown(name), source=source.label)
        unknown = []
        for lower_name, (written_name, text) in source.values.items():
            row = BY_LOWER_NAME.get(lower_name)
            if row is None:
                unknown.append(_shown(written_name))
            elif text == "":
                self._say("info", "Ignoring empty value of setting", setting=row.name, source=source.label)
            else:
                self._take_value(row, text, source)
        if not unknown:
            return
        if self._strict:
            raise ConfigurationError(", ".join(unknown[:_SHOWN_NAMES_LIMIT]), f"unknown setting ({source.label})")
        names = ", ".join(sorted(unknown)[:_SHOWN_NAMES_LIMIT])
        self._say("info", "Ignoring unknown settings", names=names, count=len(unknown), source=source.label)

    def _take_value(self, row: Row, text: str, source: Source) -> None:
        try:
            self.values[row.attribute] = row.parse(text)
            self.given.add(row.name)
            self.unusable.discard(row.name)
        except ValueError as error:
            problem = f"{error}, not {_shown(text)!r} ({source.label})"
            if self._strict or row.fatal:
                raise ConfigurationError(row.name, problem) from error
            self.values[row.attribute] = row.default
            self.given.discard(row.name)
            self.unusable.add(row.name)
            self.invalid_values += 1
            self._say("warning", "Invalid value of setting, using its default", setting=row.name, error=problem)

    def _say(self, level: str, event: str, **fields: Any) -> None:
        self.notices.append(Notice(level, event, fields))


def _check_client_tls(loader: _Loader) -> None:
    """TLS for clients is all or nothing, and what cannot be used counts as given: it must not end in plain text.

    A value that `none` or a default left empty is not set.
    """
    names = (*_CLIENT_TLS_FILES, *_CLIENT_TLS_NAMES)
    usable = {name for name in names if loader.values.get(BY_LOWER_NAME[name.lower()].attribute)}
    unusable = loader.unusable.intersection(names)
    if not usable and not unusable:
        return
    lacking = [name for name in _CLIENT_TLS_FILES if name not in usable]
    if not usable.intersection(_CLIENT_TLS_NAMES):
        lacking.append(" or ".join(_CLIENT_TLS_NAMES))
    if lacking:
        asked = ", ".join(name for name in names if name in usable or name in unusable)
        raise ConfigurationError(asked, f"contradictory TLS settings: TLS needs {', '.join(lacking)} as well")


def _check(settings: Settings) -> None:
    if settings.datastore_type != "kubernetes":
        raise ConfigurationError("DatastoreType", "etcdv3 is not supported: kubernetes is the only datastore")
    if settings.prometheus_metrics_cert_file or settings.prometheus_metrics_key_file:
        rows = [BY_LOWER_NAME[name.lower()] for name in _METRICS_TLS_FILES]
        lacking = [row.name for row in rows if not getattr(settings, row.attribute)]
        if lacking and settings.prometheus_metrics_enabled:
            problem = "contradictory TLS settings: HTTPS needs the certificate, key and CA files"
            raise ConfigurationError(", ".join(lacking), problem)
    if settings.segment_bytes * 2 > settings.log_budget_bytes:
        raise ConfigurationError("SegmentBytes", f"more than half of LogBudgetBytes ({settings.log_budget_bytes})")


def _with_fallbacks(settings: Settings, notices: list[Notice]) -> Settings:
    """Zero or less in a timing, and zero in a count, means the built-in default, as in the original's server."""
    changes: dict[str, Any] = {}
    for row in SETTINGS:
        value = getattr(settings, row.attribute)
        if row.scope is Scope.ORIGINAL and row.unit and value <= 0:
            changes[row.attribute] = row.default
    if settings.server_port == 0:
        changes["server_port"] = BY_LOWER_NAME["serverport"].default
    if settings.server_min_batching_age_threshold_seconds <= 0:
        changes["server_min_batching_age_threshold_seconds"] = 0.1
    settings = dataclasses.replace(settings, **changes)
    if settings.server_pong_timeout_seconds <= 2 * settings.server_ping_interval_seconds:
        timeout_seconds = 6 * settings.server_ping_interval_seconds
        fields = {"setting": "ServerPongTimeoutSecs", "used_seconds": timeout_seconds}
        notices.append(Notice("info", "Pong timeout is too close to the ping interval, using six intervals", fields))
        settings = dataclasses.replace(settings, server_pong_timeout_seconds=timeout_seconds)
    return settings


def _shown(text: str) -> str:
    shown = text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= _SHOWN_VALUE_LIMIT else shown[:_SHOWN_VALUE_LIMIT] + "..."
