"""The tables: every key has one place, every field exists, and no value makes an import fail with a traceback."""

import itertools
from typing import Any

import pytest

from finetune_api.blocks import to_camel
from finetune_api.manifest.foreign_names import FOREIGN_NAMES
from finetune_api.manifest.yaml_document import YamlDocument
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_client.errors import FineTuneError
from kubectl_finetune.importing.draft import Draft, Options
from kubectl_finetune.importing.engine import convert, find_row
from kubectl_finetune.importing.files import TrainingFile
from kubectl_finetune.importing.formats import FORMATS
from kubectl_finetune.importing.rows import Format

ODD: tuple[Any, ...] = (
    *(True, 0, -3, 0.5, "4", "", "acme/name", "./rows.jsonl", "none", [1, [2]], {}, {"a": {"b": [1]}}),
    *([{"path": "acme/rows", "type": {"format": "x"}}], [{"path": [1], "roles": {"a": 1}}], {"type": "reinforcement"}),
)
START: dict[str, dict[str, Any]] = {
    "axolotl": {"base_model": "acme/base", "adapter": "lora", "datasets": [{"path": "acme/rows", "type": "alpaca"}]},
    "llama-factory": {"model_name_or_path": "acme/base", "stage": "sft", "dataset": "rows", "do_train": True},
    "trl": {"model_name_or_path": "acme/base", "dataset_name": "acme/rows", "use_peft": True},
    "openai": {"model": "hosted", "training_file": "file-1", "method": {"type": "supervised"}},
}
WITHOUT_A_TRACE = {
    *("dataset_dir", "suffix"),  # where the rows are described, and the job's name
    *("dataset_config", "dataset_train_split", "max_samples"),  # their fields have the dataset's key as origin
}
PLAUSIBLE: tuple[Any, ...] = (
    *(True, 0.5, 4, "dpo", "pissa", "cosine", "adamw_torch", "acme/name", "s3://models/out", ["acme/rows"]),
    *({"q_proj": 4}, [{"path": "acme/rows"}], {"min_lr_rate": 0.1}),
)
NO_VALUE = "is not "
"""The beginning of the reason if a value cannot be one of its key."""
PAIRS: dict[str, dict[str, Any]] = {
    "axolotl": {"rl": "dpo"},
    "llama-factory": {"stage": "dpo"},
    "trl": {"loss_weights": [1.0]},
    "openai": {"method": {"type": "dpo"}},
}
"""What makes each START a training on pairs."""
forms = pytest.mark.parametrize("form", FORMATS.values(), ids=lambda one: one.name)


def converted(name: str, more: dict[str, Any]) -> Draft:
    given = START[name] | more
    return convert(TrainingFile("training.yaml", YamlDocument(given), given), FORMATS[name], Options())


@forms
def test_a_key_is_either_derived_or_in_the_table(form: Format) -> None:
    assert form.derived_keys & set(form.table) == set()


@forms
def test_every_value_of_every_key_is_carried_or_named(form: Format) -> None:
    keys = [key.replace("*", "x") for key in (*form.derived_keys, *form.table)]
    outcomes = set()
    parts = 3 if len(keys) > 3 * len(ODD) else 1  # of many keys each gets a third of the values
    for key, value in ((key, value) for at, key in enumerate(keys) for value in ODD[at % parts :: parts]):
        values = START[form.name] | {key: value}
        try:
            draft = convert(TrainingFile("training.yaml", YamlDocument(values), values), form, Options())
        except FineTuneError as error:
            outcomes.add(type(error).__name__)
        else:
            outcomes.add("refused" if draft.refusals else "carried")
            assert draft.spec["output"]["uri"]
    assert {"carried", "refused"} <= outcomes


@forms
def test_a_key_that_the_spec_has_by_the_same_name_is_carried(form: Format) -> None:
    block = structural_schema(FineTuneJobSpec)["properties"]["hyperparameters"]["properties"]
    for key, row in form.table.items():
        if field := block.get(to_camel(key)):
            value = next(iter(field.get("enum", ())), True if field["type"] == "boolean" else 3)
            draft = Draft(TrainingFile("training.yaml", YamlDocument({}), {key: value}), Options(), {})
            row(draft, (key,), value)
            assert draft.at(f"hyperparameters.{to_camel(key)}") is not None, key


@forms
@pytest.mark.parametrize("value", ["odd", ["odd"], 7], ids=str)
def test_a_key_that_is_read_with_others_is_carried_listed_or_refused(form: Format, value: Any) -> None:
    silent = []
    for key in sorted(form.derived_keys - WITHOUT_A_TRACE):
        given = START[form.name] | {key: value}
        try:
            draft = convert(TrainingFile("training.yaml", YamlDocument(given), given), form, Options())
        except FineTuneError:
            continue
        named = [*draft.origins.values(), *(one.key for one in (*draft.losses, *draft.placeholders, *draft.refusals))]
        if not any(name == key or name.startswith((f"{key}.", f"{key}[")) for name in named):
            silent.append(key)
    assert silent == []


def foreign_keys(form: Format) -> dict[str, str]:
    """Return the field of each key of the format that has one."""
    projects = {form.title, f"earlier {form.title}"}
    if form.name in {"trl", "llama-factory"}:
        projects |= {"transformers", "earlier transformers"}
    return {
        key: one.field
        for key, one in FOREIGN_NAMES.items()
        if one.field and projects & set(one.projects) and (key in form.derived_keys or find_row(key, form.table))
    }


@forms
def test_a_key_that_has_a_field_is_carried_or_its_loss_names_the_field(form: Format) -> None:
    silent = set()
    for key, field in foreign_keys(form).items():
        losses = set()
        for value, more in itertools.product(PLAUSIBLE, ({}, PAIRS[form.name])):
            given = START[form.name] | more | {key: value}
            try:
                draft = convert(TrainingFile("training.yaml", YamlDocument(given), given), form, Options())
            except FineTuneError:
                continue
            named = (*draft.origins.values(), *(one.key for one in draft.placeholders))
            if any(one == key or one.startswith((f"{key}[", f"{key}.")) for one in named):
                break
            losses |= {(key, one.reason, one.fix) for one in draft.losses if one.key == key and one.changes_training}
        else:
            block = field.rpartition(".")[0]
            silent |= {
                (key, reason)
                for key, reason, fix in losses
                if block not in reason + fix and not reason.startswith(NO_VALUE)
            }
    assert silent == set()


GRPO = {"reward_funcs": ["think_format_reward"]}
CONVERSATIONS = {"path": "acme/rows", "type": "chat_template"}


@pytest.mark.parametrize(
    ("name", "more", "key"),
    [
        ("trl", {**GRPO, "top_p": 0.0}, "top_p"),
        ("trl", {"loss_weights": [1.0], "disable_dropout": False}, "disable_dropout"),
        ("axolotl", {"rl": "grpo", "trl": {**GRPO, "top_p": 0.0}}, "trl.top_p"),
        ("axolotl", {"datasets": [CONVERSATIONS | {"train_on_eos": "none"}]}, "datasets[0].train_on_eos"),
        ("axolotl", {"datasets": [CONVERSATIONS | {"roles_to_train": []}]}, "datasets[0].roles_to_train"),
        ("llama-factory", {"enable_thinking": False}, "enable_thinking"),
    ],
)
def test_a_setting_that_is_on_by_default_is_named_if_the_file_switches_it_off(
    name: str, more: dict[str, Any], key: str
) -> None:
    given = START[name] | more
    draft = convert(TrainingFile("training.yaml", YamlDocument(given), given), FORMATS[name], Options())
    assert key in [one.key for one in draft.losses if one.changes_training]


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy", "plot_loss"])
def test_a_setting_without_effect_is_not_named_if_it_is_off(key: str) -> None:
    given = START["llama-factory"] | {key: False}
    draft = convert(TrainingFile("training.yaml", YamlDocument(given), given), FORMATS["llama-factory"], Options())
    assert key not in [one.key for one in draft.losses]


@pytest.mark.parametrize("form", ["axolotl", "llama-factory", "trl"])
@pytest.mark.parametrize(
    ("key", "value", "consequence"),
    [
        ("new_special_tokens", "<call>,</call>", "split into several tokens"),
        ("added_tokens", ["<call>"], "split into several tokens"),
        ("layers_to_transform", [0, 1], "every layer gets an adapter"),
        ("lora_layers_to_transform", [0, 1], "every layer gets an adapter"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "its context is not extended"),
        ("center_rewards_coefficient", 0.01, "their mean can be any number"),
    ],
)
def test_what_changes_tokens_layers_positions_or_rewards_is_named_with_its_consequence(
    form: str, key: str, value: Any, consequence: str
) -> None:
    found = [one for one in converted(form, {key: value}).losses if one.key == key]
    assert [(consequence in one.reason, one.changes_training) for one in found] == [(True, True)], found


@pytest.mark.parametrize("form", ["axolotl", "llama-factory", "trl"])
@pytest.mark.parametrize("key", ["simpo_gamma", "cpo_alpha", "orpo_alpha", "orpo_beta"])
def test_a_file_with_a_setting_of_orpo_simpo_or_cpo_is_refused(form: str, key: str) -> None:
    refusals = converted(form, {key: 0.5}).refusals
    assert [one.key for one in refusals] == [key]
