"""GGUF files of a job: made by llama.cpp's converter, read back by llama.cpp, and published if they are close."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_architectures import build_table
from llama_cpp_answer import ask_llama_cpp
from published_result import find_result_faults
from safetensors.torch import load_file, save_file
from spelled_model import make_spelled_model
from training_bench import HYPERPARAMETERS, Bench, make_spec

from finetune_api.handoff import ExitCode, Outcome
from finetune_trainer.errors import TrainerError
from finetune_trainer.merging import converter
from finetune_trainer.models.gguf_architectures import TABLE

QUESTION = "What is the colour of sky 7?"


@pytest.fixture(scope="module")
def spelled_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spelled_model(tmp_path_factory.mktemp("spelled") / "model")


def build_bench(folder: Path, model: Path, *types: str, **blocks: Any) -> Bench:
    output = {"uri": "s3://bucket/output", "merge": "FP32", "gguf": list(types)}
    settings = HYPERPARAMETERS | {"maxSteps": 5, "maxLength": 256}
    return Bench(folder, model, make_spec(output=output, hyperparameters=settings, **blocks))


def read_validation(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bench.output / "validation.json").read_text("utf-8"))
    return found


def test_the_files_of_a_job_answer_in_llama_cpp_as_the_report_states(tmp_path: Path, spelled_model: Path) -> None:
    bench = build_bench(tmp_path, spelled_model, "F16", "Q4_K_M")
    report = bench.run()
    assert report.evaluation
    assert report.artifacts
    assert (report.outcome, report.evaluation.gguf_gate) == (Outcome.PUBLISHED, "Passed")
    assert report.artifacts.gguf_uri == "s3://bucket/output/gguf"
    assert sorted(file.name for file in (bench.output / "gguf").iterdir()) == [
        "Modelfile",
        "model-F16.gguf",
        "model-Q4_K_M.gguf",
    ]
    assert find_result_faults("s3://bucket/output", bench.storage) == []

    full, few_bits = read_validation(bench)["gguf"]["files"]
    assert full["loss"] == pytest.approx(full["reference_loss"], abs=1e-3)
    assert full["mean_kl"] < 1e-4
    assert full["mean_kl"] < few_bits["mean_kl"]
    assert full["same_tokens"] == 1
    for one in (full, few_bits):
        file = bench.output / "gguf" / f"model-{one['name']}.gguf"
        assert ask_llama_cpp(file, QUESTION, 8) == one["answers"][0]

    text = (bench.output / "finetune_report.md").read_text("utf-8")
    assert "## GGUF files" in text
    assert "ollama create" in text
    same = sum(one == full["answers"][0] for one in read_validation(bench)["candidates"][0]["answers"])
    (row,) = [line for line in text.splitlines() if line.startswith("| `F16` ")]
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == [f"{same} of 1", "published"]
    modelfile = (bench.output / "gguf" / "Modelfile").read_text("utf-8")
    assert "FROM ./model-F16.gguf\n" in modelfile
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n" in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile


@pytest.mark.nightly
def test_a_type_that_cannot_hold_the_weights_is_withheld_and_the_other_one_published(
    tmp_path: Path, spelled_model: Path
) -> None:
    base = make_spelled_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"].div_(1e7)
    for name in ("q_proj", "k_proj", "v_proj"):  # beyond F16; the product with the norm stays, which is in FP32
        tensors[f"model.layers.0.self_attn.{name}.weight"].mul_(1e7)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    bench = build_bench(tmp_path / "job", base, "F16", "Q8_0")
    report = bench.run()
    assert report.evaluation
    assert (report.outcome, report.evaluation.merge_gate, report.evaluation.gguf_gate) == (
        Outcome.GATE_NOT_MET,
        "Passed",
        "NotMet",
    )
    assert "GGUF F16 is withheld" in report.message
    assert "name a type with more bits in output.gguf" in report.message
    assert sorted(file.name for file in (bench.output / "gguf").iterdir()) == ["Modelfile", "model-Q8_0.gguf"]
    assert "Not published, F16" in (bench.output / "finetune_report.md").read_text("utf-8")
    assert find_result_faults("s3://bucket/output", bench.storage) == []


@pytest.mark.nightly
def test_a_tokenizer_that_the_converter_does_not_know_costs_only_the_files(tmp_path: Path, tiny_model: Path) -> None:
    bench = build_bench(tmp_path, tiny_model, "Q8_0")
    report = bench.run()
    assert report.evaluation
    assert (report.outcome, report.evaluation.merge_gate, report.evaluation.gguf_gate) == (
        Outcome.GATE_NOT_MET,
        "Passed",
        "NotRun",
    )
    assert "llama.cpp's converter does not know this tokenizer" in report.message
    assert not (bench.output / "gguf").exists()
    assert (bench.output / "merged" / "model.safetensors").is_file()
    assert "**There is no `gguf/`**" in (bench.output / "finetune_report.md").read_text("utf-8")


def test_preflights_table_is_that_of_the_installed_converter() -> None:
    assert TABLE.read_text("utf-8") == build_table()


def test_an_image_without_the_converter_is_refused_before_the_training(
    tmp_path: Path, spelled_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = build_bench(tmp_path, spelled_model, "Q8_0")
    config = bench.prepare()
    monkeypatch.setattr(converter, "LLAMA_CPP", tmp_path / "nothing")
    with pytest.raises(TrainerError, match="this trainer image has no llama") as failed:
        bench.train(config)
    assert failed.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.nightly
def test_a_killed_process_costs_only_the_files(
    tmp_path: Path, spelled_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = build_bench(tmp_path / "job", spelled_model, "Q8_0")
    broken = tmp_path / "llama.cpp"
    broken.mkdir()
    for path in converter.LLAMA_CPP.iterdir():
        (broken / path.name).symlink_to(path)
    (broken / "llama_cpp").unlink()
    (broken / "llama_cpp").mkdir()
    (broken / "llama_cpp" / "llama_cpp.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGABRT)\n", encoding="utf-8"
    )
    monkeypatch.setattr(converter, "LLAMA_CPP", broken)
    report = bench.run()
    assert report.evaluation
    assert (report.evaluation.merge_gate, report.evaluation.gguf_gate) == ("Passed", "NotRun")
    assert "killed by signal SIGABRT" in report.message
    assert (bench.output / "adapter" / "adapter_model.safetensors").is_file()
