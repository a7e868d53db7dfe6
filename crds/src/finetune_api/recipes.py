"""The defaults that each objective sets, and the sentences about them in the field descriptions."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from finetune_api.objectives import Objective
from finetune_api.tuning import Method

BILLION = 1_000_000_000
MANY_ROWS = 50_000
LARGE: Mapping[Method, int] = {Method.QLORA: 13, Method.FULL: 7}
"""Billions of weights above which a method takes half the learning rate, as in the recipes of QLoRA and full tuning."""


@dataclass(frozen=True)
class Recipe:
    """The defaults that an objective sets; `rate` and `full_rate` are peak learning rates."""

    rate: float
    full_rate: float
    epochs: float
    full_epochs: float
    warmup: float = 0.03
    schedule: str = "cosine"
    dropout: float | None = 0.05
    """None: the objective trains without dropout, and a job cannot set one."""
    batch: int = 16
    full_batch: int = 16
    quantised_clip: float = 1.0
    clip: float = 1.0

    def learning_rate(self, method: Method, parameters: int) -> float:
        """Return the peak learning rate for a model with that number of weights."""
        rate = self.full_rate if method is Method.FULL else self.rate
        return rate / 2 if method in LARGE and parameters > LARGE[method] * BILLION else rate

    def num_epochs(self, method: Method, rows: int) -> float:
        """Return the passes over that number of rows."""
        if method is Method.FULL:
            return self.full_epochs
        return 1.0 if rows > MANY_ROWS else self.epochs

    def effective_batch(self, method: Method) -> int:
        """Return the rows of an optimiser step."""
        return self.full_batch if method is Method.FULL else self.batch

    def max_grad_norm(self, method: Method) -> float:
        """Return the gradient-norm clip."""
        return self.quantised_clip if method is Method.QLORA else self.clip


_SUPERVISED = Recipe(rate=2e-4, full_rate=2e-5, epochs=3, full_epochs=2, full_batch=32, quantised_clip=0.3)
# A preference is measured against the model before training, whose answers dropout would change: TRL switches it off.
_PREFERENCE = Recipe(rate=5e-6, full_rate=1e-6, epochs=1, full_epochs=1, warmup=0.1, dropout=None)
RECIPES: Mapping[Objective, Recipe] = {
    Objective.INSTRUCTION: _SUPERVISED,
    Objective.CHAT: _SUPERVISED,
    Objective.DPO: _PREFERENCE,
    Objective.KTO: _PREFERENCE,
    Objective.REWARD_MODEL: Recipe(rate=1e-4, full_rate=1e-5, epochs=1, full_epochs=1),
    Objective.RLHF: Recipe(
        rate=5e-6, full_rate=1e-6, epochs=1, full_epochs=1, warmup=0, schedule="constant", dropout=None
    ),
    Objective.DISTILLATION: Recipe(rate=2e-4, full_rate=2e-5, epochs=1, full_epochs=1, dropout=None),
    Objective.DOMAIN_ADAPTATION: _SUPERVISED,
}
"""Adapters need ten to twenty times the learning rate of full tuning; preferences and rewards need far smaller steps
than supervised tuning, and one epoch."""
WITHOUT_DROPOUT = tuple(objective.value for objective, recipe in RECIPES.items() if recipe.dropout is None)


def number_text(value: float) -> str:
    """Return a number as users write it: `2e-4`, `0.05`, `3`."""
    if not 0 < value < 1e-3:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def join_words(words: list[str]) -> str:
    """Return the words as a list in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _by_objective(value: Callable[[Recipe], float | str]) -> str:
    """Return the value of every objective, that of Instruction first: `0.05; 0 with DPO, KTO and RLHF`."""
    names: dict[str, list[str]] = {}
    for objective, recipe in RECIPES.items():
        found = value(recipe)
        names.setdefault(found if isinstance(found, str) else number_text(found), []).append(objective.value)
    (usual, _), *others = names.items()
    return "; ".join([usual, *(f"{text} with {join_words(objectives)}" for text, objectives in others)])


@cache
def _texts() -> dict[str, str]:
    """Return the sentence for each placeholder in the docstrings of the fields."""
    return {
        "learning_rate": (
            f"{_by_objective(lambda one: one.rate)}. With method `Full`: {_by_objective(lambda one: one.full_rate)}. "
            f"Half of it with QLoRA above {LARGE[Method.QLORA]} billion weights, and with `Full` above "
            f"{LARGE[Method.FULL]} billion"
        ),
        "epochs": (
            f"{_by_objective(lambda one: one.epochs)}, and with any objective above {MANY_ROWS:,} rows. "
            f"With method `Full`: {_by_objective(lambda one: one.full_epochs)}"
        ),
        "schedule": _by_objective(lambda one: f"`{one.schedule}`"),
        "warmup": _by_objective(lambda one: one.warmup),
        "clip": (f"{_by_objective(lambda one: one.clip)}. With QLoRA: {_by_objective(lambda one: one.quantised_clip)}"),
        "batch": (
            f"{_by_objective(lambda one: one.batch)}; with method `Full` {_by_objective(lambda one: one.full_batch)}"
        ),
        "dropout": _by_objective(lambda one: one.dropout or 0),
    }


def fill_in_defaults(description: str) -> str:
    """Replace each placeholder of a field's docstring, for example `{learning_rate}`, by its defaults.

    A placeholder without a sentence is a KeyError.
    """
    return re.sub(r"\{([a-z_]+)\}", lambda found: _texts()[found[1]], description)
