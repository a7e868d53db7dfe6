"""The chat template that a job chooses: preflight reads it, and training uses what preflight has stored."""

from pathlib import Path
from typing import Any

from finetune_api.handoff import CHAT_TEMPLATE_DIR, CHAT_TEMPLATE_FILE, JobConfig
from finetune_api.inputs.chat_template import ChatTemplate
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.tokenization.chosen_template import TemplateChoice
from finetune_trainer.tokenization.labeler import CHOSEN_FIELD, Labeler

_FIELD = f"{CHOSEN_FIELD}.configMapKeyRef"


def read_choice(config: JobConfig, mounted: Path = Path(CHAT_TEMPLATE_DIR)) -> TemplateChoice:
    """Return the job's choice with the text of its ConfigMap; raises InvalidConfig."""
    return _choice(config, _read_text(config, config.spec.model.chat_template, mounted))


def restore_choice(config: JobConfig, stored: Path | None) -> TemplateChoice:
    """Return the job's choice with the text that preflight has stored, if it is one of a ConfigMap."""
    return _choice(config, stored.read_text("utf-8") if stored else None)


def describe_choice(config: JobConfig, labeler: Labeler) -> dict[str, Any]:
    """Return what the lineage records of the choice; empty for the model's own template."""
    model = config.spec.model
    if model.chat_template is None and model.chat_template_kwargs is None:
        return {}
    found = model.model_dump(mode="json", by_alias=True, exclude_none=True).get("chatTemplate", {})
    kwargs = {"kwargs": dict(model.chat_template_kwargs)} if model.chat_template_kwargs else {}
    return {"chatTemplate": found | kwargs | {"sha256": labeler.template_sha256}}


def name_choice(chosen: ChatTemplate | None) -> str | None:
    """Return the chosen template in a few words; None for the model's own."""
    if chosen is None:
        return None
    ref = chosen.config_map_key_ref
    return f"{ref.name}/{ref.key}" if ref else str(chosen.name)


def _choice(config: JobConfig, text: str | None) -> TemplateChoice:
    model = config.spec.model
    name = model.chat_template.name if model.chat_template else None
    return TemplateChoice(name, text, model.chat_template_kwargs or {})


def _read_text(config: JobConfig, chosen: ChatTemplate | None, mounted: Path) -> str | None:
    ref = chosen.config_map_key_ref if chosen else None
    if ref is None:
        return None
    if config.is_local:
        text = (config.config_maps or {}).get(ref.name, {}).get(ref.key)
        if text is None:
            fix = f"add a ConfigMap of this name, with the key {ref.key}, to the file of the job"
            raise _invalid(f"{ref.name} is not available: {fix}")
        return text.replace("\r\n", "\n")  # as when a file is read, so that the published one has the same digest
    try:
        return (mounted / CHAT_TEMPLATE_FILE).read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = "it is not text in UTF-8" if isinstance(error, ValueError) else (error.strerror or "unreadable")
        raise _invalid(f"{ref.name} has no usable key {ref.key}: {reason}") from None


def _invalid(problem: str) -> TrainerError:
    return InvalidConfig(f"{_FIELD}: {problem}")
