"""The documented commands for kubectl and helm, run in the order of the guides on an API server of their own."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import ON_A_JOB, SET_UP, STEER, TAKE_DOWN
from documents import ROOT, blocks, jobs, others

CLUSTER = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py")]
NAMES = {
    "COMMAND": "list",
    "PARENT": "support-bot",
    "NAME": "support-bot",
    "JOB": "support-bot",
    "NODE": "node-1",
    "REGISTRY": "registry.example",
    "KEY": "key",
}
KUEUE = {"Workload": "Namespaced", "LocalQueue": "Namespaced", "ClusterQueue": "Cluster", "Topology": "Cluster"}
KUBERNETES = {"v1", "apps", "batch", "networking.k8s.io", "policy", "rbac.authorization.k8s.io"}
ROWS = "".join(f'{{"question": "What is {one}?", "answer": "It is {one}."}}\n' for one in range(60))
ANSWERS = " --model hf://a/b --data s3://data/support/ --result s3://models/support-bot -f -"
SECONDS = 60


class Reader:
    """A reader who types the commands of the documentation, in a folder with the files that it names."""

    def __init__(self, folder: Path, kubeconfig: str) -> None:
        script = 'eval "$("$0" "$1" env)"; echo "$PATH"'
        path = subprocess.run(["bash", "-euc", script, *CLUSTER], check=True, capture_output=True, text=True).stdout
        self.folder = folder
        own = Path(sys.executable).parent  # where the plugin is
        self.env = {
            **os.environ,
            "PATH": f"{own}:{path.strip()}",
            "KUBECONFIG": kubeconfig,
            "HELM_CACHE_HOME": str(folder),
        }

    def run(self, command: str, stdin: str = "") -> str:
        """What it prints; it has to end well."""
        done = subprocess.run(
            ["bash", "-c", filled(command)],
            cwd=self.folder, env=self.env, check=False, capture_output=True, text=True, input=stdin, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def watch(self, command: str, expected: str) -> str:
        """What it prints until the expected comes; then it is stopped, as a reader would."""
        with subprocess.Popen(
            ["bash", "-c", f"exec {filled(command)}"], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            seen = ""
            for line in process.stdout:
                seen += line
                if re.search(expected, seen):
                    break
            process.terminate()
        return seen

    def create(self, *objects: dict[str, Any]) -> None:
        self.run("kubectl create -f -", yaml.safe_dump_all(objects))


def filled(command: str) -> str:
    """With the reader's own names in the places of those in capitals."""
    return re.sub(rf"(?<![A-Z_])({'|'.join(NAMES)})(?![A-Z_])", lambda found: NAMES[found[0]], command)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """An API server that nothing was installed on, and the files of the guide."""
    folder, state = tmp_path_factory.mktemp("reader"), str(tmp_path_factory.mktemp("control-plane"))
    up = [*CLUSTER, "control-plane", "up", "--dir", state, "--controller-manager"]
    kubeconfig = subprocess.run(up, check=True, capture_output=True, text=True).stdout.strip()
    for name in ("helm", "crds"):
        (folder / name).symlink_to(ROOT / name)
    manifest = next(job for where, job in jobs() if where.startswith("docs/first-job.md"))
    for name in ("support-bot.yaml", "job.yaml"):
        (folder / name).write_text(yaml.safe_dump(manifest))
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "qlora.yml").write_text(next(one.text for one in blocks("yaml") if one.document == "docs/import.md"))
    try:
        one = Reader(folder, kubeconfig)
        named = {found["metadata"].get("namespace", "default") for _, found in others() if "metadata" in found}
        spaces = named | {"team-a", "team-b", "finetune-demo"}
        one.create(*map(namespace, sorted(spaces - {"default", "finetune-system"})), *map(kueue_crd, KUEUE))
        yield one
    finally:
        subprocess.run([*CLUSTER, "control-plane", "down", "--dir", state], check=True, capture_output=True)


def namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def kueue_crd(kind: str) -> dict[str, Any]:
    """A kind by the name that Kueue gives it."""
    plural = f"{kind.lower()}s".replace("ys", "ies")
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1beta2", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.kueue.x-k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"},
        },
        "spec": {
            "group": "kueue.x-k8s.io",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "scope": KUEUE[kind],
            "versions": [version],
        },
    }


@pytest.fixture(scope="module")
def with_jobs(reader: Reader) -> Reader:
    """Jobs that have ended, as an operator would have left them, and a node."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
    child = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "support-bot-1", "labels": {"finetune.dev/job-name": "support-bot"}},
        "spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "trainer"}]}}
        },
    }
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "support-bot.1", "namespace": "default"},
        "involvedObject": {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "name": "support-bot",
            "namespace": "default",
        },
        "reason": "Completed",
        "type": "Normal",
        "message": "The result is published.",
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    demo = yaml.safe_load((ROOT / "crds" / "examples" / "demo.yaml").read_text(encoding="utf-8"))
    manifest: dict[str, Any] = yaml.safe_load((reader.folder / "support-bot.yaml").read_text())
    reader.create(node, child, event, demo, manifest | {"metadata": {"name": "support-bot-2"}})
    moment = {"lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "Succeeded", "message": "Published."}
    truths = {"Complete": "True", "Reconciling": "False"}
    status = {
        "observedGeneration": 1,
        "phase": "Succeeded",
        "reason": "Succeeded",
        "artifacts": {"adapterURI": "s3://models/support-bot/adapter"},
        "conditions": [{"type": kind, "status": truth, **moment} for kind, truth in truths.items()],
    }
    patch = yaml.safe_dump({"status": status})
    reader.run("kubectl patch ftj support-bot --subresource=status --type=merge --patch-file=/dev/stdin", patch)
    return reader


@pytest.mark.parametrize("command", SET_UP)
def test_the_guides_set_up(reader: Reader, command: str) -> None:
    assert re.search(SET_UP[command], reader.run(command))


def test_the_guides_steer_a_job(reader: Reader) -> None:
    reader.run("kubectl apply -n team-a -f support-bot.yaml")
    for command, expected in STEER.items():
        more = ANSWERS if " new " in command else " -n team-a"
        assert re.search(expected, reader.run(command + more, stdin="y\n")), command


def test_every_job_of_the_documentation_is_accepted_by_the_api_server(reader: Reader) -> None:
    for where, job in jobs():
        made = reader.run(
            "kubectl create --dry-run=server -f - -o name", yaml.safe_dump(job | {"metadata": {"generateName": "one-"}})
        )
        assert made.startswith("finetunejob.finetune.dev/"), where


def test_other_objects_of_kubernetes_own_kinds_are_accepted(reader: Reader) -> None:
    for where, found in others():
        if found["apiVersion"].partition("/")[0] not in KUBERNETES:
            continue
        assert reader.run("kubectl create --dry-run=server -f - -o name", yaml.safe_dump(found)), where


@pytest.mark.parametrize("command", ON_A_JOB)
def test_the_guides_ask_about_jobs(with_jobs: Reader, command: str) -> None:
    expected = ON_A_JOB[command]
    seen = with_jobs.watch(command, expected) if "--watch" in command else with_jobs.run(command)
    assert re.search(expected, seen), seen


@pytest.mark.nightly
def test_kubectl_explains_every_field(kubectl: Callable[..., str]) -> None:
    crd = yaml.load((ROOT / "crds" / "finetunejobs.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    told: dict[str, str] = {}
    for path, node in fields(schema, "finetunejob"):
        parent, _, name = path.rpartition(".")
        if parent not in told:
            told[parent] = " ".join(kubectl("explain", parent).split())
        assert f"{name} <" in told[parent], path
        assert " ".join(node["description"].split()) in told[parent], path


def fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of spec and status with its schema, by the path that kubectl takes."""
    for name, child in node.get("properties", {}).items():
        if path != "finetunejob" or name in {"spec", "status"}:
            yield f"{path}.{name}", child
            yield from fields(child.get("items", child), f"{path}.{name}")


@pytest.mark.parametrize("command", TAKE_DOWN)
def test_the_guides_take_down(reader: Reader, command: str) -> None:
    assert re.search(TAKE_DOWN[command], reader.run(command))
    left = reader.run("kubectl get crd finetunejobs.finetune.dev --ignore-not-found -o name")
    assert bool(left) == ("crd" not in command)
