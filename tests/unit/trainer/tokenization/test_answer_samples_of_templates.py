"""Pairs through every chat template that ships with TRL: what the library would tokenise, divided where it must be."""

import re
from typing import Any

import pytest
from trl_templates import EACH_TEMPLATE, as_transformers_takes_it, shows_no_tool_calls

from finetune_trainer.data.rows import BadRow, DataFormat, Message, PreferenceRow, PromptRow, Source, UnpairedRow
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair, EncodedPrompt

SOURCE = Source("rows.jsonl", 1)
ONE: list[Message] = [{"role": "user", "content": "What is it?"}]
THREE: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Earlier answer."},
    {"role": "user", "content": "Two?"},
]
ANSWERS = [("A fox.", "A dog, \u65e5\u672c \U0001f98a."), ("  lines\nand lines \n", "assistant"), ("<b>x</b>", "<")]


def said(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_prompt_and_answer_are_the_ids_of_apply_chat_template(
    name: str, shipped_labeler: Any, shipped_tokenizer: Any
) -> None:
    labeler, tokenizer = shipped_labeler(name), shipped_tokenizer(name)
    stop = re.compile(f"(?:{'|'.join(map(re.escape, labeler.special_tokens))})+$")
    for prompt in (ONE, THREE):
        for chosen, rejected in ANSWERS:
            row = PreferenceRow(prompt, said(chosen), said(rejected), SOURCE, DataFormat.PREFERENCE)
            result = labeler.encode(row, "DPO", 100_000)
            assert not isinstance(result, BadRow), result.detail
            (pair,) = result
            assert isinstance(pair, EncodedPair)
            asked = tokenizer.apply_chat_template(
                as_transformers_takes_it(name, labeler, prompt), add_generation_prompt=True, return_dict=False
            )
            assert asked[: len(pair.prompt_ids)] == pair.prompt_ids
            opened = tokenizer.decode(asked[len(pair.prompt_ids) :])
            assert not opened or "?" not in opened  # a mark that the generation prompt opens, never the question
            for answer, ids in ((chosen, pair.chosen_ids), (rejected, pair.rejected_ids)):
                conversation = as_transformers_takes_it(name, labeler, [*prompt, *said(answer)])
                whole = tokenizer.apply_chat_template(conversation, return_dict=False)
                together = pair.prompt_ids + ids
                if name == "glm4moe":  # the only template that ends no answer, so that an end is added
                    assert together == [*whole, tokenizer.eos_token_id]
                else:
                    assert together == whole[: len(together)]
                    assert re.fullmatch(r"\s*(<eos>)?", tokenizer.decode(whole[len(together) :]))
                text = tokenizer.decode(ids)
                assert stop.sub("", text) != text
                assert stop.sub("", text).rstrip().endswith(answer.strip())
                assert "?" not in text
            assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids).count("<bos>") <= 1


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_a_judged_answer_and_a_prompt_are_divided_like_a_pair(name: str, shipped_labeler: Any) -> None:
    labeler = shipped_labeler(name)
    pair_row = PreferenceRow(THREE, said("A fox."), said("A dog."), SOURCE, DataFormat.PREFERENCE)
    judged_row = UnpairedRow(THREE, said("A fox."), True, SOURCE, DataFormat.UNPAIRED)
    prompt_row = PromptRow(THREE, SOURCE, DataFormat.OPENAI)
    results = [labeler.encode(row, "KTO", 100_000) for row in (pair_row, judged_row, prompt_row)]
    (pair,), (judged,), (prompt,) = results  # type: ignore[misc]  # a BadRow does not unpack
    assert isinstance(pair, EncodedPair)
    assert isinstance(judged, EncodedLabelled)
    assert isinstance(prompt, EncodedPrompt)
    assert (judged.prompt_ids, judged.completion_ids) == (pair.prompt_ids, pair.chosen_ids)
    assert prompt.prompt_ids == labeler.render_prompt(THREE)[1]


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_a_prompt_that_is_too_long_is_cut_by_whole_exchanges(name: str, shipped_labeler: Any) -> None:
    labeler = shipped_labeler(name)
    long = [*THREE[:3], *THREE[1:3] * 3, THREE[3]]
    whole, kept = (
        labeler.encode(PreferenceRow(prompt, said("A"), said("B"), SOURCE, DataFormat.PREFERENCE), "DPO", 100_000)
        for prompt in (long, [THREE[0], *long[-5:]])
    )
    (pair,), (shorter,) = whole, kept  # type: ignore[misc]  # a BadRow does not unpack
    assert isinstance(pair, EncodedPair)
    assert isinstance(shorter, EncodedPair)
    row = PreferenceRow(long, said("A"), said("B"), SOURCE, DataFormat.PREFERENCE)
    result = labeler.encode(row, "DPO", shorter.length + 1)
    assert not isinstance(result, BadRow), result.detail
    (cut,) = result
    assert isinstance(cut, EncodedPair)
    assert (cut.prompt_ids, cut.chosen_ids, cut.rejected_ids) == (
        shorter.prompt_ids,
        pair.chosen_ids,
        pair.rejected_ids,
    )


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_the_stop_of_an_answer_is_what_its_answers_end_with(name: str, shipped_labeler: Any) -> None:
    labeler = shipped_labeler(name)
    row = UnpairedRow(ONE, said("A fox."), True, SOURCE, DataFormat.UNPAIRED)
    (sample,) = labeler.encode(row, "KTO", 100_000)  # type: ignore[misc]  # a BadRow does not unpack
    assert isinstance(sample, EncodedLabelled)
    stops = labeler.stop_ids()
    assert sample.completion_ids[-len(stops) :] == stops


@pytest.mark.parametrize("name", EACH_TEMPLATE)
def test_a_call_of_a_tool_may_be_the_better_answer(name: str, shipped_labeler: Any) -> None:
    labeler = shipped_labeler(name)
    call: Any = {"type": "function", "id": "call00001", "function": {"name": "look_up", "arguments": {"what": "fox"}}}
    tool = {"name": "look_up", "description": "Looks up.", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": tool}]
    chosen = [Message(role="assistant", content="", tool_calls=[call])]
    row = PreferenceRow(ONE, chosen, said("No idea."), SOURCE, DataFormat.PREFERENCE, tools)
    result = labeler.encode(row, "DPO", 100_000)
    is_refused = shows_no_tool_calls(name)
    if isinstance(result, BadRow):
        assert result.code == "TEMPLATE_ERROR"
        assert re.search("tool calls|the tools", result.detail)
        assert is_refused, result.detail
        return
    assert not is_refused
    (pair,) = result
    assert isinstance(pair, EncodedPair)
    prompt, better, worse = (
        labeler.tokenizer.decode(ids, skip_special_tokens=False)
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    )
    assert "look_up" in prompt
    assert "What is it?" in prompt
    assert "look_up" in better
    assert "fox" in better
    assert "What is it?" not in better
    assert "No idea." in worse
    assert "look_up" not in worse
