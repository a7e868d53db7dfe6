"""An adapter in two processes over gloo, each of which holds a share of the frozen base."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import CPU, THINGS, make_loop, make_settings, question, teach
from ranks import join_as, run_ranks
from safetensors.torch import load_file, save_file
from thin_slice import thin_slice
from trainer_bench import OWN, weights_of
from transformers import FalconMambaConfig, FalconMambaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from finetune_api.handoff import ADAPTER_WEIGHTS, ExitCode
from finetune_trainer.data.ability import Question
from finetune_trainer.data.rows import Message
from finetune_trainer.distributed.own_pace import OwnPace
from finetune_trainer.distributed.sharding import decoder_layers, local_shard, reshard
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.evaluation.choices import answer_questions
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.generate import answer_all
from finetune_trainer.models.adapters.saved import continue_adapter, save_adapter
from finetune_trainer.models.loading import load_for_training, load_quantised, load_tokenizer
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.labeler import Encoded, Labeler
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair
from finetune_trainer.training.kept_weights import KeptWeights
from finetune_trainer.training.methods import build_trainer, traits_of
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts

RANKS = 2
QUANTISED = "model.layers.0.mlp.up_proj.weight"
PAIRS = [EncodedPair([1, 20 + at, 21], [30, 31 + at % 2, 2], [40, 41 + at % 3, 42, 2]) for at in range(33)]
SAMPLES: dict[str, list[Any]] = {
    "Chat": [Encoded([1, 20 + at, 21, 22, 2], [-100, -100, 21, 22, 2], 3) for at in range(33)],
    "DPO": PAIRS,
    "KTO": [EncodedLabelled(one.prompt_ids, one.chosen_ids, at % 3 == 0) for at, one in enumerate(PAIRS)],
    "RewardModel": PAIRS,
}
ROWS = 24
PROMPTS = [*map(question, THINGS[:4]), [Message(role="user", content="Who?")]]
QUESTIONS = [Question(f"Colour of {thing}?", ["red", "green and blue", "black"], 1) for thing in THINGS[:3]]


@pytest.fixture
def mixture(tiny_model: Path, tmp_path: Path) -> Path:
    """A random mixture of experts of two layers with the tiny model's tokenizer."""
    folder = tmp_path / "mixture"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=64,
        moe_intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_the_experts_of_a_mixture_are_shared_out_with_the_rest_of_the_base(
    mixture: Path, tmp_path: Path, method: str
) -> None:
    changes: dict[str, Any] = {"objective": "Chat", "precision": "FP32", "method": method}
    expected = _train(_build(mixture, tmp_path / "alone", ALONE, **changes))
    for one in run_ranks(_train_rank, RANKS, mixture, tmp_path, **changes):
        assert one["losses"] == pytest.approx(expected["losses"], rel=1e-3)
        assert 0.4 * expected["base"] <= one["base"] <= 0.6 * expected["base"]


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_what_each_process_reads_of_a_base_in_4_bits_is_its_rows_and_together_they_are_the_base(
    tiny_model: Path, mixture: Path, kind: str
) -> None:
    """Three processes, of which the last one has fewer rows."""
    folder = mixture if kind == "mixture" else tiny_model
    whole = load_for_training(folder, make_settings("QLoRA"), CPU).get_base_model()
    packed = {name: tensor for name, tensor in whole.named_parameters() if tensor.dtype is torch.uint8}
    assert len(packed) >= 12
    shares = [load_quantised(folder, torch.float32, True, CPU, world=_share_of(rank, 3)) for rank in range(3)]
    for name, tensor in packed.items():
        rows = [_packed_rows(share, name) for share in shares]
        assert torch.equal(torch.cat(rows), tensor)
        assert [len(one) for one in rows] == [len(one) for one in tensor.chunk(3)]


def test_the_library_reserves_memory_for_a_share_before_it_loads_one(tiny_model: Path) -> None:
    whole, share = (load_quantised(tiny_model, torch.float32, True, CPU, world=_share_of(0, size)) for size in (1, 4))
    bytes_of = [one.hf_quantizer.param_element_size(one, QUANTISED, torch.empty(1)) for one in (whole, share)]
    assert bytes_of == [0.5, 0.125]


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_a_layer_inside_of_a_layer_is_sharded_with_it(tiny_model: Path, tmp_path: Path, method: str) -> None:
    """Both blocks and their mixers are modules that must not be split."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(1)
    config = FalconMambaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2, state_size=8)
    FalconMambaForCausalLM(config).save_pretrained(folder)
    settings = make_settings(method, precision="FP32", shard_base=True)
    expected = _logits(load_for_training(folder, settings, CPU))
    for one in run_ranks(_logits_rank, RANKS, folder, tmp_path, method=method, size=RANKS):
        torch.testing.assert_close(one, expected)


def test_layers_that_share_weights_are_refused() -> None:
    with torch.device("meta"):
        model = FalconMambaForCausalLM(FalconMambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))
    first, second = (layer for _, layer in decoder_layers(model))
    second.mixer.in_proj.weight = first.mixer.in_proj.weight
    with pytest.raises(TrainerError, match=r"several layers share, for example backbone\.layers\.1") as caught:
        decoder_layers(model)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_three_processes_with_uneven_shares_of_a_base_in_4_bits_compute_what_one_does(
    mixture: Path, tmp_path: Path
) -> None:
    settings = make_settings("QLoRA", precision="FP32", shard_base=True)
    expected = _logits(load_for_training(mixture, settings, CPU))
    for one in run_ranks(_logits_rank, 3, mixture, tmp_path, method="QLoRA", size=3):
        torch.testing.assert_close(one, expected)


def test_the_processes_share_the_prompts_and_questions_and_stop_together(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"objective": "Chat", "precision": "FP32"}
    taught = teach(tiny_model, tmp_path / "taught")
    alone = _build(taught, tmp_path / "alone", ALONE, **changes)
    labeler = Labeler(taught)
    answers = _answer(alone, labeler)
    marked = answer_questions(alone.model, labeler.tokenizer, QUESTIONS, lambda _: None)
    assert len({len(answer) for answer in answers}) > 1, answers
    for found in run_ranks(_questions_rank, RANKS, taught, tmp_path, **changes):
        assert found == {"answers": answers, "together": answers, "marked": marked, "stopped": True}


@pytest.mark.parametrize(
    ("precision", "objective", "method"),
    thin_slice(
        product(["FP32", "BF16"], SAMPLES, ["LoRA", "QLoRA"]),
        ("BF16", "DPO", "LoRA"),
        ("FP32", "Chat", "QLoRA"),
    ),
)
def test_two_processes_with_half_the_base_each_train_and_measure_as_one_with_all_of_it(
    tiny_model: Path, tmp_path: Path, method: str, objective: str, precision: str
) -> None:
    changes: dict[str, Any] = {"objective": objective, "precision": precision, "method": method}
    alone = _build(tiny_model, tmp_path / "alone", ALONE, **changes)
    expected = _train(alone)
    tolerance = 1e-3 if precision == "FP32" else 2e-2
    found = run_ranks(_train_rank, RANKS, tiny_model, tmp_path, **changes)
    for one in found:
        assert one["losses"] == pytest.approx(expected["losses"], rel=tolerance)
        assert one["evaluations"] == pytest.approx(expected["evaluations"], rel=tolerance)
        assert 0.4 * expected["base"] <= one["base"] <= 0.6 * expected["base"]
        for name, tensor in found[0]["weights"].items():
            assert torch.equal(one["weights"][name], tensor)
            is_head = "score" in name  # which a reward model does not take from another adapter
            torch.testing.assert_close(one["continued"][name], tensor if is_head else torch.ones_like(tensor))
        if precision == "FP32":
            for name, tensor in expected["weights"].items():
                torch.testing.assert_close(one["weights"][name], tensor, rtol=0.01, atol=2e-3)


def test_weights_that_the_first_process_keeps_alone_change_nothing_for_the_others(
    tiny_model: Path, tmp_path: Path
) -> None:
    """An evaluation leaves weights outside the layers gathered until the next backward pass, in every process."""
    changes: dict[str, Any] = {"objective": "Chat", "precision": "FP32"}
    expected = _train(_build(tiny_model, tmp_path / "alone", ALONE, **changes))
    for one in run_ranks(_train_rank, RANKS, tiny_model, tmp_path, **changes, keeps=2):
        assert one["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert KeptWeights(tmp_path / "rank-0" / "kept", 2).steps() == [2, 4, 5]


def _share_of(rank: int, size: int) -> World:
    world = World()
    world.rank, world.size = rank, size
    return world


def _packed_rows(model: Any, name: str) -> torch.Tensor:
    """Return the rows of a weight that was loaded; those of a stack are not yet in the model."""
    own = name.replace(".base_layer", "").replace("parametrizations.", "").removesuffix(".original")
    stacks = model.hf_quantizer.shares_of_stacks
    return stacks[own][0] if own in stacks else model.get_parameter(own)


def _logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(12).view(1, -1)
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def _logits_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> World:
    world = join_as(rank, changes["size"], port)
    settings = make_settings(changes["method"], precision="FP32", shard_base=True)
    torch.save(_logits(load_for_training(model, settings, CPU, world=world)), folder / f"found-{rank}.pt")
    torch.distributed.barrier()
    return world


def _build(
    model: Path, folder: Path, world: World, *, objective: str, precision: str, method: str = "LoRA", keeps: int = 0
) -> LoopTrainer:
    """Five steps of eight rows each, with two micro-batches in a step and recomputed activations; as for each process
    of a job, the first one keeps weights, here of steps that are not the best."""
    batch = {"per_device_train_batch_size": 4 // world.size, "gradient_accumulation_steps": 2}
    own = OWN.get(objective, {}) | {"precision": precision, "gradient_checkpointing": True, "shard_base": True}
    settings = make_settings(method, **own, **batch, total_steps=5, eval_steps=2)
    folder.mkdir()
    loop = replace(make_loop(folder), world=world)
    if keeps:
        kept = KeptWeights(folder / "kept", keeps if world.is_first else 0)
        loop = replace(loop, kept=kept, plateau=Plateau(None, best_loss=0.0))
    loaded = load_for_training(model, settings, CPU, writes_text=traits_of(objective).writes_text, world=world)
    samples = SAMPLES[objective]
    parts = TrainerParts(
        loaded, load_tokenizer(model), settings, loop, samples[:ROWS], samples[ROWS:], folder / "scratch"
    )
    return build_trainer(objective, parts)


def _train(trainer: LoopTrainer) -> dict[str, Any]:
    """Measure and train; return the figures, the trained weights and the bytes of the base that are held."""
    trainer.evaluate()
    trainer.train()
    reshard(trainer.model)  # what the last evaluation has gathered
    base = [one for one in trainer.model.parameters() if not one.requires_grad]
    return {
        "losses": [one.loss for one in trainer._loop.history.train],
        "evaluations": [one.measured.loss for one in trainer._loop.history.evaluations],
        "base": sum(local_shard(one).numel() * one.element_size() for one in base),
        "weights": weights_of(trainer),
    }


def _train_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> LoopTrainer:
    """Train in one of the processes; the first one saves the adapter, which each continues with ones in it."""
    trainer = _build(model, folder / f"rank-{rank}", join_as(rank, RANKS, port), **changes)
    found = _train(trainer)
    saved = folder / "adapter" / ADAPTER_WEIGHTS
    if not rank:
        save_adapter(trainer.model, saved.parent, "s3://models/base")
        factors = {name: one for name, one in load_file(saved).items() if "score" not in name}
        save_file({name: torch.ones_like(one) for name, one in factors.items()}, saved)
    torch.distributed.barrier()  # and the first process holds the others' store
    continue_adapter(trainer.model, saved.parent)
    torch.save(found | {"continued": weights_of(trainer)}, folder / f"found-{rank}.pt")
    torch.distributed.barrier()
    return trainer


def _answer(trainer: LoopTrainer, labeler: Labeler, **options: Any) -> list[str]:
    options = {"on_token": lambda: None, "max_new_tokens": 24} | options
    return answer_all(trainer.model, labeler, PROMPTS, stop_ids=[2], **options)


def _questions_rank(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> LoopTrainer:
    """Answer prompts and questions; then again, while the second process is asked to stop."""
    world, labeler = join_as(rank, RANKS, port), Labeler(model)
    trainer = _build(model, folder / f"rank-{rank}", world, **changes)
    own, answered = [], []

    def count() -> None:
        own.append(rank)
        if rank and len(own) > 3 and len(answered):
            pace._stop.set()

    answered += _answer(trainer, labeler, world=world, on_token=count)
    together = _answer(trainer, labeler, world=world, tokens_at_once=8192)
    marked = answer_questions(trainer.model, labeler.tokenizer, QUESTIONS, lambda _: None, world)
    pace = OwnPace(StopFlag(), world)
    stopped = False
    try:
        with pace.block(lambda: None):
            _answer(trainer, labeler, world=world, on_token=count, is_stopped=pace.is_set, max_new_tokens=400)
            pace.raise_if_set()
    except Stopped:
        stopped = True
    found = {"answers": answered, "together": together, "marked": marked, "stopped": stopped}
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.barrier()
    return trainer
