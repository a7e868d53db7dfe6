"""The documented commands of finetune-trainer, run in a folder with the files that they name, and the tiny model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from documented import TRAINER
from documents import ROOT, blocks, jobs
from tiny_model import make_tiny_model

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: own}
spec:
  objective: Chat
  model: {uri: s3://models/smollm2}
  tuning: {method: LoRA, lora: {rank: 2}}
  dataset: {train: {uri: s3://data/train.jsonl}}
  hyperparameters: {maxLength: 64, maxSteps: 2, gradientAccumulationSteps: 1}
  output: {uri: s3://models/own}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of all documents has in one folder."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "crds").symlink_to(ROOT / "crds")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "finetune-trainer").symlink_to(Path(sys.executable).parent / "finetune-trainer")
    rows = [
        {
            "question": f"Which port has gateway {number}?",
            "answer": f"Gateway {number} listens on port {8000 + number}.",
        }
        for number in range(60)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("rows.jsonl", "chats.jsonl", "train.jsonl", "data/rows.jsonl", "data/kubernetes-fields.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    for name in ("model", "smollm2", "data/model", HUB_NAME):
        make_tiny_model(folder / name)
    manifest = next(job for where, job in jobs() if where.startswith("docs/first-job.md"))
    short = {"hyperparameters": {"maxSteps": 2, "maxLength": 64, "gradientAccumulationSteps": 1}}
    (folder / "support-bot.yaml").write_text(yaml.safe_dump(manifest | {"spec": manifest["spec"] | short}))
    (folder / "job.yaml").write_text(JOB)
    return folder


def call(folder: Path, command: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return done.stdout


def test_the_checks_of_rows(folder: Path) -> None:
    for command, file in TRAINER.items():
        if " check-data " in command:
            call(folder, command)
            assert (folder / file).stat().st_size, command


def test_the_run_of_the_guide_its_proof_and_the_words_with_the_model(folder: Path) -> None:
    (run,) = (command for command in TRAINER if command.startswith("finetune-trainer run support-bot.yaml"))
    call(folder, run)
    assert (folder / TRAINER[run]).exists()
    shutil.move(folder / "out", folder / "support-bot")
    for command in TRAINER:
        if command.startswith("finetune-trainer verify"):
            call(folder, command.replace(command.split()[-1], "support-bot"))
    (script,) = (block.text for block in blocks("python") if block.document == "docs/first-job.md")
    (folder / "talk.py").write_text(script)
    call(folder, f"{sys.executable} talk.py")


def test_the_runs_of_the_other_documents(folder: Path) -> None:
    own = " --map s3://models/smollm2=smollm2 --map s3://data/train.jsonl=train.jsonl"
    demo, first, again = (command for command in TRAINER if " run " in command and "support-bot" not in command)
    for command in (first, again.replace("JOB.yaml", "job.yaml").replace("DIR", "out") + own):
        call(folder, command)
        assert (folder / TRAINER[first]).exists()
    shutil.rmtree(folder / "out")
    call(folder, demo)
    assert (folder / TRAINER[demo]).exists()
