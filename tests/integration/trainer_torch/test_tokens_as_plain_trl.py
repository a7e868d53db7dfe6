"""What is trained of a row is what TRL trains with the same files, whatever is odd about the tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from plain_trl import TEMPLATE, make_marked_model
from thin_slice import thin_slice
from tiny_model import CHAT_TEMPLATE, build_tokenizer
from tokenizer_families import FAMILIES
from tokenizers import AddedToken, Tokenizer, processors
from training_bench import Bench, make_spec
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from finetune_trainer.data.rows import ChatRow, DataFormat, PreferenceRow, Source, TextRow
from finetune_trainer.models.adapters.saved import save_tokenizer
from finetune_trainer.models.tokenizer_class import is_read_otherwise
from finetune_trainer.tokenization.labeler import UNTRAINED, Labeler

SOURCE = Source("rows.jsonl", 1)
BOS_TEMPLATE = "{{ bos_token }}" + TEMPLATE
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CASES: dict[str, tuple[Callable[[], Tokenizer], str, str, dict[str, Any]]] = {
    "no token to pad with, as the first Llamas": (FAMILIES["byte fallback"], INST, "<s> $A", {"pad_token": None}),
    "BOS from the template and from the tokenizer": (build_tokenizer, BOS_TEMPLATE, "<s> $A", {}),
    "BOS from the tokenizer, and none from the template": (build_tokenizer, TEMPLATE, "<s> $A", {}),
    "no BOS, padding with the end of an answer": (
        build_tokenizer, TEMPLATE, "$A", {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    ),
    "padding on the left": (build_tokenizer, BOS_TEMPLATE, "<s> $A", {"padding_side": "left"}),
    "tokens that are only in the config": (
        build_tokenizer, BOS_TEMPLATE, "<s> $A", {"additional_special_tokens": ["<|new|>", "<|tool|>"]},
    ),
    "a space before the first part": (FAMILIES["a space before the first part"], TEMPLATE, "<s> $A", {}),
    "a space before every part": (FAMILIES["a space before every part"], INST, "<s> $A", {}),
    "word pieces": (FAMILIES["word pieces"], TEMPLATE, "$A", {}),
}  # fmt: skip


def said(*texts: str) -> list[Any]:
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]


CHATS = [said("the question?", "Good one."), said("One?", "First  answer \u65e5\u672c.", "Two?", "\n\nSecond")]
DOCUMENTS = ["the quick brown fox", " two  spaces \u65e5\u672c", "plain"]
NO = said("?", "No.")[1:]


def write(folder: Path, build: Callable[[], Tokenizer], template: str, single: str, **config: Any) -> Path:
    """Write a tokenizer whose texts begin and end as `single` has it; its EOS is not what the template ends with."""
    tokenizer = build()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    pairs = [(token, tokenizer.token_to_id(token)) for token in TOKENS[:2]]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    known = {name: value for name, value in ({**usual, "chat_template": template} | config).items() if value}
    (folder / "tokenizer_config.json").write_text(json.dumps(known), encoding="utf-8")
    return folder


def prepared(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """Return the rows as TRL tokenises them for its own training."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    is_pair = "chosen" in rows[0]
    kind, config = (DPOTrainer, DPOConfig) if is_pair else (SFTTrainer, SFTConfig)
    own = {"ref_model": LlamaForCausalLM(model.config)} if is_pair else {}
    arguments = config(output_dir=str(folder / "trl"), report_to="none", bf16=False, use_cpu=True, **options)
    data = Dataset.from_list(rows)
    return list(kind(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, **own).train_dataset)


def ours(labeler: Labeler, row: Any, objective: Any) -> dict[str, list[int]]:
    (sample,) = labeler.encode(row, objective, 1000)
    return {name: getattr(sample, name) for name in type(sample).__dataclass_fields__ if name in COLUMNS}


COLUMNS = ("input_ids", "labels", "prompt_ids", "chosen_ids", "rejected_ids")


def only(row: dict[str, Any]) -> dict[str, list[int]]:
    return {name: row[name] for name in COLUMNS if name in row}


def chat(messages: list[Any]) -> ChatRow:
    return ChatRow(messages, SOURCE, DataFormat.OPENAI)


@pytest.mark.parametrize("name", thin_slice(CASES, "BOS from the template and from the tokenizer"))
def test_tokens_and_labels_are_those_of_trl(tmp_path: Path, name: str) -> None:
    build, template, single, config = CASES[name]
    folder = write(tmp_path / "model", build, template, single, **config)
    labeler = Labeler(folder)
    chats = prepared(folder, [{"messages": one} for one in CHATS], assistant_only_loss=True)
    assert [ours(labeler, chat(one), "Chat") for one in CHATS] == list(map(only, chats))
    last = prepared(folder, [{"prompt": one[:-1], "completion": one[-1:]} for one in CHATS])
    assert [ours(labeler, chat(one), "Instruction") for one in CHATS] == list(map(only, last))
    texts = prepared(folder, [{"text": one} for one in DOCUMENTS])
    found = [ours(labeler, TextRow(one, SOURCE, DataFormat.TEXT), "DomainAdaptation") for one in DOCUMENTS]
    assert found == list(map(only, texts))
    pairs = prepared(folder, [{"prompt": one[:-1], "chosen": one[-1:], "rejected": NO} for one in CHATS])
    rows = [PreferenceRow(one[:-1], one[-1:], NO, SOURCE, DataFormat.PREFERENCE) for one in CHATS]
    assert [ours(labeler, row, "DPO") for row in rows] == list(map(only, pairs))
    bos = labeler.tokenizer.token_to_id(config.get("bos_token", "<s>") or "<s>")
    assert all(row["input_ids"].count(bos) <= 1 for row in (*chats, *texts))
    assert all(row["labels"][-1] != UNTRAINED for row in chats), "the token that ends the answer is trained"


def test_a_document_of_a_tokenizer_that_writes_eos_itself_has_one_and_not_two(tmp_path: Path) -> None:
    """TRL appends the token's text, and the tokenizer adds another one."""
    folder = write(tmp_path / "model", build_tokenizer, TEMPLATE, "<s> $A </s>")
    (theirs,) = prepared(folder, [{"text": "plain"}])
    own = ours(Labeler(folder), TextRow("plain", SOURCE, DataFormat.TEXT), "DomainAdaptation")
    assert own["input_ids"] + own["input_ids"][-1:] == theirs["input_ids"]


def test_what_a_template_writes_after_the_end_of_an_answer_is_context_and_trained_by_trl(tmp_path: Path) -> None:
    """TRL trains the line break of ChatML with a completion, and compares it in a pair; no server ever samples it."""
    folder = make_marked_model(tmp_path / "model", chat_template=CHAT_TEMPLATE)
    labeler, (one, _) = Labeler(folder), CHATS
    after = labeler.tokenizer.encode("\n", add_special_tokens=False).ids
    own = ours(labeler, chat(one), "Instruction")
    (theirs,) = prepared(folder, [{"prompt": one[:-1], "completion": one[-1:]}])
    assert own["input_ids"] == theirs["input_ids"]
    assert own["labels"][-1] == UNTRAINED
    assert own["labels"][:-1] + after == theirs["labels"]
    pair = ours(labeler, PreferenceRow(one[:-1], one[-1:], NO, SOURCE, DataFormat.PREFERENCE), "DPO")
    (theirs,) = prepared(folder, [{"prompt": one[:-1], "chosen": one[-1:], "rejected": NO}])
    answers = {name: pair[name] + after for name in ("chosen_ids", "rejected_ids")}
    assert only(theirs) == pair | answers


@pytest.mark.parametrize("settings", [{"legacy": False}, {"legacy": True}, {}], ids=["new", "legacy", "unset"])
@pytest.mark.parametrize("is_full_model", [False, True])
def test_transformers_reads_the_tokenizer_of_a_result_as_it_was_trained(
    tmp_path: Path, settings: dict[str, Any], is_full_model: bool
) -> None:
    """transformers builds the tokenizer of some classes by rules of its own, and training reads tokenizer.json: a space
    before each part, for the first Llamas."""
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **settings}
    folder = write(tmp_path / "model", FAMILIES["byte fallback"], INST, "<s> $A", **config)
    labeler, text = Labeler(folder), "  two spaces"
    chats = [ours(labeler, chat(one), "Chat")["input_ids"] for one in CHATS]
    document = ours(labeler, TextRow(text, SOURCE, DataFormat.TEXT), "DomainAdaptation")["input_ids"][:-1]
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(text)["input_ids"] != document
    result = tmp_path / "result"
    save_tokenizer(folder, result, labeler)
    assert is_read_otherwise(folder, labeler)
    assert not is_read_otherwise(result, labeler)
    if is_full_model:
        LlamaConfig(vocab_size=len(theirs)).save_pretrained(result)
    loaded = AutoTokenizer.from_pretrained(result)
    assert [loaded.apply_chat_template(one, return_dict=False) for one in CHATS] == chats
    assert loaded(text)["input_ids"] == document
    assert Labeler(result).encode(chat(CHATS[0]), "Chat", 1000)[0].input_ids == chats[0]


def test_a_base_that_transformers_reads_as_it_is_needs_no_other_tokenizer_whatever_its_class(tmp_path: Path) -> None:
    """The class alone reads other tokens, and AutoTokenizer does not use it for such a tokenizer.json."""
    folder = write(tmp_path / "model", build_tokenizer, TEMPLATE, "<s> $A", tokenizer_class="LlamaTokenizerFast")
    save_tokenizer(folder, tmp_path / "result", Labeler(folder))
    assert "PreTrainedTokenizerFast" in (tmp_path / "result/tokenizer_config.json").read_text(encoding="utf-8")
    assert not is_read_otherwise(folder, Labeler(folder))


def test_the_configuration_of_a_tokenizer_that_transformers_reads_as_it_is_stays_the_bases(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", build_tokenizer, TEMPLATE, "<s> $A", tokenizer_class="GPT2Tokenizer")
    save_tokenizer(folder, tmp_path / "result", Labeler(folder))
    saved, own = ((one / "tokenizer_config.json").read_bytes() for one in (tmp_path / "result", folder))
    assert saved == own


@pytest.mark.nightly
def test_a_full_model_whose_tokenizer_names_another_class_passes_its_checks(tmp_path: Path) -> None:
    model = make_marked_model(tmp_path / "model", tokenizer_class="LlamaTokenizer")
    hyper = {"maxSteps": 2, "maxLength": 128, "learningRate": 0.01}
    merge = {"uri": "s3://bucket/output", "merge": "FP32"}
    bench = Bench(tmp_path / "job", model, make_spec(hyperparameters=hyper, output=merge))
    bench.run()
    for folder in ("adapter", "merged"):
        config = json.loads((bench.output / folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    # AutoTokenizer, and with it a server, reads a byte-level tokenizer of this class as it is.
    assert "--tokenizer" not in (bench.output / "finetune_report.md").read_text(encoding="utf-8")
