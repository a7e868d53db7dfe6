"""Fit a row to an objective: the rows that it trains on, or a reject; a pure function."""

from collections.abc import Callable, Mapping

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
    "DomainAdaptation": "texts (text)",
}
COLUMNS: Mapping[Objective, tuple[str, ...]] = {
    "Instruction": ("question", "answer"),
    "Chat": ("question", "answer"),
    "DPO": ("prompt", "chosen", "rejected"),
    "KTO": ("prompt", "answer", "label"),
    "RewardModel": ("prompt", "chosen", "rejected"),
    "RLHF": ("prompt",),
    "DomainAdaptation": ("text",),
}
"""Columns of a row for the objective, for advice on those with names of their own."""
_KINDS: Mapping[type[Row], tuple[str, str]] = {
    ChatRow: ("a conversation", "choose the objective Chat or Instruction"),
    PreferenceRow: ("a preference pair", "choose the objective DPO, KTO or RewardModel"),
    UnpairedRow: ("an answer with a label", "choose the objective KTO"),
    PromptRow: ("a prompt without an answer", "choose the objective RLHF"),
    TextRow: ("a text", "choose the objective DomainAdaptation"),
}
_TO_TEXT = (
    "; or convert the rows to texts with `finetune-trainer check-data --to text`; "
    "rows that also have a text column are read as texts with the format Text"
)


def fit_objective(row: Row, objective: Objective) -> tuple[Row, ...]:
    """Return the rows that the objective trains on, usually the row itself; raises BadRow."""
    return _FITS[objective](row, objective)


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
    if isinstance(row, PreferenceRow):
        if objective == "DPO":
            _refuse_exchanges(row, objective)
        return (row,)
    raise _unfit(row, objective)


def _fit_labels(row: Row, objective: Objective) -> tuple[Row, ...]:
    if isinstance(row, UnpairedRow):
        return (row,)
    if not isinstance(row, PreferenceRow):
        raise _unfit(row, objective)
    _refuse_exchanges(row, objective)
    repairs = _add(row, RepairCode.PAIR_SPLIT)
    return tuple(
        UnpairedRow(row.prompt, answer, label, row.source, row.format, row.tools, repairs=repairs)
        for answer, label in ((row.chosen, True), (row.rejected, False))
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


def _refuse_exchanges(row: PreferenceRow, objective: Objective) -> None:
    """Reject answers of several turns because user and tool turns in them would be trained on too."""
    if len(row.chosen) > 1 or len(row.rejected) > 1:
        detail = (
            f"the answers have several turns, and {objective} would also train on the user and tool turns in them: "
            "cut the conversations after the first turn in which they differ, or choose the objective RewardModel, "
            "which scores whole conversations"
        )
        raise BadRow(RejectCode.NOT_FOR_OBJECTIVE, detail)


_FITS: Mapping[Objective, Callable[[Row, Objective], tuple[Row, ...]]] = {
    "Instruction": _fit_answers,
    "Chat": _fit_answers,
    "DPO": _fit_pairs,
    "KTO": _fit_labels,
    "RewardModel": _fit_pairs,
    "RLHF": _fit_prompts,
    "DomainAdaptation": _fit_texts,
}
