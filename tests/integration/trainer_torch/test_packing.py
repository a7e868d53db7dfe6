"""Rows that share a sequence are trained as if each had a sequence of its own."""

import itertools
import random
from contextlib import nullcontext
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
import torch
from packed_rows import LENGTHS, SIZES, make_documents, make_model, make_samples, make_trainer, settings_for
from torch.nn.functional import scaled_dot_product_attention
from training_bench import Bench, make_spec
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune_api.handoff import ExitCode
from finetune_api.objectives import Objective
from finetune_api.spec import Packing
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.loading import trained_tensors
from finetune_trainer.tokenization.packing import EXACT_MODELS, count_packed, group_lengths
from finetune_trainer.tokenization.sample_table import as_samples
from finetune_trainer.tokenization.samples import Encoded
from finetune_trainer.training.methods import packed
from finetune_trainer.training.methods.packed import (
    PackedCollator,
    group_many,
    join_samples,
    require_isolated_rows,
    to_packed_dataset,
)

CPU = torch.device("cpu")
PLAIN_ONLY = frozenset({"gemma2"})
"""Models without a fused attention in transformers."""
PAIRS = [
    (model_type, attention)
    for model_type in sorted(EXACT_MODELS)
    for attention in ("eager", "sdpa")
    if attention == "eager" or model_type not in PLAIN_ONLY
]
COLLATOR = PackedCollator(0, max_length=16)


def differences(model: PreTrainedModel, *, begins_anew: bool) -> tuple[float, float]:
    """Return the largest difference between packed logits and those of single rows, and the largest logit."""
    documents = make_documents()
    width = max(sum(row) for row in LENGTHS)
    ids = torch.zeros(len(LENGTHS), width, dtype=torch.long)
    positions = torch.arange(width).repeat(len(LENGTHS), 1)
    for number, row in enumerate(documents):
        joined = torch.cat(row)
        ids[number, : len(joined)] = joined
        if begins_anew:
            positions[number] = 0
            positions[number, : len(joined)] = torch.cat([torch.arange(len(document)) for document in row])
    furthest = 0.0
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        for number, row in enumerate(documents):
            at = 0
            for document in row:
                alone = model(input_ids=document[None], use_cache=False).logits[0]
                furthest = max(furthest, float((packed[number, at : at + len(document)] - alone).abs().max()))
                at += len(document)
    return furthest, float(packed.abs().max())


@pytest.mark.parametrize(("model_type", "attention"), PAIRS)
def test_packed_rows_have_the_logits_of_single_rows(model_type: str, attention: str) -> None:
    model = make_model(model_type, attention)
    assert model.config._attn_implementation == attention
    furthest, largest = differences(model, begins_anew=True)
    assert furthest <= 1e-4 * largest
    naive, _ = differences(model, begins_anew=False)
    assert naive > 0.1 * largest
    require_isolated_rows(model, COLLATOR)


@pytest.mark.parametrize("model_type", ["opt", "mpt", "mamba"])
def test_a_model_that_lets_rows_see_each_other_is_refused_before_training(model_type: str) -> None:
    own = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2}}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES | own.get(model_type, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    with pytest.raises(TrainerError, match="lets packed rows attend to each other: set hyperparameters") as caught:
        require_isolated_rows(model, COLLATOR)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def attend_rows_of_one_line(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, *,
    scaling: float | None = None, position_ids: torch.Tensor | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend as transformers' flash attention does without cumulative lengths: it reads the positions of one line."""
    width = query.shape[2]
    allowed = torch.ones(width, width, dtype=torch.bool).tril()
    if len(query) == 1 and position_ids is not None:
        rows = (position_ids[0] == 0).cumsum(0)
        allowed &= rows[:, None] == rows[None]
    attended = scaled_dot_product_attention(query, key, value, allowed, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2), None


def test_rows_are_proven_apart_in_a_batch_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, "rows_of_one_line", attend_rows_of_one_line)
    model = make_model("llama", "sdpa")
    model.config._attn_implementation = "rows_of_one_line"
    with pytest.raises(TrainerError, match=r"attention \(rows_of_one_line\) lets packed rows attend to each other"):
        require_isolated_rows(model, COLLATOR)


@pytest.mark.parametrize(("precision", "roundings"), [("BF16", 6), ("BF16", 100), ("FP32", 6)])
def test_logits_that_are_rounded_to_16_bits_differ_by_more_than_those_in_fp32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, roundings: int
) -> None:
    monkeypatch.setattr(packed, "_leak", lambda *_, **__: roundings * torch.finfo(torch.bfloat16).eps / 2)
    refused = pytest.raises(TrainerError, match="lets packed rows attend to each other")
    with nullcontext() if (precision, roundings) == ("BF16", 6) else refused:
        make_trainer(tiny_model, tmp_path, settings_for("LoRA", packing=True, precision=precision))


def test_the_first_token_of_each_row_is_not_trained_because_the_row_before_would_predict_it() -> None:
    samples = [Encoded([4, 5], [-100, 5], 1), Encoded([1, 2, 3], [1, 2, 3], 3), Encoded([6, 7], [6, 7], 2)]
    table = as_samples(samples)
    first, second = (join_samples(table, sequence["places"]) for sequence in to_packed_dataset(table, 5, None))
    assert first == {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, -100, 5], "seq_lengths": [3, 2]}
    assert second == {"input_ids": [6, 7], "labels": [-100, 7], "seq_lengths": [2]}


@pytest.mark.parametrize("max_rows", [None, 3])
def test_the_sequences_of_many_samples_are_the_same_in_two_arrays(max_rows: int | None) -> None:
    source = random.Random(3)
    lengths = [source.randint(1, 200) for _ in range(2000)]
    places, starts = group_many(np.array(lengths), 256, max_rows)
    groups = [places[start:end].tolist() for start, end in itertools.pairwise(starts.tolist())]
    assert groups == group_lengths(lengths, 256, max_rows)
    assert count_packed(lengths, 256, Objective.CHAT, Packing.ALWAYS, "llama") == len(group_lengths(lengths, 256))


@pytest.mark.parametrize(("sequences", "max_length"), [(2, 40), (1, 80)])
@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "Full"])
def test_a_step_on_packed_rows_moves_the_weights_as_a_step_on_single_rows(
    tiny_model: Path, tmp_path: Path, method: str, sequences: int, max_length: int
) -> None:
    """Both steps see all six rows; the gradient is a mean over their trained tokens either way."""
    wanted = settings_for(method, packing=True, batch=sequences, max_length=max_length)
    packed = make_trainer(tiny_model, tmp_path / "packed", wanted)
    assert len(packed.train_dataset) == sequences
    single = make_trainer(tiny_model, tmp_path / "single", settings_for(method, packing=False, batch=6))
    for trainer in (packed, single):
        trainer.train()
    losses = [trainer.state.log_history[0]["loss"] for trainer in (packed, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    norms = [trainer.state.log_history[0]["grad_norm"] for trainer in (packed, single)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    other = trained_tensors(single.model)
    for name, tensor in trained_tensors(packed.model).items():
        torch.testing.assert_close(tensor, other[name], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_the_loss_that_balances_experts_does_not_count_the_padding_of_packed_lines(
    tiny_model: Path, tmp_path: Path, model_type: str
) -> None:
    """The sequences have 40 and 33 tokens; the six rows alone have another padding, and the same tokens."""
    base = tmp_path / "mixture"
    copytree(tiny_model, base, ignore=ignore_patterns("*.safetensors", "config.json"))
    make_model(model_type, "sdpa", vocab_size=512, router_aux_loss_coef=1.0).save_pretrained(base)
    losses = []
    for folder, wanted in (
        ("packed", settings_for("LoRA", packing=True)),
        ("single", settings_for("LoRA", packing=False, batch=6)),
    ):
        trainer = make_trainer(base, tmp_path / folder, wanted)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_packed_batches_carry_every_token_once_and_count_no_padding(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, settings_for("LoRA", packing=True))
    (batch,) = list(trainer.get_train_dataloader())
    samples = make_samples()
    assert batch["input_ids"].numel() <= 2 * 40
    assert "attention_mask" not in batch
    assert sum(batch["row_tokens"]) == sum(len(sample.input_ids) for sample in samples)
    assert int((batch["labels"] != -100).sum()) == sum(sample.trained for sample in samples)
    trainer.train()
    assert trainer.state.log_history[0]["num_tokens"] == sum(len(sample.input_ids) for sample in samples)


def test_one_sequence_is_laid_into_several_lines_each_row_whole(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, settings_for("LoRA", packing=True, batch=1, max_length=80))
    (batch,) = list(trainer.get_train_dataloader())
    assert len(batch["input_ids"]) == 2
    found = []
    for ids, positions, tokens in zip(batch["input_ids"], batch["position_ids"], batch["row_tokens"], strict=True):
        starts = [at for at in range(tokens) if positions[at] == 0]
        found += [ids[start:end].tolist() for start, end in itertools.pairwise([*starts, int(tokens)])]
    assert sorted(found) == sorted(sample.input_ids for sample in make_samples())


def test_held_out_rows_are_measured_unpacked(tiny_model: Path, tmp_path: Path) -> None:
    packed = make_trainer(tiny_model, tmp_path / "packed", settings_for("LoRA", packing=True))
    assert len(packed.eval_dataset) == 6
    assert all("attention_mask" in batch for batch in packed.get_eval_dataloader())
    single = make_trainer(tiny_model, tmp_path / "single", settings_for("LoRA", packing=False))
    assert packed.measure() == single.measure()


def test_a_job_that_packs_trains_as_many_steps_as_its_sequences_make(tmp_path: Path, tiny_model: Path) -> None:
    hyper = {"numTrainEpochs": 2, "learningRate": 0.01, "maxLength": 256, "packing": "Always"}
    bench = Bench(tmp_path, tiny_model, make_spec("LoRA", hyperparameters=hyper))
    config = bench.prepare()
    assert config.resolved
    assert config.resolved.packing is True
    report = bench.train(config)
    assert report.resolved
    assert report.resolved.total_steps == report.last_step == config.resolved.total_steps
    last = bench.reporter.snapshot().progress
    assert (last.step, last.epoch) == (report.last_step, 2.0)
    assert report.metrics
    assert report.metrics.eval_loss is not None
    assert report.metrics.baseline_eval_loss is not None
    assert report.metrics.eval_loss < report.metrics.baseline_eval_loss


def test_a_job_that_cannot_pack_is_refused_before_it_claims_its_output(tmp_path: Path, tiny_model: Path) -> None:
    """The same weights under a name whose attention is not known."""
    model = copytree(tiny_model, tmp_path / "model")
    config = (model / "config.json").read_text(encoding="utf-8")
    (model / "config.json").write_text(config.replace('"llama"', '"unheard_of"'), encoding="utf-8")
    bench = Bench(tmp_path / "job", model, make_spec("LoRA", hyperparameters={"packing": "Always"}))
    (tmp_path / "job").mkdir()
    with pytest.raises(TrainerError, match="attention of unheard_of") as caught:
        bench.prepare()
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert not list(bench.output.iterdir())
