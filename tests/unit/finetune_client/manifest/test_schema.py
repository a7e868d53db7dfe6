from typing import Any

import pytest

from finetune_client.manifest.schema import Fault, find_faults

SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "hf://owner/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out"},
}
RLHF = {"objective": "RLHF", "rlhf": {"rewards": [{"type": "Length"}]}}


@pytest.mark.parametrize(
    ("extra", "field", "message", "fix"),
    [
        ({"suspend": 1}, "suspend", "must be true or false, not a number", "write true or false, without quotes"),
        ({"suspend": []}, "suspend", "must be true or false, not a list", "write true or false, without quotes"),
        ({"backoffLimit": True}, "backoffLimit", "must be a whole number, not true or false", "write 3, for example"),
        ({"backoffLimit": "ten"}, "backoffLimit", "must be a whole number, not a text", "write 3, for example"),
        (
            {"hyperparameters": {"packing": 10}},
            "hyperparameters.packing",
            "must be a text, not a number",
            "write Auto or Always or Never",
        ),
        (
            {"trainer": {"env": [{"name": "A", "value": 1}]}},
            "trainer.env.0.value",
            "must be a text, not a number",
            'put it in quotes: "1"',
        ),
        (
            {"hyperparameters": {"packing": True}},
            "hyperparameters.packing",
            "must be a text, not true or false",
            "YAML reads true as true: write Always",
        ),
        (
            {"hyperparameters": {"warmupSteps": 1.5}},
            "hyperparameters.warmupSteps",
            "warmupSteps must be a fraction of the training below 1, or a whole number of steps",
            "set 0.03 or 100, for example",
        ),
        (
            RLHF,
            "rlhf.rewards.0.targetTokens",
            "targetTokens is required with type Length and refused with any other",
            "set or remove it",
        ),
        (
            {"trainer": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
            "trainer.env.1",
            "has the name of entry 1",
            "remove one",
        ),
        (
            {
                "scheduling": {
                    "topologySpreadConstraints": [
                        {"maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
                        for skew in (1, 2)
                    ]
                }
            },
            "scheduling.topologySpreadConstraints.1",
            "has the topologyKey and whenUnsatisfiable of entry 1",
            "remove one",
        ),
        ({"beta": 0.1}, "beta", "is not a field", "remove it; see kubectl explain finetunejob.spec"),
    ],
)
def test_a_fault_has_its_field_and_a_fix(extra: dict[str, Any], field: str, message: str, fix: str) -> None:
    path = tuple(int(part) if part.isdigit() else part for part in field.split("."))
    assert find_faults(SPEC | extra, {}) == [Fault(("spec", *path), message, fix)]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tuning": {"lora": {"dropout": 1}}}, "must be less than 1"),
        ({"backoffLimit": -1}, "must be at least 0"),
        ({"tuning": {"lora": {"targetModules": [None]}}}, "must be a text, not nothing"),
        ({"tuning": {"lora": {"targetModules": ["q", "q"]}}}, "has an entry twice"),
        ({"tuning": {"initialAdapter": {"fromParent": False}}}, "must be one of true"),
        ({"model": SPEC["model"] | {"revision": "r" * 185}}, "has more than 128 characters"),
        ({"model": SPEC["model"] | {"revision": "r" * 186}}, "has more than 128 characters"),
    ],
)
def test_a_limit_of_the_schema_is_named(extra: dict[str, Any], message: str) -> None:
    assert [fault.message for fault in find_faults(SPEC | extra, {})] == [message]


def test_a_list_that_is_not_a_set_may_repeat_a_value() -> None:
    prompts = [{"prompt": "Hi"}, {"prompt": "Hi"}]
    assert find_faults(SPEC | {"evaluation": {"prompts": prompts}}, {}) == []


def test_only_the_field_that_is_missing_is_named() -> None:
    faults = find_faults({name: value for name, value in SPEC.items() if name != "objective"}, {})
    assert [(fault.path, fault.message) for fault in faults] == [(("spec", "objective"), "is missing")]
