"""The page of architectures shows the table that preflight reads."""

import re

from architecture_table import PAGE, read_table, render_page

RESULTS = {"trained", "refused", "not tried"}


def test_the_page_is_the_one_that_the_table_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(read_table()), "run make architectures"


def test_every_architecture_has_one_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(read_table()["architectures"])


def test_a_result_that_is_not_trained_has_a_reason() -> None:
    for name, entry in read_table()["architectures"].items():
        assert entry["result"] in RESULTS, name
        assert entry["result"] == "trained" or entry["reason"], name
        assert entry["result"] != "refused" or entry["by"], name
