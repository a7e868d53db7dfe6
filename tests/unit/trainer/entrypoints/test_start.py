"""What the process loads on its way to each command: only the libraries that the command uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "safetensors.torch",
    "liger_kernel", "triton",
)  # fmt: skip
ANALYSIS = ("pandas", "matplotlib", "scipy", "sklearn", "sympy", "PIL", "torchvision")
SERVICES = ("wandb", "tensorboardX", "mlflow", "huggingface_hub")
COMMANDS = ("chat", "check_data", "estimate", "merge", "run", "verify")
LOOK = """
import sys
heavy = set(sys.argv.pop().split(","))
sys.argv[0] = "finetune-trainer"
from finetune_trainer.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", sorted(heavy & sys.modules.keys()))
"""
LOAD = "import sys, {modules}; print('loaded:', sorted(set(sys.argv[1].split(',')) & sys.modules.keys()))"


def loaded(program: str, *arguments: object, heavy: tuple[str, ...]) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments), ",".join(heavy)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("command", [(), ("preflight",), ("train",), ("run",), ("check-data",)])
def test_the_help_loads_no_store_and_no_library_of_rows_or_training(command: tuple[str, ...]) -> None:
    heavy = (*TRAINING, *ANALYSIS, *SERVICES, "numpy", "pyarrow", "boto3", "tokenizers")
    assert loaded(LOOK, *command, "--help", heavy=heavy) == "loaded: []"


def test_the_check_of_rows_loads_no_store_and_no_library_of_training(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    heavy = (*TRAINING, *ANALYSIS, *SERVICES, "numpy", "pyarrow", "boto3")
    assert loaded(LOOK, "check-data", tmp_path / "rows.jsonl", "--out", tmp_path / "out", heavy=heavy) == "loaded: []"


@pytest.mark.parametrize(
    ("stage", "allowed"),
    [
        ("finetune_trainer.entrypoints.pod, finetune_trainer.pipeline.preflight, finetune_trainer.storage.s3", set()),
        ("finetune_trainer.entrypoints.pod, finetune_trainer.pipeline.inputs, finetune_trainer.storage.s3", set()),
        (", ".join(f"finetune_trainer.commands.{name}" for name in COMMANDS), set()),
        ("finetune_trainer.storage.hub.storage", {"huggingface_hub"}),
    ],
    ids=["preflight", "inputs of a training", "commands", "hub"],
)
def test_what_needs_no_gpu_loads_no_library_of_training(stage: str, allowed: set[str]) -> None:
    heavy = tuple(name for name in (*TRAINING, *ANALYSIS, *SERVICES) if name not in allowed)
    assert loaded(LOAD.format(modules=stage), heavy=heavy) == "loaded: []"


def test_the_process_that_starts_several_others_loads_none_of_their_libraries() -> None:
    heavy = (*TRAINING, *ANALYSIS, *SERVICES, "numpy", "pyarrow", "boto3", "tokenizers")
    assert loaded(LOAD.format(modules="finetune_trainer.entrypoints.launcher"), heavy=heavy) == "loaded: []"
