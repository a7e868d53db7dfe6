"""What a training loads: not the libraries that another process or the report needs."""

import os
import subprocess
import sys

from training_world import MakeBench

UNTIL_THE_FIRST_STEP = """
import logging, sys
from pathlib import Path
from training_bench import Bench, make_spec
from finetune_trainer.training.callbacks import ReportProgress

logging.basicConfig(level=logging.INFO)
root, model = map(Path, sys.argv[1:])
real = ReportProgress.on_step_end

def on_step_end(self, *arguments, **options):
    real(self, *arguments, **options)
    print("loaded:", sorted(name for name in UNUSED if sys.modules.get(name)))
    raise SystemExit(0)

UNUSED = {"wandb", "tensorboardX", "matplotlib", "markdown_it", "scipy", "sklearn", "torchvision", "tensorboard"}
ReportProgress.on_step_end = on_step_end
Bench(root, model, make_spec()).run()
"""


def test_until_the_first_step_no_library_is_loaded_that_only_the_report_or_another_process_needs(
    make_bench: MakeBench,
) -> None:
    bench = make_bench("LoRA")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", UNTIL_THE_FIRST_STEP, str(bench.root), str(bench.model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "the first step ended after" in done.stderr
