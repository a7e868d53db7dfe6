"""The files of weights that `checkpoint.keep` needs: which stay, and how a checkpoint carries them to the next run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.training.kept_weights import KeptWeights

LOSSES = [3.0, 1.0, 2.0, 1.5, 4.0]


def write(step: int) -> Callable[[Path], None]:
    def write_to(path: Path) -> None:
        path.write_text(f"weights of {step}")

    return write_to


def train(root: Path, count: int, losses: Sequence[float] = LOSSES) -> tuple[KeptWeights, History]:
    """Evaluate after every step."""
    kept, history = KeptWeights(root / "kept", count), History(root / "metrics.jsonl")
    for step, loss in enumerate(losses, 1):
        history.add_evaluation(step, Measured(loss, 10))
        kept.add(step, history, write(step))
    return kept, history


@pytest.mark.parametrize(
    ("count", "files", "published"), [(0, [], []), (1, [2, 4], [4]), (2, [2, 3, 4], [4, 3]), (9, [1, 2, 3, 4, 5], None)]
)
def test_the_best_stay_with_one_more_than_is_published_in_addition_to_the_result(
    tmp_path: Path, count: int, files: list[int], published: list[int] | None
) -> None:
    kept, history = train(tmp_path, count)
    assert kept.steps() == files
    assert kept.choose(2, history) == ([4, 3, 1, 5] if published is None else published)
    assert [kept.path(step).read_text() for step in files] == [f"weights of {step}" for step in files]


def test_without_held_out_rows_the_last_are_published_also_if_the_result_is_a_step_that_was_not_due(
    tmp_path: Path,
) -> None:
    kept, history = KeptWeights(tmp_path / "kept", 2, every=5), History(tmp_path / "metrics.jsonl")
    for step in (5, 10, 15, 20):
        kept.add(step, history, write(step))
    assert kept.steps() == [10, 15, 20]
    assert kept.choose(20, history) == [15, 10]
    assert kept.choose(22, history) == [20, 15]


def test_a_checkpoint_carries_the_weights_that_it_does_not_have_under_another_name(tmp_path: Path) -> None:
    kept, history = train(tmp_path, 2)
    checkpoint, best = tmp_path / "checkpoint", tmp_path / "best"
    checkpoint.mkdir()
    (checkpoint / "weights.safetensors").write_text("weights of 4")
    best.write_text("weights of 2")
    kept.link_into(checkpoint, (2, 4))
    assert [path.name for path in (checkpoint / "kept").iterdir()] == ["step-000003.safetensors"]

    (tmp_path / "next" / "kept").mkdir(parents=True)
    (tmp_path / "next" / "kept" / "step-000009.safetensors").write_text("of a try that ran out of memory")
    resumed = KeptWeights(tmp_path / "next" / "kept", 2)
    resumed.restore(checkpoint, kept.steps(), {2: best})
    assert resumed.steps() == [2, 3, 4]
    assert [resumed.path(step).read_text() for step in (2, 3, 4)] == ["weights of 2", "weights of 3", "weights of 4"]
    history.add_evaluation(6, Measured(1.2, 10))
    resumed.add(6, history, write(6))
    assert resumed.steps() == [2, 4, 6]
    resumed.restore(None, [], {})
    assert resumed.steps() == []


def test_a_job_that_keeps_none_writes_nothing(tmp_path: Path) -> None:
    kept, _ = train(tmp_path, 0)
    kept.link_into(tmp_path, (None, 5))
    kept.restore(tmp_path, [], {})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
