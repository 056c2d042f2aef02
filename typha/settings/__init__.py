"""Settings of the service: one table, four sources (flags, environment, file, defaults), one checked object.

`python -m typha.settings` prints the tables of docs/configuration.md.
"""

from typha.settings.loading import DEFAULT_CONFIG_FILE, Loaded, Notice, load, uses_pod_cidrs
from typha.settings.sources import ConfigurationError
from typha.settings.table import KUBERNETES_VARIABLES, SETTINGS, Row, Scope, Settings, from_dict, to_dict

__all__ = [
    "DEFAULT_CONFIG_FILE",
    "KUBERNETES_VARIABLES",
    "SETTINGS",
    "ConfigurationError",
    "Loaded",
    "Notice",
    "Row",
    "Scope",
    "Settings",
    "from_dict",
    "load",
    "to_dict",
    "uses_pod_cidrs",
]
