"""Preflight of the rows in FOLDER/mixed.jsonl with the tiny model: check, count tokens, split, write and upload.

python tests/bench/preflight_rows.py FOLDER
"""

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from tiny_model import make_tiny_model

from finetune_api.handoff import JobConfig, Outcome, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore


def run(folder: Path) -> str:
    make_tiny_model(folder / "model")
    (folder / "workspace").mkdir()
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/model"},
            "dataset": {"train": {"uri": "s3://bucket/mixed.jsonl"}, "validationSplitPercent": 10},
            "hyperparameters": {"maxLength": 1024},
            "output": {"uri": "s3://bucket/output"},
        }
    )
    config = JobConfig(namespace="bench", name="job", uid="uid", config_sha256=config_sha256(spec), spec=spec)
    storage = LocalStore({"s3://bucket": folder})
    reporter = Reporter("uid", out=io.StringIO())
    report = preflight(RunContext(config, storage, folder / "workspace", reporter, StopFlag()))
    if report.outcome is not Outcome.VALIDATED:
        raise SystemExit(report.message)
    return report.message


if __name__ == "__main__":
    print(run(Path(sys.argv[1])))
