"""Flash attention on flattened batches, with a plain attention in place of the GPU's kernel, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_rows import make_documents, make_model, make_samples, make_trainer, settings_for
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations import sdpa_attention

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.attention import (
    VARLEN,
    attend_rows,
    choose_attention,
    explain_missing_flash,
    find_kernel_fault,
    find_unsupported_attention,
    use_attention,
)
from finetune_trainer.models.loading import load_plain, trained_tensors
from finetune_trainer.tokenization.packing import FLASH_MODELS
from finetune_trainer.training.methods.packed import PackedCollator, require_isolated_rows

CPU = torch.device("cpu")


def attend_plainly(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *,
    scaling: float | None = None, sliding_window: int | None = None, cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend within each row of a flattened batch, as the flash kernel is documented to do."""
    assert mask is None
    assert cu_seq_lens_q is not None
    parts = []
    for one in zip(*(part.split(cu_seq_lens_q.diff().tolist(), dim=2) for part in (query, key, value)), strict=True):
        width = one[0].shape[2]
        allowed = torch.ones(width, width, dtype=torch.bool).tril()
        allowed &= ~torch.ones(width, width, dtype=torch.bool).tril(-(sliding_window or width))
        parts.append(scaled_dot_product_attention(*one, allowed, scale=scaling, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, VARLEN, attend_plainly)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("model_type", sorted(FLASH_MODELS))
def test_rows_of_a_flattened_batch_have_the_logits_of_single_rows(model_type: str) -> None:
    model = make_model(model_type, "sdpa")
    documents = [document for row in make_documents() for document in row]
    collator = PackedCollator(0, padding_free=True)
    batch = collator.torch_call([{"input_ids": document.tolist()} for document in documents])
    del batch["labels"]
    with torch.no_grad():
        with use_attention(model, VARLEN):
            require_isolated_rows(model, collator)
            require_isolated_rows(model, collator, is_packed=False)
            joined = model(**batch, use_cache=False).logits[0].split([len(document) for document in documents])
        single = [model(input_ids=document[None], use_cache=False).logits[0] for document in documents]
    largest = max(float(one.abs().max()) for one in single)
    for ours, alone in zip(joined, single, strict=True):
        torch.testing.assert_close(ours, alone, atol=1e-4 * largest, rtol=0)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_a_step_without_padding_moves_the_weights_as_a_padded_step(
    tiny_model: Path, tmp_path: Path, method: str, packing: bool
) -> None:
    batch = 2 if packing else 6
    checkpointed = settings_for(method, packing=packing, batch=batch, gradient_checkpointing=True)
    flat = make_trainer(tiny_model, tmp_path / "flat", checkpointed.model_copy(update={"attention": "FlashAttention"}))
    padded = make_trainer(tiny_model, tmp_path / "padded", settings_for(method, packing=False, batch=6))
    (line,) = list(flat.get_train_dataloader())
    assert line["input_ids"].shape == (1, sum(len(sample.input_ids) for sample in make_samples()))
    for trainer in (flat, padded):
        trainer.train()
    ours, theirs = (trainer.state.log_history[0] for trainer in (flat, padded))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert ours["num_tokens"] == theirs["num_tokens"]
    other = trained_tensors(padded.model)
    for name, tensor in trained_tensors(flat.model).items():
        torch.testing.assert_close(tensor, other[name], atol=2e-3, rtol=1e-3)
    assert flat.measure().loss == pytest.approx(padded.measure().loss, abs=2e-3)


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_attends_as_plain_attention_has_no_fault() -> None:
    assert find_kernel_fault(make_model("llama", "sdpa"), torch.float32, CPU) is None


def test_a_kernel_that_mixes_rows_or_fails_has_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend_all(_module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return attended.transpose(1, 2), None

    model = make_model("llama", "sdpa")
    assert "it fails" in (find_kernel_fault(model, torch.bfloat16, CPU) or "")
    monkeypatch.setitem(AttentionInterface._global_mapping, VARLEN, attend_all)
    assert "its results differ" in (find_kernel_fault(model, torch.float32, CPU) or "")


@pytest.mark.parametrize(
    ("capability", "dtype", "is_grouped"),
    [
        ((7, 5), torch.float16, False),
        ((8, 0), torch.bfloat16, True),
        ((9, 0), torch.float16, True),
        ((9, 0), torch.float32, False),
    ],
)
def test_keys_and_values_are_repeated_where_no_fused_kernel_takes_fewer_heads(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, is_grouped: bool
) -> None:
    load_plain(tiny_model, torch.float32, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with FakeTensorMode():
        key = torch.empty(1, 2, 16, 64, dtype=dtype, device="cuda")
        assert sdpa_attention.use_gqa_in_sdpa(None, key, key) is is_grouped
        assert sdpa_attention.use_gqa_in_sdpa(None, key.cpu(), key.cpu())


@pytest.mark.parametrize(
    ("asked", "own", "found"), [(None, "sdpa", "SDPA"), ("Auto", "eager", "Eager"), ("SDPA", "sdpa", "SDPA")]
)
def test_without_a_flash_kernel_the_model_keeps_its_attention(asked: str | None, own: str, found: str) -> None:
    settings = settings_for("LoRA", packing=False, attention=asked)
    assert choose_attention(make_model("llama", own), settings, CPU, is_flattened=True) == found


@pytest.mark.parametrize(
    ("asked", "own", "message"),
    [
        ("FlashAttention", "sdpa", "FlashAttention: it needs a GPU; available: SDPA: set it to Auto or SDPA"),
        ("SDPA", "eager", "SDPA: llama has only Eager: set it to Auto"),
    ],
)
def test_an_attention_that_is_missing_is_refused_with_what_there_is(asked: str, own: str, message: str) -> None:
    settings = settings_for("LoRA", packing=False, attention=asked)
    with pytest.raises(TrainerError, match=message) as caught:
        choose_attention(make_model("llama", own), settings, CPU, is_flattened=True)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_gpu_that_is_too_old_and_a_format_that_is_too_wide_lack_the_kernel() -> None:
    assert explain_missing_flash("Tesla T4", (7, 5), "FP16") == (
        "Tesla T4 has compute capability 7.5, the kernel needs 8.0"
    )
    assert explain_missing_flash("A100", (8, 0), "FP32") == "the kernel computes in BF16 and FP16, not in FP32"
    assert explain_missing_flash("A100", (8, 0), "BF16") is None


@pytest.mark.parametrize(("model_type", "why"), [("gemma2", "is not known to be exact"), ("gpt2", "has dropout")])
def test_what_the_kernel_lacks_of_a_models_attention_is_found(model_type: str, why: str) -> None:
    assert why in (find_unsupported_attention(make_model(model_type, "eager")) or "")


def test_a_batch_without_cumulative_lengths_never_reaches_the_kernel() -> None:
    rows = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="needs a flattened batch with cumulative lengths"):
        attend_rows(torch.nn.Module(), rows, rows, rows, None)
