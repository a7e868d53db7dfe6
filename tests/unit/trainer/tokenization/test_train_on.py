"""The tokens that have a loss by `dataset.trainOn`: known labels of a conversation, of what it excludes and loses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, Source
from finetune_trainer.pipeline.inputs import load_inputs
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded

BuildModel = Callable[..., Path]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_EARLIER_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1].strip() }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS: list[Message] = [
    {"role": "system", "content": "brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "second"},
]
OPENING = "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
MIDDLE = "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"


def trained(labeler: Labeler, messages: list[Message], labelled_as: Any, length: int = 1000) -> list[list[str]]:
    """Return the text of each run of tokens with a loss, for each sample."""
    row = ChatRow(messages, Source("rows.jsonl", 1), DataFormat.OPENAI)
    found = labeler.encode(row, labelled_as, length)
    assert not isinstance(found, BadRow), found.detail
    samples = []
    for sample in found:
        assert isinstance(sample, Encoded)
        runs: list[list[int]] = [[]]
        for token, label in zip(sample.input_ids, sample.labels, strict=True):
            assert label in {token, UNTRAINED}
            if label == UNTRAINED:
                runs.append([])
            else:
                runs[-1].append(token)
        samples.append([labeler.tokenizer.decode(run, skip_special_tokens=False) for run in runs if run])
    return samples


def marked(**marks: Any) -> list[Message]:
    return [*TURNS[:2], {**TURNS[2], **marks}, *TURNS[3:]]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("labelled_as", "texts"),
    [
        ("Instruction", ["second<|im_end|>"]),
        ("Chat", ["first<|im_end|>", "second<|im_end|>"]),
        ("Everything", [f"{OPENING}first<|im_end|>{MIDDLE}second<|im_end|>"]),
    ],
)
def test_the_tokens_with_a_loss_are_those_of_the_choice(
    build_model: BuildModel, labelled_as: str, texts: list[str]
) -> None:
    assert trained(Labeler(build_model(TEMPLATE)), TURNS, labelled_as) == [texts]


@pytest.mark.parametrize(
    ("marks", "texts"),
    [
        ({"train": False}, [OPENING, f"{MIDDLE}second<|im_end|>"]),
        ({"untrained": [[0, 2]]}, [OPENING, f"<|im_end|>{MIDDLE}second<|im_end|>"]),
    ],
)
def test_what_a_row_excludes_has_no_loss_in_everything(
    build_model: BuildModel, marks: dict[str, Any], texts: list[str]
) -> None:
    (found,) = trained(Labeler(build_model(TEMPLATE, words=["first"] * 9)), marked(**marks), "Everything")
    assert found == texts


def test_a_row_whose_last_answer_is_excluded_still_trains_what_is_around_it(build_model: BuildModel) -> None:
    messages: list[Message] = [*TURNS[:4], {**TURNS[4], "train": False}]
    assert trained(Labeler(build_model(TEMPLATE)), messages, "Everything") == [[f"{OPENING}first<|im_end|>{MIDDLE}"]]


def test_everything_is_one_sample_where_answers_would_be_several(build_model: BuildModel) -> None:
    labeler = Labeler(build_model(DROPS_EARLIER_THOUGHTS))
    messages = marked(content="<think>hm</think>first")
    assert [len(trained(labeler, messages, name)) for name in ("Chat", "Everything")] == [2, 1]
    (row,) = labeler.encode(ChatRow(messages, Source("a", 1), DataFormat.OPENAI), "Everything", 1000)  # type: ignore[misc]
    assert row.reasoning_lost == 1
    assert "hm" not in labeler.tokenizer.decode(row.input_ids)
    excluded = labeler.encode(
        ChatRow(marked(content="<think>hm</think>first", train=False), Source("a", 1), DataFormat.OPENAI),
        "Everything",
        1000,
    )
    assert isinstance(excluded, BadRow)
    assert "alters the answer of turn 3" in excluded.detail


def test_everything_that_is_too_long_is_cut_at_its_end(build_model: BuildModel) -> None:
    labeler = Labeler(build_model(TEMPLATE))
    ((text,),) = trained(labeler, TURNS, "Everything", length=6)
    assert OPENING.startswith(text)


@pytest.mark.parametrize(
    ("objective", "train_on", "same_as"),
    [("Chat", "LastAnswer", "Instruction"), ("Instruction", "AllAnswers", "Chat"), ("Chat", "AllAnswers", "Chat")],
)
def test_a_choice_gives_the_tokens_of_the_objective_with_this_default(
    world: Any, objective: str, train_on: str, same_as: str
) -> None:
    turns = [{"role": role, "content": f"what is {role}"} for role in ("user", "assistant") * 2]
    rows = [
        json.dumps({"messages": [*turns, *turns[:1], {"role": "assistant", "content": str(at)}]}) for at in range(9)
    ]
    (world.bucket / "rows.jsonl").write_text("\n".join(rows))
    files = []
    for name, choice in ((objective, {"trainOn": train_on}), (same_as, {})):
        train = {"train": {"uri": "s3://bucket/rows.jsonl"}}
        out = {"output": {"uri": f"s3://bucket/{name}{len(files)}"}}
        world.with_config({"objective": name, "dataset": train | choice, **out})
        preflight(world.run)
        files.append((world.bucket / f"{name}{len(files)}" / "dataset" / "train.arrow").read_bytes())
    assert files[0] == files[1]


def test_the_training_reads_everything_as_preflight_has_labelled_it(world: Any) -> None:
    dataset = {"train": {"uri": "s3://bucket/rows.jsonl"}, "trainOn": "Everything"}
    world.with_config({"dataset": dataset})
    preflight(world.run)
    samples = load_inputs(world.run).train
    assert len(samples) == 100
    assert all(UNTRAINED not in sample.labels[:-1] for sample in samples)
