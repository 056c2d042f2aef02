"""`typha convert`: its output for the recordings, and its messages about unusual and invalid objects."""

import io
import json
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml

from cache import yamljson
from cache.feeds.calico import syncers
from tests.harness import corpus, deviations, repository
from typha.cli import convert_input, main

POOL: dict[str, Any] = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "IPPool",
    "metadata": {"name": "pool", "resourceVersion": "7"},
    "spec": {"cidr": "10.0.0.0/16"},
}
POOL_TEXT = json.dumps(POOL)
RELEASE_SCENARIOS = ("anp-basic", "kinds-per-release", "birdip-forms")
POOL_KEY = "/calico/v1/ipam/v4/pool/10.0.0.0-16"


class Result(NamedTuple):
    """The result of one run of the command."""

    exit_code: int
    lines: list[dict[str, Any]]
    errors: list[str]


class Convert:
    """Runs the command on files with the given texts."""

    def __init__(self, directory: pathlib.Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self._directory = directory
        self._capture = capture

    def __call__(self, *texts: str | bytes, feed: str = "felix", options: Iterable[str] = ()) -> Result:
        files = []
        for number, text in enumerate(texts):
            path = self._directory / f"{number}"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            files.append(str(path))
        return self.run(["convert", "--feed", feed, *options, *files])

    def run(self, arguments: list[str]) -> Result:
        exit_code = main.run(arguments)
        captured = self._capture.readouterr()
        lines = [json.loads(line) for line in captured.out.splitlines()]
        return Result(exit_code, lines, captured.err.decode().splitlines())


@pytest.fixture(name="convert")
def make_convert(
    tmp_path: pathlib.Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Convert:
    monkeypatch.delenv("CALICO_API_GROUP", raising=False)
    return Convert(tmp_path, capsysbinary)


def _item(line: dict[str, Any]) -> corpus.Item:
    return corpus.Item(line["key"], line["value"], line["revision"], line["v3_resource_version"], line["update_type"])


def _stream(raws: Iterable[bytes]) -> bytes:
    return b"\n".join(raws)


@pytest.mark.parametrize("name", corpus.NAMES)
def test_recorded_objects_give_the_recorded_snapshot(name: str, convert: Convert) -> None:
    scenario = corpus.load(name)
    built_in = {line["key"] for line in convert(b"", options=["--api-group", scenario.api_group]).lines}
    own = deviations.DEVIATIONS.get(name, deviations.Deviation("")).snapshot
    for syncer in syncers.NAMES:
        result = convert(
            _stream(map(bytes, scenario.objects_after)), feed=syncer, options=["--api-group", scenario.api_group]
        )
        expected = scenario.snapshot(syncer) | {item.key: item for item in own.get(syncer, ())}
        items = [_item(line) for line in result.lines]
        assert {item.key: item for item in items if item.key in expected or item.key not in built_in} == expected
        assert [item.key for item in items] == sorted(item.key for item in items)
        assert {tuple(line) for line in result.lines} <= {
            ("key", "value", "revision", "v3_resource_version", "update_type", "ttl")
        }


@pytest.mark.parametrize("name", corpus.NAMES)
def test_recorded_events_give_the_recorded_deltas(name: str, convert: Convert) -> None:
    scenario = corpus.load(name)
    events = [(step, event) for step, events in enumerate(scenario.events) for event in events]
    text = _stream(
        [
            *map(bytes, corpus.baseline(scenario).objects_after),
            *(json.dumps({"type": each.type, "object": json.loads(bytes(each.object))}).encode() for _, each in events),
        ]
    )
    own = deviations.DEVIATIONS.get(name, deviations.Deviation("")).deltas
    for syncer in syncers.NAMES:
        lines = convert(text, feed=syncer, options=["--deltas", "--api-group", scenario.api_group]).lines
        for step in range(len(scenario.events)):
            numbers = {number for number, (its_step, _) in enumerate(events, 1) if its_step == step}
            sent = [_item(line) for line in lines if line["step"] in numbers]
            expected = own.get((syncer, step), scenario.delta(syncer, step))
            assert sorted(sent, key=repr) == sorted(expected, key=repr), (syncer, step)


@pytest.mark.parametrize(
    "path",
    sorted(path for name in RELEASE_SCENARIOS for path in repository.GOLDEN_RELEASES.glob(f"v*.[0-9]/{name}.json")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_agents_of_a_release_get_its_keys(path: pathlib.Path, convert: Convert) -> None:
    release = path.parent.name
    scenario = corpus.load(path.stem, path.parent)
    baseline = corpus.load("baseline", path.parent).snapshot(syncers.FELIX)
    options = ["--agent-release", release, "--api-group", scenario.api_group]
    shown = convert(_stream(scenario.objects_after), options=options)
    keys = {line["key"] for line in shown.lines} | set(baseline)
    assert keys == set(scenario.snapshot(syncers.FELIX)) | set(baseline)


def test_the_other_feeds_are_the_same_for_all_releases(convert: Convert) -> None:
    newest = convert(json.dumps(POOL), feed="bgp")
    assert convert(json.dumps(POOL), feed="bgp", options=["--agent-release", "3.29"]) == newest
    assert len(newest.lines) == 1


@pytest.mark.parametrize(("release", "problem"), [("v3.28.5", "3.29 or later"), ("soon", "such as v3.31.7")])
def test_a_release_that_is_not_served_is_bad_usage(release: str, problem: str, convert: Convert) -> None:
    result = convert(json.dumps(POOL), options=["--agent-release", release])
    assert result.exit_code == 2
    assert problem in " ".join(result.errors)


def test_all_forms_of_input_give_the_same_output(convert: Convert) -> None:
    text = json.dumps(POOL)
    untyped = {key: value for key, value in POOL.items() if key not in ("apiVersion", "kind")}
    forms = [
        text,
        json.dumps([POOL]),
        yaml.safe_dump(POOL),
        f"---\n{yaml.safe_dump(POOL)}---\n# nothing else\n",
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [POOL]}),
        json.dumps({"apiVersion": POOL["apiVersion"], "kind": "IPPoolList", "items": [untyped]}),
        yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [POOL]}),
        json.dumps({"type": "ADDED", "object": POOL}),
        f'{{"type":"BOOKMARK","object":{text}}} {{"type":"MODIFIED","object":{text}}}',
    ]
    for form in forms:
        result = convert(form, feed="tunnel-ip-allocation")
        assert (result.exit_code, result.errors) == (0, []), form
        assert [(line["key"], line["revision"]) for line in result.lines] == [(POOL_KEY, "7")], form


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_without_files_the_command_reads_standard_input(
    arguments: list[str], convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(POOL).encode())))
    assert [line["key"] for line in convert.run(["convert", "--feed", "bgp", *arguments]).lines] == [POOL_KEY]


def test_the_last_state_of_an_object_is_used(convert: Convert) -> None:
    changed = {**POOL, "metadata": {"name": "pool", "resourceVersion": "8"}}
    gone = json.dumps({"type": "DELETED", "object": changed})
    assert [line["revision"] for line in convert(json.dumps(POOL), json.dumps(changed), feed="bgp").lines] == ["8"]
    assert convert(json.dumps(POOL), gone, feed="bgp").lines == []
    deltas = convert(json.dumps(POOL), gone, feed="bgp", options=["--deltas"]).lines
    assert [(line["step"], line["update_type"], line["value"] is None) for line in deltas] == [
        (0, 1, False),
        (1, 3, True),
    ]


@pytest.mark.parametrize(
    ("options", "variable", "version", "ignored"),
    [
        ([], "", "projectcalico.org/v3", 0),
        ([], "projectcalico.org", "projectcalico.org/v3", 1),
        (["--api-group", "ProjectCalico.org/V3"], "crd.projectcalico.org/v1", "projectcalico.org/v3", 0),
        (["--api-group", "crd.projectcalico.org/v1"], "", "projectcalico.org/v3", 1),
        ([], "projectcalico.org/v3", "crd.projectcalico.org/v1", 1),
    ],
)
def test_choice_of_the_api_group(
    options: list[str],
    variable: str,
    version: str,
    ignored: int,
    convert: Convert,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CALICO_API_GROUP", variable)
    result = convert(json.dumps({**POOL, "apiVersion": version}), feed="bgp", options=options)
    assert len(result.lines) == 1 - ignored
    assert [line.startswith("ignored 1 object of ") for line in result.errors] == [True] * ignored


@pytest.mark.parametrize(
    ("options", "variable", "has_block"),
    [
        ([], "", False),
        ([], "true", True),
        (["--use-pod-cidr"], "", True),
        (["--no-pod-cidr"], "true", False),
    ],
)
def test_blocks_of_pod_cidrs(
    options: list[str], variable: str, convert: Convert, monkeypatch: pytest.MonkeyPatch, *, has_block: bool
) -> None:
    monkeypatch.setenv("USE_POD_CIDR", variable)
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.1.2.0/24"]}}
    result = convert(json.dumps(node), options=options)
    block = "/calico/ipam/v2/assignment/ipv4/block/10.1.2.0-24"
    assert (block in {line["key"] for line in result.lines}) is has_block


def test_an_unclear_use_of_pod_cidrs_is_bad_usage(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_POD_CIDR", "yes")
    result = convert(json.dumps(POOL))
    assert result.exit_code == 2
    assert "USE_POD_CIDR: not true or false: 'yes'" in result.errors[0]


def test_objects_of_both_groups_select_group_v1(convert: Convert) -> None:
    other = {**POOL, "apiVersion": "crd.projectcalico.org/v1", "spec": {"cidr": "10.9.0.0/16"}}
    result = convert(json.dumps(POOL), json.dumps(other), feed="bgp")
    assert [line["key"] for line in result.lines] == ["/calico/v1/ipam/v4/pool/10.9.0.0-16"]
    assert result.errors == ["ignored 1 object of projectcalico.org/v3: the group is crd.projectcalico.org/v1"]


def test_a_refused_object_is_reported_and_the_others_are_printed(convert: Convert) -> None:
    bad = {**POOL, "metadata": {"name": "bad"}, "spec": {"cidr": "junk"}}
    result = convert(json.dumps([bad, POOL]), feed="bgp")
    assert result.exit_code == 1
    assert [line["key"] for line in result.lines] == [POOL_KEY]
    [line] = result.errors
    assert line.startswith("refused: IPPool bad: bad-cidr: ")


def test_labels_that_are_no_texts_are_named(convert: Convert) -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns, labels: {a: b, version: 1.10}, annotations: {c: yes}}"
    [line] = convert(text).errors
    assert line.endswith("(no text, quote it: labels.version: 1.1, annotations.c: true)")
    long = "labels: {a: 0." + "1" * 5_000 + "}"
    [line] = convert(text.replace("labels: {a: b, version: 1.10}", long)).errors
    assert "labels.a: 0.111" in line
    assert len(line) < 300


def test_numbers_of_any_length_are_refused_only(convert: Convert) -> None:
    policy = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {"order": 10, "selector": "all()"},
    }
    result = convert(json.dumps(policy).replace("10", "1" + "0" * 5_000))
    assert result.exit_code == 1
    assert result.errors[0].startswith("refused: GlobalNetworkPolicy p: invalid-object: ")


def test_an_invalid_object_is_refused(convert: Convert) -> None:
    policy = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {"selector": "a =="},
    }
    result = convert(json.dumps(policy))
    assert result.exit_code == 1
    assert result.errors[0].startswith("refused: NetworkPolicy n/p: invalid: ")


def test_a_policy_that_is_carried_in_a_wider_form_is_a_warning(convert: Convert) -> None:
    policy = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {"selector": "all()", "namespaceSelector": "a =="},
    }
    result = convert(json.dumps(policy))
    assert result.exit_code == 0
    assert result.errors[0].startswith("warning: GlobalNetworkPolicy p: doubtful: ")


def test_unknown_fields_are_reported(convert: Convert) -> None:
    pool = {**POOL, "spec": {**POOL["spec"], "ipMode": "CrossSubnet"}}
    result = convert(json.dumps(pool), feed="bgp")
    assert result.exit_code == 0
    assert result.errors == ["warning: IPPool pool: unknown fields are dropped: spec.ipMode"]


def test_missing_managed_fields_are_reported_if_they_are_part_of_the_value(convert: Convert) -> None:
    peers = [
        {"apiVersion": "projectcalico.org/v3", "kind": "BGPPeer", "metadata": {"name": f"p{number}"}, "spec": {}}
        for number in range(5)
    ]
    result = convert(json.dumps([*peers, POOL]), feed="bgp")
    [line] = [line for line in result.errors if "managedFields" in line]
    assert line.endswith("BGPPeer p0, BGPPeer p1, BGPPeer p2 and 2 more")
    shown = {**peers[0], "metadata": {"name": "p0", "managedFields": []}}
    assert not any("managedFields" in line for line in convert(json.dumps(shown), feed="bgp").errors)


def test_a_manifest_without_a_namespace_goes_to_the_default_namespace(convert: Convert) -> None:
    text = yaml.safe_dump(
        {"apiVersion": "projectcalico.org/v3", "kind": "NetworkSet", "metadata": {"name": "s"}, "spec": {"nets": []}}
    )
    result = convert(text)
    assert "/calico/v1/netset/default%2fs" in [line["key"] for line in result.lines]
    assert result.errors == ["warning: NetworkSet s: no namespace, using 'default'"]


def test_times_in_yaml_are_texts(convert: Convert) -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns, creationTimestamp: 2026-01-02T03:04:05Z}\n"
    [whole] = [line for line in convert(text).lines if line["key"].endswith("profiles/kns.ns")]
    assert json.loads(whole["value"])["metadata"]["creationTimestamp"] == "2026-01-02T03:04:05Z"


def test_yaml_has_the_values_that_kubectl_reads(convert: Convert) -> None:
    """A port range is no number to base 60, 1e3 is a number, and parts can be repeated."""
    text = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: ftp}
spec:
  order: 1e3
  ingress:
  - &rule {action: Allow, protocol: TCP, destination: {ports: [20:21]}}
  - *rule
"""
    [line] = [line for line in convert(text).lines if line["key"].endswith("/ftp")]
    value = json.loads(line["value"])
    assert (value["order"], [rule["dst_ports"] for rule in value["inbound_rules"]]) == (1000, [["20:21"], ["20:21"]])


def test_json_may_be_followed_by_yaml_and_end_as_flow_style(convert: Convert) -> None:
    other = {**POOL, "metadata": {"name": "other"}, "spec": {"cidr": "10.1.0.0/16"}}
    for text in (
        f"{json.dumps(POOL)}\n---\n{yaml.safe_dump(other)}",
        f"{json.dumps(POOL)}\n---\n{json.dumps(other)}",
        f"{json.dumps(POOL)}{json.dumps(other)}",
        f"{yaml.safe_dump(POOL, default_flow_style=True)}\n---\n{yaml.safe_dump(other)}",
        f"\ufeff{json.dumps(POOL)}\n---\n{json.dumps(other)}",
        f"{yaml.safe_dump(POOL)}---\r\n{yaml.safe_dump(other)}".encode("utf-16"),
    ):
        result = convert(text, feed="bgp")
        assert (result.exit_code, len(result.lines), result.errors) == (0, 2, []), text


def test_what_kubectl_passes_over_in_silence_is_a_warning(convert: Convert) -> None:
    text = yaml.safe_dump(POOL) + "kind: IPPool\n...\nkind: Pod\n"
    result = convert(text, feed="bgp")
    assert (result.exit_code, len(result.lines)) == (0, 1)
    repeated, after = result.errors
    assert re.fullmatch(r"warning: .*/0: document 1, line 8: duplicate key 'kind': the last one counts", repeated)
    assert re.fullmatch(r"warning: .*/0: document 1, line 9: text after the end of the document is ignored", after)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\na: 1", "document 1, line 2: not an object of Kubernetes: it has no apiVersion, kind, metadata.name"),
        ("# c\n---\n~\n---\n\na: [", "document 3, line 7: did not find expected node content"),
        ("---\n---\na: *x", "document 2, line 3: unknown anchor 'x' referenced"),
        ("---\n\n--- a", "document 2, line 3: invalid document separator: 'a' after ---"),
        (POOL_TEXT + "\n\n[{", "document 2, line 4: did not find expected node content"),
        (
            POOL_TEXT + "\n" + POOL_TEXT + "\n{]",
            "document 3, line 3: Expecting property name enclosed in double quotes",
        ),
        ('{"a":\n1,}', "document 1, line 1: not an object of Kubernetes: it has no apiVersion, kind, metadata.name"),
        ('{"a":\n1,]', "document 1, line 2: Expecting property name|document 1, line 2: did not find expected"),
        ('{"a": 1' + "0" * 10_000 + "}{", "document 1, line 1: not an object of Kubernetes"),
        ('{"a": NaN}', "document 1, line 1: not an object of Kubernetes"),
        ("apiVersion: v1\nkind: Pod\n", "document 1, line 1: not an object of Kubernetes: it has no metadata.name$"),
        (
            '{"apiVersion": "v1", "kind": "Status", "code": 403}',
            "document 1, line 1: a Status of the API server, .*failed",
        ),
        ('{"apiVersion": "meta.k8s.io/v1", "kind": "Table"}', "document 1, line 1: a Table .*: kubectl needs -o json"),
        ("- kind: A\n- {kind: B", "document 1, line 3: did not find expected ',' or '}'"),
    ],
)
def test_errors_name_file_document_and_line(text: str, message: str, convert: Convert) -> None:
    result = convert(text)
    assert (result.exit_code, result.lines) == (2, [])
    [line] = result.errors
    assert re.match(f"typha: error: .*/0: ({message})", line), line


def test_large_yaml_is_read_with_few_steps_of_python(convert: Convert) -> None:
    """Time says nothing on a busy machine. The parser in Python makes some 100 calls for each line, libyaml's 3."""
    pools = [
        {**POOL, "metadata": {"name": f"p{n}"}, "spec": {"cidr": f"10.{n // 256}.{n % 256}.0/24"}} for n in range(500)
    ]
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": pools}, default_flow_style=False)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        [document] = yamljson.documents(io.BytesIO(text.encode()))
    finally:
        sys.setprofile(None)
    assert len(msgspec.json.decode(document.raw)["items"]) == 500
    assert calls < 10 * text.count("\n")


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("is_terminal", "total"), [(True, 4_000_000), (True, None), (False, 4_000_000)])
def test_progress_is_shown_on_a_terminal(is_terminal: bool, total: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = convert_input.Progress(total, now=lambda: now)
    progress.advance(1_000_000)
    assert stream.getvalue() == ""
    now = 3.0
    progress.advance(1_000_000)
    now = 4.0
    progress.advance(1_000_000)
    progress.end()
    assert ("bytes read" in stream.getvalue()) is is_terminal
    assert ("3000000/4000000" in stream.getvalue()) is (is_terminal and total is not None)
    assert stream.getvalue().endswith("\n") is is_terminal


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"a": 1}',
        "just a text",
        "- 1\n- 2",
        '{"type":"ERROR","object":{"kind":"Status"}}',
        '{"apiVersion":"v1","kind":"Pod","metadata":{}}',
        "a: &x [*x]",
        "a: [",
        b"\xff\xfe{",
        "[" * 200_000,
        '{"apiVersion":"v1","kind":"Pod","metadata":{"name":1}}',
    ],
)
def test_unreadable_input_is_rejected(text: str | bytes, convert: Convert) -> None:
    result = convert(json.dumps(POOL), text)
    assert result.exit_code == 2
    assert result.lines == []
    [line] = result.errors
    assert line.startswith("typha: error: ")


def test_a_missing_file_is_rejected(convert: Convert) -> None:
    result = convert.run(["convert", "--feed", "bgp", "no-such-file"])
    assert result.exit_code == 2
    assert "no-such-file" in result.errors[0]


def test_an_unknown_feed_is_rejected(convert: Convert) -> None:
    assert convert.run(["convert", "--feed", "pods"]).exit_code == 2


def test_an_empty_value_is_null(convert: Convert) -> None:
    annotations = {"config.projectcalico.org/X": ""}
    empty = {"kind": "FelixConfiguration", "metadata": {"name": "default", "annotations": annotations}, "spec": {}}
    result = convert(json.dumps(POOL | empty))
    [line] = [line for line in result.lines if line["key"] == "/calico/v1/config/X"]
    assert (line["value"], line["update_type"], result.exit_code) == (None, 1, 0)


def test_a_lone_surrogate_is_replaced_as_in_an_api_server(convert: Convert) -> None:
    annotations = {"config.projectcalico.org/X": "a\ud800b\u2028\x00😀"}
    odd = {"kind": "FelixConfiguration", "metadata": {"name": "default", "annotations": annotations}, "spec": {}}
    result = convert(json.dumps(POOL | odd))
    [line] = [line for line in result.lines if line["key"] == "/calico/v1/config/X"]
    assert (line["value"], result.exit_code) == ("a\ufffdb\u2028\x00😀", 0)
