"""Learning from a teacher: its answers, the divergence from it, and a smaller one after training."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import COLOURS, CPU, THINGS, count_hooks_by_step, limit_answers, make_gpt2, make_loop, teach
from policy_bench import LONGEST, prompts_of
from safetensors.torch import load_file, save_file
from student_bench import make_student
from thin_slice import thin_slice
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from finetune_api.comparing.comparison import compare
from finetune_api.evaluation import EvaluationMetric
from finetune_api.handoff import ExitCode
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.models.loading import load_plain, load_tokenizer
from finetune_trainer.tokenization.sample_table import as_samples, with_prompts
from finetune_trainer.training.methods.distillation import ANSWER, StudentTrainer


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with one of four colours."""
    return teach(tiny_model, tmp_path_factory.mktemp("taught") / "model", steps=60)


@pytest.fixture(scope="module")
def red(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows one of the colours alone."""
    return teach(tiny_model, tmp_path_factory.mktemp("red") / "model", steps=60, colours=COLOURS[:1])


def log_probs(model: Any, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    """Return the log-probabilities of each token of the answer, from the model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1)


def kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the divergence of the second from the first, of each token."""
    return (first.exp() * (first - second)).sum(-1)


def jensen_shannon(own: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Return the divergence with equal weights."""
    middle = ((own.exp() + taught.exp()) / 2).log()
    return (kl(own, middle) + kl(taught, middle)) / 2


@pytest.mark.parametrize(
    ("method", "beta"),
    [
        ("Full", 0.5),
        pytest.param("QLoRA", 1.0, marks=pytest.mark.nightly),
        pytest.param("LoRA", 0.0, marks=pytest.mark.nightly),
        pytest.param("LoRA", 1.0, marks=pytest.mark.nightly),
    ],
)
def test_a_student_that_answers_any_colour_learns_the_one_of_its_teacher(
    taught: Path, red: Path, tmp_path: Path, method: str, beta: float
) -> None:
    """More than half of the divergence must be gone, on what the student writes and on what the teacher writes."""
    trainer = make_student(taught, red, tmp_path, method, beta=beta, total_steps=20)
    before = trainer.measure()
    trainer.train()
    after = trainer.measure()
    assert after.loss < before.loss / 2
    assert after.tokens == before.tokens
    points = trainer._loop.history.train
    assert sum(point.loss for point in points[-3:]) < sum(point.loss for point in points[:3]) / 2
    assert points[0].completion_length
    assert trainer._loop.plateau.best_step == 20


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_the_hooks_for_gradient_checkpointing_do_not_become_more_with_each_sampling(
    taught: Path, red: Path, tmp_path: Path, method: str
) -> None:
    trainer = make_student(taught, red, tmp_path, method, gradient_checkpointing=True, total_steps=3, eval_steps=1)
    counted = count_hooks_by_step(trainer)
    trainer.train()
    assert len(set(counted)) == 1
    assert counted[0] > 0
    assert all((point.grad_norm or 0) > 0 for point in trainer._loop.history.train)


def test_held_out_prompts_of_one_conversation_are_one_group(taught: Path, red: Path, tmp_path: Path) -> None:
    prompts = as_samples(prompts_of(taught))
    parts = with_prompts(prompts, {row: row % 5 for row in range(len(prompts))})
    measured = make_student(taught, red, tmp_path, held_out=parts).measure()
    found = compare(EvaluationMetric.LOSS, measured.batches, measured.batches, owners=measured.owners)
    assert found
    assert found.groups == 5
    assert sum(weight for weight, _ in measured.owners) == measured.tokens


def test_a_step_with_five_of_eight_prompts_is_five_eighths_of_an_epoch(taught: Path, red: Path, tmp_path: Path) -> None:
    batch = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1, "global_batch_size": 5}
    trainer = make_student(taught, red, tmp_path, total_steps=2, **batch)
    trainer.train()
    assert [point.epoch for point in trainer._loop.history.train] == [0.625, 1.25]


def test_a_teacher_that_knows_which_of_four_colours_is_two_bits_ahead(taught: Path, red: Path, tmp_path: Path) -> None:
    """Its answer and the student's are otherwise the same, so that the divergence of an answer is about ln 4."""
    trainer = make_student(taught, red, tmp_path, beta=0.0)
    measured = trainer.measure()
    assert measured.loss * measured.tokens / len(THINGS) == pytest.approx(math.log(4), rel=0.25)


@pytest.mark.parametrize("beta", thin_slice([0.0, 0.5, 1.0], 0.5))
def test_a_model_that_is_its_own_teacher_has_no_divergence(taught: Path, tmp_path: Path, beta: float) -> None:
    trainer = make_student(taught, taught, tmp_path, beta=beta)
    assert trainer.measure().loss == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_answers_like_the_model_is_named(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"^distillation\.teacher has the same probabilities as the model") as caught:
        make_student(taught, taught, tmp_path).train()
    assert caught.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize("temperature", thin_slice([1.0, 0.7], 0.7))
@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        pytest.param(0.0, lambda own, taught: kl(taught, own), id="forward"),
        pytest.param(0.5, jensen_shannon, id="between"),
        pytest.param(1.0, kl, id="reverse"),
    ],
)
def test_the_held_out_loss_is_the_divergence_on_the_answers_of_the_teacher(  # noqa: PLR0917 - three of them are cases
    tiny_model: Path, taught: Path, tmp_path: Path, beta: float, expected: Any, temperature: float
) -> None:
    trainer = make_student(tiny_model, taught, tmp_path, beta=beta, temperature=temperature)
    rows = [(row["prompt"], row[ANSWER]) for row in trainer.eval_dataset]
    assert all(0 < len(answer) <= LONGEST for _, answer in rows)
    found = torch.cat(
        [
            expected(
                *(log_probs(model, prompt, answer, temperature) for model in (trainer.model, trainer.teacher_model))
            )
            for prompt, answer in rows
        ]
    )
    measured = trainer.measure()
    assert measured.loss == pytest.approx(float(found.mean()), rel=1e-4)
    assert measured.tokens == len(found)


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_sixteen_bits_change_the_divergence_by_rounding_alone(
    taught: Path, red: Path, tmp_path: Path, method: str
) -> None:
    whole = make_student(taught, red, tmp_path, method).measure().loss
    teacher = load_plain(red, torch.bfloat16, CPU)
    rounded = make_student(taught, teacher, tmp_path, method, precision="BF16", total_steps=2)
    assert rounded.measure().loss == pytest.approx(whole, rel=0.05)
    rounded.train()
    assert rounded._loop.history.train[0].grad_norm


def test_the_teacher_answers_once_and_as_it_was_taught(
    tiny_model: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_student(tiny_model, taught, tmp_path)
    tokenizer = load_tokenizer(taught)
    answers = [row[ANSWER] for row in trainer.eval_dataset]
    assert sum(tokenizer.decode(answer).startswith("It is") for answer in answers) > len(answers) / 2
    monkeypatch.setattr(StudentTrainer, "_ask_teacher", lambda *_: pytest.fail("it is asked again"))
    again = make_student(tiny_model, taught, tmp_path)
    assert [row[ANSWER] for row in again.eval_dataset] == answers


def test_a_mixture_whose_configuration_asks_for_the_routers_logits_teaches(tiny_model: Path, tmp_path: Path) -> None:
    """transformers' loss of them fails for the answers of a batch, whose mask is longer than their tokens."""
    torch.manual_seed(1)
    mixture = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=512, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96, pad_token_id=2,
            bos_token_id=1, eos_token_id=2, output_router_logits=True,
        )
    )  # fmt: skip
    assert make_student(tiny_model, mixture, tmp_path).eval_dataset


def test_answers_have_the_models_own_probabilities_whatever_its_generation_config_sets(
    taught: Path, tmp_path: Path
) -> None:
    """With `min_p` 1, only the likeliest token is left."""
    teacher = load_plain(taught, torch.float32, CPU)
    teacher.generation_config.min_p = 1.0
    trainer = make_student(taught, teacher, tmp_path, held_out=as_samples(prompts_of(taught)[:1] * 16))
    assert trainer.eval_dataset is not None
    assert len({tuple(row[ANSWER]) for row in trainer.eval_dataset}) > 1
    trainer.model.generation_config.min_p = 1.0
    answers = trainer._generate_single_turn([list(prompts_of(taught)[0].prompt_ids)] * 16, None, {})
    assert len(set(map(tuple, answers))) > 1


def test_a_gpu_without_memory_for_all_answers_samples_fewer_at_once(
    tiny_model: Path, taught: Path, tmp_path: Path
) -> None:
    teacher = load_plain(taught, torch.float32, CPU)
    asked = limit_answers(teacher, 3)
    trainer = make_student(tiny_model, teacher, tmp_path, gradient_checkpointing=True, total_steps=1)
    assert asked == [8, 4, 2, 2, 2, 2]
    calls = limit_answers(trainer.model, 1)
    trainer.train()
    assert calls == [2, *[1] * 8]
    assert trainer.model.is_activation_checkpointing


def test_a_shorter_prompt_is_taught_at_its_own_positions(tiny_model: Path, tmp_path: Path) -> None:
    """TRL puts padding before it, which a table of positions would count."""
    student, teacher = (make_gpt2(tiny_model, tmp_path / f"gpt2-{seed}", seed) for seed in range(2))
    trainer = make_student(student, teacher, tmp_path)
    rows = [{"prompt": list(range(20, 20 + length)), ANSWER: [40, 41, 42, 2]} for length in (3, 9)]
    trainer.model.eval()
    with torch.no_grad():
        alone = [float(trainer.compute_loss(trainer.model, trainer._prepare_inputs([row]))) for row in rows]
        together = float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(rows)))
    assert together == pytest.approx(sum(alone) / 2, rel=1e-4)


def test_the_teacher_is_not_changed(tiny_model: Path, taught: Path, tmp_path: Path) -> None:
    trainer = make_student(tiny_model, taught, tmp_path, "Full", total_steps=2)
    before = {name: tensor.clone() for name, tensor in trainer.teacher_model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.teacher_model.state_dict().items())
    assert not any(tensor.requires_grad for tensor in trainer.teacher_model.parameters())


def test_a_model_whose_logits_the_loss_does_not_know_is_refused(tiny_model: Path, taught: Path, tmp_path: Path) -> None:
    teacher = load_plain(taught, torch.float32, CPU)
    teacher.lm_head.register_forward_hook(lambda _, __, logits: logits / 3)
    with pytest.raises(TrainerError, match="TRL's distillation loss is not that of the logits of Llama") as caught:
        make_student(tiny_model, teacher, tmp_path)
    assert caught.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize(
    ("broken", "named"), [("teacher", r"spec\.distillation\.teacher"), ("student", r"spec\.model")]
)
def test_a_model_whose_logits_are_not_finite_has_diverged_before_it_samples(
    taught: Path, tmp_path: Path, broken: str, named: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(taught, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainerError, match=rf"logits of {named} \(LlamaForCausalLM\) in FP32") as caught:
        make_student(*((taught, folder) if broken == "teacher" else (folder, taught)), tmp_path)
    assert caught.value.code is ExitCode.DIVERGED


def test_prompts_that_leave_no_room_for_an_answer_are_refused(tiny_model: Path, taught: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"lower distillation\.maxCompletionLength") as caught:
        make_student(tiny_model, taught, tmp_path, max_completion_length=1020)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_stop_is_seen_while_the_teacher_answers(tiny_model: Path, taught: Path, tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    teacher = load_plain(taught, torch.float32, CPU)
    passes: list[None] = []
    teacher.register_forward_pre_hook(lambda *_: passes.append(None))
    teacher.register_forward_hook(lambda *_: loop.stop.set() if len(passes) == 4 else None)
    with pytest.raises(Stopped):
        make_student(tiny_model, teacher, tmp_path, loop=loop)
    assert len(passes) <= 5
