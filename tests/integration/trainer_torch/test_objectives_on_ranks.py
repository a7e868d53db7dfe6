"""DPO, KTO and RewardModel in two processes over gloo: the training and the figures of one process."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import CPU, make_loop, make_settings
from ranks import join_as, run_ranks
from thin_slice import thin_slice
from trainer_bench import OWN, weights_of

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.sharding import trains_shards
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.models.loading import load_for_training, load_tokenizer
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair
from finetune_trainer.training.methods import build_trainer, traits_of
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts

RANKS = 2
PAIRS = [EncodedPair([1, 20 + at, 21], [30, 31 + at % 2, 2], [40, 41 + at % 3, 42, 2]) for at in range(33)]
GOOD = (3, 10, 25)
"""Of the answers; most batches of a process have none of them."""
JUDGED = [
    EncodedLabelled(pair.prompt_ids, pair.chosen_ids if at in GOOD else pair.rejected_ids, at in GOOD)
    for at, pair in enumerate(PAIRS)
]
OBJECTIVES = {"DPO": PAIRS, "KTO": JUDGED, "RewardModel": PAIRS}
ROWS = 24
"""Three whole steps; the other rows are held out, an odd number of batches of two for KTO."""


@pytest.mark.parametrize(
    ("objective", "method"),
    thin_slice(
        [("DPO", "Full"), *product(["KTO", "RewardModel"], ["LoRA", "QLoRA", "Full"])],
        ("DPO", "Full"),
        ("KTO", "QLoRA"),
        ("RewardModel", "Full"),
    ),
)
def test_two_processes_train_and_measure_as_one(tiny_model: Path, tmp_path: Path, objective: str, method: str) -> None:
    alone = _build(tiny_model, tmp_path / "alone", ALONE, objective=objective, method=method)
    start = weights_of(alone)
    expected = _train(alone)
    for found in run_ranks(_train_rank, RANKS, tiny_model, tmp_path, objective=objective, method=method):
        assert found["shards"] is (method == "Full")
        for name in ("losses", "margins", "accuracies"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
        for one, other in zip(found["evaluations"], expected["evaluations"], strict=True):
            assert one.tokens == other.tokens == len(PAIRS) - ROWS
            assert [weight for _, weight in one.batches] == [weight for _, weight in other.batches]
            assert _figures(one) == pytest.approx(_figures(other), rel=1e-3, abs=1e-4)
        moved = [name for name, tensor in found["weights"].items() if not torch.equal(tensor, start[name])]
        assert len(moved) == len(start)
        for name, tensor in expected["weights"].items():
            assert found["weights"][name].dtype == tensor.dtype == torch.float32
            torch.testing.assert_close(found["weights"][name], tensor, rtol=0.01, atol=2e-3)
    if objective == "RewardModel":
        assert any("score" in name for name in start)


@pytest.mark.parametrize("objective", thin_slice(["DPO", "KTO", "RewardModel"], "RewardModel"))
def test_with_layers_gathered_in_bf16_two_processes_have_the_figures_of_one(
    tiny_model: Path, tmp_path: Path, objective: str
) -> None:
    changes = {"objective": objective, "method": "Full", "precision": "BF16"}
    expected = _train(_build(tiny_model, tmp_path / "alone", ALONE, **changes))
    for found in run_ranks(_train_rank, RANKS, tiny_model, tmp_path, **changes):
        assert found["losses"] == pytest.approx(expected["losses"], rel=0.02)
        for one, other in zip(found["evaluations"], expected["evaluations"], strict=True):
            assert _figures(one) == pytest.approx(_figures(other), rel=0.05, abs=0.02)


@pytest.mark.parametrize("objective", ["KTO", "RewardModel"])
def test_an_epoch_whose_last_step_has_one_row_ends_in_both_processes(
    tiny_model: Path, tmp_path: Path, objective: str
) -> None:
    first, second = run_ranks(_train_rank, RANKS, tiny_model, tmp_path, objective=objective, rows=17)
    assert first["losses"] == second["losses"]
    assert all(map(math.isfinite, first["losses"]))
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name])


def test_a_divergence_that_is_not_finite_in_one_process_ends_the_training_in_both(
    tiny_model: Path, tmp_path: Path
) -> None:
    """TRL's loss leaves out answers whose own loss is not a number."""
    for found in run_ranks(_poison_second, RANKS, tiny_model, tmp_path, objective="KTO"):
        assert found["code"] is ExitCode.DIVERGED
        assert "the training loss is not finite at step 1" in found["message"]


def _build(
    model: Path,
    folder: Path,
    world: World,
    *,
    objective: str,
    method: str = "LoRA",
    precision: str = "FP32",
    rows: int = ROWS,
) -> LoopTrainer:
    """Five steps of eight rows each, in one micro-batch, over which KTO measures its divergence."""
    batch = {"per_device_train_batch_size": 8 // world.size, "gradient_accumulation_steps": 1}
    settings = make_settings(
        method, **OWN.get(objective, {}), **batch, precision=precision, total_steps=5, eval_steps=2
    )
    folder.mkdir()
    loop = replace(make_loop(folder), world=world)
    loaded = load_for_training(model, settings, CPU, writes_text=traits_of(objective).writes_text, world=world)
    samples = OBJECTIVES[objective]
    parts = TrainerParts(
        loaded, load_tokenizer(model), settings, loop, samples[:rows], samples[ROWS:], folder / "scratch"
    )
    return build_trainer(objective, parts)


def _train(trainer: LoopTrainer) -> dict[str, Any]:
    """Measure, train, and return all figures and the trained weights."""
    trainer.evaluate()
    trainer.train()
    points = trainer._loop.history.train
    return {
        "losses": [one.loss for one in points],
        "margins": [one.reward_margin for one in points if one.reward_margin is not None],
        "accuracies": [one.reward_accuracy for one in points if one.reward_accuracy is not None],
        "evaluations": [one.measured for one in trainer._loop.history.evaluations],
        "weights": weights_of(trainer),
        "shards": trains_shards(trainer.model),
    }


def _figures(measured: Measured) -> dict[str, float]:
    return {"loss": measured.loss, "standard_error": measured.standard_error or 0.0} | measured.figures()


def _train_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> LoopTrainer:
    trainer = _build(model, folder / f"rank-{rank}", join_as(rank, RANKS, port), **changes)
    torch.save(_train(trainer), folder / f"found-{rank}.pt")
    torch.distributed.barrier()  # the first process holds the others' store
    return trainer


def _poison_second(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> LoopTrainer:
    """Train with a prompt of another answer that is not finite in the second process alone."""
    trainer = _build(model, folder / f"rank-{rank}", join_as(rank, RANKS, port), **changes)
    if rank:
        poisoned = torch.full((len(trainer.train_dataset),), math.nan).numpy()
        trainer.train_dataset = trainer.train_dataset.remove_columns("ref_KL_logps").add_column(
            "ref_KL_logps", poisoned
        )
    try:
        trainer.train()
    except TrainerError as error:
        torch.save({"code": error.code, "message": str(error)}, folder / f"found-{rank}.pt")
    torch.distributed.barrier()
    return trainer
