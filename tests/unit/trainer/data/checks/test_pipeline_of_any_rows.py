"""Rows of any shape, under every objective: no crash, and each row is accepted or refused with a code."""

from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_rules import assert_rules, line_of

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import KNOWN_COLUMNS
from finetune_trainer.data.rows import DataFormat, Message, Objective, Rejected

TURN_KEYS = ("role", "from", "speaker", "content", "value", "text", "tool_calls", "function_call", "name", "weight")
HOSTILE = ("__class__", "", "\u2028", "a" * 500)
names = st.sampled_from([*sorted(KNOWN_COLUMNS), *TURN_KEYS, *HOSTILE])
PLAIN = ("user", "assistant", "human", "gpt", "tool", "system", "", " ", "a", "b", "true", "0")
NESTED = ("[{", "[{}]", "[" * 500, '[{"role": "user", "content": "q"}]')
TRANSCRIPTS = ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman:\n\nAssistant:")
words = st.sampled_from([*PLAIN, *NESTED, *TRANSCRIPTS, "\ud800"])
leaves = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | words | st.text(max_size=3)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": words},
    optional={"tool_calls": leaves, "tool_call_id": words, "weight": leaves, "reasoning": leaves},
)
values = st.recursive(
    leaves | turns | st.lists(turns, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
rows = st.dictionaries(names, values, max_size=5)
unchecked = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@given(
    some=st.lists(rows, min_size=1, max_size=3),
    objective=st.sampled_from([*get_args(Objective), None]),
    asked=st.sampled_from(["Auto", *DataFormat]),
)
@unchecked
def test_any_row_is_taken_or_refused_with_a_code(
    check: Any, some: list[dict[str, Any]], objective: str | None, asked: str
) -> None:
    results, summary = check(*some, objective=objective, format=asked)
    lines = [line_of(row) for row in results]
    assert set(lines) == set(range(1, len(some) + 1))
    assert objective == "KTO" or len(lines) == len(some)
    assert_rules(results, summary, objective)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """A prompt: an odd number of turns, with or without a system text."""
    said = draw(st.lists(texts, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2))
    system = [Message(role="system", content=draw(texts))] if draw(st.booleans()) else []
    turns = [Message(role="assistant" if number % 2 else "user", content=text) for number, text in enumerate(said)]
    return system + turns


@given(prompt=conversations(), chosen=texts, rejected=texts)
@unchecked
def test_whole_conversations_and_answers_apart_are_the_same_pair(
    check: Any, prompt: list[Message], chosen: str, rejected: str
) -> None:
    better, worse = Message(role="assistant", content=chosen), Message(role="assistant", content=rejected)
    whole = {"chosen": [*prompt, better], "rejected": [*prompt, worse]}
    apart = {"prompt": prompt, "chosen": [better], "rejected": [worse]}
    openai = {
        "input": {"messages": prompt},
        "preferred_output": [better],
        "non_preferred_output": [worse],
    }
    results, _ = check(whole, apart, openai, objective="DPO")
    codes = [row.code if isinstance(row, Rejected) else None for row in results]
    if chosen.strip() == rejected.strip():
        assert codes == [RejectCode.SAME_PAIR] * 3
    else:
        assert codes == [None, RejectCode.DUPLICATE, RejectCode.DUPLICATE]
        assert results[0].content() == {"prompt": prompt, "chosen": [better], "rejected": [worse]}
