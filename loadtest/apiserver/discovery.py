"""Discovery documents: /api, /apis and below, /version. Pure."""

from typing import Any

import msgspec

from loadtest.apiserver.errors import PageNotFound, TypeUnknown
from loadtest.apiserver.resources import Resource

_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
_VERSION = {
    "major": "1",
    "minor": "37",
    "gitVersion": "v1.37.0+simulated",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2025-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}


def document(path: str, resources: list[Resource]) -> bytes | None:
    """The document at a path, or None.

    Raises PageNotFound for an unknown group or version below /apis, TypeUnknown for an unknown version of the core.
    """
    parts = path.strip("/").split("/")
    found: dict[str, Any]
    if path == "/version":
        found = _VERSION
    elif parts == ["api"]:
        found = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    elif parts == ["apis"]:
        groups = sorted({resource.group for resource in resources if resource.group})
        found = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group, resources) for group in groups]}
    elif parts[0] == "api" and len(parts) == 2:
        found = _resource_list("", parts[1], resources)
    elif parts[0] == "apis" and len(parts) == 2:
        found = {"kind": "APIGroup", "apiVersion": "v1", **_group(parts[1], resources)}
    elif parts[0] == "apis" and len(parts) == 3:
        found = _resource_list(parts[1], parts[2], resources)
    else:
        return None
    return msgspec.json.encode(found) + b"\n"


def _group(group: str, resources: list[Resource]) -> dict[str, Any]:
    versions = sorted({resource.version for resource in resources if resource.group == group})
    if not versions:
        raise PageNotFound(group)
    shown = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": shown, "preferredVersion": shown[0]}


def _resource_list(group: str, version: str, resources: list[Resource]) -> dict[str, Any]:
    found = [resource for resource in resources if (resource.group, resource.version) == (group, version)]
    if not found:
        raise PageNotFound(f"{group}/{version}") if group else TypeUnknown
    shown = [
        {
            "name": resource.name,
            "singularName": resource.kind.lower(),
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": _VERBS,
        }
        for resource in found
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": found[0].api_version, "resources": shown}
