"""`kubectl finetune` as kubectl runs it, on jobs that the real operator brings through their life."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubectl_finetune.__main__ import main

Run = subprocess.CompletedProcess[str]
BIN = Path(sys.executable).parent
CLUSTER_PY = Path(__file__).parents[3] / "tests" / "cluster" / "cluster.py"


@pytest.fixture(scope="module")
def shell(control_plane: Path) -> Callable[..., Run]:
    """A user's shell: the real kubectl and the plugin on the PATH, and a kubeconfig."""
    done = subprocess.run([sys.executable, CLUSTER_PY, "env"], check=True, capture_output=True, text=True)
    told = next(line.partition("=")[2] for line in done.stdout.splitlines() if line.startswith("export PATH="))
    path = f"{BIN}:{told.replace('$PATH', os.environ['PATH']).replace(chr(34), '')}"
    environment = os.environ | {"PATH": path, "KUBECONFIG": str(control_plane)}

    def call(*command: str, stdin: str = "") -> Run:
        return subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, check=False)

    return call


@pytest.fixture
def finetune(control_plane: Path, world: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., str]:
    """`kubectl-finetune … -n NAMESPACE`, in this process: what it prints, or with an exit code what it complains of."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane))

    def call(*arguments: str, code: int = 0, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["kubectl-finetune", *arguments, "-n", world.namespace])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert ended.value.code == code, f"{out}\n{err}"
        return str(out + err)

    return call


def complete(world: Any, name: str = "one", **blocks: Any) -> dict[str, Any]:
    artifacts = {
        "uri": f"s3://bucket/jobs/{name}",
        "adapterURI": f"s3://bucket/jobs/{name}/adapter",
        "reportURI": f"s3://bucket/jobs/{name}/finetune_report.md",
        "manifestSHA256": name.encode().hex().ljust(64, "0"),
        "sizeBytes": 2_000_000,
    }
    metrics = {"trainLoss": 0.9, "evalLoss": 1.2, "bestEvalLoss": 1.2, "bestStep": 24, "baselineEvalLoss": 2.5}
    report = world.report("Published", name, artifacts=artifacts, metrics=metrics, lastStep=24, **blocks)
    world.end(world.pass_preflight(name), 0, report)
    status: dict[str, Any] = world.wait_phase("Succeeded", name)
    return status


def test_kubectl_finds_the_plugin_runs_it_and_completes_its_arguments(shell: Callable[..., Run], world: Any) -> None:
    world.create("support-bot")
    assert str(BIN / "kubectl-finetune") in shell("kubectl", "plugin", "list").stdout
    listed = shell("kubectl", "finetune", "list", "-n", world.namespace)
    assert (listed.returncode, listed.stdout.split()[-10]) == (0, "Pending"), listed
    for words, completions in (
        (["li"], ["list", "lineage"]),
        (["describe", "-n", world.namespace, "sup"], ["support-bot"]),
    ):
        done = shell("kubectl", "__complete", "finetune", *words)
        assert [line for line in done.stdout.splitlines() if line[:1] != ":"] == completions


def test_a_job_is_listed_described_and_reported_as_it_ended(
    world: Any, operator: Any, finetune: Callable[..., str]
) -> None:
    world.create()
    complete(world)
    header, row = finetune("list").splitlines()
    assert header.split()[:5] == ["NAME", "PHASE", "OBJECTIVE", "METHOD", "PROGRESS"]
    assert row.split()[:5] == ["one", "Succeeded", "Chat", "QLoRA", "100%"]
    assert world.namespace in finetune("list", "-A")
    page = finetune("describe", "one")
    for told in (
        "Before the first step",
        "10 (BAD_JSON 10)",
        "run 1 (attempt 1) Succeeded",
        "DatasetValid",
        "TrainingStarted",
        f"kubectl finetune report one -n {world.namespace}",
    ):
        assert told in page
    report = finetune("report", "one")
    assert "s3://bucket/jobs/one/finetune_report.md" in report
    assert "aws s3 cp --endpoint-url http://storage.example:9000 s3://bucket/jobs/one/report.html ." in report
    stored = world.get()
    del stored["metadata"]["managedFields"]
    assert json.loads(finetune("describe", "one", "-o", "json")) == stored
    told = yaml.safe_load(finetune("report", "one", "-o", "yaml"))
    assert told["artifacts"] == world.status()["artifacts"]


def test_progress_prints_each_change_and_ends_with_the_job(control_plane: Path, world: Any, operator: Any) -> None:
    world.create()
    command = [str(BIN / "kubectl-finetune"), "progress", "one", "--interval", "0.1", "-n", world.namespace]
    environment = os.environ | {"KUBECONFIG": str(control_plane)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout
        first = following.stdout.readline()
        complete(world)
        last = following.stdout.read().splitlines()[-1]
    assert following.returncode == 0
    assert first.split()[1] in {"Pending", "Preflight"}
    assert last.split()[1:3] == ["Succeeded", "100%"]
    assert "eval 1.2" in last


def test_progress_of_a_job_that_fails_exits_one_and_shows_why(
    world: Any, operator: Any, finetune: Callable[..., str]
) -> None:
    world.create()
    pod = world.pod_of("one-preflight")
    world.end(pod, 65, world.report("Failed", message="no row can be trained on: convert the file"))
    world.wait_phase("Failed")
    assert "no row can be trained on" in finetune("progress", "one", code=1)
    page = finetune("describe", "one")
    assert "DatasetUnusable" in page
    assert "has ended (Failed)" in finetune("suspend", "one", code=1)
    assert "published nothing" in finetune("report", "one", code=1)


def test_a_job_is_suspended_resumed_and_cancelled(
    world: Any, operator: Any, finetune: Callable[..., str], wait: Any
) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    assert "one suspended" in finetune("suspend", "one")
    world.wait_phase("Suspended")
    assert "already suspended" in finetune("suspend", "one")
    assert "one resumed" in finetune("resume", "one")
    world.wait_condition("Suspended", "NotSuspended")
    assert "one not cancelled" in finetune("cancel", "one", stdin="n\n")
    assert world.get()["metadata"]["name"] == "one"
    assert "stay at s3://bucket/jobs/one" in finetune("cancel", "one", "--yes")
    assert "no FineTuneJob one" in finetune("describe", "one", code=3)
    wait(lambda: world.jobs() == [], "no Job")


def test_a_chain_is_a_tree_down_to_its_base_and_two_jobs_are_compared(
    world: Any, operator: Any, finetune: Callable[..., str]
) -> None:
    world.create("sft")
    complete(world, "sft")
    world.create("dpo", objective="DPO", lineage={"parentRef": {"name": "sft"}})
    complete(world, "dpo")
    tree = finetune("lineage", "dpo")
    assert (
        tree.index("dpo DPO")
        < tree.index("parent: sft Chat Succeeded")
        < tree.index("base model: s3://bucket/models/tiny")
    )
    found = json.loads(finetune("lineage", "dpo", "-o", "json"))
    assert found["parent"]["manifestSHA256"] == b"sft".hex().ljust(64, "0")
    page = finetune("diff", "sft", "dpo")
    assert ["objective", "Chat", "DPO"] in [line.split()[:3] for line in page.splitlines()]
    world.delete("sft")
    assert "(no longer in the cluster)" in finetune("lineage", "dpo")


def test_a_sweep_is_applied_by_kubectl_and_its_jobs_are_ranked(
    world: Any, operator: Any, finetune: Callable[..., str], shell: Callable[..., Run], tmp_path: Path
) -> None:
    world.create("one", dataset={"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 20})
    job = world.get("one")
    meta = {name: job["metadata"][name] for name in ("name", "namespace")}
    (tmp_path / "one.json").write_text(
        json.dumps({name: job[name] for name in ("apiVersion", "kind", "spec")} | {"metadata": meta})
    )
    setting = "hyperparameters.learningRate=5e-5,1e-4,2e-4"
    written = shell("kubectl", "finetune", "sweep", str(tmp_path / "one.json"), "--set", setting, "-f", "-")
    applied = shell("kubectl", "apply", "-f", "-", stdin=written.stdout)
    assert applied.returncode == 0, applied.stderr
    for number, loss in enumerate((1.4, 1.2, 1.3), 1):
        figures = {"verdict": "Better", "metric": "Loss", "before": 2.5, "after": loss, "rows": 40, "change": "-40 %"}
        interval = {
            "difference": round(loss - 2.5, 3),
            "differenceLow": round(loss - 2.56, 3),
            "differenceHigh": round(loss - 2.44, 3),
        }
        complete(world, f"one-try-{number}", evaluation=figures | interval)
    page = finetune("compare", "-l", "finetune.dev/sweep=one-try")
    lines = [line.split() for line in page.splitlines()]
    assert lines[0][:2] == ["NAME", "learningRate"]
    assert [line[:4] for line in lines[1:4]] == [
        ["one-try-2", "0.0001", "Succeeded", "1.2"],
        ["one-try-3", "0.0002", "Succeeded", "1.3"],
        ["one-try-1", "5e-05", "Succeeded", "1.4"],
    ]
    assert (
        "one-try-2 has the best loss, but the intervals do not separate it from one-try-3: more held-out rows" in page
    )
    ranked = json.loads(finetune("compare", "one-try-1", "one-try-2", "-o", "json"))
    assert [one["fields"] for one in ranked["jobs"]] == [
        {"hyperparameters.learningRate": rate} for rate in (1e-4, 5e-5)
    ]


def test_a_missing_name_is_reported_with_similar_ones(world: Any, finetune: Callable[..., str]) -> None:
    world.create("support-bot")
    error = finetune("describe", "suport-bot", code=3)
    assert f"no FineTuneJob suport-bot in namespace {world.namespace}" in error
    assert "did you mean support-bot?" in error
    assert "no operator has observed it yet" in finetune("describe", "support-bot")


def test_a_job_without_pods_has_no_log_and_the_error_names_the_reason(
    world: Any, operator: Any, finetune: Callable[..., str]
) -> None:
    world.create()
    world.pod_of("one-preflight")
    world.wait_phase("Preflight")
    assert "no trainer pod exists yet" in finetune("logs", "one", code=3)
    assert "has not started" in finetune("logs", "one", "--preflight", code=3)
