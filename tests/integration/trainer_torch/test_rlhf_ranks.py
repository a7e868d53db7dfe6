"""GRPO and RLOO on two processes over gloo: the prompts, groups, rewards and weights of one process."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from free_ports import free_port
from loop_bench import CPU, make_loop, make_settings, teach
from policy_bench import Listener, make_policy
from ranks import join_as, start_ranks, stop_in_an_answer
from safetensors.torch import load_file, save_file

from finetune_trainer.distributed.sharding import full_tensor, trains_shards
from finetune_trainer.distributed.world import ALONE, AgreedStop, World
from finetune_trainer.errors import Stopped
from finetune_trainer.models.adapters.saved import save_adapter
from finetune_trainer.models.loading import load_for_training, trained_tensors
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import Scorer
from finetune_trainer.training.methods.rlhf import PolicyTrainer

RANKS, STEP, GROUP = 2, 12, 4
"""A step has three groups, of which the processes share the second one."""


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with one of four colours."""
    return teach(tiny_model, tmp_path_factory.mktemp("taught") / "model", steps=60)


@pytest.fixture(scope="module")
def earlier(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that another job has trained."""
    model = load_for_training(taught, make_settings("LoRA"), CPU)
    torch.manual_seed(1)
    for tensor in trained_tensors(model).values():
        torch.nn.init.normal_(tensor, std=0.05)
    folder = tmp_path_factory.mktemp("earlier") / "adapter"
    save_adapter(model, folder, "s3://bucket/model")
    return folder


@pytest.mark.parametrize(
    ("algorithm", "start"),
    [
        ("GRPO", "continued"),
        ("RLOO", "LoRA"),
        ("GRPO", "shared out"),
        ("GRPO", "Full"),
        pytest.param("GRPO", "masked", marks=pytest.mark.nightly),
        pytest.param("RLOO", "Full", marks=pytest.mark.nightly),
        pytest.param("GRPO", "QLoRA", marks=pytest.mark.nightly),
        pytest.param("RLOO", "shared out", marks=pytest.mark.nightly),
    ],
)
def test_the_same_answers_train_the_same_weights_as_in_one_process(
    taught: Path, earlier: Path, tmp_path: Path, algorithm: str, start: str
) -> None:
    """Also the divergence from the reference, which is the base or the adapter that the training continues."""
    kinds: dict[str, dict[str, Any]] = {
        "continued": {"adapter": earlier},
        "shared out": {"method": "QLoRA", "shard_base": True},
        "masked": {"loss_type": "grpo", "scale_rewards": "batch", "mask_truncated_completions": True},
    }
    begun = kinds.get(start, {"method": start})
    changes = {"algorithm": algorithm, "total_steps": 3, "learning_rate": 2e-4} | begun
    _train_with_given_answers(0, taught, tmp_path, 0, changes)
    alone = _read(tmp_path, "alone")
    start_ranks(_train_with_given_answers, (taught, tmp_path, free_port(), changes), RANKS)
    for found in (_read(tmp_path, 0), _read(tmp_path, 1)):
        for name in ("loss", "reward", "kl", "flat_share", "completion_length", "grad_norm", "epoch"):
            assert found[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name
        assert found["groups"] == alone["groups"] == [9, 9]
        assert found["shards"] == ([True, True] if start == "Full" else [False])
    assert alone["kl"][0] == pytest.approx(0, abs=1e-4)
    assert alone["kl"][-1] > 1e-5
    expected, *trained = (load_file(tmp_path / f"weights-{name}.safetensors") for name in ("alone", 0, 1))
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[0][name], tensor, rtol=1e-3, atol=1e-5)
        assert torch.equal(trained[0][name], trained[1][name])


def test_processes_share_the_prompts_of_a_step_and_answer_differently(taught: Path, tmp_path: Path) -> None:
    _train(0, taught, tmp_path, 0, {"scorer": "tokens"})
    start_ranks(_train, (taught, tmp_path, free_port(), {"scorer": "tokens"}), RANKS)
    alone, first, second = (_read(tmp_path, name) for name in ("alone", 0, 1))
    own = STEP // RANKS
    for step in range(2):
        shares = [found["prompts"][step * own : (step + 1) * own] for found in (first, second)]
        assert [*shares[0], *shares[1]] == alone["prompts"][step * STEP : (step + 1) * STEP]
    assert first["random"] != second["random"]
    assert first["answers"] != second["answers"]


def test_a_group_whose_rewards_differ_between_processes_has_a_spread_in_both(taught: Path, tmp_path: Path) -> None:
    start_ranks(_train, (taught, tmp_path, free_port(), {"scorer": "rank", "eval_steps": 1}), RANKS)
    first, second = _read(tmp_path, 0), _read(tmp_path, 1)
    assert first["groups"] == second["groups"] == [6, 2]
    assert first["flat_share"] == second["flat_share"] == pytest.approx([2 / 3] * 2)
    assert first["reward"] == second["reward"] == [0.5, 0.5]
    assert first["held_out"] == second["held_out"]
    assert first["best"] == second["best"]


@pytest.mark.parametrize("shares", [False, True])
def test_held_out_prompts_are_shared_and_measured_as_in_one_process(taught: Path, tmp_path: Path, shares: bool) -> None:
    """Eight prompts in batches of three: one process answers two batches, the other one."""
    batch: dict[str, Any] = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "num_generations": 3}
    batch["shard_base"] = shares
    _measure(0, taught, tmp_path, 0, batch | {"global_batch_size": 3})
    start_ranks(_measure, (taught, tmp_path, free_port(), batch | {"global_batch_size": 6}), RANKS)
    alone, first, second = (_read(tmp_path, name) for name in ("alone", 0, 1))
    assert first["points"] == second["points"] == alone["points"]
    assert first["points"][0] != first["points"][1], "another seed"
    assert (len(first["scored"]), len(second["scored"])) == (10, 6)
    assert sorted(first["scored"] + second["scored"]) == sorted(alone["scored"])


@pytest.mark.parametrize(
    "case",
    [(0, {}), (1, {}), (1, {"shard_base": True}), (1, {"method": "Full"})],
    ids=["first", "second", "base", "Full"],
)
def test_a_stop_of_one_process_in_the_middle_of_an_answer_stops_both_after_the_same_step(
    taught: Path, tmp_path: Path, case: tuple[int, dict[str, Any]]
) -> None:
    start_ranks(_train_until_stopped, (taught, tmp_path, free_port(), case), RANKS)
    for rank in range(RANKS):
        assert _read(tmp_path, rank) == {"stopped_after": 1, "saved_after": 1}


@pytest.mark.parametrize("shares", [False, True])
def test_a_stop_of_one_process_while_it_scores_held_out_answers_stops_both(
    taught: Path, tmp_path: Path, shares: bool
) -> None:
    """Eight prompts in batches of two: each process has two batches, and the second is stopped in its first."""
    start_ranks(_measure_until_stopped, (taught, tmp_path, free_port(), shares), RANKS)
    assert [_read(tmp_path, rank) for rank in range(RANKS)] == [{"is_stopped": True, "is_exchanged": True}] * RANKS


def _join(rank: int, port: int) -> World:
    """Join the other process; without a port this one trains alone."""
    if not port:
        return ALONE
    return join_as(rank, RANKS, port)


def _build(model: Path, folder: Path, world: World, scorer: Scorer, **changes: Any) -> PolicyTrainer:
    """Return a trainer of one process, or of one of two with half of the answers of a step each."""
    own = folder / f"rank-{world.rank}-of-{world.size}"
    own.mkdir()
    loop = replace(make_loop(own), world=world)
    if world.size > 1:
        loop = replace(loop, stop=AgreedStop(loop.stop, world))
    batch = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": STEP // world.size // 3}
    settings = batch | {"global_batch_size": STEP, "num_generations": GROUP, "learning_rate": 6e-3} | changes
    return make_policy(model, own, scorer=scorer, loop=loop, **settings)


def _write(folder: Path, rank: int, world: World, found: dict[str, Any]) -> None:
    (folder / f"found-{_name(rank, world)}.json").write_text(json.dumps(found))
    if world.size > 1:
        torch.distributed.barrier()  # the first process holds the others' store


def _name(rank: int, world: World) -> str:
    return str(rank) if world.size > 1 else "alone"


def _read(folder: Path, name: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"found-{name}.json").read_text())
    return found


def _figures(trainer: PolicyTrainer) -> dict[str, Any]:
    points, rollouts, history = trainer._loop.history.train, trainer._rollouts, trainer._loop.history
    names = ("loss", "reward", "kl", "flat_share", "completion_length", "grad_norm", "epoch")
    return {name: [getattr(point, name) for point in points] for name in names} | {
        "shards": [trains_shards(one) for one in (trainer.model, trainer.ref_model) if one is not None],
        "groups": [rollouts.groups, rollouts.groups_with_spread],
        "held_out": [point.reward for point in history.rewards],
        "best": trainer._loop.plateau.best_step,
    }


def _count_tokens(completions: Sequence[Completion]) -> list[float]:
    return [float(one.tokens) for one in completions]


def _train_with_given_answers(
    rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]
) -> PolicyTrainer:
    """Train on answers that follow from their place in a step, whichever process has it."""
    world = _join(rank, port)
    own = STEP // world.size
    # The divergence that GRPO reports is a mean over micro-batches, whose answers differ: so there is only one.
    single = {"per_device_train_batch_size": own, "gradient_accumulation_steps": 1}
    changes |= single if changes["algorithm"] == "GRPO" else {}
    trainer = _build(model, folder, world, _count_tokens, evaluates=False, **changes)
    end, steps = trainer.eos_token_ids[0], iter(range(3))

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        step = next(steps)
        places = [rank * own + at for at in range(own)]
        rows = [[30 + (7 * place + step) % 40] * (1 + (place + step) % 3) + [end] * 3 for place in places]
        return torch.cat([input_ids, torch.tensor([row[:4] for row in rows])], dim=1)

    trainer.model.generate = generate
    trainer.train()
    save_file(
        {name: full_tensor(one.detach()).contiguous() for name, one in trained_tensors(trainer.model).items()},
        folder / f"weights-{_name(rank, world)}.safetensors",
    )
    _write(folder, rank, world, _figures(trainer))
    return trainer


def _train(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> PolicyTrainer:
    """Train two steps on sampled answers."""
    world = _join(rank, port)
    scorers: dict[str, Callable[[Sequence[Completion]], list[float]]] = {
        "rank": lambda completions: [float(rank)] * len(completions),
        "tokens": lambda completions: [len(one.text) + one.tokens / 7 for one in completions],
    }
    listener = Listener(scorers[changes["scorer"]])
    rest = {name: value for name, value in changes.items() if name != "scorer"}
    trainer = _build(model, folder, world, listener, total_steps=2, evaluates="eval_steps" in changes, **rest)
    random = torch.get_rng_state().tolist()[:64]
    trainer.train()
    heard = [one.prompt[0]["content"] for one in listener.heard], [one.text for one in listener.heard]
    found = _figures(trainer) | {"prompts": heard[0], "answers": heard[1], "random": random}
    _write(folder, rank, world, found)
    return trainer


def _measure(rank: int, model: Path, folder: Path, port: int, batch: dict[str, Any]) -> PolicyTrainer:
    """Measure the held-out reward twice, with two seeds."""
    world = _join(rank, port)
    listener = Listener(_count_tokens)
    trainer = _build(model, folder, world, listener, **batch)
    points = [trainer.measure_reward(), trainer.measure_reward(trainer.args.seed + 1)]
    found = {
        "points": [[point.rewards, point.completion_length, point.clipped_share] for point in points],
        "scored": [[one.prompt[0]["content"], one.text] for one in listener.heard],
    }
    _write(folder, rank, world, found)
    return trainer


def _train_until_stopped(
    rank: int, model: Path, folder: Path, port: int, case: tuple[int, dict[str, Any]]
) -> PolicyTrainer:
    """Set the stop flag of one process when it has sampled a token of the second step."""
    world, (stopped, changes) = _join(rank, port), case
    trainer = _build(model, folder, world, _count_tokens, total_steps=9, evaluates=False, **changes)
    _write(folder, rank, world, stop_in_an_answer(trainer, is_asked=rank == stopped))
    return trainer


def _measure_until_stopped(rank: int, model: Path, folder: Path, port: int, shares: bool) -> PolicyTrainer:
    """Stop the second process while it scores, when the first has long scored its own; then exchange something, as a
    checkpoint does."""
    world = _join(rank, port)

    def score(completions: Sequence[Completion]) -> list[float]:
        if rank:
            time.sleep(0.5)
            trainer._loop.stop.own.set()
            trainer._loop.on_own_work()
        return _count_tokens(completions)

    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_generations": 2}
    changes = batch | {"global_batch_size": 4, "shard_base": shares}
    trainer = _build(model, folder, world, score, **changes)
    is_stopped = False
    try:
        trainer.measure_reward()
    except Stopped:
        is_stopped = True
    gathered = [one.decode() for one in world.gather_bytes(str(rank).encode() * 1000)]
    is_exchanged = gathered == ["0" * 1000, "1" * 1000]
    _write(folder, rank, world, {"is_stopped": is_stopped, "is_exchanged": is_exchanged})
    return trainer
