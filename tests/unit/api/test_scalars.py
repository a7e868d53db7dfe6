import pytest

from finetune_api.scalars import parse_quantity


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        (80, 80),
        ("80", 80),
        ("80Gi", 80 << 30),
        ("1.5Ki", 1536),
        ("24G", 24_000_000_000),
        ("0.1k", 100),
        ("2Mi", 2 << 20),
        ("1Ti", 1 << 40),
        ("3P", 3 * 10**15),
        ("1500m", 1),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_quantity_is_what_kubernetes_takes_it_for(written: int | str, bytes_: int) -> None:
    assert parse_quantity(written) == bytes_


@pytest.mark.parametrize("written", ["", "Gi", "-1Gi", "1gi", "1 Gi", "1e3", "1.Gi", ".5", "1mi", "1Ei"])
def test_anything_else_is_not_a_quantity(written: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(written)
