"""The tables in docs/ktae.md match the code."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def variants(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ktae_variants

    yield ktae_variants
    for module in ("ktae_variants", "zipf_batches"):
        sys.modules.pop(module, None)


def test_the_table_of_named_tables_is_up_to_date(variants):
    assert variants.named_tables() in (ROOT / "docs/ktae.md").read_text()


def test_the_table_of_noise_can_be_generated(variants, monkeypatch):
    monkeypatch.setattr(variants, "LABELLINGS", 2)
    monkeypatch.setattr(variants, "SIZES", (8,))
    lines = variants.noise_table("labels permuted", variants.zipf_groups).splitlines()
    assert len(lines) == 5
    paper, _, calibrated = (float(cell.split()[0]) for cell in lines[-1].strip("| ").split(" | ")[1:])
    assert paper > 0.3 > 0.05 > calibrated
