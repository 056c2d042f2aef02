"""Builds objects as a watcher passes them, and reads the items of converters, for tests of single rules."""

import json
from collections.abc import Sequence
from typing import Any

from cache import objects, resources
from cache.feeds.calico import model, syncers

V1, V3 = syncers.Group.V1, syncers.Group.V3
UID = "f7fdbc60-8a58-4c60-9818-9ff50d0c9919"
DERIVED_UID = "efbf3d06-511a-4c06-9818-f9afb0309998"
_ANY = resources.ResourceType("", "v1", "things")


def event(
    name: str = "o",
    namespace: str = "",
    *,
    metadata: dict[str, Any] | None = None,
    origin: objects.Origin = objects.Origin.LIST,
    **members: Any,
) -> objects.ObjectEvent:
    """Return an object with these members, at revision 7."""
    place = {"namespace": namespace} if namespace else {}
    whole = {"metadata": {"name": name, **place, **(metadata or {})}, **members}
    return objects.ObjectEvent(_ANY, namespace, name, "7", json.dumps(whole).encode(), "v1", "Thing", origin)


def value(items: Sequence[model.Item], key_end: str = "") -> Any:
    """Return the decoded JSON value of the one item whose key has this end."""
    [item] = [item for item in items if item.key.endswith(key_end)]
    assert item.value is not None, item
    return json.loads(item.value)


def values(items: Sequence[model.Item]) -> dict[str, str | None]:
    """Return all keys and values as text."""
    return {item.key: None if item.value is None else item.value.decode() for item in items}
