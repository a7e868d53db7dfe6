"""What the process loads on its way to each command: only the libraries that the command uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

TRAINING = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "safetensors.torch",
    "liger_kernel", "triton",
)  # fmt: skip
ANALYSIS = ("pandas", "matplotlib", "scipy", "sklearn", "sympy", "PIL", "torchvision")
SERVICES = ("wandb", "tensorboardX", "mlflow", "huggingface_hub")
COMMANDS = ("chat", "check_data", "estimate", "merge", "run", "verify")
HELP = ([], ["preflight"], ["train"], ["run"], ["check-data"])
LOOK = """
import json, sys

import pytest
from finetune_trainer.__main__ import main
commands, heavy = json.loads(sys.argv[1])
found = {}
for command in commands:
    sys.argv = ["finetune-trainer", *command]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    found[" ".join(command)] = sorted(sys.modules.keys() & heavy)
print(json.dumps(found))
"""
LOAD = """
import importlib, json, sys
stages, heavy = json.loads(sys.argv[1])
found = {}
for stage, modules in stages.items():
    for name in modules:
        importlib.import_module("finetune_trainer." + name)
    found[stage] = sorted(sys.modules.keys() & heavy)
print(json.dumps(found))
"""


def loaded(program: str, steps: object, heavy: tuple[str, ...]) -> dict[str, list[str]]:
    """Return which heavy modules a process has loaded after each of its steps; it takes one after another."""
    command = [sys.executable, "-c", program, json.dumps([steps, heavy])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_help_loads_no_store_and_no_library_of_rows_or_training() -> None:
    heavy = (*TRAINING, *ANALYSIS, *SERVICES, "numpy", "pyarrow", "boto3", "tokenizers")
    commands = [[*command, "--help"] for command in HELP]
    assert loaded(LOOK, commands, heavy) == {" ".join(command): [] for command in commands}


def test_the_check_of_rows_loads_no_store_and_no_library_of_training(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    heavy = (*TRAINING, *ANALYSIS, *SERVICES, "numpy", "pyarrow", "boto3")
    command = ["check-data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    assert loaded(LOOK, [command], heavy) == {" ".join(command): []}


def test_what_needs_no_gpu_loads_no_library_of_training() -> None:
    stages = {
        "preflight": ["entrypoints.pod", "pipeline.preflight", "storage.s3"],
        "inputs of a training": ["pipeline.inputs"],
        "commands": [f"commands.{name}" for name in COMMANDS],
        "hub": ["storage.hub.storage"],
    }
    expected = {stage: ["huggingface_hub"] if stage == "hub" else [] for stage in stages}
    assert loaded(LOAD, stages, (*TRAINING, *ANALYSIS, *SERVICES)) == expected


def test_the_process_that_starts_several_others_loads_none_of_their_libraries() -> None:
    heavy = (*TRAINING, *ANALYSIS, *SERVICES, "numpy", "pyarrow", "boto3", "tokenizers")
    assert loaded(LOAD, {"launcher": ["entrypoints.launcher"]}, heavy) == {"launcher": []}
