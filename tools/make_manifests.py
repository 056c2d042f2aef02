"""Makes the generated files of deploy/: the chart's permissions from the service's kinds, and the plain manifests.

`make manifests` writes them; with --check it only says which of them are stale, with exit code 1.

    python tools/make_manifests.py HELM [--check]     HELM: the program, as tools/helm/build.sh builds it
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from cache.feeds.calico import syncers
from typha.preflight import permissions

DEPLOY: Final = Path(__file__).resolve().parents[1] / "deploy"
CHART: Final = DEPLOY / "chart"
NAMESPACE: Final = "kube-system"
EVERYWHERE: Final = ""
"""The group of rules for kinds that are not Calico's own."""


def entries() -> Iterator[dict[str, Any]]:
    """The rules for Calico's feeds, each with the API group of Calico and the option that it belongs to."""
    for group in syncers.Group:
        all_types, without_ipam = (permissions.calico_types(group, use_pod_cidr=flag) for flag in (False, True))
        own = [type for type in all_types if type.group == group.group]
        if group is syncers.Group.V1:
            others = dict.fromkeys((type for type in all_types if type not in own), permissions.READING)
            yield from entry(others, EVERYWHERE)
        yield from entry(
            dict.fromkeys((type for type in own if type in without_ipam), permissions.READING), group.value
        )
        ipam = dict.fromkeys((type for type in own if type not in without_ipam), permissions.READING)
        yield from entry(ipam, group.value, only="ipam")
        yield from entry(permissions.creating(group), group.value, only="creating")


def entry(verbs: permissions.Verbs, group: str, *, only: str = "") -> Iterator[dict[str, Any]]:
    """The rules of one part."""
    for rule in permissions.rules([verbs]):
        yield {"group": group, "only": only, "rule": rule}


def generated(helm: str) -> Iterator[tuple[Path, str]]:
    """Each file and its content. The manifests are made from the files that are there."""
    head = "# Made by `make manifests` from the service's list of kinds. Do not edit.\n"
    yield CHART / "rbac.yaml", head + yaml.safe_dump(list(entries()), sort_keys=False)
    for values in sorted((DEPLOY / "values").glob("*.yaml")):
        command = [helm, "template", "typha", CHART, "--namespace", NAMESPACE, "--values", values]
        rendered = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        about = "".join(line for line in values.read_text().splitlines(keepends=True) if line.startswith("#"))
        lines = (line for line in rendered.splitlines(keepends=True) if not line.startswith("# Source:"))
        head = f"{about}# Made by `make manifests` from deploy/values/{values.name}. Do not edit; replace the image.\n"
        yield DEPLOY / "manifests" / values.name, head + "".join(lines)


def main(helm: str, *, is_check: bool) -> int:
    """Write the files, or compare them."""
    stale = []
    for path, content in generated(helm):
        if not path.exists() or path.read_text() != content:
            stale.append(path.relative_to(DEPLOY.parent).as_posix())
            if not is_check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(content)
    for name in stale:
        sys.stdout.write(f"{'stale' if is_check else 'wrote'} {name}\n")
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], is_check="--check" in sys.argv[2:]))
