"""`kubectl finetune` on a real cluster, as its user types it: to a fetched report, and to a cancelled job."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rows import colour_rows, jsonl
from user import Bench, Job, kubectl, wait_for

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
LONG = {"maxSteps": 600, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}
SAVING = {"steps": 10, "gracePeriodSeconds": 60}


def finetune(bench: Bench, *arguments: str, code: int = 0) -> str:
    """The plugin, found by kubectl; what it prints."""
    command = ["kubectl", "finetune", *arguments, "-n", bench.namespace]
    done = subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def follow(bench: Bench, *arguments: str) -> "subprocess.Popen[str]":
    """A command of the plugin that goes on until the job ends."""
    command = ["kubectl", "finetune", *arguments, "-n", bench.namespace]
    return subprocess.Popen(
        command, env=os.environ | {"PATH": PATH}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def followed(bench: Bench) -> dict[str, Any]:
    """A job from its manifest to its end, with what `progress` and `logs -f` printed meanwhile."""
    job = bench.apply("followed")
    with follow(bench, "progress", "followed") as progress, follow(bench, "logs", "followed", "-f") as logs:
        job.wait("Complete")
        told, log = progress.communicate(timeout=300)[0], logs.communicate(timeout=300)[0]
    return {"job": job, "progress": told, "logs": log, "codes": (progress.returncode, logs.returncode)}


def test_progress_and_logs_follow_a_job_from_its_manifest_to_its_end(followed: dict[str, Any]) -> None:
    assert followed["codes"] == (0, 0), followed
    last = followed["progress"].splitlines()[-1]
    assert last.split()[1:3] == ["Succeeded", "100%"]
    assert "eval" in last
    (pod,) = [run["podName"] for run in followed["job"].status()["history"]]
    assert f"--- pod {pod}" in followed["logs"]
    assert "INFO" in followed["logs"]


def test_a_job_that_ended_is_listed_described_and_its_report_is_fetched_and_proven(
    bench: Bench, followed: dict[str, Any], tmp_path: Path
) -> None:
    row = next(line for line in finetune(bench, "list").splitlines() if line.startswith("followed "))
    assert row.split()[1:5] == ["Succeeded", "Chat", "QLoRA", "100%"]
    page = finetune(bench, "describe", "followed")
    assert "run 1 (attempt 1) Succeeded" in page
    assert "Before the first step" in page
    assert bench.uri("out/followed") in finetune(bench, "report", "followed")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    shown = finetune(bench, "report", "followed", "--show", "--endpoint", endpoint)
    assert shown == bench.read(bench.uri("out/followed/finetune_report.md")).decode()
    finetune(bench, "report", "followed", "--save", str(tmp_path), "--endpoint", endpoint)
    assert (tmp_path / "report.html").read_bytes() == bench.read(bench.uri("out/followed/report.html"))
    finetune(bench, "cancel", "followed", "--yes", code=1)


@pytest.mark.nightly
def test_the_lineage_of_a_child_leads_to_its_parent_and_its_base(bench: Bench, followed: dict[str, Any]) -> None:
    rows = {"train": {"uri": bench.put("fewer.jsonl", jsonl(colour_rows(200)))}, "validationSplitPercent": 10}
    child = bench.apply(
        "child",
        lineage={"parentRef": {"name": "followed"}},
        dataset=rows,
        checkpoint={"keep": 2},
        evaluation={"steps": 2},
    )
    status = child.wait("Complete")
    found = json.loads(finetune(bench, "lineage", "child", "-o", "json"))
    assert found["manifestSHA256"] == status["artifacts"]["manifestSHA256"]
    assert found["parent"]["uid"] == followed["job"].get()["metadata"]["uid"]
    assert found["parent"]["baseModelURI"].endswith("/tiny-model")
    assert "lineage.parentRef.name" in finetune(bench, "diff", "followed", "child")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    told = finetune(bench, "diff", "followed", "child", "--rows", "--endpoint", endpoint, "-o", "json")
    compared = json.loads(told)["rows"]
    assert compared["trained"]["onlyFirst"]
    moved = [one for part in ("trained", "heldOut") for one in compared[part]["onlySecond"]]
    assert len(moved) == compared["trainedAndHeldOut"]  # every row of the child is one of its parent's
    page, files = finetune(bench, "describe", "child"), bench.keys(bench.uri("out/child"))
    kept = status["artifacts"]["keptCheckpoints"]
    assert len(kept) == 2
    for one in kept:
        assert one["uri"] in page
        assert f"kept-checkpoints/step-{one['step']:06d}/adapter_model.safetensors" in files


@pytest.mark.nightly
def test_the_jobs_of_a_sweep_are_ranked_by_what_they_have_learned(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(bench.manifest("tried")))
    setting, target = "hyperparameters.learningRate=1e-7,5e-3", tmp_path / "sweep.yaml"
    command = ["kubectl", "finetune", "sweep", str(tmp_path / "job.yaml"), "--set", setting, "-f", str(target)]
    subprocess.run(command, env=os.environ | {"PATH": PATH}, check=True)
    kubectl("apply", "-f", str(target))
    for number in (1, 2):
        Job(bench, f"tried-try-{number}").wait("Complete")
    header, first, second = finetune(bench, "compare", "-l", "finetune.dev/sweep=tried-try").splitlines()
    assert header.split()[:3] == ["NAME", "learningRate", "PHASE"]
    assert first.split()[:3] == ["tried-try-2", "0.005", "Succeeded"]
    assert second.split()[:3] == ["tried-try-1", "1e-07", "Succeeded"]
    assert ("Better" in first, "NoMeasurableDifference" in second) == (True, True)


@pytest.mark.nightly
def test_a_job_is_suspended_resumes_from_its_checkpoint_and_is_cancelled(bench: Bench) -> None:
    job = bench.apply("long", hyperparameters=LONG, checkpoint=SAVING)
    job.saved_pod()
    assert "long suspended" in finetune(bench, "suspend", "long")
    wait_for("no trainer pod", lambda: not job.pods(), state=job.status)
    assert job.condition("Suspended")["status"] == "True"
    wait_for("the suspended run in the history", lambda: job.status().get("history"), state=job.status)
    step = job.status()["checkpoint"]["step"]
    assert f"long resumed from step {step}" in finetune(bench, "resume", "long")
    told = f"resumed from step {step}"
    wait_for("a run that goes on", lambda: told in finetune(bench, "describe", "long"), state=job.status)
    assert "long cancelled" in finetune(bench, "cancel", "long", "--yes")
    wait_for("no pod of a cancelled job", lambda: not job.pods())
    assert any(key.startswith("checkpoints/") for key in bench.keys(bench.uri("out/long")))
