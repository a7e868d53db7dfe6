"""Which prompts are answered before and after the training."""

from finetune_api.evaluation import Prompt
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.rows import ChatRow, DataFormat, Message, PreferenceRow, PromptRow, Row, Source, UnpairedRow
from finetune_trainer.evaluation.questions import LONGEST_QUESTION, list_counted, list_questions

SOURCE = Source("rows.jsonl", 1)


def say(role: str, content: str) -> Message:
    return Message(role=role, content=content)  # type: ignore[typeddict-item]


def chat(*turns: Message, tools: bool = False) -> ChatRow:
    return ChatRow(list(turns), SOURCE, DataFormat.OPENAI, [{"type": "function"}] if tools else None)


def test_the_jobs_own_prompts_are_asked_with_their_system_turn() -> None:
    asked = [Prompt(prompt="Why?"), Prompt(system="Be brief.", prompt="How?")]
    first, second = list_questions(asked, [chat(say("user", "Other"), say("assistant", "No"))])
    assert (first.turns, first.reference) == ([say("user", "Why?")], None)
    assert second.turns == [say("system", "Be brief."), say("user", "How?")]
    assert second.text == "system: Be brief.\n\nuser: How?"


def test_an_empty_list_asks_nothing() -> None:
    assert list_questions([], [chat(say("user", "Other"), say("assistant", "No"))]) == []


def test_without_prompts_three_held_out_rows_are_asked_with_their_answers() -> None:
    rows: list[Row] = [
        chat(say("user", "Call it."), say("assistant", "", ), tools=True),
        chat(say("user", "x" * (LONGEST_QUESTION + 1)), say("assistant", "Too long")),
        PromptRow([say("user", "Reward me")], SOURCE, DataFormat.PROMPT_COMPLETION),
        chat(say("system", "S"), say("user", "One"), say("assistant", "1"), say("user", "Two"), say("assistant", "2")),
        UnpairedRow([say("user", "Bad")], [say("assistant", "!")], False, SOURCE, DataFormat.UNPAIRED),
        UnpairedRow([say("user", "Good")], [say("assistant", "+")], True, SOURCE, DataFormat.UNPAIRED),
        PreferenceRow([say("user", "Pair")], [say("assistant", "a")], [say("assistant", "b")], SOURCE,
                      DataFormat.PREFERENCE),
        chat(say("user", "Fourth"), say("assistant", "4")),
    ]  # fmt: skip
    found = list_questions(None, rows)
    assert [(question.turns[-1]["content"], question.reference) for question in found] == [
        ("Two", "2"), ("Good", "+"), ("Pair", "a"),
    ]  # fmt: skip
    assert len(found[0].turns) == 4


def test_a_prompt_without_a_system_text_gets_the_system_message_of_the_rows() -> None:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/base"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "systemMessage": "Be brief."},
            "output": {"uri": "s3://bucket/out"},
            "evaluation": {"prompts": [{"prompt": "Why?"}, {"prompt": "How?", "system": "Be polite."}]},
        }
    )
    first, second = list_questions(spec.prompts, [])
    assert first.turns == [say("system", "Be brief."), say("user", "Why?")]
    assert second.turns == [say("system", "Be polite."), say("user", "How?")]


def test_one_row_of_each_conversation_is_counted() -> None:
    """With 20 conversations of five parts, an unchanged model was called better or worse in up to a third of runs."""
    more = [say("user", "And then?"), say("assistant", "Yes")]
    rows = [
        chat(say("user", f"Question {at}"), say("assistant", "No"), *(more * parts))
        for at in range(20)
        for parts in range(5)
    ]
    rows.append(chat(say("system", "Be brief."), say("user", "question  3"), say("assistant", "No")))
    found = list_counted(rows, 100, lambda _: True)
    assert [one.turns[0]["content"] for one in found] == [f"Question {at}" for at in range(20)]
    assert all(one.is_counted for one in found)
    assert len(list_counted(rows, 7, lambda _: True)) == 7
