"""DPO and KTO on tiny models: reference, losses, published files, and the behaviour of TRL that we rely on."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import loop_bench
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from finetune_api.comparing.comparison import compare
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_api.handoff import ExitCode
from finetune_api.objectives import LossType
from finetune_api.status import Resolved
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.models.adapters.saved import continue_adapter, save_adapter
from finetune_trainer.models.loading import load_for_training, load_tokenizer, trained_tensors
from finetune_trainer.models.memory.estimate import micro_batches
from finetune_trainer.pipeline.inputs import as_text
from finetune_trainer.pipeline.measure import restore_best
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.sample_table import Samples, as_samples, with_prompts
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair
from finetune_trainer.training.callbacks import restore_trained
from finetune_trainer.training.methods import build_trainer, kto, reference
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import LoopContext, TrainerParts

CPU = torch.device("cpu")
METHODS = ["LoRA", "QLoRA", "Full"]
PAIRS = [EncodedPair([1, 20 + at, 21], [30, 31, 2], [40, 41 + at % 3, 42, 2]) for at in range(10)]
JUDGED = [
    EncodedLabelled(pair.prompt_ids, ids, good)
    for pair in PAIRS
    for ids, good in ((pair.chosen_ids, True), (pair.rejected_ids, False))
]
SAMPLES: dict[str, Sequence[Any]] = {"DPO": PAIRS, "KTO": JUDGED}
START = {"DPO": math.log(2), "KTO": 0.5}


OWN: dict[str, Any] = {
    "learning_rate": 0.01,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 1,
    "global_batch_size": 4,
    "eval_steps": 2,
    "lora_rank": 4,
    "lora_alpha": 8,
    "beta": 0.1,
    "loss_type": "sigmoid",
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}


def make_settings(method: str = "LoRA", **changes: Any) -> Resolved:
    return loop_bench.make_settings(method, **OWN | changes)


def make_trainer(
    objective: str, base: Path, tmp_path: Path, settings: Resolved, adapter: Path | None = None
) -> LoopTrainer:
    model = load_for_training(base, settings, CPU)
    if adapter:
        continue_adapter(model, adapter)
    samples = SAMPLES[objective]
    loop, scratch = loop_bench.make_loop(tmp_path), tmp_path / "scratch"
    return build_trainer(
        objective, TrainerParts(model, load_tokenizer(base), settings, loop, samples, samples, scratch)
    )


@pytest.fixture(scope="session")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that supervised tuning has moved far from its base."""
    folder = tmp_path_factory.mktemp("taught")
    settings = make_settings(total_steps=15, learning_rate=0.03)
    texts = [as_text(pair) for pair in PAIRS]
    model = load_for_training(tiny_model, settings, CPU)
    loop = loop_bench.make_loop(folder)
    parts = TrainerParts(model, load_tokenizer(tiny_model), settings, loop, texts, [], folder / "scratch")
    build_trainer("Chat", parts).train()
    assert loop.history.train[-1].loss < loop.history.train[0].loss - 0.5
    save_adapter(model, folder / "adapter", "s3://bucket/model")
    return folder / "adapter"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_training_starts_at_its_reference_and_the_margin_grows(
    tiny_model: Path, tmp_path: Path, objective: str, method: str
) -> None:
    trainer = make_trainer(objective, tiny_model, tmp_path, make_settings(method))
    trainer.evaluate()
    trainer.train()
    loop = trainer._loop
    start, *later = [point.measured for point in loop.history.evaluations]
    assert start.loss == pytest.approx(START[objective], abs=0.01)
    assert start.reward_margin == pytest.approx(0, abs=0.01)
    assert start.reward_accuracy is None
    assert later[-1].loss < start.loss
    margins = [point.reward_margin for point in later]
    assert margins == sorted(margins, key=lambda margin: margin or 0)
    assert (margins[-1] or 0) > 0.1
    assert (later[-1].reward_accuracy == 1) if objective == "DPO" else (later[-1].reward_accuracy is None)
    assert loop.reporter.snapshot().metrics.reward_margin is not None
    best = restore_best(trainer, loop)
    assert best.loss == pytest.approx(loop.plateau.best_loss, abs=1e-4)


def test_the_accuracy_of_restored_weights_is_measured_without_a_step(tiny_model: Path, tmp_path: Path) -> None:
    """As the model is measured that will be served, and an adapter that was not trained here."""
    make_trainer("DPO", tiny_model, tmp_path, make_settings()).train()
    trainer = make_trainer("DPO", tiny_model, tmp_path / "served", make_settings())
    assert trainer.measure().reward_accuracy is None
    restore_trained(trainer.model, tmp_path / "best.safetensors")
    assert trainer.measure().reward_accuracy == 1


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_a_continued_adapter_is_its_own_reference(
    tiny_model: Path, tmp_path: Path, taught: Path, objective: str, method: str
) -> None:
    """In training mode too: dropout would change the first loss."""
    settings = make_settings(method, total_steps=1, lora_dropout=0.5)
    trainer = make_trainer(objective, tiny_model, tmp_path, settings, taught)
    assert trainer.measure().loss == pytest.approx(START[objective], abs=1e-4)
    trainer.train()
    assert trainer._loop.history.train[0].loss == pytest.approx(START[objective], abs=1e-4)


@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_the_base_as_reference_of_a_continued_adapter_is_refused(
    tiny_model: Path, tmp_path: Path, taught: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = reference.ReferencedTrainer._measure_reference

    def take_from_the_base(trainer: Any, *rows: Any) -> Any:
        with trainer.model.disable_adapter():
            trainer.model.peft_config.pop(reference.FROZEN_COPY, None)  # TRL then measures with the adapter off
            yield from take(trainer, *rows)

    monkeypatch.setattr(reference.ReferencedTrainer, "_measure_reference", take_from_the_base)
    monkeypatch.setattr(PeftModel, "delete_adapter", lambda *_: None)
    with pytest.raises(TrainerError, match="the reference differs from the initial model") as caught:
        make_trainer(objective, tiny_model, tmp_path, make_settings(), taught)
    assert caught.value.code is ExitCode.INTERNAL_ERROR
    monkeypatch.setattr(reference, "LARGEST_DRIFT", math.inf)
    unchecked = make_trainer(objective, tiny_model, tmp_path, make_settings(), taught)
    assert abs(unchecked.measure().loss - START[objective]) > 0.01


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_a_continued_adapter_enters_the_training_as_it_was_saved(
    tiny_model: Path, tmp_path: Path, taught: Path, method: str
) -> None:
    """TRL rounds the adapter of a quantised model to BF16."""
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(taught), is_trainable=True)
    expected = trained_tensors(plain)
    trainer = make_trainer("DPO", tiny_model, tmp_path, make_settings(method), taught)
    found = trained_tensors(trainer.model)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_the_saved_adapter_is_one_adapter_that_plain_peft_loads(
    tiny_model: Path, tmp_path: Path, taught: Path, objective: str
) -> None:
    trainer = make_trainer(objective, tiny_model, tmp_path, make_settings(total_steps=2), taught)
    trainer.train()
    folder = tmp_path / "adapter"
    save_adapter(trainer.model, folder, "s3://bucket/model")
    assert not [path for path in folder.iterdir() if path.is_dir()]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(folder)).eval()
    ids = torch.tensor([[1, 20, 21, 30, 31, 2]])
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits, atol=1e-4, rtol=1e-4)


STARTS = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": (1 / (2 * 0.1)) ** 2,
    "robust": math.log(2),
    "exo_pair": -math.log(2) - math.log(0.05 * 0.95) / 2,
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 2 * (0.5 / 0.1) ** 2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (math.log(2) + 1) / 2,
    "sigmoid_norm": math.log(2),
}
"""The formula of each loss where model and reference are equal, with beta 0.1 and a label smoothing of 0.05."""


@pytest.mark.parametrize("loss_type", list(LossType))
def test_each_loss_of_dpo_starts_at_the_value_of_its_formula(
    tiny_model: Path, tmp_path: Path, loss_type: LossType
) -> None:
    start = STARTS[loss_type]
    settings = make_settings(loss_type=loss_type.value, label_smoothing=0.05, total_steps=2)
    trainer = make_trainer("DPO", tiny_model, tmp_path, settings)
    assert trainer.measure().loss == pytest.approx(start, rel=1e-3)
    trainer.train()
    assert trainer.measure().loss < start


@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_the_held_out_loss_of_a_mixture_is_that_of_the_answers_alone(
    tiny_model: Path, tmp_path: Path, objective: str
) -> None:
    """The loss that balances the experts is of the training."""
    base = tmp_path / "mixture"
    shutil.copytree(tiny_model, base, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(
        Qwen3MoeConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96,
            router_aux_loss_coef=0.5, pad_token_id=2, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(base)  # fmt: skip
    trainer = make_trainer(objective, base, tmp_path, make_settings(total_steps=2))
    trainer.evaluate()
    trainer.train()
    start, end = trainer._loop.history.evaluations
    assert start.loss == pytest.approx(START[objective], abs=0.01)
    assert end.loss == pytest.approx(START[objective], abs=0.2)
    assert trainer._loop.history.train[0].loss > START[objective] + 0.5


@pytest.mark.parametrize(
    "named", [{}, {"pad_token": "<|beyond|>"}, {"eos_token": "<|beyond|>"}], ids=["none", "padding", "end"]
)
def test_a_tokenizer_without_a_known_token_for_padding_or_for_the_end_trains(
    tiny_model: Path, tmp_path: Path, named: dict[str, str]
) -> None:
    """Nor does a token that is only in the tokenizer's configuration have an embedding."""
    base = tmp_path / "model"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    others = {name: value for name, value in config.items() if name not in {"eos_token", "pad_token"}}
    (base / "tokenizer_config.json").write_text(json.dumps(others | named), encoding="utf-8")
    size = len(json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": size}), encoding="utf-8")
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:size].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    make_trainer("DPO", base, tmp_path, make_settings(total_steps=2)).train()


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_the_robust_loss_takes_a_share_of_the_labels_as_swapped(
    tiny_model: Path, tmp_path: Path, smoothing: float
) -> None:
    """`(-(1 - e) log s(m) + e log s(-m)) / (1 - 2 e)` of the margin m, for one pair."""
    settings = make_settings(loss_type="robust", label_smoothing=smoothing, per_device_train_batch_size=1)
    trainer = make_trainer("DPO", tiny_model, tmp_path, settings)
    torch.manual_seed(1)
    for tensor in trained_tensors(trainer.model).values():
        torch.nn.init.normal_(tensor, std=0.1)
    found = trainer._measure_batch(trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]])))
    margin = found.figures["reward_margin"][0]
    assert abs(margin) > 0.01
    clean, swapped = (math.log1p(math.exp(-sign * margin)) for sign in (1, -1))
    expected = ((1 - smoothing) * clean - smoothing * swapped) / (1 - 2 * smoothing)
    assert found.loss == pytest.approx(expected, rel=1e-4)


def test_the_chosen_answers_own_loss_is_added_by_its_weight(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer("DPO", tiny_model, tmp_path, make_settings(sft_weight=0.5))
    nats = []
    with torch.no_grad():
        for pair in PAIRS:
            ids = torch.tensor([pair.prompt_ids + pair.chosen_ids])
            log_probs = trainer.model(ids).logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            nats.append(-log_probs[len(pair.prompt_ids) - 1 :])
    own = float(torch.cat(nats).mean())
    assert trainer.measure().loss == pytest.approx(math.log(2) + 0.5 * own, rel=1e-3)


def test_a_reward_is_beta_times_the_change_in_log_probability(tiny_model: Path, tmp_path: Path) -> None:
    margins = []
    for beta in (0.1, 0.2):
        trainer = make_trainer("DPO", tiny_model, tmp_path, make_settings(beta=beta))
        torch.manual_seed(1)
        for tensor in trained_tensors(trainer.model).values():
            torch.nn.init.normal_(tensor, std=0.1)
        margins.append(trainer.measure().reward_margin or 0)
    assert margins[1] == pytest.approx(2 * margins[0], rel=1e-3)


def test_the_weights_of_kto_weigh_good_and_bad_answers(tiny_model: Path, tmp_path: Path) -> None:
    settings = make_settings(desirable_weight=3.0, undesirable_weight=1.0)
    assert make_trainer("KTO", tiny_model, tmp_path, settings).measure().loss == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_trl_joins_and_pads_the_ids_of_pairs_and_changes_nothing_else(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    trainer = make_trainer("DPO", tiny_model, tmp_path, make_settings(method))
    seen = []
    for batch in trainer.get_train_dataloader():
        rows = list(zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True))
        for chosen, rejected in zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True):
            seen.append([split(*chosen), split(*rejected)])
    wanted = [[(pair.prompt_ids, pair.chosen_ids), (pair.prompt_ids, pair.rejected_ids)] for pair in PAIRS]
    assert sorted(seen) == sorted(wanted)
    names = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
    assert trainer.train_dataset.column_names == names


def test_trl_joins_and_pads_the_ids_of_judged_answers_and_changes_nothing_else(
    tiny_model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer("KTO", tiny_model, tmp_path, make_settings())
    seen, strangers = [], []
    for batch in trainer.get_train_dataloader():
        rows = zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True)
        seen += [(*split(*row), bool(good)) for row, good in zip(rows, batch["label"], strict=True)]
        rows = zip(batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"], strict=True)
        strangers += [split(*row) for row in rows]
    assert sorted(seen) == sorted((row.prompt_ids, row.completion_ids, row.desirable) for row in JUDGED)
    assert [prompt for prompt, *_ in seen] == [prompt for prompt, _ in strangers]


def split(ids: torch.Tensor, attention: torch.Tensor, completion: torch.Tensor) -> tuple[list[int], list[int]]:
    """Return prompt and answer of a padded row."""
    return ids[(attention - completion).bool()].tolist(), ids[completion.bool()].tolist()


def test_an_answer_is_measured_for_divergence_on_the_prompt_of_another() -> None:
    rows = kto.shuffled(JUDGED, 42)
    assert sorted(map(repr, rows)) == sorted(map(repr, JUDGED))
    assert list(rows) != list(JUDGED)
    for at, other in enumerate(kto.pair_with_other_prompts(rows)):
        assert rows[other].prompt_ids != rows[at].prompt_ids


def test_rows_of_one_prompt_alone_are_paired_all_the_same() -> None:
    rows = [EncodedLabelled([1], [ids], True) for ids in range(3)]
    assert len(kto.pair_with_other_prompts(as_samples(rows))) == 3


def with_few_prompts(objective: str) -> Samples[Any]:
    """The samples of five prompts, of which no two neighbours have the same one."""
    samples = as_samples(SAMPLES[objective])
    return with_prompts(samples, {row: row % 5 for row in range(len(samples))})


def measure_few_prompts(
    objective: str, base: Path, tmp_path: Path, loop: LoopContext | None = None
) -> tuple[LoopTrainer, Measured]:
    settings = make_settings(desirable_weight=1.0 if objective == "KTO" else None)
    model, loop = load_for_training(base, settings, CPU), loop or loop_bench.make_loop(tmp_path)
    samples, scratch = with_few_prompts(objective), tmp_path / "scratch"
    trainer = build_trainer(
        objective, TrainerParts(model, load_tokenizer(base), settings, loop, SAMPLES[objective], samples, scratch)
    )
    return trainer, trainer.measure()


@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_held_out_rows_of_five_prompts_are_five_groups(tiny_model: Path, tmp_path: Path, objective: str) -> None:
    _, measured = measure_few_prompts(objective, tiny_model, tmp_path)
    found = compare(EvaluationMetric.LOSS, measured.batches, measured.batches, owners=measured.owners)
    assert found
    assert found.groups == 5
    assert sum(weight for weight, _ in measured.owners) == measured.tokens == len(SAMPLES[objective])


def test_held_out_answers_to_one_prompt_are_measured_together(tiny_model: Path, tmp_path: Path) -> None:
    trainer, measured = measure_few_prompts("KTO", tiny_model, tmp_path)
    assert [prompt for _, prompt in measured.owners] == [at // 4 for at in range(20)]
    known = {tuple(row.prompt_ids + row.completion_ids): at % 5 for at, row in enumerate(JUDGED)}
    rows = [trainer.eval_dataset[at] for at in range(20)]
    prompts = [known[*row["prompt_ids"], *row["completion_ids"]] for row in rows]
    assert sum(one != other for one, other in pairwise(prompts)) == 4


def test_a_resumed_run_has_the_order_of_held_out_answers_of_its_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference, its losses and its baseline are of the batches in that order."""
    loop = replace(loop_bench.make_loop(tmp_path), reference=tmp_path / "reference.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(kto, "order_by_prompt", lambda prompts: list(range(len(prompts))))
        _, before = measure_few_prompts("KTO", tiny_model, tmp_path, loop)
    trainer, after = measure_few_prompts("KTO", tiny_model, tmp_path, loop)
    assert before == after
    mixed = kto.shuffled(with_few_prompts("KTO"), 42)
    assert [list(row.completion_ids) for row in mixed] == list(trainer.eval_dataset["completion_ids"])
    found = compare(EvaluationMetric.LOSS, before.batches, after.batches, owners=after.owners)
    assert found
    assert found.verdict is Verdict.NOT_EVALUATED


def test_a_run_that_is_resumed_finds_its_reference_by_prompt(tiny_model: Path, tmp_path: Path) -> None:
    loop = replace(loop_bench.make_loop(tmp_path), reference=tmp_path / "reference.safetensors")
    _, before = measure_few_prompts("KTO", tiny_model, tmp_path, loop)
    written = (tmp_path / "reference.safetensors").read_bytes()
    assert measure_few_prompts("KTO", tiny_model, tmp_path, loop)[1] == before
    assert (tmp_path / "reference.safetensors").read_bytes() == written


@pytest.mark.parametrize(("sizes", "order"), [((1, 1, 1), [0, 1, 2]), ((1, 2, 3, 2), [1, 2, 6, 7, 0, 3, 4, 5])])
def test_prompts_with_an_even_number_of_rows_come_first(sizes: tuple[int, ...], order: list[int]) -> None:
    """Rows are measured two at a time: batches of an even number of rows end where the prompt does."""
    assert kto.order_by_prompt([prompt for prompt, size in enumerate(sizes) for _ in range(size)]) == order


def test_kto_with_batches_of_one_row_is_refused_with_the_field_to_set(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"set hyperparameters\.perDeviceTrainBatchSize to 2") as caught:
        make_trainer("KTO", tiny_model, tmp_path, make_settings(per_device_train_batch_size=1))
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_smaller_batches_of_pairs_train_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """As after a GPU ran out of memory: neither the reference nor the steps may depend on the batch size."""
    references, losses = [], []
    whole = make_settings("Full", learning_rate=1e-3, total_steps=3, desirable_weight=None)
    for settings in micro_batches(whole):
        trainer = make_trainer("DPO", tiny_model, tmp_path, settings)
        columns = trainer.train_dataset.with_format("torch")
        references.append(torch.stack([columns["ref_chosen_logps"][:], columns["ref_rejected_logps"][:]]))
        trainer.train()
        losses.append([point.loss for point in trainer._loop.history.train])
    assert len(losses) == 3
    for reference_, loss in zip(references[1:], losses[1:], strict=True):
        torch.testing.assert_close(reference_, references[0], atol=1e-3, rtol=1e-4)
        assert loss == pytest.approx(losses[0], abs=2e-3)


@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_a_model_whose_output_is_not_finite_is_diverged_before_the_first_step(
    tiny_model: Path, tmp_path: Path, objective: str
) -> None:
    poisoned = tmp_path / "poisoned"
    shutil.copytree(tiny_model, poisoned)
    weights = load_file(poisoned / "model.safetensors")
    weights["model.norm.weight"][3] = math.nan
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainerError, match="not finite at step 0") as caught:
        make_trainer(objective, poisoned, tmp_path, make_settings())
    assert caught.value.code is ExitCode.DIVERGED


def test_smaller_batches_of_kto_end_at_two_rows() -> None:
    sizes = [one.per_device_train_batch_size for one in micro_batches(make_settings(per_device_train_batch_size=4))]
    assert sizes == [4, 2]


@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_a_stop_takes_effect_during_the_reference_pass(
    tiny_model: Path, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def stop_at_the_second(flag: StopFlag) -> None:
        measured.append(1)
        if len(measured) == 2:
            raise Stopped

    monkeypatch.setattr(StopFlag, "raise_if_set", stop_at_the_second)
    with pytest.raises(Stopped):
        make_trainer(objective, tiny_model, tmp_path, make_settings())
    assert len(measured) == 2
