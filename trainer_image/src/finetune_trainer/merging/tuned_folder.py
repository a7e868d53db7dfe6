"""The folder of a result or of an adapter, as it is used on this machine: which weights it has, and their base."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.adapters.initial import PLAIN_STARTS, require_weights
from finetune_trainer.models.files.base_model import ADAPTER_CONFIG, CONFIG, parse_json_file, refuse
from finetune_trainer.storage.hub.uris import SCHEME

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""`owner/name`, as PEFT names a base on a hub."""
SCORES = "SEQ_CLS"


@dataclass(frozen=True, slots=True)
class TunedFolder:
    """The weights, tokenizer and template of a tuned model; an adapter names its base, if that is a URI."""

    weights: Path
    is_adapter: bool
    base: str | None = None
    revision: str | None = None


def read_tuned(folder: Path) -> TunedFolder:
    """Return what a folder has: an adapter before a full model, each in the folder itself or in that of a result."""
    if not folder.is_dir():
        raise InvalidConfig(f"{folder}: there is no such folder")
    for adapter in (folder / Artifact.ADAPTER, folder):
        if (adapter / ADAPTER_CONFIG).is_file():
            return _read_adapter(adapter)
    for model in (folder / Artifact.MERGED, folder):
        if (model / CONFIG).is_file():
            return TunedFolder(model, is_adapter=False)
    raise TrainerError(
        ExitCode.MODEL_UNAVAILABLE,
        f"{folder} has neither {Artifact.ADAPTER}/{ADAPTER_CONFIG} nor {Artifact.MERGED}/{CONFIG}: name the --output "
        "folder of a run, the copy of a result, or the folder of an adapter",
    )


def _read_adapter(folder: Path) -> TunedFolder:
    named = str(folder)
    raw = parse_json_file(named, ADAPTER_CONFIG, (folder / ADAPTER_CONFIG).read_bytes())
    require_weights(named, [path.name for path in folder.iterdir()])
    if raw.get("peft_type") != "LORA":
        refuse(named, f"the adapter is of type {raw.get('peft_type')}, but only LORA is loaded")
    if raw.get("task_type") == SCORES:
        refuse(named, "it is a reward model, which scores a text and writes none")
    if raw.get("init_lora_weights", True) not in PLAIN_STARTS:
        refuse(named, f"init_lora_weights {raw['init_lora_weights']} changes the base: save the adapter as plain LoRA")
    return TunedFolder(folder, is_adapter=True, base=_find_base(raw), revision=_text(raw.get("revision")))


def _find_base(raw: dict[str, Any]) -> str | None:
    """Return the base's URI; a path of another machine is none."""
    named = _text(raw.get("base_model_name_or_path")) or ""
    if named.startswith(("s3://", "pvc://", SCHEME)):
        return named
    return f"{SCHEME}{named}" if REPO.fullmatch(named) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
