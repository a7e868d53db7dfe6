"""Distillation on two processes over gloo: the prompts, the teacher's answers, the figures and weights of one."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
from loop_bench import COLOURS, make_loop, teach
from ranks import join_as, run_ranks, stop_in_an_answer
from student_bench import ANSWERS, make_student
from thin_slice import thin_slice
from trainer_bench import weights_of
from transformers import PhiConfig, PhiForCausalLM, PreTrainedModel

from finetune_trainer.distributed.sharding import is_sharded, local_shard, reshard
from finetune_trainer.distributed.world import ALONE, AgreedStop, World
from finetune_trainer.errors import Stopped
from finetune_trainer.models.loading import load_sharded
from finetune_trainer.training.methods.distillation import ANSWER, StudentTrainer

RANKS, STEP = 2, 6


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with one of four colours."""
    return teach(tiny_model, tmp_path_factory.mktemp("taught") / "model", steps=60)


@pytest.fixture(scope="module")
def red(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows one of the colours alone."""
    return teach(tiny_model, tmp_path_factory.mktemp("red") / "model", steps=60, colours=COLOURS[:1])


@pytest.mark.parametrize(
    ("method", "shards"),
    thin_slice(
        [("LoRA", True), ("LoRA, shared out", True), ("QLoRA", False), ("QLoRA, shared out", True), ("Full", True)],
        ("QLoRA, shared out", True),
        ("Full", True),
    ),
)
def test_the_same_answers_train_the_same_weights_as_in_one_process(
    taught: Path, red: Path, tmp_path: Path, method: str, shards: bool
) -> None:
    """Also if each process has a share of the teacher, of the base, or of a full model."""
    method, _, shared = method.partition(", ")
    settings = {"method": method, "total_steps": 3, "eval_steps": 2}
    expected = _train_with_given_answers(_build(taught, red, tmp_path, ALONE, **settings))
    changes = settings | {"teacher": red, "shards": shards, "shard_base": bool(shared) or None}
    for rank in range(RANKS):  # which ask the teacher for other batches
        (tmp_path / f"rank-{rank}-of-{RANKS}").mkdir()
        copyfile(tmp_path / "rank-0-of-1" / ANSWERS, tmp_path / f"rank-{rank}-of-{RANKS}" / ANSWERS)
    found = run_ranks(_train_rank, RANKS, taught, tmp_path, **changes)
    for one in found:
        for name in ("losses", "evaluations", "tokens", "lengths", "epochs"):
            assert one[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
        for name, tensor in expected["weights"].items():
            torch.testing.assert_close(one["weights"][name], tensor, rtol=1e-3, atol=1e-4)
            assert torch.equal(one["weights"][name], found[0]["weights"][name])
        assert one["shards"] is (bool(shared) or method == "Full")
        held, whole = one["teacher"]
        assert (held < 0.6 * whole) is shards
    assert expected["losses"][-1] != expected["losses"][0]


@pytest.mark.nightly
@pytest.mark.parametrize("changes", [{"method": "Full"}, {"method": "LoRA", "shard_base": True}], ids=["Full", "base"])
def test_with_layers_gathered_in_bf16_the_losses_are_those_of_one_process_and_divided_by_the_exact_number_of_tokens(
    taught: Path, red: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = changes | {"precision": "BF16", "total_steps": 3, "eval_steps": 2}
    alone = changes | {"shard_base": None}
    expected = _train_with_given_answers(_build(taught, red, tmp_path, ALONE, **alone))
    for rank in range(RANKS):
        (tmp_path / f"rank-{rank}-of-{RANKS}").mkdir()
        copyfile(tmp_path / "rank-0-of-1" / ANSWERS, tmp_path / f"rank-{rank}-of-{RANKS}" / ANSWERS)
    for one in run_ranks(_train_rank, RANKS, taught, tmp_path, teacher=red, **changes):
        assert one["losses"] == pytest.approx(expected["losses"], rel=0.02)
        assert one["evaluations"] == pytest.approx(expected["evaluations"], rel=0.02)
        assert one["divisors"] == expected["divisors"] == [torch.float32]


def test_processes_share_the_prompts_of_a_step_and_answer_differently(taught: Path, red: Path, tmp_path: Path) -> None:
    alone = _sample(_build(taught, red, tmp_path, ALONE, total_steps=2))
    first, second = run_ranks(_sample_rank, RANKS, taught, tmp_path, teacher=red, total_steps=2)
    own = STEP // RANKS
    for step in range(2):
        shares = [found["prompts"][step * own : (step + 1) * own] for found in (first, second)]
        assert [*shares[0], *shares[1]] == alone["prompts"][step * STEP : (step + 1) * STEP]
    assert first["random"] != second["random"]


@pytest.mark.parametrize("shards", [False, True])
def test_processes_share_the_prompts_that_the_teacher_answers_and_all_have_its_answers(
    taught: Path, red: Path, tmp_path: Path, shards: bool
) -> None:
    """Eight prompts in batches of three: the second process has one of its own, and repeats one."""
    batch = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    alone = _build(taught, red, tmp_path, ALONE, **batch, global_batch_size=3)
    answers = [row[ANSWER] for row in alone.eval_dataset]
    changes = {"teacher": red, "shards": shards} | batch | {"global_batch_size": 6}
    first, second = run_ranks(_ask_rank, RANKS, taught, tmp_path, **changes)
    assert first["answers"] == second["answers"] == answers
    assert (first["asked"], second["asked"]) == (2, 2)
    assert first["loss"] == second["loss"] == pytest.approx(alone.measure().loss, rel=1e-4)


@pytest.mark.parametrize(
    ("stopped", "method"), thin_slice([(0, "LoRA"), (1, "LoRA"), (1, "Full")], (0, "LoRA"), (1, "LoRA"))
)
def test_a_stop_of_one_process_in_the_middle_of_an_answer_stops_both_after_the_same_step(
    taught: Path, red: Path, tmp_path: Path, stopped: int, method: str
) -> None:
    changes = {"teacher": red, "total_steps": 9, "stopped": stopped, "method": method}
    for one in run_ranks(_train_until_stopped, RANKS, taught, tmp_path, **changes):
        assert one == {"stopped_after": 1, "saved_after": 1}


def test_the_output_head_of_a_shared_out_teacher_is_read_whole(taught: Path, tmp_path: Path) -> None:
    """Phi's is a group of its own, which a pass through its layers alone does not gather."""
    folder = tmp_path / "phi"
    shutil.copytree(taught, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    PhiForCausalLM(PhiConfig(vocab_size=512, **sizes)).save_pretrained(folder)
    alone = _build(taught, folder, tmp_path, ALONE)
    for rank in range(RANKS):
        (tmp_path / f"rank-{rank}-of-{RANKS}").mkdir()
        copyfile(tmp_path / "rank-0-of-1" / ANSWERS, tmp_path / f"rank-{rank}-of-{RANKS}" / ANSWERS)
    for one in run_ranks(_ask_rank, RANKS, taught, tmp_path, teacher=folder, shards=True):
        assert one["loss"] == pytest.approx(alone.measure().loss, rel=1e-4)


@pytest.mark.parametrize("shards", [False, True])
def test_a_stop_while_the_teacher_answers_in_one_process_stops_both(
    taught: Path, red: Path, tmp_path: Path, shards: bool
) -> None:
    found = run_ranks(_ask_until_stopped, RANKS, taught, tmp_path, teacher=red, shards=shards)
    assert found == [{"is_stopped": True}] * RANKS


def _build(model: Path, teacher: Path | PreTrainedModel, folder: Path, world: World, **changes: Any) -> StudentTrainer:
    """Return a trainer of one process, or of one of two with half of the prompts of a step each."""
    own = folder / f"rank-{world.rank}-of-{world.size}"
    own.mkdir(exist_ok=True)
    loop = replace(make_loop(own), world=world)
    if world.size > 1:
        loop = replace(loop, stop=AgreedStop(loop.stop, world))
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": STEP // world.size}
    return make_student(model, teacher, own, loop=loop, **batch | {"global_batch_size": STEP} | changes)


def _in_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> StudentTrainer:
    world = join_as(rank, RANKS, port)
    rest = {name: value for name, value in changes.items() if name not in {"teacher", "shards", "stopped"}}
    teacher = changes["teacher"]
    if changes.get("shards"):
        teacher = load_sharded(teacher, torch.float32, torch.float32, world)
    return _build(model, teacher, folder, world, **rest)


def _write(folder: Path, rank: int, found: dict[str, Any]) -> None:
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.barrier()  # the first process holds the others' store


def _note_prompts(trainer: StudentTrainer, answer: Callable[[list[int]], list[int]] | None = None) -> list[list[int]]:
    """Return the list to which each prompt that is answered in the training is added; `answer` replaces sampling."""
    noted: list[list[int]] = []
    sample = trainer._generate_single_turn

    def generate(prompt_ids: list[list[int]], *arguments: Any, **options: Any) -> list[list[int]]:
        if not trainer.model.training:
            return sample(prompt_ids, *arguments, **options)
        noted.extend(prompt_ids)
        return list(map(answer, prompt_ids)) if answer else sample(prompt_ids, *arguments, **options)

    trainer._generate_single_turn = generate
    return noted


def _train_with_given_answers(trainer: StudentTrainer) -> dict[str, Any]:
    """Measure and train on answers that follow from the prompt, whichever process has it."""
    end = trainer.eos_token_ids[0]
    _note_prompts(trainer, lambda ids: [*[30 + sum(ids) % 40] * (1 + sum(ids) % 3), end])
    compute, divisors = trainer._compute_loss, set()

    def note(student: Any, inputs: Any, tokens: torch.Tensor | None) -> Any:
        divisors.update([] if tokens is None else [tokens.dtype])
        return compute(student, inputs, tokens)

    trainer._compute_loss = note
    trainer.evaluate()
    trainer.train()
    reshard(trainer.teacher_model)
    teacher = list(trainer.teacher_model.parameters())
    points, evaluations = trainer._loop.history.train, trainer._loop.history.evaluations
    return {
        "losses": [one.loss for one in points],
        "lengths": [one.completion_length for one in points],
        "epochs": [one.epoch for one in points],
        "evaluations": [one.measured.loss for one in evaluations],
        "tokens": [one.measured.tokens for one in evaluations],
        "weights": weights_of(trainer),
        "shards": is_sharded(trainer.model),
        "divisors": list(divisors),
        "teacher": (sum(local_shard(one).numel() for one in teacher), sum(one.numel() for one in teacher)),
    }


def _train_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> StudentTrainer:
    trainer = _in_rank(rank, model, folder, port, changes)
    _write(folder, rank, _train_with_given_answers(trainer))
    return trainer


def _sample(trainer: StudentTrainer) -> dict[str, Any]:
    """Train on sampled answers; return the prompts and the random state before it."""
    prompts, random = _note_prompts(trainer), torch.get_rng_state().tolist()[:64]
    trainer.train()
    return {"prompts": prompts, "random": random}


def _sample_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> StudentTrainer:
    trainer = _in_rank(rank, model, folder, port, changes)
    _write(folder, rank, _sample(trainer))
    return trainer


def _ask_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> StudentTrainer:
    """Count the batches that this process asks the teacher for, while the trainer is built."""
    asked: list[int] = []
    sample = StudentTrainer._generate_single_turn

    def count(trainer: StudentTrainer, prompts: list[list[int]], *arguments: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return sample(trainer, prompts, *arguments)

    StudentTrainer._generate_single_turn = count  # of this process alone
    trainer = _in_rank(rank, model, folder, port, changes)
    batches = len(asked)
    answers = [row[ANSWER] for row in trainer.eval_dataset]
    _write(folder, rank, {"answers": answers, "asked": batches, "loss": trainer.measure().loss})
    return trainer


def _train_until_stopped(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> StudentTrainer:
    """Set the stop flag of one process when it has sampled a token of the second step."""
    trainer = _in_rank(rank, model, folder, port, changes)
    _write(folder, rank, stop_in_an_answer(trainer, is_asked=rank == changes["stopped"]))
    return trainer


def _ask_until_stopped(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> None:
    """Stop the second process when the teacher has begun to answer in it."""
    sample = StudentTrainer._generate_single_turn

    def stop(trainer: StudentTrainer, *arguments: Any) -> list[list[int]]:
        if rank:
            trainer._loop.stop.own.set()
        return sample(trainer, *arguments)

    StudentTrainer._generate_single_turn = stop  # of this process alone
    is_stopped = False
    try:
        _in_rank(rank, model, folder, port, changes)
    except Stopped:
        is_stopped = True
    _write(folder, rank, {"is_stopped": is_stopped})
