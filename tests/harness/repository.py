"""Where things are in this repository, for tests that read its files."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GOLDEN_CORPUS = ROOT / "tests" / "golden" / "corpus"
GOLDEN_RELEASES = ROOT / "tests" / "golden" / "releases"
GOLDEN_FELIX = ROOT / "tests" / "golden" / "felix"
WIRE = ROOT / "tests" / "wire"
DATA = Path(__file__).parent / "data"
