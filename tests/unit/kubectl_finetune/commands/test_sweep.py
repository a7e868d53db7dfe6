"""`sweep`: valid variants of one job, and clear errors for settings that make none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest.yaml_document import read_documents

Finetune = Callable[..., Any]
JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: support-bot
  labels: {team: support}
spec:
  objective: Chat
  model: {uri: hf://owner/model}
  dataset:
    train: {uri: s3://data/rows.jsonl}
    validationSplitPercent: 10
  tuning: {method: LoRA}
  output: {uri: s3://models/support-bot/}
"""


def variants(finetune: Finetune, *settings: str, job: str = JOB) -> list[dict[str, Any]]:
    done = finetune("sweep", "-", "-f", "-", *(word for one in settings for word in ("--set", one)), stdin=job)
    assert done.code == 0, done.err
    checked = finetune("validate", "-", stdin=done.out)
    assert checked.code == 0, checked.out
    return [document.value for document in read_documents(done.out)]


def test_each_combination_of_the_values_is_a_valid_job_with_a_name_and_a_result_of_its_own(finetune: Finetune) -> None:
    made = variants(finetune, "hyperparameters.learningRate=5e-5,1e-4", "spec.tuning.lora.rank=8,32")
    assert [one["metadata"]["name"] for one in made] == [f"support-bot-try-{number}" for number in (1, 2, 3, 4)]
    assert [one["spec"]["output"]["uri"] for one in made] == [
        f"s3://models/support-bot-try-{number}" for number in (1, 2, 3, 4)
    ]
    chosen = [(one["spec"]["hyperparameters"]["learningRate"], one["spec"]["tuning"]["lora"]["rank"]) for one in made]
    assert chosen == [(5e-5, 8), (5e-5, 32), (1e-4, 8), (1e-4, 32)]
    for one in made:
        assert one["metadata"]["labels"] == {"team": "support", "finetune.dev/sweep": "support-bot-try"}
        assert one["spec"]["tuning"]["method"] == "LoRA"
        assert one["spec"]["dataset"]["validationSplitPercent"] == 10


def test_values_are_read_as_kubectl_reads_them_also_lists_and_texts(finetune: Finetune) -> None:
    made = variants(
        finetune, "tuning.lora.targetModules=[q_proj,v_proj],[o_proj]", "hyperparameters.packing=Never,Always"
    )
    assert [one["spec"]["tuning"]["lora"]["targetModules"] for one in made[::2]] == [["q_proj", "v_proj"], ["o_proj"]]
    assert [one["spec"]["hyperparameters"]["packing"] for one in made[:2]] == ["Never", "Always"]


def test_the_file_is_not_overwritten_and_the_next_command_is_named(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = ("sweep", "-", "--set", "hyperparameters.seed=1,2,3")
    done = finetune(*call, stdin=JOB)
    assert done.code == 0
    assert "3 jobs; rank them with: kubectl finetune compare -l finetune.dev/sweep=support-bot-try" in done.err
    assert "compare will not rank the jobs" in done.err
    assert "hyperparameters.seed is 1 and 2 and 3, which holds out other rows" in done.err
    assert len(read_documents((tmp_path / "support-bot-try.yaml").read_text())) == 3
    again = finetune(*call, stdin=JOB)
    assert again.code == 1
    assert "support-bot-try.yaml exists" in again.err
    assert finetune(*call, "--force", stdin=JOB).code == 0


def test_a_push_to_one_place_is_left_out_with_a_note(finetune: Finetune) -> None:
    job = JOB.replace("/support-bot/}", "/support-bot, hub: {repo: owner/bot, credentialsSecretRef: {name: token}}}")
    done = finetune("sweep", "-", "-f", "-", "--set", "hyperparameters.maxSteps=10,20", stdin=job)
    assert done.code == 0, done.err
    assert "output.hub is left out: every variant would push to the same place" in done.err
    assert all("hub" not in document.value["spec"]["output"] for document in read_documents(done.out))


NOT_RANKED = "compare will not rank the jobs, because their held-out figures measure different things: "


@pytest.mark.parametrize(
    ("job", "setting", "told"),
    [
        (JOB, "hyperparameters.maxSteps=10,20", ""),
        (JOB.replace("    validationSplitPercent: 10\n", ""), "hyperparameters.maxSteps=10,20", "no rows are held out"),
        (JOB.replace("    validationSplitPercent: 10\n", ""), "dataset.validation={uri: s3://data/held.jsonl}", ""),
        (JOB, "hyperparameters.maxLength=64,128", f"{NOT_RANKED}hyperparameters.maxLength is 64 and 128"),
        (JOB, "dataset.validationSplitPercent=5,10", f"{NOT_RANKED}dataset.validationSplitPercent is 5 and 10"),
        (JOB.replace("Chat", "KTO"), "kto.beta=0.1,0.5", f"{NOT_RANKED}kto.beta is 0.1 and 0.5"),
        (JOB, "evaluation.baseline=false", "evaluation.baseline is false"),
    ],
)
def test_what_compare_cannot_rank_is_noted_before_a_gpu_is_held(
    finetune: Finetune, job: str, setting: str, told: str
) -> None:
    done = finetune("sweep", "-", "-f", "-", "--set", setting, stdin=job)
    assert done.code == 0, done.err
    assert told in done.err
    assert ("note:" in done.err) is bool(told)


def test_a_job_from_the_cluster_becomes_manifests_that_can_be_created_and_the_hint_has_its_namespace(
    finetune: Finetune,
) -> None:
    live = (
        '  namespace: team-a\n  uid: u-1\n  resourceVersion: "7"\n  generation: 2\n  finalizers: [finetune.dev/x]\n'
        "  creationTimestamp: '2026-03-01T12:00:00Z'\n"
        "  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}', mine: kept}\n"
    )
    job = JOB.replace("  labels:", f"{live}  labels:") + "status: {phase: Failed}\n"
    done = finetune("sweep", "-", "-f", "-", "--set", "hyperparameters.maxSteps=10", stdin=job)
    assert done.code == 0, done.err
    (made,) = [document.value for document in read_documents(done.out)]
    assert set(made) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(made["metadata"]) == {"name", "namespace", "labels", "annotations"}
    assert made["metadata"]["annotations"] == {"mine": "kept"}
    told = "1 job; rank them with: kubectl finetune compare -l finetune.dev/sweep=support-bot-try -n team-a"
    assert done.err.strip() == told


def test_another_sweep_of_the_job_has_another_suffix_in_names_results_and_label(finetune: Finetune) -> None:
    done = finetune("sweep", "-", "-f", "-", "--suffix", "lr", "--set", "hyperparameters.maxSteps=10,20", stdin=JOB)
    made = [document.value for document in read_documents(done.out)]
    assert [one["metadata"]["name"] for one in made] == ["support-bot-lr-1", "support-bot-lr-2"]
    assert {one["metadata"]["labels"]["finetune.dev/sweep"] for one in made} == {"support-bot-lr"}
    assert made[1]["spec"]["output"]["uri"] == "s3://models/support-bot-lr-2"


def test_an_empty_block_is_filled_and_a_name_of_a_run_is_left_to_each_job(finetune: Finetune) -> None:
    job = (
        JOB
        + "  hyperparameters:\n  tracking: {mlflow: {endpoint: 'http://mlflow:5000', experiment: bot, runName: mine}}\n"
    )
    made = variants(finetune, "hyperparameters.maxSteps=10,20", job=job)
    assert [one["spec"]["hyperparameters"] for one in made] == [{"maxSteps": 10}, {"maxSteps": 20}]
    assert all(list(one["spec"]["tracking"]["mlflow"]) == ["endpoint", "experiment"] for one in made)


def test_a_folder_is_refused(finetune: Finetune, tmp_path: Path) -> None:
    done = finetune("sweep", str(tmp_path), "--set", "hyperparameters.maxSteps=10")
    assert (done.code, "is a folder" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            "hyperparameters.learningRate=1e-4,7",
            "with hyperparameters.learningRate 7, spec.hyperparameters.learningRate",
        ),
        ("hyperparameters.learningrate=1e-4", "did you mean learningRate?"),
        ("hyperparameters.learningRate", "has no field or no value"),
        ("hyperparameters.learningRate=", "has no field or no value"),
        ("hyperparameters.learningRate=[1", "the values are not YAML"),
        ("output.uri=s3://a/b,s3://a/c", "each variant has a result of its own"),
        ("output.hub.repo=o/a,o/b", "each variant has a result of its own"),
        ("output={uri: s3://a/b}", "each variant has a result of its own"),
        ("evaluation.prompts[0].prompt=Hi", "an item of a list is no field"),
        ("objective.beta=1,2", "objective.beta is unknown: objective is no block"),
        (
            f"hyperparameters.seed={','.join(map(str, range(65)))}",
            "these settings have 65 combinations, and a sweep has 64",
        ),
    ],
)
def test_settings_that_make_no_job_are_refused_with_the_field_and_nothing_is_written(
    finetune: Finetune, setting: str, told: str
) -> None:
    done = finetune("sweep", "-", "-f", "-", "--set", setting, stdin=JOB)
    assert done.code in {1, 2}
    assert done.out == ""
    assert told in done.err


@pytest.mark.parametrize(
    ("job", "settings", "told"),
    [
        (JOB.replace("objective: Chat", "objective: Chatt"), ("hyperparameters.seed=1",), "stdin:8: spec.objective"),
        (f"{JOB}---{JOB.replace('support-bot', 'other')}", ("hyperparameters.seed=1",), "stdin has 2 FineTuneJobs"),
        (JOB.replace("  name:", "  generateName:"), ("hyperparameters.seed=1",), "has a job without metadata.name"),
        (JOB, ("hyperparameters.seed=1", "hyperparameters.seed=2"), "hyperparameters.seed is set twice"),
        (JOB, ("tuning.lora.rank=8,16", "tuning={method: LoRA},{method: QLoRA}"), "tuning.lora.rank is set twice"),
        (JOB, ("hyperparameters.learningRate=1e-4,0.0001",), "-try-1 and support-bot-try-2 would be the same training"),
    ],
)
def test_a_file_that_has_no_single_valid_job_or_a_field_set_twice_is_refused(
    finetune: Finetune, job: str, settings: tuple[str, ...], told: str
) -> None:
    done = finetune("sweep", "-", *(word for one in settings for word in ("--set", one)), stdin=job)
    assert done.code in {1, 2}
    assert told in done.err
