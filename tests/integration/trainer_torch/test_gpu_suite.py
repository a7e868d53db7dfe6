"""The GPU suite without a GPU: its loud skip, its page, and its measures on a tiny model."""

# ruff: noqa: E402 - the suite is no package: its folder is put on the path first

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
SUITE = TESTS / "gpu" / "suite.py"
sys.path += [str(TESTS / name) for name in ("gpu", "demo", "bench")]

import course
import torch
from machine import Machine, write_random_model
from measures import (
    OBJECTIVES,
    SECTIONS,
    measure_attention,
    measure_estimates,
    measure_image,
    measure_nf4,
    measure_objectives,
    measure_packing,
    measure_ranks,
    measure_resume,
    measure_rollouts,
    measure_speed,
    speed_pairs,
)
from results import Figure, Section, is_missed, read_sections, render

from finetune_trainer.models.files.base_model import read_config

TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip


@pytest.fixture
def machine(tiny_model: Path, tmp_path: Path) -> Machine:
    return Machine(torch.device("cpu"), tmp_path, tiny_model, steps=2, length=32, shapes={"tiny": TINY})


def figures(found: Iterator[Figure]) -> dict[str, Figure]:
    return {one.name: one for one in found}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--require"], 1)])
def test_without_a_gpu_the_suite_prints_why_it_measures_nothing(arguments: list[str], code: int) -> None:
    before = (TESTS / "gpu" / "RESULTS.md").read_bytes()
    done = subprocess.run([sys.executable, SUITE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "SKIPPED: this machine has no CUDA device, so nothing of the GPU suite was measured" in done.stdout
    assert (TESTS / "gpu" / "RESULTS.md").read_bytes() == before


def test_the_page_names_the_card_and_each_missed_requirement() -> None:
    sections = [
        Section("Speed", [Figure("ratio", "0.91", "at least 0.97", False), Figure("ours", "10 tokens/s")], 3.2),
        Section("Two GPUs", [Figure("DDP", "not measured: one GPU", "equal losses")]),
    ]
    page = render([("card", "Brand X | 80 GB")], sections)
    assert "| card | Brand X \\| 80 GB |" in page
    assert "| ratio | 0.91 | at least 0.97 | MISSED |" in page
    assert "| ours | 10 tokens/s | - | not judged |" in page
    assert "| DDP | not measured: one GPU | equal losses | not measured |" in page
    assert is_missed(sections)
    assert not is_missed(sections[1:])


FACTS = [("card", "Brand X | 80 GB"), ("torch", "2.13.0")]


def test_a_section_that_is_measured_alone_keeps_the_others_of_the_same_card(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    first, second = (Section(title, [Figure("ratio", title, "-", True)], 3.2) for title in ("Speed", "Two GPUs"))
    page.write_text(render(FACTS, [first]))
    page.write_text(render(FACTS, [second], read_sections(page, FACTS)))
    assert page.read_text() == render(FACTS, [first, second])
    again = Section("Speed", [Figure("ratio", "0.5", "-", False)])
    assert render(FACTS, [again], read_sections(page, FACTS)) == render(FACTS, [again, second])
    assert read_sections(page, [("card", "Brand Y")]) == {}


def sections_of(page: Path, machine: Machine, limit: float, **sections: Callable[[Machine], Iterator[Figure]]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "SECTIONS", sections)
        return course.measure(machine, FACTS, [], limit, page)


def test_an_error_ends_its_section_alone_and_what_was_measured_is_on_the_page(machine: Machine, tmp_path: Path) -> None:
    def breaks(_: Machine) -> Iterator[Figure]:
        yield Figure("first", "1", "1", True)
        raise RuntimeError("no kernel image")

    page = tmp_path / "RESULTS.md"
    assert sections_of(page, machine, 60, breaks=breaks, image=measure_image) == 1
    assert "| first | 1 | 1 | met |" in page.read_text()
    assert "| all others | RuntimeError: no kernel image | no error | MISSED |" in page.read_text()
    assert "| C compiler |" in page.read_text()


def test_after_the_time_limit_no_further_figure_is_measured(machine: Machine, tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    assert sections_of(page, machine, 0, image=measure_image) == 0
    assert "| all others | not measured: the time limit | - | not measured |" in page.read_text()
    assert "C compiler" not in page.read_text()


def test_what_the_model_without_a_package_writes_is_text(machine: Machine) -> None:
    folder = write_random_model(machine, "tiny", machine.model, has_few_tokens=True)
    model, own = (read_config(one)["vocab_size"] for one in (folder, machine.model))
    assert model == own


def test_the_image_section_shows_what_only_a_gpu_has_as_not_measured(machine: Machine) -> None:
    found = figures(measure_image(machine))
    assert found["a Triton kernel"].verdict == "not measured"
    assert found["C compiler"].is_met is not None


def test_nf4_of_one_device_is_equal_to_itself(machine: Machine) -> None:
    found = figures(measure_nf4(machine, sizes=((64, 128),)))
    assert [one.verdict for one in found.values()] == ["met"] * 3


def test_the_flash_kernel_is_not_measured_without_a_gpu(machine: Machine) -> None:
    (found,) = measure_attention(machine)
    assert found.measured == "not measured: no GPU"


def test_packed_rows_have_the_loss_of_single_rows(machine: Machine) -> None:
    found = figures(measure_packing(machine))
    assert [one.verdict for one in found.values()] == ["met", "met"], found


def test_a_resumed_training_differs_by_no_more_than_two_uninterrupted_ones(machine: Machine) -> None:
    (found,) = measure_resume(machine)
    assert found.verdict == "met", found
    assert found.measured.startswith("0 "), "on a CPU the same bits"


@pytest.mark.nightly
@pytest.mark.parametrize("objectives", [["Instruction"], list(OBJECTIVES)])
def test_objectives_are_trained_and_published(machine: Machine, objectives: list[str]) -> None:
    found = figures(measure_objectives(machine, ["LoRA"], objectives))
    assert len(found) == len(objectives)
    assert {name: one.measured for name, one in found.items() if one.verdict != "met"} == {}


def test_vllm_is_measured_on_a_gpu_alone(machine: Machine) -> None:
    (found,) = measure_rollouts(machine)
    assert (found.measured, found.verdict) == ("not measured: no GPU", "not measured")


def test_the_estimate_is_computed_for_each_shape_and_judged_on_a_gpu_alone(machine: Machine) -> None:
    found = figures(measure_estimates(machine))
    assert list(found) == ["tiny, QLoRA", "tiny, LoRA", "tiny, Full"]
    assert {one.verdict for one in found.values()} == {"not measured"}, found
    assert all("estimated: " in one.measured for one in found.values())


def test_the_speed_section_has_rows_with_the_libraries_of_the_trainer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    assert len(speed_pairs(30)) == 30


@pytest.mark.nightly
def test_the_speed_section_measures_both_loops(machine: Machine) -> None:
    found = figures(measure_speed(machine))
    assert "tokens/s" in found["a plain TRL script"].measured
    assert found["ratio"].verdict == "not judged"


@pytest.mark.nightly
def test_two_processes_have_the_losses_of_one(machine: Machine, tmp_path: Path) -> None:
    from dataclasses import replace

    assert [one.verdict for one in measure_ranks(machine)] == ["not measured"]
    found = figures(measure_ranks(replace(machine, ranks=2)))
    assert {name: one.measured for name, one in found.items() if one.verdict != "met"} == {}


def test_a_random_model_has_the_shape_and_the_number_format(machine: Machine) -> None:
    folder = write_random_model(machine, "tiny", machine.model)
    assert "bfloat16" in (folder / "config.json").read_text(encoding="utf-8")
    assert os.path.getsize(folder / "model.safetensors") < 500_000


def test_every_section_has_a_measure() -> None:
    assert len(SECTIONS) == 10
