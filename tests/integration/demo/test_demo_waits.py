"""The demo's wait with a real API server and the real kubectl: the test writes the status as an operator would."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_wait import JobIsStill
from kubernetes import client, config

import demo
from finetune_api import names
from finetune_api.manifest.yaml_document import read_documents

STILL_SECONDS, CHANGE_SECONDS, STEPS = 10.0, 2.0, 6
"""The changes take longer than the time after which a job that is still is given up."""
WHERE = {"name": "demo", "namespace": "finetune-demo"}
ACCEPTED = {
    "type": "Accepted",
    "status": "True",
    "reason": "Accepted",
    "message": "The spec is allowed.",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


class Job:
    """The demo's FineTuneJob, whose status the test writes."""

    def __init__(self, api: client.ApiClient) -> None:
        self._custom = client.CustomObjectsApi(api)
        self._where = (names.GROUP, names.VERSION, WHERE["namespace"], names.PLURAL)
        client.CoreV1Api(api).create_namespace({"metadata": {"name": WHERE["namespace"]}})
        self._custom.create_namespaced_custom_object(
            *self._where, read_documents(demo.MANIFEST.read_text("utf-8"))[0].value
        )

    def write(self, **status: Any) -> None:
        body = {"status": {"conditions": [ACCEPTED], **status}}
        self._custom.patch_namespaced_custom_object_status(*self._where, WHERE["name"], body)


@pytest.fixture(scope="module")
def job(control_plane: Path, tool_path: str) -> Iterator[Job]:
    with pytest.MonkeyPatch.context() as patch, config.new_client_from_config(str(control_plane)) as api:
        patch.setenv("KUBECONFIG", str(control_plane))
        patch.setenv("PATH", f"{tool_path}:{os.environ['PATH']}")
        patch.setattr("job_wait.POLL_SECONDS", 0.2)
        yield Job(api)


def test_a_job_that_keeps_changing_is_followed_beyond_the_time_in_which_one_that_is_still_is_given_up(
    job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    def train() -> None:
        for step in range(1, STEPS + 1):
            over.wait(CHANGE_SECONDS)
            job.write(phase="Training", progress={"step": step, "totalSteps": STEPS, "stage": "Training"})
        over.wait(CHANGE_SECONDS)
        job.write(phase="Succeeded", reason="Succeeded", message="Published.")

    over = threading.Event()
    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        assert demo.watch(WHERE, STILL_SECONDS)["phase"] == "Succeeded"
    finally:
        over.set()
        trainer.join()
    assert STEPS * CHANGE_SECONDS > STILL_SECONDS
    assert "phase Succeeded (Succeeded), stage Training: Published." in capfd.readouterr().out


def test_a_job_that_is_still_is_given_up_with_its_conditions_and_events(
    job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    job.write(phase="Starting", reason="PodsStarting", message="The pod is being created.")
    with pytest.raises(JobIsStill, match="while waiting for a running pod of the trainer") as caught:
        demo.watch(WHERE, STILL_SECONDS)
    demo.explain(WHERE, caught.value)
    shown = capfd.readouterr().out
    assert "Accepted=True Accepted: The spec is allowed." in shown
    assert "$ kubectl events --for finetunejob/demo -n finetune-demo" in shown
