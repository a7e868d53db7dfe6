"""The training run, top to bottom: from the rows that preflight wrote to a published, verified result."""

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

# Read when the libraries below are imported: models come from storage alone, and nobody is told of the run.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Nothing is compiled here, but bitsandbytes prepares for it, and looks for a C++ compiler that the image does not have.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.handoff import Artifact, ExitCode, Report
from finetune_api.spec import Merge, Method
from finetune_api.status import Metrics, Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.distributed.rank_layout import PARTED
from finetune_trainer.distributed.sharding import is_sharded
from finetune_trainer.distributed.world import ALONE, AgreedStop, World
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.expectations import Expectations
from finetune_trainer.evaluation.generate import answer_all, stop_token_ids
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.logprobs import HeldOut, mean_loss
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.evaluation.run_record import Answer
from finetune_trainer.models.adapter_output import continue_adapter, save_adapter, save_tokenizer
from finetune_trainer.models.loading import (
    DTYPES,
    adapted_modules,
    complete_settings,
    find_device,
    load_for_training,
    load_tokenizer,
    quantised_layers,
    refuse_tied_merge,
    trained_tensors,
)
from finetune_trainer.models.memory_estimate import micro_batches, share_batch
from finetune_trainer.monitoring.reporter import work_beat
from finetune_trainer.monitoring.tracking import Trackers, track
from finetune_trainer.pipeline.finalize import SHOWN_SAMPLES, Trained, build_record, build_result, examples
from finetune_trainer.pipeline.full_model import JUDGED_ROWS, is_asked, make_full_model
from finetune_trainer.pipeline.inputs import Inputs, load_inputs
from finetune_trainer.publishing.publish import publish
from finetune_trainer.report.document import write_report
from finetune_trainer.rewards.computed import ComputedRewards, Judge, Scorer
from finetune_trainer.rewards.scorer import load_reward_model
from finetune_trainer.storage.hub.uris import hub_name, pinned_commit
from finetune_trainer.training.callbacks import early_stopping_status, restore_trained, save_trained
from finetune_trainer.training.checkpoint_files import MEMORY, Before, Memory, replay, take_best_weights
from finetune_trainer.training.checkpoints import Checkpoints, remove_checkpoints
from finetune_trainer.training.methods import Traits, build_trainer, traits_of
from finetune_trainer.training.methods.loop import Watch, WatchedTrainer

logger = logging.getLogger(__name__)

LARGEST_RECHECK_DIFFERENCE = 0.005


def train(run: RunContext) -> Report:
    """Trains, checks and publishes; returns the report that publishing proved."""
    run.reporter.stage("Loading")
    inputs = load_inputs(run)
    device = find_device()
    checkpoints = Checkpoints(inputs.run, inputs.base_sha256, inputs.rows.digests)
    with _track(inputs) as trackers:
        trained = train_within_memory(inputs, device, checkpoints)
        trackers.settle()
        report = finish(inputs, trained, device)
        trackers.published(report)
    return report


def _track(inputs: Inputs, *, is_first: bool = True) -> AbstractContextManager[Trackers]:
    run, result = inputs.run, inputs.result
    return track(
        run.config, result=result, workspace=run.workspace, reporter=run.reporter, stop=run.stop, is_first=is_first
    )


def train_along(run: RunContext, world: World) -> Report | None:
    """Trains together with other processes; the first of them publishes and returns the report."""
    run.reporter.stage("Loading")
    with each_pod_in_turn("inputs", world, run.on_work):
        inputs = load_inputs(run)
    world.meet("loaded", run.on_work)
    device = find_device(world)
    checkpoints = Checkpoints(inputs.run, inputs.base_sha256, inputs.rows.digests)
    settings = share_batch(complete_settings(run.config.resolved or Resolved(), device), world.size)
    with _track(inputs, is_first=world.is_first) as trackers:
        try:
            trained = train_once(inputs, settings, device, checkpoints, world)
        except torch.OutOfMemoryError as error:  # the others wait in the middle of a step: none tries again
            told = f"rank {world.rank} is out of GPU memory: lower hyperparameters.perDeviceTrainBatchSize or maxLength"
            raise TrainerError(ExitCode.GPU_OUT_OF_MEMORY, f"{told}, or set gradientCheckpointing true") from error
        world.part(run.on_work)
        (run.workspace / PARTED).touch()
        if not world.is_first:
            return None
        trackers.settle()
        report = finish(inputs, trained, device)
        trackers.published(report)
        return report


def finish(inputs: Inputs, trained: Trained, device: torch.device) -> Report:
    """Merges, judges, reports and publishes what was trained."""
    inputs.run.stop.raise_if_set()
    full = make_full_model(inputs, trained)
    inputs.run.stop.raise_if_set()
    record = build_record(inputs, trained, full, device)
    write_report(record, inputs.result)
    report = publish(inputs.run, inputs.result, build_result(inputs, record))
    remove_checkpoints(inputs.run.config, inputs.run.storage)
    return report


def train_within_memory(inputs: Inputs, device: torch.device, checkpoints: Checkpoints) -> Trained:
    """Trains; when the GPU's memory does not suffice, again with half the micro-batch and the same effective batch."""
    for settings in micro_batches(share_batch(complete_settings(inputs.run.config.resolved or Resolved(), device), 1)):
        try:
            return train_once(inputs, settings, device, checkpoints)
        except torch.OutOfMemoryError:
            logger.warning("out of GPU memory with %s rows a batch", settings.per_device_train_batch_size)
        gc.collect()  # outside the handler, whose traceback keeps the tensors alive
        torch.cuda.empty_cache()
    raise TrainerError(
        ExitCode.GPU_OUT_OF_MEMORY,
        "the GPU's memory does not suffice for one row a batch: lower hyperparameters.maxLength, set tuning.method "
        "QLoRA or gradientCheckpointing true, or use a larger GPU",
    )


def train_once(
    inputs: Inputs,
    settings: Resolved,
    device: torch.device,
    checkpoints: Checkpoints,
    world: World = ALONE,
) -> Trained:
    """Loads, measures and asks the base, trains, restores the best weights, measures and asks again, saves.

    The trainer is built on the untouched base also when the training goes on from a checkpoint, for a reference is
    taken then; the checkpoint's weights come with `train`.
    """
    spec = inputs.run.config.spec
    traits = traits_of(spec.objective)
    resumed = restore(inputs.run, checkpoints, world)
    watch = start_watch(inputs, checkpoints, resumed, world)
    model = load_for_training(inputs.model, settings, device, writes_text=traits.writes_text, world=world)
    if inputs.initial_adapter:
        continue_adapter(model, inputs.initial_weights)
    if settings.method != Method.FULL and spec.output.merge is not Merge.NONE:
        refuse_tied_merge(model)
    settings = with_targets(settings, model)
    tokenizer = load_tokenizer(inputs.model)
    trainer = build_trainer(
        spec.objective,
        model,
        tokenizer,
        settings,
        watch,
        train=inputs.train,
        validation=inputs.validation,
        scratch=inputs.run.workspace / "trainer",
        judge=judge_of(inputs, settings, device),
    )
    parameters = sum(tensor.numel() for tensor in trained_tensors(model).values())
    inputs.run.reporter.update(resolved=settings, metrics={"trainable_parameters": parameters})
    shown = (inputs.validation or inputs.train)[:SHOWN_SAMPLES]
    if not resumed:
        if inputs.validation and spec.evaluation.baseline:
            trainer.evaluate()
        watch.before.shown = trainer.show(shown)
        watch.before.answers = answer_by_first(inputs, trainer, watch, traits)
    trainer.train(str(resumed) if resumed else None)
    watch.stop.raise_if_set()
    final = restore_best(trainer, watch) if inputs.validation and traits.has_loss else None
    save_trained(model, inputs.best_weights)
    after = trainer.show(shown)
    stop_ids = stop_token_ids(trainer.model, inputs.answers) if traits.writes_text else []
    full_loss = loss_for_gate(inputs, trainer) if world.is_first else None
    is_needed = world.is_first or is_sharded(model)
    tuned_answers = answer(inputs, trainer, watch, traits) if is_needed else watch.before.answers
    if not world.is_first:
        return Trained(settings, watch.history, watch.plateau, final, parameters, [], watch.began, stop_ids=stop_ids)
    if settings.method != Method.FULL:
        save_adapter(model, inputs.result / Artifact.ADAPTER, hub_name(spec.model.uri), pinned_commit(spec.model))
        save_tokenizer(inputs.model, inputs.result / Artifact.ADAPTER, inputs.labeler)
    before = watch.before
    return Trained(
        settings,
        watch.history,
        watch.plateau,
        final,
        parameters,
        told_apart(inputs, traits, before.answers, tuned_answers),
        watch.began,
        examples(shown, before.shown, after),
        stop_ids=stop_ids,
        quantised=quantised_layers(model, settings),
        full_loss=full_loss,
    )


def told_apart(inputs: Inputs, traits: Traits, before: Sequence[str], tuned: Sequence[str]) -> list[Answer]:
    """Each question with both answers, and whether the second holds what is expected."""
    prompts = inputs.run.config.spec.evaluation.prompts or []
    expected = Expectations(prompts)
    return [
        Answer(asked, base, own, expected=prompts[at].expected, is_expected=expected.is_met(at, own))
        for at, (asked, base, own) in enumerate(zip(questions(inputs, traits), before, tuned, strict=True))
    ]


def loss_for_gate(inputs: Inputs, trainer: WatchedTrainer) -> float | None:
    """The trained model's loss on the tokens that a full model is judged on, by the first process alone; of one that is
    shared out between processes the gate measures it."""
    if not is_asked(inputs) or is_sharded(trainer.model) or not traits_of(inputs.run.config.spec.objective).writes_text:
        return None
    held_out = HeldOut(inputs.held_out[:JUDGED_ROWS], inputs.run.on_work)
    return mean_loss(trainer.model, held_out)


@contextmanager
def each_pod_in_turn(name: str, world: World, on_work: Callable[[], None]) -> Iterator[None]:
    """In each pod one process works first, and downloads; then the others, which find its files."""
    word = f"{name}/{world.node}"
    if world.local_rank:
        world.wait(word, on_work)
    yield
    if not world.local_rank:
        world.tell(word)


def restore(run: RunContext, checkpoints: Checkpoints, world: World) -> Path | None:
    """The checkpoint to go on from; the first process chooses, and the others take the same."""
    chosen = None
    if not world.is_first:
        chosen = int(world.wait("resumed", run.on_work))
    with each_pod_in_turn("checkpoint", world, run.on_work):
        found = checkpoints.restore(chosen)
        if world.is_first:
            world.tell("resumed", str(checkpoints.last_step))
    if found and world.is_first and processes_of(found) != world.size:
        note = f"the checkpoint was saved by {processes_of(found)} processes, not {world.size}: the rows of each step"
        run.reporter.update(progress={"note": f"{note} stay the same, dropout is drawn anew"})
    return found


def processes_of(checkpoint: Path) -> int:
    """How many processes saved the checkpoint: each left its random state."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def judge_of(inputs: Inputs, settings: Resolved, device: torch.device) -> Judge | None:
    """Who rewards the answers of a policy, with a reward model beside it where the job names one."""
    rlhf = inputs.run.config.spec.rlhf
    if rlhf is None:
        return None
    scorer: Scorer = ComputedRewards(rlhf.rewards or [])
    if inputs.reward:
        scorer = load_reward_model(inputs.reward, DTYPES[str(settings.precision)], device, inputs.run.on_work)
    return Judge(scorer, inputs.labeler.stop_ids()[0])


def start_watch(inputs: Inputs, checkpoints: Checkpoints, resumed: Path | None, world: World = ALONE) -> Watch:
    """The record of the run: a new one, for an earlier try, ended by the GPU's memory, leaves nothing in it, or that of
    the checkpoint to go on from."""
    run, early = inputs.run, inputs.run.config.spec.early_stopping
    history = History(inputs.result / Artifact.METRICS)
    plateau = Plateau(early.patience, early.min_delta, early.warmup_evaluations) if early else Plateau(None)
    memory = Memory(Before(), Metrics(), 0.0)
    if resumed:
        history.load(resumed / Artifact.METRICS)
        replay(history, plateau)
        take_best_weights(resumed, inputs.best_weights, plateau)
        memory = Memory.read(resumed / MEMORY)
        run.reporter.update(
            metrics=memory.metrics.model_dump(exclude_none=True), early_stopping=early_stopping_status(plateau, None)
        )
    return Watch(
        reporter=run.reporter,
        stop=AgreedStop(run.stop, world) if world.size > 1 else run.stop,
        history=history,
        plateau=plateau,
        best_weights=inputs.best_weights,
        checkpoints=checkpoints,
        before=memory.before,
        world=world,
        began=time.monotonic() - memory.seconds,
    )


def with_targets(settings: Resolved, model: PreTrainedModel | PeftModel) -> Resolved:
    """The settings with the modules that the adapter really went to."""
    if settings.method == Method.FULL:
        return settings
    return settings.model_copy(update={"target_modules": adapted_modules(model)})


def restore_best(trainer: WatchedTrainer, watch: Watch) -> Measured:
    """Puts the best weights back; measured again, they must give the loss that they were kept for."""
    restore_trained(trainer.model, watch.best_weights)
    final = trainer.measure()
    difference = abs(final.loss - watch.plateau.best_loss)
    if difference > LARGEST_RECHECK_DIFFERENCE * max(1.0, watch.plateau.best_loss):
        told = f"{final.loss:.5g} instead of {watch.plateau.best_loss:.5g}"
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"the restored best weights have an evaluation loss of {told}")
    watch.reporter.update(metrics={"eval_loss": final.loss} | final.figures())
    return final


def questions(inputs: Inputs, traits: Traits) -> list[str]:
    """What the model is asked before and after; a model that writes no text is asked nothing."""
    prompts = inputs.run.config.spec.evaluation.prompts or []
    return [prompt.prompt for prompt in prompts] if traits.writes_text else []


def answer_by_first(inputs: Inputs, trainer: WatchedTrainer, watch: Watch, traits: Traits) -> list[str]:
    """The answers before the training. Where every process has the whole model the first one asks, and the others wait;
    a model that is shared out answers with all of them."""
    if watch.world.is_first or is_sharded(trainer.model):
        answers = answer(inputs, trainer, watch, traits)
        watch.world.tell("answered")
        return answers
    watch.world.wait("answered", inputs.run.on_work)
    return []


def answer(inputs: Inputs, trainer: WatchedTrainer, watch: Watch, traits: Traits) -> list[str]:
    """The answers of the model as it is to the job's questions."""
    asked = questions(inputs, traits)
    if not asked:
        return []
    watch.reporter.stage("Answering")
    return answer_all(
        trainer.model,
        inputs.labeler,
        asked,
        stop_ids=stop_token_ids(trainer.model, inputs.answers),
        max_new_tokens=inputs.run.config.spec.evaluation.max_new_tokens,
        on_token=work_beat(watch.reporter, watch.stop) if is_sharded(trainer.model) else inputs.run.on_work,
    )
