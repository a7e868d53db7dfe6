"""Four steps of GRPO and RLOO against their formulas, computed in float64 from the sampled answers alone."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import CPU, make_settings, teach
from policy_bench import LONGEST, Listener, make_policy
from thin_slice import thin_slice

from finetune_trainer.models.adapters.saved import save_adapter
from finetune_trainer.models.loading import load_for_training, trained_tensors
from finetune_trainer.rewards.completion import Completion

STEPS, GROUP, WARMUP = 4, 4, 1
SETTINGS = {
    **{"total_steps": STEPS, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": float(WARMUP)},
    # Adam divides by the gradient's size: with its usual epsilon, rounding alone would move weights without a gradient.
    **{"adam_epsilon": 1e-3, "weight_decay": 0.05, "max_grad_norm": 0.05, "evaluates": False},
    **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "global_batch_size": 16},
    **{"num_generations": GROUP, "beta": 0.2, "temperature": 0.7},
}
Answers = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(tiny_model, tmp_path_factory.mktemp("taught") / "model", steps=60)


def reward(answers: Sequence[Completion]) -> list[float]:
    return [float(sum(map(ord, one.text)) % 11) / 3 for one in answers]


def save_earlier_adapter(model: Path, folder: Path) -> Path:
    """An adapter that changes the base, so that policy and reference are not the plain model."""
    earlier = load_for_training(model, make_settings("LoRA"), CPU)
    torch.manual_seed(1)
    for tensor in trained_tensors(earlier).values():
        torch.nn.init.normal_(tensor, std=0.05)
    save_adapter(earlier, folder, "s3://bucket/model")
    return folder


def plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64, without what the trainer attaches to it."""
    replica = copy.deepcopy(model).double()
    if "ref" in getattr(replica, "peft_config", {}):
        replica.delete_adapter("ref")
    for module in replica.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
        module.__dict__.pop("forward", None)
    return replica


def record_answers(trainer: Any) -> list[Answers]:
    """The tokens of prompts and answers, by step."""
    sample, steps = trainer._generate_single_turn, []

    def recording(prompts: Any, *others: Any, **options: Any) -> Any:
        sampled = sample(prompts, *others, **options)
        answers = sampled[0] if isinstance(sampled, tuple) else sampled  # TRL's RLOO returns the answers alone
        steps.append([(list(prompt), list(answer)) for prompt, answer in zip(prompts, answers, strict=True)])
        return sampled

    trainer._generate_single_turn = recording
    return steps


def log_probabilities(model: Any, answers: Answers, temperature: float) -> list[torch.Tensor]:
    found = []
    for prompt, answer in answers:
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
        found.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    return found


def grpo_loss(
    policy: list[torch.Tensor], reference: list[torch.Tensor], rewards: torch.Tensor, counts: list[bool], settings: Any
) -> torch.Tensor:
    groups = rewards.view(-1, GROUP)
    spread = {"group": groups.std(1, keepdim=True) + 1e-4, "batch": rewards.std() + 1e-4, "none": 1.0}
    advantages = ((groups - groups.mean(1, keepdim=True)) / spread[settings["scale_rewards"]]).flatten()
    tokens = []
    for mine, theirs, advantage, is_counted in zip(policy, reference, advantages, counts, strict=True):
        ratio = torch.exp(mine - mine.detach())
        divergence = torch.exp(theirs - mine) - (theirs - mine) - 1
        tokens.append((divergence * ratio * settings["beta"] - ratio * advantage) * is_counted)
    match settings["loss_type"]:
        case "dapo":
            counted = [len(one) for one, is_counted in zip(tokens, counts, strict=True) if is_counted]
            return sum(one.sum() for one in tokens) / sum(counted)
        case "grpo":
            return sum(one.mean() for one in tokens) / len(tokens)
        case _:
            return sum(one.sum() for one in tokens) / (len(tokens) * settings["max_completion_length"])


def rloo_loss(
    policy: list[torch.Tensor], reference: list[torch.Tensor], rewards: torch.Tensor, counts: list[bool], settings: Any
) -> torch.Tensor:
    divergences = [(mine.detach() - theirs).sum() for mine, theirs in zip(policy, reference, strict=True)]
    groups = (rewards - settings["beta"] * torch.stack(divergences) * torch.tensor(counts)).view(-1, GROUP)
    advantages = (groups - (groups.sum(1, keepdim=True) - groups) / (GROUP - 1)).flatten()
    sums = [one.sum() * is_counted for one, is_counted in zip(policy, counts, strict=True)]
    return -sum(torch.exp(one - one.detach()) * by for one, by in zip(sums, advantages, strict=True)) / len(sums)


def make_adamw(tensors: dict[str, torch.nn.Parameter]) -> torch.optim.AdamW:
    undecayed = [one for name, one in tensors.items() if "norm" in name or name.endswith("bias")]
    decayed = [one for one in tensors.values() if all(one is not other for other in undecayed)]
    groups = [{"params": decayed, "weight_decay": SETTINGS["weight_decay"]}, {"params": undecayed, "weight_decay": 0.0}]
    return torch.optim.AdamW([one for one in groups if one["params"]], eps=SETTINGS["adam_epsilon"])


def learning_rate(step: int) -> float:
    part = (step - WARMUP) / (STEPS - WARMUP)
    return SETTINGS["learning_rate"] * (step / WARMUP if step < WARMUP else (1 + math.cos(math.pi * part)) / 2)


GRPO = {"algorithm": "GRPO", "loss_type": "dapo", "scale_rewards": "group"}
CUT = {"mask_truncated_completions": True, "max_completion_length": 7}


@pytest.mark.parametrize(
    ("method", "continues", "changes"),
    thin_slice(
        [
            ("LoRA", True, GRPO | CUT),
            ("LoRA", False, GRPO),
            ("Full", False, GRPO),
            ("LoRA", True, GRPO | CUT | {"loss_type": "grpo", "scale_rewards": "batch"}),
            ("LoRA", True, GRPO | CUT | {"loss_type": "dr_grpo", "scale_rewards": "none"}),
            ("LoRA", True, GRPO | {"gradient_checkpointing": True}),
            ("LoRA", True, {"algorithm": "RLOO"} | CUT),
            ("LoRA", False, {"algorithm": "RLOO"}),
            ("Full", False, {"algorithm": "RLOO"}),
        ],
        ("LoRA", True, GRPO | CUT),
        ("Full", False, {"algorithm": "RLOO"}),
    ),
)
def test_the_weights_after_four_steps_are_those_of_the_formula(
    taught: Path, tmp_path: Path, method: str, continues: bool, changes: dict[str, Any]
) -> None:
    settings = {"max_completion_length": LONGEST} | SETTINGS | changes
    adapter = save_earlier_adapter(taught, tmp_path / "earlier") if continues else None
    listener = Listener(reward)
    trainer = make_policy(taught, tmp_path, method, scorer=listener, adapter=adapter, **SETTINGS, **changes)
    replica = plain_copy(trainer.model)
    reference = copy.deepcopy(replica).requires_grad_(False)
    steps = record_answers(trainer)
    trainer.train()

    tensors = dict(trained_tensors(replica))
    start = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    optimizer = make_adamw(tensors)
    find_loss = grpo_loss if settings["algorithm"] == "GRPO" else rloo_loss
    rewards = torch.tensor(listener.rewards, dtype=torch.float64).view(STEPS, -1)
    is_cut = False
    for step, (answers, scored, logged) in enumerate(zip(steps, rewards, trainer._loop.history.train, strict=True)):
        prompts = [prompt for prompt, _ in answers]
        assert prompts == [prompts[at // GROUP * GROUP] for at in range(len(prompts))]
        ended = [answer[-1] == trainer.processing_class.eos_token_id for _, answer in answers]
        is_cut |= not all(ended)
        counts = ended if settings.get("mask_truncated_completions") else [True] * len(answers)
        mine = log_probabilities(replica, answers, settings["temperature"])
        theirs = log_probabilities(reference, answers, settings["temperature"])
        loss = find_loss(mine, [one.detach() for one in theirs], scored, counts, settings)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            [one for one in tensors.values() if one.grad is not None], SETTINGS["max_grad_norm"]
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        assert logged.grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert logged.learning_rate == pytest.approx(learning_rate(step))
        if settings["algorithm"] == "GRPO":  # of RLOO it has a constant for each answer that was cut
            assert logged.loss == pytest.approx(loss.item(), abs=1e-5)

    trained = trained_tensors(trainer.model)
    assert is_cut or changes.get("mask_truncated_completions") is None, "no answer was cut, so none was left out"
    assert max(float((tensors[name] - start[name]).detach().abs().max()) for name in tensors) > 1e-4
    for name, tensor in tensors.items():
        torch.testing.assert_close(trained[name].double(), tensor, rtol=0, atol=1e-6)
