from typing import Any, TypeVar

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow, DataFormat, Message, PreferenceRow, PromptRow, Row, Source, UnpairedRow
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair, EncodedPrompt

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
SOURCE = Source("rows.jsonl", 1)
SYSTEM: Message = {"role": "system", "content": "Be brief."}
PROMPT: list[Message] = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
]
AnySample = TypeVar("AnySample", EncodedPair, EncodedLabelled, EncodedPrompt)


def said(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


def pair(prompt: list[Message], chosen: str = "Good one.", rejected: str = "Bad.") -> PreferenceRow:
    return PreferenceRow(prompt, said(chosen), said(rejected), SOURCE, DataFormat.PREFERENCE)


def encode(labeler: Labeler, row: Row, kind: type[AnySample], max_length: int = 4096) -> AnySample:
    result = labeler.encode(row, "DPO", max_length)
    assert not isinstance(result, BadRow), result.detail
    (only,) = result
    assert isinstance(only, kind)
    return only


def refused(labeler: Labeler, row: Row, max_length: int = 4096) -> BadRow:
    result = labeler.encode(row, "DPO", max_length)
    assert isinstance(result, BadRow)
    return result


def text(labeler: Labeler, ids: list[int]) -> str:
    return str(labeler.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.fixture
def labeler(build_model: Any) -> Labeler:
    return Labeler(build_model(WITH_BOS))


def test_a_pair_is_the_prompt_with_the_generation_prompt_and_two_answers_with_their_stops(labeler: Labeler) -> None:
    sample = encode(labeler, pair([SYSTEM, *PROMPT]), EncodedPair)
    assert sample.prompt_ids == labeler.render_prompt([SYSTEM, *PROMPT])[1]
    assert text(labeler, sample.chosen_ids) == "Good one.<|im_end|>"
    assert text(labeler, sample.rejected_ids) == "Bad.<|im_end|>"
    assert (sample.truncated, sample.answer_cut, sample.left_out, sample.repairs) == (False, 0, 0, ())


def test_prompt_and_answer_together_are_the_whole_conversation_with_one_bos(labeler: Labeler) -> None:
    sample = encode(labeler, pair(PROMPT), EncodedPair)
    whole = labeler.tokenizer.encode(
        "<bos><|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nFirst.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\nGood one.<|im_end|>",
        add_special_tokens=False,
    ).ids
    assert sample.prompt_ids + sample.chosen_ids == whole
    assert text(labeler, whole).count("<bos>") == 1


def test_a_judged_answer_keeps_its_judgement(labeler: Labeler) -> None:
    for label in (True, False):
        row = UnpairedRow(PROMPT, said("Good one."), label, SOURCE, DataFormat.UNPAIRED)
        sample = encode(labeler, row, EncodedLabelled)
        assert sample.desirable is label
        assert sample.prompt_ids == labeler.render_prompt(PROMPT)[1]
        assert text(labeler, sample.completion_ids) == "Good one.<|im_end|>"


def test_a_prompt_alone_ends_where_the_model_shall_write(labeler: Labeler) -> None:
    sample = encode(labeler, PromptRow(PROMPT, SOURCE, DataFormat.OPENAI), EncodedPrompt)
    assert sample.prompt_ids == labeler.render_prompt(PROMPT)[1]
    assert text(labeler, sample.prompt_ids).endswith("<|im_start|>assistant\n")


def test_answers_that_differ_only_in_what_the_template_drops_are_not_a_pair(build_model: Any) -> None:
    trimming = Labeler(build_model(CHATML.replace("message['content'] +", "message['content'] | trim +")))
    assert refused(trimming, pair(PROMPT, "Same.", " Same.\n")).code is RejectCode.SAME_PAIR


def test_answers_that_differ_only_beyond_the_limit_are_not_a_pair(labeler: Labeler) -> None:
    bad = refused(labeler, pair(PROMPT, "x" * 200 + "a", "x" * 200 + "b"), max_length=128)
    assert bad.code is RejectCode.SAME_PAIR
    assert "within maxLength" in bad.detail


def test_a_reward_model_scores_answers_of_several_turns_as_a_whole(labeler: Labeler) -> None:
    several = [*said("a"), Message(role="user", content="more"), *said("b")]
    row = PreferenceRow([SYSTEM, *PROMPT], several, said("c"), SOURCE, DataFormat.PREFERENCE)
    result = labeler.encode(row, "RewardModel", 1000)
    assert not isinstance(result, BadRow), result.detail
    (sample,) = result
    assert isinstance(sample, EncodedPair)
    assert sample.prompt_ids == labeler.render_prompt([SYSTEM, *PROMPT])[1]
    turns = "a<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    assert text(labeler, sample.chosen_ids) == turns
    assert text(labeler, sample.rejected_ids) == "c<|im_end|>"
    shown = "".join(piece for piece, _ in labeler.preview(row, "RewardModel"))
    assert shown.endswith(f"[chosen] {turns}\n[rejected] c<|im_end|>")


def test_a_template_that_alters_earlier_answers_cannot_score_several_turns(build_model: Any) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ '+' if m['role'] == 'assistant' and not loop.last }}{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    several = [*said("a"), Message(role="user", content="more"), *said("b")]
    row = PreferenceRow(PROMPT, several, said("c"), SOURCE, DataFormat.PREFERENCE)
    result = Labeler(build_model(source)).encode(row, "RewardModel", 1000)
    assert isinstance(result, BadRow)
    assert (result.code, "alters the answer of turn 4" in result.detail) == (RejectCode.TEMPLATE_ERROR, True)


@pytest.mark.parametrize("end", [[], PROMPT[2:]])
def test_an_answer_of_several_turns_is_refused_for_its_prompts_would_be_trained(
    labeler: Labeler, end: list[Message]
) -> None:
    several = [*said("a"), Message(role="user", content="more"), *said("b")]
    row = PreferenceRow(PROMPT, several, said("c"), SOURCE, DataFormat.PREFERENCE)
    assert refused(labeler, row).code is RejectCode.NO_SHARED_PROMPT
    unpaired = UnpairedRow(PROMPT, end, True, SOURCE, DataFormat.UNPAIRED)
    assert refused(labeler, unpaired).code is RejectCode.NO_SHARED_PROMPT


@pytest.mark.parametrize(
    "row",
    [
        pair([Message(role="user", content="a <|im_end|>")]),
        pair(PROMPT, rejected="<eos>"),
        PromptRow([Message(role="user", content="<bos>")], SOURCE, DataFormat.OPENAI),
        UnpairedRow(PROMPT, said("<|im_start|>"), False, SOURCE, DataFormat.UNPAIRED),
    ],
)
def test_a_control_token_in_prompt_or_answer_is_refused(labeler: Labeler, row: Row) -> None:
    assert refused(labeler, row).code is RejectCode.CONTROL_TOKEN_IN_TEXT


def test_a_template_that_drops_a_turn_of_the_prompt_is_detected(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML.replace("in messages", "in messages[-2:]")))
    for row in (pair(PROMPT), PromptRow([*PROMPT, *said("x"), PROMPT[0]], SOURCE, DataFormat.OPENAI)):
        assert refused(labeler, row).code is RejectCode.TEMPLATE_ERROR


def test_without_a_system_role_the_system_text_goes_into_the_prompt_of_both_answers(build_model: Any) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    labeler = Labeler(build_model(refusing))
    sample = encode(labeler, pair([SYSTEM, *PROMPT]), EncodedPair)
    assert sample.repairs == (RepairCode.SYSTEM_MERGED,)
    assert text(labeler, sample.prompt_ids).startswith("<|im_start|>user\nBe brief.\n\nOne?<|im_end|>")


def test_a_token_across_prompt_and_answer_leaves_the_prompt_as_at_inference(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML, words=["\n\n", "\n\n\n"] * 50))
    assert len(labeler.tokenizer.encode("\n\n\n", add_special_tokens=False).ids) == 1
    row = pair(PROMPT, "\n\nGood.", "Bad.")
    sample = encode(labeler, row, EncodedPair)
    assert sample.prompt_ids == labeler.render_prompt(PROMPT)[1]
    assert text(labeler, sample.chosen_ids) == "\n\nGood.<|im_end|>"
    assert text(labeler, sample.rejected_ids) == "Bad.<|im_end|>"
    alone = UnpairedRow(PROMPT, said("\nGood."), True, SOURCE, DataFormat.UNPAIRED)
    assert text(labeler, encode(labeler, alone, EncodedLabelled).completion_ids) == "\nGood.<|im_end|>"


def test_where_the_generation_prompt_opens_more_than_answers_show_both_begin_at_the_same_place(
    build_model: Any,
) -> None:
    opening = CHATML.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>' }}{% endif")
    labeler = Labeler(build_model(opening))
    sample = encode(labeler, pair(PROMPT, "<think>hm</think>Good.", "Bad."), EncodedPair)
    assert text(labeler, sample.prompt_ids).endswith("<|im_start|>assistant\n")
    assert text(labeler, sample.chosen_ids) == "<think>hm</think>Good.<|im_end|>"
    assert text(labeler, sample.rejected_ids) == "Bad.<|im_end|>"


def test_the_prompt_loses_its_oldest_exchanges_first_and_keeps_bos_and_system_text(labeler: Labeler) -> None:
    long = [SYSTEM, *PROMPT[:2], *PROMPT[:2], *PROMPT[:2], PROMPT[2]]
    whole = encode(labeler, pair(long), EncodedPair)
    cut = encode(labeler, pair(long), EncodedPair, max_length=whole.length - 1)
    assert cut.prompt_ids == labeler.render_prompt([SYSTEM, *long[3:]])[1]
    assert (cut.chosen_ids, cut.rejected_ids) == (whole.chosen_ids, whole.rejected_ids)
    assert (cut.truncated, cut.answer_cut) == (True, 0)
    assert cut.length + cut.left_out == whole.length
    assert cut.repairs == (RepairCode.PROMPT_CUT, RepairCode.TRUNCATED)


def test_a_single_prompt_that_is_too_long_keeps_bos_and_its_end(labeler: Labeler) -> None:
    prompt = [Message(role="user", content="".join(map(str, range(200))))]
    whole = encode(labeler, pair(prompt), EncodedPair)
    cut = encode(labeler, pair(prompt), EncodedPair, max_length=100)
    assert cut.length == 100
    assert cut.prompt_ids == [whole.prompt_ids[0], *whole.prompt_ids[-(len(cut.prompt_ids) - 1) :]]
    assert cut.chosen_ids == whole.chosen_ids
    assert cut.left_out == whole.length - 100


def test_an_answer_is_cut_only_when_a_quarter_is_the_prompts_and_is_counted(labeler: Labeler) -> None:
    prompt = [Message(role="user", content="q" * 500)]
    whole = encode(labeler, pair(prompt, "a" * 500), EncodedPair)
    cut = encode(labeler, pair(prompt, "a" * 500), EncodedPair, max_length=100)
    assert len(cut.prompt_ids) == 25
    assert cut.chosen_ids == whole.chosen_ids[:75]
    assert cut.rejected_ids == whole.rejected_ids
    assert (cut.truncated, cut.answer_cut, cut.left_out) == (True, 1, whole.length - 100)
    short_prompt = encode(labeler, pair(PROMPT[:1], "a" * 500), EncodedPair, max_length=100)
    assert short_prompt.prompt_ids == labeler.render_prompt(PROMPT[:1])[1]
    assert short_prompt.repairs == (RepairCode.TRUNCATED, RepairCode.ANSWER_CUT)


def test_a_judged_answer_and_a_prompt_are_cut_by_the_same_rules(labeler: Labeler) -> None:
    judged = UnpairedRow(PROMPT, said("a" * 500), True, SOURCE, DataFormat.UNPAIRED)
    assert encode(labeler, judged, EncodedLabelled, max_length=100).answer_cut == 1
    prompt = PromptRow([*PROMPT, *said("x" * 20), PROMPT[2]], SOURCE, DataFormat.OPENAI)
    whole = encode(labeler, prompt, EncodedPrompt)
    cut = encode(labeler, prompt, EncodedPrompt, max_length=whole.length - 1)
    assert cut.prompt_ids == labeler.render_prompt(prompt.prompt[2:])[1]
    assert cut.length + cut.left_out == whole.length


def test_a_prompt_that_loses_a_single_token_counts_as_truncated(labeler: Labeler) -> None:
    prompt = PromptRow([{"role": "user", "content": "z" * 300}], SOURCE, DataFormat.OPENAI)
    whole = encode(labeler, prompt, EncodedPrompt)
    cut = encode(labeler, prompt, EncodedPrompt, max_length=whole.length - 1)
    assert (cut.truncated, cut.left_out) == (True, 1)


def test_a_limit_that_leaves_nothing_is_reported(labeler: Labeler) -> None:
    assert refused(labeler, pair(PROMPT, "a" * 50), max_length=3).code is RejectCode.PROMPT_FILLS_CONTEXT
    prompt = PromptRow(PROMPT, SOURCE, DataFormat.OPENAI)
    assert refused(labeler, prompt, max_length=0).code is RejectCode.PROMPT_FILLS_CONTEXT


def test_a_template_that_refuses_fewer_turns_still_has_its_prompt_cut(build_model: Any) -> None:
    strict = "{% if messages | length < 4 %}{{ raise_exception('more') }}{% endif %}" + CHATML
    labeler = Labeler(build_model(strict))
    long = [*PROMPT[:2], *PROMPT[:2], PROMPT[2]]
    whole = encode(labeler, pair(long), EncodedPair)
    cut = encode(labeler, pair(long), EncodedPair, max_length=whole.length - 5)
    assert cut.prompt_ids == whole.prompt_ids[5:]


def test_rows_of_every_kind_may_share_a_batch(labeler: Labeler) -> None:
    rows: list[Row] = [
        pair(PROMPT),
        pair(PROMPT, "<eos>"),
        PromptRow(PROMPT, SOURCE, DataFormat.OPENAI),
        UnpairedRow(PROMPT, said("x"), True, SOURCE, DataFormat.UNPAIRED),
    ]
    first, second, third, fourth = labeler.encode_batch(rows, "DPO", 4096)
    assert first == labeler.encode(rows[0], "DPO", 4096)
    assert isinstance(second, BadRow)
    assert third == labeler.encode(rows[2], "DPO", 4096)
    assert fourth == labeler.encode(rows[3], "DPO", 4096)


def test_the_preview_names_both_answers_and_marks_them_as_trained(labeler: Labeler) -> None:
    pieces = labeler.preview(pair(PROMPT))
    assert [piece for piece, is_trained in pieces if is_trained] == ["Good one.<|im_end|>", "Bad.<|im_end|>"]
    assert "".join(piece for piece, _ in pieces).endswith("[chosen] Good one.<|im_end|>\n[rejected] Bad.<|im_end|>")
    assert pieces[0] == (labeler.render_prompt(PROMPT)[0], False)
    assert labeler.preview(PromptRow(PROMPT, SOURCE, DataFormat.OPENAI)) == [pieces[0]]


def test_the_stop_of_an_answer_is_known_without_any_row(labeler: Labeler) -> None:
    assert labeler.stop_ids() == [labeler.tokenizer.token_to_id("<|im_end|>")]
    assert labeler.stop_id() == labeler.stop_ids()[0]


def test_a_prompt_of_just_a_quarter_is_not_cut(labeler: Labeler) -> None:
    prompt = [Message(role="user", content="q" * 50)]
    whole = encode(labeler, pair(prompt, "a" * 500), EncodedPair)
    cut = encode(labeler, pair(prompt, "a" * 500), EncodedPair, max_length=4 * len(whole.prompt_ids))
    assert cut.prompt_ids == whole.prompt_ids
    assert cut.repairs == (RepairCode.TRUNCATED, RepairCode.ANSWER_CUT)


def test_an_answer_that_just_fits_does_not_count_as_cut(labeler: Labeler) -> None:
    prompt = [Message(role="user", content="q" * 500)]
    whole = encode(labeler, pair(prompt, "a" * 500, "b" * 50), EncodedPair)
    max_length = 4 * len(whole.rejected_ids) // 3
    cut = encode(labeler, pair(prompt, "a" * 500, "b" * 50), EncodedPair, max_length=max_length)
    assert cut.rejected_ids == whole.rejected_ids
    assert len(cut.chosen_ids) == len(cut.rejected_ids)
    assert cut.answer_cut == 1


def test_a_prompt_of_as_many_tokens_as_the_limit_is_whole(labeler: Labeler) -> None:
    row = PromptRow(PROMPT, SOURCE, DataFormat.OPENAI)
    whole = encode(labeler, row, EncodedPrompt)
    assert encode(labeler, row, EncodedPrompt, max_length=whole.length) == whole
    assert (whole.truncated, whole.left_out, whole.repairs) == (False, 0, ())


def test_a_pair_of_as_many_tokens_as_the_limit_is_whole(labeler: Labeler) -> None:
    whole = encode(labeler, pair(PROMPT), EncodedPair)
    assert encode(labeler, pair(PROMPT), EncodedPair, max_length=whole.length) == whole


def test_a_prompt_keeps_a_single_token_and_bos_if_it_has_one(build_model: Any, labeler: Labeler) -> None:
    judged = UnpairedRow(PROMPT, said("a" * 50), True, SOURCE, DataFormat.UNPAIRED)
    kept = encode(labeler, judged, EncodedLabelled, max_length=8)
    assert (len(kept.prompt_ids), len(kept.completion_ids)) == (2, 6)
    assert kept.prompt_ids[0] == labeler.tokenizer.token_to_id("<bos>")
    assert refused(labeler, judged, max_length=7).tokens == encode(labeler, judged, EncodedLabelled).length
    without = encode(Labeler(build_model(CHATML)), judged, EncodedLabelled, max_length=4)
    assert (len(without.prompt_ids), len(without.completion_ids)) == (1, 3)


def test_reasoning_that_the_template_drops_is_counted_for_each_answer(labeler: Labeler) -> None:
    thinking: list[Message] = [{"role": "assistant", "content": "Good.", "reasoning_content": "hm"}]
    row = PreferenceRow(PROMPT, thinking, [{**thinking[0], "content": "Bad."}], SOURCE, DataFormat.PREFERENCE)
    both = encode(labeler, row, EncodedPair)
    assert (both.reasoning_lost, both.repairs) == (2, (RepairCode.REASONING_LOST,))
    judged = encode(labeler, UnpairedRow(PROMPT, thinking, True, SOURCE, DataFormat.UNPAIRED), EncodedLabelled)
    assert (judged.reasoning_lost, judged.repairs) == (1, (RepairCode.REASONING_LOST,))


def test_a_prompt_that_ends_with_line_ends_is_tokenised_as_at_inference(build_model: Any) -> None:
    """A tokenizer takes both line ends for one token only if no text follows."""
    template = CHATML.replace("message['role'] + '\n'", "message['role'] + '\n\n'").replace(
        "assistant\n", "assistant\n\n"
    )
    labeler = Labeler(build_model(template, words=["\n\n"] * 50))
    sample = encode(labeler, pair(PROMPT), EncodedPair)
    assert sample.prompt_ids == labeler.render_prompt(PROMPT)[1]
    assert text(labeler, sample.chosen_ids) == "Good one.<|im_end|>"
