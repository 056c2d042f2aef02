"""Loads the settings: merges the sources, checks every value, and checks settings that depend on each other.

Precedence, from high to low: flags, environment, file, default. An invalid value of a setting of the original is a
warning, and the default applies. An invalid value of any other setting raises `ConfigurationError` (exit code 2).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from cache.feeds.calico.codecs import scalars
from typha.settings import sources
from typha.settings.machine import Machine
from typha.settings.sources import ConfigurationError, Source
from typha.settings.table import (
    BY_LOWER_NAME,
    KUBERNETES_VARIABLES,
    NO_EFFECT,
    SETTINGS,
    Row,
    Scope,
    Settings,
    variable_value,
)

DEFAULT_CONFIG_FILE = "/etc/calico/typha.cfg"

_POD_CIDR_VARIABLES = ("CALICO_USE_POD_CIDR", "USE_POD_CIDR")
_REPORTED_NAMES_LIMIT = 50
_REPORTED_VALUE_LIMIT = 100
_CLIENT_TLS_FILES = ("ServerKeyFile", "ServerCertFile", "CAFile")
_CLIENT_TLS_NAMES = ("ClientCN", "ClientURISAN")
_METRICS_TLS_FILES = ("PrometheusMetricsCertFile", "PrometheusMetricsKeyFile", "PrometheusMetricsCAFile")


class Notice(NamedTuple):
    """A log line to write once logging is configured."""

    level: str
    """Name of the logger's method."""
    event: str
    fields: dict[str, Any]


class Loaded(NamedTuple):
    """The result of `load`."""

    settings: Settings
    notices: tuple[Notice, ...]
    given: Mapping[str, str]
    """The settings for which a source has a valid value: what messages call the source, by the setting's name."""
    derived: Mapping[str, str]
    """The settings whose value follows from the machine, and from what there."""


def load(
    *,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    config_file: str | None = None,
    default_config_file: str = DEFAULT_CONFIG_FILE,
    strict: bool = False,
    machine: Machine | None = None,
) -> Loaded:
    """Read and check the settings.

    Args:
        flags: raw values by setting name.
        environment: all variables; those without the prefix TYPHA_ are ignored.
        config_file: an INI file, which must exist. None means `default_config_file`, if it exists.
        strict: reject unknown names, and invalid values of any setting.
        machine: what automatic values follow from. None for one without limits.

    Raises:
        ConfigurationError: the settings cannot be used; one line that begins with the name of the culprit.
    """
    file = sources.from_file(config_file or default_config_file, must_exist=config_file is not None)
    loader = _Loader(strict=strict)
    for source in (file, sources.from_environment(environment), sources.from_flags(flags)):
        loader.add(source)
    _check_client_tls(loader)
    loader.notices += _without_effect(loader.given, environment)
    settings = Settings(**loader.values, config_invalid_values=loader.invalid_values)
    settings, derived = _derive(settings, loader.given, machine or Machine())
    _check(settings)
    return Loaded(_with_fallbacks(settings, loader.notices), tuple(loader.notices), loader.given, derived)


class _Loader:
    """Merges sources that are added from low to high precedence."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self.values: dict[str, Any] = {}
        """By attribute of `Settings`."""
        self.given: dict[str, str] = {}
        self.unusable: dict[str, str] = {}
        """What is wrong with the settings whose last value was invalid, by name."""
        self.invalid_values = 0
        self.notices: list[Notice] = []

    def add(self, source: Source) -> None:
        """Parse the values of a source. They replace the values of earlier sources."""
        for name in source.repeated[:_REPORTED_NAMES_LIMIT]:
            self._notify(
                "warning", "Setting occurs twice, using the last value", name=_shown(name), source=source.label
            )
        unknown = []
        for lower_name, (written_name, text) in source.values.items():
            row = BY_LOWER_NAME.get(lower_name)
            if row is None:
                unknown.append(_shown(written_name))
            elif text == "":
                self._notify("info", "Ignoring empty value of setting", setting=row.name, source=source.label)
            else:
                self._add_value(row, text, source)
        if not unknown:
            return
        if self._strict:
            raise ConfigurationError(", ".join(unknown[:_REPORTED_NAMES_LIMIT]), f"unknown setting ({source.label})")
        names = ", ".join(sorted(unknown)[:_REPORTED_NAMES_LIMIT])
        self._notify("info", "Ignoring unknown settings", names=names, count=len(unknown), source=source.label)

    def _add_value(self, row: Row, text: str, source: Source) -> None:
        try:
            self.values[row.attribute] = row.parse(text)
            self.given[row.name] = source.label
            self.unusable.pop(row.name, None)
        except ValueError as error:
            problem = f"{error}, not {_shown(text)!r} ({source.label})"
            if self._strict or row.fatal:
                raise ConfigurationError(row.name, problem) from error
            self.values[row.attribute] = row.default
            self.given.pop(row.name, None)
            self.unusable[row.name] = problem
            self.invalid_values += 1
            self._notify("warning", "Invalid value of setting, using its default", setting=row.name, error=problem)

    def _notify(self, level: str, event: str, **fields: Any) -> None:
        self.notices.append(Notice(level, event, fields))


def _without_effect(given: Mapping[str, str], environment: Mapping[str, str]) -> list[Notice]:
    """A warning for each setting that somebody has set in vain. A user of the original relies on it."""
    found = [(row.name, given[row.name], row.help) for row in SETTINGS if row.name in given and not row.has_effect]
    for variable in KUBERNETES_VARIABLES:
        name, value = variable_value(variable, environment)
        if value and variable.help.startswith(NO_EFFECT):
            found.append((name, "environment", variable.help))
    return [
        Notice(
            "warning",
            "Setting has no effect here",
            {"setting": name, "source": source, "instead": explanation.removeprefix(NO_EFFECT)},
        )
        for name, source, explanation in found
    ]


def _derive(settings: Settings, given: Mapping[str, str], machine: Machine) -> tuple[Settings, dict[str, str]]:
    """Fill in the values that follow from the machine. Those that are set stay."""
    derived: dict[str, str] = {}
    if settings.workers < 0:
        settings = dataclasses.replace(settings, workers=machine.workers)
        derived["Workers"] = "CPUs"
    budget_bytes = machine.log_budget_bytes(settings.log_budget_bytes, segment_bytes=settings.segment_bytes)
    if "LogBudgetBytes" not in given and budget_bytes != settings.log_budget_bytes:
        settings = dataclasses.replace(settings, log_budget_bytes=budget_bytes)
        derived["LogBudgetBytes"] = "memory limit"
    return settings, derived


def _check_client_tls(loader: _Loader) -> None:
    """Reject TLS settings that are set only in part.

    An unusable value counts as set: a mistake must not turn TLS off. A value that is empty, by `none` or by default,
    counts as not set.
    """
    names = (*_CLIENT_TLS_FILES, *_CLIENT_TLS_NAMES)
    usable = {name for name in names if loader.values.get(BY_LOWER_NAME[name.lower()].attribute)}
    unusable = [name for name in names if name in loader.unusable]
    if not usable and not unusable:
        return
    if unusable:
        name, *others = unusable
        more = f" (and {', '.join(others)})" if others else ""
        raise ConfigurationError(name, f"{loader.unusable[name]}{more}: TLS cannot be used without it")
    missing = [name for name in _CLIENT_TLS_FILES if name not in usable]
    if not usable.intersection(_CLIENT_TLS_NAMES):
        missing.append(" or ".join(_CLIENT_TLS_NAMES))
    if missing:
        given = ", ".join(name for name in names if name in usable)
        raise ConfigurationError(given, f"incomplete TLS settings: TLS also needs {', '.join(missing)}")


def _check(settings: Settings) -> None:
    if settings.datastore_type != "kubernetes":
        raise ConfigurationError("DatastoreType", "etcdv3 is not supported: kubernetes is the only datastore")
    if settings.prometheus_metrics_cert_file or settings.prometheus_metrics_key_file:
        rows = [BY_LOWER_NAME[name.lower()] for name in _METRICS_TLS_FILES]
        missing = [row.name for row in rows if not getattr(settings, row.attribute)]
        if missing and settings.prometheus_metrics_enabled:
            problem = "incomplete TLS settings: HTTPS needs the certificate, key and CA files"
            raise ConfigurationError(", ".join(missing), problem)
    if settings.segment_bytes * 2 > settings.log_budget_bytes:
        raise ConfigurationError("SegmentBytes", f"more than half of LogBudgetBytes ({settings.log_budget_bytes})")


def _with_fallbacks(settings: Settings, notices: list[Notice]) -> Settings:
    """Replace timings of zero or less, and counts of zero, by their defaults, as the original's server does."""
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


def uses_pod_cidrs(environment: Mapping[str, str]) -> bool:
    """Return whether pods get their addresses from their node's pod CIDRs, and not from Calico's IPAM.

    Raises:
        ConfigurationError: USE_POD_CIDR is not a boolean. Agents would get the wrong networks.
    """
    name = next((name for name in _POD_CIDR_VARIABLES if environment.get(name)), _POD_CIDR_VARIABLES[-1])
    text = environment.get(name, "")
    try:
        return scalars.parse_boolean(text)
    except ValueError:
        raise ConfigurationError(name, f"not true or false: {_shown(text)!r}") from None


def _shown(text: str) -> str:
    return sources.printable(sources.redacted("", text), _REPORTED_VALUE_LIMIT)
