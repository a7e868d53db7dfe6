"""Learning from rewards: prompts, rewards, measurements, and a higher reward after training."""

import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from loop_bench import (
    COLOURS,
    CPU,
    THINGS,
    count_hooks_by_step,
    limit_answers,
    make_gpt2,
    make_loop,
    make_settings,
    question,
    teach,
)
from policy_bench import LONGEST, Listener, make_policy, prompts_of
from safetensors.torch import load_file, save_file
from trl import GRPOConfig, RLOOConfig
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from finetune_api.handoff import ExitCode
from finetune_api.rewards import Reward
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.models.adapters.saved import save_adapter
from finetune_trainer.models.loading import load_for_training, load_plain, trained_tensors
from finetune_trainer.rewards.computed import ComputedRewards
from finetune_trainer.rewards.scorer import RewardModel
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.sample_table import as_samples, find_owners, longest_length, with_prompts
from finetune_trainer.tokenization.samples import EncodedPrompt
from finetune_trainer.training.methods.prompts import require_finite_logits
from finetune_trainer.training.methods.rlhf import PolicyTrainer, choose_prompts
from finetune_trainer.training.methods.rollout_engine import engine_arguments, merged_tensors

METHODS = ["LoRA", "QLoRA", "Full"]
NAMED = Reward.model_validate(
    {"type": "Answer", "answer": {"match": "Exact", "extract": "Pattern", "pattern": r"^It is (\w+)\.$"}}
)


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with one of four colours."""
    return teach(tiny_model, tmp_path_factory.mktemp("taught") / "model", steps=60)


def listen(trainer: PolicyTrainer) -> list[torch.Tensor]:
    """Record the ids of every forward pass of the policy."""
    passes: list[torch.Tensor] = []
    model = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
    model.register_forward_pre_hook(lambda _, __, options: passes.append(options["input_ids"]), with_kwargs=True)
    return passes


@pytest.mark.parametrize(
    ("algorithm", "method"),
    [
        ("GRPO", "QLoRA"),
        ("RLOO", "Full"),
        *(
            pytest.param(*pair, marks=pytest.mark.nightly)
            for pair in [("GRPO", "LoRA"), ("GRPO", "Full"), ("RLOO", "LoRA"), ("RLOO", "QLoRA")]
        ),
    ],
)
def test_the_reward_increases(taught: Path, tmp_path: Path, method: str, algorithm: str) -> None:
    rate = 2e-3 if method == "Full" else 6e-3
    trainer = make_policy(taught, tmp_path, method, algorithm=algorithm, total_steps=10, learning_rate=rate)
    trainer.train()
    points = trainer._loop.history.train
    earned = [point.reward or 0 for point in points]
    assert sum(earned[-4:]) / 4 > sum(earned[:2]) / 2 + 0.1
    assert points[0].kl == pytest.approx(0, abs=1e-3), "the first answers are the reference's own"
    assert (points[-1].kl or 0) > 1e-3
    final = trainer._loop.history.final_reward
    assert final
    assert trainer._loop.reporter.snapshot().metrics.eval_reward == final.reward


def test_a_step_with_five_of_eight_prompts_is_five_eighths_of_an_epoch(taught: Path, tmp_path: Path) -> None:
    batch = {"per_device_train_batch_size": 20, "global_batch_size": 20}
    trainer = make_policy(taught, tmp_path, total_steps=2, evaluates=False, **batch)
    trainer.train()
    assert [point.epoch for point in trainer._loop.history.train] == [0.625, 1.25]


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
def test_a_continued_adapter_is_held_to_what_it_was_and_published_alone(
    taught: Path, tmp_path: Path, algorithm: str
) -> None:
    earlier = load_for_training(taught, make_settings("LoRA"), CPU)
    torch.manual_seed(1)
    for tensor in trained_tensors(earlier).values():
        torch.nn.init.normal_(tensor, std=0.05)
    save_adapter(earlier, tmp_path / "earlier", "s3://bucket/model")
    trainer = make_policy(taught, tmp_path, adapter=tmp_path / "earlier", algorithm=algorithm, total_steps=1)
    trainer.train()
    assert trainer._loop.history.train[0].kl == pytest.approx(0, abs=1e-4)
    save_adapter(trainer.model, tmp_path / "adapter", "s3://bucket/model")
    assert not [path for path in (tmp_path / "adapter").iterdir() if path.is_dir()]


@pytest.mark.parametrize(("method", "algorithm"), [("LoRA", "GRPO"), ("Full", "RLOO")])
def test_the_hooks_for_gradient_checkpointing_do_not_become_more_with_each_sampling(
    taught: Path, tmp_path: Path, method: str, algorithm: str
) -> None:
    changes = {"algorithm": algorithm, "gradient_checkpointing": True, "total_steps": 3, "eval_steps": 1}
    trainer = make_policy(taught, tmp_path, method, **changes)
    counted = count_hooks_by_step(trainer)
    trainer.train()
    assert len(set(counted)) == 1
    assert counted[0] > 0
    assert all((point.grad_norm or 0) > 0 for point in trainer._loop.history.train)


@pytest.mark.parametrize(("beta", "reference_passes"), [(0.04, 1), (0.0, 0)])
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_a_step_costs_one_position_a_token_and_a_reference_only_where_it_counts(
    taught: Path, tmp_path: Path, method: str, beta: float, reference_passes: int
) -> None:
    trainer = make_policy(taught, tmp_path, method, beta=beta, total_steps=1, evaluates=False)
    passes = listen(trainer)
    reference: list[torch.Tensor] = []
    if trainer.ref_model is not None:
        trainer.ref_model.register_forward_pre_hook(lambda *_: reference.append(torch.empty(0)))
    trainer.train()
    width = len(prompts_of(taught)[0].prompt_ids)
    first, *rest = [ids.shape[1] for ids in passes]
    assert first >= width
    assert rest.count(1) == LONGEST - 1
    whole = [length for length in rest if length > 1]
    assert len(whole) + len(reference) == 1 + reference_passes


def test_the_reference_of_a_full_model_is_in_the_format_of_the_computation_with_exact_positions(
    taught: Path, tmp_path: Path
) -> None:
    trainer = make_policy(taught, tmp_path, "Full", precision="BF16", evaluates=False)
    assert trainer.ref_model.dtype is torch.bfloat16
    own, reference = (model.model.rotary_emb.inv_freq for model in (trainer.model, trainer.ref_model))
    assert torch.equal(own, reference)


def test_the_policy_gets_prompts_as_at_inference(taught: Path, tmp_path: Path) -> None:
    trainer = make_policy(taught, tmp_path)
    passes = listen(trainer)
    prompts = prompts_of(taught)
    trainer.show(prompts)
    for row, prompt in zip(passes[0].tolist(), prompts, strict=True):
        assert row[-len(prompt.prompt_ids) :] == prompt.prompt_ids
    assert {tuple(prompt.prompt_ids) for prompt in prompts} == {
        tuple(Labeler(taught).render_prompt(question(thing))[1]) for thing in THINGS
    }


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
def test_answers_have_the_models_own_probabilities_whatever_its_generation_config_sets(
    taught: Path, tmp_path: Path, algorithm: str
) -> None:
    """With `min_p` 1, only the likeliest token is left."""
    trainer = make_policy(taught, tmp_path, algorithm=algorithm)
    trainer.model.generation_config.min_p = 1.0
    answers = trainer._sample([list(prompts_of(taught)[0].prompt_ids)] * 16)
    assert len(set(map(tuple, answers))) > 1
    assert trainer.model.generation_config.min_p == 1.0


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
def test_a_shorter_prompt_has_the_probabilities_of_its_own_positions(
    tiny_model: Path, tmp_path: Path, algorithm: str
) -> None:
    """TRL puts padding before it, which a table of positions would count."""
    trainer = make_policy(make_gpt2(tiny_model, tmp_path / "gpt2"), tmp_path, "Full", algorithm=algorithm, beta=0.1)
    ids = torch.arange(20, 32)[None]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids[:, 4:]], 1)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    for model in (trainer.model, trainer.ref_model):
        with torch.no_grad():
            both = trainer._get_per_token_logps_and_entropies(model, torch.cat([ids, padded]), mask, 3)[0]
            alone = trainer._get_per_token_logps_and_entropies(model, ids[:, 4:], mask[:1, 4:], 3)[0]
        torch.testing.assert_close(both[1], alone[0])


def test_answers_are_scored_without_their_end_and_a_truncated_one_is_distinguished(
    taught: Path, tmp_path: Path
) -> None:
    listener = Listener()
    trainer = make_policy(taught, tmp_path, scorer=listener)
    trainer.show(prompts_of(taught))
    assert [one.prompt for one in listener.heard] == [question(thing) for thing in THINGS]
    assert {one.ended for one in listener.heard} == {True, False}
    for one in listener.heard:
        assert "<|im_end|>" not in one.text
        assert one.tokens == LONGEST if not one.ended else one.tokens < LONGEST


def test_each_answer_is_compared_with_the_reference_of_its_own_row(taught: Path, tmp_path: Path) -> None:
    listener = Listener(ComputedRewards([NAMED]))
    trainer = make_policy(taught, tmp_path, scorer=listener, total_steps=1)
    trainer.train()
    colours = {question(thing)[0]["content"]: COLOURS[at % len(COLOURS)] for at, thing in enumerate(THINGS)}
    expected = [float(one.text == f"It is {colours[one.prompt[0]['content']]}.") for one in listener.heard]
    assert listener.rewards == expected
    assert 0 < sum(expected) < len(expected)


def test_an_answer_that_is_similar_to_its_reference_has_a_part_of_the_reward(taught: Path, tmp_path: Path) -> None:
    named = {"match": "Similar", "similarity": "FuzzyMatch", "extract": "Pattern", "pattern": r"^It is (\w+)\.$"}
    listener = Listener(ComputedRewards([Reward.model_validate({"type": "Answer", "answer": named})]))
    make_policy(taught, tmp_path, scorer=listener, total_steps=1).train()
    colours = {question(thing)[0]["content"]: COLOURS[at % len(COLOURS)] for at, thing in enumerate(THINGS)}
    right = [one.text == f"It is {colours[one.prompt[0]['content']]}." for one in listener.heard]
    assert [reward == 1 for reward in listener.rewards] == right
    assert any(0 < reward < 1 for reward in listener.rewards)


def test_a_reward_model_rewards_as_it_scores(taught: Path, tiny_model: Path, tmp_path: Path) -> None:
    judge = RewardModel(
        load_plain(tiny_model, torch.float32, CPU, writes_text=False), Labeler(tiny_model), lambda: None
    )
    listener = Listener(judge)
    trainer = make_policy(taught, tmp_path, scorer=listener, total_steps=1)
    trainer.train()
    in_training, heard = listener.rewards[:32], listener.heard[:32]
    assert [judge([one])[0] for one in heard] == pytest.approx(in_training, abs=1e-5)
    assert trainer._loop.history.train[0].reward == pytest.approx(sum(in_training) / 32, abs=1e-3)


def test_the_rewards_of_held_out_prompts_of_one_conversation_are_one_group(taught: Path, tmp_path: Path) -> None:
    prompts = as_samples(prompts_of(taught))
    trainer = make_policy(taught, tmp_path, held_out=with_prompts(prompts, {at: at % 2 for at in range(len(prompts))}))
    assert trainer.measure_reward().owners == tuple((1, at % 2) for at in range(len(prompts)))


def test_the_128_chosen_prompts_keep_their_groups() -> None:
    prompts = with_prompts(as_samples([EncodedPrompt([at]) for at in range(200)]), {at: at % 5 for at in range(200)})
    chosen = choose_prompts(prompts, 1)
    assert len(chosen) == 128
    assert [len(set(group)) for group in zip(*find_owners(chosen), strict=True)] == [1, 5]


def test_the_most_rewarded_weights_are_restored_and_measured_again(taught: Path, tmp_path: Path) -> None:
    """The learning rate ruins the model: the first evaluation is better than the later ones."""
    trainer = make_policy(taught, tmp_path, total_steps=4, eval_steps=1, learning_rate=0.3)
    trainer.train()
    history, plateau = trainer._loop.history, trainer._loop.plateau
    best = max(history.rewards, key=lambda point: point.reward)
    assert plateau.best_step == best.step
    assert history.final_reward
    assert history.final_reward.step == best.step
    assert trainer.measure_reward().reward == pytest.approx(best.reward)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_the_loss_weighs_tokens_and_scales_rewards_as_it_is_named(
    taught: Path, tmp_path: Path, loss: str, scale: str
) -> None:
    """Each probability is divided by itself in the first step, so that the loss has the advantages alone."""
    listener = Listener(lambda answers: [float(len(one.text) % 7) for one in answers])
    changes = {"loss_type": loss, "scale_rewards": scale, "beta": 0.0, "total_steps": 1, "evaluates": False}
    trainer = make_policy(taught, tmp_path, scorer=listener, **changes)
    trainer.train()
    groups = torch.tensor(listener.rewards).view(-1, 4)
    spread = {"group": groups.std(1, keepdim=True), "batch": groups.std(), "none": torch.ones(1)}[scale]
    advantages = ((groups - groups.mean(1, keepdim=True)) / (spread + (scale != "none") * 1e-4)).flatten()
    tokens = torch.tensor([one.tokens + one.ended for one in listener.heard])
    weights = {
        "dapo": tokens / tokens.sum(),
        "grpo": torch.ones(32) / 32,
        "dr_grpo": tokens / (32 * LONGEST),
    }[loss]
    assert len(set(tokens.tolist())) > 1
    assert trainer._loop.history.train[0].loss == pytest.approx(-(weights * advantages).sum().item(), abs=1e-5)


@pytest.mark.parametrize(("algorithm", "method"), [("GRPO", "LoRA"), ("RLOO", "Full")])
def test_answers_that_were_cut_are_left_out_of_the_loss_if_asked_for(
    taught: Path, tmp_path: Path, algorithm: str, method: str
) -> None:
    """Their rewards are the only ones that differ: with them left out nothing would be learnt."""
    changes = {"algorithm": algorithm, "max_completion_length": 2, "total_steps": 2, "evaluates": False}
    trainer = make_policy(taught, tmp_path, method, mask_truncated_completions=True, **changes)
    before = {name: tensor.detach().clone() for name, tensor in trained_tensors(trainer.model).items()}
    with pytest.raises(TrainerError, match=r"same reward or were cut in each of 16 groups.*raise rlhf\.maxCompletion"):
        trainer.train()
    assert [point.flat_share for point in trainer._loop.history.train] == [1.0, 1.0]
    assert all(torch.equal(before[name], tensor) for name, tensor in trained_tensors(trainer.model).items())


def test_rewards_that_never_differ_are_refused_for_nothing_is_learnt(taught: Path, tmp_path: Path) -> None:
    trainer = make_policy(taught, tmp_path, scorer=lambda answers: [0.5] * len(answers), total_steps=1)
    with pytest.raises(TrainerError, match=r"raise rlhf\.temperature or rlhf\.numGenerations") as caught:
        trainer.train()
    assert caught.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
def test_equal_rewards_are_equal_however_far_the_answers_are_from_the_reference(
    taught: Path, tmp_path: Path, algorithm: str
) -> None:
    """RLOO subtracts the divergence from a reward."""
    changes = {"algorithm": algorithm, "total_steps": 2, "evaluates": False}
    trainer = make_policy(taught, tmp_path, scorer=lambda answers: [0.5] * len(answers), **changes)
    torch.manual_seed(1)
    for tensor in trained_tensors(trainer.model).values():
        torch.nn.init.normal_(tensor, std=0.05)
    with pytest.raises(TrainerError, match="all answers to a prompt had the same reward"):
        trainer.train()
    points = trainer._loop.history.train
    assert [point.flat_share for point in points] == [1.0, 1.0]
    assert points[0].kl != 0


@pytest.mark.parametrize(("method", "algorithm"), [("LoRA", "GRPO"), ("Full", "RLOO")])
def test_a_gpu_without_memory_for_all_answers_samples_fewer_at_once(
    taught: Path, tmp_path: Path, method: str, algorithm: str
) -> None:
    """The micro-batch stays as it is, and so does gradient checkpointing."""
    changes = {"algorithm": algorithm, "gradient_checkpointing": True, "total_steps": 2, "evaluates": False}
    trainer = make_policy(taught, tmp_path, method, **changes)
    calls = limit_answers(trainer.model, 10)
    trainer.train()
    assert calls == [32, 16, *[8] * 8]
    assert trainer.model.is_activation_checkpointing
    assert all(point.grad_norm for point in trainer._loop.history.train)


def test_the_answers_sampled_after_a_lack_of_memory_do_not_depend_on_the_failed_calls(
    taught: Path, tmp_path: Path
) -> None:
    prompts = prompts_of(taught)
    trainer = make_policy(taught, tmp_path)
    limit_answers(trainer.model, 5)
    first, second = trainer.show(prompts), trainer.show(prompts)
    assert [one.text for one in first] == [one.text for one in second]
    assert len({one.text for one in first}) > 1


def test_a_gpu_without_memory_for_one_answer_is_out_of_memory(taught: Path, tmp_path: Path) -> None:
    trainer = make_policy(taught, tmp_path)
    calls = limit_answers(trainer.model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.show(prompts_of(taught))
    assert calls == [8, 4, 2, 1]


def test_a_reward_that_is_not_finite_ends_the_run(taught: Path, tmp_path: Path) -> None:
    trainer = make_policy(taught, tmp_path, scorer=lambda answers: [math.nan] * len(answers), total_steps=1)
    with pytest.raises(TrainerError, match="reward is not finite") as caught:
        trainer.train()
    assert caught.value.code is ExitCode.DIVERGED


def test_a_model_whose_logits_are_not_finite_has_diverged_before_it_samples(taught: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(taught, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.inf
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainerError, match=r"logits of spec\.model \(LlamaForCausalLM\) in FP32") as caught:
        make_policy(broken, tmp_path)
    assert caught.value.code is ExitCode.DIVERGED


def test_a_model_that_becomes_not_finite_has_diverged_when_it_samples(taught: Path, tmp_path: Path) -> None:
    trainer = make_policy(taught, tmp_path)
    with torch.no_grad():
        trainer.model.get_base_model().model.norm.weight[0] = math.nan
    with pytest.raises(TrainerError, match="a probability of a sampled token is not finite") as caught:
        trainer.train()
    assert caught.value.code is ExitCode.DIVERGED


def test_logits_of_minus_infinity_are_tokens_that_are_never_sampled(taught: Path, tmp_path: Path) -> None:
    trainer = make_policy(taught, tmp_path)
    trainer.model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: logits.index_fill(-1, torch.tensor([5]), -math.inf)
    )
    require_finite_logits(trainer.model, list(prompts_of(taught)[0].prompt_ids), "FP32")


def test_a_stop_is_seen_within_a_token(taught: Path, tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    trainer = make_policy(taught, tmp_path, loop=loop)
    passes = listen(trainer)
    model = trainer.model.get_base_model()
    model.register_forward_hook(lambda *_: loop.stop.set() if len(passes) == 3 else None)
    with pytest.raises(Stopped):
        trainer.train()
    assert len(passes) <= 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_generations": 5}, r"rlhf\.numGenerations 5 does not divide the 32 answers of a step"),
        ({"max_completion_length": 1020}, r"lower rlhf\.maxCompletionLength"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    taught: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(TrainerError, match=told) as caught:
        make_policy(taught, tmp_path, **changes)
    assert caught.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize("dora", [False, True], ids=["plain", "DoRA"])
def test_vllm_gets_what_trl_would_give_it_and_the_base_is_not_rounded(taught: Path, dora: bool) -> None:
    """TRL merges in place and subtracts again; in FP32 that is exact enough to compare with."""
    model = load_for_training(taught, make_settings("LoRA", precision="FP32", use_dora=dora), CPU)
    torch.manual_seed(1)
    for name, tensor in trained_tensors(model).items():
        if "magnitude" not in name:
            torch.nn.init.normal_(tensor, std=0.05)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours = {name: tensor.clone() for name, tensor in merged_tensors(model)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    generation = object.__new__(VLLMGeneration)
    generation.model = model
    generation._dist = DistributedBackend(Accelerator(cpu=True))
    theirs = {name: tensor.clone() for name, tensor in generation._iter_named_params()}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor)
    changed = [
        name
        for name, tensor in load_plain(taught, torch.float32, CPU).named_parameters()
        if not torch.equal(tensor, ours[name])
    ]
    assert changed
    assert all("_proj" in name for name in changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["model.norm"]},
    ],
    ids=lambda changes: str(*changes.values()),
)
def test_vllm_is_refused_for_an_adapter_that_it_would_get_a_part_of(
    taught: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(TrainerError, match="gets adapters on linear layers inside the model only") as caught:
        make_policy(taught, tmp_path, rollouts_gpu_memory_fraction=0.3, **changes)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_the_engine_has_room_for_the_longest_answer_and_ends_with_the_chat_template(taught: Path) -> None:
    longest = longest_length(prompts_of(taught))
    settings = make_settings("LoRA", max_completion_length=LONGEST, rollouts_gpu_memory_fraction=0.4)
    assert engine_arguments(make_settings("LoRA"), longest, {2}) == {}
    assert engine_arguments(settings, longest, {7, 2}) == {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.4,
        "vllm_max_model_length": longest + LONGEST,
        "generation_kwargs": {"stop_token_ids": [2, 7], "ignore_eos": True},
    }
    known = {field.name for field in fields(GRPOConfig)} & {field.name for field in fields(RLOOConfig)}
    assert engine_arguments(settings, longest, {2}).keys() <= known
