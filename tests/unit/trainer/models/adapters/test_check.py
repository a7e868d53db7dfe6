"""Faults of an adapter's files that need no torch; what `verify` reports of a result is tested with the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_trainer.models.adapters.check import find_adapter_faults

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}).encode()


def write(path: Path, values: list[int], *, end: int = 32) -> Path:
    """A BF16 adapter of two factors with eight values each."""
    header = {
        f"{MODULE}.lora_A.weight": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]},
        f"{MODULE}.lora_B.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [16, end]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + np.array(values, dtype="<u2").tobytes())
    return path


@pytest.mark.parametrize("value", [0x3F80, 0xBF80, 0x0001, 0x7F7F])
def test_finite_values_in_bf16_are_not_a_fault(tmp_path: Path, value: int) -> None:
    assert find_adapter_faults(write(tmp_path / "a", [value] * 16), CONFIG, "") == []


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC0])
def test_one_infinite_value_in_bf16_is_found(tmp_path: Path, value: int) -> None:
    faults = find_adapter_faults(write(tmp_path / "a", [0x3F80] * 15 + [value]), CONFIG, "")
    assert faults == [f"1 tensors have values that are not finite: {MODULE}.lora_B.weight"]


@pytest.mark.parametrize("zero", [0x0000, 0x8000])
def test_an_adapter_whose_second_factor_is_zero_changes_nothing(tmp_path: Path, zero: int) -> None:
    faults = find_adapter_faults(write(tmp_path / "a", [0x3F80] * 8 + [zero] * 8), CONFIG, "")
    assert faults == ["it changes nothing: every factor that starts at zero is still zero"]


@pytest.mark.parametrize("end", [34, 31, 15])
def test_offsets_outside_the_file_or_between_two_values_are_refused(tmp_path: Path, end: int) -> None:
    (fault,) = find_adapter_faults(write(tmp_path / "a", [0x3F80] * 16, end=end), CONFIG, "")
    assert fault.endswith("the header of adapter_model.safetensors cannot be read")


@pytest.mark.parametrize(
    ("patterns", "fault"),
    [
        ({"q_proj": 2}, None),
        ({r"layers\.0\..*": 4, "o_proj": 3}, "2 tensors do not have the rank 8 or 4 or 3 of the config"),
        ({"k_proj": 2}, "2 tensors do not have the rank 8 or 2 of the config"),
        ({"q_proj(": 2}, "the pattern q_proj( of an adapter's modules is not a regular expression"),
    ],
)
def test_each_module_has_the_rank_of_its_pattern(tmp_path: Path, patterns: dict[str, int], fault: str | None) -> None:
    config = json.dumps({"peft_type": "LORA", "r": 8, "rank_pattern": patterns, "target_modules": ["q_proj"]}).encode()
    faults = find_adapter_faults(write(tmp_path / "a", [0x3F80] * 16), config, "")
    assert [one[: len(fault or "")] for one in faults] == ([fault] if fault else [])


EXPERTS = "base_model.model.model.layers.0.mlp.experts"
PARAMETERS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def pair(module: str, rank: int = 2, sizes: tuple[int, int] = (4, 6)) -> dict[str, np.ndarray]:
    return {
        f"{module}.lora_A.weight": np.ones((rank, sizes[0]), np.float32),
        f"{module}.lora_B.weight": np.ones((sizes[1], rank), np.float32),
    }


ON_EXPERTS = pair(MODULE) | pair(f"{EXPERTS}.base_layer", 3 * 2, (4, 12)) | pair(EXPERTS, 3 * 2, (6, 4))
"""Three experts of rank 2."""


@pytest.mark.parametrize(
    ("tensors", "config", "fault"),
    [
        (ON_EXPERTS, PARAMETERS, None),
        (ON_EXPERTS, {}, "1 modules of experts do not have a pair of factors for each of 0 target_parameters"),
        (ON_EXPERTS, {"target_parameters": ["experts.down_proj"]}, "mlp.experts (2)"),
        (pair(MODULE), PARAMETERS, "target_parameters without a tensor: experts.gate_up_proj, experts.down_proj"),
        (ON_EXPERTS | pair(EXPERTS, 7), PARAMETERS, "2 tensors do not have the rank 2 of the config"),
        (
            ON_EXPERTS | {f"{EXPERTS}.lora_B.weight": np.ones((4, 4), np.float32)},
            PARAMETERS,
            f"1 tensors do not have the rank 2 of the config: {EXPERTS.removeprefix('base_model.model.')} (4 and 6)",
        ),
    ],
)
def test_factors_on_experts_have_the_rank_for_each_expert(
    tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, list[str]], fault: str | None
) -> None:
    save_file(tensors, tmp_path / "a")
    found = find_adapter_faults(tmp_path / "a", json.dumps(json.loads(CONFIG) | config).encode(), "")
    assert len(found) == (1 if fault else 0), found
    assert not fault or fault in found[0]
