"""docs/first-job.md as a reader follows it on a cluster, and other documented commands that need pods or storage."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import CLUSTER, ON_A_JOB, SET_UP
from documents import jobs
from rows import colour_rows, jsonl
from user import BUCKET, Bench, kubectl

pytestmark = pytest.mark.nightly

INSTALL_AWS = ["apt-get", "install", "--yes", "--no-install-recommends", "awscli"]
NOT_HERE = ("--watch", "patch", "support-bot-2", " import ", "support-bot-try")
"""What does not end, would change the job, needs another, or reads a file and no job."""
WAIT = "kubectl wait --for=condition=Reconciling=false ftj/support-bot --timeout=6h"


class Reader:
    """Somebody with a namespace and a bucket of their own, who types what the guide says."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.folder = folder
        self.places = {
            "hf://HuggingFaceTB/SmolLM2-135M-Instruct": f"s3://{BUCKET}/tiny-model",
            "s3://data/support/": bench.uri("guide/data/"),
            "s3://models/support-bot": bench.uri("guide/out"),
            "http://minio.minio:9000": bench.manifest("any")["spec"]["storage"]["endpoint"],
            "=KEY": f"={os.environ['AWS_ACCESS_KEY_ID']}",
            "=SECRET": f"={os.environ['AWS_SECRET_ACCESS_KEY']}",
        }
        config = folder / "kubeconfig"
        shutil.copy(os.environ["KUBECONFIG"], config)
        subprocess.run(
            ["kubectl", f"--kubeconfig={config}", "config", "set-context", "--current", "--namespace", bench.namespace],
            check=True, capture_output=True,
        )  # fmt: skip
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where the plugin is
        self.env = {**os.environ, "KUBECONFIG": str(config), "PATH": path}

    def filled(self, text: str) -> str:
        """With the reader's own places in those of the guide."""
        for known, own in self.places.items():
            text = text.replace(known, own)
        return text

    def run(self, command: str) -> str:
        """What it prints; it has to end well."""
        words = self.filled(command)
        if words.startswith("aws "):
            words += f" --endpoint-url {os.environ['AWS_ENDPOINT_URL']}"
        done = subprocess.run(
            ["bash", "-c", words], cwd=self.folder, env=self.env, check=False, capture_output=True, text=True
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def reader(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """With the AWS command line, which Debian has, and the manifest of the guide; a short training is enough here."""
    if shutil.which("aws") is None:
        subprocess.run(INSTALL_AWS, check=True, capture_output=True)
    one = Reader(bench, tmp_path_factory.mktemp("reader"))
    (one.folder / "rows.jsonl").write_text(jsonl(colour_rows(120)))
    text = yaml.safe_dump(next(job for where, job in jobs() if where.startswith("docs/first-job.md")))
    job: dict[str, Any] = yaml.safe_load(one.filled(text))
    job["spec"]["hyperparameters"] = {"maxSteps": 4, "maxLength": 128, "gradientAccumulationSteps": 1}
    job["spec"]["output"]["merge"] = "BF16"
    job["spec"]["resources"] = {"requests": {"cpu": "500m", "memory": "1Gi"}}  # other tests share the node's two cores
    (one.folder / "support-bot.yaml").write_text(yaml.safe_dump(job))
    return one


def test_the_operator_is_there_as_the_platform_guide_asks() -> None:
    command = "kubectl -n finetune-system rollout status deployment/finetune-operator"
    assert re.search(CLUSTER[command], kubectl(*command.split()[1:]).stdout)


@pytest.mark.timeout(3600)  # beside other trainings on two cores
def test_the_guide_leads_from_rows_to_a_result(reader: Reader) -> None:
    put, *others = (command for command in CLUSTER if command.startswith("aws "))
    assert "upload: " in reader.run(put)
    for command in SET_UP:
        if "s3-credentials" in command or "apply" in command:
            assert re.search(SET_UP[command], reader.run(command))
    reader.run(WAIT)
    for command in ON_A_JOB:
        if command != WAIT and "support-bot" in command and not any(word in command for word in NOT_HERE):
            expected = reader.filled(ON_A_JOB[command])
            assert re.search(expected, reader.run(command)), command
    for command in [*(command for command in CLUSTER if "support-bot" in command and "kubectl" in command), *others]:
        assert re.search(CLUSTER[command], reader.run(command)), command
    assert (reader.folder / "support-bot" / "report.html").stat().st_size
    assert (reader.folder / "adapter" / "adapter_model.safetensors").stat().st_size
    assert (reader.folder / "merged" / "model.safetensors").stat().st_size
