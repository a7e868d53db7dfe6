"""What we rely on in the libraries, so that an upgrade that changes it fails here."""

import io
from pathlib import Path
from typing import Any

import loop_bench
import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback

from finetune_api.handoff import ExitCode
from finetune_api.status import Resolved
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.evaluation.generate import answer_all
from finetune_trainer.models.loading import (
    load_for_training,
    load_plain,
    load_tokenizer,
    trained_tensors,
)
from finetune_trainer.monitoring.reporter import Reporter, work_beat
from finetune_trainer.pipeline.measure import restore_best
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.labeler import Encoded, Labeler
from finetune_trainer.training.callbacks import save_trained
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.sft import RowTrainer, build_sft_trainer

CPU = torch.device("cpu")
SAMPLES = [
    Encoded([1, 20, 21, 22, 23, 2], [-100, -100, -100, 22, 23, 2], 3),
    Encoded([1, 30, 31, 2], [-100, -100, 31, 2], 2),
    Encoded([1, 40, 41, 42, 43, 44, 45, 46, 2], [-100, -100, 41, 42, 43, 44, 45, 46, 2], 7),
]


OWN: dict[str, Any] = {
    "total_steps": 4,
    "learning_rate": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,
    "per_device_train_batch_size": 2,
    "global_batch_size": 4,
    "eval_steps": 2,
    "lora_rank": 4,
    "lora_alpha": 8,
}


def make_settings(method: str = "LoRA", **changes: Any) -> Resolved:
    return loop_bench.make_settings(method, **OWN | changes)


def make_trainer(tiny_model: Path, tmp_path: Path, settings: Resolved, samples: list[Encoded] = SAMPLES) -> RowTrainer:
    loop = loop_bench.make_loop(tmp_path)
    model = load_for_training(tiny_model, settings, CPU)
    tokenizer = load_tokenizer(tiny_model)
    return build_sft_trainer(TrainerParts(model, tokenizer, settings, loop, samples, samples, tmp_path / "scratch"))


def test_trl_leaves_ids_and_labels_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings())
    seen = []
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert set(labels[length:].tolist()) <= {-100}
            seen.append((ids[:length].tolist(), labels[:length].tolist()))
    assert sorted(seen) == sorted((sample.input_ids, sample.labels) for sample in SAMPLES)


def test_rows_above_the_librarys_default_length_are_not_cut(tiny_model: Path, tmp_path: Path) -> None:
    long = Encoded([5] * 1500, [5] * 1500, 1500)
    trainer = make_trainer(tiny_model, tmp_path, make_settings(per_device_train_batch_size=1), [long])
    assert next(iter(trainer.get_train_dataloader()))["labels"].shape == (1, 1500)


def test_the_training_loss_is_the_mean_over_the_trained_tokens_of_the_whole_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings(total_steps=1))
    expected = trainer.measure().loss
    trainer.train()
    assert trainer._loop.history.train[0].loss == pytest.approx(expected, abs=1e-4)


def test_the_epoch_counts_rows_and_not_batches_of_which_the_last_is_short(tiny_model: Path, tmp_path: Path) -> None:
    rows = [SAMPLES[0]] * 7
    settings = make_settings(total_steps=3, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    trainer = make_trainer(tiny_model, tmp_path, settings, rows)
    trainer.train()
    epochs = [point.epoch for point in trainer._loop.history.train]
    assert epochs == pytest.approx([6 / 7, 1, 1 + 6 / 7], abs=1e-4)
    assert trainer._loop.reporter.snapshot().progress.epoch == pytest.approx(epochs[-1], rel=1e-4)


def test_the_evaluation_loss_does_not_depend_on_the_batch_size(tiny_model: Path, tmp_path: Path) -> None:
    losses = [
        make_trainer(tiny_model, tmp_path, make_settings(per_device_train_batch_size=size)).measure().loss
        for size in (1, 2, 3)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_an_evaluation_leaves_the_gradients_of_a_quantised_model_as_they_were(tiny_model: Path, tmp_path: Path) -> None:
    """bitsandbytes repacks a CPU model's weights in evaluation for a kernel through which no gradient flows back."""
    norms = []
    for evaluates_first in (False, True):
        trainer = make_trainer(tiny_model, tmp_path, make_settings("QLoRA", total_steps=1))
        if evaluates_first:
            trainer.evaluate()
        trainer.train()
        norms.append(trainer._loop.history.train[0].grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_the_adapter_of_a_quantised_model_trains_in_fp32(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings("QLoRA"))
    assert {tensor.dtype for tensor in trained_tensors(trainer.model).values()} == {torch.float32}


def test_a_model_that_no_gradient_reaches_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings())

    class CutGradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
            for tensor in trained_tensors(kwargs["model"]).values():
                tensor.grad = None

    trainer.callback_handler.callbacks.insert(0, CutGradients())
    with pytest.raises(TrainerError, match="no gradient reaches") as caught:
        trainer.train()
    assert caught.value.code is ExitCode.INTERNAL_ERROR


def test_restored_weights_must_give_the_loss_that_they_were_kept_for(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings())
    loop, loss = trainer._loop, trainer.measure().loss
    save_trained(trainer.model, loop.best_weights)
    loop.plateau.update(1, loss)
    assert restore_best(trainer, loop).loss == loss
    loop.plateau.update(2, loss / 2)
    with pytest.raises(TrainerError, match="restored best weights") as caught:
        restore_best(trainer, loop)
    assert caught.value.code is ExitCode.INTERNAL_ERROR


def test_a_stop_ends_the_training_before_the_next_micro_batch(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings())
    trainer._loop.stop.set()
    with pytest.raises(Stopped):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_stop_ends_an_answer_at_the_next_token_and_every_token_is_reported(tiny_model: Path) -> None:
    model = load_plain(tiny_model, torch.float32, CPU)
    stop, reporter, passes = StopFlag(), Reporter("u", out=io.StringIO()), []

    def stop_at_the_third(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            stop.set()

    model.register_forward_hook(stop_at_the_third)
    with pytest.raises(Stopped):
        answer_all(
            model,
            Labeler(tiny_model),
            [[{"role": "user", "content": "Why?"}]],
            stop_ids=[0],
            max_new_tokens=50,
            on_token=work_beat(reporter, stop),
        )
    assert len(passes) == 3
    assert reporter.snapshot().heartbeat == 2


def test_an_answer_that_no_token_ends_has_the_maximum_length(tiny_model: Path) -> None:
    model, tokens = load_plain(tiny_model, torch.float32, CPU), []
    model.generation_config.eos_token_id = None
    prompt = [{"role": "user", "content": "Why?"}]
    answer_all(model, Labeler(tiny_model), [prompt], stop_ids=[], max_new_tokens=5, on_token=lambda: tokens.append(1))
    assert len(tokens) == 5


PROMPTS = [[{"role": "user", "content": "Why " * words + "so?"}] for words in (5, 0, 40, 12, 3, 12, 60, 1)]


def _load_talkative(folder: Path) -> PreTrainedModel:
    """Return a random model whose answers differ, in their lengths too."""
    model = load_plain(folder, torch.float32, CPU)
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def _answer_prompts(model: Any, folder: Path, **options: Any) -> tuple[list[str], list[int]]:
    """Return the answers to the prompts, and the rows of each forward pass that reads prompts."""
    rows: list[int] = []

    def count(_: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        if inputs["input_ids"].shape[1] > 1:
            rows.append(len(inputs["input_ids"]))

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    found = answer_all(
        model, Labeler(folder), PROMPTS, stop_ids=[2, 9, 40], max_new_tokens=12, on_token=lambda: None, **options
    )
    hook.remove()
    return found, rows


def test_prompts_that_are_answered_at_once_get_the_answers_that_each_gets_alone(tiny_model: Path) -> None:
    model, shares = _load_talkative(tiny_model), []
    alone, rows = _answer_prompts(model, tiny_model)
    assert rows == [1] * len(PROMPTS)
    assert len({len(answer) for answer in alone}) > 1
    longest = len(Labeler(tiny_model).render_prompt(PROMPTS[6])[1])
    options = {"tokens_at_once": 3 * (longest + 12), "on_answer": lambda *share: shares.append(share)}
    together, rows = _answer_prompts(model, tiny_model, **options)
    assert rows == [1, 2, 3, 3, 2]  # the first two compare the shortest prompt alone and next to the longest one
    assert together == alone
    assert shares == [(0, 8), (3, 8), (6, 8)]


def test_a_model_that_reads_padding_answers_one_prompt_at_a_time(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _load_talkative(tiny_model)
    model.model.register_forward_pre_hook(
        lambda _, args, inputs: (args, inputs | {"attention_mask": None}), with_kwargs=True
    )
    alone, _ = _answer_prompts(model, tiny_model)
    found, rows = _answer_prompts(model, tiny_model, tokens_at_once=8192)
    assert found == alone
    assert rows[2:] == [1] * len(PROMPTS)
    assert "padding changes what LlamaForCausalLM reads" in caplog.text


def test_half_as_many_answers_are_generated_at_once_where_the_memory_is_exhausted(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _load_talkative(tiny_model)
    alone, _ = _answer_prompts(model, tiny_model)

    def exhaust(_: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.register_forward_pre_hook(exhaust, with_kwargs=True)
    found, rows = _answer_prompts(model, tiny_model, tokens_at_once=8192)
    assert found == alone
    assert rows[2:] == [2, 2, 2, 2]
    assert "out of GPU memory with 4 answers at once: generating 2 at once" in caplog.text


def test_the_rate_warms_up_and_falls_along_the_cosine(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings(total_steps=8))
    trainer.train()
    rates = [point.learning_rate for point in trainer._loop.history.train]
    assert rates[0] == 0.0
    assert max(rates) == rates[2] == pytest.approx(0.01)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize(("warmup", "expected"), [(0.03, 0.03), (10.0, 10)])
def test_every_argument_has_the_name_that_the_library_uses(
    tiny_model: Path, tmp_path: Path, warmup: float, expected: float
) -> None:
    arguments = make_trainer(tiny_model, tmp_path, make_settings(warmup_steps=warmup)).args
    assert arguments.warmup_steps == expected
    assert (arguments.bf16, arguments.fp16) == (False, False)
    assert arguments.max_length is None
    assert arguments.dataset_kwargs == {"skip_prepare_dataset": True}
    assert arguments.logging_nan_inf_filter is False


def test_bf16_on_a_cpu_trains_if_requested(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, make_settings(precision="BF16", total_steps=6, learning_rate=0.02))
    before = trainer.measure().loss
    trainer.train()
    assert trainer.measure().loss < before


@pytest.mark.parametrize("changes", [{"precision": "FP16"}, {"optim": "paged_lion_32bit"}, {"optim": "adamw_8bit"}])
def test_what_needs_a_gpu_is_an_invalid_config_on_a_cpu(changes: dict[str, str]) -> None:
    with pytest.raises(TrainerError, match="needs a GPU") as caught:
        make_settings(**changes)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_the_same_seed_gives_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        trainer = make_trainer(tiny_model, tmp_path, make_settings(lora_dropout=0.1))
        trainer.train()
        runs.append([point.loss for point in trainer._loop.history.train])
    assert runs[0] == runs[1]
