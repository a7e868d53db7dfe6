import pytest

from finetune_trainer.data.lengths import Lengths


def test_the_advice_is_the_99th_percentile_up_to_a_multiple_of_64() -> None:
    lengths = Lengths()
    for tokens in [*range(1, 199), 5000]:
        lengths.add(tokens)
    assert lengths.to_dict() == {"p50": 100, "p90": 180, "p99": 198, "max": 5000, "advisedMaxLength": 256}
    assert lengths.to_dict()["advisedMaxLength"] == 256
    assert sum(rows for tokens, rows in lengths.rows.items() if tokens <= lengths.percentile(99)) >= 0.99 * 199


def test_a_length_that_is_a_multiple_already_is_kept() -> None:
    lengths = Lengths()
    lengths.add(128)
    assert (lengths.percentile(99), lengths.to_dict()["advisedMaxLength"], lengths.longest) == (128, 128, 128)


def test_no_rows_have_no_length() -> None:
    assert set(Lengths().to_dict().values()) == {0}


def test_lengths_are_counted_in_classes_of_one_width_and_one_for_the_rest() -> None:
    lengths = Lengths()
    for tokens in [*range(1, 100), *range(1, 100), 5000]:
        lengths.add(tokens)
    assert lengths.histogram() == (
        (10, 20), (20, 20), (30, 20), (40, 20), (50, 20), (60, 20), (70, 20), (80, 20), (90, 20), (100, 18), (5000, 1),
    )  # fmt: skip
    assert Lengths().histogram() == ()


@pytest.mark.parametrize(
    ("longest", "width", "classes"), [(12, 1, 12), (24, 2, 12), (25, 5, 5), (60, 5, 12), (61, 10, 7), (120, 10, 12)]
)
def test_classes_are_as_wide_as_twelve_of_them_need(longest: int, width: int, classes: int) -> None:
    lengths = Lengths()
    for _ in range(100):
        lengths.add(longest)
    histogram = lengths.histogram()
    assert [upper for upper, _ in histogram] == [width * number for number in range(1, classes + 1)]
    assert histogram[-1] == (width * classes, 100)
