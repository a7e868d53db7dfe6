"""What kubectl prints when the API server refuses a change of a job that exists: docs/first-job.md describes it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import names

JOB: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "edited", "namespace": "default"},
    "spec": {
        "objective": "Chat",
        "model": {"uri": "s3://models/base"},
        "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
        "output": {"uri": "s3://models/out"},
    },
}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"objective": "DPO"},
            "objective is fixed when the job is created: create a new FineTuneJob with another name",
        ),
        ({"resorces": {}}, 'unknown field "spec.resorces"'),
        ({"backoffLimit": -1}, "spec.backoffLimit in body should be greater than or equal to 0"),
    ],
)
def test_the_reason_is_the_last_line_after_the_patch(
    control_plane: Path, tool_path: str, changed: dict[str, Any], sentence: str
) -> None:
    def apply(job: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "--kubeconfig", str(control_plane), "apply", "-f", "-"]
        env, text = os.environ | {"PATH": tool_path}, yaml.safe_dump(job)
        return subprocess.run(command, check=False, capture_output=True, text=True, input=text, env=env)

    assert apply(JOB).returncode == 0
    refused = apply(JOB | {"spec": JOB["spec"] | changed})
    assert refused.returncode == 1
    assert sentence in refused.stderr.strip().splitlines()[-1]
