"""The datasets of an axolotl file: where the rows are, their format, and the names of their columns."""

from collections.abc import Mapping
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.objectives import Objective
from kubectl_finetune.importing import shared, templates, values
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.engine import apply_table
from kubectl_finetune.importing.held_out import put_validation
from kubectl_finetune.importing.locations import WHOLE_DATASET, RowSource, listed_entries, listed_source, put_train
from kubectl_finetune.importing.roles import check_roles, turn_columns
from kubectl_finetune.importing.rows import Table, each, harmless, lost, refused

FORMATS: Mapping[str, str] = {"alpaca": "Alpaca", "sharegpt": "ShareGPT", "completion": "Text", "pretrain": "Text"}
OTHER_COLUMNS: Mapping[str, dict[str, str]] = {
    "summarizetldr": {"instruction": "article", "output": "summary"},
    "oasst": {"instruction": "INSTRUCTION", "output": "RESPONSE"},
    "icr": {"prompt": "input"},
}
"""Columns of prompt strategies whose names are not those of any format."""
PREFERENCES = {"chatml", "llama3", "zephyr", "chat_template", "user_defined", "bradley_terry"}
OWN_TEXT = "the rows are rendered by the model's chat template, not by the prompts of this type"
NAMES: Mapping[str, str] = {
    "field_system": "system",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_messages": "messages",
    "field_tools": "tools",
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_label": "label",
}
"""Names of columns in a dataset or in its type: ours for each."""
_TURN_KEYS = (
    *("path", "type", "split", "name", "data_files", "revision", "ds_type", "field", "roles", "chat_template"),
    *("message_property_mappings", "message_field_role", "message_field_content", "text_column"),
)
TABLE: Table = {
    "chat_template_jinja": lost(shared.OWN_TEMPLATE, templates.IN_A_CONFIGMAP),
    "roles_to_train": lost(
        "answers are trained, and nothing else or everything",
        "dataset.trainOn Everything trains every role",
        unless=(["assistant"], ["gpt"], ["assistant", "gpt"]),
    ),
    **each(lost("the token that ends an answer is trained", unless=("turn",)), "train_on_eos train_on_eot"),
    "message_field_training": lost(
        "a turn is excluded by weight: 0",
        unless=("train", "weight", "training", "trainable", "loss", "loss_mask", "loss_scale"),
    ),
    "message_field_training_detail": lost("a part of a turn is excluded by train: false"),
    "drop_system_message": lost("system texts of the rows are context"),
    "field_thinking": lost(
        "reasoning is read from reasoning_content, reasoning or thinking of a turn",
        "rename the key in the rows",
        unless=("reasoning_content", "reasoning", "thinking"),
    ),
    "template_thinking_key": harmless("reasoning is found as reasoning_content, reasoning or thinking"),
    "split_thinking": harmless("reasoning is found as reasoning_content, reasoning or thinking"),
    "input_transform": refused("rows are not changed by Python", shared.REMOVE),
    **each(lost("all rows are used"), "shards* skip"),
    "preprocess_shards": harmless(shared.NO_CACHE),
    **each(lost("only the answers' texts are trained"), "temperature logprobs_field"),
    "trust_remote_code": harmless("no code of a dataset is run"),
    "step_separator": harmless("it belongs to process reward models"),
    "max_completion_length": harmless("it belongs to process reward models"),
    "train_on_last_step_only": harmless("it belongs to process reward models"),
    "conversation": lost(shared.OWN_TEMPLATE, shared.COMPARE),
    "system_prompt": lost("no system text is added", "add it to the rows"),
    **each(lost(OWN_TEXT, shared.COMPARE), "format no_input_format system_format *_format"),
}


def put_rows(draft: Draft) -> None:
    """Set the rows to train on and to evaluate with."""
    key = "pretraining_dataset" if draft.is_given("pretraining_dataset") else "datasets"
    if key == "pretraining_dataset":
        reason = "axolotl streams these rows; preflight downloads and checks all of them before the training"
        draft.lose(key, reason, "name some of the files in the URI if they are many", changes_training=False)
    put_train(draft, [found for path, one in _entries(draft, key) if (found := _source(draft, path, one))])
    held_out = []
    for path, entry in _entries(draft, "test_datasets"):
        if source := _source(draft, path, entry):
            if not entry.get("split") and WHOLE_DATASET.fullmatch(source.uri):
                source.split = "test"  # the default there; preflight would prefer `validation`
            held_out.append(source)
    put_validation(draft, held_out)
    shared.put_share(draft, "val_set_size")


def _entries(draft: Draft, key: str) -> list[tuple[FieldPath, dict[str, Any]]]:
    found = draft.get(key)
    if isinstance(found, str):
        return [((key,), {"path": found})]
    if isinstance(found, dict):
        return [((key,), found)]
    return listed_entries(draft, key)


def _source(draft: Draft, path: FieldPath, entry: dict[str, Any]) -> RowSource | None:
    kind = entry.get("type")
    place = (*path, "path")
    source = listed_source(draft, place, entry)
    source.revision = str(entry.get("revision") or "")
    fields = {**(kind if isinstance(kind, dict) else {}), **entry}
    source.columns = {ours: str(fields[name]) for name, ours in NAMES.items() if fields.get(name) not in (None, ours)}
    _read_type(draft, source, path, kind)
    _read_turns(draft, source, path, entry)
    text_column = entry.get("field") or entry.get("text_column")
    if draft.at("objective") == Objective.DOMAIN_ADAPTATION.value and text_column not in (None, "text"):
        source.columns["text"] = str(text_column)
    rest = {name: value for name, value in entry.items() if name not in {*_TURN_KEYS, *NAMES}}
    apply_table(draft, path, rest, TABLE, {*_TURN_KEYS, *NAMES})
    if isinstance(kind, dict):
        apply_table(
            draft, (*path, "type"), {name: one for name, one in kind.items() if name not in NAMES}, TABLE, NAMES
        )
    return source


def _read_type(draft: Draft, source: RowSource, path: FieldPath, kind: Any) -> None:
    place = (*path, "type")
    if kind is None or isinstance(kind, dict):
        return
    word, _, detail = str(kind).replace(":", ".").partition(".")
    word, detail = word.split("_w_")[0], detail.partition("(")[0]
    if word in {"stepwise_supervised", "_synthetic"}:
        draft.refuse(place, f"rows of type {kind} cannot be trained on", shared.REMOVE)
        return
    source.columns |= OTHER_COLUMNS.get(detail if word in PREFERENCES else word, {})
    if word == "chat_template":
        return
    if draft.at("objective") in shared.SUPERVISED:
        source.format = FORMATS.get(word, "")
    if word in FORMATS and source.format == "Text":
        return
    if word in {*FORMATS, *PREFERENCES, *OTHER_COLUMNS} or word.startswith("alpaca"):
        draft.lose(place, OWN_TEXT, shared.COMPARE)
        return
    reason = "the rows are read by their columns and rendered by the model's chat template, not by this type"
    draft.lose(place, reason, "check that preflight accepts them: kubectl finetune validate FILE --rows FILE")


def _read_turns(draft: Draft, source: RowSource, path: FieldPath, entry: dict[str, Any]) -> None:
    mapping = entry.get("message_property_mappings")
    names = dict(mapping) if isinstance(mapping, dict) else {}
    names.setdefault("role", entry.get("message_field_role"))
    names.setdefault("content", entry.get("message_field_content"))
    source.columns |= turn_columns(names.get("role"), names.get("content"))
    for name in set(names) - {"role", "content"}:
        if names[name] != name:
            draft.lose((*path, "message_property_mappings"), f"{name} of a turn cannot be renamed")
    roles = entry.get("roles")
    if isinstance(roles, dict):
        check_roles(draft, (*path, "roles"), {role: values.words(own) for role, own in roles.items()})
    templates.put_template(draft, (*path, "chat_template"), entry.get("chat_template"))
