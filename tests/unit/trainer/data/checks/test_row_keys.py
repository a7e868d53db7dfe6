import random
import sys

from finetune_trainer.data.checks.row_keys import SeenRows, row_key
from finetune_trainer.data.rows import DataFormat, Source, TextRow


def make_key(text: str) -> int:
    return row_key(TextRow(text, Source("f", 1), DataFormat.TEXT))


def test_a_repeated_row_is_found_however_many_rows_are_between() -> None:
    keys = [make_key(str(number)) for number in range(200_000)]
    seen = SeenRows()
    assert all(map(seen.add, keys))
    assert not any(map(seen.add, random.Random(3).sample(keys, 1000)))
    assert seen.add(make_key("another"))
    assert (seen.add(0), seen.add(0)) == (True, False)


def test_a_key_takes_as_little_memory_as_a_number_of_its_kind_can() -> None:
    assert sys.getsizeof(make_key("p")) <= 32
