import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.tokenizer import TokenizerUnavailable, load_tokenizer_files

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL_TEMPLATE = "{{ tools | tojson }}" + CHATML
MARKS = ("<|im_start|>", "<|im_end|>")
TEXT = "<bos><|im_start|>user\nWhat?<|im_end|>\n<think>the fox</think><|x|> <pad>"
CONFIGS: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "tokens by id": {
        "added_tokens_decoder": {
            "900": {"content": "<|im_start|>", "special": True, "normalized": False},
            "901": {"content": "<|im_end|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False},
            "902": {"content": "<think>", "special": False, "normalized": False},
        }
    },
    "named tokens that no file knows": {"pad_token": "<pad>", "eos_token": "<|im_end|>"},
    "extra special tokens": {"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<|x|>"]},
    "the old name of extra special tokens": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    "extra tokens with names": {"extra_special_tokens": {"image_token": "<|x|>"}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_that_are_only_next_to_the_tokenizer_are_those_of_transformers(name: str, build_model: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    directory = build_model(**CONFIGS[name])
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    ours = load_tokenizer_files(directory)
    assert ours.tokenizer.encode(TEXT, add_special_tokens=False).ids == theirs(TEXT, add_special_tokens=False).input_ids
    assert set(theirs.all_special_tokens) - {"<think>"} <= set(ours.special_tokens)


def test_tokens_of_an_added_tokens_file_are_known(build_model: Any) -> None:
    directory = build_model()
    (directory / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 901, "<|im_start|>": 900}))
    tokenizer = load_tokenizer_files(directory).tokenizer
    assert [len(tokenizer.encode(mark, add_special_tokens=False).ids) for mark in MARKS] == [1, 1]


def test_the_template_for_tools_renders_rows_with_tools(build_model: Any) -> None:
    by_name = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOL_TEMPLATE}]
    labeler = Labeler(build_model(tokens=MARKS, chat_template=[*by_name, {"name": "rag", "template": "x"}]))
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    asked: Any = [{"role": "user", "content": "What?"}]
    assert labeler.render_prompt(asked)[0].startswith("<|im_start|>user")
    assert "look_up" in labeler.render_prompt(asked, tools)[0]
    assert labeler.template_text == CHATML


def test_templates_in_files_of_their_own_are_found_before_those_in_the_config(build_model: Any) -> None:
    directory = build_model(CHATML, chat_template="stale")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_TEMPLATE)
    assert load_tokenizer_files(directory).templates == {"default": CHATML, "tool_use": TOOL_TEMPLATE}


def test_a_template_whose_name_leads_out_of_the_folder_is_left_out(build_model: Any) -> None:
    named = [{"name": "default", "template": CHATML}, {"name": "../../x", "template": CHATML}]
    assert set(load_tokenizer_files(build_model(chat_template=named)).templates) == {"default"}


def test_several_templates_without_a_default_are_not_guessed_among(build_model: Any) -> None:
    named = [{"name": name, "template": CHATML} for name in ("rag", "tool_use")]
    with pytest.raises(TokenizerUnavailable, match="rag, tool_use"):
        load_tokenizer_files(build_model(chat_template=named))
    assert load_tokenizer_files(build_model(chat_template=named[:1])).template == CHATML


def test_the_config_decides_whether_texts_begin_with_bos(build_model: Any) -> None:
    assert load_tokenizer_files(build_model(add_bos_token=True)).adds_bos
    assert not load_tokenizer_files(build_model(add_bos_token=False)).adds_bos
    assert not load_tokenizer_files(build_model(add_bos_token=True, bos_token=None)).adds_bos


def test_a_template_whose_tokens_the_model_has_no_embeddings_for_is_refused(build_model: Any) -> None:
    directory = build_model(chat_template=CHATML, extra_special_tokens=list(MARKS))
    known = load_tokenizer_files(directory).tokenizer.get_vocab_size()
    (directory / "config.json").write_text(json.dumps({"text_config": {"vocab_size": known}}))
    Labeler(directory)
    (directory / "config.json").write_text(json.dumps({"vocab_size": known - 1}))
    with pytest.raises(TokenizerUnavailable, match=r"'<\|im_end\|>'"):
        Labeler(directory)


def test_a_template_that_is_not_text_is_reported(build_model: Any) -> None:
    directory: Path = build_model(CHATML)
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerUnavailable, match=r"chat_template\.jinja cannot be read"):
        Labeler(directory)


def test_a_tokenizer_that_was_saved_with_truncation_and_padding_encodes_whole_texts(build_model: Any) -> None:
    directory: Path = build_model()
    saved = Tokenizer.from_file(str(directory / "tokenizer.json"))
    whole = saved.encode("the quick brown fox").ids
    saved.enable_truncation(2)
    saved.enable_padding(length=50)
    saved.save(str(directory / "tokenizer.json"))
    assert load_tokenizer_files(directory).tokenizer.encode("the quick brown fox").ids == whole


def test_special_tokens_come_longest_first_and_reasoning_marks_are_none(build_model: Any) -> None:
    marks = ("<think>", "</think>", "<thinking>", "<|longest|>")
    found = load_tokenizer_files(build_model(tokens=marks, pad_token="<p>")).special_tokens
    assert set(found) == {"<bos>", "<eos>", "<|longest|>", "<p>"}
    assert [len(token) for token in found] == sorted(map(len, found), reverse=True)


def test_tokens_by_id_are_added_in_the_order_of_their_numbers(build_model: Any) -> None:
    by_id = {"1000": {"content": "<late>"}, "900": {"content": "<early>"}, "x": {"content": "<first>"}, "7": 5}
    tokenizer = load_tokenizer_files(build_model(added_tokens_decoder=by_id)).tokenizer
    ids = [tokenizer.token_to_id(token) for token in ("<first>", "<early>", "<late>")]
    assert ids == sorted(ids)
    assert ids[2] - ids[0] == 2


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"vocab_size": 5}, 5),
        ({"text_config": {"vocab_size": 6}}, 6),
        ({"vocab_size": 5, "text_config": {"vocab_size": 6}}, 5),
        ({"vocab_size": "5", "text_config": []}, None),
        ([], None),
    ],
)
def test_the_vocabulary_is_the_configs_or_that_of_its_text_model(build_model: Any, config: Any, size: int) -> None:
    directory: Path = build_model()
    assert load_tokenizer_files(directory).vocabulary is None
    (directory / "config.json").write_text(json.dumps(config))
    assert load_tokenizer_files(directory).vocabulary == size


def test_a_config_that_is_no_json_is_named(build_model: Any) -> None:
    directory: Path = build_model()
    (directory / "special_tokens_map.json").write_text("{")
    with pytest.raises(TokenizerUnavailable, match=r"special_tokens_map\.json cannot be read"):
        load_tokenizer_files(directory)


def test_without_a_setting_an_encoded_text_shows_whether_bos_is_added(build_model: Any) -> None:
    directory: Path = build_model()
    assert not load_tokenizer_files(directory).adds_bos
    saved = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos = saved.token_to_id("<bos>")
    saved.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    saved.save(str(directory / "tokenizer.json"))
    files = load_tokenizer_files(directory)
    assert (files.adds_bos, files.bos_id) == (True, bos)
