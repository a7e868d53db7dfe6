"""Typical models, each trained, published and merged: only in FP16, tied or not, without a template, and next to files
that must not be read."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from thin_slice import thin_slice
from trainer_bench import TEXTS, make_trainer
from training_bench import HYPERPARAMETERS, Bench, make_spec
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    RecurrentGemmaConfig,
    xLSTMConfig,
)

from finetune_api.handoff import Report
from finetune_trainer.data.rows import Message
from finetune_trainer.models.loading import load_quantised
from finetune_trainer.tokenization.labeler import Labeler

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
Change = Callable[[Path], None]


def rewrite(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def as_it_is(_: Path) -> None:
    """Tied embeddings, and `pad == eos`: what the tiny model has."""


def in_fp16(folder: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder / "config.json", torch_dtype="float16")


def untied(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    weights[HEAD] = 0.02 * torch.randn(weights[EMBEDDING].shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder / "config.json", tie_word_embeddings=False)


def in_shards(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)


def without_template(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", chat_template=None)


def without_padding(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", pad_token=None)
    rewrite(folder / "config.json", pad_token_id=None)
    rewrite(folder / "generation_config.json", pad_token_id=None)


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Callable[..., tuple[Bench, Report]]:
    def train(change: Change, method: str, merge: str = "FP32") -> tuple[Bench, Report]:
        model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        change(model)
        hyper = HYPERPARAMETERS | {"maxSteps": 10}
        output = {"uri": "s3://bucket/output", "merge": merge}
        (tmp_path / "job").mkdir()
        bench = Bench(tmp_path / "job", model, make_spec(method, hyperparameters=hyper, output=output))
        return bench, bench.run()

    return train


def logits(model: Any, folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)("What is the colour of sky 7? The sky", return_tensors="pt").input_ids
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids).logits
    return found


def require_learnt(report: Report) -> None:
    metrics = report.metrics
    assert metrics
    assert metrics.eval_loss is not None
    assert metrics.baseline_eval_loss is not None
    assert metrics.eval_loss < metrics.baseline_eval_loss


def load_chosen_base(bench: Bench) -> PreTrainedModel:
    """The base that the published model was merged into: that in 4 bits is loaded as for the training."""
    chosen = json.loads((bench.output / "validation.json").read_text(encoding="utf-8"))["chosen"]
    if chosen == "dequantised base":
        return load_quantised(bench.model, torch.float32, double_quant=True, device=torch.device("cpu"))
    assert chosen == "unquantised base"
    return AutoModelForCausalLM.from_pretrained(bench.model, dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (as_it_is, "QLoRA"),
        *(
            pytest.param(*pair, marks=pytest.mark.nightly)
            for pair in [
                (untied, "LoRA"),
                (in_fp16, "LoRA"),
                (untied, "QLoRA"),
                (in_shards, "LoRA"),
                (in_shards, "QLoRA"),
                (without_template, "LoRA"),
                (without_padding, "LoRA"),
            ]
        ),
    ],
)
def test_the_merged_model_answers_like_base_and_adapter(
    run: Callable[..., tuple[Bench, Report]], change: Change, method: str
) -> None:
    bench, report = run(change, method)
    require_learnt(report)
    base = load_chosen_base(bench)
    before = logits(base, bench.model)
    adapted = logits(PeftModel.from_pretrained(base, str(bench.output / "adapter")), bench.model)
    merged = logits(AutoModelForCausalLM.from_pretrained(bench.output / "merged", dtype=torch.float32), bench.model)
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-2)


@pytest.mark.nightly
@pytest.mark.parametrize(("change", "tied"), [(as_it_is, True), (untied, False)])
def test_a_merged_model_has_a_head_of_its_own_only_where_the_base_has_one(
    run: Callable[..., tuple[Bench, Report]], change: Change, tied: bool
) -> None:
    bench, _ = run(change, "LoRA")
    names = {name for path in (bench.output / "merged").glob("*.safetensors") for name in load_file(path)}
    assert (HEAD in names) is not tied
    config = json.loads((bench.output / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is tied


@pytest.mark.nightly
def test_a_model_in_fp16_is_fully_tuned_in_fp32_and_saved_as_it_was(run: Callable[..., tuple[Bench, Report]]) -> None:
    bench, report = run(in_fp16, "Full", "None")
    require_learnt(report)
    weights = load_file(bench.output / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_model_without_a_template_is_published_with_the_one_it_was_trained_with(
    run: Callable[..., tuple[Bench, Report]],
) -> None:
    bench, _ = run(without_template, "LoRA")
    chat: list[Message] = [{"role": "user", "content": "What is the colour of sky 7?"}]
    expected, _ = Labeler(bench.model).render_prompt(chat)
    for folder in ("adapter", "merged"):
        tokenizer = AutoTokenizer.from_pretrained(bench.output / folder)
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == expected


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_files_next_to_the_weights_are_neither_fetched_nor_run(
    run: Callable[..., tuple[Bench, Report]], tmp_path: Path
) -> None:
    """A pickle, code, a GGUF, and an adapter that transformers would put onto the model by itself."""

    def add_traps(folder: Path) -> None:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
        (folder / "model.gguf").write_bytes(b"GGUF")
        adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "elsewhere"), "r": 4}
        (folder / "adapter_config.json").write_text(json.dumps(adapter))

    bench, report = run(add_traps, "LoRA")
    require_learnt(report)
    assert not (tmp_path / "sprung").exists()
    fetched = {path.name for path in (bench.root / "workspace").rglob("*")}
    assert fetched.isdisjoint({"pytorch_model.bin", "modeling_own.py", "model.gguf"})


CAPPED: dict[str, Any] = {
    "recurrent_gemma": RecurrentGemmaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        lru_width=32, attention_window_size=64, vocab_size=512, logits_soft_cap=0.5, initializer_range=0.2,
    ),
    "xlstm": xLSTMConfig(hidden_size=64, num_heads=2, num_hidden_layers=2, vocab_size=512, output_logit_soft_cap=0.5),
}  # fmt: skip


@pytest.mark.parametrize("kind", thin_slice(CAPPED, "recurrent_gemma"))
def test_the_loss_is_that_of_capped_logits_under_every_name_of_the_cap(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    """TRL computes the logits itself, from the hidden states and the output head."""
    shutil.copytree(tiny_model, tmp_path / "model")
    AutoModelForCausalLM.from_config(CAPPED[kind]).save_pretrained(tmp_path / "model")
    trainer = make_trainer("Instruction", tmp_path / "model", tmp_path, "Full")
    losses = []
    trainer.model.eval()
    for text in TEXTS:
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([text.input_ids]), use_cache=False).logits[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits.float(), torch.tensor(text.labels[1:]))))
    assert trainer.measure().loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
