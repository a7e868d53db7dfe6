"""Fused kernels compute what the plain model computes: the real kernels, run by Triton's interpreter on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_trainer.models.fused_kernels import EXACT_TYPES, fuse_kernels

SCRIPT = Path(__file__).parents[2] / "fixtures" / "fused_against_plain.py"


def compare(kind: str, method: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), kind, method]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def require_equal(found: dict[str, Any]) -> None:
    assert found["fused"] >= 5
    assert found["moved"] >= 4
    assert found["loss"] < 1e-5
    assert found["logits"] < 1e-5
    assert found["gradients"] < 1e-5


@pytest.mark.nightly
def test_outputs_and_gradients_of_an_adapter_are_those_of_the_plain_model() -> None:
    found = compare("llama", "LoRA")
    require_equal(found)
    assert (found["later"], found["later_classes"]) == (0, []), "a model loaded later is fused too"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", sorted(EXACT_TYPES))
def test_outputs_and_gradients_of_every_exact_type_are_those_of_the_plain_model(kind: str) -> None:
    require_equal(compare(kind, "Full"))


def test_a_model_of_another_type_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(model_type="mpt"))
    assert fuse_kernels(model, torch.device("cpu")) is False
    assert "there are no exact ones for models of type mpt" in caplog.text
