"""`finetune-trainer estimate`: memory by part for a model of real size, of which only the headers exist."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from model_shapes import LLAMA_8B, shape_of, write_hollow_model
from typer.testing import CliRunner, Result

from finetune_api.handoff import ExitCode
from finetune_api.objectives import Objective
from finetune_api.spec import Method
from finetune_trainer.cli import app
from finetune_trainer.commands.estimate import Request, estimate_method, parse_memory
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.memory.estimate import GIB, estimate
from finetune_trainer.sigterm import StopFlag


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an 8B model."""
    return write_hollow_model(tmp_path_factory.mktemp("models") / "llama", LLAMA_8B)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["estimate", *map(str, arguments)], obj=RunState(StopFlag()))


def methods(*arguments: object) -> dict[str, dict[str, Any]]:
    done = run(*arguments, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return {one["method"]: one for one in json.loads(done.stdout)["methods"] if not one["shardBase"]}


def test_every_method_has_its_parts_and_their_sum(llama: Path) -> None:
    found = methods(llama)
    assert list(found) == ["QLoRA", "LoRA", "Full"]
    for one in found.values():
        assert one["totalBytes"] == sum(one["partBytes"].values())
        assert one["fits"] is None
    assert found["Full"]["partBytes"]["weights"] == 4 * 8_030_261_248
    assert found["LoRA"]["partBytes"]["weights"] == 2 * 8_030_261_248


def test_the_figures_are_those_that_preflight_computes_for_the_same_job(llama: Path) -> None:
    shape = shape_of(LLAMA_8B)
    one = estimate_method(shape, Method.QLORA, Request(max_length=4096, gpus=2))
    assert one.memory == estimate(shape, one.settings, Objective.CHAT, ranks=2)
    assert one.settings.max_length == 4096
    assert methods(llama, "--max-length", 4096, "--gpus", 2)["QLoRA"]["totalBytes"] == one.memory.total


def test_a_memory_shows_what_fits_and_the_batch_is_made_smaller_for_it(llama: Path) -> None:
    found = methods(llama, "--gpu-memory", "24G")
    assert {name: one["fits"] for name, one in found.items()} == {"QLoRA": True, "LoRA": True, "Full": False}
    assert found["LoRA"]["gradientCheckpointing"] is True
    assert methods(llama)["LoRA"]["gradientCheckpointing"] is False


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_a_method_with_a_frozen_base_is_also_shown_with_one_that_several_gpus_share(llama: Path, method: str) -> None:
    found = json.loads(run(llama, "--gpus", 8, "--json").stdout)["methods"]
    whole, shared = (one for one in found if one["method"] == method)
    assert (whole["shardBase"], shared["shardBase"]) == (False, True)
    assert shared["totalBytes"] < whole["totalBytes"]
    assert f" {method}, shardBase" in run(llama, "--gpus", 8).stdout
    assert "shardBase" not in run(llama).stdout


def test_what_a_verdict_takes_after_qlora_is_shown_and_is_less_if_the_gpus_share_the_base(llama: Path) -> None:
    whole, shared, *others = json.loads(run(llama, "--gpus", 8, "--json").stdout)["methods"]
    weights = 2 * 8_030_261_248
    assert weights < whole["verdictBytes"] < 1.3 * weights
    assert shared["totalBytes"] < shared["verdictBytes"] < whole["verdictBytes"] / 2
    assert {one["verdictBytes"] for one in others} == {None}
    text = run(llama, "--gpus", 8).stdout
    assert re.search(r"for a verdict +1[5-9]\.\d GiB +\d\.\d GiB +- +- +-\n", text), text
    assert "need the base in 16 bits" in text
    assert "need the base in 16 bits" not in run(llama, "--method", "LoRA").stdout


def test_full_tuning_needs_less_on_each_of_several_gpus(llama: Path) -> None:
    one, eight = (methods(llama, "--gpus", gpus)["Full"] for gpus in (1, 8))
    assert eight["partBytes"]["optimiser"] * 8 == pytest.approx(one["partBytes"]["optimiser"], rel=1e-6)
    assert eight["totalBytes"] < one["totalBytes"] / 4


@pytest.mark.parametrize("objective", [one for one in Objective if one is not Objective.DISTILLATION])
def test_the_figures_are_those_of_a_job_with_the_objective(llama: Path, objective: Objective) -> None:
    shape = shape_of(LLAMA_8B)
    found = methods(llama, "--objective", objective.value, "--gpus", 8)
    for method in (Method.QLORA, Method.LORA, Method.FULL):
        one = estimate_method(shape, method, Request(gpus=8, objective=objective))
        assert one.memory == estimate(shape, one.settings, objective, ranks=8)
        assert found[method]["totalBytes"] == one.memory.total
    assert "shardBase" in run(llama, "--objective", objective.value, "--gpus", 8).stdout


def test_a_full_policy_has_its_reference_and_the_text_states_that_rewards_are_computed(llama: Path) -> None:
    assert methods(llama, "--objective", "rlhf")["Full"]["partBytes"]["reference"] > 0
    text = run(llama, "--objective", "RLHF").stdout
    assert "for objective RLHF" in text
    assert "a reward model takes its weights in 16 bits on top" in text
    assert "reward model" not in run(llama).stdout


def test_a_teacher_takes_its_weights_in_16_bits(llama: Path) -> None:
    found = methods(llama, "--objective", "Distillation", "--teacher", llama)
    assert found["QLoRA"]["partBytes"]["teacher"] > 2 * 8_030_261_248


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (("--objective", "Distillation"), "add --teacher with the model"),
        (("--teacher", "somewhere"), "add --objective Distillation, or remove --teacher"),
    ],
)
def test_a_teacher_belongs_to_objective_distillation(llama: Path, options: tuple[str, ...], fix: str) -> None:
    error = refusal(llama, *options)
    assert error.code is ExitCode.INVALID_CONFIG
    assert fix in error.message


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--gpu-memory", "24Gi"), ExitCode.OK),
        (("--gpu-memory", "24Gi", "--method", "Full"), ExitCode.WONT_FIT),
        (("--gpu-memory", "2Gi"), ExitCode.WONT_FIT),
        ((), ExitCode.OK),
    ],
)
def test_the_exit_code_is_71_if_no_method_fits(llama: Path, arguments: tuple[str, ...], code: ExitCode) -> None:
    assert run(llama, *arguments).exit_code == code


def test_the_text_names_model_parts_and_that_nothing_was_measured(llama: Path) -> None:
    text = run(llama, "--gpu-memory", "24Gi").stdout
    assert "8,030,261,248 weights" in text
    assert "one GPU with 24.0 GiB" in text
    lines = {line.split("  ")[0].strip(): line.split() for line in text.splitlines()}
    assert lines["fits"] == ["fits", "yes", "yes", "no"]
    assert lines["weights"][-2:] == ["29.9", "GiB"]
    assert "not measured" in text


def refusal(*arguments: object) -> TrainerError:
    error = run(*arguments).exception
    assert isinstance(error, TrainerError)
    return error


@pytest.mark.parametrize("memory", ["24", "much", "512Mi"])
def test_what_is_not_the_memory_of_a_gpu_is_refused_with_an_example(memory: str) -> None:
    with pytest.raises(TrainerError, match="write a quantity such as 24Gi or 80G"):
        parse_memory(memory)


def test_80g_and_80gi_are_different() -> None:
    assert (parse_memory("80G"), parse_memory("80Gi")) == (80 * 10**9, 80 * GIB)


def test_a_model_that_is_nowhere_is_refused_with_what_to_write(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none")
    assert error.code is ExitCode.INVALID_CONFIG
    assert "write a folder, s3://… or hf://…" in error.message


def test_a_uri_that_no_job_could_have_is_refused() -> None:
    assert refusal("hf://only-an-owner").code is ExitCode.INVALID_CONFIG


def test_pickle_and_remote_code_are_refused_as_in_preflight(llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(llama / name, tmp_path / name)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    error = refusal(tmp_path)
    assert error.code is ExitCode.MODEL_UNAVAILABLE
    assert "pickle" in error.message
    code = tmp_path / "code"
    write_hollow_model(code, LLAMA_8B | {"auto_map": {"AutoModelForCausalLM": "own.Model"}})
    assert "remote code" in refusal(code).message


def test_a_folder_without_config_is_refused_by_the_name_of_the_argument(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert "MODEL must name the folder of a model" in refusal(tmp_path).message


def test_an_architecture_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    folder = write_hollow_model(tmp_path / "t5", LLAMA_8B)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["T5ForConditionalGeneration"]}))
    assert refusal(folder).code is ExitCode.INVALID_CONFIG
