"""KubeVirt's migrations of virtual machines -> live migrations (docs/data-model.md, section 5.4). Pure."""

from collections.abc import Sequence

import msgspec

from cache import objects
from cache.feeds.calico import model, schema, wholeresource

_SHOWN_PHASES = frozenset({"Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Failed"})


class _Spec(msgspec.Struct, gc=False):
    vmiName: str | None = None  # noqa: N815


class _State(msgspec.Struct, gc=False):
    sourcePod: str | None = None  # noqa: N815


class _Status(msgspec.Struct, gc=False):
    phase: str | None = None
    migrationState: _State | None = None  # noqa: N815


class _Metadata(msgspec.Struct, gc=False):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    creationTimestamp: str | None = None  # noqa: N815
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Migration(msgspec.Struct, gc=False):
    metadata: _Metadata
    spec: _Spec | None = None
    status: _Status | None = None


_decoder = msgspec.json.Decoder(_Migration)


def convert(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a migration of KubeVirt. The item is absent unless the migration is in progress or has failed.

    Raises:
        ConversionError: invalid-object.
    """
    migration = model.typed(_decoder, event)
    metadata, status = migration.metadata, migration.status or _Status()
    machine = migration.spec.vmiName if migration.spec else None
    if status.phase not in _SHOWN_PHASES or not machine or not metadata.uid:
        key = wholeresource.key(wholeresource.LIVE_MIGRATION, event.namespace, event.name)
        return (model.Item(key, None, ""),)
    spec: schema.Values = {"target": {"selector": _target_selector(machine, metadata.uid)}}
    if status.migrationState and status.migrationState.sourcePod:
        workload = f"{metadata.namespace}/{status.migrationState.sourcePod}"
        spec["source"] = {"workload": {"orchestratorID": "k8s", "workloadID": workload}}
    shown = {name: value for name, value in msgspec.structs.asdict(metadata).items() if value}
    values = {"metadata": schema.read("metav1.ObjectMeta", shown), "spec": spec}
    return (wholeresource.item(event, wholeresource.LIVE_MIGRATION, values),)


def _target_selector(machine: str, uid: str) -> str:
    # Older versions of KubeVirt set the second label.
    names = f"vmi.kubevirt.io/id == '{machine}' || vm.kubevirt.io/name == '{machine}'"
    return f"({names}) && kubevirt.io/migrationJobUID == '{uid}'"
