"""`kubectl finetune validate` and `finetune-trainer run` read the same file in the same way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import JobConfig
from finetune_trainer.config.manifest import read_manifests
from finetune_trainer.errors import TrainerError

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: job}
spec:
  objective: Chat
  model: {uri: s3://bucket/model}
  dataset: {train: {uri: s3://bucket/rows.jsonl}}
  output: {uri: s3://bucket/out}
"""


def read_with_trainer(path: Path) -> JobConfig | str:
    try:
        return read_manifests(path, lambda: "uid")[0]
    except TrainerError as error:
        return error.message


@pytest.mark.parametrize(
    ("extra", "field", "value"),
    [
        ("  hyperparameters: {seed: 0o10}\n", "hyperparameters.seed", 8),
        ("  hyperparameters: {seed: 010}\n", "hyperparameters.seed", 8),
        ("  hyperparameters: {seed: 1_000}\n", "hyperparameters.seed", 1000),
        ("  hyperparameters: {maxSteps: 1e1}\n", "hyperparameters.max_steps", 10),
        ("  hyperparameters: {maxSteps: 3.0}\n", "hyperparameters.max_steps", 3),
        ("  hyperparameters: {learningRate: 2e-4}\n", "hyperparameters.learning_rate", 2e-4),
        ("  suspend: y\n", "suspend", True),
        ("  suspend: null\n", "suspend", False),
        ("  backoffLimit: ~\n", "backoff_limit", 3),
        ('  hyperparameters: {packing: "Never"}\n', "hyperparameters.packing", "Never"),
        ("  lineage: {annotations: {day: 2026-03-01}}\n", "lineage.annotations", {"day": "2026-03-01"}),
        ("  lineage: {annotations: {at: 1:30}}\n", "lineage.annotations", {"at": "1:30"}),
    ],
)
def test_both_programs_accept_a_value_as_kubectl_reads_it(
    finetune: Callable[..., Any], tmp_path: Path, extra: str, field: str, value: object
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB + extra)
    done = finetune("validate", str(path))
    assert (done.code, done.out) == (0, "job is valid\n")
    found: Any = read_with_trainer(path)
    assert isinstance(found, JobConfig), found
    found = found.spec
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value


LOOP = "x: &x {more: *x}\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (JOB + "  backoffLimit: 1\n  backoffLimit: 2\n", "spec.backoffLimit is given twice"),
        (JOB + "  tuning: {lora: {rank: 8, rank: 16}}\n", "spec.tuning.lora.rank is given twice"),
        (JOB + "  hyperparameters: {packing: On}\n", "spec.hyperparameters.packing"),
        (JOB + "  hyperparameters: {seed: 09_a}\n", "spec.hyperparameters.seed"),
        (JOB + LOOP, "nested more than 100 deep"),
        (JOB + "  tuning: " + "[" * 300 + "]" * 300 + "\n", "nested more than 100 deep"),
        (JOB + BOMB, "too many aliases"),
        (JOB + "# " + "x" * 4 * 1024 * 1024 + "\n", "larger than 4 MiB"),
        (JOB + "? [a, b]\n: c\n", "a key must be a word"),
        (JOB.replace("spec:\n", "spec:\n\t"), "a tab indents this line"),
    ],
    ids=lambda text: text[-40:],
)
def test_both_programs_refuse_a_file_with_the_same_message(
    finetune: Callable[..., Any], tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    done = finetune("validate", str(path))
    assert done.code == 1
    assert message in done.out + done.err
    assert message in str(read_with_trainer(path))


def test_the_trainer_names_the_line_of_a_field_that_is_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB + "  backoffLimit: 1\n  backoffLimit: 2\n")
    assert read_with_trainer(path) == f"{path}: line 10: spec.backoffLimit is given twice"


def test_both_programs_ignore_a_byte_order_mark_and_refuse_other_encodings(
    finetune: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8-sig")
    assert finetune("validate", str(path)).code == 0
    assert isinstance(read_with_trainer(path), JobConfig)
    path.write_text(JOB, encoding="utf-16")
    assert "is not a text in UTF-8" in finetune("validate", str(path)).err
    assert "is not a text in UTF-8" in str(read_with_trainer(path))
