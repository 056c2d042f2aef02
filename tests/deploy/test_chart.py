"""The chart without a cluster: what it renders for each way in, what it refuses, and whether the service agrees."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import chart
from tests.harness.repository import DOCS, ROOT
from typha import settings
from typha.cli import main
from typha.settings import feeds_file

pytestmark = [pytest.mark.helm, pytest.mark.xdist_group("helm")]  # one process renders each set of values once

SET_BY_THE_CHART = {
    *("DatastoreType", "LogFilePath", "LogSeveritySys", "ServerPort", "HealthEnabled", "HealthHost", "HealthPort"),
    *("PrometheusMetricsEnabled", "PrometheusMetricsPort", "ShutdownTimeoutSecs", "CalicoFeeds", "ReadOnly"),
    *("FeedsFile", "ServerCertFile", "ServerKeyFile", "CAFile", "ClientCN", "ClientURISAN"),
    *("ConnectionRebalancingMode", "K8sNamespace", "K8sServiceName"),
}
"""Settings with a value of their own in values.yaml, or none, because the rest of the pod depends on them."""
NODES_PER_REPLICA = 200


@pytest.fixture(scope="module")
def all_rendered(helm_tools: Path) -> dict[str, chart.Rendered]:
    return {name: chart.run(helm_tools, values=values) for name, values in chart.MATRIX.items()}


@pytest.fixture(params=list(chart.MATRIX))
def rendered(request: pytest.FixtureRequest, all_rendered: dict[str, chart.Rendered]) -> chart.Rendered:
    return all_rendered[request.param]


def defaults() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    return found


@pytest.mark.parametrize("name", chart.MATRIX)
def test_lint_finds_nothing(name: str, helm_tools: Path) -> None:
    done = chart.run(helm_tools, "--strict", values=chart.MATRIX[name], command=("lint",))
    assert (done.code, re.findall(r"\[(?:ERROR|WARNING)\].*", done.text)) == (0, []), done.text


def test_generated_files_are_fresh(helm_tools: Path) -> None:
    """`make manifests` writes them."""
    command = [sys.executable, "tools/make_manifests.py", str(helm_tools / "helm"), "--check"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": "."}, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# Refusals

ISSUED_FOR_TEXT = chart.ISSUED | {"certManager": {"serverCN": "x\n  isCA: true"}}


def feed(*resources: Any) -> chart.Values:
    return {"a": {"resources": list(resources)}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"repository": ""}}, "image.repository is needed: no image is published"),
        ({"tls": {"mode": "secret"}}, "tls.clientCN or tls.clientURISAN is needed"),
        ({"tls": {"mode": "certManager"}}, "tls.clientCN or tls.clientURISAN is needed"),
        ({"tls": {"mode": "secret", "clientCN": "x"}}, "tls.secret.name is needed"),
        ({"tls": chart.SECRET | {"ca": {"secret": "a", "configMap": "b"}}}, "exclude each other"),
        ({"tls": {"mode": "off"}}, "at '/tls/mode': value must be one of 'secret', 'certManager', 'none'"),
        ({"tls": {"secret": {"name": "Not_a_name"}}}, "at '/tls/secret/name': 'Not_a_name' does not match pattern"),
        (
            {"tls": {"mode": "certManager", "clientURISAN": "x://y", "certManager": {"agentSecret": "s"}}},
            "tls.clientCN is needed for tls.certManager.agentSecret",
        ),
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"tls": {"mode": "none", "cn": "x"}}, "at '/tls': additional properties 'cn' not allowed"),
        ({"replicas": "3"}, "at '/replicas': got string, want integer"),
        ({"hostNetwork": "yes"}, "at '/hostNetwork': got string, want boolean"),
        ({"mode": "both"}, "at '/mode': value must be one of 'own', 'beside', 'join'"),
        ({"drainSeconds": 0}, "at '/drainSeconds': minimum: got 0, want 10"),
        ({"ports": {"client": 9098}}, "the client, health and metrics ports must differ"),
        ({"ports": {"client": 70000}}, "at '/ports/client': maximum"),
        ({"settings": {"ServerPrt": 1}}, "at '/settings': additional properties 'ServerPrt' not allowed"),
        ({"settings": {"ServerPort": 1}}, "at '/settings': additional properties 'ServerPort' not allowed"),
        ({"environment": {"TYPHA_SERVERPORT": "1"}}, "at '/environment/TYPHA_SERVERPORT': false schema"),
        ({"environment": {"typha_serverport": "1"}}, "at '/environment/typha_serverport': false schema"),
        ({"environment": {"OTEL_X": 1}}, "at '/environment/OTEL_X': got number, want string"),
        ({"calico": {"feeds": False}}, "feeds is needed if calico.feeds is false"),
        ({"calico": {"apiGroup": "v1"}}, "at '/calico/apiGroup': value must be one of"),
        ({"feeds": {"felix": {"resources": [{"type": "v1/pods"}]}}}, "at '/feeds/felix': false schema"),
        ({"feeds": {"a": {"resources": [{"type": "pods"}]}}}, "at '/feeds/a/resources/0/type': 'pods' does not match"),
        ({"feeds": {"a": {"resources": []}}}, "at '/feeds/a/resources': minItems"),
        ({"networkPolicy": {"enabled": True}}, "networkPolicy.enabled has no effect with hostNetwork"),
        ({"metrics": {"enabled": False, "rules": {"enabled": True}}}, "metrics.enabled is false"),
        ({"metrics": {"rules": {"runbookUrl": "no url"}}}, "at '/metrics/rules/runbookUrl': 'no url' does not match"),
        ({"autoscaling": {"nodesPerReplica": 1}}, "at '/autoscaling/nodesPerReplica': minimum"),
        ({"image": {"repository": "registry.example.com/typha:0.1.0"}}, "at '/image/repository': "),
        ({"image": {"repository": "typha", "tag": "1 2"}}, "at '/image/tag': "),
        ({"mode": "beside", "name": "calico-typha"}, "name: calico-typha is the name of the original's objects"),
        ({"mode": "join", "name": "calico-typha"}, "name: calico-typha is the name of the original's objects"),
        ({"name": "123"}, "at '/name': '123' does not match pattern"),
        ({"name": "true"}, "at '/name': 'not' failed"),
        ({"priorityClassName": "x\n      hostPID: true"}, "at '/priorityClassName': "),
        ({"tls": ISSUED_FOR_TEXT}, "at '/tls/certManager/serverCN': "),
        ({"podLabels": {"k8s-app": "x"}}, "at '/podLabels/k8s-app': false schema"),
        ({"drainSeconds": None}, "missing property 'drainSeconds'"),
        ({"replicas": None}, "missing property 'replicas'"),
        ({"tls": None}, "missing property 'tls'"),
        ({"calico": {"feeds": None}}, "at '/calico': missing property 'feeds'"),
        ({"feeds": {"-": {"resources": [{"type": "v1/pods"}]}}}, "invalid propertyName '-'"),
        ({"feeds": feed({"type": "-/v1/-"})}, "at '/feeds/a/resources/0/type': "),
        ({"feeds": feed({"type": "v1/pods/status"})}, "at '/feeds/a/resources/0/type': "),
        ({"feeds": feed({"type": "v1/pods", "fields": ["metadata..name"]})}, "at '/feeds/a/resources/0/fields/0': "),
        ({"feeds": feed({"type": "v1/pods"}, {"type": "core/v1/pods"})}, "feeds.a has v1/pods twice"),
    ],
)
def test_wrong_values_are_refused(values: chart.Values, message: str, helm_tools: Path) -> None:
    done = chart.run(helm_tools, values=chart.PLAIN | values)
    assert done.code == 1
    assert message in done.errors


def test_the_settings_that_may_be_set_are_those_with_an_effect() -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    allowed = schema["properties"]["settings"]["properties"]
    assert list(allowed) == sorted(
        row.name for row in settings.SETTINGS if row.has_effect and row.name not in SET_BY_THE_CHART
    )


def test_every_default_is_described_by_the_schema() -> None:
    """So that no value is allowed that nothing uses, and the other way round."""

    def names(node: Any, at: str = "") -> set[str]:
        found = {at}
        if isinstance(node, dict) and node.get("additionalProperties") is False:
            for name, child in node["properties"].items():
                found |= names(child, f"{at}/{name}")
        return found

    def keys(node: Any, known: set[str], at: str = "") -> set[str]:
        found = {at}
        if isinstance(node, dict):
            for name, child in node.items():
                if f"{at}/{name}" in known or not any(one.startswith(f"{at}/") for one in known):
                    found |= keys(child, known, f"{at}/{name}") if f"{at}/{name}" in known else set()
                else:
                    found.add(f"{at}/{name}")
        return found

    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    known = {name for name in names(schema) if not name.startswith("/settings/")}
    assert keys(defaults(), known) == known - {"/global"}


def test_no_default_can_be_taken_away() -> None:
    """A null takes a default away. Where the chart has a text, number or switch by default, templates need one."""

    def optional(node: dict[str, Any], values: dict[str, Any], at: str = "") -> list[str]:
        found = []
        for name, value in values.items():
            if isinstance(value, dict) and "required" in node["properties"][name]:
                found += optional(node["properties"][name], value, f"{at}/{name}")
            if not isinstance(value, dict | list) and name not in node["required"]:
                found.append(f"{at}/{name}")
        return found

    assert optional(json.loads((chart.CHART / "values.schema.json").read_text()), defaults()) == []


# What is rendered


def test_the_objects_belong_together(rendered: chart.Rendered) -> None:
    """One namespace; each Service, budget, constraint and policy selects the service's pods; the role is bound."""
    objects = rendered.objects
    clusterwide = {"ClusterRole", "ClusterRoleBinding"}
    assert {item["metadata"].get("namespace") for item in objects if item["kind"] not in clusterwide} == {
        chart.NAMESPACE
    }
    keys = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(keys) == len(set(keys))
    template = rendered.deployment["spec"]["template"]
    labels, pod = template["metadata"]["labels"].items(), template["spec"]
    assert rendered.deployment["spec"]["selector"]["matchLabels"].items() <= labels
    for item in objects:
        if item["kind"] == "Service":
            assert item["spec"]["selector"].items() <= labels
            [port] = item["spec"]["ports"]
            assert port["targetPort"] in {one["name"] for one in pod["containers"][0]["ports"]}
        elif item["kind"] == "PodDisruptionBudget":
            assert item["spec"]["selector"]["matchLabels"].items() <= labels
        elif item["kind"] == "NetworkPolicy":
            assert item["spec"]["podSelector"]["matchLabels"].items() <= labels
    [constraint] = pod["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"].items() <= labels
    [preferred] = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["labelSelector"]["matchLabels"].items() <= labels
    name = rendered.deployment["metadata"]["name"]
    binding = rendered.one("ClusterRoleBinding", name)
    assert binding["roleRef"]["name"] == rendered.one("ClusterRole", name)["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": chart.NAMESPACE}]
    assert pod["serviceAccountName"] == rendered.one("ServiceAccount", name)["metadata"]["name"]


def test_volumes_and_mounts_agree(rendered: chart.Rendered) -> None:
    [container] = rendered.pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in rendered.pod["volumes"]}
    assert mounts["run"] == "/run/typha"
    files = [value for name, value in rendered.environment.items() if name.endswith("FILE") and value != "none"]
    assert all(any(value.startswith(f"{path}/") for path in mounts.values()) for value in files)
    for volume in rendered.pod["volumes"]:
        if volume["name"] == "feeds":
            text = rendered.one("ConfigMap", volume["configMap"]["name"])["data"]["feeds.yaml"]
            assert [spec.name for spec in feeds_file.parse("feeds", text)] == sorted(chart.FEEDS)


def test_the_pod_is_confined(rendered: chart.Rendered) -> None:
    for item in rendered.objects:
        if item["kind"] != "Deployment":
            continue
        pod = item["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "cpu" not in container["resources"]["limits"]


def test_the_service_accepts_its_environment(rendered: chart.Rendered, tmp_path: Path) -> None:
    """Strictly: every variable is a setting, every value valid, and none without effect."""
    environment = {
        name: str(tmp_path / Path(value).name) if name.endswith("FILE") and value != "none" else value
        for name, value in rendered.environment.items()
    }
    for value in environment.values():
        if value.startswith(str(tmp_path)):
            Path(value).touch()
    loaded = settings.load(flags={}, environment=environment, strict=True, default_config_file=str(tmp_path / "none"))
    assert loaded.notices == ()
    # Kubernetes makes variables of a namespace's Services: TYPHA_PORT and others, in mode beside.
    assert rendered.pod["enableServiceLinks"] is False


def test_settings_and_variables_reach_the_service(all_rendered: dict[str, chart.Rendered]) -> None:
    found = all_rendered["everything"].environment
    assert (found["TYPHA_SEGMENTBYTES"], found["TYPHA_LOGFORMAT"]) == ("4194304", "json")
    assert chart.MATRIX["everything"]["environment"].items() <= found.items()


def test_annotations_of_the_pods(helm_tools: Path) -> None:
    evictable = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    for added, found in ({"a": "b"}, {"a": "b", evictable: "true"}), ({evictable: "false"}, {evictable: "false"}):
        done = chart.run(helm_tools, values=chart.PLAIN | {"podAnnotations": added})
        assert done.text.count(evictable) == 1
        assert done.deployment["spec"]["template"]["metadata"]["annotations"] == found


def test_probes_drain_and_ports(rendered: chart.Rendered) -> None:
    pod, environment = rendered.pod, rendered.environment
    [container] = pod["containers"]
    seconds = pod["terminationGracePeriodSeconds"]
    assert environment["TYPHA_SHUTDOWNTIMEOUTSECS"] == str(seconds)
    assert rendered.deployment["spec"]["progressDeadlineSeconds"] > seconds
    assert rendered.deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "100%", "maxUnavailable": 1}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["calico-typha"] == int(environment["TYPHA_SERVERPORT"])
    assert ports["health"] == int(environment["TYPHA_HEALTHPORT"])
    assert ports.get("metrics", 0) == (
        int(environment["TYPHA_PROMETHEUSMETRICSPORT"])
        if environment["TYPHA_PROMETHEUSMETRICSENABLED"] == "true"
        else 0
    )
    for probe in ("liveness", "readiness"):
        get = container[f"{probe}Probe"]["httpGet"]
        assert (get["path"], get["port"]) == (f"/{probe}", ports["health"])
        # On the host's network the health port listens on loopback alone, and the kubelet asks there.
        assert get.get("host") == ("localhost" if pod["hostNetwork"] else None)
    hosts = [item for item in container["env"] if item["name"] == "TYPHA_HEALTHHOST"]
    assert bool(hosts) is not pod["hostNetwork"]


def test_the_ways_in(all_rendered: dict[str, chart.Rendered]) -> None:
    own, beside, join = all_rendered["secret"], all_rendered["beside"], all_rendered["join"]
    # Felix looks for the endpoints of a Service by the name of their port.
    assert own.one("Service", "calico-typha")["spec"]["ports"][0]["name"] == "calico-typha"
    assert beside.one("Service", "typha")["spec"]["ports"][0]["name"] == "calico-typha"
    assert not [item for item in join.objects if item["metadata"]["name"] == "calico-typha"]
    # Each counts the replicas of the Service that its own agents use.
    counted = [
        {one["name"]: one.get("value") for one in way.pod["containers"][0]["env"]} for way in (own, beside, join)
    ]
    assert [one["TYPHA_K8SSERVICENAME"] for one in counted] == ["calico-typha", "typha", "calico-typha"]
    # The selector of the original's Deployment cannot change: only with the same one can the release take it over.
    assert own.deployment["spec"]["selector"]["matchLabels"] == {"k8s-app": "calico-typha"}
    original = {"k8s-app": "calico-typha"}.items()
    assert original <= join.deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not original <= beside.deployment["spec"]["template"]["metadata"]["labels"].items()
    # Two budgets for a pod would make its eviction impossible.
    assert {way: any(item["kind"] == "PodDisruptionBudget" for item in way.objects) for way in (own, beside, join)} == {
        own: True,
        beside: True,
        join: False,
    }
    numbers = [{port["containerPort"] for port in way.pod["containers"][0]["ports"]} for way in (own, beside, join)]
    assert not numbers[0] & numbers[1]
    assert numbers[0] == numbers[2]


def test_certificates(all_rendered: dict[str, chart.Rendered]) -> None:
    def sources(name: str) -> dict[str, Any]:
        return {volume["name"]: volume for volume in all_rendered[name].pod["volumes"]}

    assert sources("secret")["tls"]["secret"]["secretName"] == "typha-certs"
    assert sources("secret")["ca"]["secret"]["secretName"] == "typha-certs"
    assert sources("secret")["ca"]["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]  # not the key
    assert sources("as the operator")["ca"]["configMap"]["name"] == "tigera-ca-bundle"
    assert sources("another authority")["ca"]["secret"]["secretName"] == "authority"
    numbers = sources("names like numbers")
    assert (numbers["tls"]["secret"]["secretName"], numbers["ca"]["configMap"]["name"]) == ("123", "456")
    assert numbers["ca"]["configMap"]["items"] == [{"key": "123", "path": "123"}]
    assert "tls" not in sources("plain")
    issued = all_rendered["cert-manager"]
    server, agents = issued.one("Certificate", "calico-typha-tls"), issued.one("Certificate", "calico-typha-agents")
    assert sources("cert-manager")["tls"]["secret"]["secretName"] == server["spec"]["secretName"]
    assert agents["spec"]["commonName"] == issued.environment["TYPHA_CLIENTCN"]
    assert ("server auth" in server["spec"]["usages"], "client auth" in agents["spec"]["usages"]) == (True, True)
    assert server["spec"]["issuerRef"] == agents["spec"]["issuerRef"]
    assert issued.one("Issuer", server["spec"]["issuerRef"]["name"])["spec"]["ca"]["secretName"] == "calico-typha-ca"
    named = all_rendered["an issuer"]
    assert named.one("Certificate")["spec"]["issuerRef"]["name"] == "corp"
    assert not [item for item in named.objects if item["kind"] == "Issuer"]


def test_rules_and_dashboard_are_the_files(all_rendered: dict[str, chart.Rendered]) -> None:
    found = all_rendered["monitoring"]
    rules = yaml.safe_load((chart.CHART / "files" / "alerts.yaml").read_text())
    assert found.one("PrometheusRule")["spec"] == rules
    [text] = found.one("ConfigMap")["data"].values()
    assert json.loads(text) == json.loads((chart.CHART / "files" / "dashboard.json").read_text())
    selector = found.one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    selected = [
        item["metadata"]["name"]
        for item in found.objects
        if item["kind"] == "Service" and selector.items() <= item["metadata"]["labels"].items()
    ]
    assert selected == ["calico-typha-metrics"]


def test_the_values_in_the_documentation_can_be_installed(helm_tools: Path) -> None:
    text = (DOCS / "installing.md").read_text()
    blocks = [block for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE) if block.startswith("    image: ")]
    assert len(blocks) == 2
    for block in blocks:
        assert chart.run(helm_tools, values=yaml.safe_load(block)).objects


# Permissions


@pytest.mark.parametrize(
    ("name", "arguments", "variables"),
    [
        ("plain", (), {}),
        ("v1", ("--api-group", "crd.projectcalico.org/v1"), {}),
        ("v3", ("--api-group", "projectcalico.org/v3", "--read-only"), {"USE_POD_CIDR": "true"}),
        ("feeds", ("--feeds-file", "feeds.yaml"), {}),
        ("feeds alone", ("--feeds-file", "feeds.yaml", "--calico-feeds", "false"), {}),
    ],
)
def test_the_role_is_what_the_service_asks_for(
    name: str,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    all_rendered: dict[str, chart.Rendered],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("feeds.yaml").write_text(yaml.safe_dump({"feeds": chart.FEEDS}))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert main.run(["rbac", *arguments]) == 0
    asked = chart.permissions(yaml.safe_load(capsys.readouterr().out))
    assert chart.permissions(all_rendered[name].one("ClusterRole")) == asked


# Size


def operator_replicas(nodes: int) -> int:
    """What Calico's operator runs for a number of schedulable nodes."""
    if nodes <= 2:
        return 1
    return 2 if nodes <= 4 else max(3, nodes // NODES_PER_REPLICA + 2)


def test_the_ladder_is_the_operators(all_rendered: dict[str, chart.Rendered]) -> None:
    data = all_rendered["autoscaling"].one("ConfigMap", "calico-typha-autoscaler")["data"]
    steps = json.loads(data["ladder"])["nodesToReplicas"]
    assert steps == sorted(steps)
    for nodes in range(NODES_PER_REPLICA * (steps[-1][1] - 1)):
        taken = [replicas for at, replicas in steps if at <= nodes][-1]
        assert taken == operator_replicas(nodes), nodes


def test_the_autoscaler_owns_the_number(all_rendered: dict[str, chart.Rendered]) -> None:
    found = all_rendered["autoscaling"]
    assert "replicas" not in found.deployment["spec"]
    [container] = found.one("Deployment", "calico-typha-autoscaler")["spec"]["template"]["spec"]["containers"]
    assert "--target=deployment/calico-typha" in container["args"]
    assert chart.permissions(found.one("Role")) == {
        ("", "configmaps", "get"),
        ("apps", "deployments/scale", "get"),
        ("apps", "deployments/scale", "update"),
    }
    assert all(rule["resourceNames"] for rule in found.one("Role")["rules"])


def test_the_default_size_is_a_row_of_the_table() -> None:
    """Of docs/operations.md, "Sizes"."""
    [cells] = re.findall(
        r"^\| 1,000 clients, 20,000 pods \| (.+) \|$", (DOCS / "operations.md").read_text(), re.MULTILINE
    )
    request, limit, cpu = (cell.strip().replace(" ", "") for cell in cells.split("|"))
    assert defaults()["resources"] == {"requests": {"cpu": cpu, "memory": request}, "limits": {"memory": limit}}


def test_alerts_lead_to_the_runbook_where_it_is_served(helm_tools: Path) -> None:
    monitoring = {"rules": {"enabled": True, "runbookUrl": "https://docs.example.org/runbook/"}}
    done = chart.run(helm_tools, values=chart.PLAIN | {"metrics": monitoring})
    [group] = done.one("PrometheusRule")["spec"]["groups"]
    urls = [rule["annotations"]["runbook_url"] for rule in group["rules"]]
    assert all(url.startswith("https://docs.example.org/runbook/#typha") for url in urls)
