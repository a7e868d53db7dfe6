"""One architecture through the trainer: trained, saved, resumed, merged, and compared with its source.

A trial builds a random model of the architecture's own classes, saves it as a user would, and from then on uses the
trainer alone: loading, adapter, loop, checkpoint, adapter folder, merge and gate.
"""

import copy
import io
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from architecture_table import UNQUANTISED, YES
from loop_bench import CPU, make_loop, make_settings
from safetensors.torch import load_file
from shrink import VOCABULARY, shrink
from training_bench import Bench, make_rows, make_spec
from trl.trainer.utils import add_fused_lm_head

from finetune_api.status import Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.data.rows import ChatRow, DataFormat, Message, Source
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.gate_rules import find_faults
from finetune_trainer.merging import gate_worker
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.models.adapters.saved import save_adapter
from finetune_trainer.models.experts import has_experts
from finetune_trainer.models.loading import load_for_training, load_tokenizer, name_for_loss, quantised_layers
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.full_model import make_candidate
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded, EncodedPair
from finetune_trainer.training.callbacks import save_trained
from finetune_trainer.training.checkpoints import Checkpoints
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.reward import build_reward_trainer
from finetune_trainer.training.methods.sft import build_sft_trainer

MAX_LENGTH = 48
STEPS = 2
LARGEST_MODEL = 60_000_000
"""Parameters above which a configuration is not a small one."""
LOSS_DIFFERENCE = 1e-3
"""Nats per token."""
CAUSAL_DIFFERENCE = 1e-5
"""Largest effect of a later token on an earlier logit by rounding alone; a decoder's is zero."""
PAIRS = [EncodedPair([1, 332, 201, 40, 2], [50, 60 + n, 61, 2], [70, 80 + n, 2]) for n in range(4)]
OWNERS = ("peft", "trl", "transformers", "bitsandbytes", "torch")
OURS = "our check"
CONFIGURED = ("transformers_version", "model_type", "architectures")

TRAINED, REFUSED, NOT_TRIED = "trained", "refused", "not tried"


@dataclass
class Outcome:
    """The result of one architecture: `result`, and for others than trained the reason and who gave it."""

    architecture: str
    model_type: str = ""
    result: str = NOT_TRIED
    by: str = ""
    reason: str = ""
    lora: str = ""
    """Empty if trained, else why only method Full trains it."""
    qlora: str = ""
    """Empty if trained, else why not."""
    experts: str = ""
    """`yes` if an adapter on its experts was trained, resumed and merged, else why not; empty if it has none."""
    merged: str = ""
    """Empty if a merged model passed the gate, else why not."""
    scores: str = ""
    """Empty if a reward model was trained, else why not."""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - a result, not an error
    """The architecture cannot be trained, for a reason that no option changes."""


class NoSmallConfig(Exception):  # noqa: N818 - a result, not an error
    """The recipe makes no small model of the architecture."""


def try_architecture(name: str, tokenizer: Path, folder: Path) -> Outcome:
    """Return what the trainer makes of one architecture; `folder` is emptied."""
    began, outcome = time.monotonic(), Outcome(name)
    try:
        with _stage(outcome, "build"):
            base = _make_base(outcome, tokenizer, folder)
        with _stage(outcome, "lora"):
            adapter = _train_and_resume(base, folder)
        outcome.result = TRAINED
        with _stage(outcome, "merge"):
            outcome.merged = _words(lambda: _merge(base, adapter, folder))
        with _stage(outcome, "qlora"):
            outcome.qlora = _words(lambda: _train_quantised(base, folder))
        if has_experts(base):
            with _stage(outcome, "experts"):
                method = "LoRA" if outcome.qlora else "QLoRA"
                outcome.experts = _words(lambda: _train_experts(base, folder, method)) or YES
        with _stage(outcome, "reward"):
            outcome.scores = _words(lambda: _train_scores(base, folder))
    except NoSmallConfig as error:
        outcome.reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the result
        outcome.result, outcome.by, outcome.reason = REFUSED, owner(error), sentence(error)
        if outcome.by == "peft":
            _try_without_adapter(outcome, base, folder)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _try_without_adapter(outcome: Outcome, base: Path, folder: Path) -> None:
    """Train two steps of method Full: what an adapter cannot be put on may still be trained whole."""
    with _stage(outcome, "full"):
        if not _words(lambda: _train_whole(base, folder)):
            outcome.result, outcome.lora = TRAINED, f"{outcome.by}: {outcome.reason}"
            outcome.by = outcome.reason = ""


@contextmanager
def _stage(outcome: Outcome, name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        outcome.stages[name] = round(time.monotonic() - began, 1)


def _words(run: Callable[[], None]) -> str:
    try:
        run()
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the result
        return f"{owner(error)}: {sentence(error)}"
    return ""


def owner(error: BaseException) -> str:
    """Return who raised it: our check, or the library of the innermost frame that is one of those we build on."""
    if isinstance(error, (Refused, TrainerError)) and error.__cause__ is None:
        return OURS
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    for frame in reversed(frames):
        for one in OWNERS[:4]:
            if f"site-packages/{one}/" in frame.filename:
                return one
    return OURS


def sentence(error: BaseException) -> str:
    """Return the first line of an error, with its type unless it is one of our own."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return text if isinstance(error, (Refused, TrainerError)) else f"{type(error).__name__}: {text}"


# --- the random model ---------------------------------------------------------


def _make_base(outcome: Outcome, tokenizer: Path, folder: Path) -> Path:
    """Write the random model with the tiny tokenizer; raises NoSmallConfig or Refused."""
    kind = getattr(transformers, outcome.architecture)
    outcome.model_type = kind.config_class.model_type
    model = build_small(kind)
    require_causal(model)
    require_loss_of_logits(model)
    shutil.rmtree(folder, ignore_errors=True)
    base = folder / "base"
    shutil.copytree(tokenizer, base, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(base)
    return base


def build_small(kind: Any) -> Any:
    """Return a small random model of the class, in FP32; raises NoSmallConfig."""
    try:
        values = {key: value for key, value in shrink(kind.config_class().to_dict()).items() if key not in CONFIGURED}
        config = kind.config_class(**values)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in kind(config).parameters())
        if size > LARGEST_MODEL:
            raise NoSmallConfig(f"{size / 1e6:.0f} million parameters after shrinking")
        torch.manual_seed(0)
        return kind(config).float().eval()
    except ImportError as error:
        raise Refused(f"it needs a package that the trainer lacks: {sentence(error)[:120]}") from error
    except NoSmallConfig:
        raise
    except Exception as error:
        raise NoSmallConfig(f"its default configuration cannot be shrunk: {sentence(error)[:160]}") from error


def require_causal(model: Any) -> None:
    """Raise Refused if the model does not predict a text from token ids alone, or reads later tokens."""
    ids = torch.arange(5, 25)[None]
    changed = ids.clone()
    changed[0, -1] = VOCABULARY // 2
    try:
        with torch.no_grad():
            first, second = model(input_ids=ids).logits, model(input_ids=changed).logits
    except (RuntimeError, IndexError, KeyError) as error:  # sizes that do not fit each other
        raise NoSmallConfig(f"its small model does not compute: {sentence(error)[:160]}") from error
    if first.shape[:2] != ids.shape:
        raise Refused(f"its output has the shape {tuple(first.shape)} for {ids.shape[1]} tokens of one text")
    if float((first[:, :-1] - second[:, :-1]).abs().max()) > CAUSAL_DIFFERENCE:
        raise Refused("it reads texts in both directions, so that each token sees the ones it should predict")


def require_loss_of_logits(model: Any) -> None:
    """Raise Refused if TRL's loss, which it computes from hidden states and output head, is not that of the logits.

    Some models with images or sound leave the scale of their text part's logits out, which TRL does not.
    """
    ids, model = torch.arange(5, 25)[None], copy.deepcopy(model)
    name_for_loss(model)
    text = model.config.get_text_config()
    scales = [1.0, getattr(text, "logit_scale", None) or 1.0, 1 / (getattr(text, "logits_scaling", None) or 1.0)]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        add_fused_lm_head(model)
        found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0]
    expected = [(scale * logits).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0] for scale in scales]
    if min(float((found - one).abs().max()) for one in expected) > LOSS_DIFFERENCE:
        raise Refused(
            "TRL's loss is not that of its logits: something is computed between hidden states and output head"
        )


# --- the trainer --------------------------------------------------------------


def _samples(base: Path) -> list[Encoded]:
    labeler = Labeler(base)
    rows = [
        ChatRow([Message(**one) for one in row["messages"]], Source("rows", line), DataFormat.OPENAI)  # type: ignore[attr-defined]
        for line, row in enumerate(make_rows(4), 1)
    ]
    return [sample for row in rows for sample in labeler.encode(row, "Instruction", MAX_LENGTH)]


def _settings(method: str, **changes: Any) -> Resolved:
    return make_settings(
        method,
        total_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        global_batch_size=2,
        max_length=MAX_LENGTH,
        precision="FP32",
        gradient_checkpointing=False,
        lora_rank=4,
        **changes,
    )


def _make_trainer(
    base: Path, folder: Path, method: str, checkpoints: Checkpoints | None = None, **changes: Any
) -> LoopTrainer:
    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings(method, **changes)
    model = load_for_training(base, settings, CPU)
    loop = make_loop(folder)
    if checkpoints:
        loop = replace(loop, checkpoints=checkpoints)
    samples = _samples(base)
    return build_sft_trainer(TrainerParts(model, load_tokenizer(base), settings, loop, samples, [], folder / "scratch"))


def _make_checkpoints(base: Path, folder: Path) -> Checkpoints:
    """Return the checkpoints of a job on local folders, one after each step."""
    spec = make_spec("LoRA", checkpoint={"steps": 1, "saveTotalLimit": STEPS})
    bench = Bench(folder, base, spec)
    for name in ("workspace", "output"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    run = RunContext(
        bench.config(), bench.storage, folder / "workspace", Reporter("u-1", out=io.StringIO()), StopFlag()
    )
    return Checkpoints(run, "base", {})


def _train_and_resume(base: Path, folder: Path, method: str = "LoRA", **changes: Any) -> Path:
    """Train two steps, resume after the first one in a fresh model, compare; return the saved adapter."""
    job = folder / "job"
    trainer = _make_trainer(base, folder / "first", method, _make_checkpoints(base, job), **changes)
    trainer.train()
    save_trained(trainer.model, folder / "whole.safetensors")
    restored = _make_checkpoints(base, job).restore(only=1)
    if restored is None:
        raise Refused("the checkpoint of its first step was not found")
    resumed = _make_trainer(base, folder / "second", method, **changes)
    shutil.copyfile(folder / "first" / "metrics.jsonl", folder / "second" / "metrics.jsonl")
    resumed.train(str(restored))
    save_trained(resumed.model, folder / "resumed.safetensors")
    whole, again = load_file(folder / "whole.safetensors"), load_file(folder / "resumed.safetensors")
    if different := [name for name in whole if not torch.allclose(whole[name], again[name], rtol=1e-4, atol=1e-6)]:
        raise Refused(
            f"{len(different)} of {len(whole)} weights differ after a resumed step, for example {different[0]}"
        )
    save_adapter(resumed.model, folder / "adapter", "s3://bucket/model")
    return folder / "adapter"


def _train_whole(base: Path, folder: Path) -> None:
    _make_trainer(base, folder / "full", "Full").train()


def _train_quantised(base: Path, folder: Path) -> None:
    """Train two steps on the base in NF4; raise Refused if none of its layers is."""
    trainer = _make_trainer(base, folder / "quantised", "QLoRA")
    trainer.train()
    save_adapter(trainer.model, folder / "quantised-adapter", "s3://bucket/model")
    if quantised_layers(trainer.model, _settings("QLoRA")) is None:
        raise Refused(UNQUANTISED)


def _train_experts(base: Path, folder: Path, method: str) -> None:
    """Train, resume and merge an adapter that is also on experts."""
    adapter = _train_and_resume(base, folder / "experts", method, target_experts=True)
    _merge(base, adapter, folder / "experts")


def _merge(base: Path, adapter: Path, folder: Path) -> None:
    """Merge the adapter, and raise Refused with the gate's words if the result may not be published."""
    candidate = Candidate(name="merged", directory=folder / "merged")
    samples = _samples(base)
    plan = GatePlan(
        base=base,
        adapter=adapter,
        precision="FP32",
        candidates=[candidate],
        samples=[(list(one.input_ids), list(one.labels)) for one in samples],
        prompts=[],
        stop_ids=[2],
        max_new_tokens=1,
        tokenizer_sha256={},
        device="cpu",
    )
    make_candidate(plan, candidate, lambda: None)
    result = gate_worker.examine(plan, candidate)
    if faults := find_faults(result, None, [], 0):
        raise Refused("; ".join(faults)[:300])


def _train_scores(base: Path, folder: Path) -> None:
    """Train two steps of a reward model."""
    (folder / "scores").mkdir()
    settings = _settings("LoRA")
    model = load_for_training(base, settings, CPU, writes_text=False)
    loop, scratch = make_loop(folder / "scores"), folder / "scores" / "scratch"
    trainer = build_reward_trainer(TrainerParts(model, load_tokenizer(base), settings, loop, PAIRS, [], scratch))
    trainer.train()
