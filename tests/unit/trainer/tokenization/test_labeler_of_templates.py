"""Every chat template that ships with TRL, against transformers for text and ids, and against its training twin."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from trl_templates import EACH_TEMPLATE, TEMPLATES, TWINS, as_transformers_takes_it, shows_no_tool_calls

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, NamedPath, Source
from finetune_trainer.tokenization.labeler import UNTRAINED, Encoded, Labeler

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def turns(*texts: str, system: str | None = None) -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]
    return messages


CONVERSATIONS: dict[str, list[Message]] = {
    "one answer": turns("What is it?", "It is a fox."),
    "two answers": turns("One?", "First answer.", "Two?", "  Second answer\nin lines \n", system="Be brief."),
    "the prompt repeated in the answer": turns("assistant", "assistant", "model\n", "user"),
    "not ascii": turns("Où est 🦊?", "Là, 日本語 🦊🦊"),
    "reasoning": [
        *turns("One?"),
        {"role": "assistant", "content": "First.", "reasoning_content": "Thought one."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Second.", "reasoning_content": "Thought two."},
    ],
    "reasoning in the text": turns(
        "One?", "<think>\nT1\n</think>\n\nFirst.", "Two?", "<think>\nT2\n</think>\n\nSecond."
    ),
    "an answer that opens like a mark": turns("One?", "<b>bold</b>", "Two?", "<"),
}


def row(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> ChatRow:
    return ChatRow(messages, Source("rows.jsonl", 1), DataFormat.OPENAI, tools)


def encode(labeler: Labeler, messages: list[Message], objective: Any = "Chat") -> list[Encoded]:
    result = labeler.encode(row(messages), objective, 100_000)
    assert not isinstance(result, BadRow), result.detail
    return [sample for sample in result if isinstance(sample, Encoded)]


def test_the_templates_are_there() -> None:
    assert len(TEMPLATES) > 60
    assert len(TWINS) > 25


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_text_and_ids_are_those_of_apply_chat_template(name: str, shipped_labeler: Any, shipped_tokenizer: Any) -> None:
    labeler, tokenizer = shipped_labeler(name), shipped_tokenizer(name)
    for messages in CONVERSATIONS.values():
        given = as_transformers_takes_it(name, labeler, messages)
        prompt = given[:-1]
        fitted, _ = labeler.renderer(None).fit_system(messages)
        text, ids = labeler.render_prompt(fitted[:-1])
        assert text == tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        assert ids == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(given, return_dict=False)
        last = encode(labeler, messages)[-1].input_ids
        if name == "glm4moe":  # the only template that ends no answer, so that an end is added
            whole = [*whole, tokenizer.eos_token_id]
        assert last == whole


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_every_answer_and_its_stop_is_trained_and_nothing_else(name: str, shipped_labeler: Any) -> None:
    labeler = shipped_labeler(name)
    stops = re.compile(f"(?:{'|'.join(map(re.escape, labeler.special_tokens))})+$")
    for messages in CONVERSATIONS.values():
        answers = [message for message in messages if message["role"] == "assistant"]
        trained = [text for text, is_trained in labeler.preview(row(messages)) if is_trained]
        assert len(trained) == len(answers)
        for message, text in zip(answers, trained, strict=True):
            said = message["content"].rpartition("</think>")[2].strip()
            without_stop = stops.sub("", text)
            assert without_stop != text
            assert without_stop.rstrip().endswith(said)
            assert not any(
                other["content"] in text
                for other in messages
                if other["role"] != "assistant" and "?" in other["content"]
            )
        last_only = encode(labeler, messages, "Instruction")
        assert len(last_only) == 1
        labels = [label for label in last_only[0].labels if label != UNTRAINED]
        assert labeler.tokenizer.decode(labels, skip_special_tokens=False) == trained[-1]


@pytest.mark.parametrize("name", TWINS)
def test_labels_agree_with_the_mask_of_the_training_twin(
    name: str, shipped_labeler: Any, shipped_tokenizer: Any
) -> None:
    """The twin may train more only where nothing is learnt: what the prompt already says, and what follows the stop."""
    labeler, tokenizer = shipped_labeler(name), shipped_tokenizer(name)
    header = labeler.render_prompt(turns("What is it?"))[0].rpartition("What is it?")[2]
    compared = 0
    for messages in CONVERSATIONS.values():
        samples = encode(labeler, messages)
        if len(samples) > 1:
            continue  # the template shows earlier answers otherwise than at inference; the twin trains them like that
        twin = tokenizer.apply_chat_template(
            as_transformers_takes_it(name, labeler, messages), return_dict=True, return_assistant_tokens_mask=True
        )
        assert samples[0].input_ids == twin["input_ids"]
        ours = [label != UNTRAINED for label in samples[0].labels]
        theirs = [bool(bit) for bit in twin["assistant_masks"]]
        assert not any(our and not their for our, their in zip(ours, theirs, strict=True))
        for extra in _runs([their and not our for our, their in zip(ours, theirs, strict=True)]):
            text = tokenizer.decode(twin["input_ids"][slice(*extra)])
            assert text.strip() in header or re.fullmatch(r"\s*(<eos>)?", text), text
        compared += 1
    assert compared >= 1


def _runs(bits: list[bool]) -> list[tuple[int, int]]:
    starts = [n for n, bit in enumerate(bits) if bit and not (n and bits[n - 1])]
    ends = [n + 1 for n, bit in enumerate(bits) if bit and not (n + 1 < len(bits) and bits[n + 1])]
    return list(zip(starts, ends, strict=True))


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_a_tool_call_is_trained_or_the_row_is_refused(name: str, shipped_labeler: Any) -> None:
    labeler = shipped_labeler(name)
    messages: list[Message] = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call00001",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
                }
            ],
        },
        {"role": "tool", "content": "sunny 12", "tool_call_id": "call00001", "name": "get_weather"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    result = labeler.encode(row(messages, TOOLS), "Chat", 100_000)
    if isinstance(result, BadRow):
        assert result.code == "TEMPLATE_ERROR"
        assert shows_no_tool_calls(name), result.detail
        return
    assert not shows_no_tool_calls(name)
    trained = [text for text, is_trained in labeler.preview(row(messages, TOOLS)) if is_trained]
    assert len(trained) == 2
    assert "get_weather" in trained[0]
    assert "Oslo" in trained[0]
    assert "It is sunny." in trained[1]
    assert "sunny 12" not in "".join(trained)


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_all_of_several_calls_of_one_tool_are_trained_or_the_row_is_refused(name: str, shipped_labeler: Any) -> None:
    calls = [
        {"id": f"call{n:05d}", "type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        for n, city in enumerate(("Oslo", "Rome"))
    ]
    messages: Any = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    labeler = shipped_labeler(name)
    result = labeler.encode(row(messages, TOOLS), "Chat", 100_000)
    if isinstance(result, BadRow):
        assert result.code is RejectCode.TEMPLATE_ERROR
        return
    (trained,) = [text for text, is_trained in labeler.preview(row(messages, TOOLS)) if is_trained]
    assert "Oslo" in trained
    assert "Rome" in trained
    read = "".join(text for text, _ in labeler.preview(row(messages, TOOLS)))
    assert "Weather of a city." in read


SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Which one?"},
        {"from": "gpt", "value": "The first."},
        {"from": "human", "value": "And then?"},
        {"from": "gpt", "value": "The second."},
    ]
}
ALPACA = {"instruction": "Translate?", "input": "a fox", "output": "ein Fuchs"}


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_sharegpt_and_alpaca_rows_are_trained_on_their_answers(name: str, shipped_labeler: Any, tmp_path: Path) -> None:
    labeler = shipped_labeler(name)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, (SHAREGPT, ALPACA))))
    shared, alpaca = check_rows([NamedPath(path, "rows.jsonl")], summary=Summary(), labeler=labeler)
    assert isinstance(shared, ChatRow)
    assert isinstance(alpaca, ChatRow)
    for checked, answers in ((shared, ("The first.", "The second.")), (alpaca, ("ein Fuchs",))):
        trained = [text for text, is_trained in labeler.preview(checked) if is_trained]
        assert len(trained) == len(answers)
        for text, answer in zip(trained, answers, strict=True):
            assert answer in text
            assert not any(said in text for said in ("?", "Be brief", "a fox"))
        assert sum(sample.trained for sample in checked.encodings) > 0
        read = "".join(text for text, _ in labeler.preview(checked))
        assert read.count("<bos>") <= len(checked.encodings)
        assert all(said["content"] in read for said in checked.messages)


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_a_question_after_a_tools_result_is_context_or_refused_with_the_template(
    name: str, shipped_labeler: Any
) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages: Any = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "9 degrees"},
        {"role": "user", "content": "Is that cold?"},
        {"role": "assistant", "content": "Chilly."},
    ]
    labeler = shipped_labeler(name)
    result = labeler.encode(row(messages, TOOLS), "Chat", 100_000)
    if isinstance(result, BadRow):
        assert result.code is RejectCode.TEMPLATE_ERROR
        return
    trained = ""
    for sample in result:
        ids = [label for label in sample.labels if label != UNTRAINED]
        trained += labeler.tokenizer.decode(ids, skip_special_tokens=False)
    assert "Chilly." in trained
    assert "Rome" in trained
    assert "9 degrees" not in trained
    assert "cold" not in trained
