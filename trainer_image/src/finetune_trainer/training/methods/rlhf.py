"""Learning from rewards (GRPO, RLOO): the model answers prompts, and answers with a higher reward become likelier."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer
from typing_extensions import override

from finetune_api.comparing.groups import EVALUATED_PROMPTS
from finetune_api.objectives import Algorithm
from finetune_api.status import Resolved
from finetune_trainer.distributed.sharding import is_sharded, require_same_gradients
from finetune_trainer.distributed.world import World
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.evaluation.measurements import RewardPoint, reward_mean
from finetune_trainer.models.adapters.saved import ZERO_AT_START
from finetune_trainer.models.adapters.whole_modules import share_whole_modules
from finetune_trainer.models.loading import DTYPES, load_plain, load_sharded, trained_tensors
from finetune_trainer.rewards.computed import Judge
from finetune_trainer.rewards.rollouts import Rollouts, ScoredAnswer
from finetune_trainer.tokenization.sample_table import as_samples, longest_length
from finetune_trainer.tokenization.samples import EncodedPrompt
from finetune_trainer.training.callbacks import (
    KeepWeights,
    ReportProgress,
    require_gradient,
    restore_trained,
    save_trained,
)
from finetune_trainer.training.methods.parts import LoopContext, TrainerParts
from finetune_trainer.training.methods.prompts import (
    PromptTrainer,
    beat_per_token,
    leave_out_padding,
    precision_of,
    require_context,
    require_finite_logits,
    sampling_by_probability,
    set_end_tokens,
    to_prompt_dataset,
)
from finetune_trainer.training.methods.reference import FROZEN_COPY
from finetune_trainer.training.methods.rollout_engine import (
    attach_engine,
    engine_arguments,
    require_linear_adapter,
    starting_engine,
)
from finetune_trainer.training.methods.sampling import FittingSampler

NEVER = -1
"""TRL gives vLLM the weights once a step; those of a measurement may be others of the same step."""


class PolicyTrainer(PromptTrainer):
    """A mixin in front of GRPO's and RLOO's trainers: our rewards, and a held-out reward, not a loss."""

    def __init__(
        self, loop: LoopContext, rollouts: Rollouts, held_out: Sequence[EncodedPrompt], **arguments: Any
    ) -> None:
        self._rollouts = rollouts
        self._held_out = held_out
        self._sampler = FittingSampler()
        with loading_reference(arguments["model"], arguments["args"], loop.world):
            super().__init__(loop, reward_funcs=[self._reward], **arguments)
        if isinstance(self.model, PeftModel):
            _reduce_reference(self.model)
        for model in filter(None, (self.model, self.ref_model)):
            leave_out_padding(model)
        beat_per_token(self.model, loop)
        self.model.eval()
        require_finite_logits(self.model, self.train_dataset[0]["prompt"], precision_of(self.args))
        if self.use_vllm:
            attach_engine(self, loop.on_own_work)

    @override
    def _generate_single_turn(self, prompt_ids: Sequence[list[int]], *arguments: Any, **options: Any) -> Any:
        """Sample this process's answers; collectives follow when all processes have theirs."""
        generate = super()._generate_single_turn
        is_pair = isinstance(self, GRPOTrainer)  # its other part is of vLLM

        def answer(batch: Sequence[list[int]]) -> list[list[int]]:
            found: Any = generate(batch, *arguments, **options)
            return list(found[0] if is_pair else found)

        with self._loop.pace.block(self._loop.reporter.beat), sampling_by_probability(self.model):
            if self.use_vllm:
                return generate(prompt_ids, *arguments, **options)
            answers = self._sampler.sample(self.model, prompt_ids, answer, self.state.global_step)
        return (answers, None) if is_pair else answers

    def _reward(self, **options: Any) -> list[float]:
        """Score this process's answers, as TRL's reward function."""
        with self._loop.pace.block(self._loop.reporter.beat):
            return self._rollouts.reward(**options)

    @override
    def _calculate_rewards(self, *arguments: Any) -> torch.Tensor:
        """Return the rewards of all processes' answers, group by group."""
        rewards: torch.Tensor = super()._calculate_rewards(*arguments)
        is_left_out = None
        if self.mask_truncated_completions:
            is_cut = [self._rollouts.is_cut(ids) for ids in arguments[-1]]
            is_left_out = self.accelerator.gather(torch.tensor(is_cut, device=rewards.device)).tolist()
        self._rollouts.count_groups(rewards[:, 0].tolist(), is_left_out)
        return rewards

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the share of groups with equal rewards; RLOO counts rewards from which it has subtracted the
        divergence."""
        if "loss" in logs:
            self._metrics["train"]["frac_reward_zero_std"] = [self._rollouts.flat_share]
        super().log(logs, start_time)

    def _sample(self, prompts: list[list[int]]) -> list[list[int]]:
        """Return one sampled answer to each prompt, including its end token."""
        raise NotImplementedError

    @override
    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train; restore the weights of the highest held-out reward if rows are held out.

        Raise if no group of answers ever differed in reward, because then nothing was learnt.
        """
        result = super().train(*arguments, **options)
        if not has_spread(self._rollouts, self._loop):
            is_masked = self.mask_truncated_completions
            raise InvalidConfig(
                f"all answers to a prompt had the same reward{' or were cut' if is_masked else ''} in each of "
                f"{self._rollouts.groups} groups, so nothing can be learnt: raise "
                f"{'rlhf.maxCompletionLength, ' if is_masked else ''}rlhf.temperature or rlhf.numGenerations, or "
                "choose a reward that differs between answers"
            )
        if FROZEN_COPY in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter(FROZEN_COPY)  # otherwise it is published too
        if self._loop.plateau.best_step is not None:
            self._restore_best(self._loop.plateau.best_step)
        return result

    def _restore_best(self, step: int) -> None:
        """Restore the best weights and measure again with another seed: the highest of several rewards is biased."""
        self._loop.reporter.set_stage("Evaluating")
        restore_trained(self.model, self._loop.best_weights)
        point = self.measure_reward(self.args.seed + 1)
        self._loop.history.set_final_reward(replace(point, step=step))
        self._loop.reporter.update(metrics={"eval_reward": point.reward})

    @override
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the reward of one answer to each held-out prompt."""
        step = self.state.global_step
        self._loop.reporter.set_stage("Evaluating" if step else "Baseline")
        point = self.measure_reward()
        self._loop.history.add_reward(point)
        metrics = {"eval_reward": point.reward}
        return self._report_evaluation(metrics, metrics if step else metrics | {"baseline_eval_reward": point.reward})

    def measure_reward(self, seed: int | None = None) -> RewardPoint:
        """Return the held-out reward of the current weights; the default seed is the same each time."""
        written = self.show(self._held_out, seed)
        lengths = [one.tokens for one in written]
        return reward_mean(
            self.state.global_step,
            [one.reward for one in written],
            completion_length=sum(lengths) / len(lengths),
            clipped_share=sum(not one.ended for one in written) / len(written),
            parts=[one.parts for one in written],
            owners=self._owners,
        )

    def measure_again(self, sampled: RewardPoint | None) -> RewardPoint | None:
        """Sample answers with the seed that the point was sampled with: the baseline's or that of the result."""
        if sampled is None:
            return None
        return replace(self.measure_reward(self.args.seed + bool(sampled.step)), step=sampled.step)

    def show(self, samples: Sequence[EncodedPrompt], seed: int | None = None) -> list[ScoredAnswer]:
        """Return one sampled answer to each prompt with its reward; the training's random state does not change.

        Several processes share the batches, and sample as often, because the model may be sharded. Each batch has a
        seed of its own, so that one process can repeat all.
        """
        self.model.eval()
        self._last_loaded_step = NEVER
        world, first = self._loop.world, self.args.seed if seed is None else seed
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        sampled: list[tuple[Sequence[EncodedPrompt], list[list[int]]]] = []
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._loop.pace.block(self._loop.reporter.beat):
            for number, is_counted in world.shard(range(len(batches))):
                torch.manual_seed(first + 2 * number)  # the other seed of a measurement is one higher
                answers = self._sample([list(sample.prompt_ids) for sample in batches[number]])
                if is_counted:
                    sampled.append((batches[number], answers))
            # After all of them: scoring has no collective, and a stop may end it in one process.
            own = [self._rollouts.score_answers(batch, answers) for batch, answers in sampled]
        self._last_loaded_step = NEVER
        return _gather_answers(own, len(batches), world)


class GroupTrainer(PolicyTrainer, GRPOTrainer):  # type: ignore[misc]  # the library has no types
    """Group-relative advantages: each answer minus the mean of its prompt's group."""

    def _sample(self, prompts: list[list[int]]) -> list[list[int]]:
        return list(self._generate_single_turn(prompts, None, {}, 1)[0])


class LeaveOneOutTrainer(PolicyTrainer, RLOOTrainer):  # type: ignore[misc]  # the library has no types
    """REINFORCE with a baseline: each answer minus the mean of the other answers to its prompt."""

    def _sample(self, prompts: list[list[int]]) -> list[list[int]]:
        return list(self._generate_single_turn(prompts, None, {}))


def has_spread(rollouts: Rollouts, loop: LoopContext) -> bool:
    """Return whether the rewards of a group differed, in this run or one that it resumed; before, nothing is learnt."""
    earlier = [point.flat_share for point in loop.history.train if point.flat_share is not None]
    return bool(rollouts.groups_with_spread) or min(earlier, default=1.0) < 1.0


class KeepMostRewarded(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Keep the weights of the highest held-out reward on disk; those that nothing has changed yet are no candidate."""

    def __init__(self, loop: LoopContext) -> None:
        self._loop = loop

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record an evaluation."""
        if not state.global_step or self._loop.history.first_change() is None:
            return
        if self._loop.plateau.update(state.global_step, -(metrics or {})["eval_reward"]):
            save_trained(kwargs["model"], self._loop.best_weights)
            self._loop.reporter.update(metrics={"best_step": state.global_step})


class RequireGradientFromSpread(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Check the gradients of the first step whose groups had a spread: equal rewards give no gradient."""

    def __init__(self, rollouts: Rollouts, world: World) -> None:
        self._rollouts, self._world = rollouts, world
        self._is_done = False

    def on_pre_optimizer_step(self, *arguments: Any, **kwargs: Any) -> None:
        """Check the gradients once."""
        if self._is_done or not self._rollouts.groups_with_spread:
            return
        self._is_done = True
        require_gradient(kwargs["model"], self._world)
        require_same_gradients(kwargs["model"], self._world)


def build_rlhf_trainer(parts: TrainerParts, judge: Judge) -> PolicyTrainer:
    """Return the trainer, ready for `evaluate()`, `train()` and `show()`."""
    model, settings, loop = parts.model, parts.settings, parts.loop
    longest = longest_length(parts.train, parts.validation)
    require_fit(model, settings, longest)
    require_linear_adapter(model, settings)
    stop_ids = set_end_tokens(model, parts.tokenizer, judge.stop_id)
    group = settings.num_generations or 1
    rollouts = Rollouts(parts.train, judge.scorer, parts.tokenizer, stop_ids, group)
    parts = replace(parts, validation=choose_prompts(parts.validation, settings.seed or 0))
    train_dataset = to_prompt_dataset(parts.train, at_least=(settings.global_batch_size or 1) // group)
    callbacks = [
        ReportProgress(loop.reporter, loop.history, loop.world, rows=len(parts.train) * group, has_full_steps=True),
        KeepMostRewarded(loop),
        RequireGradientFromSpread(rollouts, loop.world),
        KeepWeights(loop.kept, loop.history),
    ]
    is_rloo = settings.algorithm == Algorithm.RLOO
    kind, config = (LeaveOneOutTrainer, RLOOConfig) if is_rloo else (GroupTrainer, GRPOConfig)
    engine = engine_arguments(settings, longest, stop_ids)
    with starting_engine(settings):
        return kind(
            rollouts=rollouts,
            held_out=parts.validation,
            args=config(**parts.library_settings(), **_own_arguments(settings), **engine),
            **parts.trainer_arguments(train_dataset, to_prompt_dataset) | {"callbacks": callbacks},
        )


def _own_arguments(settings: Resolved) -> dict[str, Any]:
    """Return TRL's settings of sampling and loss: whole batches of groups, with one group of answers per prompt."""
    of_groups = {"loss_type": settings.loss_type, "scale_rewards": settings.scale_rewards}
    return {
        "num_generations": settings.num_generations,
        "num_generations_eval": 1,
        "generation_batch_size": settings.global_batch_size,
        "max_completion_length": settings.max_completion_length,
        "temperature": settings.temperature,
        "beta": settings.beta,
        "mask_truncated_completions": bool(settings.mask_truncated_completions),
        "disable_dropout": True,
        "remove_unused_columns": False,
    } | {name: value for name, value in of_groups.items() if value}


def require_fit(model: PreTrainedModel | PeftModel, settings: Resolved, longest_prompt: int) -> None:
    """Raise for batches that split a group, and for a prompt that leaves no room for an answer in the context."""
    group, batch = settings.num_generations or 1, settings.global_batch_size or 1
    if batch % group:
        raise InvalidConfig(
            f"rlhf.numGenerations {group} does not divide the {batch} answers of a step: change "
            "perDeviceTrainBatchSize x gradientAccumulationSteps, times all GPUs, to a multiple of it"
        )
    require_context(model, longest_prompt, settings.max_completion_length or 0, "rlhf")


def _gather_answers(own: list[list[ScoredAnswer]], count: int, world: World) -> list[ScoredAnswer]:
    """Return the answers of all batches in their order; process after process has one."""
    shares = [orjson.loads(share) for share in world.gather_bytes(orjson.dumps(own))]
    return [
        ScoredAnswer(**one | {"parts": tuple(one["parts"])})
        for number in range(count)
        for one in shares[number % world.size][number // world.size]
    ]


def choose_prompts(samples: Sequence[EncodedPrompt], seed: int) -> Sequence[EncodedPrompt]:
    """Return all prompts, or a seeded choice of 128, because sampling an answer is slow."""
    if len(samples) <= EVALUATED_PROMPTS:
        return samples
    chosen = sorted(random.Random(seed).sample(range(len(samples)), EVALUATED_PROMPTS))  # noqa: S311 - no secret
    return as_samples(samples).take(chosen)


@contextmanager
def loading_reference(model: PreTrainedModel | PeftModel, arguments: TrainingArguments, world: World) -> Iterator[None]:
    """Load the reference of method Full in the number format of the computation, and shared out as the policy is; TRL
    would load all of it in FP32 in every process."""
    dtype, libraries = DTYPES[precision_of(arguments)], (grpo_trainer, rloo_trainer)

    def load(folder: str, **_: Any) -> PreTrainedModel:
        if not is_sharded(model):
            return load_plain(Path(folder), dtype, model.device)
        # FP32 as the format of the computation: nothing is cast, and no gradient is reduced.
        return load_sharded(Path(folder), dtype, torch.float32, world)

    with ExitStack() as replaced:
        for library in libraries:
            replaced.callback(setattr, library, "create_model_from_path", library.create_model_from_path)
            library.create_model_from_path = load
        yield


def _reduce_reference(model: PeftModel) -> None:
    """Delete TRL's copy of an untrained adapter, which equals the base, or keep whole modules in it once."""
    if FROZEN_COPY in model.peft_config and _is_untrained(model):
        model.delete_adapter(FROZEN_COPY)
    else:
        share_whole_modules(model, FROZEN_COPY)


def _is_untrained(model: PeftModel) -> bool:
    starts = [
        tensor for name, tensor in trained_tensors(model).items() if any(factor in name for factor in ZERO_AT_START)
    ]
    return not any(bool(tensor.count_nonzero()) for tensor in starts)
