"""Namespaces and service accounts to profiles (docs/data-model.md, section 5.2), and the built-in profile. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cache import objects
from cache.feeds.calico import model
from cache.feeds.calico.codecs import gojson, kubenames, uids

_ALLOW_V1 = {"action": "allow"}
_ALLOW_V3 = [{"action": "Allow"}]
_NAMESPACE_RULES = gojson.encode({"inbound_rules": [_ALLOW_V1], "outbound_rules": [_ALLOW_V1]})
_SERVICE_ACCOUNT_RULES = b"{}"
_NAME_LABEL = "projectcalico.org/name"
_DEFAULT_ALLOW = "projectcalico-default-allow"
_DEFAULT_ALLOW_REVISION = "1"


class _Metadata(msgspec.Struct, gc=False):
    name: str = ""
    uid: str = ""
    creationTimestamp: str | None = None  # noqa: N815
    labels: dict[str, str] | None = None


class _Object(msgspec.Struct, gc=False):
    metadata: _Metadata


_decoder = msgspec.json.Decoder(_Object)


def convert_namespace(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a namespace to labels, rules and the whole resource of the profile `kns.NAMESPACE`.

    Raises:
        ConversionError: bad-uid, invalid-object.
    """
    metadata = model.typed(_decoder, event).metadata
    labels = _prefixed(metadata.labels, "pcns.", event.name)
    spec = {"ingress": _ALLOW_V3, "egress": _ALLOW_V3, "labelsToApply": labels}
    return _items(
        event,
        f"kns.{event.name}",
        revision=f"{event.resource_version}/",
        rules=_NAMESPACE_RULES,
        **_whole(metadata, spec),
    )


def convert_service_account(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a service account to labels, rules and the whole resource of the profile `ksa.NAMESPACE.NAME`.

    Raises:
        ConversionError: bad-uid, invalid-object.
    """
    metadata = model.typed(_decoder, event).metadata
    spec = {"labelsToApply": _prefixed(metadata.labels, "pcsa.", event.name)}
    name = f"ksa.{event.namespace}.{event.name}"
    revision = f"/{event.resource_version}"
    return _items(event, name, revision=revision, rules=_SERVICE_ACCOUNT_RULES, **_whole(metadata, spec))


def built_in() -> Sequence[model.Item]:
    """Return the items of the built-in profile, which exists in every cluster."""
    whole = _whole_value(_DEFAULT_ALLOW, {}, {"ingress": _ALLOW_V3, "egress": _ALLOW_V3})
    return (
        model.Item(_v1_key(_DEFAULT_ALLOW, "rules"), _NAMESPACE_RULES, _DEFAULT_ALLOW_REVISION),
        model.Item(_v3_key(_DEFAULT_ALLOW), whole, _DEFAULT_ALLOW_REVISION),
    )


def _prefixed(labels: dict[str, str] | None, prefix: str, name: str) -> dict[str, str]:
    prefixed = {prefix + key: value for key, value in (labels or {}).items()}
    prefixed[prefix + _NAME_LABEL] = name
    return gojson.sorted_map(prefixed)


def _whole(metadata: _Metadata, spec: dict[str, Any]) -> dict[str, Any]:
    derived: dict[str, Any] = {}
    if metadata.uid:
        try:
            derived["uid"] = uids.reversed_uid(metadata.uid)
        except ValueError as error:
            raise model.ConversionError("bad-uid", f"not a UUID: {metadata.uid!r}") from error
    if metadata.creationTimestamp:
        derived["creationTimestamp"] = metadata.creationTimestamp
    return {"metadata": derived, "spec": spec}


def _whole_value(name: str, metadata: dict[str, Any], spec: dict[str, Any]) -> bytes:
    return gojson.encode(
        {"kind": "Profile", "apiVersion": "projectcalico.org/v3", "metadata": {"name": name, **metadata}, "spec": spec}
    )


def _items(
    event: objects.ObjectEvent,
    name: str,
    *,
    revision: str,
    rules: bytes,
    metadata: dict[str, Any],
    spec: dict[str, Any],
) -> Sequence[model.Item]:
    labels = spec["labelsToApply"]
    problem = kubenames.metadata_problem({"name": name, "labels": labels})
    if problem:
        whole = model.Item(_v3_key(name), None, revision, invalid=f"profile {name}: {problem}")
    else:
        # Visible to agents: the version is that of a joined revision, so it is empty in a list and "/" in an event.
        version = "/" if event.origin is objects.Origin.EVENT else ""
        whole = model.Item(_v3_key(name), _whole_value(name, metadata, spec), revision, version)
    return (
        model.Item(_v1_key(name, "labels"), gojson.encode(labels), revision),
        model.Item(_v1_key(name, "rules"), rules, revision),
        whole,
    )


def _v1_key(name: str, what: str) -> str:
    return f"/calico/v1/policy/profile/{model.escaped(name)}/{what}"


def _v3_key(name: str) -> str:
    return f"/calico/resources/v3/projectcalico.org/profiles/{name}"
