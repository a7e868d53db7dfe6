"""Every fault of a manifest has a fix: what to write instead, and not the description of the field."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_client.manifest.fixes import FORMATS, fix_format, suggest_quantity
from finetune_client.manifest.schema import find_faults

SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "hf://owner/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out"},
}
SCHEMA = structural_schema(FineTuneJobSpec)


def nodes(node: dict[str, Any], path: FieldPath = ()) -> Iterator[tuple[FieldPath, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, (*path, name))
    if isinstance(node.get("items"), dict):
        yield from nodes(node["items"], (*path, 0))
    if isinstance(node.get("additionalProperties"), dict):
        yield from nodes(node["additionalProperties"], (*path, "entry"))


DESCRIPTIONS = {str(node.get("description")) for _, node in nodes(SCHEMA)}
FAULTY: list[Any] = [
    True,
    -1,
    10**12,
    1.5,
    "",
    "No such word!",
    "x" * 5000,
    [],
    ["a", "a"],
    {},
    {"colour": "red"},
    None,
]


def with_value(path: FieldPath, value: Any) -> dict[str, Any]:
    spec: Any = copy.deepcopy(SPEC)
    node = spec
    for part, following in itertools.pairwise(path):
        fresh: Any = [{}] if isinstance(following, int) else {}
        node = node[part] if isinstance(part, int) else node.setdefault(part, fresh)
    node[path[-1]] = value
    return dict(spec)


def _cases() -> Iterator[Any]:
    """Each field with a third of the values, every value with a third of the fields; the others are for the night."""
    for number, path in enumerate(path for path, _ in nodes(SCHEMA) if path):
        for part in range(3):
            marks = [pytest.mark.nightly] if part != number % 3 else []
            yield pytest.param(path, FAULTY[part::3], marks=marks, id=f"{'.'.join(map(str, path))}-{part}")


@pytest.mark.parametrize(("path", "values"), list(_cases()))
def test_any_value_of_any_field_is_valid_or_has_faults_with_a_fix(path: FieldPath, values: list[Any]) -> None:
    for value in values:
        for fault in find_faults(with_value(path, value), {}):
            assert fault.fix, (value, fault)
            assert fault.fix not in DESCRIPTIONS, (value, fault)
            assert len(fault.fix) < 400, (value, fault)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("24GB", "24Gi"), ("24gb", "24Gi"), ("24 GB", "24Gi"), ("24GiB", "24Gi"), ("24gi", "24Gi"), ("24g", "24Gi"),
        ("24 Gi", "24Gi"), ("512MB", "512Mi"), ("512mb", "512Mi"), ("512MiB", "512Mi"), ("512mi", "512Mi"),
        ("1TB", "1Ti"), ("64KB", "64Ki"), ("64K", "64Ki"), ("1,5Gi", "1.5Gi"), ("4 cores", "4"), ("8GBytes", "8Gi"),
        ("a lot", ""), ("-1", ""), ("24XB", ""), ("Gi", ""),
    ],
)  # fmt: skip
def test_a_quantity_with_a_wrong_unit_gets_the_one_that_was_meant(written: str, meant: str) -> None:
    assert suggest_quantity(written) == meant
    for path in (("resources", "requests", "memory"), ("tuning", "vramBudget"), ("resources", "shmSize")):
        (fault,) = find_faults(with_value(path, written), {})
        assert fault.path == ("spec", *path)
        assert fault.fix == (f"did you mean {meant}?" if meant else "write a number with a unit, for example 24Gi")


@pytest.mark.parametrize("right", ["24Gi", "24G", "500m", "4", 4, "0.5", "1.5Gi"])
def test_a_quantity_of_kubernetes_is_no_fault(right: Any) -> None:
    assert find_faults(with_value(("resources", "requests", "cpu"), right), {}) == []


def test_every_pattern_has_its_fix() -> None:
    of_keys = {r"^[a-z_]{1,64}$", r"^[a-z][a-z0-9_]{0,63}$"}
    patterns = {str(node["pattern"]) for _, node in nodes(SCHEMA) if "pattern" in node} | of_keys
    general = fix_format("no such pattern", "x")
    assert {pattern for pattern in patterns if fix_format(pattern, "?") == general} == set()
    assert set(FORMATS) <= patterns, "one that no field has"


@pytest.mark.parametrize(
    ("path", "written", "fix"),
    [
        ("model.uri", "https://huggingface.co/owner/model", "did you mean hf://owner/model?"),
        ("model.uri", "https://huggingface.co/owner/model/tree/main", "did you mean hf://owner/model?"),
        ("model.uri", "owner/model", "did you mean hf://owner/model?"),
        ("model.uri", "hf://datasets/owner/model", "did you mean hf://owner/model?"),
        ("model.uri", "S3://Bucket/Model", "did you mean s3://bucket/Model?"),
        ("model.uri", "s3a://bucket//model", "did you mean s3://bucket/model?"),
        ("model.uri", "PVC:models//llama", "did you mean pvc://models/llama?"),
        ("dataset.train.uri", "https://huggingface.co/datasets/owner/rows", "did you mean hf://datasets/owner/rows?"),
        ("dataset.train.uri", "owner/rows", "did you mean hf://datasets/owner/rows?"),
        ("dataset.train.uri", "hf://owner/rows", "did you mean hf://datasets/owner/rows?"),
        ("output.uri", "s3:/bucket/out", "did you mean s3://bucket/out?"),
        ("output.uri", "file:///tmp/out", "a bucket of 3 to 63 lower-case characters, and a path without"),
        ("output.uri", "s3:/b/x", "a bucket of 3 to 63 lower-case characters, and a path without"),
        ("storage.endpoint", "./minio", "for example http://minio.minio:9000"),
        ("output.uri", "./out", "no pod can use a path of this machine: write s3://bucket/path"),
        ("model.uri", "gpt-4o", "a bucket of 3 to 63 lower-case characters, and a path without"),
        (
            "model.uri",
            "../model",
            "no pod can read a path of this machine: upload it to s3://bucket/path, or to a claim, pvc://claim/path",
        ),
        (
            "model.uri",
            "/models/llama",
            "no pod can read a path of this machine: upload it to s3://bucket/path, or to a claim, pvc://claim/path",
        ),
        ("dataset.train.uri", "a.csv", "; kubectl finetune validate with --rows FILE checks it here"),
        ("dataset.train.uri", "./rows.jsonl", "no pod can read a path of this machine: upload it to s3://bucket/path"),
        (
            "dataset.train.uri",
            "data/rows.jsonl.gz",
            "no pod can read a path of this machine: upload it to s3://bucket/path",
        ),
        ("dataset.train.uri", "s3:/bucket/rows.jsonl", "did you mean s3://bucket/rows.jsonl?"),
        ("hyperparameters.lrSchedulerType", "cosin", "did you mean cosine?"),
        ("hyperparameters.optim", "adamw_torch_fuse", "did you mean adamw_torch_fused?"),
        ("hyperparameters.optim", "galore", "write adamw_torch or adamw_torch_fused or adamw_8bit or paged_adamw_8bit"),
        ("hyperparameters.lrSchedulerType", "?", "write linear or cosine or constant or constant_with_warmup"),
        ("hyperparameters.learningRate", 2, "set it to more than 0 and at most 1"),
        ("tuning.lora.dropout", 1, "set it to at least 0 and less than 1"),
        ("tuning.lora.rank", 0, "set it to at least 1 and at most 256"),
        ("tuning.lora.targetModules", ["q", "q"], "remove the second q"),
        ("storage.endpoint", "minio:9000", "for example http://minio.minio:9000"),
        ("dataset.train.sha256", "abc", "write the 64 lowercase hexadecimal digits that sha256sum prints"),
        ("dataset.columns", {"Prompt!": "x"}, "use lowercase letters and _, at most 64, for example prompt"),
        ("dataset.columns", {}, "add an entry, or remove the field"),
        ("hyperparameters.seed", "one", "write 42, for example"),
        ("tuning.lora", 8, "write its fields below it: rank, alpha, rankPattern, alphaPattern, dropout"),
        ("ttlSecondsAfterFinished", "1h", "write 3600"),
        ("activeDeadlineSeconds", "1d 2h30m", "write 95400"),
        ("activeDeadlineSeconds", "90 minutes", "write 5400"),
        ("activeDeadlineSeconds", "0s", "write 1, for example"),
        ("activeDeadlineSeconds", "soon", "write 1, for example"),
        ("dataset.validationSplitPercent", 0.1, "write 10"),
        ("dataset.validationSplitPercent", 0.29, "write 29"),
        ("dataset.validationSplitPercent", 10.5, "write 10"),
        ("tuning.lora.alpha", 32.5, "write 32"),
        ("tolerations", [], "did you mean spec.scheduling.tolerations?"),
        ("affinity", {}, "did you mean spec.scheduling.affinity?"),
        ("image", "registry/trainer", "did you mean spec.trainer.image?"),
        ("nodes", 2, "did you mean spec.resources.numNodes?"),
        ("queueName", "gpus", "spec.scheduling.queueName"),
        ("suspend", "maybe", "write true or false, without quotes"),
        ("resources.requests.memory", 16, "write 16Gi in place of 16, for example"),
        ("resources.limits", {"memory": "16"}, "write 16Gi in place of 16, for example"),
        ("resources.limits", {"nvidia.com/gpu": 8}, "set resources.gpusPerNode to their number"),
        ("resources", {"requests": {"memory": "32Gi"}, "limits": {"memory": "16Gi"}}, "lower it, or raise the limit"),
        ("tuning.vramBudget", 24, "write 24Gi in place of 24, for example"),
        ("hyperparameters.warmupSteps", 5.5, "set 0.03 or 100, for example"),
    ],
)
def test_the_fix_is_what_to_write(path: str, written: Any, fix: str) -> None:
    parts = tuple(path.split("."))
    faults = find_faults(with_value(parts, written), {})
    assert fix in faults[0].fix
    assert len(faults) == 1, faults


@pytest.mark.parametrize(("block", "fix"), [("model", "indent it below model"), ("output", "indent it below output")])
def test_a_uri_on_the_indent_of_its_block_is_to_be_indented(block: str, fix: str) -> None:
    faults = find_faults(SPEC | {block: None, "uri": "s3://bucket/path"}, {})
    assert [fault.fix for fault in faults if fault.path == ("spec", "uri")] == [fix]


@pytest.mark.parametrize(
    ("removed", "fix"),
    [
        ("objective", "add objective: Chat (Instruction or Chat or DPO"),
        ("model", "add model: {uri: hf://owner/name}"),
        ("dataset", "add dataset: {train: {uri: s3://bucket/rows.jsonl}}"),
        ("output", "add output: {uri: s3://bucket/path}"),
    ],
)
def test_a_missing_field_is_given_as_a_line_to_add(removed: str, fix: str) -> None:
    (fault,) = find_faults({name: value for name, value in SPEC.items() if name != removed}, {})
    assert fault.path == ("spec", removed)
    assert fault.message == "is missing"
    assert fault.fix.startswith(fix)


def faulty(**changes: Any) -> set[tuple[str, str]]:
    return {(".".join(map(str, fault.path[1:])), fault.message) for fault in find_faults(SPEC | changes, {})}


def test_faults_of_values_and_broken_rules_are_reported_together() -> None:
    found = faulty(
        backoffLimit=-1,
        tuning={"method": "Full", "lora": {"rank": 8}},
        hyperparameters={"numTrainEpochs": 1, "maxSteps": 5, "learning_rate": 1},
        dpo={"beta": 0.2},
    )
    assert found == {
        ("backoffLimit", "must be at least 0"),
        ("tuning.lora", "lora has no effect with method Full"),
        ("hyperparameters.maxSteps", "give at most one of numTrainEpochs and maxSteps"),
        ("hyperparameters.learning_rate", "is not a field"),
        ("dpo", "dpo is only for objective DPO"),
    }


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"objective": "Telepathy", "dpo": {"beta": 0.2}}, {"objective"}),
        ({"objective": "dpo", "dpo": {"beta": 0.2}}, {"objective"}),
        ({"objective": "chat", "dpo": {"beta": 0.2}}, {"objective", "dpo"}),
        ({"earlyStopping": {}, "dataset": SPEC["dataset"] | {"validationSplitPercent": "ten"}},
         {"dataset.validationSplitPercent"}),
        ({"earlyStopping": {}, "dataset": SPEC["dataset"] | {"validationSplit": 10}}, {"dataset.validationSplit"}),
        ({"earlyStopping": {}, "dataset": SPEC["dataset"] | {"val_set_size": 0.1}}, {"dataset.val_set_size"}),
        ({"earlyStopping": {}, "validationSplitPercent": 10}, {"validationSplitPercent"}),
        ({"tuning": {"method": "Full", "lora": []}}, {"tuning.lora"}),
        ({"tuning": []}, {"tuning"}),
    ],
)  # fmt: skip
def test_a_rule_on_a_field_whose_value_is_not_known_is_not_reported(changes: dict[str, Any], fields: set[str]) -> None:
    assert {field for field, _ in faulty(**changes)} == fields


@pytest.mark.parametrize("word", [True, "On", "always"])
def test_a_word_that_the_objective_refuses_is_not_advised(word: object) -> None:
    (fault,) = find_faults(SPEC | {"objective": "DPO", "hyperparameters": {"packing": word}}, {})
    assert fault.path == ("spec", "hyperparameters", "packing")
    assert fault.message.endswith("; packing works with objectives Instruction, Chat and DomainAdaptation")
    assert fault.fix == "set it to Auto or Never"


def test_a_spec_that_is_no_block_is_one_fault() -> None:
    for spec in ([], "text", 3):
        (fault,) = find_faults(spec, {})
        assert fault.path == ("spec",)
        assert fault.fix


def test_a_short_uri_has_the_message_of_its_form() -> None:
    (fault,) = find_faults(with_value(("model", "uri"), "gpt-4o"), {})
    assert fault.message == "must be hf://owner/name, pvc://claim/path, or s3://bucket/path"
