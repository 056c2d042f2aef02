"""The verbs of CNI. `main` is what the installed program calls."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Final

from clients.agents.cni import apiserver, ipam, kubeconfig, network, records, specification
from clients.agents.cni.records import JsonObject
from clients.agents.cni.specification import Attachment, CniError, Network

POD_IP: Final = "cni.projectcalico.org/podIP"
POD_IPS: Final = "cni.projectcalico.org/podIPs"
CONTAINER_ID: Final = "cni.projectcalico.org/containerID"
POOLS: Final = "cni.projectcalico.org/ipv4pools"
MAX_POOLS: Final = 100
"""Pools that an annotation of a pod may name."""


def main() -> int:
    """Obey CNI_COMMAND; returns the exit code. Whatever goes wrong becomes an error document on standard output."""
    version = specification.VERSIONS[-1]
    try:
        command = os.environ.get("CNI_COMMAND", "")
        text = sys.stdin.buffer.read(specification.MAX_CONFIGURATION_BYTES + 1)
        if command == "VERSION":
            answer: JsonObject | None = {"cniVersion": version, "supportedVersions": list(specification.VERSIONS)}
        elif command not in _VERBS:
            raise CniError(specification.INVALID_ENVIRONMENT, f"CNI_COMMAND: {command[:20]!r} is no command of CNI 1.1")
        else:
            configuration = specification.parse_network(text, node=socket.gethostname())
            version = configuration.cni_version
            answer = _obey(command, configuration)
    except CniError as error:
        answer = specification.error_document(version, error)
    except Exception as error:  # the runtime understands nothing but an error document
        answer = specification.error_document(version, CniError(specification.INTERNAL, repr(error)[:500]))
    if answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if answer and "code" in answer else 0


def add(configuration: Network, api: apiserver.ApiServer) -> JsonObject:
    """ADD: an address, the pair, and the pod's annotations, from which everybody learns of the address."""
    attachment = specification.parse_attachment(os.environ, needs_namespace=True)
    try:
        pod = api.pod(attachment.kubernetes_namespace, attachment.pod)
    except ipam.Missing as error:
        raise CniError(specification.UNKNOWN_CONTAINER, f"the pod does not exist: {error}") from error
    handle = attachment.handle(configuration.name)
    address = _assign(configuration, api, attachment, pools=_pools(configuration, pod))
    host = network.host_interface(attachment.kubernetes_namespace, attachment.pod)
    try:
        mac = network.attach(
            attachment.namespace_path, attachment.interface, host=host, address=address, mtu=configuration.mtu
        )
        api.annotate_pod(
            attachment.kubernetes_namespace,
            attachment.pod,
            uid=str(pod["metadata"]["uid"]),
            annotations={POD_IP: f"{address}/32", POD_IPS: f"{address}/32", CONTAINER_ID: attachment.container},
        )
    except BaseException:
        with contextlib.suppress(network.NetworkError):
            network.detach(attachment.namespace_path, attachment.interface)
        with contextlib.suppress(apiserver.Unavailable, apiserver.Refused, ipam.IpamError):
            api.run(ipam.release(handle))
        raise
    return specification.result(
        configuration.cni_version,
        address=address,
        host_interface=host,
        attachment=attachment,
        mac=mac,
        host_mac=network.HOST_MAC,
        mtu=configuration.mtu,
    )


def delete(configuration: Network, api: apiserver.ApiServer) -> None:
    """DEL: the annotations first, so that nobody sends to the address any more, and the address last."""
    attachment = specification.parse_attachment(os.environ, needs_namespace=False)
    try:
        pod = api.pod(attachment.kubernetes_namespace, attachment.pod)
        annotations = pod["metadata"].get("annotations") or {}
        # Another container identifier means that a newer sandbox of the pod runs already.
        if annotations.get(CONTAINER_ID) == attachment.container and (
            annotations.get(POD_IP) or annotations.get(POD_IPS)
        ):
            api.annotate_pod(
                attachment.kubernetes_namespace,
                attachment.pod,
                uid=str(pod["metadata"]["uid"]),
                annotations={POD_IP: "", POD_IPS: ""},
            )
    except (ipam.Missing, ipam.Conflict):
        pass  # the pod is gone, or another pod has its name
    if attachment.namespace_path:
        network.detach(attachment.namespace_path, attachment.interface)
    with _lock(configuration.lock_file):
        api.run(ipam.release(attachment.handle(configuration.name)))


def check(configuration: Network, api: apiserver.ApiServer) -> None:
    """CHECK: what ADD has made is still there."""
    attachment = specification.parse_attachment(os.environ, needs_namespace=True)
    if configuration.previous is None:
        raise CniError(specification.INVALID_CONFIGURATION, "prevResult is missing")
    try:
        expected = [str(ip["address"]).partition("/")[0] for ip in configuration.previous["ips"]]
    except (LookupError, TypeError) as error:
        raise CniError(specification.INVALID_CONFIGURATION, f"prevResult has no addresses: {error!r}"[:200]) from error
    held = api.run(ipam.addresses(attachment.handle(configuration.name)))
    if sorted(held) != sorted(expected):
        raise CniError(specification.WRONG_STATE, f"IPAM has {held or 'nothing'} for the container, not {expected}")
    host = network.host_interface(attachment.kubernetes_namespace, attachment.pod)
    for address in expected:
        network.check(attachment.namespace_path, attachment.interface, host=host, address=address)


def status(configuration: Network, api: apiserver.ApiServer) -> None:
    """STATUS: ADD would work, as far as can be seen: the API server answers, and there is a pool."""
    try:
        if not api.run(ipam.read_pools(configuration.pools, left_out=_log)):
            raise CniError(specification.NOT_AVAILABLE, "there is no IPPool for pods")
    except (apiserver.Unavailable, apiserver.Refused) as error:
        raise CniError(specification.NOT_AVAILABLE, "the API server is not available", str(error)) from error


def collect(configuration: Network, api: apiserver.ApiServer) -> None:
    """GC: releases the addresses of containers of this node that the runtime does not know."""
    if configuration.valid is None:
        raise CniError(specification.INVALID_CONFIGURATION, "cni.dev/valid-attachments is missing")
    valid = frozenset(f"{configuration.name}.{container}" for container, _ in configuration.valid)
    node = ipam.Node(configuration.node, time.time())
    with _lock(configuration.lock_file):
        api.run(ipam.collect(node, configuration.name, valid))


_VERBS: Final = {"ADD": add, "DEL": delete, "CHECK": check, "STATUS": status, "GC": collect}


def _obey(command: str, configuration: Network) -> JsonObject | None:
    try:
        api = apiserver.ApiServer(kubeconfig.load(configuration.kubeconfig))
    except kubeconfig.BadKubeconfig as error:
        raise CniError(specification.INVALID_CONFIGURATION, "the kubeconfig cannot be used", str(error)) from error
    try:
        return _VERBS[command](configuration, api)
    except (apiserver.Unavailable, ipam.Busy, ipam.Conflict) as error:
        raise CniError(specification.TRY_AGAIN_LATER, "the API server is not available now", str(error)) from error
    except apiserver.Refused as error:
        raise CniError(specification.INTERNAL, "the API server refuses", str(error)) from error
    except ipam.Missing as error:
        raise CniError(specification.INTERNAL, "the API server does not serve Calico's IPAM", str(error)) from error
    except ipam.AlreadyAttached as error:
        raise CniError(specification.ALREADY_ATTACHED, str(error)) from error
    except ipam.Exhausted as error:
        raise CniError(specification.EXHAUSTED, str(error)) from error
    except network.NamespaceGone as error:
        raise CniError(specification.UNKNOWN_CONTAINER, str(error)) from error
    except network.NetworkError as error:
        code = specification.WRONG_STATE if command == "CHECK" else specification.IO_FAILURE
        raise CniError(code, str(error)) from error
    finally:
        api.close()


def _assign(configuration: Network, api: apiserver.ApiServer, attachment: Attachment, *, pools: list[str]) -> str:
    """An address for the attachment. If that fails, the attempt is undone, as far as the API server answers."""
    handle = attachment.handle(configuration.name)
    now_seconds = time.time()
    attributes = records.pod_attributes(
        handle,
        node=configuration.node,
        namespace=attachment.kubernetes_namespace,
        pod=attachment.pod,
        now_seconds=now_seconds,
    )
    with _lock(configuration.lock_file):
        limits = api.run(ipam.read_limits())
        chosen = api.run(ipam.read_pools(pools, left_out=_log))
        try:
            return api.run(ipam.assign(ipam.Node(configuration.node, now_seconds), attributes, chosen, limits))
        except ipam.AlreadyAttached:
            raise
        except BaseException:
            with contextlib.suppress(apiserver.Unavailable, apiserver.Refused, ipam.IpamError):
                api.run(ipam.release(handle))
            raise


def _pools(configuration: Network, pod: JsonObject) -> list[str]:
    """The pools that the pod's annotation names, else those of the configuration."""
    text = (pod["metadata"].get("annotations") or {}).get(POOLS)
    if not text:
        return list(configuration.pools)
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) > MAX_POOLS or not all(isinstance(name, str) for name in names):
        raise CniError(specification.INVALID_CONFIGURATION, f"the pod's annotation {POOLS} is no list of pools")
    return names


def _log(line: str) -> None:
    """The runtime puts standard error into its log."""
    sys.stderr.write(f"calico: {line}\n")


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """Hold the node's lock. Without a lock file IPAM is as correct, only slower, so its absence is no error."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        _log(f"no lock: {error}")
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
