"""A model that the file shares out over its GPUs, by FSDP or DeepSpeed: the base of an adapter, or its teacher."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from finetune_api.objectives import Objective
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.rows import is_off
from kubectl_finetune.importing.shared import GIVE_GPUS, GPUS, LORA, name_unused

_KEEPS_WEIGHTS = re.compile(r"no_shard|shard_grad_op")
_STAGE_3 = re.compile(r"(z|zero|stage)['\": _-]*3")
SHARES: Mapping[str, Callable[[str], Any]] = {
    "fsdp": lambda word: not _KEEPS_WEIGHTS.search(word),
    "fsdp_config": lambda word: not _KEEPS_WEIGHTS.search(word),
    "deepspeed": _STAGE_3.search,
    "accelerate_config": lambda word: "fsdp" in word or _STAGE_3.search(word),
}
"""By key: whether its value, in lower case, shares out the weights."""
KEYS = "fsdp fsdp_config deepspeed"
TEACHER = "distillation.shardTeacher"


def put_shards(draft: Draft, keys: str = KEYS) -> None:
    """Share the base of an adapter out over the GPUs, or in a distillation the teacher, if one of the keys does so and
    the rules of the spec allow it."""
    field = TEACHER if draft.at("objective") == Objective.DISTILLATION.value else f"{LORA}.shardBase"
    is_counted = draft.options.gpus is not None or draft.is_given("num_processes")
    for key in (key for key in keys.split() if not is_off(draft.get(key))):
        shares = SHARES[key](str(draft.get(key)).lower()) and draft.at(field) is None
        reason, fix = _why_whole(draft) if shares else (GPUS, "")
        if reason:
            draft.lose(key, reason, fix if is_counted else GIVE_GPUS, changes_training=False)
        else:
            draft.set(field, True, key)


def put_trainer_shards(draft: Draft) -> None:
    """Do the same for transformers' Trainer, which does not read fsdp_config without fsdp."""
    if draft.get("fsdp"):
        put_shards(draft)
    else:
        name_unused(draft, "fsdp_config", "it belongs to fsdp")
        put_shards(draft, "deepspeed")


def _why_whole(draft: Draft) -> tuple[str, str]:
    """Return why each GPU holds the whole model, and the fix; both are empty if it can be shared out."""
    method, objective, lora = draft.at("tuning.method"), draft.at("objective"), draft.at(LORA) or {}
    if method == "Full":
        return GPUS, ""
    if (draft.at("resources.numNodes") or 1) * (draft.at("resources.gpusPerNode") or 1) <= 1:
        what = "a teacher" if objective == Objective.DISTILLATION.value else "a base"
        return f"{what} is shared out over several GPUs", "use --gpus with their number"
    if objective == Objective.DISTILLATION.value:
        return "", ""
    given = [name for name in ("useDora", "targetExperts", "modulesToSave") if lora.get(name)]
    if lora.get("initLoraWeights", "Default") not in {"Default", "Gaussian"}:
        given.append("initLoraWeights")
    if given:
        fix = f"set tuning.lora.shardBase in place of {' and '.join(given)} if the GPU's memory is too small"
        return "each GPU holds the whole base: it is shared out under plain adapters", fix
    return "", ""
