"""The losses of pairs: `dpo.lossType`, `labelSmoothing` and `sftWeight`, and the weight beta of axolotl."""

from collections.abc import Mapping
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.objectives import LossType, Objective
from kubectl_finetune.importing import shared, values
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.rows import is_off, to

SFT = "sft"
"""TRL's name of the chosen answer's own loss."""
WITH_SMOOTHING = (LossType.ROBUST.value, LossType.EXO_PAIR.value)
DPO_ALONE = "it belongs to DPO"


def put_losses(draft: Draft, key: str, weights: str) -> None:
    """Set the loss of a pair and the weight of the chosen answer's own loss, from TRL's list of losses."""
    kinds, known = values.words(draft.get(key) or LossType.SIGMOID.value), [one.value for one in LossType]
    pairs = [kind for kind in kinds if kind != SFT]
    if len(pairs) != 1 or pairs[0] not in known or len(kinds) > 2:
        fix = f"{', '.join(known)} are possible, and {SFT} next to one of them"
        draft.refuse(key, f"there is no loss {', '.join(kinds)}", fix)
        return
    factors = shared.read(draft, weights, values.numbers) or [1.0] * len(kinds)
    if len(factors) != len(kinds):
        draft.refuse(weights, f"has {len(factors)} weights for {len(kinds)} losses", "give each loss its weight")
        return
    draft.set("dpo.lossType", pairs[0], key)
    by_kind = dict(zip(kinds, factors, strict=True))
    share, pair = by_kind.get(SFT, 0), by_kind[pairs[0]]
    if pair != 1:
        reason = f"the loss of the pair has weight 1, not {pair:.6g}"
        draft.lose(
            weights, reason, "dpo.sftWeight is the ratio of the two; change hyperparameters.learningRate instead"
        )
    if share > 0 and pair > 0:
        draft.set("dpo.sftWeight", share / pair, weights if draft.is_given(weights) else key)


def put_smoothing(draft: Draft, key: str) -> None:
    """Set the share of swapped labels, with the losses that have one."""
    kind = draft.at("dpo.lossType")
    if kind in WITH_SMOOTHING:
        shared.carry(draft, key, "dpo.labelSmoothing", values.positive)
        if draft.at("dpo.labelSmoothing") is None:
            reason = f"loss {kind} has labels that are smoothed by its default, not by 0"
            draft.lose(key, reason, "set dpo.labelSmoothing")
    elif not is_off(draft.get(key)):
        if draft.at("objective") == Objective.DPO.value:
            draft.lose(key, "labels are not smoothed", "dpo.labelSmoothing is of dpo.lossType robust and exo_pair")
        else:
            shared.name_unused(draft, key, DPO_ALONE)


def sft_weight(draft: Draft, path: FieldPath, value: Any) -> None:
    """Carry the weight of the chosen answer's own loss."""
    if draft.at("objective") == Objective.DPO.value:
        to("dpo.sftWeight", values.positive)(draft, path, value)
    elif not is_off(value):
        draft.lose(path, f"dpo.sftWeight: {DPO_ALONE}", changes_training=draft.at("objective") == Objective.KTO.value)


def put_axolotl_beta(draft: Draft, block: str | None) -> None:
    """Set the weight of the reference: axolotl reads `trl.beta` for every `rl`, before `rl_beta`."""
    settings = draft.get("trl")
    first = settings.get("beta") if isinstance(settings, Mapping) else None
    if first is not None and block in {"dpo", "kto"}:
        to(f"{block}.beta", values.number)(draft, ("trl", "beta"), first)
    for key in ("rl_beta", "dpo_beta"):
        if block is None:
            shared.name_unused(draft, key, "it belongs to DPO, KTO and GRPO")
        elif first is not None:
            shared.name_unused(draft, key, "trl.beta counts")
        else:
            shared.carry(draft, key, f"{block}.beta", values.number)
