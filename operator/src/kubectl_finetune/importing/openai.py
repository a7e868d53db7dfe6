"""OpenAI: the body of `POST /v1/fine_tuning/jobs`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from finetune_api.objectives import Objective
from finetune_client.errors import FineTuneError
from finetune_client.manifest.fixes import FILL_IN
from kubectl_finetune.importing import shared, values
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.engine import apply_table
from kubectl_finetune.importing.held_out import put_validation
from kubectl_finetune.importing.locations import RowSource, put_model, put_result, put_train
from kubectl_finetune.importing.openai_graders import read_rewards
from kubectl_finetune.importing.rows import Format, Table, derived, harmless, lost, to
from kubectl_finetune.importing.shared import HYPER

METHODS = {
    "supervised": Objective.CHAT,
    "dpo": Objective.DPO,
    "reinforcement": Objective.RLHF,
}
AUTO = ("auto",)
HYPERPARAMETERS: Table = {
    "n_epochs": to(f"{HYPER}.numTrainEpochs", lambda value: None if value == "auto" else values.number(value)),
    "learning_rate_multiplier": lost(
        "the learning rate that it multiplies is not published: the default of the objective is used",
        "set hyperparameters.learningRate",
        unless=(*AUTO, 1),
    ),
    "beta": to("dpo.beta", lambda value: None if value == "auto" else values.number(value)),
    "eval_interval": to("evaluation.steps", lambda value: None if value == "auto" else values.whole(value)),
    "eval_samples": harmless("all held-out rows are evaluated", unless=AUTO),
    "compute_multiplier": lost("the number of answers is rlhf.numGenerations", unless=AUTO),
    "reasoning_effort": lost("answers are sampled without a level of effort", unless=("default",)),
}


def _method(draft: Draft) -> None:
    given = draft.get("method")
    method: Mapping[str, Any] = given if isinstance(given, dict) else {"type": "supervised"}
    kind = str(method.get("type") or "supervised")
    if kind not in METHODS:
        draft.refuse(("method", "type"), f"there is no method {kind}", f"methods are {', '.join(METHODS)}")
    shared.put_objective(draft, METHODS.get(kind, Objective.CHAT).value, ("method", "type") if given else "method")
    draft.set("tuning.method", "QLoRA", "method")
    block = method.get(kind) or {}
    if not isinstance(block, dict):
        raise FineTuneError(f"{draft.file.name}: method.{kind} is not an object", "see the reference of the request")
    for path, settings in (
        (("method", kind, "hyperparameters"), block.get("hyperparameters")),
        (("hyperparameters",), draft.get("hyperparameters")),
    ):
        if isinstance(settings, dict):
            apply_table(draft, path, {key: one for key, one in settings.items() if key != "batch_size"},
                        HYPERPARAMETERS, ("batch_size",))  # fmt: skip
            _batch(draft, settings.get("batch_size"), (*path, "batch_size"))
    if kind == "reinforcement":
        _reward(draft, block.get("grader"))


def _batch(draft: Draft, value: Any, path: tuple[str, ...]) -> None:
    """Set rows and batches of a step so that, times the GPUs, they are the given batch."""
    if value is None or value == "auto":
        return
    gpus = max(1, draft.options.gpus or 1)
    batch = values.whole(value)
    rows, rest = divmod(batch, gpus)
    if rest:
        draft.lose(path, f"{batch} rows cannot be shared by {gpus} GPUs: a step has {max(1, rows) * gpus}")
    rows = max(1, rows)
    each = 2 if rows % 2 == 0 else 1
    draft.set(f"{HYPER}.perDeviceTrainBatchSize", each, path)
    draft.set(f"{HYPER}.gradientAccumulationSteps", rows // each, path)


def _reward(draft: Draft, grader: Any) -> None:
    """Set the rewards of a grader."""
    path = ("method", "reinforcement", "grader")
    try:
        draft.set("rlhf.rewards", read_rewards(grader), path)
    except ValueError as error:
        draft.refuse(path, str(error), "write the reward as one of rlhf.rewards, or train a reward model")


def _rows(draft: Draft) -> None:
    put_train(draft, _uploaded(draft, "training_file"))
    put_validation(draft, _uploaded(draft, "validation_file"))
    draft.set("dataset.format", "Preference" if draft.at("objective") == "DPO" else "OpenAI", "training_file")


def _uploaded(draft: Draft, key: str) -> list[RowSource]:
    """Return the rows that were uploaded to OpenAI, where no pod can read them."""
    return [RowSource(key, f"{FILL_IN}{draft.get(key)}")] if draft.is_given(key) else []


def _trackers(draft: Draft) -> None:
    found = draft.get("integrations")
    for index, one in enumerate(found if isinstance(found, list) else []):
        settings = one.get("wandb") if isinstance(one, dict) else None
        if isinstance(settings, dict) and settings.get("project"):
            shared.put_wandb(draft, "integrations", str(settings["project"]), str(settings.get("entity") or ""))
        else:
            draft.lose(("integrations", index), shared.OTHER_TRACKER, changes_training=False)


TABLE: Table = MappingProxyType(
    {
        "seed": to(f"{HYPER}.seed", values.whole),
        "metadata": harmless("add what you need to lineage.annotations"),
    }
)
FORMAT = Format(
    name="openai",
    title="OpenAI",
    signs=frozenset({"training_file", "validation_file", "method", "suffix", "integrations", "hyperparameters"}),
    table=TABLE,
    derived=(
        derived(_method, "method hyperparameters"),
        derived(lambda draft: put_model(draft, "model"), "model"),
        derived(_rows, "training_file validation_file"),
        derived(_trackers, "integrations"),
        derived(shared.put_gpus, ""),
        derived(lambda draft: put_result(draft, "result"), "suffix"),
    ),
    defaults={},
    texts=frozenset({"grader"}),
)
