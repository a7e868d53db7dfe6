"""A complete reward model: saved, read back and compared with the model as trained."""

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.run_record import ScoreCheck
from finetune_trainer.merging.merge import stored_precision
from finetune_trainer.models.loading import DTYPES, load_plain
from finetune_trainer.rewards.scorer import choose_pad, pair_texts, score_texts
from finetune_trainer.tokenization.samples import EncodedPair

CPU = torch.device("cpu")
COMPARED_PAIRS = 32
LARGEST_DIFFERENCE = 0.1
"""Largest difference of a score by rounding, relative to one plus the spread of all scores."""


def save_scoring_model(
    base: Path, weights: Path, output: Path, pairs: Sequence[EncodedPair], on_work: Callable[[], None]
) -> ScoreCheck:
    """Write the model in the base's number format, or in FP32 if that changes its scores too much."""
    texts = [ids for pair in pairs[:COMPARED_PAIRS] for ids in pair_texts(pair)]
    reference = score_texts(_trained(base, weights, torch.float32, texts), texts, on_work)
    for precision in dict.fromkeys([stored_precision(base), "FP32"]):
        _trained(base, weights, DTYPES[precision], texts).save_pretrained(output)
        gc.collect()
        scores = score_texts(load_plain(output, DTYPES[precision], CPU, writes_text=False), texts, on_work)
        differences = [abs(new - old) for new, old in zip(scores, reference, strict=True)]
        largest = max(differences) if all(map(math.isfinite, differences)) else math.inf
        if math.isfinite(largest) and largest <= LARGEST_DIFFERENCE * (1 + statistics.pstdev(reference)):
            return ScoreCheck(precision, len(texts), largest)
    raise TrainerError(
        ExitCode.INTERNAL_ERROR, f"the saved model's scores differ by {largest:.3g} from the trained one's"
    )


def _trained(base: Path, weights: Path, dtype: torch.dtype, texts: Sequence[list[int]]) -> PreTrainedModel:
    """Load the model as trained, with a padding token, by which the last token of a text is found."""
    model = load_plain(base, torch.float32, CPU, writes_text=False)
    unexpected = model.load_state_dict(load_file(weights), strict=False).unexpected_keys
    if unexpected:
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"trained weights do not fit the model: {unexpected[0]}")
    config = model.config.get_text_config()
    config.pad_token_id = choose_pad(config.pad_token_id, range(config.vocab_size), {ids[-1] for ids in texts})
    return model.to(dtype)
