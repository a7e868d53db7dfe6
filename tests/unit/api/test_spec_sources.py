"""Every URI that a job reads is in the list of its sources, by which access, tokens and claims are decided."""

from typing import Any

from finetune_api.handoff import HubRole
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec_sources import list_sources

URI = {"uri": "hf://owner/name"}
JOB = {
    "objective": "RLHF",
    "model": URI | {"credentialsSecretRef": {"name": "of-model"}},
    "dataset": {
        "train": {
            "sources": [{"uri": "s3://data/a/"}, {"uri": "hf://datasets/owner/rows"}],
            "credentialsSecretRef": {"name": "of-rows"},
        },
        "validation": {"uri": "pvc://rows/held-out.jsonl"},
    },
    "tuning": {"method": "LoRA", "initialAdapter": URI},
    "rlhf": {"rewardModel": URI},
    "evaluation": {"ability": {"uri": "s3://data/questions.jsonl"}},
    "output": {"uri": "s3://models/out"},
}
TEACHER = {"distillation": {"teacher": URI}, "objective": "Distillation", "rlhf": None}
ONE_SOURCE = {"dataset": {"train": {"uri": "s3://data/rows.jsonl"}}}


def find_uris(node: dict[str, Any], path: str = "") -> set[str]:
    """Return the places of a schema that have a field `uri`."""
    found = {path} if "uri" in node.get("properties", {}) else set()
    for name, child in node.get("properties", {}).items():
        found |= find_uris(child, f"{path}.{name}".lstrip("."))
    return found | (find_uris(node["items"], f"{path}[]") if "items" in node else set())


def test_no_uri_of_the_spec_but_that_of_the_output_is_missing() -> None:
    jobs = [FineTuneJobSpec.model_validate(one) for one in (JOB, JOB | TEACHER, JOB | ONE_SOURCE)]
    listed = {one.place.replace("[0]", "[]").replace("[1]", "[]") for job in jobs for one in list_sources(job)}
    assert listed == find_uris(structural_schema(FineTuneJobSpec)) - {"output"}


def test_each_source_has_the_secret_of_its_own_field() -> None:
    found = list_sources(FineTuneJobSpec.model_validate(JOB))
    assert [(one.uri, one.role, one.secret and one.secret.name) for one in found[:4]] == [
        ("hf://owner/name", HubRole.MODEL, "of-model"),
        ("s3://data/a/", HubRole.TRAIN, "of-rows"),
        ("hf://datasets/owner/rows", HubRole.TRAIN, "of-rows"),
        ("pvc://rows/held-out.jsonl", HubRole.VALIDATION, None),
    ]
    assert all(one.secret is None for one in found if one.role is None)


def test_a_model_that_another_job_publishes_is_no_source() -> None:
    published = {"rlhf": {"rewardModel": {"jobRef": {"name": "judge"}}}}
    job = JOB | published | {"tuning": {"initialAdapter": {"fromParent": True}}}
    places = [one.place for one in list_sources(FineTuneJobSpec.model_validate(job))]
    assert "rlhf.rewardModel" not in places
    assert "tuning.initialAdapter" not in places
