"""OpenAI: the body of `POST /v1/fine_tuning/jobs`."""

from typing import Any

from finetune_api.objectives import Objective, Rlhf
from finetune_client.errors import FineTuneError
from finetune_client.manifest.fixes import FILL_IN
from kubectl_finetune.importing import shared, trackers, values
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
OLDER = ("hyperparameters",)
ANSWERS = Rlhf().num_generations
"""Answers to each prompt of a batch: the default of `rlhf.numGenerations`, which OpenAI does not publish."""
AUTO = ("auto",)
BLOCK: Table = {"response_format": lost("answers are sampled as plain text", "ask for the form in the rows' prompts")}
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
    method = draft.get("method")
    if not isinstance(method, dict):
        if method is not None:
            draft.refuse("method", "is not an object", "see the reference of the request")
        method = {}
    kind = str(method.get("type") or "supervised")
    if kind not in METHODS:
        draft.refuse(("method", "type"), f"there is no method {kind}", f"methods are {', '.join(METHODS)}")
    objective = METHODS.get(kind, Objective.CHAT)
    shared.put_objective(draft, objective.value, ("method", "type") if method else "method")
    draft.set("tuning.method", "QLoRA", "method")
    block = method.get(kind) or {}
    if not isinstance(block, dict):
        raise FineTuneError(f"{draft.file.name}: method.{kind} is not an object", "see the reference of the request")
    for other in (key for key in method if key not in {"type", kind}):
        draft.lose(("method", other), f"the method is {kind}", changes_training=False)
    read = ("hyperparameters", *(["grader"] if kind == "reinforcement" else []))
    apply_table(draft, ("method", kind), {key: one for key, one in block.items() if key not in read}, BLOCK, read)
    _hyperparameters(draft, kind, block.get("hyperparameters"))
    if kind == "reinforcement":
        _reward(draft, block.get("grader"))


def _hyperparameters(draft: Draft, kind: str, settings: Any) -> None:
    """Carry the settings of the method, and older ones next to it that the method does not have."""
    found: set[str] = set()
    for path, block in ((("method", kind, "hyperparameters"), settings), (OLDER, draft.get(OLDER[0]))):
        if not isinstance(block, dict):
            if block is not None:
                draft.lose(path, "is not an object", "see the reference of the request")
            continue
        given = {key: one for key, one in block.items() if one is not None}
        for key in (key for key in given if key in found):
            reason = f"method.{kind}.hyperparameters has it too, and counts"
            draft.lose((*path, key), reason, "remove one of them", changes_training=False)
        own = {key: one for key, one in given.items() if key not in found}
        _batch(draft, own.pop("batch_size", None), (*path, "batch_size"))
        apply_table(draft, path, own, HYPERPARAMETERS, ("batch_size",))
        found |= set(given)


def _batch(draft: Draft, value: Any, path: tuple[str, ...]) -> None:
    """Set rows and batches of a step so that, times the GPUs, they are the given batch.

    A batch of method reinforcement is of prompts, and one of RLHF of answers.
    """
    batch = None if value == "auto" else shared.read_value(draft, path, value, values.count)
    if batch is None:
        return
    what, gpus = "rows", max(1, draft.options.gpus or 1)
    if draft.at("objective") == Objective.RLHF.value:
        what, batch = "answers", batch * ANSWERS
        draft.set("rlhf.numGenerations", ANSWERS, path)
    rows, rest = divmod(batch, gpus)
    rows = max(1, rows)
    if rest:
        draft.lose(path, f"{batch} {what} cannot be shared by {gpus} GPUs: a step has {rows * gpus}")
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
    if not isinstance(found, list):
        shared.name_unused(draft, "integrations", "is not a list")
    for index, one in enumerate(found if isinstance(found, list) else []):
        settings = one.get("wandb") if isinstance(one, dict) else None
        if isinstance(settings, dict) and settings.get("project"):
            trackers.put_wandb(draft, "integrations", str(settings["project"]), str(settings.get("entity") or ""))
        else:
            draft.lose(("integrations", index), shared.OTHER_TRACKER, changes_training=False)


TABLE: Table = {
    "seed": to(f"{HYPER}.seed", values.whole),
    "metadata": harmless("add what you need to lineage.annotations"),
}
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
