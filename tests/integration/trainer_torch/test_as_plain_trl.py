"""A job trains what a plain script with TRL and PEFT trains with the same settings: the same tokens in the same order,
losses, learning rates, held-out loss and weights."""

import random
from itertools import pairwise
from pathlib import Path

import pytest
from plain_trl import SEED, STEPS, Case, course_of_job, make_job, make_marked_model, require_same, run_plain
from thin_slice import thin_slice
from training_bench import make_rows

LABELS = {"input_ids": "input_ids", "labels": "labels"}
PAIRS = {name: name for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
ANSWERS = {"prompt_ids": "prompt_ids", "completion_ids": "completion_ids", "desirable": "label"}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


ROWS = make_rows(80)
LONG = [{"messages": [*one["messages"], *other["messages"]]} for one, other in pairwise(ROWS)]
TEXTS = [{"text": " ".join(turn["content"] for turn in row["messages"])} for row in ROWS]
TOLD = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in ROWS]
JUDGED = [
    {"prompt": row["messages"][:-1], "chosen": row["messages"][-1:], "rejected": said(f"I do not know {n}.")}
    for n, row in enumerate(ROWS)
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row["completion"], "label": n % 4 > 0} for n, row in enumerate(TOLD)
]
# A job shuffles labelled answers by its seed, so that those of one source do not share every batch.
SHUFFLED = random.Random(SEED).sample(range(8), 8)
EIGHT = {"perDeviceTrainBatchSize": 8, "gradientAccumulationSteps": 1}
EIGHT_ROWS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}

CASES = {
    "every answer of a chat, with dropout": (
        Case(
            "Chat", LONG[:60], LONG[60:],
            lora={"dropout": 0.1}, peft={"lora_dropout": 0.1}, arguments={"assistant_only_loss": True},
        ),
        LABELS,
    ),
    "the last answer of a chat": (Case("Instruction", TOLD[:60], TOLD[60:]), LABELS),
    "texts": (Case("DomainAdaptation", TEXTS[:60], TEXTS[60:]), LABELS),
    "pairs": (Case("DPO", JUDGED[:60], JUDGED[60:], arguments={"beta": 0.1}, blocks={"dpo": {"beta": 0.1}}), PAIRS),
    "labelled answers": (
        Case(
            "KTO", LABELLED[:8], LABELLED[62:64], order=SHUFFLED, hyper=EIGHT,
            arguments=EIGHT_ROWS | {"train_sampling_strategy": "sequential"},
        ),
        ANSWERS,
    ),
    "scores": (Case("RewardModel", JUDGED[:60], JUDGED[60:]), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", thin_slice(CASES, "every answer of a chat, with dropout", "pairs"))
def test_a_job_trains_as_a_plain_script_does(tmp_path: Path, name: str) -> None:
    case, columns = CASES[name]
    model = make_marked_model(tmp_path / "model")
    bench = make_job(tmp_path, model, case)
    job = course_of_job(bench, bench.run())
    _, plain = run_plain(tmp_path / "plain", model, case)
    require_same(job, plain, columns, case.order)
    assert len(job.steps) == STEPS


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["every answer of a chat, with dropout", "pairs"])
def test_a_tokenizer_that_pads_on_the_left_or_names_no_padding_trains_the_same(tmp_path: Path, name: str) -> None:
    case, columns = CASES[name]
    model = make_marked_model(tmp_path / "model", pad_token=None, padding_side="left")
    bench = make_job(tmp_path, model, case)
    job = course_of_job(bench, bench.run())
    _, plain = run_plain(tmp_path / "plain", model, case)
    require_same(job, plain, columns, case.order)
