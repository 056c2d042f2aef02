"""docs/performance.md shows what its history contains."""

from loadtest.bench import history, rows
from tests.harness.repository import DOCS

HISTORY = DOCS / "performance"


def test_the_page_shows_the_newest_recorded_figures() -> None:
    _, _, rest = (DOCS / "performance.md").read_text().partition(f"{history.BEGIN}\n")
    assert rest.partition(history.END)[0] == history.section(history.load(HISTORY))


def test_the_history_names_rows_that_exist() -> None:
    known = {figure.name for row in rows.ROWS for figure in row.figures}
    recorded = {name for entry in history.load(HISTORY) for name in entry["figures"]}
    assert recorded <= known


def test_plots_are_small() -> None:
    for drawn in HISTORY.glob("*.svg"):
        assert drawn.stat().st_size < 100_000, drawn.name
