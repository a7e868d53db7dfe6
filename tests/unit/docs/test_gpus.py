"""The table of GPUs and models is what the estimator computes, and the examples of real size fit the GPUs they name."""

import re
from pathlib import Path

import pytest
import yaml
from documents import ROOT
from gpu_table import PAGE, render_page
from model_shapes import PARAMETERS, PUBLISHED, published_shape

from finetune_api.defaults import Facts
from finetune_api.scalars import parse_quantity
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.models.resolve_settings import choose_settings
from kubectl_finetune.commands.validate import check_files

EXAMPLES = sorted((ROOT / "crds" / "examples" / "gpus").glob("*.yaml"))


def test_the_page_is_the_one_that_the_estimator_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run make generate"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_of_the_table_has_as_many_weights_as_the_hub_shows(name: str) -> None:
    assert published_shape(name).parameters == PARAMETERS[name]


def test_the_page_names_every_example_of_real_size() -> None:
    named = set(re.findall(r"examples/gpus/([\w.-]+)", PAGE.read_text(encoding="utf-8")))
    assert named == {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_real_size_is_valid_and_fits_its_gpus(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert check_files([(path.name, text)]).problems == []
    spec = FineTuneJobSpec.model_validate(yaml.safe_load(text)["spec"])
    shape = published_shape(spec.model.uri.removeprefix("hf://").removesuffix("-Instruct"))
    facts = Facts(shape.parameters, train_rows=10_000, validation_rows=500)
    settings = choose_settings(spec, shape, facts)  # raises WontFit
    assert settings.method == spec.tuning.method.value
    budget = parse_quantity(spec.tuning.vram_budget or 0)
    assert 0 < (settings.estimated_gpu_memory_bytes or 0) <= budget
    (size,) = re.findall(r"GPUs? of (\d+) GB", text)
    assert budget == int(size) * 10**9


def test_the_demo_marks_its_resources_as_those_of_a_toy() -> None:
    demo = (ROOT / "crds" / "examples" / "demo.yaml").read_text(encoding="utf-8")
    assert "# Toy resources" in demo.partition("resources:\n")[0].splitlines()[-3]
