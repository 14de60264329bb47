"""What the benchmarks wrote is what the pages say."""

from __future__ import annotations

from benchmarks.page import DOCS, page


def test_the_performance_page_is_that_of_the_numbers_beside_it():
    assert (DOCS / "performance.md").read_text() == page()
