"""The pictures of the documentation, from a real job: operator, preflight and trainer run as processes, with a real API
server, S3 server and Prometheus. The test does only what a kubelet does.

PICTURES names the folder of the pictures, and PICTURES_MODEL what is trained; `make pictures` sets both.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import dashboards
import picture_record
import pytest
import terminal_picture
import yaml
from browser import chromium
from data import write_model, write_rows
from environment import STATE
from PIL import Image
from pod_processes import PodProcess
from prometheus import Prometheus, running
from tiny_model import make_tiny_model
from waiting import wait_until

from finetune_api.manifest.yaml_document import read_documents

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[3]
CLUSTER = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py")]
NAMESPACE, BUCKET = "finetune-demo", "finetune-demo"
MANIFEST = (ROOT / "crds" / "examples" / "demo.yaml").read_text(encoding="utf-8")
SPEC: dict[str, Any] = read_documents(MANIFEST)[0].value["spec"]
JOBS: dict[str, dict[str, Any]] = {
    "demo": {},
    "tiny": {
        "model": {"uri": f"s3://{BUCKET}/models/tiny-random-llama"},
        "tuning": {"method": "LoRA"},
        "hyperparameters": SPEC["hyperparameters"] | {"maxSteps": 300, "maxLength": 512},
        "evaluation": SPEC["evaluation"] | {"steps": 50},
    },
}
"""What a job changes in the demo's manifest. The tiny model is random, and trains within minutes on a busy machine."""
MODEL = os.environ.get("PICTURES_MODEL", "demo")
TRAINED = SPEC | JOBS[MODEL]
STEPS = int(TRAINED["hyperparameters"]["maxSteps"])
STEP = STEPS * 2 // 3
"""When the pictures of the running job are taken."""
ABOUT = {"demo": "SmolLM2-135M-Instruct", "tiny": "a random Llama of two layers (tests/fixtures/tiny_model.py)"}
MINUTES = 60
COLOURS = 200
WITH_MISTAKES = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: support-bot
spec:
  objective: chat
  model: {uri: "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}
  dataset:
    train: {uri: s3://data/support/}
    validationSplitPercent: 10
  hyperparameters:
    learning_rate: 1e-4
    micro_batch_size: 4
  output: {uri: s3://models/support-bot}
  resources:
    requests: {cpu: "4", memory: 24GB}
"""


@dataclass
class Pictures:
    """The folder of the pictures, and a terminal with kubectl and the plugin."""

    folder: Path
    environment: dict[str, str]

    def type(self, typed: str) -> tuple[int, str]:
        """Run a command as a user types it."""
        return terminal_picture.run_on_terminal(typed.split(), self.environment, self.folder)

    def draw(self, name: str, typed: str, output: str) -> None:
        terminal_picture.draw(self.folder / f"{name}.svg", typed, output)


@pytest.fixture
def pictures(control_plane: Path, tool_path: str, tmp_path: Path) -> Pictures:
    folder = Path(os.environ.get("PICTURES", tmp_path / "pictures"))
    folder.mkdir(exist_ok=True)
    own = Path(sys.executable).parent  # where the plugin is
    return Pictures(folder, {"KUBECONFIG": str(control_plane), "PATH": f"{own}:{tool_path}"})


@pytest.mark.parametrize("world", [NAMESPACE], indirect=True)
@pytest.mark.timeout(MINUTES * 60)
def test_a_real_training_gives_every_picture(
    world: Any, access: Any, operator_with: Callable[..., Any], pictures: Pictures, tmp_path: Path
) -> None:
    take_validate(pictures)
    with ExitStack() as stack:
        endpoint = stack.enter_context(storage(tmp_path / "s3"))
        put_model_and_rows(STATE / "pictures")
        settings = {"FINETUNE_SIMULATED_GPUS": "true", "FINETUNE_PROGRESS_INTERVAL_SECONDS": "1"}
        operator = operator_with(access.kubeconfig, **settings).start()
        fail_and_wait(world, endpoint, tmp_path)
        world.create("demo", **TRAINED | {"storage": {"endpoint": endpoint}})
        assert PodProcess(world, world.pod_of("demo-preflight"), tmp_path / "preflight").run() == 0
        pod = world.pod_of("demo-1")
        trainer = PodProcess(world, pod, tmp_path / "trainer")
        server = stack.enter_context(running(scrapes(operator, trainer, pod), tmp_path))
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(world.delete, "demo")  # also ends the commands that follow it
        typed = f"kubectl finetune progress demo -n {NAMESPACE}"
        followed = pool.submit(pictures.type, typed)
        taken = pool.submit(take_while_training, world, server, pictures)
        assert trainer.run() == 0, (tmp_path / "trainer" / "log").read_text()
        taken.result()
        world.wait_phase("Succeeded", "demo", 60)
        status, output = followed.result()
        assert status == 0, output
        pictures.draw("progress", typed, frame_of_step(output))
        take_report(pictures.folder, tmp_path)
        device = json.loads(read("lineage.json"))["trainer"]["device"]
    made = [*pictures.folder.glob("*.png"), *pictures.folder.glob("*.svg")]
    method = TRAINED.get("tuning", {}).get("method", "QLoRA")
    what = f"{ABOUT[MODEL]}, {STEPS} steps of {method}, rows of crds/examples/demo.yaml"
    picture_record.write(pictures.folder, made, command="make pictures", job=what, device=device)


@contextmanager
def storage(folder: Path) -> Iterator[str]:
    """A real S3 server, whose keys are in the environment of all processes; its endpoint."""
    up = subprocess.run([*CLUSTER, "s3", "up", "--dir", str(folder)], check=True, capture_output=True, text=True)
    endpoint = up.stdout.strip().splitlines()[-1]
    keys = {"AWS_ACCESS_KEY_ID": "finetune-demo", "AWS_SECRET_ACCESS_KEY": "finetune-demo-secret"}
    keys |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        try:
            yield endpoint
        finally:
            subprocess.run([*CLUSTER, "s3", "down", "--dir", str(folder)], check=True, capture_output=True)


def put_model_and_rows(folder: Path) -> None:
    """What the demo's manifest names, in the bucket; the model is made once."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "kubernetes-fields.jsonl")
    make_model = write_model if MODEL == "demo" else make_tiny_model
    make_model(folder / MODEL)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.upload_file(str(folder / "kubernetes-fields.jsonl"), BUCKET, "data/kubernetes-fields.jsonl")
    prefix = TRAINED["model"]["uri"].removeprefix(f"s3://{BUCKET}/")
    for path in (folder / MODEL).iterdir():
        s3.upload_file(str(path), BUCKET, f"{prefix}/{path.name}")


def read(name: str) -> bytes:
    """A file of the published result."""
    return bytes(boto3.client("s3").get_object(Bucket=BUCKET, Key=f"jobs/demo/{name}")["Body"].read())


def fail_and_wait(world: Any, endpoint: str, folder: Path) -> None:
    """Two more jobs: one whose rows do not exist, and one that waits for the demo's."""
    own: dict[str, Any] = TRAINED | {"storage": {"endpoint": endpoint}}
    no_rows = {"train": {"uri": f"s3://{BUCKET}/data/no-such-rows.jsonl"}, "validationSplitPercent": 5}
    world.create("no-rows", **own | {"dataset": no_rows, "output": {"uri": f"s3://{BUCKET}/jobs/no-rows"}})
    assert PodProcess(world, world.pod_of("no-rows-preflight"), folder / "no-rows").run() != 0
    world.wait_phase("Failed", "no-rows", 60)
    parent = {"lineage": {"parentRef": {"name": "demo"}}, "output": {"uri": f"s3://{BUCKET}/jobs/next"}}
    world.create("next", **own | parent)


def scrapes(operator: Any, trainer: PodProcess, pod: Any) -> str:
    """The scrape jobs of the documentation, for the operator and the trainer."""
    meta = {"namespace": NAMESPACE, "name": pod.metadata.name, "labels": pod.metadata.labels}
    found = {"metadata": meta | {"annotations": pod.metadata.annotations}}
    labels = {"app.kubernetes.io/name": "finetune-operator", "app.kubernetes.io/component": "operator"}
    itself = {"metadata": {"namespace": "finetune-system", "name": "finetune-operator", "labels": labels}}
    jobs = [
        dashboards.scrape_job(name, f"127.0.0.1:{port}", dashboards.discovered(one, kind))
        for name, port, one, kind in (
            ("finetune-operator", operator.port, itself, "metrics"),
            ("finetune-trainers", trainer.port, found, "progress"),
        )
    ]
    return yaml.safe_dump({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": jobs})


def take_while_training(world: Any, server: Prometheus, pictures: Pictures) -> None:
    """The dashboards and the table of jobs, when most of the steps are done."""
    wait_until(
        lambda: (world.status("demo").get("progress") or {}).get("step", 0) >= STEP, "a late step", seconds=MINUTES * 60
    )
    typed = f"kubectl get finetunejobs -n {NAMESPACE}"
    status, output = pictures.type(typed)
    assert status == 0
    pictures.draw("jobs", typed, output)
    values = {
        "__rate_interval": "15s",
        "__range": "15m",
        "namespace": NAMESPACE,
        "name": "demo",
        "job": ".+",
        "instance": ".+",
    }
    from dashboard_pictures import Source, draw  # here: every process of the tests collects this file

    for name in dashboards.NAMES:
        path = pictures.folder / f"dashboard-{name}.png"
        draw(name, Source(server, values), path)
        assert 20_000 < path.stat().st_size < 150_000


def frame_of_step(output: str) -> str:
    """The first picture of the progress from that step on."""
    found = {frame: re.search(r"step (\d+)/\d+", frame) for frame in terminal_picture.frames(output)}
    return next(frame for frame, step in found.items() if step and int(step[1]) >= STEP)


def take_validate(pictures: Pictures) -> None:
    """A manifest with mistakes."""
    (pictures.folder / "job.yaml").write_text(WITH_MISTAKES)
    typed = "kubectl finetune validate job.yaml"
    status, output = pictures.type(typed)
    assert status == 1
    assert output.count("fix: ") >= 3
    pictures.draw("validate", typed, output)
    (pictures.folder / "job.yaml").unlink()


def take_report(folder: Path, scratch: Path) -> None:
    """The top of the published page, in a browser."""
    (scratch / "report.html").write_bytes(read("report.html"))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 1840}, color_scheme="light")
        page.goto((scratch / "report.html").as_uri())
        page.screenshot(path=folder / "report.png")
    with Image.open(folder / "report.png") as picture:
        picture.convert("RGB").quantize(COLOURS).save(folder / "report.png", optimize=True)
