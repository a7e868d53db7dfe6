import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.blocks import AT_CREATION
from finetune_api.defaults import Facts, resolve
from finetune_api.handoff import ExitCode, JobConfig
from finetune_api.manifest.rule_conditions import COMBINED, CONDITIONS
from finetune_api.schema.crd import RELEASE, build_crd
from finetune_trainer.config.manifest import read_manifest, read_manifests
from finetune_trainer.config.resolved_manifest import config_yaml
from finetune_trainer.errors import TrainerError

JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: job, namespace: team}
spec:
  objective: Chat
  model: {uri: s3://bucket/model}
  dataset: {train: {uri: s3://bucket/rows.jsonl}}
  output: {uri: s3://bucket/out}
"""


def read(tmp_path: Path, text: str) -> JobConfig:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return read_manifest(path, "made-up")


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(TrainerError) as caught:
        read(tmp_path, text)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    return caught.value.message


def with_spec(extra: str) -> str:
    return JOB + textwrap.indent(textwrap.dedent(extra), "  ")


def test_a_manifest_becomes_the_configuration_of_a_pod(tmp_path: Path) -> None:
    config = read(tmp_path, JOB)
    assert (config.namespace, config.name, config.uid) == ("team", "job", "made-up")
    assert config.spec.model.uri == "s3://bucket/model"
    assert len(config.config_sha256) == 64


@pytest.mark.parametrize(
    ("written", "meant"),
    [("2e-4", 2e-4), ("2E-4", 2e-4), ("2.0e-4", 2e-4), ("0.0002", 2e-4), (".5e-3", 5e-4), ("1", 1.0), ("1e-05", 1e-5)],
)
def test_a_learning_rate_is_read_as_people_write_it(tmp_path: Path, written: str, meant: float) -> None:
    config = read(tmp_path, with_spec(f"hyperparameters: {{learningRate: {written}}}\n"))
    assert config.spec.hyperparameters.learning_rate == meant


@pytest.mark.parametrize("name", ["1e5x", "e5", "-", ".", "1.2.3", "0x1f"])
def test_what_only_looks_like_a_number_stays_text(tmp_path: Path, name: str) -> None:
    text = JOB.replace("s3://bucket/model", f"s3://bucket/{name}m").replace("name: job", f"name: '{name}'")
    assert read(tmp_path, text).name == name


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("hyperparameters: {learningrate: 1}\n", "spec.hyperparameters.learningrate: unknown field"),
        (
            "hyperparameters: {learningRate: fast}\n",
            "spec.hyperparameters.learningRate: Input should be a valid number",
        ),
        ("tuning: {method: LORA}\n", "spec.tuning.method: Input should be 'Auto', 'QLoRA', 'LoRA' or 'Full'"),
        ("scheduling: {nodeSelector: {'a b': c}}\n", "spec.scheduling.nodeSelector.a b"),
        ("evaluation: {prompts: [{prompt: a}, {prompt: ''}]}\n", "spec.evaluation.prompts[1].prompt"),
        (
            "hyperparameters: {learningRate: 7}\n",
            "spec.hyperparameters.learningRate: Input should be less than or equal to 1",
        ),
    ],
)
def test_a_wrong_field_is_named_by_its_path(tmp_path: Path, extra: str, expected: str) -> None:
    assert expected in refusal(tmp_path, with_spec(extra))


@pytest.mark.parametrize(
    ("extra", "path"),
    [
        ("tuning: {method: Full, lora: {rank: 8}}\n", "spec.tuning.lora"),
        ("tuning: {method: LoRA, quantization: {doubleQuant: true}}\n", "spec.tuning.quantization"),
        ("hyperparameters: {numTrainEpochs: 1, maxSteps: 2}\n", "spec.hyperparameters.maxSteps"),
        ("hyperparameters: {warmupSteps: 2.5}\n", "spec.hyperparameters.warmupSteps"),
        ("earlyStopping: {}\n", "spec.earlyStopping"),
    ],
)
def test_a_broken_rule_between_fields_is_named_as_the_api_server_would(tmp_path: Path, extra: str, path: str) -> None:
    assert f": {path}: " in refusal(tmp_path, with_spec(extra))


def test_two_sources_of_validation_are_refused(tmp_path: Path) -> None:
    both = "{train: {uri: s3://bucket/a}, validation: {uri: s3://bucket/b}, validationSplitPercent: 5}"
    text = JOB.replace("{train: {uri: s3://bucket/rows.jsonl}}", both)
    assert "spec.dataset.validationSplitPercent: give either" in refusal(tmp_path, text)


@pytest.mark.parametrize("uri", ["s3://bucket/../secret", "s3://bucket/a/./b", "s3://bucket/.."])
def test_a_uri_that_climbs_is_refused(tmp_path: Path, uri: str) -> None:
    assert "spec.model.uri: a path segment" in refusal(tmp_path, JOB.replace("s3://bucket/model", uri))


def test_every_rule_of_the_api_has_its_condition() -> None:
    def rules(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (rule["rule"] for rule in node.get("x-kubernetes-validations", []))
            for value in node.values():
                yield from rules(value)
        elif isinstance(node, list):
            for value in node:
                yield from rules(value)

    # Rules over the keys of a map are generated from patterns that the types check themselves.
    texts = (rule.removeprefix(AT_CREATION) for rule in rules([build_crd(), build_crd(RELEASE)]))
    stated = {rule for rule in texts if "oldSelf" not in rule and not rule.startswith("self.all(key")}
    assert stated == {*CONDITIONS, *COMBINED}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "is not YAML"),
        ("", "contains no FineTuneJob"),
        (JOB + "---" + JOB, "contains more than one FineTuneJob named job"),
        (JOB + "---" + JOB.replace("name: job", "name: other"), "contains 2 objects"),
        (JOB.replace("v1alpha1", "v2"), "apiVersion must be finetune.dev/v1alpha1"),
        (JOB.replace("FineTuneJob", "Pod"), "kind must be FineTuneJob"),
        (JOB.replace("name: job, ", ""), "metadata.name is missing"),
        ("apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\n", "spec: "),
    ],
)
def test_a_file_that_is_not_a_job_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="cannot be read"):
        read_manifest(tmp_path / "absent.yaml", "u")


@pytest.mark.parametrize("method", ["QLoRA", "LoRA", "Full", "Auto"])
@pytest.mark.parametrize("length", ["maxSteps: 12", "numTrainEpochs: 1.5", "seed: 7"])
def test_the_published_configuration_is_a_manifest_that_resolves_to_itself(
    tmp_path: Path, method: str, length: str
) -> None:
    facts = Facts(parameters=1000, train_rows=100, validation_rows=20)
    text = with_spec(f"tuning: {{method: {method}}}\nhyperparameters: {{{length}}}\n")
    config = read(tmp_path, text.replace("rows.jsonl}}", "rows.jsonl}, validationSplitPercent: 20}"))
    resolved = resolve(config.spec, facts)
    again = read(tmp_path, config_yaml(config, resolved))
    assert resolve(again.spec, facts).model_dump(exclude={"method_reason"}) == resolved.model_dump(
        exclude={"method_reason"}
    )


def test_a_tiny_learning_rate_survives_the_published_configuration(tmp_path: Path) -> None:
    config = read(tmp_path, with_spec("hyperparameters: {learningRate: 3e-7}\n"))
    text = config_yaml(config, resolve(config.spec, Facts(parameters=1, train_rows=1, validation_rows=0)))
    assert yaml.safe_load(text)["spec"]["hyperparameters"]["learningRate"] == 3e-7


def test_all_faults_of_a_file_are_one_message(tmp_path: Path) -> None:
    wrong = with_spec("micro_batch_size: 4\nresources: {nodes: 2}\nbackoffLimit: -1\nbackoffLimit: -2\n").replace(
        "v1alpha1", "v2"
    )
    broken = with_spec("dpo: {beta: 0.2}\n").replace("name: job", "name: two")
    message = refusal(tmp_path, f"{wrong}---{broken}---\na: [\n")
    for part in (
        "is not YAML: line 26, column 1: expected the node content",
        "apiVersion must be finetune.dev/v1alpha1, not 'finetune.dev/v2'",
        "line 13: spec.backoffLimit is given twice",
        "spec.micro_batch_size: unknown field: axolotl's micro_batch_size is hyperparameters.perDeviceTrainBatchSize",
        "spec.resources.nodes: unknown field: it is called numNodes now",
        "spec.backoffLimit: Input should be greater than or equal to 0",
        "spec.dpo: dpo is only for objective DPO: remove dpo",
    ):
        assert part in message


def test_the_jobs_of_a_list_are_read_and_faults_have_their_place_in_it(tmp_path: Path) -> None:
    items = [yaml.safe_load(JOB), yaml.safe_load(JOB.replace("name: job", "name: two"))]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    assert [job.name for job in read_manifests(path, lambda: "u")] == ["job", "two"]
    items[1]["spec"]["suspend"] = 3
    message = refusal(tmp_path, yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    assert "items[1].spec.suspend: Input should be a valid boolean" in message


def test_of_many_faults_the_first_ten_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, with_spec("".join(f"wrong{number}: 1\n" for number in range(13))))
    assert message.count("unknown field") == 10
    assert message.endswith("; and 3 more")
