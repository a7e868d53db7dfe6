"""Adapters on the experts of a mixture: every factor is trained, over 16 and over 4 bits, in every objective."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from free_ports import free_port
from loop_bench import CPU, make_settings
from peft import PeftModel
from published_result import find_result_faults
from ranks import start_ranks
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from training_bench import HYPERPARAMETERS, THINGS, Bench, as_parent, make_rows, make_spec, preference_rows
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.handoff import ExitCode
from finetune_api.status import Resolved
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.evaluation.gate_rules import find_faults
from finetune_trainer.merging import gate_worker
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.merging.merge import Nf4
from finetune_trainer.models.adapters.saved import save_adapter
from finetune_trainer.models.loading import load_for_training, load_plain, quantised_layers, trained_tensors
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.full_model import make_candidate
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.training.callbacks import require_gradient, restore_trained, save_trained

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2, "pad_token_id": 2, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 96},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "layer_types": ["sliding_attention", "full_attention"]},
}
"""Experts stored one by one, under other names than in memory, and as stacks whose inputs come first."""
EACH_MIXTURE = [pytest.param(kind, marks=() if kind == "qwen3_moe" else pytest.mark.nightly) for kind in MIXTURES]
METHODS = ["LoRA", "QLoRA"]
ROUTED_IN_BATCHES = [("mixtral", "Full"), ("gpt_oss", "LoRA"), ("qwen3_moe", "QLoRA")]
IDS = torch.randint(3, 512, (2, 48), generator=torch.Generator().manual_seed(1))
MakeJob = Callable[..., Bench]


@pytest.fixture(scope="module")
def bases(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of two layers with the tiny model's tokenizer."""
    found = {}
    for kind, own in MIXTURES.items():
        found[kind] = tmp_path_factory.mktemp(kind) / "model"
        shutil.copytree(tiny_model, found[kind], ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | own)).save_pretrained(found[kind])
    return found


def settings_of(method: str, **changes: Any) -> Resolved:
    return make_settings(method, **{"precision": "FP32", "lora_rank": 4, "target_experts": True} | changes)


def on_experts(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: one for name, one in trained_tensors(model).items() if ".experts." in name}


def train(model: PeftModel, steps: int = 2) -> float:
    """The last loss; after the first step no factor is zero any more."""
    optimiser = torch.optim.Adam(trained_tensors(model).values(), lr=0.01)
    loss = torch.zeros(())
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", EACH_MIXTURE)
def test_every_factor_on_experts_has_a_gradient_and_moves(
    bases: dict[str, Path], kind: str, method: str, checkpointing: bool
) -> None:
    model = load_for_training(bases[kind], settings_of(method, gradient_checkpointing=checkpointing), CPU).train()
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    factors = on_experts(model)
    assert len(factors) == 2 * 2 * 2, "two layers, two stacks, two factors"
    assert {one.dtype for one in factors.values()} == {torch.float32}
    before = {name: one.detach().clone() for name, one in factors.items()}
    first = train(model, steps=1)
    assert train(model, steps=3) < first
    assert [name for name, one in factors.items() if one.grad is None or not one.grad.any()] == []
    assert [name for name, one in factors.items() if torch.equal(one, before[name])] == []
    assert parametrize._cache_enabled == 0
    assert parametrize._cache == {}


@pytest.mark.parametrize("kind", EACH_MIXTURE)
def test_over_4_bits_the_model_is_the_dequantised_base_with_the_adapter_as_plain_peft_loads_it(
    bases: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    settings = settings_of("QLoRA")
    model = load_for_training(bases[kind], settings, CPU).train()
    train(model)
    save_adapter(model, tmp_path / "adapter", "s3://bucket/model")
    layers = quantised_layers(model, settings)
    assert layers
    nf4 = Nf4(frozenset(layers.modules), layers.double_quant, torch.float32)
    plain = load_plain(bases[kind], torch.float32, CPU)
    changed = {name for name, one in plain.named_parameters() if not torch.equal(nf4.through(name, one.data), one)}
    assert {name.rpartition(".")[2] for name in changed if ".experts." in name} == {"gate_up_proj", "down_proj"}
    for name, parameter in plain.named_parameters():
        parameter.data = nf4.through(name, parameter.data)
    before = logits(plain)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(model), before, atol=1e-2)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_trained_factors_are_restored_exactly(bases: dict[str, Path], method: str, tmp_path: Path) -> None:
    model, again = (load_for_training(bases["mixtral"], settings_of(method), CPU).train() for _ in range(2))
    train(model)
    save_trained(model, tmp_path / "trained.safetensors")
    restore_trained(again, tmp_path / "trained.safetensors")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_further_adapter_is_a_reference_of_its_own(bases: dict[str, Path], method: str) -> None:
    """As TRL makes it for DPO, KTO and RLHF."""
    model = load_for_training(bases["qwen3_moe"], settings_of(method), CPU).train()
    train(model)
    before = logits(model)
    model.add_adapter("ref", model.peft_config["default"])
    for name, one in on_experts(model).items():
        model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(one.data)
    for name, one in trained_tensors(model).items():
        model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(one.data)
    train(model.train())
    assert not torch.allclose(logits(model), before, atol=1e-3)
    model.set_adapter("ref")
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    model.set_adapter("default")
    model.delete_adapter("ref")
    assert len(on_experts(model)) == 8


def _write_gradients(rank: int, base: Path, folder: Path, port: int) -> DistributedDataParallel:
    """Each process trains one of two rows; DDP averages their gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(load_for_training(base, settings_of("QLoRA"), CPU).train())
    for _ in range(2):
        model.zero_grad()
        model(input_ids=IDS[rank : rank + 1], labels=IDS[rank : rank + 1]).loss.backward()
    save_file({name: one.grad for name, one in on_experts(model.module).items()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()
    return model


def test_two_processes_average_the_gradients_of_factors_on_experts(bases: dict[str, Path], tmp_path: Path) -> None:
    start_ranks(_write_gradients, (bases["qwen3_moe"], tmp_path, free_port()), 2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    model = load_for_training(bases["qwen3_moe"], settings_of("QLoRA"), CPU).train()
    for row in (0, 1):
        (model(input_ids=IDS[row : row + 1], labels=IDS[row : row + 1]).loss / 2).backward()
    for name, factor in on_experts(model).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], factor.grad, rtol=1e-4, atol=1e-7)


def test_an_adapter_on_experts_without_a_gradient_ends_the_first_step(bases: dict[str, Path]) -> None:
    model = load_for_training(bases["qwen3_moe"], settings_of("QLoRA"), CPU).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    require_gradient(model)
    name = next(name for name in on_experts(model) if "experts.base_layer.lora_B" in name)
    trained_tensors(model)[name].grad = None
    with pytest.raises(
        TrainerError, match=r"no gradient reaches an adapter on experts .*layers\.0.*base_layer\.lora_B"
    ):
        require_gradient(model)


def test_a_model_without_experts_is_refused_by_the_trainer_as_well(tiny_model: Path) -> None:
    with pytest.raises(TrainerError, match=r"the model LlamaForCausalLM has no experts; remove tuning\.lora") as caught:
        load_for_training(tiny_model, settings_of("LoRA"), CPU)
    assert caught.value.code is ExitCode.INVALID_CONFIG


# --- whole jobs -----------------------------------------------------------------


@pytest.fixture
def make_job(bases: dict[str, Path], tmp_path: Path) -> MakeJob:
    def make(name: str, kind: str = "qwen3_moe", method: str = "QLoRA", **blocks: Any) -> Bench:
        hyper = HYPERPARAMETERS | {"maxSteps": 4, "lrSchedulerType": "constant", "warmupSteps": 0}
        tuning = {"method": method, "lora": {"rank": 4, "targetExperts": True}}
        defaults = {"hyperparameters": hyper, "tuning": tuning, "evaluation": {"steps": 2}}
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, bases[kind], make_spec(method, **defaults | blocks))
        bench.rows = make_rows(60)
        return bench

    return make


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "method"), [("mixtral", "QLoRA"), ("qwen3_moe", "LoRA"), ("gpt_oss", "QLoRA")])
def test_a_job_trains_experts_and_its_merged_model_passes_the_gate(make_job: MakeJob, kind: str, method: str) -> None:
    asked = {"steps": 2, "maxNewTokens": 4, "answers": {"match": "Exact", "rows": 20}}
    bench = make_job("job", kind, method, output={"uri": "s3://bucket/output", "merge": "FP32"}, evaluation=asked)
    report = bench.run()
    assert report.evaluation
    assert report.evaluation.answers
    assert report.evaluation.answers.rows == 20
    assert report.resolved
    assert report.resolved.target_parameters == ["experts.down_proj", "experts.gate_up_proj"]
    assert (report.resolved.target_experts, report.resolved.lora_dropout) == (True, 0.0)
    validation = json.loads((bench.output / "validation.json").read_text(encoding="utf-8"))
    assert [one["faults"] for one in validation["candidates"]] == [[]] * (2 if method == "QLoRA" else 1)
    assert find_result_faults("s3://bucket/output", bench.storage) == []
    before, after = tensors(bench.model), tensors(bench.output / "merged")
    assert after.keys() == before.keys()
    experts = [name for name, one in before.items() if ".experts." in name and one.dim() > 1 and "bias" not in name]
    assert [name for name in experts if torch.equal(before[name], after[name])] == []
    config = json.loads((bench.output / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_parameters"] == ["experts.down_proj", "experts.gate_up_proj"]
    text = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert re.search(r"`targetExperts`\s*\|\s*`true`", text)
    assert "it was not tried with an adapter on experts" in text
    assert "targetExperts: true" in (bench.output / "finetune_config.yaml").read_text(encoding="utf-8")


def test_a_merge_without_the_experts_updates_does_not_pass_the_gate(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_for_training(bases["qwen3_moe"], settings_of("LoRA"), CPU)
    for factor in trained_tensors(model).values():
        torch.nn.init.normal_(factor, std=0.3)
    save_adapter(model, tmp_path / "adapter", "s3://bucket/model")
    candidate = Candidate(name="merged", directory=tmp_path / "merged")
    plan = GatePlan(
        base=bases["qwen3_moe"],
        adapter=tmp_path / "adapter",
        precision="FP32",
        candidates=[candidate],
        samples=[(ids, ids) for ids in IDS.tolist()],
        prompts=[],
        stop_ids=[2],
        max_new_tokens=1,
        tokenizer_sha256={},
        device="cpu",
    )
    make_candidate(plan, candidate, lambda: None)
    seen = gate_worker.examine(plan, candidate)
    assert find_faults(seen, None, [], 0) == []
    for name, factor in on_experts(model).items():
        if "lora_B" in name:
            factor.data.zero_()
    save_adapter(model, tmp_path / "linear", "s3://bucket/model")
    make_candidate(plan.model_copy(update={"adapter": tmp_path / "linear"}), candidate, lambda: None)
    assert "its top token equals its source's on" in " ".join(
        find_faults(gate_worker.examine(plan, candidate), None, [], 0)
    )


class StopAfter(Reporter):
    """Set the stop flag at the end of a step."""

    def __init__(self, stop: StopFlag, step: int) -> None:
        super().__init__("u-1")
        self._stop, self._step = stop, step

    def update(self, *, progress: Mapping[str, object] | None = None, **rest: Any) -> None:
        """Check for the step."""
        super().update(progress=progress, **rest)
        if (progress or {}).get("step") == self._step:
            self._stop.set()


@pytest.mark.parametrize(
    ("kind", "method"),
    [("qwen3_moe", "LoRA"), *(pytest.param(*one, marks=pytest.mark.nightly) for one in ROUTED_IN_BATCHES)],
)
def test_a_mixture_answers_held_out_rows_in_batches(make_job: MakeJob, kind: str, method: str) -> None:
    """TRL requests the routers' logits in every pass of supervised tuning, which fails for one token of many rows."""
    answers = {"match": "Exact", "rows": 20}
    report = make_job(
        "job",
        kind,
        method,
        tuning={"method": method},
        dataset={"train": {"uri": "s3://bucket/data/train.jsonl"}, "validationSplitPercent": 50},
        evaluation={"steps": 4, "prompts": [], "maxNewTokens": 4, "answers": answers},
    ).run()
    assert report.evaluation
    assert report.evaluation.answers
    assert report.evaluation.answers.rows == 20


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["QLoRA", "LoRA"])
def test_a_stopped_training_resumes_with_its_adapter_on_experts(make_job: MakeJob, method: str) -> None:
    whole, other = make_job("whole", method=method), make_job("other", method=method)
    whole.run()
    config = other.prepare()
    other.reporter = StopAfter(other.stop, 2)
    with pytest.raises(Stopped):
        other.train(config)
    shutil.rmtree(other.root / "workspace")
    (other.root / "workspace").mkdir()
    other.stop, other.reporter = StopFlag(), Reporter("u-1")
    other.train(config)
    assert other.reporter.snapshot().progress.resumed_from_step == 2
    expected, found = tensors(whole.output / "adapter"), tensors(other.output / "adapter")
    assert expected.keys() == found.keys()
    assert [name for name, one in expected.items() if not torch.equal(one, found[name])] == []


@pytest.mark.nightly
@pytest.mark.parametrize(("objective", "method"), [("DPO", "QLoRA"), ("KTO", "LoRA"), ("RLHF", "QLoRA")])
def test_a_preference_job_continues_an_adapter_on_experts(make_job: MakeJob, objective: str, method: str) -> None:
    parent = make_job("parent", method="LoRA")
    published = as_parent(parent, parent.run())
    tuning = {"method": method, "initialAdapter": {"fromParent": True}}
    blocks: dict[str, Any] = {"objective": objective, "tuning": tuning, "lineage": {"parentRef": {"name": "parent"}}}
    if objective == "RLHF":
        rewards = [{"type": "Regex", "pattern": "a"}]
        blocks["rlhf"] = {"maxCompletionLength": 8, "numGenerations": 4, "rewards": rewards}
    bench = make_job("child", method=method, **blocks)
    bench.rows = preference_rows(40)
    if objective == "RLHF":
        bench.rows = [{"prompt": f"What is the colour of {THINGS[n % 8]} {n}?"} for n in range(16)]
    bench.elsewhere, bench.parent = {"s3://bucket/parent": parent.output}, published
    report = bench.run()
    assert report.resolved
    assert (report.resolved.lora_rank, report.resolved.target_experts) == (4, True)
    before, after = tensors(parent.output / "adapter"), tensors(bench.output / "adapter")
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert [name for name in still if ".experts." in name] == []
    if objective != "RLHF":
        lines = map(json.loads, (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        first = next(line for line in lines if line["kind"] == "eval")
        assert first["reward_margin"] == pytest.approx(0, abs=0.01), "the reference is the parent's adapter"
    assert find_result_faults("s3://bucket/output", bench.storage) == []


@pytest.mark.nightly
def test_a_reward_model_has_an_adapter_on_its_experts(make_job: MakeJob) -> None:
    bench = make_job("job", "mixtral", objective="RewardModel")
    bench.rows = preference_rows(40)
    report = bench.run()
    assert report.resolved
    assert report.resolved.target_experts
    factors = tensors(bench.output / "adapter")
    seconds = {name: one for name, one in factors.items() if ".experts." in name and "lora_B" in name}
    assert len(seconds) == 4
    assert all(bool(one.any()) for one in seconds.values())
    assert find_result_faults("s3://bucket/output", bench.storage) == []
