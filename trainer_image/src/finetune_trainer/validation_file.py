"""`validation.json`: what both gates said, with every number that they went by."""

import json
from typing import Any

from finetune_api.evaluation import EvaluationStatus
from finetune_trainer.report.record import MergeCheck
from finetune_trainer.validation import CLEAR_MARGIN, LARGEST_MEAN_KL, LEAST_AGREEMENT, as_json, largest_loss


def validation_json(evaluation: EvaluationStatus, check: MergeCheck | None) -> str:
    """The content of the file."""
    told: dict[str, Any] = {"evaluationGate": evaluation.gate, "mergeGate": evaluation.merged}
    if evaluation.message:
        told["message"] = evaluation.message
    if check:
        told |= _of_merge(check)
    return json.dumps(told, indent=2) + "\n"


def _of_merge(check: MergeCheck) -> dict[str, Any]:
    return {
        "precision": check.precision,
        "chosen": check.chosen.name if check.chosen else None,
        "notRun": check.not_run or None,
        "seconds": round(check.seconds, 1),
        "trainedLoss": check.trained_loss,
        "rules": {
            "largestMeanKl": LARGEST_MEAN_KL,
            "leastAgreementOnClearTokens": LEAST_AGREEMENT,
            "clearMargin": CLEAR_MARGIN,
            "largestLoss": largest_loss(check.trained_loss),
        },
        "candidates": [as_json(one, its) for one, its in zip(check.candidates, check.faults, strict=False)],
    }
