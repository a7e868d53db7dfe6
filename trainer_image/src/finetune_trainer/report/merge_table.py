"""What the report tells of the full model: each candidate's figures, and the rules that it was judged by."""

from typing import Any

from finetune_trainer.report import text
from finetune_trainer.report.record import MergeCheck
from finetune_trainer.validation import CLEAR_MARGIN, LARGEST_MEAN_KL, LEAST_AGREEMENT, largest_loss


def merge_context(merge: MergeCheck | None) -> dict[str, Any]:
    """Each candidate's figures, and what is wrong with those that may not be published."""
    if merge is None:
        return {}
    rows = [
        [
            text.inline(one.name),
            text.number(one.loss, 5),
            text.number(one.mean_kl, 2),
            text.percent(one.top1_agreement),
            text.percent(one.clear_agreement) if one.clear_agreement is not None else "-",
            "published" if one is merge.chosen else "withheld" if its else "not chosen",
        ]
        for one, its in zip(merge.candidates, merge.faults, strict=True)
        if one.loss is not None and one.mean_kl is not None and one.top1_agreement is not None
    ]
    header = ["made from", "loss", "KL", "same first choice", "clear", ""]
    return {
        "merge_table": text.table(header, rows) if rows else "",
        "merge_faults": [(one.name, its) for one, its in zip(merge.candidates, merge.faults, strict=True) if its],
        "largest_loss": largest_loss(merge.trained_loss),
        "largest_kl": LARGEST_MEAN_KL,
        "least_agreement": LEAST_AGREEMENT,
        "clear_margin": CLEAR_MARGIN,
    }
