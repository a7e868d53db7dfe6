"""The checks on what training leaves: the saved adapter, the restored weights, the merged model."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from training_bench import Bench
from transformers import AutoModelForCausalLM, GPT2Config
from typing_extensions import override

from finetune_api.handoff import ADAPTER_WEIGHTS, ExitCode
from finetune_api.status import Resolved
from finetune_trainer.distributed.sharding import require_same_gradients
from finetune_trainer.distributed.world import World
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.evaluation.logprobs import LOSS_TOKENS, HeldOut, iterate_logprobs
from finetune_trainer.models.adapters.attach import (
    attach_adapter,
    linear_targets,
    refuse_tied_merge,
    require_plain_head,
)
from finetune_trainer.models.adapters.saved import save_adapter, verify_adapter
from finetune_trainer.models.loading import load_plain, trained_tensors
from finetune_trainer.tokenization.samples import Encoded

MakeBench = Callable[..., Bench]
CPU = torch.device("cpu")
HELD_OUT = HeldOut([Encoded([1, 20, 21, 22, 23, 2], [-100, -100, -100, 22, 23, 2], 3)], lambda: None)


def adapted(tiny_model: Path, *targets: str, scale: float = 0.1) -> PeftModel:
    """A model with an adapter that looks trained."""
    settings = Resolved(lora_rank=2, lora_alpha=4, target_modules=list(targets))
    model = attach_adapter(load_plain(tiny_model, torch.float32, CPU), settings)
    for tensor in trained_tensors(model).values():
        torch.nn.init.normal_(tensor, std=scale)
    return model


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    save_adapter(adapted(tiny_model, "q_proj"), tmp_path / "adapter", "s3://bucket/model")
    return tmp_path / "adapter"


def rewrite(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / ADAPTER_WEIGHTS)


def refusal(adapter: Path) -> str:
    with pytest.raises(TrainerError) as caught:
        verify_adapter(adapter, expected=4)
    assert caught.value.code is ExitCode.INTERNAL_ERROR
    return caught.value.message


def test_a_saved_adapter_without_one_of_its_tensors_is_refused(adapter: Path) -> None:
    rewrite(adapter, lambda tensors: tensors.pop(next(iter(tensors))))
    assert "has 3 tensors instead of 4" in refusal(adapter)


def test_a_saved_adapter_with_a_value_that_is_not_finite_is_refused(adapter: Path) -> None:
    rewrite(adapter, lambda tensors: next(iter(tensors.values())).view(-1)[0].fill_(float("nan")))
    assert "not finite" in refusal(adapter)


@pytest.mark.parametrize("target", ["q_proj", "embed_tokens"])
def test_an_adapter_as_untrained_as_it_began_is_refused(tiny_model: Path, tmp_path: Path, target: str) -> None:
    settings = Resolved(lora_rank=2, lora_alpha=4, target_modules=[target])
    with pytest.raises(TrainerError, match="changes nothing"):
        save_adapter(
            attach_adapter(load_plain(tiny_model, torch.float32, CPU), settings), tmp_path, "s3://bucket/model"
        )


class Twins(World):
    """Two processes; the figures of the other one are ours times a factor."""

    size = 2

    def __init__(self, factor: float) -> None:
        self._factor = factor

    @override
    def gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        return [own, own * self._factor]


def with_gradient(gradient: float) -> torch.nn.Module:
    layer = torch.nn.Linear(4, 4)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    return layer


@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_gradients_that_loss_scaling_made_too_large_for_fp16_in_all_processes_do_not_differ(gradient: float) -> None:
    require_same_gradients(with_gradient(gradient), Twins(1.0))


@pytest.mark.parametrize(("factor", "is_met"), [(1.0, True), (1 + 1e-12, True), (1.001, False), (float("nan"), False)])
def test_gradients_differ_between_processes_by_more_than_the_order_of_a_sum(factor: float, is_met: bool) -> None:
    differs = pytest.raises(TrainerError, match="the gradients of the processes differ")
    with nullcontext() if is_met else differs:
        require_same_gradients(with_gradient(0.5), Twins(factor))


def test_an_adapter_on_the_embedding_is_trained_and_published(make_bench: MakeBench) -> None:
    bench = make_bench(tuning={"method": "LoRA", "lora": {"rank": 2, "targetModules": ["embed_tokens", "q_proj"]}})
    bench.run()
    names = load_file(bench.output / "adapter" / ADAPTER_WEIGHTS)
    assert len(names) == 2 + 2 * 2
    assert any("lora_embedding_A" in name for name in names)


@pytest.mark.parametrize("objective", ["Instruction", "DPO"])
def test_an_adapter_on_the_output_head_is_refused_before_a_gpu_is_held(make_bench: MakeBench, objective: str) -> None:
    targets = ["q_proj", "lm_head"]
    bench = make_bench(objective=objective, tuning={"method": "LoRA", "lora": {"rank": 2, "targetModules": targets}})
    with pytest.raises(TrainerError, match=r"the output head \(lm_head\) is never trained") as caught:
        bench.prepare()
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_an_output_head_is_found_under_any_name(tiny_model: Path) -> None:
    require_plain_head(adapted(tiny_model, "q_proj", "embed_tokens"))
    model = adapted(tiny_model, "q_proj", "lm_head")
    with pytest.raises(TrainerError, match="an adapter on the output head") as caught:
        require_plain_head(model)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_merge_into_tied_embeddings_is_refused_before_training(make_bench: MakeBench) -> None:
    bench = make_bench(
        tuning={"method": "LoRA", "lora": {"rank": 2, "targetModules": ["embed_tokens"]}},
        output={"uri": "s3://bucket/output", "merge": "FP32"},
    )
    config = bench.prepare()
    with pytest.raises(TrainerError, match="embeddings are one tensor") as caught:
        bench.train(config)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert bench.reporter.snapshot().progress.step is None


def test_a_merge_with_tied_embeddings_that_are_not_trained_is_accepted(tiny_model: Path) -> None:
    refuse_tied_merge(adapted(tiny_model, "q_proj"))


def test_only_the_compared_positions_are_projected_on_the_vocabulary(tiny_model: Path) -> None:
    """Of a long row with an answer longer than what is compared, and then of no other row."""
    model = load_plain(tiny_model, torch.float32, CPU)
    ids = torch.randint(3, 500, (LOSS_TOKENS + 500,), generator=torch.Generator().manual_seed(1)).tolist()
    long = Encoded(ids, [-100] * 300 + ids[300:], LOSS_TOKENS + 200)
    with torch.no_grad():
        everything = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    projected: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: projected.append(output.shape[1]))
    (seen,) = iterate_logprobs(model, HeldOut([long, long], lambda: None))
    assert projected == [LOSS_TOKENS]
    assert seen.labels.tolist() == ids[300 : 300 + LOSS_TOKENS]
    torch.testing.assert_close(seen.log_probs, everything[299 : 299 + LOSS_TOKENS], atol=1e-4, rtol=1e-4)


def test_the_comparison_reports_every_row_and_ends_with_a_stop(tiny_model: Path) -> None:
    told: list[int] = []

    def on_rows() -> None:
        told.append(1)
        if len(told) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        list(iterate_logprobs(load_plain(tiny_model, torch.float32, CPU), HeldOut(list(HELD_OUT.samples) * 3, on_rows)))
    assert len(told) == 2


def test_the_linear_layers_of_gpt_2_are_found() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=16))
    assert linear_targets(model) == ["c_attn", "c_fc", "c_proj"]
