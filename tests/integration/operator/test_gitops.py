"""What GitOps tools do to a job again and again: apply it, look for differences, label it, prune it, wait for it."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import names

ROOT = Path(__file__).parents[3]
SPEC = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: one
  labels:
    app.kubernetes.io/part-of: research
spec:
  objective: Chat
  storage:
    endpoint: http://storage.example:9000
    credentialsSecretRef:
      name: s3
  model:
    uri: s3://bucket/models/tiny
  dataset:
    train:
      uri: s3://bucket/data/rows.jsonl
    validationSplitPercent: 10
  output:
    uri: s3://bucket/jobs/one
  resources:
    gpusPerNode: 1
"""
Kubectl = Callable[..., str]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The job as a file in somebody's repository."""
    path = tmp_path / "one.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def apply(kubectl: Kubectl, world: Any, manifest: Path) -> Callable[..., str]:
    """Server-side apply, as Argo CD and Flux do it."""

    def call(*flags: str) -> str:
        manager = "--field-manager=gitops"
        return kubectl("apply", "--server-side", manager, "-n", world.namespace, "-f", str(manifest), *flags)

    return call


def reconciles(operator: Any) -> float:
    assert operator.get("/metrics") == 200
    counts = re.findall(r"^finetune_operator_reconcile_total\{.*\} (\S+)$", operator.text, re.MULTILINE)
    return sum(map(float, counts))


def test_applying_twice_changes_nothing_and_each_field_has_one_owner(
    world: Any, operator: Any, apply: Callable[..., str], kubectl: Kubectl, manifest: Path
) -> None:
    apply()
    world.cannot_schedule(world.pass_preflight(), "0/3 nodes are available")
    world.wait_condition("Running", "Unschedulable")
    before = world.get()
    assert "serverside-applied" in apply()
    after = world.get()
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    managers = {(one["manager"], one.get("subresource", "")): one for one in after["metadata"]["managedFields"]}
    assert managers["gitops", ""]["operation"] == "Apply"
    assert "f:status" not in managers["gitops", ""]["fieldsV1"]
    others = [one for key, one in managers.items() if key != ("gitops", "")]
    assert [(one["subresource"], set(one["fieldsV1"])) for one in others] == [("status", {"f:status"})]
    where = ("-n", world.namespace, "-f", str(manifest))
    assert kubectl("diff", "--server-side", "--field-manager=gitops", *where) == ""
    assert kubectl("diff", *where) == ""
    assert after["metadata"].get("finalizers", []) == []


def test_labels_and_annotations_change_nothing_for_the_operator(
    world: Any, operator: Any, apply: Callable[..., str], manifest: Path, wait: Any
) -> None:
    apply()
    trainer = world.pass_preflight()
    world.cannot_schedule(trainer, "0/3 nodes are available")
    world.wait_condition("Running", "Unschedulable")
    before, looks = world.get(), reconciles(operator)
    labelled = SPEC.replace("part-of: research", "part-of: other\n    team: a\n  annotations:\n    note: hello")
    manifest.write_text(labelled)
    apply()
    wait(lambda: reconciles(operator) > looks, "a look at the changed job")
    after = world.get()
    assert after["metadata"]["labels"] == {"app.kubernetes.io/part-of": "other", "team": "a"}
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["status"] == before["status"]
    assert world.jobs() == ["one-1", "one-preflight"]
    assert world.pod_of("one-1").metadata.uid == trainer.metadata.uid


def test_a_change_of_a_fixed_field_is_refused_with_a_message_and_does_not_affect_the_job(
    world: Any, operator: Any, apply: Callable[..., str], manifest: Path
) -> None:
    apply()
    world.pass_preflight()
    world.wait_condition("Validated", "DatasetValid")
    manifest.write_text(SPEC.replace("models/tiny", "models/other"))
    with pytest.raises(AssertionError, match=r"spec\.model: .* create a new FineTuneJob"):
        apply()
    assert world.jobs() == ["one-1", "one-preflight"]


@pytest.mark.usefixtures("operator")
def test_an_edit_of_a_finished_job_is_acknowledged_so_that_no_client_waits_for_it(
    world: Any, apply: Callable[..., str], kubectl: Kubectl, manifest: Path, wait: Any
) -> None:
    apply()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.end(trainer, 0, world.published())
    world.wait_phase("Succeeded")
    before = world.get()
    manifest.write_text(SPEC + "  ttlSecondsAfterFinished: 86400\n")
    apply()
    kubectl("wait", "--for=condition=Complete", "finetunejob/one", "-n", world.namespace, "--timeout=30s")
    wait(lambda: world.status()["observedGeneration"] == world.get()["metadata"]["generation"], "the edit is seen")
    after = world.get()
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1
    for status in (before["status"], after["status"]):
        for one in (status, *status["conditions"]):
            del one["observedGeneration"]
    assert after["status"] == before["status"]


def test_pruning_takes_everything_along_without_the_operator(
    world: Any, operator: Any, kubectl: Kubectl, manifest: Path, wait: Any
) -> None:
    kubectl("apply", "-n", world.namespace, "-f", str(manifest))
    world.pass_preflight()
    world.wait_condition("Validated", "DatasetValid")
    operator.kill()
    rest = manifest.with_name("rest.yaml")
    labels = {"app.kubernetes.io/part-of": "research"}
    rest.write_text(
        yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rest", "labels": labels}})
    )
    prune = ["--prune", "-l", "app.kubernetes.io/part-of=research"]
    prune.append("--prune-allowlist=finetune.dev/v1alpha1/FineTuneJob")
    assert "one pruned" in kubectl("apply", "-n", world.namespace, "-f", str(rest), *prune)
    wait(lambda: world.jobs() == [], "the Jobs are gone")
    wait(lambda: world.pods() == [], "the pods are gone")
    where = {"namespace": world.namespace, "label_selector": names.LABEL_JOB_NAME}
    wait(lambda: world.core.list_namespaced_config_map(**where).items == [], "the ConfigMaps are gone")


# Helm


@pytest.fixture
def install(program: Callable[[str], str], control_plane: Path, world: Any, tmp_path: Path) -> Any:
    """Helm that installs a chart with one job and waits for it."""
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "research", "version": "1.0.0"}))
    (chart / "templates" / "one.yaml").write_text(SPEC)
    command = [program("helm"), "install", "research", str(chart), "--namespace", world.namespace]
    folders = {f"HELM_{name}_HOME": str(tmp_path / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    env = os.environ | {"KUBECONFIG": str(control_plane)} | folders

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--wait", "--timeout", "120s"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_helm_waits_until_the_job_is_complete(world: Any, operator: Any, install: Any) -> None:
    helm = install()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    assert helm.poll() is None
    world.end(trainer, 0, world.published())
    said, _ = helm.communicate(timeout=60)
    assert helm.returncode == 0, said
    assert "STATUS: deployed" in said
    assert world.status()["phase"] == "Succeeded"


def test_helm_fails_at_once_with_the_reason_of_a_job_that_fails(world: Any, operator: Any, install: Any) -> None:
    helm = install()
    pod = world.pod_of("one-preflight")
    world.run(pod)
    world.end(pod, 65, world.report("Failed", message="0 of 5 rows can be trained on"))
    said, _ = helm.communicate(timeout=60)
    assert helm.returncode != 0
    assert "0 of 5 rows can be trained on" in said


# The guide


def tree(text: str) -> list[Path]:
    """The files of a tree that the guide draws, two spaces for each level."""
    found, parents = [], [Path()]
    for line in text.splitlines():
        name = line.split()[0]
        level = (len(line) - len(line.lstrip())) // 2
        path = parents[level] / name
        parents[level + 1 :] = [path]
        found += [] if name.endswith("/") else [path]
    return found


def test_kustomize_builds_the_repository_of_the_guide_with_every_job_suspended_by_its_patch(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    guide = (ROOT / "docs" / "gitops.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"```text\n(clusters/.*?)```", guide, re.DOTALL)
    files = [path for path in tree(drawn) if path.parts[0] == "teams"]
    (team,) = re.findall(r"```yaml\n(apiVersion: kustomize\.config.*?)```", guide, re.DOTALL)
    jobs = sorted(path.name for path in files if path.parent.name == "jobs" and path.name != "kustomization.yaml")
    content = {"team-a/kustomization.yaml": team, "jobs/kustomization.yaml": yaml.safe_dump({"resources": jobs})}
    content |= {f"jobs/{name}": SPEC.replace("name: one", f"name: {name.removesuffix('.yaml')}") for name in jobs}
    for path in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content.get(f"{path.parent.name}/{path.name}", ""))
    built = list(yaml.safe_load_all(kubectl("kustomize", str(tmp_path / "teams" / "team-a"))))
    assert [one["metadata"]["namespace"] for one in built] == ["team-a"] * len(jobs)
    assert [one["spec"]["suspend"] for one in built] == [True] * len(jobs)
    assert len(jobs) == 2
