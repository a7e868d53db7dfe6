"""The extra `check` is enough to check rows and manifests and to estimate memory; nothing of it trains."""

import json
from pathlib import Path

import pytest
from slim import refused_modules, run_slim
from tiny_model import make_tiny_model

TRAINER = """
sys.argv = ["finetune-trainer", *ARGUMENTS]
from finetune_trainer.__main__ import main
main()
"""
PLUGIN = """
sys.argv = ["kubectl-finetune", *ARGUMENTS]
from kubectl_finetune.__main__ import main
main()
"""
JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: one}
spec:
  objective: Chat
  model: {uri: s3://bucket/model}
  dataset: {train: {uri: s3://bucket/rows.jsonl}}
  output: {uri: s3://bucket/out}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, rows and a manifest."""
    make_tiny_model(tmp_path / "model")
    rows = [{"instruction": f"What is {n} plus one?", "output": str(n + 1)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def test_the_extra_has_neither_torch_nor_what_is_large() -> None:
    large = {"torch", "transformers", "datasets", "pyarrow", "numpy", "boto3", "botocore", "kubernetes", "matplotlib"}
    assert large <= set(refused_modules("check"))


def test_rows_are_checked_with_the_models_own_template(folder: Path) -> None:
    done = run_slim("check", TRAINER, "check-data", "rows.jsonl", "--out", "checked", "--model", "model", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len((folder / "checked" / "accepted.jsonl").read_text().splitlines()) == 20


def test_memory_is_estimated(folder: Path) -> None:
    done = run_slim("check", TRAINER, "estimate", "model", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [one["method"] for one in json.loads(done.stdout)["methods"]] == ["QLoRA", "LoRA", "Full"]


def test_a_manifest_is_validated(folder: Path) -> None:
    done = run_slim("check", PLUGIN, "validate", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "one is valid" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (("check-data", "rows.parquet", "--out", "checked"), "pyarrow", "preflight"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                (("estimate", "s3://bucket/model"), "boto3", "preflight"),
                (("verify", "s3://bucket/out"), "numpy", "preflight"),
            )
        ),
    ],
)
def test_what_needs_more_names_the_extra_that_has_it(
    folder: Path, arguments: tuple[str, ...], missing: str, extra: str
) -> None:
    done = run_slim("check", TRAINER, *arguments, cwd=folder)
    assert done.returncode == 64
    assert f"needs the Python package {missing}" in done.stderr
    assert f"clone of the operator's repository: pip install '.[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
