"""axolotl: keys that another key overrules are named."""

from typing import Any

import pytest

from kubectl_finetune.importing.axolotl import FORMAT
from kubectl_finetune.importing.draft import Options
from kubectl_finetune.importing.engine import convert
from kubectl_finetune.importing.files import read_training_file


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("rl: orpo\nreward_model: true\n", "rl"),
        ("rl: dpo\npretraining_dataset: acme/rows\n", "rl"),
        ("reward_model: true\npretraining_dataset: acme/rows\n", "reward_model"),
    ],
)
def test_an_objective_that_another_key_overrules_is_named(more: str, key: Any) -> None:
    draft = convert(read_training_file("a.yaml", f"base_model: acme/base\n{more}"), FORMAT, Options())
    assert key in [one.key for one in draft.losses if one.changes_training]
