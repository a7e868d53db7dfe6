from dataclasses import replace
from pathlib import Path

from report_record import make_run

from finetune_api.evaluation import EvaluationStatus
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.report.head import build_head


def test_a_lower_loss_is_good_news_with_its_share(tmp_path: Path) -> None:
    head = build_head(make_run(tmp_path))
    assert (head.verdict, head.mood) == ("Better than the base model on held-out rows: loss 52.4 % lower", "good")


def test_a_loss_that_is_not_lower_is_bad_news(tmp_path: Path) -> None:
    head = build_head(replace(make_run(tmp_path), final=Measured(3.212, 10)))
    assert (head.verdict, head.mood) == ("No better than the base model on held-out rows: do not publish it", "bad")


def test_what_was_not_measured_is_not_judged(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert build_head(replace(run, baseline=None)).verdict == "Evaluated, but not compared with the base model"
    unknown = build_head(replace(run, baseline=None, final=None, best_step=None))
    assert (unknown.verdict, unknown.mood) == ("Not evaluated: no rows were held out", "plain")
    assert not {"Evaluation loss", "Perplexity"} & {tile.label for tile in unknown.tiles}


def test_the_most_important_figures_are_in_the_tiles(tmp_path: Path) -> None:
    tiles = {tile.label: (tile.value, tile.note) for tile in build_head(make_run(tmp_path)).tiles}
    assert tiles["Evaluation loss"] == ("1.528", "base model 3.212")
    assert tiles["Published step"] == ("1000", "stopped early")
    assert tiles["Time"] == ("2 h 34 min", "all runs together")
    assert tiles["Peak memory"] == ("31.0 GiB", "of 80.0 GiB")


def test_a_gate_that_is_not_met_takes_precedence_over_the_losses(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    failed = build_head(replace(run, evaluation=EvaluationStatus(gate="NotMet", merged="Passed")))
    assert (failed.verdict, failed.mood) == ("The gate is not met: do not publish it", "bad")
    withheld = build_head(replace(run, evaluation=EvaluationStatus(gate="Passed", merged="NotRun")))
    assert (withheld.verdict, withheld.mood) == ("The full model is withheld: see below", "bad")
