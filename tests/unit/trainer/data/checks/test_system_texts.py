"""The system text that almost all training rows have."""

from finetune_trainer.data.checks.system_texts import SystemTexts, find_shared
from finetune_trainer.data.rows import ChatRow, DataFormat, Message, Source


def count(rows: int, system: str | None) -> SystemTexts:
    found = SystemTexts()
    turns: list[Message] = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    for number in range(rows):
        found.add(ChatRow(start + turns, Source("rows.jsonl", number), DataFormat.OPENAI))
    return found


def test_a_text_is_shared_by_the_rows_that_are_trained_and_not_by_those_that_were_read() -> None:
    """A small source that the blend repeats has as many trained rows as a large one."""
    large, small = count(95, "Be brief."), count(5, None)
    assert find_shared([(large, 95), (small, 5)]) == {"share": 0.95, "begins": "Be brief."}
    assert find_shared([(large, 95), (small, 95)]) is None
    assert find_shared([(large, 0), (small, 5)]) is None


def test_rows_without_a_system_text_share_none() -> None:
    assert find_shared([(count(3, None), 3)]) is None
    assert find_shared([]) is None
