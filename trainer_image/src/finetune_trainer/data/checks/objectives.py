"""Fit a row to an objective: the rows that it trains on, or a reject; a pure function."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.instructions import mark_untrained
from finetune_trainer.data.rows import (
    BadRow,
    ChatRow,
    Message,
    Objective,
    PreferenceRow,
    PromptRow,
    Row,
    TextRow,
    UnpairedRow,
)

_NEEDS: Mapping[Objective, str] = {
    "Instruction": "prompts with answers",
    "Chat": "conversations with answers",
    "DPO": "preference pairs (prompt, chosen, rejected)",
    "KTO": "answers with a label (prompt, completion, label), or preference pairs",
    "RewardModel": "preference pairs (prompt, chosen, rejected)",
    "RLHF": "prompts, with or without answers",
    "Distillation": "prompts, with or without answers",
    "DomainAdaptation": "texts (text)",
}
ANSWERED: frozenset[Objective] = frozenset({"Instruction", "Chat"})
"""Objectives that train on answers and do not compare them."""
COLUMNS: Mapping[Objective, tuple[str, ...]] = {
    "Instruction": ("question", "answer"),
    "Chat": ("question", "answer"),
    "DPO": ("prompt", "chosen", "rejected"),
    "KTO": ("prompt", "answer", "label"),
    "RewardModel": ("prompt", "chosen", "rejected"),
    "RLHF": ("prompt",),
    "Distillation": ("prompt",),
    "DomainAdaptation": ("text",),
}
"""Columns of a row for the objective, for advice on those with names of their own."""
_KINDS: Mapping[type[Row], tuple[str, str]] = {
    ChatRow: ("a conversation", "choose the objective Chat or Instruction"),
    PreferenceRow: ("a preference pair", "choose the objective DPO, KTO or RewardModel"),
    UnpairedRow: ("an answer with a label", "choose the objective KTO"),
    PromptRow: ("a prompt without an answer", "choose the objective RLHF or Distillation"),
    TextRow: ("a text", "choose the objective DomainAdaptation"),
}
_TO_TEXT = (
    "; or convert the rows to texts with `finetune-trainer check-data --to text`; "
    "rows that also have a text column are read as texts with the format Text"
)


def fit_objective(row: Row, objective: Objective | None) -> tuple[Row, ...]:
    """Return the rows that the objective trains on, usually the row itself; raises BadRow.

    Without an objective, a row keeps its kind, and a ranking is split into its pairs.
    """
    if objective is None:
        return split_ranking(row) if isinstance(row, PreferenceRow) else (row,)
    return _FITS[objective](row, objective)


def split_ranking(row: PreferenceRow) -> tuple[PreferenceRow, ...]:
    """Return the pairs of a ranking: the best answer with each worse one; of a pair, itself."""
    if not row.others:
        return (row,)
    repairs = _add(row, RepairCode.RANKING_SPLIT)
    return tuple(
        replace(row, rejected=rejected, others=[], repairs=repairs) for rejected in (row.rejected, *row.others)
    )


def find_answer(row: Row) -> str | None:
    """Return the text of a row's answer, the chosen one of two; None for a prompt, a text or an undesirable answer."""
    match row:
        case ChatRow():
            answer = row.messages
        case PreferenceRow():
            answer = row.chosen
        case UnpairedRow(label=True):
            answer = row.completion
        case _:
            return None
    return answer[-1]["content"]


def _fit_answers(row: Row, objective: Objective) -> tuple[Row, ...]:
    match row:
        case ChatRow():
            return (row,)
        case PreferenceRow():
            return (_as_chat(row, row.chosen, (RepairCode.CHOSEN_SIDE_USED,)),)
        case UnpairedRow(label=True):
            return (_as_chat(row, row.completion, ()),)
        case UnpairedRow():
            detail = f"the label is false, but {objective} would train on the answer: use KTO for such rows"
            raise BadRow(RejectCode.BAD_LABEL, detail)
        case PromptRow():
            raise BadRow(RejectCode.NO_ASSISTANT, "the row has a prompt but no answer")
        case TextRow():
            raise _unfit(row, objective)


def _fit_pairs(row: Row, objective: Objective) -> tuple[Row, ...]:
    if not isinstance(row, PreferenceRow):
        raise _unfit(row, objective)
    pairs = split_ranking(row)
    return tuple(map(_cut_to_answers, pairs)) if objective == "DPO" else pairs


def _fit_labels(row: Row, objective: Objective) -> tuple[Row, ...]:
    if isinstance(row, UnpairedRow):
        return (row,)
    if not isinstance(row, PreferenceRow):
        raise _unfit(row, objective)
    pair = _cut_to_answers(row)
    repairs = _add(pair, RepairCode.RANKING_SPLIT if row.others else RepairCode.PAIR_SPLIT)
    judged = ((pair.chosen, True), (pair.rejected, False), *((answer, False) for answer in pair.others))
    return tuple(
        UnpairedRow(row.prompt, answer, label, row.source, row.format, row.tools, repairs=repairs)
        for answer, label in judged
    )


def _fit_prompts(row: Row, objective: Objective) -> tuple[Row, ...]:
    match row:
        case PromptRow():
            return (row,)
        case ChatRow():
            prompt = row.messages[:-1]
        case PreferenceRow() | UnpairedRow():
            prompt = row.prompt
        case TextRow():
            raise _unfit(row, objective)
    return (PromptRow(prompt, row.source, row.format, row.tools, repairs=_add(row, RepairCode.ANSWER_UNUSED)),)


def _fit_texts(row: Row, objective: Objective) -> tuple[Row, ...]:
    if isinstance(row, TextRow):
        return (row,)
    raise _unfit(row, objective)


def _as_chat(row: PreferenceRow | UnpairedRow, answer: list[Message], repairs: tuple[RepairCode, ...]) -> ChatRow:
    messages = mark_untrained(row.prompt) + answer
    return ChatRow(messages, row.source, row.format, row.tools, repairs=_add(row, *repairs))


def _add(row: Row, *repairs: RepairCode) -> tuple[RepairCode, ...]:
    return tuple(sorted({*row.repairs, *repairs}))


def _unfit(row: Row, objective: Objective) -> BadRow:
    kind, fix = _KINDS[type(row)]
    hint = _TO_TEXT if objective == "DomainAdaptation" else ""
    detail = f"the row is {kind}, but {objective} trains on {_NEEDS[objective]}: {fix}{hint}"
    return BadRow(RejectCode.NOT_FOR_OBJECTIVE, detail)


def _cut_to_answers(row: PreferenceRow) -> PreferenceRow:
    """Return the pair with the first answer of each side, in which they differ: what follows is no answer alone.

    The loss of a pair is over all tokens after its prompt, so that later questions and tool results would be trained.
    """
    if len(row.chosen) == len(row.rejected) == 1:
        return row
    chosen, rejected = row.chosen[:1], row.rejected[:1]
    if chosen[0]["content"].strip() == rejected[0]["content"].strip() and "tool_calls" not in chosen[0]:
        raise BadRow(RejectCode.SAME_PAIR, "the first answers in which chosen and rejected differ have the same text")
    return replace(row, chosen=chosen, rejected=rejected, repairs=_add(row, RepairCode.LATER_TURNS_UNUSED))


_FITS: Mapping[Objective, Callable[[Row, Objective], tuple[Row, ...]]] = {
    "Instruction": _fit_answers,
    "Chat": _fit_answers,
    "DPO": _fit_pairs,
    "KTO": _fit_labels,
    "RewardModel": _fit_pairs,
    "RLHF": _fit_prompts,
    "Distillation": _fit_prompts,
    "DomainAdaptation": _fit_texts,
}
