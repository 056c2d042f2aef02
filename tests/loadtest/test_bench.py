"""Tests of the bench: its rules, its history, and all of it once, tiny."""

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest.bench import comparisons, history, rows, runner, standalone
from loadtest.swarm import control

NATIVE, TYPHA = control.Protocol.NATIVE, control.Protocol.TYPHA
CPU = rows.Figure("cpu", "CPU", "µs", rows.Rule.CPU, 7)
P99 = rows.Figure("p99", "p99", "ms", rows.Rule.LATENCY, 12)
MEMORY = rows.Figure("memory", "memory", "MB", rows.Rule.GOAL, 250)
SHOWN = rows.Figure("shown", "shown", "MB", rows.Rule.SHOWN)


@pytest.mark.parametrize(
    ("figure", "ours", "bare", "met"),
    [
        (CPU, 12.5, 10.0, True),
        (CPU, 12.6, 10.0, False),
        (CPU, 5.0, None, None),
        (P99, 30.0, 20.0, True),
        (P99, 30.1, 20.0, False),
        (MEMORY, 250.0, None, True),
        (MEMORY, 251.0, 500.0, False),
        (SHOWN, 1.0, 1.0, None),
    ],
)
def test_when_a_figure_is_met(figure: rows.Figure, ours: float, bare: float | None, met: bool | None) -> None:
    result = rows.Result(figure, ours, bare)
    assert result.met is met
    assert dataclasses.replace(result, judged=False).met is None


def test_medians_are_compared() -> None:
    row = rows.Row("row", "group", (CPU, P99))
    [result] = rows.results([row], {"cpu": [1.0, 100.0, 8.0]}, {"cpu": [4.0, 5.0, 0.1]}, judged=True)
    assert (result.ours, result.bare, result.ratio) == (8.0, 4.0, 2.0)


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in rows.choose(["storm", "1000x20", "storm"])] == ["storm", "1000x20"]
    assert rows.choose([]) == list(rows.ROWS)
    with pytest.raises(ValueError, match="no such row: stormy"):
        rows.choose(["stormy"])


def test_every_row_has_a_measurement() -> None:
    for row in rows.ROWS:
        assert row.measurement in comparisons.COMPARISONS or row.measurement in standalone.STANDALONE
        if row.measurement in comparisons.COMPARISONS and row.name != "bare-send":
            part = comparisons.COMPARISONS[row.measurement].part(frozenset({row.name}))
            assert part.rates or part.burst or part.storm or part.idle, row.name


def test_options_change_the_full_size_or_the_quick_pass() -> None:
    full = runner.settings_of(
        names="storm,burst",
        rounds=None,
        seconds=None,
        scale=None,
        quick=False,
        protocol=NATIVE,
        record=True,
        folder=Path("f"),
    )
    assert (full.rounds, full.sizes.scale, full.judged, full.record) == (5, 1.0, True, runner.HISTORY)
    quick = runner.settings_of(
        names="", rounds=2, seconds=1.5, scale=None, quick=True, protocol=NATIVE, record=False, folder=Path("f")
    )
    assert (quick.rounds, quick.sizes.seconds, quick.judged, quick.record) == (2, 1.5, False, None)


def test_typhas_protocol_has_the_rows_that_it_makes_a_difference_to() -> None:
    made = runner.settings_of(
        names="", rounds=None, seconds=None, scale=None, quick=True, protocol=TYPHA, record=False, folder=Path("f")
    )
    assert "1000x20" in made.names
    assert not {"calico", "bare-send"} & set(made.names)


def entry(ours: float) -> history.Entry:
    results = [rows.Result(figure, ours, 6.0) for figure in rows.ROWS[0].figures]
    return history.entry(results, protocol="native", scale=1.0, rounds=5, seconds=10.0, load_before=0.1)


def test_the_history_makes_the_page_and_the_plots(tmp_path: Path) -> None:
    folder = tmp_path / "performance"
    page = tmp_path / "performance.md"
    page.write_text(f"# Head\n{history.BEGIN}\nold\n{history.END}\nfoot\n")
    for ours in (7.4, 9.0):
        history.record(folder, entry(ours))
    assert [one["figures"]["cpu-1000x20"]["ours"] for one in history.load(folder)] == [7.4, 9.0]
    text = page.read_text()
    assert text.startswith("# Head\n")
    assert text.endswith("\nfoot\n")
    assert "| CPU per delivery, 1,000 clients x 20 updates/s | 7 µs | 6 | 9 µs | 1.50 | **no** |" in text
    assert "| delivery p99, 1,000 clients x 20 updates/s | 12 ms | 6 | 9 ms | 1.50 | yes |" in text
    drawn = {file.stem for file in folder.glob("*.svg")}
    assert drawn == {"cpu", "latency"}
    for name in drawn:
        assert f"performance/{name}.svg" in text
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        assert (folder / f"{name}.svg").stat().st_size < 30_000


def test_a_page_without_a_run(tmp_path: Path) -> None:
    small = {**entry(1.0), "scale": 0.2}
    assert "No run at full size" in history.section([small])
    assert history.load(tmp_path) == []


TINY = comparisons.Sizes(scale=0.01, seconds=1.0, pods=50)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (("1000x20", "bare-send"), {"cpu-1000x20", "p99-1000x20"}),
        (("storm", "burst"), {"storm-cpu", "burst-cpu", "burst-slowest"}),
        (("mtls-1000x20", "mtls-storm", "mtls-storm-go"), {"cpu-mtls-1000x20", "p99-mtls-1000x20", "mtls-storm-cpu"}),
    ],
)
async def test_the_rows_beside_the_bare_loop_tiny(
    names: tuple[str, ...], sides: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = comparisons.BenchSettings(names=names, rounds=1, sizes=TINY, folder=tmp_path)
    assert await runner.run(settings)
    document = json.loads((tmp_path / "report.json").read_text())
    for side in ("bare", "service"):
        assert sides <= document[side].keys()
        assert all(document[side][name][0] > 0 for name in sides if not name.endswith(("cpu", "memory")))
    for name in ("bare-send", "mtls-storm-go"):
        assert (name in document["service"]) == (name in names)
    shown = capsys.readouterr().out
    assert all(figure.title[:20] in shown for row in rows.choose(names) for figure in row.figures)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["calico", "memory-model", "pauses"])
async def test_the_rows_without_one_tiny(name: str, tmp_path: Path) -> None:
    assert await runner.run(comparisons.BenchSettings(names=(name,), rounds=1, sizes=TINY, folder=tmp_path))
    document = json.loads((tmp_path / "report.json").read_text())
    [row] = rows.choose([name])
    assert set(document["service"]) == {figure.name for figure in row.figures}
    # These are too noisy at this size.
    unsure = {"memory-channel-zstd", "memory-channel-plain", "memory-key-raw", "memory-key-calico"}
    assert all(value >= 0 for name, [value] in document["service"].items() if name not in unsure)
