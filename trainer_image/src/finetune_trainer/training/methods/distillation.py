"""On-policy distillation: the model answers prompts, and learns a teacher's probabilities of each token of the answers.

Held-out prompts are answered once, by the teacher: the loss before and after the training is then of the same tokens,
and the model cannot lower it by other answers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler, SequentialSampler
from trl import DistillationConfig, DistillationTrainer
from typing_extensions import override

from finetune_trainer.distributed.sharding import is_sharded
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.files.teacher import FIELD
from finetune_trainer.peft_base import find_base
from finetune_trainer.tokenization.sample_table import longest_length
from finetune_trainer.training.callbacks import ReportProgress, RequireGradient
from finetune_trainer.training.methods.parts import LoopContext, Teacher, TrainerParts
from finetune_trainer.training.methods.prompts import (
    CHECKED_TOKENS,
    PromptTrainer,
    beat_per_token,
    leave_out_padding,
    precision_of,
    require_context,
    require_probabilities,
    sampling_by_probability,
    set_end_tokens,
    to_prompt_dataset,
)
from finetune_trainer.training.methods.sampling import FittingSampler
from finetune_trainer.training.methods.workarounds import leave_out_router_logits
from finetune_trainer.training.random_state import keep_random_state

ANSWER = "answer"
LARGEST_DIFFERENCE = 0.1
"""Nats, or share of the figure: rounding in 16 bits is far below, a missing scale of the logits above."""

SAME_TEACHER = (
    "distillation.teacher has the same probabilities as the model, which has nothing to learn from it: name another "
    "teacher, or continue an adapter (tuning.initialAdapter) that has moved the model away from it"
)


class StudentTrainer(PromptTrainer, DistillationTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with our prompts, and the teacher's answers to the held-out ones."""

    eval_dataset: Dataset | None
    model_wrapped: torch.nn.Module

    def __init__(self, loop: LoopContext, teacher: Teacher, **arguments: Any) -> None:
        self._sampler = FittingSampler()
        super().__init__(loop, teacher_model=teacher.model, **arguments)
        self._given: list[list[int]] | None = None
        self._run_in_forward: Callable[..., Any] = vars(self)["_forward_redirection"]
        self._forward_redirection = self._redirect
        leave_out_router_logits(teacher.model)
        for model in (self.model, teacher.model):
            leave_out_padding(model)
        for model in (self.model, teacher.model):
            beat_per_token(model, loop)
        self._require_loss_of_logits()
        if self.eval_dataset is not None:
            self.eval_dataset = self._with_answers(self.eval_dataset, teacher)

    def _redirect(
        self, wrapper: torch.nn.Module, model: torch.nn.Module, method: Callable[..., Any], *given: Any, **options: Any
    ) -> Any:
        """Run TRL's method inside the forward pass by which FSDP gathers the weights: under an adapter, the base's.

        The arguments are bound: FSDP may cast those of a forward pass to BF16, and one of them is the number of tokens
        by which the loss is divided.
        """
        base = find_base(model)
        if is_sharded(base):
            wrapper = model = base
        return self._run_in_forward(wrapper, model, partial(method, *given, **options))

    @override
    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int]:
        """Measure held-out rows in their order."""
        return SequentialSampler(eval_dataset)

    @override
    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the tensors of a micro-batch: of training rows with sampled answers, of others with the teacher's."""
        self._given = None if self.model.training else [row[ANSWER] for row in generation_batch]
        prepared: dict[str, torch.Tensor] = super()._prepare_inputs(generation_batch)
        return prepared

    @override
    def _generate_single_turn(self, prompt_ids: list[list[int]], *arguments: Any, **options: Any) -> list[list[int]]:
        """Sample this process's answers; collectives follow when all processes have theirs."""
        if self._given is not None:
            return self._given
        model, generate = self.accelerator.unwrap_model(self.model_wrapped), super()._generate_single_turn
        with self._loop.pace.block(self._loop.reporter.beat), sampling_by_probability(model):
            return self._sampler.sample(
                model, prompt_ids, lambda batch: generate(batch, *arguments, **options), self.state.global_step
            )

    @override
    def _compute_loss(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute in the number format of the other objectives: TRL's way to the loss leaves out the models' own."""
        with self.accelerator.autocast():
            found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = super()._compute_loss(*arguments)
        return found

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        return int(inputs["completion_mask"].sum())

    def _with_answers(self, prompts: Dataset, teacher: Teacher) -> Dataset:
        """Add the teacher's answers, which an earlier run may have written."""
        if not teacher.answers.exists():
            self._loop.reporter.set_stage("Reference")
            _write_answers(self._ask_teacher(prompts), teacher)
        known = load_file(teacher.answers)
        answers = [ids.tolist() for ids in known["ids"].split(known["lengths"].tolist())]
        if self._owners:
            self._owners = [(len(answer), prompt) for answer, (_, prompt) in zip(answers, self._owners, strict=True)]
        return prompts.add_column(ANSWER, answers)

    def _ask_teacher(self, prompts: Dataset) -> list[list[int]]:
        """Sample one answer to each prompt, at most as many at once as a process samples in a step.

        Several processes share the batches, and sample as often, because the teacher may be sharded. Each batch has a
        seed of its own, so that one process can repeat all.
        """
        world, size = self._loop.world, self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        batches = [prompts[start : start + size]["prompt"] for start in range(0, len(prompts), size)]
        own: list[list[list[int]]] = []
        student, self.model_wrapped = self.model_wrapped, self.teacher_model
        try:
            with keep_random_state():
                for number, _ in world.shard(range(len(batches))):
                    torch.manual_seed(self.args.seed + number)
                    self._loop.reporter.set_share(number, len(batches))
                    own.append(self._generate_single_turn(batches[number], None, {}))
        finally:
            self.model_wrapped = student
        return [answer for batch in world.gather_shards(own, len(batches)) for answer in batch]

    def _require_loss_of_logits(self) -> None:
        """Raise unless both models' logits are finite and TRL's loss is that of them: it is made from hidden states and
        output heads, and an architecture may compute something in between that TRL does not know."""
        ids = torch.tensor([self.train_dataset[0]["prompt"][-CHECKED_TOKENS:]], device=self.accelerator.device)
        length = ids.shape[1] // 2
        parts = {"prompt": ids[:, :-length], "completion": ids[:, -length:]}
        inputs = {f"{name}_ids": part for name, part in parts.items()}
        inputs |= {f"{name}_mask": torch.ones_like(part) for name, part in parts.items()}
        self.model.eval()
        with torch.no_grad():
            with self.accelerator.autocast():
                own, taught = (self._log_probs(model, ids, length) for model in (self.model, self.teacher_model))
            require_probabilities(self.model, own, "spec.model", precision_of(self.args))
            require_probabilities(self.teacher_model, taught, FIELD, precision_of(self.args))
            # After a whole pass, which gathers the output head of a sharded teacher once for all passes of the loss.
            loss, entropy, _ = self._compute_loss(self.accelerator.unwrap_model(self.model), inputs, None)
        expected = divergence(own, taught, self.beta)
        own_entropy = -(own.exp() * own).sum(-1).mean()
        for found, true in ((loss, expected), (entropy / length, own_entropy)):
            if abs(float(found) - float(true)) > LARGEST_DIFFERENCE * max(1.0, abs(float(true))):
                student = find_base(self.model)
                kinds = " and ".join(sorted({type(model).__name__ for model in (student, self.teacher_model)}))
                raise InvalidConfig(
                    f"TRL's distillation loss is not that of the logits of {kinds} ({float(found):.3g} instead of "
                    f"{float(true):.3g} nats): use a model and a teacher of another architecture"
                )

    def _log_probs(self, model: torch.nn.Module, ids: torch.Tensor, length: int) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False).logits[0, -length - 1 : -1]
        return torch.log_softmax(logits.float() / self.temperature, -1)


def divergence(own: torch.Tensor, taught: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the mean generalised Jensen-Shannon divergence of log-probabilities, one row per token."""
    if beta in {0.0, 1.0}:
        first, second = (own, taught) if beta else (taught, own)
        return (first.exp() * (first - second)).sum(-1).mean()
    weights = own.new_tensor([1 - beta, beta]).log()
    mixed = torch.logsumexp(torch.stack([own, taught]) + weights[:, None, None], 0)
    sides = (beta * taught.exp() * (taught - mixed), (1 - beta) * own.exp() * (own - mixed))
    return sum(sides, torch.zeros_like(mixed)).sum(-1).mean()


def build_distillation_trainer(parts: TrainerParts, teacher: Teacher) -> StudentTrainer:
    """Return the trainer, ready for `evaluate()`, `train()` and `measure()`."""
    settings, loop = parts.settings, parts.loop
    longest = longest_length(parts.train, parts.validation)
    for model in (parts.model, teacher.model):
        require_context(model, longest, settings.max_completion_length or 0, "distillation")
    set_end_tokens(parts.model, parts.tokenizer, teacher.stop_id)
    train_dataset = to_prompt_dataset(parts.train, at_least=settings.global_batch_size or 1)
    arguments = parts.trainer_arguments(train_dataset, to_prompt_dataset)
    _, *callbacks = arguments["callbacks"]
    for one in callbacks:
        if isinstance(one, RequireGradient):
            one.cause = SAME_TEACHER
    progress = ReportProgress(loop.reporter, loop.history, loop.world, rows=len(parts.train), has_full_steps=True)
    return StudentTrainer(
        teacher=teacher,
        args=DistillationConfig(
            **parts.library_settings(),
            max_completion_length=settings.max_completion_length,
            temperature=settings.temperature,
            beta=settings.beta,
            disable_dropout=True,
        ),
        **arguments | {"callbacks": [progress, *callbacks]},
    )


def _write_answers(answers: Sequence[Sequence[int]], teacher: Teacher) -> None:
    ids = torch.tensor([token for answer in answers for token in answer], dtype=torch.long)
    save_file({"ids": ids, "lengths": torch.tensor([len(answer) for answer in answers])}, teacher.answers)
