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
        assert one["metadata"]["labels"] == {"team": "support", "finetune.dev/sweep": "support-bot"}
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
    assert "3 jobs; rank them with: kubectl finetune compare -l finetune.dev/sweep=support-bot" in done.err
    assert "each seed holds out other rows" in done.err
    assert len(read_documents((tmp_path / "support-bot-sweep.yaml").read_text())) == 3
    again = finetune(*call, stdin=JOB)
    assert again.code == 1
    assert "support-bot-sweep.yaml exists" in again.err
    assert finetune(*call, "--force", stdin=JOB).code == 0


def test_a_push_to_one_place_is_left_out_with_a_note(finetune: Finetune) -> None:
    job = JOB.replace("/support-bot/}", "/support-bot, hub: {repo: owner/bot, credentialsSecretRef: {name: token}}}")
    done = finetune("sweep", "-", "-f", "-", "--set", "hyperparameters.maxSteps=10,20", stdin=job)
    assert done.code == 0, done.err
    assert "output.hub is left out: every variant would push to the same place" in done.err
    assert all("hub" not in document.value["spec"]["output"] for document in read_documents(done.out))


def test_a_job_without_held_out_rows_gets_a_note(finetune: Finetune) -> None:
    for job, is_told in ((JOB, False), (JOB.replace("    validationSplitPercent: 10\n", ""), True)):
        done = finetune("sweep", "-", "-f", "-", "--set", "hyperparameters.maxSteps=10,20", stdin=job)
        assert ("no rows are held out, so that compare cannot rank the jobs" in done.err) is is_told


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
        (f"{JOB}---{JOB.replace('support-bot', 'other')}", ("hyperparameters.seed=1",), "must have one FineTuneJob"),
        (JOB, ("hyperparameters.seed=1", "hyperparameters.seed=2"), "hyperparameters.seed is set twice"),
    ],
)
def test_a_file_that_has_no_single_valid_job_or_a_field_set_twice_is_refused(
    finetune: Finetune, job: str, settings: tuple[str, ...], told: str
) -> None:
    done = finetune("sweep", "-", *(word for one in settings for word in ("--set", one)), stdin=job)
    assert done.code in {1, 2}
    assert told in done.err
