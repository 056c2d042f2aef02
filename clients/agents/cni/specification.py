"""CNI 1.1 as this plugin speaks it: errors, the runtime's arguments, the network's configuration. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from clients.agents.cni.records import JsonObject, is_name

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
DEFAULT_MTU: Final = 1450
"""Leaves room for VXLAN's 50 bytes below an underlay of 1,500."""
DEFAULT_LOCK_FILE: Final = "/var/run/calico/ipam.lock"
MAX_CONFIGURATION_BYTES: Final = 1 << 20
MAX_INTERFACE_NAME_LENGTH: Final = 15

INCOMPATIBLE_VERSION: Final = 1
UNSUPPORTED_FIELD: Final = 2
UNKNOWN_CONTAINER: Final = 3
INVALID_ENVIRONMENT: Final = 4
IO_FAILURE: Final = 5
UNDECODABLE: Final = 6
INVALID_CONFIGURATION: Final = 7
TRY_AGAIN_LATER: Final = 11
NOT_AVAILABLE: Final = 50
ALREADY_ATTACHED: Final = 100
EXHAUSTED: Final = 101
WRONG_STATE: Final = 102
INTERNAL: Final = 999

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_INTERFACE = re.compile(r"[^\s/:]+")


class CniError(Exception):
    """An error with its code, for the runtime."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class Network(NamedTuple):
    """The network's configuration."""

    cni_version: str
    name: str
    node: str
    kubeconfig: str
    pools: tuple[str, ...]
    mtu: int
    lock_file: str
    """Only one call of a node at a time is in IPAM, which spares conflicts. Calico's plugin uses the same file."""
    previous: JsonObject | None
    valid: tuple[tuple[str, str], ...] | None
    """GC only: container and interface of each attachment that exists."""


class Attachment(NamedTuple):
    """What the runtime says of the container."""

    container: str
    namespace_path: str
    """Path of the container's network namespace; DEL may come without."""
    interface: str
    kubernetes_namespace: str
    pod: str

    def handle(self, network: str) -> str:
        """The name of the attachment in IPAM, as Calico forms it."""
        return f"{network}.{self.container}"


def parse_network(text: bytes, *, node: str) -> Network:
    """The configuration on standard input; `node` is the default of its nodename. Raises CniError."""
    if len(text) > MAX_CONFIGURATION_BYTES:
        raise CniError(UNDECODABLE, f"the configuration has more than {MAX_CONFIGURATION_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CniError(UNDECODABLE, "the configuration is no JSON", str(error)[:200]) from error
    if not isinstance(found, dict):
        raise CniError(UNDECODABLE, "the configuration is no JSON object")
    version = _text(found, "cniVersion", "0.1.0")
    if version not in VERSIONS:
        raise CniError(
            INCOMPATIBLE_VERSION, f"CNI {version[:20]} is not supported", f"supported: {', '.join(VERSIONS)}"
        )
    name = _text(found, "name", "")
    if not _CONTAINER_ID.fullmatch(name) or not is_name(f"{name.lower()}.x"):
        raise CniError(INVALID_CONFIGURATION, f"name: {name[:60]!r} is no name of a network")
    kubeconfig = _text(_member(found, "kubernetes"), "kubeconfig", "")
    if not kubeconfig:
        raise CniError(INVALID_CONFIGURATION, "kubernetes.kubeconfig is missing")
    ipam = _member(found, "ipam")
    if ipam.get("type", "calico-ipam") != "calico-ipam":
        raise CniError(UNSUPPORTED_FIELD, f"ipam.type: only calico-ipam is supported, not {str(ipam['type'])[:60]!r}")
    if ipam.get("assign_ipv6") in (True, "true"):
        raise CniError(UNSUPPORTED_FIELD, "ipam.assign_ipv6: IPv6 is not supported")
    mtu = found.get("mtu", DEFAULT_MTU)
    if not isinstance(mtu, int) or isinstance(mtu, bool) or not 576 <= mtu <= 65_521:
        raise CniError(INVALID_CONFIGURATION, f"mtu: {str(mtu)[:20]} is not between 576 and 65521")
    return Network(
        cni_version=version,
        name=name,
        node=_text(found, "nodename", node),
        kubeconfig=kubeconfig,
        pools=_texts(ipam, "ipv4_pools"),
        mtu=mtu,
        lock_file=_text(ipam, "ipam_lock_file", DEFAULT_LOCK_FILE),
        previous=_member(found, "prevResult") if "prevResult" in found else None,
        valid=_valid(found),
    )


def parse_attachment(environment: Mapping[str, str], *, needs_namespace: bool) -> Attachment:
    """The container that the runtime's variables name. Raises CniError."""
    container = environment.get("CNI_CONTAINERID", "")
    if not _CONTAINER_ID.fullmatch(container) or not is_name(f"{container.lower()}"):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID: {container[:60]!r} is not the identifier of a container")
    interface = environment.get("CNI_IFNAME", "")
    is_allowed = _INTERFACE.fullmatch(interface) and interface not in (".", "..")
    if not is_allowed or len(interface) > MAX_INTERFACE_NAME_LENGTH:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_IFNAME: {interface[:60]!r} is not the name of an interface")
    path = environment.get("CNI_NETNS", "")
    if needs_namespace and not path.startswith("/"):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS: {path[:60]!r} is not the path of a network namespace")
    arguments = dict(part.partition("=")[::2] for part in environment.get("CNI_ARGS", "").split(";") if part)
    names = []
    for variable in ("K8S_POD_NAMESPACE", "K8S_POD_NAME"):
        name = arguments.get(variable, "")
        if not is_name(name):
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {variable} is missing, or {name[:60]!r} is no name")
        names.append(name)
    return Attachment(container, path, interface, names[0], names[1])


def result(
    version: str, *, address: str, host_interface: str, attachment: Attachment, mac: str, host_mac: str, mtu: int
) -> JsonObject:
    """The result of ADD."""
    sizes = {"mtu": mtu} if version == "1.1.0" else {}
    ip: JsonObject = {"address": f"{address}/32", "interface": 1}
    if version < "1.0.0":
        ip["version"] = "4"
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": host_interface, "mac": host_mac, **sizes},
            {"name": attachment.interface, "mac": mac, "sandbox": attachment.namespace_path, **sizes},
        ],
        "ips": [ip],
        "dns": {},
    }


def error_document(version: str, error: CniError) -> JsonObject:
    """The error as the runtime reads it."""
    details = {"details": error.details} if error.details else {}
    return {"cniVersion": version, "code": error.code, "msg": str(error), **details}


def _valid(found: JsonObject) -> tuple[tuple[str, str], ...] | None:
    attachments = found.get("cni.dev/valid-attachments", found.get("cni.dev/attachments"))
    if attachments is None:
        return None
    if not isinstance(attachments, list) or not all(isinstance(one, dict) for one in attachments):
        raise CniError(INVALID_CONFIGURATION, "cni.dev/valid-attachments is no list of objects")
    return tuple((_text(one, "containerID", ""), _text(one, "ifname", "")) for one in attachments)


def _text(found: JsonObject, name: str, default: str) -> str:
    value = found.get(name, default)
    if not isinstance(value, str):
        raise CniError(INVALID_CONFIGURATION, f"{name} is no text")
    return value or default


def _texts(found: JsonObject, name: str) -> tuple[str, ...]:
    values: Any = found.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CniError(INVALID_CONFIGURATION, f"{name} is no list of texts")
    return tuple(values)


def _member(found: JsonObject, name: str) -> JsonObject:
    value = found.get(name, {})
    if not isinstance(value, dict):
        raise CniError(INVALID_CONFIGURATION, f"{name} is no object")
    return value
