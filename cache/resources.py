"""Resource types: group, version and resource, as in the API server's paths. Pure."""

import re
from dataclasses import dataclass

_CORE = "core"
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_GROUP = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAME = re.compile(_LABEL)
_VERSION_LIKE = re.compile(r"v[0-9]+(?:(?:alpha|beta)[0-9]+)?")
_MAX_GROUP_LENGTH = 253


@dataclass(frozen=True, slots=True, order=True)
class ResourceType:
    """A resource type. `group` is empty for the core group. `resource` is the plural, lower-case name."""

    group: str
    version: str
    resource: str

    def __post_init__(self) -> None:
        """Raise ValueError that names the invalid part. The parts become part of a request path, so check them."""
        if self.group and (len(self.group) > _MAX_GROUP_LENGTH or not _GROUP.fullmatch(self.group)):
            raise ValueError(f"not an API group: {self.group!r}")
        if not _NAME.fullmatch(self.version):
            raise ValueError(f"not an API version: {self.version!r}")
        if not _NAME.fullmatch(self.resource):
            raise ValueError(f"not a resource name (plural, lower case): {self.resource!r}")

    @classmethod
    def parse(cls, text: str) -> "ResourceType":
        """Parse `v1/pods`, `core/v1/pods` or `discovery.k8s.io/v1/endpointslices`. Raises ValueError."""
        parts = text.split("/")
        if len(parts) == 2:
            parts.insert(0, _CORE)
        if len(parts) != 3:
            raise ValueError(f"not a resource type: {text!r} (expected version/resource or group/version/resource)")
        group, version, resource = parts
        if _VERSION_LIKE.fullmatch(group):
            raise ValueError(f"not a resource type: {text!r} (subresources cannot be watched)")
        if not group:
            raise ValueError(f"not a resource type: {text!r} (the group is empty; the core group is written core)")
        try:
            return cls("" if group == _CORE else group, version, resource)
        except ValueError as error:
            raise ValueError(f"not a resource type: {text!r} ({error})") from error

    @property
    def list_path(self) -> str:
        """The path to list and watch all objects of the type: `/api/v1/pods`, `/apis/GROUP/VERSION/RESOURCE`."""
        prefix = f"/apis/{self.group}" if self.group else "/api"
        return f"{prefix}/{self.version}/{self.resource}"

    def __str__(self) -> str:
        return f"{self.group or _CORE}/{self.version}/{self.resource}"
