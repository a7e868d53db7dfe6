"""Every optimiser: its first step is that of its formula, its state has the counted size, and a saved one continues."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.optim import AdEMAMix
from bitsandbytes.optim.optimizer import Optimizer8bit
from thin_slice import thin_slice
from trainer_bench import KeepGradients, make_trainer, weights_of
from transformers.training_args import OptimizerNames

from finetune_api.hyperparameters import WITHOUT_BETAS, WITHOUT_EPSILON, Optimiser
from finetune_api.status import Resolved
from finetune_trainer.models.memory.optimisers import state_bytes
from finetune_trainer.training.methods.loop import LoopTrainer

RATE = 1e-3
OFTEN = (
    Optimiser.ADAMW_TORCH_FUSED, Optimiser.PAGED_ADAMW_8BIT, Optimiser.ADAFACTOR, Optimiser.LION_8BIT,
    Optimiser.ADEMAMIX_8BIT,
)  # fmt: skip
WITH_BETAS = [one for one in Optimiser if one not in WITHOUT_BETAS]
RATIOS = {"adamw": 1.0, "lion": 1.0, "ademamix": 1 + 5 * (1 - 0.9999), "adagrad": 1.0, "rmsprop": (1 - 0.99) ** -0.5}
"""First step of a weight by its learning rate, in the direction of its gradient: all moments are that gradient's. For
AdEMAMix: `alpha` 5 times the slow average, which has no bias correction."""


def build(model: Path, folder: Path, optim: Optimiser) -> tuple[LoopTrainer, KeepGradients]:
    """Return a trainer of one step. Set past the settings: they refuse on a CPU what is meant for a GPU's memory."""
    trainer = make_trainer(
        "Instruction", model, folder, total_steps=1, learning_rate=RATE, max_grad_norm=0.0, lora_rank=64
    )
    trainer.args.optim = OptimizerNames(optim.value)
    gradients = KeepGradients()
    trainer.add_callback(gradients)
    return trainer, gradients


def adafactor(gradient: torch.Tensor) -> torch.Tensor:
    """The update of the paper: by the root of the outer product of row and column means, with RMS at most 1."""
    square = gradient.double() ** 2 + 1e-30
    row, column = square.mean(1, keepdim=True), square.mean(0, keepdim=True)
    update = gradient.double() / (row * column / square.mean()).sqrt()
    return update / max(1.0, float(update.square().mean().sqrt()))


def expected_step(optim: Optimiser, gradient: torch.Tensor) -> torch.Tensor:
    if optim is Optimiser.ADAFACTOR:
        return adafactor(gradient)
    if optim is Optimiser.SGD:
        return gradient.double()
    (ratio,) = {ratio for name, ratio in RATIOS.items() if name in optim.value}
    return ratio * gradient.double().sign()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", thin_slice(Optimiser, *OFTEN))
def test_the_first_step_is_that_of_the_formula(tiny_model: Path, tmp_path: Path, optim: Optimiser) -> None:
    trainer, gradients = build(tiny_model, tmp_path, optim)
    before = weights_of(trainer)
    trainer.train()
    moved = 0
    for name, after in weights_of(trainer).items():
        gradient = gradients.found[name]
        step = (before[name].double() - after.double()) / RATE
        clear = gradient.abs() > 1e-4  # below that, the term against a division by zero counts
        moved += int(clear.sum())
        assert torch.allclose(step[clear], expected_step(optim, gradient)[clear], rtol=5e-3, atol=1e-4), name
    assert moved > 1000


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("ratio", [None, 16.0])
@pytest.mark.parametrize("optim", thin_slice(WITH_BETAS, *(one for one in OFTEN if one in WITH_BETAS)))
def test_an_optimiser_has_the_betas_and_the_epsilon_of_the_job(
    tiny_model: Path, tmp_path: Path, optim: Optimiser, ratio: float | None
) -> None:
    asked = {"adam_beta1": 0.8, "adam_beta2": 0.95, "lora_plus_lr_ratio": ratio}
    epsilon = {} if optim in WITHOUT_EPSILON else {"adam_epsilon": 1e-6}
    trainer = make_trainer("Instruction", tiny_model, tmp_path, total_steps=1, **asked, **epsilon)
    trainer.args.optim = OptimizerNames(optim.value)
    for group in trainer.create_optimizer().param_groups:
        assert tuple(group["betas"])[:2] == (0.8, 0.95)
        assert not epsilon or group["eps"] == 1e-6


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_training_with_8_bits_leaves_no_weight_in_memory(tiny_model: Path, tmp_path: Path) -> None:
    trainer, _ = build(tiny_model, tmp_path, Optimiser.PAGED_ADAMW_8BIT)
    embedding = weakref.ref(trainer.model.get_input_embeddings())
    trainer.train()
    del trainer, _
    gc.collect()
    assert embedding() is None


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", thin_slice(Optimiser, *OFTEN))
def test_the_state_takes_the_bytes_that_are_counted_and_continues_after_it_was_saved(
    tiny_model: Path, tmp_path: Path, optim: Optimiser
) -> None:
    trainer, gradients = build(tiny_model, tmp_path / "first", optim)
    trainer.train()
    state = trainer.optimizer.optimizer.state
    kept = [
        value for one in state.values() for name, value in one.items() if name not in {"step", "RMS", "qmap1", "qmap2"}
    ]
    shapes = [tuple(one.shape) for one in weights_of(trainer).values()]
    counted = state_bytes(shapes, Resolved(method="LoRA", optim=optim.value))
    assert sum(one.numel() * one.element_size() for one in kept) == counted
    trainer._save_optimizer_and_scheduler(str(tmp_path))
    other, _ = build(tiny_model, tmp_path / "second", optim)
    other.create_optimizer_and_scheduler(1)
    other.optimizer = other.accelerator.prepare(other.optimizer)
    with torch.no_grad():
        for one, same in zip(other.model.parameters(), trainer.model.parameters(), strict=True):
            one.copy_(same)
    other._load_optimizer_and_scheduler(str(tmp_path))
    for resumed in (trainer, other):
        for name, one in resumed.model.named_parameters():
            one.grad = gradients.found[name].clone() if one.requires_grad else None
        resumed.optimizer.step()
    ours, theirs = weights_of(trainer), weights_of(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", [Optimiser.PAGED_ADAMW_8BIT, Optimiser.PAGED_LION, Optimiser.PAGED_ADEMAMIX_8BIT])
def test_a_paged_state_is_in_pages_again_after_a_resume(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: Optimiser
) -> None:
    trainer, _ = build(tiny_model, tmp_path / "first", optim)
    trainer.train()
    trainer._save_optimizer_and_scheduler(str(tmp_path))
    pages: list[torch.Tensor] = []

    def keep(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make(*arguments: object, **options: object) -> torch.Tensor:
            pages.append(plain(*arguments, **options))
            return pages[-1]

        return make

    for kind, name in ((Optimizer8bit, "get_state_buffer"), (AdEMAMix, "_get_state_double_buffer")):
        monkeypatch.setattr(kind, name, keep(getattr(kind, name)))
    other, _ = build(tiny_model, tmp_path / "second", optim)
    other.create_optimizer_and_scheduler(1)
    other.optimizer = other.accelerator.prepare(other.optimizer)
    other._load_optimizer_and_scheduler(str(tmp_path))
    ours, theirs = (list(one.optimizer.optimizer.state.values()) for one in (other, trainer))
    loaded = [one[name] for one in ours for name in ("state1", "state2") if name in one]
    assert {id(one) for one in loaded} == {id(page) for page in pages}
    assert len(ours) == len(theirs) > 0
    for one, same in zip(ours, theirs, strict=True):
        assert one.keys() == same.keys()
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(same[name])) for name in one)
