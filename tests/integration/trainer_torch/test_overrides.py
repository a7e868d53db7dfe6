"""What we override exists in the installed transformers, TRL and PEFT: a renamed method would never be called."""

import inspect
from inspect import Parameter
from typing import Any

import pytest
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_trainer.models import experts
from finetune_trainer.training.methods import distillation, dpo, kto, packed, reward, rlhf, sft

CLASSES = [
    sft.RowTrainer,
    dpo.PreferenceTrainer,
    kto.LabelledTrainer,
    reward.RewardModelTrainer,
    rlhf.GroupTrainer,
    rlhf.LeaveOneOutTrainer,
    distillation.StudentTrainer,
    packed.PackedCollator,
    experts.QuantisedParamWrapper,
    experts.QuantisedLoraModel,
]


def is_ours(owner: type) -> bool:
    return owner.__module__.startswith("finetune_trainer.")


def inherited(kind: type, name: str) -> Any:
    """The library's method that a class of ours would have without ours."""
    return next((vars(owner)[name] for owner in kind.__mro__ if not is_ours(owner) and name in vars(owner)), None)


def differences(ours: Any, theirs: Any) -> list[str]:
    """The parameters that the library may pass and ours does not take, and those that only ours requires."""
    own, other = (inspect.signature(one).parameters for one in (ours, theirs))
    kinds = {parameter.kind for parameter in own.values()}
    by_position, by_name = Parameter.VAR_POSITIONAL in kinds, Parameter.VAR_KEYWORD in kinds
    takes_rest = {
        Parameter.POSITIONAL_ONLY: by_position,
        Parameter.VAR_POSITIONAL: by_position,
        Parameter.POSITIONAL_OR_KEYWORD: by_position or by_name,
        Parameter.KEYWORD_ONLY: by_name,
        Parameter.VAR_KEYWORD: by_name,
    }
    refused = [name for name, one in other.items() if name not in own and not takes_rest[one.kind]]
    variable = {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
    required = [name for name, one in own.items() if one.default is one.empty and one.kind not in variable]
    return refused + [name for name in required if name not in other]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
def test_every_override_is_a_method_of_the_library_with_its_parameters(kind: type) -> None:
    methods = [
        (name, method)
        for owner in kind.__mro__
        if is_ours(owner)
        for name, method in vars(owner).items()
        if inspect.isfunction(method) and not name.startswith("__")
    ]
    marked = {name for name, method in methods if getattr(method, "__override__", False)}
    assert marked
    assert {name for name, _ in methods if inherited(kind, name)} == marked
    found = {name: differences(method, inherited(kind, name)) for name, method in methods if name in marked}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_a_renamed_parameter_is_a_difference() -> None:
    class Renamed(DataCollatorForLanguageModeling):  # type: ignore[misc]
        def torch_call(self, rows: list[Any]) -> dict[str, Any]:
            return {}

    assert differences(Renamed.torch_call, inherited(packed.PackedCollator, "torch_call")) == ["examples", "rows"]
