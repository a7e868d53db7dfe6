from datetime import UTC, datetime

import pytest
from rich.cells import cell_len

from finetune_api.names import Phase
from finetune_client.figures import duration, number
from kubectl_finetune.display.table import bar, between, columns, fields, moment, size, sparkline


def test_columns_are_padded_to_the_widest_cell_and_states_have_a_colour() -> None:
    table = columns(("NAME", "PHASE", "WHY"), [("a-long-name", "Failed", "x"), ("b", "Queued", "")], 2)
    assert table.plain == "  NAME          PHASE    WHY\n  a-long-name   Failed   x\n  b             Queued"
    assert [span.style for span in table.spans] == ["red", "yellow"]
    assert Phase.FAILED.value == "Failed"


def test_a_column_of_names_has_no_colours_of_states() -> None:
    table = columns(("TYPE", "STATUS", "REASON"), [("Failed", "False", "Queued")], uncoloured=[0])
    assert [(table.plain[span.start : span.end].strip(), span.style) for span in table.spans] == [("Queued", "yellow")]


def test_pairs_without_a_value_are_left_out_and_names_have_the_same_width() -> None:
    text = fields([("Name", "one"), ("Empty", ""), ("Unknown", "-"), ("Objective", "Chat\nnow")], 2)
    assert text.plain == "  Name:        one\n  Objective:   Chat\\nnow"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(59.6), "1m00s"), (duration(42), "42s"), (duration(3725), "1h02m"), (duration(None), "-"),
        (duration(200_000), "2d7h"), (duration(60), "1m00s"), (duration(3600), "1h00m"), (duration(86400), "1d0h"),
        (duration(-5), "0s"), (size(1536), "1.5 KiB"), (size(12), "12 B"), (size(1000 * 1024**4), "1000.0 TiB"),
        (size(1024), "1.0 KiB"), (size(None), "-"), (number(None), "-"), (number(12345), "12,345"),
        (number(1.234567), "1.2346"), (between(None, datetime(2026, 1, 1, tzinfo=UTC)), "-"), (moment(None), "-"),
        (moment(datetime(2026, 3, 1, 2, 3, 4, tzinfo=UTC)), "2026-03-01 02:03:04Z"),
        (number(123456.7), "123,460"), (number(-2e6), "-2,000,000"), (number(99999.9), "100,000"),
        (number(99999.0), "99999"), (number(1e300), "1e+300"),
        (sparkline([]), ""), (sparkline([1, 1]), "▁▁"), (sparkline([9, 2, 0, 1], 3), "█▁▅"),
        (sparkline(list(range(50))), sparkline(list(range(10, 50)))),
        (bar(150, 200), "█" * 200), (bar(-9, 200), "░" * 200), (bar(99, 200), "█" * 198 + "░" * 2),
        (bar(50), "█" * 15 + "░" * 15),
    ],
)  # fmt: skip
def test_figures_are_short(shown: str, expected: str) -> None:
    assert shown == expected


def test_columns_are_aligned_by_the_cells_of_a_terminal_of_which_some_characters_take_two() -> None:
    lines = columns(("URI", "ROWS"), [("s3://データ/行", "7"), ("s3://data/rows", "8")]).plain.splitlines()
    assert {cell_len(line[: -len(last)]) for line, last in zip(lines, ("ROWS", "7", "8"), strict=True)} == {17}
