"""The committed parity table: all architectures, within the bound, as the page shows it."""

from experiments.parity import table
from experiments.parity.measure import Parity
from experiments.parity.variants import VARIANTS
from snake_jax.models.families import FAMILIES

BOUND = 1e-4


def rows():
    return [Parity(**row) for row in table.read()["rows"]]


def test_every_variant_and_every_architecture_has_a_row():
    assert [row.variant for row in rows()] == list(VARIANTS)
    assert {row.model_type for row in rows()} == set(FAMILIES)


def test_every_architecture_is_within_the_bound():
    for row in rows():
        assert max(row.logits, row.saved, row.adapted, row.int8, row.nf4) < BOUND, row.variant
        assert row.generated == row.asked == 20, row.variant


def test_the_page_shows_what_was_measured():
    page = table.PAGE.read_text()
    assert table.filled(page, table.read()) == page
    # A changed number would be seen.
    changed = table.read()
    changed["rows"][0]["logits"] = 0.5
    assert table.filled(page, changed) != page
