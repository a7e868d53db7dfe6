"""The documented commands of finetune-trainer, run in a folder with the files that they name, and the tiny model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from documented import PRINTED, TRAINER
from documents import ROOT, blocks, jobs
from tiny_model import make_tiny_model

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MAPS = f" --map hf://{HUB_NAME}=model --map s3://data/support=data"


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
    for name in ("support-bot.yaml", "job.yaml"):
        (folder / name).write_text(yaml.safe_dump(manifest | {"spec": manifest["spec"] | short}))
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


def test_the_estimates_of_memory(folder: Path) -> None:
    for command, seen in PRINTED.items():
        if " estimate " in command:
            shown = call(folder, command.replace("hf://", "").replace("MODEL", "model"))
            assert re.search(seen, shown, re.MULTILINE), command


@pytest.mark.nightly
def test_the_run_of_the_guide_its_verification_and_the_answer_of_the_model(folder: Path) -> None:
    guide, demo, *again = (command for command in TRAINER if " run " in command)
    call(folder, guide)
    assert (folder / TRAINER[guide]).exists()
    for command in again:  # each finds that result, and trains nothing
        own = re.sub(r" --map \S+", "", command)  # the maps of a document are of another manifest
        call(folder, own.replace("JOB.yaml", "job.yaml").replace("DIR", "out") + MAPS)
        assert (folder / TRAINER[command]).exists()
    shutil.move(folder / "out", folder / "support-bot")
    for command in TRAINER:
        if " verify " in command:
            call(folder, command.replace(command.split()[-1], "support-bot"))
    for command, seen in PRINTED.items():
        if " chat " in command:
            asked = command.replace(" DIR", " support-bot --prompt Hello")
            assert re.search(seen, call(folder, f"{asked} --base model"), re.MULTILINE), command
        if " merge " in command:
            words = {"hf://" + HUB_NAME: HUB_NAME, "BASE": "model", "ADAPTER": "support-bot", "OUTPUT": "again"}
            asked = " ".join(words.get(word, word) for word in command.split())
            assert re.search(seen, call(folder, asked), re.MULTILINE), command
    (script,) = (block.text for block in blocks("python") if block.document == "docs/first-job.md")
    (folder / "talk.py").write_text(script)
    call(folder, f"{sys.executable} talk.py")
    call(folder, demo)
    assert (folder / TRAINER[demo]).exists()
