"""The check before a GPU is held: storage, claim, model and rows; starts in seconds, without torch."""

import logging
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_api.dataset.codes import RepairCode
from finetune_api.defaults import Facts
from finetune_api.handoff import Artifact, ExitCode, JobConfig, Outcome, Report
from finetune_api.objectives import Objective
from finetune_api.scalars import parse_quantity
from finetune_api.spec import FineTuneJobSpec, Method, Mode
from finetune_api.spec_sources import list_sources
from finetune_api.status import DatasetStatus, Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.data.checks.summary import explain_lost_reasoning
from finetune_trainer.data.rows import PromptRow
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.evaluation.early_stopping import explain_idle_patience
from finetune_trainer.evaluation.expectations import Expectations
from finetune_trainer.evaluation.questions import explain_missing_system
from finetune_trainer.models.adapters.factors import no_experts_error
from finetune_trainer.models.adapters.initial import InitialAdapter, check_initial_adapter, with_adapter
from finetune_trainer.models.adapters.patterns import require_expressions, require_one_value
from finetune_trainer.models.adapters.target_names import require_targets
from finetune_trainer.models.adapters.whole_names import refuse_adapter_on_head, require_whole_modules
from finetune_trainer.models.files.base_model import ModelFacts, check_model, pin_model, read_config
from finetune_trainer.models.files.bound_model import describe_adapter, describe_model
from finetune_trainer.models.files.context import context_length, position_limit
from finetune_trainer.models.files.teacher import CheckedTeacher, check_teacher
from finetune_trainer.models.gguf_architectures import require_convertible
from finetune_trainer.models.memory.activations import UNQUANTISED, adapted_layers
from finetune_trainer.models.memory.estimate import format_bytes
from finetune_trainer.models.memory.shape import HEAD, ModelShape, with_teacher
from finetune_trainer.models.resolve_settings import choose_settings, least_served
from finetune_trainer.models.trainable import require_adapter_on_experts, require_method, require_trainable
from finetune_trainer.pipeline.chat_template import describe_choice, read_choice
from finetune_trainer.pipeline.held_out_answers import explain_incomparable
from finetune_trainer.pipeline.prepare_dataset import PreparedDataset, collect_rejected, prepare_dataset
from finetune_trainer.publishing.claim import check_claim, claim_prefix, refused_uri
from finetune_trainer.publishing.lineage import status_lineage
from finetune_trainer.publishing.parent_result import check_parents
from finetune_trainer.publishing.publish import adopt_result
from finetune_trainer.publishing.pushes import check_pushes, push_published
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import ComputedRewards
from finetune_trainer.rewards.fetch import RewardFolders, check_reward_model, describe_reward_model
from finetune_trainer.rewards.rollouts import require_engine
from finetune_trainer.storage.hub.uris import is_hub_uri, pinned_commit, pinned_model_uri
from finetune_trainer.storage.protocol import OnBytes, ReadableStore, Store, join_uri
from finetune_trainer.tokenization.labeler import load_labeler

logger = logging.getLogger(__name__)

ASKED_ROWS = 4
"""Rows whose own answers the servers of rewards are asked about before a GPU is held."""
NO_ANSWER = "I do not know."
"""What is posted for a row without an answer of its own."""
SERVED_BYTES = 2
"""Bytes of a weight in 16 bits."""


def preflight(run: RunContext) -> Report:
    """Check everything that can be checked without a GPU, and leave the canonical rows under `output.uri`.

    The prefix is claimed once model and rows are good: a job that could never train leaves nothing behind but the rows
    that it rejected.
    """
    config, storage, workspace, on_bytes = run.config, run.storage, run.workspace, run.on_bytes
    start = run.reporter.start
    run.reporter.set_stage("Loading")
    _probe(config, storage)
    if check_claim(config, storage) and (adopted := adopt_result(config, storage, Outcome.ADOPTED, on_bytes)):
        return push_published(run, adopted)
    tokenizer = workspace / "tokenizer"
    shutil.rmtree(tokenizer, ignore_errors=True)  # a workspace that is used again may hold another model's
    check_parents(config, storage)
    check_pushes(run)
    start.end("storage")
    config = pin_model(config, storage)
    model = check_model(pinned_model_uri(config.spec.model), storage, tokenizer, on_bytes)
    architecture = read_config(tokenizer)
    require_trainable(architecture, config.spec.objective)
    if config.spec.output.gguf:
        require_convertible(architecture)
    adapter = check_initial_adapter(config, model.shape, storage, on_bytes)
    spec = with_adapter(config.spec, adapter)
    _check_experts(spec, model)
    _check_patterns(spec, model)
    _check_whole_modules(spec, model)
    _check_targets(spec, model)
    Expectations(config.spec.evaluation.prompts or [])
    reward = _check_rewards(config, storage, workspace, on_bytes)
    teacher = check_teacher(config, storage, workspace / "teacher", tokenizer, on_bytes)
    choice = read_choice(config)
    labeler = load_labeler(tokenizer, config.spec.model.uri, choice)
    start.end("model")
    try:
        bound = {
            "model": describe_model(config.spec.model, tokenizer, storage),
            **({"initialAdapter": describe_adapter(adapter)} if adapter else {}),
            **({"rewardModel": describe_reward_model(reward, storage)} if reward else {}),
            **({"teacher": describe_model(teacher.model, teacher.folder, storage)} if teacher else {}),
            **describe_choice(config, labeler),
        }
        dataset = prepare_dataset(
            config,
            storage,
            workspace,
            labeler,
            bound=bound,
            on_bytes=on_bytes,
            on_rows=run.on_work,
            template=choice.text,
        )
    except TrainerError as refused:
        raise _with_rejected_rows(refused, config, storage, workspace) from refused
    start.end("rows")
    _warn_of_lost_reasoning(dataset.status)
    if missing := explain_missing_system(config.spec.prompts, dataset.shared_system):
        logger.warning("%s: set system there, or the report and the gate ask without it", missing)
    _ask_graders(run, dataset)
    _check_evaluation(config, dataset)
    _check_context(config, architecture, dataset.longest)
    resolved = _choose(config, model, teacher, dataset, adapter)
    require_method(architecture, resolved.method)
    if resolved.target_experts:
        require_adapter_on_experts(architecture)
    _check_served(config, model, teacher, resolved)
    claim_prefix(config, storage)
    _upload(config, dataset, storage, on_bytes)
    start.end("upload")
    start.log("checked")
    return _report(config, model, teacher, dataset, resolved, adapter=adapter)


def _probe(config: JobConfig, storage: ReadableStore) -> None:
    """Check each bucket and claim once, so that wrong keys, a missing bucket or an unreachable endpoint fail early.

    A hub fails at the first request for a commit.
    """
    uris = [config.output_key(), *(one.uri for one in list_sources(config.spec) if not is_hub_uri(one.uri))]
    seen: list[list[str]] = []
    for uri in uris:
        place = uri.split("/")[:3]  # scheme and bucket, or claim
        if place not in seen:
            storage.probe(uri)
            seen.append(place)


def _check_experts(spec: FineTuneJobSpec, model: ModelFacts) -> None:
    """Refuse an adapter on experts if the model has none."""
    if spec.tuning.lora and spec.tuning.lora.target_experts and not model.has_experts:
        raise no_experts_error(spec.model.uri)


def _check_patterns(spec: FineTuneJobSpec, model: ModelFacts) -> None:
    """Refuse patterns of modules that are no regular expressions, or give one module two values.

    Whether each matches a module is checked with the targets, or once the model is loaded: files may name the modules
    differently.
    """
    if lora := spec.tuning.lora:
        require_expressions(lora)
        require_one_value(lora, adapted_layers(model.shape, lora) if model.shape else ())


def _check_targets(spec: FineTuneJobSpec, model: ModelFacts) -> None:
    """Refuse an adapter on the output head by its usual name, and on layers that the model's files do not have; the
    trainer finds the others."""
    lora = spec.tuning.lora
    if lora is None or spec.objective is Objective.REWARD_MODEL:
        return
    for name in set(lora.target_modules or ()) - set(lora.exclude_modules or ()):
        if name.rpartition(".")[2] == HEAD:
            refuse_adapter_on_head(name)
    if model.shape and spec.tuning.initial_adapter is None:
        require_targets(lora, model.shape)


def _check_whole_modules(spec: FineTuneJobSpec, model: ModelFacts) -> None:
    """Refuse names of modules to train in full that do not fit the model's files."""
    lora, shape = spec.tuning.lora, model.shape
    if lora and lora.modules_to_save and shape:
        require_whole_modules(
            lora.modules_to_save,
            shape,
            adapted_layers(shape, lora),
            in_4_bits=spec.tuning.method in {Method.AUTO, Method.QLORA} and shape.model_type not in UNQUANTISED,
            writes_text=spec.objective is not Objective.REWARD_MODEL,
        )


def _check_rewards(
    config: JobConfig, storage: ReadableStore, workspace: Path, on_bytes: OnBytes
) -> RewardFolders | None:
    require_engine(config.spec.rlhf)
    if config.spec.rewards:
        ComputedRewards(config.spec.rewards)
    return check_reward_model(config, storage, workspace / "reward", workspace / "tokenizer", on_bytes)


def _ask_graders(run: RunContext, dataset: PreparedDataset) -> None:
    """Ask each server of the rewards about the first rows and their own answers: it may not be there, or be wrong."""
    rewards = run.config.spec.rewards
    if not any(one.service for one in rewards):
        return
    rows = (row for row in read_accepted(dataset.directory / Artifact.TRAIN_ROWS) if isinstance(row, PromptRow))
    completions = [
        Completion(row.prompt, (row.reference or {}).get("answer") or NO_ANSWER, 0, True, row.tools, row.reference)
        for row in islice(rows, ASKED_ROWS)
    ]
    found = ComputedRewards(rewards, run.stop, run.on_work).ask_services(completions)
    shown = "; ".join(", ".join(f"{reward:g}" for reward in of_server) for of_server in found)
    logger.info("the rewards' servers gave the rows' own answers: %s", shown)


def _with_rejected_rows(refused: TrainerError, config: JobConfig, storage: Store, workspace: Path) -> TrainerError:
    """Return the error with where every rejected row is: they are uploaded, because they must be corrected."""
    if refused.code is not ExitCode.DATASET_UNUSABLE:
        return refused
    rows, uri = collect_rejected(workspace), refused_uri(config)
    if rows is None:
        return refused
    try:
        storage.upload(rows, uri)
    except TrainerError as problem:
        logger.warning("the rejected rows are not uploaded: %s", problem.message)
        return refused
    return TrainerError(refused.code, f"{refused.message}. Every rejected row: {uri}", refused.dataset)


def _warn_of_lost_reasoning(counts: DatasetStatus) -> None:
    lost = (counts.repaired_rows_by_code or {}).get(RepairCode.REASONING_LOST.value, 0)
    if explained := explain_lost_reasoning(lost, counts.accepted_rows or 0):
        logger.warning("%s", explained)


def _check_evaluation(config: JobConfig, dataset: PreparedDataset) -> None:
    """Refuse what needs held-out rows if none is held out, because there are too few, and answers that cannot be
    counted."""
    held_out = dataset.directory / Artifact.VALIDATION_ROWS
    if dataset.status.validation_rows and (why := explain_incomparable(config.spec, read_accepted(held_out))):
        raise InvalidConfig(why)
    if dataset.validation_samples:
        return
    why, fix = dataset.unsplit or "no row is held out", "add rows with other prompts, or name dataset.validation"
    if asked := _need_held_out_rows(config.spec):
        fix = fix if config.spec.mode is Mode.EVALUATE else f"{fix}, or remove {asked}"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{asked} needs held-out rows: {why}: {fix}")
    if config.spec.early_stopping:
        logger.warning("earlyStopping has no effect without held-out rows: %s: %s", why, fix)


def _need_held_out_rows(spec: FineTuneJobSpec) -> str:
    """Return what the job asks for and only held-out rows give; empty if it can do without them."""
    gate = spec.evaluation.gate
    asked = {
        "mode Evaluate": spec.mode is Mode.EVALUATE,
        "evaluation.answers": spec.evaluation.answers is not None,
        "evaluation.gate": gate is not None and (gate.max_eval_loss is not None or gate.must_improve),
    }
    return next((name for name, is_asked in asked.items() if is_asked), "")


def _check_served(config: JobConfig, model: ModelFacts, teacher: CheckedTeacher | None, resolved: Resolved) -> None:
    """After QLoRA a gate judges the adapter on the base in 16 bits. One GPU must hold it and its teacher, or, if one of
    them is shared out, each GPU its shares."""
    gate, budget = config.spec.evaluation.gate, config.spec.tuning.vram_budget
    if gate is None or budget is None or resolved.method != Method.QLORA:
        return
    limits = (gate.max_eval_loss, gate.max_forgotten, gate.min_correct)
    if not gate.must_improve and all(one is None for one in limits):
        return
    shape, available = _shape_of(model, teacher), parse_quantity(budget)
    needed = SERVED_BYTES * (model.parameters + (teacher.facts.parameters if teacher else 0))
    where, fix = "", "use a larger GPU"
    if (resolved.shard_base or resolved.shard_teacher) and shape:
        needed = least_served(config.spec, shape, resolved)
        where, fix = " on each GPU", "use larger GPUs, or more of them"
    if needed >= available:
        together = " with its teacher" if teacher else ""
        raise InvalidConfig(
            f"evaluation.gate judges the adapter on the base in 16 bits, as it is served, which{together} needs "
            f"{format_bytes(needed)}{where}, and tuning.vramBudget is {format_bytes(available)}: {fix}, or remove "
            "mustImprove, maxEvalLoss, maxForgotten and minCorrect"
        )


def _check_context(config: JobConfig, architecture: Mapping[str, Any], longest: int) -> None:
    """Refuse a sample that is longer than the model's table of positions; warn of one that is beyond its context.

    With computed positions a longer context may be the aim of the training.
    """
    limit, context = position_limit(architecture), context_length(architecture)
    field = f"spec.hyperparameters.maxLength is {config.spec.hyperparameters.max_length}"
    if limit and longest > limit:
        raise InvalidConfig(
            f"{field} and the longest sample has {longest} tokens, but the model has positions for {limit}: set "
            f"hyperparameters.maxLength to {limit} or less, or choose a model with a longer context"
        )
    if context and longest > context:
        logger.warning(
            "%s and the longest sample has %d tokens, more than the model's context of %d: set it to %d or less, "
            "unless a longer context is the aim",
            *(field, longest, context, context),
        )


def _upload(config: JobConfig, dataset: PreparedDataset, storage: Store, on_bytes: OnBytes) -> None:
    """Upload the rows, then the summary, which has their digests."""
    for name in [*(file.path for file in dataset.files), Artifact.DATASET_SUMMARY]:
        storage.upload(dataset.directory / name, join_uri(config.output_key(), name), on_bytes)


def _choose(
    config: JobConfig,
    model: ModelFacts,
    teacher: CheckedTeacher | None,
    dataset: PreparedDataset,
    adapter: InitialAdapter | None,
) -> Resolved:
    facts = Facts(
        parameters=model.parameters,
        train_rows=dataset.train_samples,
        validation_rows=dataset.validation_samples,
    )
    shape = _shape_of(model, teacher)
    resolved = choose_settings(with_adapter(config.spec, adapter), shape, facts, dataset.train_lengths)
    if idle := explain_idle_patience(config.spec.early_stopping, resolved):
        logger.warning("%s", idle)
    return resolved


def _shape_of(model: ModelFacts, teacher: CheckedTeacher | None) -> ModelShape | None:
    return with_teacher(model.shape, teacher.facts.shape) if teacher else model.shape


def _report(
    config: JobConfig,
    model: ModelFacts,
    teacher: CheckedTeacher | None,
    dataset: PreparedDataset,
    resolved: Resolved,
    *,
    adapter: InitialAdapter | None,
) -> Report:
    counts = dataset.status
    used = f"{counts.train_rows} to train on, {counts.validation_rows} to evaluate with"
    if config.spec.mode is Mode.EVALUATE:
        used = f"{counts.validation_rows} of them to evaluate with"
    if split := _describe_split(config, dataset):
        logger.info("%s", split)
    return Report(
        outcome=Outcome.VALIDATED,
        reason=Outcome.VALIDATED.value,
        message=(
            f"{counts.accepted_rows} of {counts.rows} rows can be used: {used}; {model.architecture} with "
            f"{model.parameters:,} weights{f'; {split}' if split else ''}"
        ),
        job_uid=config.uid,
        config_sha256=config.config_sha256,
        dataset=counts,
        resolved=resolved,
        lineage=status_lineage(
            config,
            dataset_sha256=dataset.digest(Artifact.TRAIN_ROWS),
            preflight_sha256=dataset.summary_sha256,
            initial_adapter_sha256=adapter.sha256 if adapter else None,
            teacher_revision=pinned_commit(teacher.model) if teacher else None,
            trained=False,
        ),
    )


def _describe_split(config: JobConfig, dataset: PreparedDataset) -> str:
    """Return by which factor the chat template multiplies the samples, if it does."""
    rows, samples = dataset.status.train_rows or 0, dataset.train_samples
    if config.spec.objective not in {Objective.INSTRUCTION, Objective.CHAT} or samples <= rows:
        return ""
    return (
        f"the chat template splits conversations, because it writes earlier answers differently once others follow: "
        f"{rows} rows are {samples} samples ({samples / rows:.2f} times as many)"
    )
