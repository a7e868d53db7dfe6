import random
import sys
import time
from unicodedata import normalize

import pytest

from finetune_trainer.data.checks.row_keys import SeenRows, prompt_key, row_key
from finetune_trainer.data.rows import DataFormat, Source, TextRow


def make_row(text: str) -> TextRow:
    return TextRow(text, Source("f", 1), DataFormat.TEXT)


def make_key(text: str) -> int:
    return row_key(make_row(text))


def test_a_repeated_row_is_found_however_many_rows_are_between() -> None:
    keys = [make_key(str(number)) for number in range(200_000)]
    seen = SeenRows()
    assert all(map(seen.add, keys))
    assert not any(map(seen.add, random.Random(3).sample(keys, 1000)))
    assert seen.add(make_key("another"))
    assert (seen.add(0), seen.add(0)) == (True, False)


def test_a_key_takes_as_little_memory_as_a_number_of_its_kind_can() -> None:
    assert sys.getsizeof(make_key("p")) <= 32


@pytest.mark.parametrize("text", ["Où est l'élève ?", "LÀM THẾ NÀO", "계란", "がパ", "й", "ÅNGSTRÖM", "ị̂"])
def test_composed_and_decomposed_characters_have_the_same_keys(text: str) -> None:
    forms = {normalize("NFC", text), normalize("NFD", text)}
    assert len(forms) == 2
    assert len(set(map(make_key, forms))) == 1
    assert len({prompt_key(make_row(form)) for form in forms}) == 1


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Is 2 even?", "\ufeffIs\u200b 2 \u200deven?\u2060"),
        ("Où est l'élève ?", "Où est l'e\u0301\u200cle\u200b\u0300ve ?"),
        ("Tell me.", "Tell\u00ad me.\u200e"),
        ("I ❤ it", "I ❤\ufe0f it"),
    ],
)
def test_characters_that_nothing_shows_leave_the_keys_as_they_are(text: str, marked: str) -> None:
    assert make_key(text) == make_key(marked)
    assert prompt_key(make_row(text)) == prompt_key(make_row(marked))
    assert len({prompt_key(make_row(one)) for one in ("a b", "ab", "a\u3000b")}) == 2


def test_the_key_of_a_prompt_is_the_same_in_every_version() -> None:
    assert prompt_key(make_row("Où est  l'ÉLÈVE ?")) == 695862771739697720


def test_a_key_leaves_the_row_as_it_is_written() -> None:
    row = make_row("e\u0301\u200b")
    row_key(row)
    assert row.written == '{"text":"e\u0301\u200b"}'.encode()


@pytest.mark.parametrize("marks", ["\u0301\u0323" * 50_000, "\u0301" * 50_000 + "\u0323" * 50_000])
def test_the_keys_of_a_text_of_many_accents_take_linear_time(marks: str) -> None:
    row = make_row(f"a{marks}")
    started = time.process_time()
    assert row_key(row) != prompt_key(row)
    assert time.process_time() - started < 2
