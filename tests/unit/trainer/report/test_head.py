from dataclasses import replace
from pathlib import Path

import pytest
from report_record import make_run, measure

from finetune_api.evaluation import EvaluationStatus
from finetune_trainer.evaluation.ability import Ability
from finetune_trainer.evaluation.held_out_answers import HeldOutAnswers
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.evaluation.run_record import Served
from finetune_trainer.report.head import build_head


def test_a_lower_loss_is_good_news_with_its_interval(tmp_path: Path) -> None:
    head = build_head(make_run(tmp_path))
    assert head.mood == "good"
    assert head.verdict.startswith("Better than the base model: held-out loss 3.21 → 1.53, -52 % (95 % interval ")


@pytest.mark.parametrize(
    ("loss", "mood", "start"),
    [(3.6, "bad", "Worse than the base model"), (3.211, "plain", "No measurable difference from the base model")],
)
def test_a_loss_that_is_not_measurably_lower_is_not_good(tmp_path: Path, loss: float, mood: str, start: str) -> None:
    head = build_head(replace(make_run(tmp_path), final=measure(loss, 0.03)))
    assert head.mood == mood
    assert head.verdict.startswith(start)


def test_what_was_not_measured_is_not_judged(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert build_head(replace(run, baseline=None)).verdict == (
        "Not evaluated: the base model was not measured (evaluation.baseline is false)"
    )
    unknown = build_head(replace(run, baseline=None, final=None, best_step=None))
    assert (unknown.verdict, unknown.mood) == ("Not evaluated: no rows were held out", "plain")
    assert not {"Evaluation loss", "Perplexity", "Change"} & {tile.label for tile in unknown.tiles}


def test_figures_of_the_4_bit_base_give_no_verdict_on_what_is_served(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    head = build_head(replace(run, served=Served(obstacle="the base in 16 bits needs 140.0 GiB")))
    assert (head.verdict, head.mood) == ("Not evaluated: the base in 16 bits needs 140.0 GiB", "plain")
    served = build_head(replace(run, served=Served(measure(3.0, 0.03), measure(3.2, 0.03))))
    assert served.mood == "bad"
    assert served.verdict.startswith("Worse than the base model: held-out loss 3 → 3.2")


def test_the_most_important_figures_are_in_the_tiles(tmp_path: Path) -> None:
    tiles = {tile.label: (tile.value, tile.note) for tile in build_head(make_run(tmp_path)).tiles}
    assert tiles["Evaluation loss"] == ("1.528", "base model 3.212")
    assert tiles["Published step"] == ("1000", "stopped early")
    assert tiles["Time"] == ("2 h 34 min", "all runs together")
    assert tiles["Peak memory"] == ("31.0 GiB", "of 80.0 GiB")


def test_shares_before_and_after_have_the_interval_of_their_difference(tmp_path: Path) -> None:
    """Ten of a hundred answers became right and eight wrong, which chance alone makes."""
    counted = Ability([True] * 70 + [False] * 30, [False] * 8 + [True] * 72 + [False] * 20)
    pairs = Measured(0.5, 20, reward_accuracy=0.6)
    run = replace(make_run(tmp_path), held_out=HeldOutAnswers(counted), ability=counted, final=pairs, compared_rows=20)
    tiles = {tile.label: (tile.value, tile.note) for tile in build_head(run).tiles}
    wanted = "base model 70.0 %; difference -6.4 to +10.3 points (95 % interval)"
    assert tiles["General ability"] == ("72.0 %", wanted)
    assert tiles["Correct answers"][1].startswith("base model 70.0 %; difference -")
    assert tiles["Preferred answer wins"] == ("60.0 %", "± 21 points")


def test_a_gate_that_is_not_met_takes_precedence_over_the_losses(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    failed = build_head(replace(run, evaluation=EvaluationStatus(gate="NotMet", merge_gate="Passed")))
    assert (failed.verdict, failed.mood) == ("The gate is not met: do not publish it", "bad")
    withheld = build_head(replace(run, evaluation=EvaluationStatus(gate="Passed", merge_gate="NotRun")))
    assert (withheld.verdict, withheld.mood) == ("The full model is withheld: see below", "bad")


@pytest.mark.parametrize(
    ("merge", "gguf", "told"),
    [
        ("Passed", "NotMet", "A GGUF file is withheld: see below"),
        ("Passed", "NotRun", "There are no GGUF files: see below"),
        ("NotMet", "NotRun", "The full model is withheld: see below"),
    ],
)
def test_the_head_names_what_is_withheld(tmp_path: Path, merge: str, gguf: str, told: str) -> None:
    evaluation = EvaluationStatus(gate="NotConfigured", merge_gate=merge, gguf_gate=gguf)
    head = build_head(replace(make_run(tmp_path), evaluation=evaluation))
    assert (head.verdict, head.mood) == (told, "bad")
