"""The demo: a real model, real rows, a real cluster; ends with the losses, an answer before and after, and the proof.

Commands: `deploy` (cluster, images, storage, chart), `run` (the training), `env`, `down`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import boto3
import environment
import yaml
from clusters import ABOUT, choose, start, stop
from commands import ROOT, run, say
from data import write_model, write_rows
from environment import STATE, Environment
from job_wait import ENDED, JobIsStill, conditions, summary, wait_for_end
from tqdm import tqdm

from finetune_api.names import LABEL_JOB_NAME

MANIFEST = ROOT / "crds" / "examples" / "demo.yaml"
SYSTEM_NAMESPACE = "finetune-system"
RELEASE = "finetune-operator"
BUCKET = "finetune-demo"
STILL_MINUTES = 10
"""How long the job's status may stay the same before the demo gives up."""


def heading(text: str) -> None:
    """The start of a part."""
    say(f"\n=== {text}")


def deploy(asked: str) -> None:
    """Cluster, images, storage and the operator's chart; safe to run again."""
    began = time.monotonic()
    cluster = choose(asked)
    heading(f"Cluster: {cluster}, {ABOUT[cluster]}")
    deployed = start(cluster)
    deployed.save()
    os.environ.update(deployed.variables())
    heading("Operator: helm upgrade --install")
    install_chart(deployed)
    say(f"deployed in {time.monotonic() - began:.0f} s")


def install_chart(deployed: Environment) -> None:
    """Install or upgrade the release and wait until the operator is ready."""
    operator, trainer = (image.rpartition(":") for image in (deployed.operator_image, deployed.trainer_image))
    values: dict[str, Any] = {
        "image": {"repository": operator[0], "tag": operator[2]},
        "trainer": {"image": {"repository": trainer[0], "tag": trainer[2]}, "simulatedGpus": True},
        "defaultStorage": {"endpoint": deployed.s3_endpoint_in_cluster, "region": "us-east-1"},
        "admissionPolicy": {"enabled": True},
        "allowed": {"workloadPriorityClasses": ["routine", "urgent"]},  # those of crds/examples/kueue
        "progressIntervalSeconds": 1,  # the jobs of the demo and of the tests take a minute
    }
    if deployed.preflight_image:
        preflight = deployed.preflight_image.rpartition(":")
        values["preflight"] = {"image": {"repository": preflight[0], "tag": preflight[2]}}
    file = STATE / "demo-values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE, "labels": labels}}
    run("kubectl", "apply", "-f", "-", stdin=yaml.safe_dump(namespace))
    chart = ROOT / "helm" / "finetune-operator"
    run(
        *("helm", "upgrade", "--install", RELEASE, str(chart), "--namespace", SYSTEM_NAMESPACE),
        *("--values", str(file), "--wait", "--timeout", "900s"),
    )


def demo(cluster: str, still_seconds: float) -> int:
    """Trains, shows, verifies; 0 only when the job is Complete and every digest was checked again from outside."""
    began = time.monotonic()
    deployed = environment.load(cluster)
    os.environ.update(deployed.variables())
    job = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    heading("Model and rows")
    put_data(job["spec"])
    heading("A namespace with the storage's keys; what an earlier demo left is removed")
    prepare_namespace(job, deployed)
    heading("Training")
    if command("kubectl", "apply", "-f", str(MANIFEST)) != 0:
        return 1
    try:
        status = watch(job["metadata"], still_seconds)
    except JobIsStill as failure:
        explain(job["metadata"], failure)
        return 1
    heading("Result")
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    command("kubectl", "get", "finetunejob", name, "-n", namespace, "-o", "wide")
    if status["phase"] != "Succeeded":
        command("kubectl", "describe", "finetunejob", name, "-n", namespace)
        command("kubectl", "get", "pods,jobs", "-n", namespace)
        return 1
    show(job["spec"]["output"]["uri"], status)
    heading("Verified from outside: every object against the manifest's digests")
    verified = command(sys.executable, "-m", "finetune_trainer", "verify", job["spec"]["output"]["uri"])
    better = status["metrics"]["evalLoss"] < status["metrics"]["baselineEvalLoss"]
    say(f"\nDemo done in {time.monotonic() - began:.0f} s. The cluster stays up:")
    say('  eval "$(make -s env)"        # kubectl and the S3 keys in your shell')
    say(f"  kubectl describe finetunejob {name} -n {namespace}")
    say("  make down                    # removes everything that was started")
    return 0 if verified == 0 and better else 1


def s3() -> Any:
    """A client of the storage, by the AWS variables."""
    return boto3.client("s3")


def put_data(spec: dict[str, Any]) -> None:
    """Upload model and rows to where the manifest expects them; the model only once."""
    local = STATE / "demo"
    local.mkdir(parents=True, exist_ok=True)
    write_rows(local / "rows.jsonl")
    write_model(local / "model")
    client = s3()
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    client.upload_file(str(local / "rows.jsonl"), BUCKET, key_of(spec["dataset"]["train"]["uri"]))
    prefix = key_of(spec["model"]["uri"])
    there = {item["Key"]: item["Size"] for item in listing(prefix)}
    for path in sorted((local / "model").iterdir()):
        if there.get(f"{prefix}/{path.name}") != path.stat().st_size:
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.name}")
    for item in [*listing("data"), *listing("models")]:
        say(f"  {item['Size']:>12,}  s3://{BUCKET}/{item['Key']}")


def key_of(uri: str) -> str:
    """The key within the demo's bucket."""
    return uri.removeprefix(f"s3://{BUCKET}/")


def listing(prefix: str) -> list[dict[str, Any]]:
    """The objects under a prefix."""
    pages = s3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    return [item for page in pages for item in page.get("Contents", [])]


def prepare_namespace(job: dict[str, Any], deployed: Environment) -> None:
    """A fresh start: namespace, Secret, no job and no output of an earlier demo."""
    namespace = job["metadata"]["namespace"]
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": job["spec"]["storage"]["credentialsSecretRef"]["name"], "namespace": namespace},
        "stringData": {"AWS_ACCESS_KEY_ID": deployed.access_key, "AWS_SECRET_ACCESS_KEY": deployed.secret_key},
    }
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    subprocess.run(["kubectl", "apply", "-f", "-"], input=yaml.safe_dump_all([space, secret]), text=True, check=True)
    name = job["metadata"]["name"]
    run("kubectl", "delete", "finetunejob", name, "-n", namespace, "--ignore-not-found", "--wait")
    # The garbage collector removes its Jobs and pods after it; a pod that still trains would write again.
    mine = f"{LABEL_JOB_NAME}={name}"
    run("kubectl", "wait", "--for=delete", "jobs,pods", "-l", mine, "-n", namespace, "--timeout=120s")
    client = s3()
    for item in listing(key_of(job["spec"]["output"]["uri"])):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])


def watch(metadata: dict[str, str], still_seconds: float) -> dict[str, Any]:
    """Follow the job to its end and return its status; raise JobIsStill if it stops to change."""
    with Display() as display:
        return wait_for_end(lambda: read_status(metadata), display.show, still_seconds)


class Display:
    """One line for each change of phase or message, and a bar while the job trains."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, status: dict[str, Any]) -> None:
        """Show a status."""
        progress, line = status.get("progress", {}), summary(status)
        has_ended = status.get("phase") in ENDED
        if has_ended and self._bar is not None:
            self._bar.close()
        if has_ended or (line != self._line and self._bar is None):
            say(f"  {time.strftime('%H:%M:%S')} {line}")
        self._line = line
        if progress.get("totalSteps") and status.get("phase") in {"Training", "Publishing"}:
            self._bar = self._bar or tqdm(
                total=progress["totalSteps"], unit="step", file=sys.stdout, dynamic_ncols=True
            )
            update(self._bar, progress, status.get("metrics", {}))


def explain(metadata: dict[str, str], failure: JobIsStill) -> None:
    """Show why the demo gave up: what it waited for, the job's conditions, its last events and its pods."""
    name, namespace = metadata["name"], metadata["namespace"]
    say(f"\n{failure}")
    heading("Conditions")
    say("\n".join(conditions(failure.status)) or "none")
    heading("Last events and pods")
    command("kubectl", "events", "--for", f"finetunejob/{name}", "-n", namespace)
    command("kubectl", "get", "pods,jobs", "-n", namespace)


def update(bar: "tqdm[Any]", progress: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Move the bar, with the losses behind it."""
    bar.n = progress.get("step", 0)
    losses = {name: metrics[name] for name in ("trainLoss", "evalLoss", "learningRate") if name in metrics}
    bar.set_postfix(losses | {"stage": progress.get("stage", "")}, refresh=True)


def read_status(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the job's status from the API server; raise OSError while it cannot be read."""
    name, namespace = metadata["name"], metadata["namespace"]
    words = ["kubectl", "get", "finetunejob", name, "-n", namespace, "-o", "json", "--request-timeout=30s"]
    got = subprocess.run(words, capture_output=True, text=True, check=False)
    if got.returncode:
        raise OSError(got.stderr.strip())
    status: dict[str, Any] = json.loads(got.stdout).get("status", {})
    return status


def show(uri: str, status: dict[str, Any]) -> None:
    """The losses, the report (with the answers before and after) and the objects in the bucket."""
    found, metrics = status["evaluation"], status["metrics"]
    say(f"\n  held-out loss as it is served: {found['before']} → {found['after']} nats per token ({found['change']})")
    say(f"  in training, on the quantised base: {metrics['baselineEvalLoss']} → {metrics['evalLoss']}")
    heading(f"Report: {uri}/finetune_report.md")
    body = s3().get_object(Bucket=BUCKET, Key=f"{key_of(uri)}/finetune_report.md")["Body"].read()
    say(body.decode())
    heading(f"Objects under {uri}")
    for item in listing(key_of(uri)):
        say(f"  {item['Size']:>12,}  {item['Key']}")


def command(*words: str) -> int:
    """Show a command as a user would type it, and run it."""
    say(f"$ {shlex.join(Path(words[0]).name if index == 0 else word for index, word in enumerate(words))}")
    return subprocess.run(words, check=False).returncode


def print_env(cluster: str) -> None:
    """Shell exports, for eval."""
    deployed = environment.load(cluster)
    for name, value in deployed.variables().items():
        if name != "PATH":
            say(f"export {name}={shlex.quote(value)}")
    if deployed.programs:
        say(f'export PATH={shlex.quote(deployed.programs)}:"$PATH"')


def main() -> int:
    """Run the given command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["deploy", "run", "env", "down"])
    parser.add_argument("--cluster", choices=["auto", "kind", "native", "current"], default="auto")
    parser.add_argument("--still-minutes", type=float, default=STILL_MINUTES, help="how long nothing may change")
    arguments = parser.parse_args()
    if arguments.command == "deploy":
        deploy(arguments.cluster)
    elif arguments.command == "run":
        return demo(arguments.cluster, arguments.still_minutes * 60)
    elif arguments.command == "env":
        print_env(arguments.cluster)
    else:
        stop(arguments.cluster)
    return 0


if __name__ == "__main__":
    sys.exit(main())
