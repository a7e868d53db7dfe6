"""The gate: a right merge passes, and whatever is wrong with a full model keeps it from being published."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, peft_model
from published_result import find_result_faults
from safetensors.torch import load_file, save_file
from thin_slice import thin_slice
from tiny_model import make_tiny_model
from training_bench import Bench, make_spec
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from finetune_api.handoff import ExitCode, Outcome, Report
from finetune_api.status import Resolved
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.evaluation.gate_rules import GatePrompt, find_faults
from finetune_trainer.evaluation.logprobs import HeldOut, iterate_logprobs
from finetune_trainer.merging import worker_process
from finetune_trainer.merging.gate import GateNotRun, needed_bytes, run_gate
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.merging.gate_worker import (
    compare_logprobs,
    examine,
    find_lost_parts,
    find_nf4,
    keep_logprobs,
    load_source,
)
from finetune_trainer.merging.merge import copy_settings, open_adapter_merge, open_full_merge, stored_precision
from finetune_trainer.models.adapters.attach import attach_adapter
from finetune_trainer.models.adapters.saved import save_adapter, save_tokenizer
from finetune_trainer.models.files.tensor_files import TensorFiles
from finetune_trainer.models.loading import load_plain, load_quantised, quantised_layers, trained_tensors
from finetune_trainer.pipeline.full_model import make_candidate
from finetune_trainer.publishing.lineage import digest_folder
from finetune_trainer.publishing.publish import adopt_result
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded

MakeBench = Callable[..., Bench]
CPU = torch.device("cpu")
SAMPLES = [
    ([1, *range(20 + row, 52 + row), 2], [-100] * 3 + [*range(22 + row, 52 + row), 2]) for row in range(0, 160, 8)
]


def adapted(base: Path, directory: Path, *, scale: float = 0.05, **settings: Any) -> Path:
    """An adapter that looks trained."""
    asked = {"lora_rank": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]} | settings
    model = attach_adapter(load_plain(base, torch.float32, CPU), Resolved(**asked))
    for tensor in trained_tensors(model).values():
        torch.nn.init.normal_(tensor, std=scale)
    save_adapter(model, directory, "s3://bucket/model")
    return directory


def merge(base: Path, adapter: Path, output: Path, precision: str) -> None:
    with open_adapter_merge(base, adapter, precision) as merged:
        merged.write(output, lambda: None)
    copy_settings(base, output, precision)


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path) -> GatePlan:
    """A merge that is right."""
    labeler = Labeler(tiny_model)
    candidate = Candidate(name="unquantised base", directory=tmp_path / "merged")
    save_tokenizer(tiny_model, tmp_path / "tokenizer", labeler)
    made = GatePlan(
        base=tiny_model,
        adapter=adapted(tiny_model, tmp_path / "adapter"),
        precision="FP32",
        candidates=[candidate],
        samples=SAMPLES,
        prompts=[[{"role": "user", "content": "What is the sky?"}]],
        stop_ids=[2],
        max_new_tokens=8,
        tokenizer_sha256=digest_folder(tmp_path / "tokenizer"),
        device="cpu",
    )
    make_candidate(made, candidate, lambda: None)
    save_tokenizer(tiny_model, candidate.directory, labeler)
    return made


def found(plan: GatePlan, loss: float | None = None) -> list[str]:
    seen = examine(plan, plan.candidates[0])  # as the gate's process does
    return find_faults(seen, loss, [GatePrompt(prompt, "blue") for prompt in plan.prompts], 0)


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_right_merge_is_its_source_to_rounding(plan: GatePlan, tmp_path: Path) -> None:
    (seen,) = run_gate(plan, tmp_path, lambda: None, StopFlag())
    assert find_faults(seen, seen.reference_loss, [], 0) == []
    assert seen.tokens == sum(len([label for label in labels[1:] if label >= 0]) for _, labels in SAMPLES)
    assert seen.mean_kl is not None
    assert seen.mean_kl < 1e-6
    assert seen.top1_agreement == 1.0
    assert len(seen.answers) == 1


@pytest.mark.parametrize(
    ("named", "stored", "precision"),
    [
        ({"torch_dtype": "float16"}, torch.bfloat16, "FP16"),
        ({"text_config": {"dtype": "bfloat16"}}, torch.float32, "BF16"),
        ({"text_config": {}}, torch.bfloat16, "BF16"),
        ({}, torch.float16, "FP16"),
        ({}, torch.float64, "FP32"),
    ],
)
def test_the_number_format_of_a_base_is_that_of_its_config_its_text_part_or_its_files(
    tmp_path: Path, named: dict[str, Any], stored: torch.dtype, precision: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"} | named))
    tensors = {"model.norm.weight": torch.ones(4), "model.embed_tokens.weight": torch.ones(9, 4, dtype=stored)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_precision(tmp_path) == precision


def test_a_fully_tuned_model_loses_the_bases_copy_of_tied_embeddings_though_the_config_does_not_name_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["tie_word_embeddings"]  # as a library writes the architecture's default
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, tmp_path / "trained.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with open_full_merge(base, tmp_path / "trained.safetensors", "FP32") as merged:
        assert "lm_head.weight" not in merged.names


def test_one_corrupted_weight_is_caught(plan: GatePlan, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change(plan.candidates[0].directory, lambda tensors: tensors[name].view(-1)[5].add_(0.01))
    assert found(plan) == [f"tensor {name} has 1 values that base and training do not produce"]


def test_a_value_that_is_not_finite_is_detected(plan: GatePlan, tmp_path: Path) -> None:
    name = "model.norm.weight"
    change(plan.candidates[0].directory, lambda tensors: tensors[name].view(-1)[5].fill_(float("nan")))
    assert found(plan) == ["tensor model.norm.weight has values that are not finite"]


def test_a_missing_tensor_is_caught(plan: GatePlan, tmp_path: Path) -> None:
    change(plan.candidates[0].directory, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert found(plan) == ["tensor model.layers.1.mlp.up_proj.weight is missing"]


def test_another_tokenizer_is_caught(plan: GatePlan, tmp_path: Path) -> None:
    file = plan.candidates[0].directory / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace("<|im_end|>", "<|im_stop|>"), encoding="utf-8")
    assert found(plan) == ["tokenizer.json differs from the one used for training"]


def test_another_template_is_caught(plan: GatePlan, tmp_path: Path) -> None:
    file = plan.candidates[0].directory / "chat_template.jinja"
    file.write_text(file.read_text("utf-8") + "{{ 'Sure! ' }}", encoding="utf-8")
    assert found(plan) == ["chat_template.jinja differs from the one used for training"]


def test_a_merge_into_another_base_is_caught(plan: GatePlan, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=8)
    assert plan.adapter
    merge(other, plan.adapter, plan.candidates[0].directory, "FP32")
    faults = found(plan)
    assert len(faults) == 8
    assert all("values that base and training do not produce" in fault for fault in faults)


def test_a_merge_that_forgot_the_adapter_is_caught(tiny_model: Path, plan: GatePlan) -> None:
    shutil.copyfile(tiny_model / "model.safetensors", plan.candidates[0].directory / "model.safetensors")
    assert [fault.split()[1].rpartition(".layers.")[2] for fault in found(plan)] == [
        f"{layer}.{module}.weight" for layer in (0, 1) for module in ("mlp.down_proj", "self_attn.q_proj")
    ]


def test_a_model_that_lost_a_part_of_its_base_is_caught(tmp_path: Path) -> None:
    """The library loads a model with a vision tower as its text decoder, and would save that alone."""
    base = tmp_path / "base"
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 1, "num_heads": 2, "out_hidden_size": 64}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
    text = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "linear_value_head_dim": 16, **heads,
        "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    config = Qwen3_5Config(text_config=text, vision_config=vision)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "text-only")
    with TensorFiles.of_folder(base) as before, TensorFiles.of_folder(tmp_path / "text-only") as own:
        faults = " and ".join(find_lost_parts(base, tmp_path / "text-only", before, own))
        assert find_lost_parts(base, base, before, before) == []
    assert "architecture is Qwen3_5ForCausalLM instead of Qwen3_5ForConditionalGeneration" in faults
    assert re.search(r"\d+ of the base's tensors are missing, for example model\.visual\.", faults)


def test_what_the_library_alone_can_merge_is_judged_by_what_it_answers(plan: GatePlan) -> None:
    """The files are in order, but the model differs from its source."""
    directory = plan.candidates[0].directory
    change(directory, lambda tensors: tensors["model.norm.weight"].mul_(30))
    source, own = load_source(plan, plan.candidates[0], CPU), load_plain(directory, torch.float32, CPU)
    held_out = HeldOut([Encoded(ids, labels, len(ids)) for ids, labels in SAMPLES], lambda: None)
    seen = compare_logprobs("x", *(keep_logprobs(iterate_logprobs(one, held_out)) for one in (source, own)), [])
    sentence = " ".join(find_faults(seen, seen.reference_loss, [], 0))
    assert "its mean KL divergence from its source is" in sentence
    assert "its held-out loss is" in sentence


def test_a_stop_ends_the_gate_before_its_libraries_are_loaded(
    plan: GatePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "sys", sys)  # a process that has loaded nothing yet
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        run_gate(plan, tmp_path, lambda: None, stop)


def test_if_one_model_does_not_fit_the_gate_is_not_run_and_reports_how_much_it_needs(
    plan: GatePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.merging.gate.available_bytes", lambda: needed_bytes(plan) - 1)
    with pytest.raises(GateNotRun, match=r"takes 0\.7 GiB of memory, and .* free: raise resources\.limits\.memory"):
        run_gate(plan, tmp_path, lambda: None, StopFlag())


def test_a_gate_on_the_cpu_reads_the_adapter_into_the_hosts_memory(
    plan: GatePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT would read it onto the GPU, which may have no room: that is why the gate runs on the CPU."""
    monkeypatch.setattr(peft_model, "infer_device", lambda: "cuda")
    assert not found(plan)


def test_an_adapter_that_does_not_fit_the_gpus_memory_is_not_called_one_of_another_base(
    plan: GatePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(peft_model, "load_peft_weights", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        found(plan)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"rank_pattern": {"q_proj": 4, r"layers\.0\.mlp\..*": 1}, "alpha_pattern": {r"layers\.1\..*": 1}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 16}},
    ],
    ids=["lora", "rslora", "embedding", "patterns", "rslora with patterns"],
)
def test_tensor_by_tensor_is_what_the_library_merges(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = adapted(tiny_model, tmp_path / "adapter", **settings)
    merge(tiny_model, adapter, tmp_path / "merged", "FP32")
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    base.config.tie_word_embeddings = False
    theirs = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [32, 16], ids=["square", "not square"])
def test_a_conv1d_is_merged_as_it_is_stored_whatever_the_adapter_declares(tmp_path: Path, width: int) -> None:
    """QLoRA saves GPT-2's adapter as that of ordinary layers."""
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, n_inner=width, vocab_size=512, n_positions=64)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    adapter = adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["c_fc", "c_proj", "c_attn"])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
    saved = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(saved | {"fan_in_fan_out": False}), encoding="utf-8")
    merge(tmp_path / "base", adapter, tmp_path / "merged", "FP32")
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-5)


def test_layers_are_quantised_also_where_the_files_leave_out_the_models_name(plan: GatePlan, tmp_path: Path) -> None:
    model = load_quantised(plan.base, torch.float32, double_quant=True, device=CPU)
    layers = quantised_layers(model, Resolved(double_quant=True, precision="FP32"))
    nf4 = find_nf4(
        plan.model_copy(update={"quantised": layers}), Candidate(name="x", directory=tmp_path, is_dequantised=True)
    )
    shutil.copytree(plan.base, tmp_path / "short")
    tensors = load_file(plan.base / "model.safetensors")
    short = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(short, tmp_path / "short" / "model.safetensors", metadata={"format": "pt"})
    assert plan.adapter
    with (
        open_adapter_merge(plan.base, plan.adapter, "FP32", nf4) as whole,
        open_adapter_merge(tmp_path / "short", plan.adapter, "FP32", nf4) as cut,
    ):
        name = "layers.0.mlp.up_proj.weight"
        assert torch.equal(whole.tensor(f"model.{name}"), cut.tensor(name))
        assert not torch.equal(cut.tensor(name), short[name])


def test_a_sharded_base_gives_a_sharded_model_that_the_library_loads(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).save_pretrained(base, max_shard_size="100KB")
    adapter = adapted(tiny_model, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged", "BF16")
    merge(tiny_model, adapter, tmp_path / "whole", "BF16")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.bfloat16
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


@pytest.mark.nightly
def test_qlora_is_judged_on_both_bases_each_against_its_own(make_bench: MakeBench) -> None:
    bench = make_bench("QLoRA", output={"uri": "s3://bucket/output", "merge": "BF16"})
    report = bench.run()
    sentence = json.loads((bench.output / "validation.json").read_text("utf-8"))
    assert [one["name"] for one in sentence["candidates"]] == ["unquantised base", "dequantised base"]
    best = min(sentence["candidates"], key=lambda one: one["loss"])
    assert sentence["chosen"] == best["name"]
    assert all(one["mean_kl"] < 0.01 for one in sentence["candidates"])
    assert report.evaluation is not None
    assert (report.outcome, report.evaluation.merge_gate) == (Outcome.PUBLISHED, "Passed")
    assert find_result_faults("s3://bucket/output", bench.storage) == []


def test_the_dequantised_base_is_what_the_four_bit_layers_compute_with(tiny_model: Path, plan: GatePlan) -> None:
    model = load_quantised(tiny_model, torch.float32, double_quant=True, device=CPU)
    layers = quantised_layers(model, Resolved(double_quant=True, precision="FP32"))
    dequantised = Candidate(name="x", directory=tiny_model, is_dequantised=True)
    nf4 = find_nf4(plan.model_copy(update={"quantised": layers}), dequantised)
    assert nf4
    plain = load_plain(tiny_model, torch.float32, CPU)
    inputs = torch.tensor([SAMPLES[0][0]])
    for name, parameter in plain.named_parameters():
        parameter.data = nf4.through(name, parameter.data)
    with torch.no_grad():
        ours, theirs = plain(input_ids=inputs).logits, model(input_ids=inputs).logits
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


def run_gated(make_bench: MakeBench, gate: dict[str, Any], **blocks: Any) -> tuple[Bench, Report]:
    prompts = [{"prompt": "What is the colour of sky 7?", "expected": "^The sky is purple"}]
    evaluation = {"steps": 5, "prompts": prompts, "maxNewTokens": 8, "gate": gate}
    bench = make_bench(evaluation=evaluation, **blocks)
    return bench, bench.run()


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        pytest.param({"maxEvalLoss": 0.01}, "above maxEvalLoss 0.01", marks=pytest.mark.nightly),
        ({"mustMatchExpected": True}, "does not match evaluation.prompts"),
    ],
)
def test_a_gate_that_is_not_met_fails_with_everything_published(
    make_bench: MakeBench, gate: dict[str, Any], sentence: str
) -> None:
    bench, report = run_gated(make_bench, gate)
    assert (report.outcome, report.reason) == (Outcome.GATE_NOT_MET, ExitCode.GATE_NOT_MET.reason)
    assert sentence in report.message
    assert report.evaluation is not None
    assert (report.evaluation.gate, report.evaluation.merge_gate) == ("NotMet", "NotAsked")
    assert find_result_faults("s3://bucket/output", bench.storage) == []
    assert (bench.output / "adapter" / "adapter_model.safetensors").is_file()
    assert sentence in (bench.output / "finetune_report.md").read_text("utf-8")
    adopted = adopt_result(bench.config(), bench.storage, Outcome.ADOPTED)
    assert adopted
    assert adopted.outcome is Outcome.GATE_NOT_MET


def test_a_gate_that_is_met_passes(make_bench: MakeBench) -> None:
    _, report = run_gated(make_bench, {"maxEvalLoss": 100, "mustImprove": True})
    assert report.outcome is Outcome.PUBLISHED
    assert report.evaluation is not None
    assert report.evaluation.gate == "Passed"


@pytest.mark.parametrize("method", thin_slice(["LoRA", "Full"], "LoRA"))
def test_a_number_format_that_cannot_hold_the_weights_withholds_the_full_model_and_loses_nothing(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)

    def stretch(tensors: dict[str, torch.Tensor]) -> None:
        """Queries beyond what FP16 holds, and keys as much smaller: their product stays."""
        tensors["model.layers.0.self_attn.q_proj.weight"].mul_(1e7)
        tensors["model.layers.0.self_attn.k_proj.weight"].div_(1e7)

    change(base, stretch)
    spec = make_spec(method, output={"uri": "s3://bucket/output", "merge": "FP16"})
    bench = Bench(tmp_path / "job", base, spec)
    report = bench.run()
    assert report.outcome is Outcome.GATE_NOT_MET
    assert "the full model in FP16 is withheld: tensor model.layers.0.self_attn.q_proj.weight" in report.message
    assert "Set output.merge to BF16 or FP32" in report.message
    assert not (bench.output / "merged").exists()
    assert report.artifacts is not None
    assert (report.artifacts.merged_uri, bool(report.artifacts.adapter_uri)) == (None, method == "LoRA")
    assert (bench.output / "withheld.safetensors").is_file() == (method == "Full")
    assert find_result_faults("s3://bucket/output", bench.storage) == []


def test_a_base_that_changed_while_it_trained_is_not_merged_into(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(output={"uri": "s3://bucket/output", "merge": "FP32"})
    config = bench.prepare()

    from finetune_trainer.pipeline import train

    def change_base(inputs: Any, *arguments: Any) -> Any:
        with (inputs.model / "config.json").open("a", encoding="utf-8") as file:
            file.write(" ")
        return make(inputs, *arguments)

    make = train.make_full_model
    monkeypatch.setattr(train, "make_full_model", change_base)
    with pytest.raises(TrainerError, match="files have changed since they were loaded") as caught:
        bench.train(config)
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE
