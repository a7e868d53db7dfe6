"""Preflight needs no package beyond requirements/preflight.txt, which is all that its own image has."""

import json
from pathlib import Path

import pytest
from slim import REQUIREMENTS, refused_modules, run_slim
from tiny_model import make_tiny_model

RUN = """
from pathlib import Path
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

folder, document = ARGUMENTS
root = Path(folder)
store = LocalStore({f"s3://bucket/{name}": root / name for name in ("model", "data", "out")})
config = JobConfig.model_validate_json(document)
report = preflight(RunContext(config, store, root / "workspace", Reporter(config.uid), StopFlag()))
print(json.dumps([report.outcome, report.dataset.accepted_rows]))
"""


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


@pytest.mark.parametrize("kind", ["jsonl", pytest.param("parquet", marks=pytest.mark.nightly)])
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
    assert {"torch", "transformers", "datasets", "safetensors"} <= set(refused_modules("preflight"))
    done = run_slim("preflight", RUN, str(tmp_path), config.model_dump_json(by_alias=True))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["Validated", 20]


@pytest.mark.parametrize("part", ["preflight", "check"])
def test_a_larger_part_has_every_package_of_a_smaller_one_in_the_same_version(part: str) -> None:
    larger = {"preflight": "trainer", "check": "dev"}[part]
    known = (REQUIREMENTS / f"{larger}.txt").read_text(encoding="utf-8").splitlines()
    own = (REQUIREMENTS / f"{part}.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in own if "==" in line and line not in known] == []
