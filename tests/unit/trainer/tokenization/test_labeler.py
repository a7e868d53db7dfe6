import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Encoding

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, PreferenceRow, Source
from finetune_trainer.tokenization import labeler as labels
from finetune_trainer.tokenization.labeler import UNTRAINED, Encoded, Labeler
from finetune_trainer.tokenization.token_spans import Tokens
from finetune_trainer.tokenization.tokenizer import TokenizerUnavailable

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM: Message = {"role": "system", "content": "Be brief."}
TWO: list[Message] = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]


def row(messages: list[Message]) -> ChatRow:
    return ChatRow(messages, Source("rows.jsonl", 1), DataFormat.OPENAI)


def encode(labeler: Labeler, messages: list[Message], objective: Any = "Chat", max_length: int = 4096) -> Encoded:
    result = labeler.encode(row(messages), objective, max_length)
    assert not isinstance(result, BadRow), result.detail
    (only,) = result
    assert isinstance(only, Encoded)
    return only


def trained(labeler: Labeler, encoded: Encoded) -> str:
    labels = [label for label in encoded.labels if label != UNTRAINED]
    return str(labeler.tokenizer.decode(labels, skip_special_tokens=False))


@pytest.fixture
def labeler(build_model: Any) -> Labeler:
    return Labeler(build_model(CHATML))


def test_chat_trains_every_answer_and_instruction_the_last(labeler: Labeler) -> None:
    assert trained(labeler, encode(labeler, TWO)) == "First.<|im_end|>Second.<|im_end|>"
    assert trained(labeler, encode(labeler, TWO, "Instruction")) == "Second.<|im_end|>"


# As Llama 2 Chat and Code Llama: a space before the token that ends the answer.
SPACED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|im_start|>' + message['content'] + '\n' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def test_a_space_before_the_end_of_an_answer_does_not_stop_the_model(build_model: Any) -> None:
    spaced = Labeler(build_model(SPACED))
    stops = [spaced.tokenizer.id_to_token(one) for one in spaced.stop_ids()]
    assert len(stops) == 2
    assert spaced.tokenizer.id_to_token(spaced.stop_id()) == stops[1] == "<eos>"


def test_untrained_parts_of_an_answer_are_context_and_no_token_that_touches_them_is_trained(labeler: Labeler) -> None:
    answer: Message = {"role": "assistant", "content": "So: the answer. Done", "untrained": [[0, 3], [15, 20]]}
    encoded = encode(labeler, [TWO[0], answer])
    assert encoded.input_ids == encode(labeler, [TWO[0], {"role": "assistant", "content": answer["content"]}]).input_ids
    assert trained(labeler, encoded) == " the answer.<|im_end|>"
    inside_of_a_token: Message = {"role": "assistant", "content": "the answer", "untrained": [[6, 7]]}
    assert trained(labeler, encode(labeler, [TWO[0], inside_of_a_token])) == "thewer<|im_end|>"  # without " ans"


def test_the_untrained_parts_are_found_where_the_template_strips_the_answer(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML.replace("message['content']", "message['content'].strip()")))
    answer: Message = {"role": "assistant", "content": "  the user", "untrained": [[0, 5]]}
    assert trained(labeler, encode(labeler, [TWO[0], answer])) == " user<|im_end|>"


def test_the_untrained_parts_are_those_of_the_answer_and_not_of_the_text_around_it(labeler: Labeler) -> None:
    for content in ("im", "assistant", "i"):
        answer: Message = {"role": "assistant", "content": content, "untrained": [[0, len(content)]]}
        assert trained(labeler, encode(labeler, [{"role": "user", "content": content}, answer])) == "<|im_end|>"


def test_untrained_parts_of_a_text_that_the_template_shows_twice_are_refused(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML.replace("message['content'] +", "message['content'] + message['content'] +")))
    answer: Message = {"role": "assistant", "content": "the user", "untrained": [[0, 3]]}
    bad = labeler.encode(row([TWO[0], answer]), "Chat", 100)
    assert isinstance(bad, BadRow)
    assert (bad.code, bad.detail) == (
        RejectCode.TEMPLATE_ERROR,
        "the chat template shows twice the text of the answer of turn 2, of which parts are untrained",
    )


def test_a_judged_answer_with_untrained_parts_is_refused(labeler: Labeler) -> None:
    good: Message = {"role": "assistant", "content": "the user", "untrained": [[0, 3]]}
    pair = PreferenceRow([TWO[0]], [good], [TWO[1]], Source("rows.jsonl", 1), DataFormat.PREFERENCE)
    bad = labeler.encode(pair, "DPO", 100)
    assert isinstance(bad, BadRow)
    assert bad.code is RejectCode.NOT_FOR_OBJECTIVE


def test_a_preview_shows_untrained_parts_as_context(labeler: Labeler) -> None:
    answer: Message = {"role": "assistant", "content": "the user. Done", "untrained": [[0, 9]]}
    *context, (shown, is_trained) = [piece for piece in labeler.preview(row([TWO[0], answer])) if piece[0].strip()]
    assert (shown, is_trained) == (" Done<|im_end|>", True)
    assert not any(is_trained for _, is_trained in context)


def test_an_answer_marked_not_to_be_trained_is_context(labeler: Labeler) -> None:
    messages: list[Message] = [TWO[0], {**TWO[1], "train": False}, *TWO[2:]]
    encoded = encode(labeler, messages)
    assert trained(labeler, encoded) == "Second.<|im_end|>"
    assert encoded.input_ids == encode(labeler, TWO).input_ids


@pytest.mark.parametrize(("objective", "marked"), [("Chat", (1, 3)), ("Instruction", (3,))])
def test_a_row_without_an_answer_to_train_is_refused(labeler: Labeler, objective: Any, marked: tuple[int, ...]) -> None:
    messages: list[Message] = [{**m, "train": False} if n in marked else m for n, m in enumerate(TWO)]
    result = labeler.encode(row(messages), objective, 4096)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.NO_TRAINABLE_TURN


def test_labels_are_the_ids_where_they_are_not_masked(labeler: Labeler) -> None:
    encoded = encode(labeler, TWO)
    assert len(encoded.labels) == len(encoded.input_ids)
    assert all(label in (UNTRAINED, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))
    assert encoded.trained == sum(label != UNTRAINED for label in encoded.labels) > 0


def test_truncation_is_counted_and_a_cut_answer_as_well(labeler: Labeler) -> None:
    whole = encode(labeler, TWO)
    fits = encode(labeler, TWO, max_length=len(whole.input_ids))
    assert (fits.truncated, fits.answer_cut, fits.repairs) == (False, 0, ())
    cut = encode(labeler, TWO, max_length=len(whole.input_ids) - 4)
    assert (cut.truncated, cut.answer_cut, cut.repairs) == (True, 1, (RepairCode.TRUNCATED, RepairCode.ANSWER_CUT))
    assert cut.input_ids == whole.input_ids[:-4]
    assert trained(labeler, cut).startswith("First.<|im_end|>")


def test_a_prompt_that_fills_the_context_is_refused(labeler: Labeler) -> None:
    result = labeler.encode(row([{"role": "user", "content": "x" * 500}, TWO[1]]), "Chat", 64)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.PROMPT_FILLS_CONTEXT
    assert "64" in result.detail


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "end <|im_end|> it"},
        {"role": "user", "content": "x", "name": "<|im_start|>"},
        {"role": "user", "content": "<eos>"},
    ],
)
def test_a_control_token_in_text_is_refused(labeler: Labeler, message: Message) -> None:
    result = labeler.encode(row([message, TWO[1]]), "Chat", 4096)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.CONTROL_TOKEN_IN_TEXT


@pytest.mark.parametrize("messages", [TWO * 200, [{**m, "content": m["content"] * 5_000_000} for m in TWO]])
def test_a_conversation_that_would_take_forever_is_refused_at_once(labeler: Labeler, messages: list[Message]) -> None:
    result = labeler.encode(row(messages), "Chat", 4096)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.TOO_LONG


def test_a_control_token_inside_a_tool_call_is_refused(labeler: Labeler) -> None:
    call: Any = {"type": "function", "function": {"name": "f", "arguments": {"a": "<|im_end|>"}}}
    result = labeler.encode(row([TWO[0], {"role": "assistant", "content": "", "tool_calls": [call]}]), "Chat", 4096)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.CONTROL_TOKEN_IN_TEXT


def test_a_model_without_a_system_role_gets_the_system_text_in_the_first_prompt(build_model: Any) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    labeler = Labeler(build_model(refusing))
    encoded = encode(labeler, [SYSTEM, *TWO])
    assert encoded.repairs == (RepairCode.SYSTEM_MERGED,)
    text = labeler.tokenizer.decode(encoded.input_ids, skip_special_tokens=False)
    assert text.startswith("<|im_start|>user\nBe brief.\n\nOne?<|im_end|>")


def test_a_template_that_refuses_the_row_is_quoted(build_model: Any) -> None:
    template = "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
    result = Labeler(build_model(template)).encode(row(TWO), "Chat", 4096)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.TEMPLATE_ERROR
    assert "one turn only" in result.detail


def test_a_template_that_omits_a_turn_is_detected(build_model: Any) -> None:
    template = CHATML.replace("in messages", "in messages[1:]")
    result = Labeler(build_model(template)).encode(row(TWO), "Instruction", 4096)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.TEMPLATE_ERROR
    assert "omits or alters turn 1" in result.detail


def test_if_history_renders_differently_each_answer_is_a_sample_as_at_inference(build_model: Any) -> None:
    template = CHATML.replace(
        "message['content'] + '<|im_end|>\n'",
        "(message['content'] if loop.last or message['role'] != 'assistant' else '(earlier)') + '<|im_end|>\n'",
    )
    labeler = Labeler(build_model(template))
    result = labeler.encode(row(TWO[:2]), "Chat", 4096)
    assert not isinstance(result, BadRow)
    assert isinstance(result[0], Encoded)
    assert trained(labeler, result[0]) == "First.<|im_end|>"
    both = labeler.encode(row(TWO), "Chat", 4096)
    assert isinstance(both, BadRow)  # the second sample would not show what the first answer was


def test_reasoning_that_the_template_does_not_show_is_counted(labeler: Labeler) -> None:
    messages: list[Message] = [TWO[0], {**TWO[1], "reasoning_content": "hm"}]
    without = encode(labeler, messages)
    assert (without.reasoning_lost, without.repairs) == (1, (RepairCode.REASONING_LOST,))
    assert encode(labeler, TWO).reasoning_lost == 0


def test_a_second_bos_is_removed(build_model: Any) -> None:
    labeler = Labeler(build_model("{{ bos_token }}{{ bos_token }}" + CHATML))
    bos = labeler.tokenizer.token_to_id("<bos>")
    encoded = encode(labeler, TWO)
    assert encoded.input_ids[0] == bos
    assert encoded.input_ids.count(bos) == 1
    assert trained(labeler, encoded) == "First.<|im_end|>Second.<|im_end|>"


def test_the_preview_is_the_text_with_what_is_trained(labeler: Labeler) -> None:
    pieces = labeler.preview(row(TWO))
    assert [text for text, is_trained in pieces if is_trained] == ["First.<|im_end|>", "Second.<|im_end|>"]
    whole = labeler.tokenizer.decode(encode(labeler, TWO).input_ids, skip_special_tokens=False)
    assert "".join(text for text, _ in pieces) == whole


def test_a_prompt_ends_where_the_answer_begins(labeler: Labeler) -> None:
    text, ids = labeler.render_prompt(TWO[:3])
    assert text.endswith("<|im_start|>assistant\n")
    assert encode(labeler, TWO).input_ids[: len(ids)] == ids


def test_a_batch_gives_what_single_rows_give(labeler: Labeler) -> None:
    rows = [row(TWO), row([TWO[0], {**TWO[1], "content": "<eos>"}]), row(TWO[:2])]
    first, second, third = labeler.encode_batch(rows, "Chat", 4096)
    assert first == labeler.encode(rows[0], "Chat", 4096)
    assert isinstance(second, BadRow)
    assert third == labeler.encode(rows[2], "Chat", 4096)


def test_a_base_model_gets_a_template_without_new_tokens(build_model: Any) -> None:
    labeler = Labeler(build_model(None))
    assert labeler.is_fallback_template
    encoded = encode(labeler, [SYSTEM, *TWO])
    assert trained(labeler, encoded) == "First.<eos>Second.<eos>"
    assert max(encoded.input_ids) < labeler.tokenizer.get_vocab_size()
    forged = labeler.encode(row([{"role": "user", "content": "<|im_start|>assistant"}, TWO[1]]), "Chat", 4096)
    assert isinstance(forged, BadRow)
    assert forged.code is RejectCode.CONTROL_TOKEN_IN_TEXT


def test_a_base_model_without_an_end_token_still_ends_its_answers(build_model: Any) -> None:
    labeler = Labeler(build_model(None, eos_token=None))
    assert trained(labeler, encode(labeler, TWO[:2])) == "First.<|im_end|>"


def test_the_fallback_template_renders_the_same_once_saved(build_model: Any) -> None:
    directory = build_model(None)
    fallback = Labeler(directory)
    (directory / "chat_template.jinja").write_text(fallback.template_text)
    saved = Labeler(directory)
    assert not saved.is_fallback_template
    assert saved.template_sha256 == fallback.template_sha256
    assert encode(saved, TWO) == encode(fallback, TWO)


@pytest.mark.parametrize(
    "form", [CHATML, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]]
)
def test_the_template_may_be_in_the_config(build_model: Any, form: object) -> None:
    labeler = Labeler(build_model(None, tokens=("<|im_start|>", "<|im_end|>"), chat_template=form))
    assert labeler.template_text == CHATML


def test_named_tokens_may_be_objects(build_model: Any) -> None:
    labeler = Labeler(build_model("{{ bos_token }}" + CHATML, bos_token={"content": "<bos>", "lstrip": False}))
    assert labeler.render_prompt(TWO[:1])[0].startswith("<bos><|im_start|>")


def test_a_directory_without_tokenizer_json_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TokenizerUnavailable, match=r"no tokenizer\.json"):
        Labeler(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerUnavailable, match="cannot be read"):
        Labeler(tmp_path)


def test_a_tokenizer_that_panics_at_its_first_text_is_unavailable(build_model: Any) -> None:
    """tokenizers loads a template that names an unknown token, and a panic of Rust is no Exception."""
    directory = build_model(CHATML)
    content = json.loads((directory / "tokenizer.json").read_text())
    start, text = {"SpecialToken": {"id": "<gone>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [start, text], "pair": [text, text], "special_tokens": {}}
    (directory / "tokenizer.json").write_text(json.dumps(content | {"post_processor": template}))
    with pytest.raises(TokenizerUnavailable, match="no entry found"):
        Labeler(directory)


def test_rows_are_tokenised_in_portions_that_end_with_the_row_that_exceeds_the_limit(
    labeler: Labeler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Tokens.encode_batch

    def counted(self: Tokens, texts: Sequence[str]) -> list[Encoding]:
        sizes.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(Tokens, "encode_batch", counted)
    good, bad = row(TWO[:2]), row([TWO[0], {**TWO[1], "content": "<eos>"}])
    length = sum(len(text) for text, _ in labeler.preview(good))
    monkeypatch.setattr(labels, "CHARACTERS_AT_ONCE", 2 * length)
    results = labeler.encode_batch([good, bad, *[good] * 6], "Chat", 4096)
    assert sizes == [3, 3, 1]
    assert [isinstance(result, BadRow) for result in results] == [False, True, *[False] * 6]
