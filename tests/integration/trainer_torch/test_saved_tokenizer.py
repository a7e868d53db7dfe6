"""The tokenizer and generation settings next to a saved adapter: they render and end texts as the training did."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import SpecialVocab
from tiny_model import CHAT_TEMPLATE
from transformers import AutoTokenizer, GenerationConfig, ProcessorMixin
from trl.trainer.dpo_trainer import DataCollatorForPreference

from finetune_api.inputs.chat_template import ChatTemplateName
from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, PreferenceRow, Row, Source
from finetune_trainer.merging.merge import copy_companions
from finetune_trainer.models.adapters.saved import PROCESSOR, save_generation_config, save_tokenizer
from finetune_trainer.tokenization.chosen_template import TemplateChoice
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded, EncodedPair

SOURCE = Source("rows.jsonl", 1)
CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the colour?"},
    {"role": "assistant", "content": "Blue."},
]
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))


def configure(folder: Path, **changes: Any) -> Labeler:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return Labeler(folder)


def encode(labeler: Labeler, row: Row) -> Any:
    result = labeler.encode(row, "Chat", 1000)
    assert not isinstance(result, BadRow), result.detail
    (sample,) = result
    return sample


def test_a_base_model_is_served_with_the_template_that_it_was_trained_with(folder: Path, tmp_path: Path) -> None:
    labeler = configure(folder, chat_template=None)
    assert labeler.is_fallback_template
    sample = encode(labeler, ChatRow(CHAT, SOURCE, DataFormat.OPENAI))
    save_tokenizer(folder, tmp_path / "adapter", labeler)
    saved = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert len(saved) == labeler.tokenizer.get_vocab_size()
    assert saved.apply_chat_template(CHAT, return_dict=False) == sample.input_ids
    prompt = saved.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=False)
    assert sample.input_ids[: len(prompt)] == prompt
    answer, newline = (saved(text, add_special_tokens=False).input_ids for text in ("Blue.", "\n"))
    assert sample.input_ids[len(prompt) :] == [*answer, saved.eos_token_id, *newline]


def test_every_template_of_a_model_is_saved_and_chosen_as_in_training(folder: Path, tmp_path: Path) -> None:
    with_tools = "{{ tools | tojson }}" + CHAT_TEMPLATE
    templates = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": with_tools}]
    labeler = configure(folder, chat_template=templates)
    save_tokenizer(folder, tmp_path / "adapter", labeler)
    saved = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert saved.chat_template == {"default": CHAT_TEMPLATE, "tool_use": with_tools}
    for tools in (None, TOOLS):
        sample = encode(labeler, ChatRow(CHAT, SOURCE, DataFormat.OPENAI, tools))
        assert sample.input_ids == saved.apply_chat_template(CHAT, tools=tools, return_dict=False)
    assert Labeler(tmp_path / "adapter").templates == labeler.templates


@pytest.mark.parametrize("choice", [TemplateChoice(), TemplateChoice(ChatTemplateName.VICUNA)], ids=["own", "chosen"])
def test_a_chosen_template_is_also_the_one_of_readers_that_prefer_the_tokenizers_configuration(
    folder: Path, tmp_path: Path, choice: TemplateChoice
) -> None:
    labeler = Labeler(folder, choice)
    save_tokenizer(folder, tmp_path / "merged", labeler)
    assert SpecialVocab(tmp_path / "merged").chat_template == labeler.template_text  # llama.cpp's converter
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == labeler.template_text
    before, after = ((one / "tokenizer_config.json").read_bytes() for one in (folder, tmp_path / "merged"))
    assert (before == after) is (choice.name is None)
    assert json.loads(before) == json.loads(after) | {"chat_template": CHAT_TEMPLATE}


@pytest.mark.parametrize("choice", [TemplateChoice(), TemplateChoice(ChatTemplateName.VICUNA)], ids=["own", "chosen"])
def test_a_chosen_template_is_also_that_of_the_processor_of_a_model_with_towers(
    folder: Path, tmp_path: Path, choice: TemplateChoice
) -> None:
    """transformers, and with it vLLM, prefers the template in the configuration of a processor to the file."""
    (folder / PROCESSOR).write_text(json.dumps({"image_seq_length": 256, "chat_template": CHAT_TEMPLATE}))
    labeler = Labeler(folder, choice)
    (tmp_path / "merged").mkdir()
    copy_companions(folder, tmp_path / "merged")
    save_tokenizer(folder, tmp_path / "merged", labeler)
    found, _ = ProcessorMixin.get_processor_dict(str(tmp_path / "merged"))
    assert (found["image_seq_length"], found["chat_template"]) == (256, labeler.template_text)


def test_the_stop_is_seen_and_trained_where_it_is_also_the_padding(folder: Path) -> None:
    labeler = configure(folder)
    stop = labeler.stop_id()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == stop
    chat = encode(labeler, ChatRow(CHAT, SOURCE, DataFormat.OPENAI))
    assert isinstance(chat, Encoded)
    assert chat.labels.count(stop) == 1
    answers = ["Blue.", "It is neither red nor green."]
    chosen, rejected = ([Message(role="assistant", content=answer)] for answer in answers)
    pair = encode(labeler, PreferenceRow(CHAT[:2], chosen, rejected, SOURCE, DataFormat.PREFERENCE))
    assert isinstance(pair, EncodedPair)
    columns = {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
    batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)([columns])
    for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
        length = len(pair.prompt_ids) + len(ids)
        assert batch["input_ids"][side, length - 1] == stop
        assert int(batch["attention_mask"][side].sum()) == length
        assert int(batch["completion_mask"][side].sum()) == len(ids)
    assert set(batch["input_ids"][0, len(pair.prompt_ids) + len(pair.chosen_ids) :].tolist()) == {stop}


@pytest.mark.parametrize(
    ("base", "temperature"),
    [('{"eos_token_id": 0, "temperature": 0.6, "do_sample": true}', 0.6), ("[]", None), ("{", None)],
)
def test_the_generation_settings_are_the_bases_with_the_tokens_that_end_an_answer(
    folder: Path, tmp_path: Path, base: str, temperature: float | None
) -> None:
    (folder / "generation_config.json").write_text(base)
    save_generation_config(folder, tmp_path, [0, 2])
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.eos_token_id, saved.temperature) == ([0, 2], temperature)
    (folder / "generation_config.json").unlink()
    save_generation_config(folder, tmp_path, [2])
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2]
    save_generation_config(folder, tmp_path, [])
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id is None
