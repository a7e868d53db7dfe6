"""Which rows each objective takes: all kinds of rows against all objectives, through the front door."""

from typing import Any, get_args

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.spec import Objective as ApiObjective
from finetune_trainer.data.rows import ChatRow, Objective, PreferenceRow, PromptRow, Rejected, TextRow, UnpairedRow

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}

CHAT = {"messages": [Q, A]}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
GOOD = {"prompt": "q", "completion": "a", "label": True}
BAD = {"prompt": "q", "completion": "b", "label": False}
PROMPT = {"prompt": "q"}
TEXT = {"text": "t"}
OBJECTIVES = get_args(Objective)

CHAT_CONTENT = {"messages": [Q, A]}
PAIR_CONTENT = {"prompt": [Q], "chosen": [A], "rejected": [B]}
GOOD_CONTENT = {"prompt": [Q], "completion": [A], "label": True}
BAD_CONTENT = {"prompt": [Q], "completion": [B], "label": False}
PROMPT_CONTENT = {"prompt": [Q]}

TAKEN: list[tuple[dict[str, Any], str, list[dict[str, Any]], tuple[RepairCode, ...]]] = [
    *((CHAT, objective, [CHAT_CONTENT], ()) for objective in ("Chat", "Instruction")),
    *((PAIR, objective, [CHAT_CONTENT], (RepairCode.CHOSEN_SIDE_USED,)) for objective in ("Chat", "Instruction")),
    *((GOOD, objective, [CHAT_CONTENT], ()) for objective in ("Chat", "Instruction")),
    *((PAIR, objective, [PAIR_CONTENT], ()) for objective in ("DPO", "RewardModel")),
    (PAIR, "KTO", [GOOD_CONTENT, BAD_CONTENT], (RepairCode.PAIR_SPLIT,)),
    (GOOD, "KTO", [GOOD_CONTENT], ()),
    (BAD, "KTO", [BAD_CONTENT], ()),
    *((PROMPT, objective, [PROMPT_CONTENT], ()) for objective in ("RLHF", "Distillation")),
    *(
        (row, objective, [PROMPT_CONTENT], (RepairCode.ANSWER_UNUSED,))
        for row in (CHAT, PAIR, GOOD, BAD)
        for objective in ("RLHF", "Distillation")
    ),
    (TEXT, "DomainAdaptation", [TEXT], ()),
]
REFUSED = {
    **{(name, objective): RejectCode.NO_ASSISTANT for name in ("PROMPT",) for objective in ("Chat", "Instruction")},
    **{("BAD", objective): RejectCode.BAD_LABEL for objective in ("Chat", "Instruction")},
}
ROWS = {"CHAT": CHAT, "PAIR": PAIR, "GOOD": GOOD, "BAD": BAD, "PROMPT": PROMPT, "TEXT": TEXT}


def test_the_objectives_are_those_of_the_api() -> None:
    assert set(OBJECTIVES) == {objective.value for objective in ApiObjective}


@pytest.mark.parametrize(("row", "objective", "contents", "repairs"), TAKEN)
def test_an_objective_takes_what_it_can_learn_from(
    check: Any, row: dict[str, Any], objective: str, contents: list[dict[str, Any]], repairs: tuple[RepairCode, ...]
) -> None:
    rows, summary = check(row, objective=objective)
    assert [kept.content() for kept in rows] == contents
    assert all(kept.repairs == repairs for kept in rows)
    assert summary.accepted == len(contents)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        (name, objective)
        for name, row in ROWS.items()
        for objective in OBJECTIVES
        if not any(row is taken and objective == by for taken, by, _, _ in TAKEN)
    ],
)
def test_everything_else_is_refused_with_the_need_and_the_fix(check: Any, name: str, objective: str) -> None:
    (refused,), summary = check(ROWS[name], objective=objective)
    assert isinstance(refused, Rejected)
    assert refused.code is REFUSED.get((name, objective), RejectCode.NOT_FOR_OBJECTIVE)
    if refused.code is RejectCode.NOT_FOR_OBJECTIVE:
        assert objective in refused.detail
        assert "choose the objective" in refused.detail
        assert summary.unfit == {refused.detail: 1}


def test_without_an_objective_rows_come_out_as_what_they_are(check: Any) -> None:
    rows, _ = check(*ROWS.values(), objective=None)
    kinds = [ChatRow, PreferenceRow, UnpairedRow, UnpairedRow, PromptRow, TextRow]
    assert [type(row) for row in rows] == kinds


def test_earlier_answers_of_a_chosen_side_are_read_and_not_trained(check: Any) -> None:
    (row,), _ = check({"prompt": [Q, A, Q], "chosen": "a", "rejected": "b"}, objective="Chat")
    assert row.messages == [Q, {**A, "train": False}, Q, A]


def test_rlhf_answers_the_question_that_a_conversation_ends_with(check: Any) -> None:
    rows, _ = check({"messages": [Q, A, Q]}, {"messages": [Q]}, {"messages": [Q, A]}, objective="RLHF")
    assert [row.prompt for row in rows[:2]] == [[Q, A, Q], [Q]]
    assert rows[2].code is RejectCode.DUPLICATE


def test_answers_of_several_turns_are_compared_up_to_the_first_in_which_they_differ(check: Any) -> None:
    row = {"prompt": "q", "chosen": [A, Q, A], "rejected": [B, Q, A]}
    (pair,), summary = check(row, objective="DPO")
    assert (pair.prompt, pair.chosen, pair.rejected) == ([Q], [A], [B])
    assert summary.repaired_by_code == {RepairCode.LATER_TURNS_UNUSED: 1}
    rows, _ = check(row, objective="KTO")
    assert [(one.completion, one.label) for one in rows] == [([A], True), ([B], False)]
    (whole,), summary = check(row, objective="RewardModel")
    assert (whole.chosen, whole.rejected) == ([A, Q, A], [B, Q, A])
    assert not summary.repaired_by_code


def test_a_pair_whose_first_answers_have_the_same_text_is_no_pair(check: Any) -> None:
    (refused,), _ = check({"prompt": [Q], "chosen": [A, Q, B], "rejected": [A]}, objective="DPO")
    assert refused.code is RejectCode.SAME_PAIR
    assert "first answers" in refused.detail


def test_one_chosen_answer_over_several_rejected_ones_is_trained_once(check: Any) -> None:
    rows, summary = check(PAIR, {**PAIR, "rejected": "c"}, objective="KTO")
    assert [row.completion[0]["content"] for row in rows if isinstance(row, UnpairedRow)] == ["a", "b", "c"]
    assert summary.rejected_by_code == {RejectCode.DUPLICATE: 1}
    assert summary.malformed == 0


def test_a_prompt_without_an_answer_names_the_columns_where_one_may_hide(check: Any) -> None:
    (refused,), _ = check({"question": "q", "reponse": "a"}, objective="Chat")
    assert refused.code is RejectCode.NO_ASSISTANT
    assert "reponse" in refused.detail
