"""The names of other projects: each is a field here or has an advice, and the installed libraries have theirs."""

import ast
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest.foreign_names import (
    AXOLOTL,
    FOREIGN_NAMES,
    LLAMA_FACTORY,
    OPENAI,
    PEFT,
    TRANSFORMERS,
    TRL,
    explain_foreign,
    plain_name,
)
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec

SOURCES = {
    TRANSFORMERS: ("transformers", ["transformers/training_args.py"]),
    TRL: (
        "trl",
        [f"trl/trainer/{name}_config.py" for name in ("sft", "dpo", "kto", "grpo", "reward", "distillation", "model")]
        + ["trl/scripts/utils.py"],
    ),
    PEFT: ("peft", ["peft/tuners/lora/config.py"]),
}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("micro_batch_size", "axolotl's micro_batch_size is hyperparameters.perDeviceTrainBatchSize"),
        ("microBatchSize", "axolotl's micro_batch_size is hyperparameters.perDeviceTrainBatchSize"),
        ("n_epochs", "OpenAI's n_epochs is hyperparameters.numTrainEpochs"),
        ("cutoff_len", "LLaMA-Factory's cutoff_len is hyperparameters.maxLength"),
        ("lora_r", "axolotl's and TRL's lora_r is tuning.lora.rank"),
        ("eval_steps", "axolotl's and transformers' eval_steps is evaluation.steps"),
        (
            "val_set_size",
            "axolotl's val_set_size is dataset.validationSplitPercent (in percent: 0.1 is 10)",
        ),
        (
            "push_to_hub",
            "transformers' push_to_hub is output.hub (name the repository, as owner/name, in output.hub.repo)",
        ),
        ("learning_rate", ""),
        ("", ""),
    ],
)
def test_a_name_of_another_project_is_explained(word: str, sentence: str) -> None:
    assert explain_foreign(word) == sentence


@pytest.fixture(scope="module")
def schema() -> Any:
    return structural_schema(FineTuneJobSpec)


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_a_foreign_name_is_a_field_of_the_spec_or_has_an_advice(name: str, schema: Any) -> None:
    foreign = FOREIGN_NAMES[name]
    assert foreign.projects
    assert foreign.field or foreign.advice
    node = schema
    for part in foreign.field.split(".") if foreign.field else ():
        node = node["properties"][part]
        assert plain_name(part) != plain_name(name), "found by its spelling: not needed here"


@pytest.mark.parametrize("project", [AXOLOTL, LLAMA_FACTORY, OPENAI, TRANSFORMERS, TRL])
def test_every_project_has_its_names(project: str) -> None:
    assert len([one for one in FOREIGN_NAMES.values() if project in one.projects]) >= 5


@pytest.mark.parametrize("project", SOURCES)
def test_the_installed_libraries_have_the_names_that_are_given_as_theirs(project: str) -> None:
    package, files = SOURCES[project]
    fields = set()
    for file in files:
        tree = ast.parse(Path(str(distribution(package).locate_file(file))).read_text(encoding="utf-8"))
        fields |= {
            node.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
    assert {name for name, one in FOREIGN_NAMES.items() if project in one.projects} - fields == set()
