"""What the benchmarks wrote is what the pages say."""

from __future__ import annotations

import json

from benchmarks import dagger
from benchmarks.page import DOCS, page


def test_the_performance_page_is_that_of_the_numbers_beside_it():
    assert (DOCS / "performance.md").read_text() == page()


def test_the_tables_of_the_history_are_those_of_the_numbers_beside_them():
    results, text = json.loads((DOCS / "dagger.json").read_text()), (DOCS / "dagger.md").read_text()
    for table in (dagger.table(results), dagger.cost_table(results["cost"])):
        assert f"\n\n{table}\n\n" in text
