"""Method Full on two processes over gloo: what each of them holds."""

import json
import re
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import CPU, make_loop, make_settings
from ranks import join_as, start_ranks
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TrainerCallback

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.sharding import (
    decoder_layers,
    full_tensor,
    load_shards,
    load_state,
    local_shard,
    require_sharded,
    save_shards,
)
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.loading import load_for_training, load_tokenizer
from finetune_trainer.tokenization.labeler import Encoded
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.sft import build_sft_trainer

RANKS = 2
SAMPLES = [Encoded([1, 20 + n, 401, 402, 2], [-100, -100, 401, 402, 2], 3) for n in range(8)]
"""Both processes have the embeddings of some of the tokens."""


@pytest.fixture
def models(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    """A model whose layers are in the library's default plan, and one whose layers have other names, and whose tied
    embeddings two processes share unevenly, as with GPT-2's own 50257 tokens."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=511, bos_token_id=1, eos_token_id=2)
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    shutil.copytree(tiny_model, tmp_path / "gpt2")
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return {"llama": tiny_model, "gpt2": tmp_path / "gpt2"}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_and_gradients_are_sharded_and_train_as_in_one_process(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    expected = _losses(_train_model(models[kind], tmp_path / "alone", accumulation=4))
    for found in _train_on_ranks(models[kind], tmp_path):
        assert found["losses"] == pytest.approx(expected, rel=1e-4)
        assert found["gathered"] == found["reduced"] == ["torch.float32"]
        assert len(found["gradients"]) == 2, "one figure for each micro-batch but the last of each step"
        for held in (found["weights"], *found["gradients"]):
            assert 0.4 * found["whole"] <= held <= 0.6 * found["whole"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_bf16_layers_are_gathered_in_bf16_and_gradients_reduced_in_fp32(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    expected = _losses(_train_model(models[kind], tmp_path / "alone", accumulation=4, precision="BF16"))
    for found in _train_on_ranks(models[kind], tmp_path, precision="BF16"):
        assert found["losses"] == pytest.approx(expected, rel=2e-3)
        assert (found["gathered"], found["reduced"]) == (["torch.bfloat16"], ["torch.float32"])
        assert found["weights"] <= 0.6 * found["whole"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_each_process_writes_its_share_of_the_optimiser_and_any_number_of_processes_reads_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    alone = _train_model(tiny_model, tmp_path / "alone", accumulation=4)
    expected = _moments(alone.model, alone.optimizer.optimizer)
    torch.save(alone.optimizer.optimizer.state_dict(), tmp_path / "alone.pt")
    whole = sum(one.numel() * one.element_size() for one in expected.values())
    _start(_save_and_load, tiny_model, tmp_path)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "shards").iterdir())]
    assert len(sizes) == RANKS
    assert max(sizes) < 0.55 * whole

    fresh = _build(tiny_model, tmp_path / "fresh", ALONE, accumulation=4)
    load_shards(fresh.model, fresh.create_optimizer(), tmp_path / "shards")
    for found in (_moments(fresh.model, fresh.optimizer), torch.load(tmp_path / "two.pt")):
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-7) for name in expected)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_weight_of_one_number_keeps_its_moments_and_its_count_of_steps(tmp_path: Path) -> None:
    saved, fresh = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    optimisers = [torch.optim.AdamW(one.parameters()) for one in (saved, fresh)]
    saved(torch.ones(1, 1)).sum().backward()
    optimisers[0].step()
    save_shards(saved, optimisers[0], tmp_path)
    load_shards(fresh, optimisers[1], tmp_path)
    expected, found = _moments(saved, optimisers[0]), _moments(fresh, optimisers[1])
    assert found == expected
    assert {name: value.shape for name, value in found.items()} == {name: one.shape for name, one in expected.items()}


def test_no_process_holds_the_whole_model_while_it_is_loaded(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8, vocab_size=8192
    )
    model = LlamaForCausalLM(config).bfloat16()  # in FP32 it would be mapped from its file, not held
    model.save_pretrained(tmp_path / "model")
    whole = 4 * sum(one.numel() for one in model.parameters())
    assert whole > 100 << 20
    _start(_load, tmp_path / "model", tmp_path)
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert found["peak"] < 0.8 * whole, f"rank {rank} held {found['peak']:,} of {whole:,} bytes"


def test_a_model_of_which_one_layer_is_not_sharded_is_refused(tmp_path: Path) -> None:
    """As if the library had left a layer out; the shares are near enough to even ones."""
    _start(_leave_one_layer_out, tmp_path, tmp_path)
    assert "1 of 2 layers are wrapped" in (tmp_path / "found-0.json").read_text()


def test_in_fp16_a_step_that_overflows_in_one_process_is_skipped_in_both(tiny_model: Path, tmp_path: Path) -> None:
    """As FP16 has it on a GPU, with the scaler of torch."""
    _start(_overflow, tiny_model, tmp_path)
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert found == {"changed": False, "scale": 2.0**15}


def test_an_8_bit_optimiser_is_refused(tiny_model: Path) -> None:
    """Its kernels raise for sharded tensors, in the first step."""
    world = World()
    world.size = RANKS
    settings = make_settings("Full").model_copy(update={"optim": "adamw_8bit"})
    with pytest.raises(TrainerError, match="use adamw_torch_fused") as caught:
        load_for_training(tiny_model, settings, CPU, world=world)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def _start(work: Callable[..., None], model: Path, folder: Path, *rest: Any) -> None:
    """Run the function in every process, with rank, model, folder and port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start_ranks(work, (model, folder, port, *rest), RANKS)


def _train_on_ranks(model: Path, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    _start(_train, model, folder, changes)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(RANKS)]


def _train(rank: int, model: Path, folder: Path, port: int, changes: dict[str, Any]) -> None:
    """Train in this process; write what it holds after a micro-batch, and in which number formats."""
    world = join_as(rank, RANKS, port)
    found: dict[str, Any] = {"gradients": [], "gathered": [], "reduced": []}

    class Measure(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            found["gradients"].append(_gradient_bytes(trainer.model))

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            found["reduced"] = sorted({str(one.grad.dtype) for one in trainer.model.parameters()})

    def note(module: torch.nn.Module, *_: Any) -> None:
        found["gathered"] = sorted({str(one.dtype) for one in module.parameters()})

    trainer = _build(model, folder / f"rank-{rank}", world, accumulation=2, **changes)
    for _, layer in decoder_layers(trainer.model):
        layer.register_forward_pre_hook(note)
    trainer.add_callback(Measure())
    trainer.train()
    parameters = list(trainer.model.parameters())
    found["losses"] = _losses(trainer)
    found["weights"] = sum(local_shard(one).numel() * one.element_size() for one in parameters)
    found["whole"] = sum(one.numel() * one.element_size() for one in parameters)
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()  # the first process holds the others' store


def _train_model(model: Path, folder: Path, **changes: Any) -> LoopTrainer:
    trainer = _build(model, folder, ALONE, **changes)
    trainer.train()
    return trainer


def _build(model: Path, folder: Path, world: World, accumulation: int, **changes: Any) -> LoopTrainer:
    """Two steps of the same eight rows, in micro-batches of two rows."""
    changes |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    settings = make_settings("Full", total_steps=2, **changes)
    folder.mkdir()
    loop = replace(make_loop(folder), world=world)
    loaded = load_for_training(model, settings, CPU, world=world)
    return build_sft_trainer(
        TrainerParts(loaded, load_tokenizer(model), settings, loop, SAMPLES, [], folder / "scratch")
    )


def _losses(trainer: LoopTrainer) -> list[float]:
    """Return the losses of the steps, and the one after the last of them."""
    ids = torch.tensor([one.input_ids for one in SAMPLES])
    trainer.model.eval()
    with torch.no_grad():
        last = float(trainer.model(input_ids=ids, labels=ids).loss)
    return [*(line["loss"] for line in trainer.state.log_history if "loss" in line), last]


def _moments(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": full_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state[parameter].items()
    }


def _save_and_load(rank: int, model: Path, folder: Path, port: int) -> None:
    """Train, write this process's shards to a folder of all, and load what one process alone has saved."""
    world = join_as(rank, RANKS, port)
    trainer = _build(model, folder / f"rank-{rank}", world, accumulation=2)
    trainer.train()
    save_shards(trainer.model, trainer.optimizer.optimizer, folder / "shards")
    fresh = _build(model, folder / f"fresh-{rank}", world, accumulation=2)
    load_state(fresh.create_optimizer(), torch.load(folder / "alone.pt"))
    found = _moments(fresh.model, fresh.optimizer)
    if world.is_first:
        torch.save(found, folder / "two.pt")
    torch.distributed.barrier()


def _load(rank: int, model: Path, folder: Path, port: int) -> None:
    """Load this process's share; write the most memory that it held at any time, without pages of files."""
    world = join_as(rank, RANKS, port)
    peak, is_done = [0], threading.Event()
    before = _anonymous_bytes()

    def watch() -> None:
        while not is_done.wait(0.001):
            peak[0] = max(peak[0], _anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loaded = load_for_training(model, make_settings("Full"), CPU, world=world)
    is_done.set()
    watcher.join()
    assert sum(local_shard(one).numel() for one in loaded.parameters()) > 1 << 23
    (folder / f"found-{rank}.json").write_text(json.dumps({"peak": peak[0]}))
    torch.distributed.barrier()


def _anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def _overflow(rank: int, model: Path, folder: Path, port: int) -> None:
    """Take a step in which one gradient of the second process alone is infinite."""
    world = join_as(rank, RANKS, port)
    loaded = load_for_training(model, make_settings("Full"), CPU, world=world)
    optimiser, scaler = torch.optim.SGD(loaded.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    batch = torch.tensor([SAMPLES[rank].input_ids])
    scaler.scale(loaded(input_ids=batch, labels=batch).loss).backward()
    parameter = next(loaded.parameters())
    before = local_shard(parameter).clone()
    if rank:
        local_shard(parameter.grad)[0, 0] = float("inf")
    scaler.step(optimiser)
    scaler.update()
    found = {"changed": not torch.equal(before, local_shard(parameter)), "scale": scaler.get_scale()}
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


def _leave_one_layer_out(rank: int, _: Path, folder: Path, port: int) -> None:
    world = join_as(rank, RANKS, port)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=64))
    for module in (model.model.layers[0], model):
        fully_shard(module)
    try:
        require_sharded(model, world.size)
    except TrainerError as error:
        (folder / f"found-{rank}.json").write_text(str(error))
    torch.distributed.barrier()


def _gradient_bytes(model: torch.nn.Module) -> int:
    """Count the gradients of a sharded model: its shares, and whole ones that wait for a reduction.

    Tied weights are one share with two whole gradients.
    """
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    groups = {id(state._fsdp_param_group): state._fsdp_param_group for state in states if state._fsdp_param_group}
    kept = {}
    for parameter in (one for group in groups.values() for one in group.fsdp_params):
        kept[id(parameter.sharded_param)] = parameter.sharded_param.grad
        if parameter.unsharded_accumulated_grad is not None:
            kept[id(parameter)] = parameter.unsharded_accumulated_grad_data
        if getattr(parameter, "_unsharded_param", None) is not None:
            kept[id(parameter._unsharded_param)] = parameter._unsharded_param.grad
    shares = [local_shard(one) for one in kept.values() if one is not None]
    return sum(one.numel() * one.element_size() for one in shares)
