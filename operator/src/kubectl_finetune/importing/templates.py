"""Chat templates of other projects that the trainer has too, and the variables of templates."""

import json
from collections.abc import Mapping
from typing import Any

from kubectl_finetune.importing import shared
from kubectl_finetune.importing.draft import Draft, Key, NotConverted
from kubectl_finetune.importing.rows import is_off

FIELD = "model.chatTemplate.name"
KNOWN: Mapping[str, str] = {"chatml": "ChatML", "alpaca": "Alpaca"}
"""The trainer's templates by their names in axolotl and LLaMA-Factory."""
OWN = frozenset({"tokenizer_default", "tokenizer_default_fallback_chatml"})
"""The model's own template, and the trainer's ChatML for a model without one, as by default."""
IN_A_CONFIGMAP = "put it in a ConfigMap and set model.chatTemplate.configMapKeyRef"


def put_template(draft: Draft, key: Key, value: Any) -> None:
    """Set the chat template with this name in another project, unless another one is set; name the loss if the trainer
    has none like it."""
    if is_off(value) or str(value) in OWN:
        return
    name, earlier = KNOWN.get(str(value)), draft.at(FIELD)
    if name is None:
        draft.lose(key, shared.OWN_TEMPLATE, IN_A_CONFIGMAP)
    elif earlier in {None, name}:
        draft.set(FIELD, name, key)
    else:
        draft.lose(key, f"a job has one chat template, and it is {earlier} already", shared.COMPARE)


def kwargs(value: Any) -> dict[str, str]:
    """Return the variables of a template as texts."""
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(one, str | int | float | bool | None) for name, one in value.items()
    ):
        raise NotConverted("variables of a chat template are texts, numbers and booleans", IN_A_CONFIGMAP)
    return {name: one if isinstance(one, str) and not _is_json(one) else json.dumps(one) for name, one in value.items()}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
