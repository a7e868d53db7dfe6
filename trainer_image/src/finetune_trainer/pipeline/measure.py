"""What a run measures before and after the training: losses, answers to the job's prompts, and samples."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from finetune_api.handoff import ExitCode
from finetune_api.spec import Method, Mode
from finetune_trainer.distributed.sharding import is_sharded
from finetune_trainer.distributed.world import ALONE
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.ability import BATCH_TOKENS, Ability
from finetune_trainer.evaluation.choices import answer_questions
from finetune_trainer.evaluation.expectations import Expectations
from finetune_trainer.evaluation.generate import answer_all, stop_token_ids
from finetune_trainer.evaluation.held_out_answers import HeldOutAnswers
from finetune_trainer.evaluation.logprobs import HeldOut, mean_loss
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.evaluation.run_record import Answer
from finetune_trainer.models.loading import (
    quantised_layers,
)
from finetune_trainer.pipeline.finalize import (
    TrainingResult,
    collect_examples,
    describe_machine,
)
from finetune_trainer.pipeline.full_model import JUDGED_ROWS, is_full_model_requested
from finetune_trainer.pipeline.held_out_answers import count_correct
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.training.callbacks import restore_trained, save_trained
from finetune_trainer.training.methods import traits_of
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import LoopContext, TrainerParts

LARGEST_RECHECK_DIFFERENCE = 0.005


def measure_baseline(inputs: Inputs, trainer: LoopTrainer, loop: LoopContext, *, is_quantised: bool) -> None:
    """Record the untrained model's loss and its outputs, those of prompts from the first process unless sharded.

    What is counted of a quantised base is not measured here: that of the base in 16 bits is, after the training.
    """
    if inputs.validation and inputs.run.config.spec.evaluation.baseline:
        trainer.evaluate()
    loop.before.shown = trainer.show(inputs.shown)
    loop.before.questions_sha256 = inputs.questions_sha256
    with first_answers(inputs, trainer, loop, "answered") as is_answering:
        if is_answering:
            loop.before.answers = answer_prompts(inputs, trainer, loop, is_counted=not is_quantised)
            loop.before.ability = [] if is_quantised else measure_ability(inputs, trainer, loop)


def answer_changed_prompts(inputs: Inputs, trainer: LoopTrainer, loop: LoopContext, *, is_quantised: bool) -> None:
    """Record the untrained model's answers again if the job has other prompts than when the checkpoint was saved."""
    if loop.before.questions_sha256 == inputs.questions_sha256:
        return
    loop.before.questions_sha256 = inputs.questions_sha256
    with first_answers(inputs, trainer, loop, "answered") as is_answering:
        if is_answering:
            loop.before.answers = answer_prompts(inputs, trainer, loop, is_counted=not is_quantised)


@contextmanager
def first_answers(inputs: Inputs, trainer: LoopTrainer, loop: LoopContext, name: str) -> Iterator[bool]:
    """Yield whether this process answers: only the first one does, and the others wait for it without limit, unless the
    model is sharded."""
    key = f"{loop.name}/{name}"
    is_answering = loop.world.is_first or is_sharded(trainer.model)
    if not is_answering:
        loop.world.wait_key(key, inputs.run.on_work)
    yield is_answering
    if is_answering:
        loop.world.set_key(key)


def measure_result(
    inputs: Inputs, trainer: LoopTrainer, parts: TrainerParts, parameters: int, device: torch.device
) -> TrainingResult:
    """Restore, save and measure the best weights; of several processes, only the first one measures everything."""
    traits, loop, world = traits_of(inputs.run.config.spec.objective), parts.loop, parts.loop.world
    final = None
    if inputs.validation and traits.has_loss:
        is_trained = inputs.run.config.spec.mode is Mode.TRAIN
        final = restore_best(trainer, loop) if is_trained else measure_adapter(trainer, loop)
    save_trained(parts.model, inputs.best_weights)
    after = trainer.show(inputs.shown)
    stop_ids = stop_token_ids(trainer.model, inputs.answers) if traits.writes_text else []
    full_loss = measure_gate_loss(inputs, trainer) if world.is_first else None
    is_answering = world.is_first or is_sharded(parts.model)
    is_counted = parts.settings.method != Method.QLORA
    answers = answer_prompts(inputs, trainer, loop, is_counted=is_counted) if is_answering else []
    is_asked = is_answering and is_counted
    after_ability = measure_ability(inputs, trainer, loop) if is_asked else []
    return TrainingResult(
        settings=parts.settings,
        history=loop.history,
        plateau=loop.plateau,
        final=final,
        parameters=parameters,
        answers=pair_answers(inputs, loop.before.answers, answers) if world.is_first else [],
        began=loop.began,
        machine=describe_machine(device),
        examples=collect_examples(inputs.shown, loop.before.shown, after),
        stop_ids=stop_ids,
        quantised=quantised_layers(parts.model, parts.settings),
        full_loss=full_loss,
        ability=Ability(loop.before.ability, after_ability) if after_ability else None,
        held_out=count_answers(inputs, loop.before.answers, answers) if world.is_first else None,
    )


def pair_answers(inputs: Inputs, before: Sequence[str], tuned: Sequence[str]) -> list[Answer]:
    """Return each question with both answers, and whether the second one meets the expectation."""
    prompts = inputs.run.config.spec.evaluation.prompts or []
    expected = Expectations(prompts)
    shown = [one for one in inputs.questions if not one.is_counted]
    return [
        Answer(
            question.text,
            base,
            own,
            expected=prompts[at].expected if prompts else None,
            is_expected=expected.is_met(at, own),
            reference=question.reference,
            turns=question.turns,
        )
        for at, (question, base, own) in enumerate(zip(shown, before, tuned, strict=False))
    ]


def count_answers(inputs: Inputs, before: Sequence[str], tuned: Sequence[str]) -> HeldOutAnswers | None:
    """Return how many answers to the rows of `evaluation.answers` are correct; None without any."""
    return count_correct(inputs.run.config.spec, inputs.questions, before, tuned)


def measure_gate_loss(inputs: Inputs, trainer: LoopTrainer) -> float | None:
    """Return the trained model's loss on the tokens that the gate compares a full model on.

    The first process measures it alone; the loss of a sharded model is measured by the gate.
    """
    writes_text = traits_of(inputs.run.config.spec.objective).writes_text
    if not is_full_model_requested(inputs) or is_sharded(trainer.model) or not writes_text:
        return None
    return mean_loss(trainer.model, HeldOut(inputs.held_out(JUDGED_ROWS), inputs.run.on_work))


def restore_best(trainer: LoopTrainer, loop: LoopContext) -> Measured:
    """Restore the best weights; raise if their loss differs from the one measured in training."""
    restore_trained(trainer.model, loop.best_weights)
    final = trainer.measure()
    difference = abs(final.loss - loop.plateau.best_loss)
    if difference > LARGEST_RECHECK_DIFFERENCE * max(1.0, loop.plateau.best_loss):
        found = f"{final.loss:.5g} instead of {loop.plateau.best_loss:.5g}"
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"the restored best weights have an evaluation loss of {found}")
    loop.reporter.update(metrics={"eval_loss": final.loss} | final.figures())
    return final


def measure_adapter(trainer: LoopTrainer, loop: LoopContext) -> Measured:
    """Measure an adapter that was not trained here."""
    loop.reporter.set_stage("Evaluating")
    final = trainer.measure()
    loop.reporter.update(metrics={"eval_loss": final.loss} | final.figures())
    return final


def measure_ability(inputs: Inputs, trainer: LoopTrainer, loop: LoopContext) -> list[bool]:
    """Return whether the current model answers each question on general ability correctly."""
    questions = inputs.ability_questions
    if not questions:
        return []
    loop.reporter.set_stage("Answering")
    on_work = loop.on_work if is_sharded(trainer.model) else inputs.run.on_work

    def on_question(number: int) -> None:
        on_work()
        loop.reporter.set_share(number, len(questions))

    world = loop.world if is_sharded(trainer.model) else ALONE
    return answer_questions(trainer.model, inputs.labeler.tokenizer, questions, on_question, world)


def answer_prompts(inputs: Inputs, trainer: LoopTrainer, loop: LoopContext, *, is_counted: bool = True) -> list[str]:
    """Return the current model's answers to the questions; without those that are only counted, if it is not the one
    that will be served."""
    shown = [one.turns for one in inputs.questions if not one.is_counted]
    counted = [one.turns for one in inputs.questions if one.is_counted] if is_counted else []
    if not shown and not counted:
        return []
    loop.reporter.set_stage("Answering")
    answer = functools.partial(
        answer_all,
        trainer.model,
        inputs.labeler,
        stop_ids=stop_token_ids(trainer.model, inputs.answers),
        max_new_tokens=inputs.run.config.spec.evaluation.max_new_tokens,
        on_answer=loop.reporter.set_share,
    )
    # A server answers the shown prompts one by one, and its answers are compared with these.
    if not is_sharded(trainer.model):
        answer = functools.partial(answer, on_token=inputs.run.on_work)
        return answer(shown) + answer(counted, tokens_at_once=BATCH_TOKENS)
    answer = functools.partial(answer, on_token=loop.reporter.beat, world=loop.world, is_stopped=loop.pace.is_set)
    with loop.pace.block(loop.reporter.beat):
        answers = answer(shown) + answer(counted, tokens_at_once=_trained_at_once(inputs, trainer))
        loop.pace.raise_if_set()
    return answers


def _trained_at_once(inputs: Inputs, trainer: LoopTrainer) -> int:
    """Return the tokens of a micro-batch, which took more memory in training than an answer does: if one process of a
    sharded model runs out of memory, the others wait for it."""
    length = inputs.run.config.spec.hyperparameters.max_length or 0
    rows: int = trainer.args.per_device_train_batch_size
    return min(BATCH_TOKENS, rows * length)
