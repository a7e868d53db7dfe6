"""The context of a model by its `config.json`: how many tokens it was trained with, and how many it can read."""

from collections.abc import Mapping
from typing import Any

TABLE_KEYS = {
    "biogpt": "max_position_embeddings",
    "codegen": "n_positions",
    "ctrl": "n_positions",
    "gpt2": "n_positions",
    "gpt_bigcode": "n_positions",
    "gpt_neo": "max_position_embeddings",
    "gptj": "n_positions",
    "openai-gpt": "n_positions",
    "opt": "max_position_embeddings",
}
"""Model types of transformers that look positions up in a table, with the key of its size: a longer text fails."""
COUNTS_PADDING = frozenset({"beam", "biogpt", "ctrl", "git", "gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "xglm"})
"""Model types whose positions count the padding before a text too, unless they are given."""


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the context length, from the text part of the configuration if there is one.

    A scaling of rotary positions that names the original length and a factor extends it.
    """
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    found = _whole(text.get("max_position_embeddings")) or _whole(text.get("n_positions"))
    scaling = text.get("rope_parameters") or text.get("rope_scaling")
    if found is None or not isinstance(scaling, dict):
        return found
    original, factor = _whole(scaling.get("original_max_position_embeddings")), scaling.get("factor")
    return max(found, int(original * factor)) if original and isinstance(factor, int | float) else found


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens the model can read at all; None if it computes positions, or is not known."""
    key = TABLE_KEYS.get(str(config.get("model_type")))
    return _whole(config.get(key)) if key else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
