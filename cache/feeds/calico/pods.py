"""Pods to workload endpoints (docs/data-model.md, section 5.1). Pure, and the hottest of the converters."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cache import objects
from cache.feeds.calico import model, qos
from cache.feeds.calico.codecs import addresses, gojson

_ANNOTATION = "cni.projectcalico.org/"
_POD_IP = _ANNOTATION + "podIP"
_POD_IPS = _ANNOTATION + "podIPs"
_AWS_POD_IPS = "vpc.amazonaws.com/pod-ips"
_FLOATING_IPS = _ANNOTATION + "floatingIPs"
_SOURCE_PREFIXES = _ANNOTATION + "allowedSourcePrefixes"
_NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
_FINISHED_PHASES = frozenset({"Succeeded", "Failed", "Completed"})
_PROTOCOLS = {"": "tcp", "TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_LABEL_NAMESPACE = "projectcalico.org/namespace"
_LABEL_ORCHESTRATOR = "projectcalico.org/orchestrator"
_LABEL_SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"
_HIDDEN_LABELS = ("pcns.", "pcsa.")
_HASH_DIGITS = 11

_INTERFACE_PREFIX = (os.environ.get("FELIX_INTERFACEPREFIX") or "cali").split(",")[0]


class _Port(msgspec.Struct, gc=False):
    name: str = ""
    protocol: str = ""
    containerPort: int = 0  # noqa: N815


class _Container(msgspec.Struct, gc=False):
    ports: list[_Port] | None = None


class _Spec(msgspec.Struct, gc=False):
    nodeName: str = ""  # noqa: N815
    hostNetwork: bool = False  # noqa: N815
    serviceAccountName: str = ""  # noqa: N815
    containers: list[_Container] | None = None
    initContainers: list[_Container] | None = None  # noqa: N815


class _PodIP(msgspec.Struct, gc=False):
    ip: str = ""


class _Status(msgspec.Struct, gc=False):
    phase: str = ""
    podIP: str = ""  # noqa: N815
    podIPs: list[_PodIP] | None = None  # noqa: N815


class _Metadata(msgspec.Struct, gc=False):
    generateName: str = ""  # noqa: N815
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletionTimestamp: str | None = None  # noqa: N815


class _Pod(msgspec.Struct, gc=False):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class _EndpointPort(msgspec.Struct, gc=False):
    name: str
    protocol: str
    port: int


class _Endpoint(msgspec.Struct, gc=False, omit_defaults=True):
    """The value. Its members are written in this order."""

    state: str
    name: str
    active_instance_id: str
    mac: None
    profile_ids: list[str]
    ipv4_nets: list[str] | None
    ipv6_nets: list[str] | None
    ipv4_nat: list[dict[str, str]] | None = None
    ipv6_nat: list[dict[str, str]] | None = None
    labels: dict[str, str] | None = msgspec.field(default_factory=dict)
    ports: list[_EndpointPort] | None = None
    generate_name: str = ""
    allow_spoofed_source_ips: list[str] | None = None
    annotations: dict[str, str] | None = None
    qosControls: dict[str, int | str] | None = None  # noqa: N815


_decoder = msgspec.json.Decoder(_Pod)
_encode = msgspec.json.Encoder().encode
_decode_texts = msgspec.json.Decoder(list[str | None] | None).decode
_NO_ANNOTATIONS: Mapping[str, str] = {}


def convert(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a pod to a workload endpoint. No items for a pod without a node or in the host's network.

    If an init container has named ports, an older item follows: the endpoint without them, as 3.29 knows it.

    Raises:
        ConversionError: bad-ip, bad-annotation, invalid-object.
    """
    pod = model.typed(_decoder, event)
    spec = pod.spec
    if spec.hostNetwork or not spec.nodeName:
        return ()
    annotations = pod.metadata.annotations or _NO_ANNOTATIONS
    nets = _ip_networks(pod.status, annotations)
    if nets and _is_finished(pod, annotations):
        nets = []
    source_prefixes = _source_prefixes(annotations) if _SOURCE_PREFIXES in annotations else None
    namespace = event.namespace
    workload = f"{namespace}/{event.name}"
    key = f"/calico/v1/host/{spec.nodeName}/workload/k8s/{model.escaped(workload)}/endpoint/eth0"
    nats = _nats(annotations[_FLOATING_IPS], nets) if nets and _FLOATING_IPS in annotations else (None, None)
    if not nets:
        return (model.Item(key, None, ""),)
    profiles = [f"kns.{namespace}"]
    if spec.serviceAccountName:
        profiles.append(f"ksa.{namespace}.{spec.serviceAccountName}")
    network_status = annotations.get(_NETWORK_STATUS)
    endpoint = _Endpoint(
        "active",
        interface_name(namespace, event.name),
        "",
        None,
        profiles,
        [net for net in nets if ":" not in net] or None,
        [net for net in nets if ":" in net] or None,
        nats[0],
        nats[1],
        _labels(pod.metadata.labels, namespace, spec.serviceAccountName),
        _ports(spec.containers, spec.initContainers),
        pod.metadata.generateName,
        source_prefixes or None,
        None if network_status is None else {_NETWORK_STATUS: network_status},
        qos.controls(annotations) if annotations else None,
    )
    item = model.Item(key, gojson.escape_html(_encode(endpoint)), event.resource_version)
    if spec.initContainers and _ports(spec.initContainers):
        endpoint.ports = _ports(spec.containers)
        value = gojson.escape_html(_encode(endpoint))
        return (item, model.Item(key, value, event.resource_version, is_older=True))
    return (item,)


def interface_name(namespace: str, name: str) -> str:
    """Return the name of the pod's interface on its node."""
    digest = hashlib.sha1(f"{namespace}.{name}".encode(), usedforsecurity=False)
    return _INTERFACE_PREFIX + digest.hexdigest()[:_HASH_DIGITS]


def _ip_networks(status: _Status, annotations: Mapping[str, str]) -> list[str]:
    if status.podIPs:
        texts = [address.ip for address in status.podIPs]
    elif status.podIP:
        texts = [status.podIP]
    elif several := annotations.get(_POD_IPS):
        texts = several.split(",")
    elif one := annotations.get(_POD_IP):
        texts = [one]
    elif amazons := annotations.get(_AWS_POD_IPS):
        texts = amazons.split(",")
    else:
        return []
    return [_ip_network(text) for text in texts]


def _ip_network(text: str) -> str:
    net = addresses.network_text(text) if text else None
    if net is None:
        raise model.ConversionError("bad-ip", f"not an IP address: {text!r}")
    return net


def _is_finished(pod: _Pod, annotations: Mapping[str, str]) -> bool:
    if pod.status.phase in _FINISHED_PHASES:
        return True
    # The network plugin empties the annotation when it frees the IP, before the pod is deleted.
    return pod.metadata.deletionTimestamp is not None and (
        annotations.get(_POD_IP) == "" or annotations.get(_AWS_POD_IPS) == ""
    )


def _labels(pod_labels: dict[str, str] | None, namespace: str, service_account: str) -> dict[str, str]:
    labels = {key: value for key, value in (pod_labels or {}).items() if not key.startswith(_HIDDEN_LABELS)}
    labels[_LABEL_NAMESPACE] = namespace
    labels[_LABEL_ORCHESTRATOR] = "k8s"
    if service_account:
        labels[_LABEL_SERVICE_ACCOUNT] = service_account
    return gojson.sorted_map(labels)


def _ports(*groups: Sequence[_Container] | None) -> list[_EndpointPort] | None:
    ports = None
    for containers in groups:
        for container in containers or ():
            for port in container.ports or ():
                if port.name and port.containerPort and port.protocol in _PROTOCOLS:
                    ports = ports or []
                    ports.append(_EndpointPort(port.name, _PROTOCOLS[port.protocol], port.containerPort))
    return ports


def _texts(annotation: str, text: str) -> list[str]:
    try:
        return [entry or "" for entry in _decode_texts(gojson.without_lone_surrogates(text)) or ()]
    except (msgspec.DecodeError, RecursionError) as error:
        raise model.ConversionError("bad-annotation", f"{annotation} is not a JSON list of strings: {error}") from error


def _source_prefixes(annotations: Mapping[str, str]) -> list[str]:
    text = annotations[_SOURCE_PREFIXES]
    prefixes = []
    for prefix in _texts(_SOURCE_PREFIXES, text) if text else ():
        network = addresses.parse_cidr(prefix)
        if network is None:
            raise model.ConversionError("bad-annotation", f"{_SOURCE_PREFIXES}: not a CIDR: {prefix!r}")
        prefixes.append(str(network))
    return prefixes


def _nats(text: str, nets: list[str]) -> tuple[Any, Any]:
    """Return the floating IPs (IPv4, IPv6), each with the pod's last IP of its version."""
    inner: dict[bool, str] = {}
    floating = _texts(_FLOATING_IPS, text)
    for net in nets:
        address, _, prefix_length = net.partition("/")
        is_ipv6 = ":" in address
        if prefix_length != ("128" if is_ipv6 else "32"):
            raise model.ConversionError("bad-ip", f"a pod with floating IPs has the network {net}")
        inner[is_ipv6] = address
    by_family: dict[bool, list[dict[str, str]]] = {False: [], True: []}
    for outer_text in floating:
        own = inner.get(":" in outer_text)
        outer = addresses.parse_ip(outer_text)
        if own is not None and outer is not None:
            by_family[":" in own].append({"int_ip": own, "ext_ip": str(outer)})
    return by_family[False] or None, by_family[True] or None
