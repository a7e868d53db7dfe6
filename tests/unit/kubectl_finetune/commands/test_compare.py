"""`compare`: the best job first, and no claim beyond the intervals."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from plugin_world import SPEC

from finetune_api.comparing.measured import MeasuredRows, compare_results
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_client.cluster.job import Job
from kubectl_finetune.commands.compare import different_measure, rank, ranking_table

Make = Callable[..., Job]
Printed = Callable[..., str]
TIME = "2026-03-01T12:00:00Z"
LINEAGE = {"datasetSHA256": "a" * 64}


@pytest.fixture
def tried(job: Make) -> Make:
    """Return a job with a learning rate, whose loss was 3 before, with an interval of this half width."""

    def make(name: str, rate: float, loss: float | None, half: float | None = 0.02, **more: Any) -> Job:
        spec = {"hyperparameters": {"learningRate": rate}, "output": {"uri": f"s3://b/{name}"}} | more.pop("spec", {})
        found: dict[str, Any] | None = None
        if loss is not None:
            found = {"verdict": "Better", "metric": "Loss", "before": 3.0, "after": loss, "rows": 40, "change": "-9 %"}
            if half is not None:
                found |= {"differenceLow": round(loss - 3 - half, 3), "differenceHigh": round(loss - 3 + half, 3)}
        return job(name, spec, evaluation=(found or {}) | more.pop("evaluation", {}) or None, lineage=LINEAGE, **more)

    return make


def names(jobs: list[Job]) -> list[str]:
    return [job.name for job in rank(jobs).jobs]


def test_the_lowest_loss_is_first_with_the_field_that_differs_and_its_interval(tried: Make, printed: Printed) -> None:
    jobs = [tried("one", 5e-5, 2.9), tried("two", 1e-4, 2.7), tried("three", 1e-3, 2.8)]
    ranking = rank(jobs)
    lines = [line.split("   ") for line in printed(ranking_table(ranking)).splitlines()]
    header, first, *others = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert header == ["NAME", "learningRate", "PHASE", "HELD-OUT", "CHANGE", "95 % INTERVAL", "VERDICT", "TIME"]
    assert first == ["two", "0.0001", "Training 42%", "2.7", "-9 %", "-0.32 to -0.28", "Better", "10m00s"]
    assert [line[0] for line in others] == ["three", "one"]
    assert ranking.sentences == [
        "two has the best loss, by more than the intervals of both allow for each other job",
        "the best of 3 was chosen by these rows: measure it on others before you rely on its figure",
    ]


def test_correct_answers_have_a_column_if_a_job_has_counted_them(tried: Make) -> None:
    counted = tried("one", 5e-5, 2.9, evaluation={"answers": {"rows": 200, "afterPercent": 91.5}})
    ranking = rank([counted, tried("two", 1e-4, 2.7)])
    at = ranking.header().index("CORRECT")
    assert [(row[0], row[at]) for row in ranking.rows()] == [("two", "-"), ("one", "91.5 % of 200")]
    assert "CORRECT" not in rank([tried("two", 1e-4, 2.7)]).header()


@pytest.mark.parametrize(("half", "is_separated"), [(0.049, True), (0.051, False)])
def test_jobs_within_their_intervals_are_not_separated(tried: Make, half: float, is_separated: bool) -> None:
    jobs = [tried("one", 5e-5, 2.9, half), tried("two", 1e-4, 2.8, half)]
    told = rank(jobs).sentences[0]
    assert ("by more than the intervals" in told) is is_separated
    assert ("the intervals do not separate it from one: more held-out rows" in told) is not is_separated


def test_the_highest_reward_is_first(tried: Make) -> None:
    rewards = {"evaluation": {"metric": "Reward"}}
    assert names([tried("one", 1e-5, 2.0, **rewards), tried("two", 1e-6, 2.5, **rewards)]) == ["two", "one"]


def test_jobs_without_a_figure_come_last_and_are_counted(tried: Make) -> None:
    jobs = [tried("late", 1e-5, None), tried("one", 1e-4, 2.9), tried("two", 2e-4, 2.8)]
    assert names(jobs) == ["two", "one", "late"]
    assert "1 of 3 jobs have no held-out figure yet" in rank(jobs).sentences
    assert rank([jobs[0]]).sentences == ["1 of 1 jobs have no held-out figure yet"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"spec": {"objective": "DPO", "dpo": {"beta": 0.1}}}, "objective is Chat and DPO"),
        ({"spec": {"model": {"uri": "hf://owner/other"}}}, "model.uri is hf://owner/model and hf://owner/other"),
        ({"spec": {"hyperparameters": {"maxLength": 64}}}, "hyperparameters.maxLength is - and 64"),
        ({"evaluation": {"rows": 50}}, "the numbers of held-out rows differ"),
        ({"evaluation": {"before": 3.1}}, "the model before the training had 3 and 3.1"),
    ],
)
def test_figures_that_measure_different_things_are_not_ranked_and_the_note_has_the_reason(
    tried: Make, other: dict[str, Any], told: str
) -> None:
    ranking = rank([tried("b", 1e-4, 2.9), tried("a", 1e-4, 2.95, **other)])
    assert [job.name for job in ranking.jobs] == ["a", "b"]
    assert ranking.sentences == [f"not ranked, because the held-out figures measure different things: {told}"]


def test_jobs_that_were_trained_on_other_rows_are_not_ranked(job: Make) -> None:
    found = {"verdict": "Better", "metric": "Loss", "after": 2.0, "rows": 40}
    jobs = [job(name, evaluation=found, lineage={"datasetSHA256": name * 64}) for name in "ab"]
    assert "the rows differ, and those that are held out with them" in rank(jobs).sentences[-1]


def test_fields_of_the_same_name_are_shown_with_their_blocks_and_many_are_cut(job: Make) -> None:
    many = {name: number for number, name in enumerate(["maxSteps", "seed", "maxLength", "weightDecay", "warmupSteps"])}
    specs = [{"hyperparameters": {}, "output": {"uri": "s3://b/1"}, "suspend": True}]
    specs.append(
        {"hyperparameters": many, "evaluation": {"steps": 2}, "checkpoint": {"steps": 3}, "tuning": {"method": "LoRA"}}
    )
    ranking = rank([job(name, spec) for name, spec in zip("ab", specs, strict=True)])
    assert len(ranking.fields) == 6
    assert "more fields differ" in ranking.sentences[1]
    others = {"model": {"uri": "hf://owner/b"}, "dataset": {"train": {"uri": "s3://b/other.jsonl"}}}
    assert {"model.uri", "train.uri"} < set(rank([job("a"), job("b", others)]).header())


def two(job: Make, spec: dict[str, Any], *lineages: dict[str, Any]) -> list[str]:
    """Return the sentences on two jobs that differ in nothing but what is given."""
    evaluation = {"verdict": "Better", "metric": "Loss", "before": 0.7, "rows": 40}
    evaluation |= {"differenceLow": -0.3, "differenceHigh": -0.28}
    jobs = [
        job(name, spec, evaluation=evaluation | {"after": after}, lineage=LINEAGE | lineage)
        for name, after, lineage in zip("ab", (0.4, 0.41), lineages, strict=True)
    ]
    return list(rank(jobs).sentences)


@pytest.mark.parametrize(
    ("spec", "field", "told"),
    [
        ({"objective": "DPO"}, "baseModelSHA256", "the base models differ"),
        (
            {"objective": "DPO"},
            "initialAdapterSHA256",
            "they start from different adapters, which the loss is relative to",
        ),
        ({}, "initialAdapterSHA256", ""),
        ({}, "teacherSHA256", "the teachers differ"),
        ({}, "datasetSHA256", "the rows differ, and those that are held out with them"),
        ({"dataset": {"train": {"uri": "s3://b/x"}, "validation": {"uri": "s3://b/h"}}}, "datasetSHA256", ""),
    ],
)
def test_other_models_and_rows_that_the_loss_is_of_are_recognised_by_their_digests(
    job: Make, spec: dict[str, Any], field: str, told: str
) -> None:
    sentences = two(job, spec, {field: "b" * 64}, {field: "c" * 64})
    assert ("not ranked" in sentences[0]) is bool(told)
    assert told in sentences[0]


def test_what_does_not_concern_the_held_out_rows_may_differ() -> None:
    held = {"validation": {"uri": "s3://bucket/h"}}
    specs: list[list[dict[str, Any]]] = [
        [{"dataset": {"train": {"uri": uri}} | held} for uri in ("s3://bucket/x", "s3://bucket/y")],
        [{"objective": "DPO"}, {"objective": "DPO", "dpo": {"beta": 0.1}}],  # the default
        [{"model": {"uri": "hf://owner/model", "credentialsSecretRef": {"name": "k"}}}, {}],
        [{"objective": "RLHF", "rlhf": {"rewards": [], "beta": beta, "algorithm": "GRPO"}} for beta in (0, 0.1)],
        [{"objective": "RLHF", "rlhf": {"rewards": [], "lossType": loss}} for loss in ("grpo", "dr_grpo")],
        [{"objective": "RLHF", "rlhf": {"rewards": [], "scaleRewards": scale}} for scale in ("group", "none")],
        [{"objective": "RLHF", "rlhf": {"rewards": [], "maskTruncatedCompletions": cut}} for cut in (True, False)],
    ]
    base = SPEC | {"dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}}, "output": {"uri": "s3://bucket/out"}}
    for pair in specs:
        assert different_measure([base | one for one in pair]) == "", pair
    seeds = [base | {"hyperparameters": {"seed": seed}} for seed in (1, 2)]
    assert different_measure(seeds) == "hyperparameters.seed is 1 and 2, which holds out other rows"
    assert different_measure([one | {"dataset": base["dataset"] | held} for one in seeds]) == ""


def test_sampled_rewards_before_the_training_may_differ(job: Make) -> None:
    jobs = [
        job(name, evaluation={"metric": "Reward", "before": before, "after": 0.5, "rows": 40, "verdict": "Better"})
        for name, before in (("a", 0.010), ("b", 0.011))
    ]
    assert "not ranked" not in rank(jobs).sentences[0]


def test_a_difference_that_rounding_or_the_base_can_make_is_not_called_one(tried: Make) -> None:
    """Both of a thousandth of the loss, and of figures before that differ as much as those after."""
    close = [tried("a", 1e-4, 2.9988, 0.0003), tried("b", 1e-3, 2.9996, 0.0003)]
    moved = {"before": 3.0138, "differenceLow": -0.205, "differenceHigh": -0.195}
    shifted = [tried("a", 1e-4, 2.8, 0.005), tried("b", 1e-3, 2.8138, 0.005, evaluation=moved)]
    for jobs in (close, shifted):
        assert "the intervals do not separate it from b" in rank(jobs).sentences[0]


def test_a_job_without_an_interval_a_worse_one_and_a_failed_gate_are_named(tried: Make) -> None:
    unknown = [tried("a", 1e-4, 2.8, None), tried("b", 1e-3, 2.9)]
    assert rank(unknown).sentences[0] == "a has the best loss; without an interval of a, it may be chance"
    worse = {"evaluation": {"verdict": "Worse"}}
    told = rank([tried("a", 1e-4, 3.1, **worse), tried("b", 1e-3, 3.5, **worse)]).sentences
    assert "a is worse than the model before the training" in told
    failed = {"evaluation": {"gate": "NotMet", "gateMessage": "maxEvalLoss is 1"}}
    told = rank([tried("a", 1e-4, 2.8, **failed), tried("b", 1e-3, 2.9)]).sentences
    assert "a does not meet its gate: maxEvalLoss is 1" in told


def test_a_job_that_ended_without_a_figure_has_the_reason(job: Make) -> None:
    done = {"type": "Complete", "status": "True", "reason": "Published", "message": "m", "lastTransitionTime": TIME}
    unmeasured = {"verdict": "NotEvaluated", "verdictMessage": "the base does not fit"}
    ended = job("a", conditions=[done], evaluation=unmeasured)
    assert rank([ended]).sentences == ["a has no held-out figure: the base does not fit"]


def test_a_selector_or_names_are_needed_and_a_selector_that_matches_nothing_is_an_error(
    finetune: Callable[..., Any], front: Any
) -> None:
    for arguments in ((), ("one", "-l", "a=b")):
        done = finetune("compare", *arguments, "--context", "lab")
        assert (done.code, "compare needs names or a selector" in done.err) == (2, True)
    front.answers["finetunejobs"] = [(200, {"metadata": {}, "items": []})]
    done = finetune("compare", "-l", "finetune.dev/sweep=x", "--context", "lab")
    assert (done.code, done.out) == (3, ""), done.err
    assert "no jobs in namespace team-a match finetune.dev/sweep=x" in done.err


def rows_of(shift: float, noise: float = 0.02, seed: int = 1, **more: Any) -> MeasuredRows:
    """Forty rows whose losses differ far more from each other than from those of another job."""
    base, own = random.Random(0), random.Random(seed)
    parts = [(base.uniform(0.5, 6) + shift + own.gauss(0, noise), base.randint(5, 400)) for _ in range(40)]
    return MeasuredRows(**({"metric": "Loss", "rows_sha256": "r" * 64, "evaluations": 4, "parts": parts} | more))


def test_rows_separate_jobs_that_their_intervals_do_not(tried: Make, printed: Printed) -> None:
    jobs = [tried("one", 5e-5, 2.9, 0.3), tried("two", 1e-4, 2.8, 0.3)]
    assert "the intervals do not separate it from one" in rank(jobs).sentences[0]
    ranking = rank(jobs, {"one": rows_of(0.0), "two": rows_of(-0.1, seed=2)})
    assert ranking.sentences[0] == "two has the best loss, row by row measurably better than that of each other job"
    assert "FROM THE BEST" in ranking.header()
    cells = dict(zip(ranking.header(), ranking.rows()[1], strict=True))
    assert cells["FROM THE BEST"].startswith("+3.")
    assert "95 % interval" in printed(ranking_table(ranking))
    best, other = ranking.to_wire()["jobs"]
    assert "fromTheBest" not in best
    assert 0 < other["fromTheBest"]["low"] < other["fromTheBest"]["difference"] < other["fromTheBest"]["high"]


def test_equal_jobs_are_not_separated_by_their_rows(tried: Make) -> None:
    jobs = [tried("one", 5e-5, 2.9), tried("two", 1e-4, 2.8), tried("three", 1e-3, 2.85)]
    measured = {name: rows_of(0.0, seed=at) for at, name in enumerate(("one", "two", "three"), 1)}
    assert rank(jobs, measured).sentences[0] == (
        "two has the best loss, but row by row not measurably better than three, one"
    )


@pytest.mark.parametrize("other", [rows_of(0.0, rows_sha256="s" * 64), None])
def test_other_rows_are_not_compared_one_by_one(tried: Make, other: MeasuredRows | None) -> None:
    jobs = [tried("one", 5e-5, 2.9), tried("two", 1e-4, 2.7)]
    measured = {"two": rows_of(-0.1)} | ({"one": other} if other else {})
    ranking = rank(jobs, measured)
    assert ranking.sentences[:2] == [
        "not compared row by row with two, for want of the same rows: one",
        "two has the best loss, by more than the intervals of both allow for each other job",
    ]
    assert "FROM THE BEST" not in ranking.header()


def test_the_best_of_equal_jobs_is_called_better_than_another_in_few_of_many_sweeps() -> None:
    """Six jobs, each the best of five evaluations, whose rows differ by chance alone."""
    chance, draws, wrong = random.Random(3), 150, 0
    for _ in range(draws):
        base = [chance.uniform(1, 5) for _ in range(30)]
        jobs = []
        for _ in range(6):
            tries = [[loss + chance.gauss(0, 0.3) for loss in base] for _ in range(5)]
            jobs.append(min(tries, key=sum))
        best, *others = sorted(jobs, key=sum)
        found = [compare_results(*(_as_measured(losses) for losses in (best, other)), choices=30) for other in others]
        wrong += any(one is not None and one.verdict is Verdict.WORSE for one in found)
    assert wrong / draws <= 0.05


def _as_measured(losses: list[float]) -> MeasuredRows:
    return MeasuredRows(
        metric=EvaluationMetric.LOSS, rows_sha256="r", evaluations=5, parts=[(loss, 10) for loss in losses]
    )


def test_the_end_of_an_interval_that_luck_moves_does_not_separate_jobs(tried: Make) -> None:
    """The interval of the best reaches farther towards a worse model than towards a better one."""
    lopsided = {"evaluation": {"differenceLow": -0.32, "differenceHigh": -0.05}}
    told = rank([tried("one", 5e-5, 2.9), tried("two", 1e-4, 2.7, **lopsided)]).sentences[0]
    assert "the intervals do not separate it from one" in told
