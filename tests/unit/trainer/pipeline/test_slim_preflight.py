"""Preflight needs no package beyond requirements/preflight.txt, which is all that its own image has."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from tiny_model import make_tiny_model

ROOT = Path(__file__).parents[4]
LOCKED = (ROOT / "requirements" / "preflight.txt").read_text(encoding="utf-8")
PINNED = {found.lower() for found in re.findall(r"^([A-Za-z0-9_.-]+)==", LOCKED, re.MULTILINE)}
OWN = {"finetune_api", "finetune_trainer"}
RUN = """
import importlib.abc, json, sys
from pathlib import Path

class Refusal(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"the preflight image has no {name}")

REFUSED, folder, rows, document = json.loads(sys.argv[1])
sys.meta_path.insert(0, Refusal())
from finetune_api.handoff import JobConfig
from finetune_trainer import cli
from finetune_trainer.entrypoints import pod
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage import s3, s3_client
from finetune_trainer.storage.hub import storage as hub_storage
from finetune_trainer.storage.local import LocalStore

root = Path(folder)
store = LocalStore({f"s3://bucket/{name}": root / name for name in ("model", "data", "out")})
config = JobConfig.model_validate(document)
report = preflight(RunContext(config, store, root / "workspace", Reporter(config.uid), StopFlag()))
print(json.dumps([report.outcome, report.dataset.accepted]))
"""


def refused() -> list[str]:
    """The top-level modules of every installed distribution that the preflight image lacks."""
    found = packages_distributions()
    return sorted(
        name
        for name, owners in found.items()
        if name not in OWN and not any(re.sub(r"[-_.]+", "-", owner).lower() in PINNED for owner in owners)
    )


def write_rows(folder: Path, kind: str) -> str:
    rows = [{"instruction": f"What is {n} plus one?", "output": str(n + 1)} for n in range(20)]
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.name


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_preflight_passes_without_any_package_that_its_image_lacks(tmp_path: Path, kind: str) -> None:
    from finetune_api.handoff import JobConfig, config_sha256
    from finetune_api.spec import FineTuneJobSpec

    for name in ("data", "workspace", "out"):
        (tmp_path / name).mkdir()
    make_tiny_model(tmp_path / "model")
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/model"},
            "dataset": {"train": {"uri": f"s3://bucket/data/{write_rows(tmp_path / 'data', kind)}"}},
            "hyperparameters": {"maxLength": 64},
            "output": {"uri": "s3://bucket/out"},
        }
    )
    config = JobConfig(namespace="team", name="job", uid="uid-1", config_sha256=config_sha256(spec), spec=spec)
    names = refused()
    assert {"torch", "transformers", "datasets", "safetensors"} <= set(names)
    asked = json.dumps([names, str(tmp_path), kind, config.model_dump(mode="json", by_alias=True)])
    done = subprocess.run([sys.executable, "-c", RUN, asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["Validated", 20]


def test_the_trainer_has_every_package_of_preflight_in_the_same_version() -> None:
    trainer = (ROOT / "requirements" / "trainer.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in LOCKED.splitlines() if "==" in line and line not in trainer] == []
