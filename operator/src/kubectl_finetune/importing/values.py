"""Convert values of other projects to those of the spec; what has no counterpart is NotConverted."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from finetune_api.hyperparameters import Optimiser, Schedule
from finetune_api.manifest.yaml_document import read_scalar
from finetune_api.spec import Checkpoint
from finetune_client.manifest.suggestions import nearest
from kubectl_finetune.importing.draft import NotConverted

SAME_OPTIMISERS = {
    "adamw_hf": Optimiser.ADAMW_TORCH,
    "adamw": Optimiser.ADAMW_TORCH,
    "adamw_bnb_8bit": Optimiser.ADAMW_8BIT,
    "paged_adamw": Optimiser.PAGED_ADAMW,
    "lion": Optimiser.LION,
    "paged_lion": Optimiser.PAGED_LION,
    "lion_pytorch": Optimiser.LION,
    "adamw_apex_fused": Optimiser.ADAMW_TORCH_FUSED,
    "adamw_torch_8bit": Optimiser.ADAMW_8BIT,
    "ao_adamw_8bit": Optimiser.ADAMW_8BIT,
}
"""Other names of the same update rule."""
MODULE = r"[A-Za-z0-9_]+([.][A-Za-z0-9_]+)*"
STRATEGY_IS_STEPS = "it is by steps here, and their number is not in the file"


def number(value: Any) -> float | int:
    """Return a number; texts such as "2e-5" count."""
    found = read_scalar(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise NotConverted("is not a number", "write a number")
    return found


def whole(value: Any) -> int:
    """Return a whole number."""
    found = number(value)
    if int(found) != found:
        raise NotConverted("is not a whole number", "write a whole number")
    return int(found)


def numbers(value: Any) -> list[float | int]:
    """Return a list of numbers."""
    return [number(one) for one in value] if isinstance(value, list) else [number(value)]


def ratio_to(whole_value: Any) -> Callable[[Any], float]:
    """Return a converter to the ratio of a number to this one."""

    def divide(value: Any) -> float:
        divisor = number(whole_value)
        if not divisor:
            raise NotConverted("is a part of 0", "write a number above 0")
        return float(f"{number(value) / divisor:.6g}")

    return divide


def positive(value: Any) -> float | int | None:
    """Return a number above 0, else None: other projects switch something off with 0 or -1."""
    found = number(value)
    return found if found > 0 else None


def positive_whole(value: Any) -> int | None:
    """Return a whole number above 0, else None."""
    found = whole(value)
    return found if found > 0 else None


def kept(value: Any) -> int:
    """Return how many checkpoints are kept; other projects keep all with 0 or -1."""
    found = whole(value)
    if found <= 0:
        reason = f"not every checkpoint is kept: checkpoint.saveTotalLimit is {Checkpoint().save_total_limit}"
        raise NotConverted(reason, "set it to as many as you need", changes_training=False)
    return found


def count(value: Any) -> int:
    """Return a whole number above 0."""
    found = whole(value)
    if found <= 0:
        raise NotConverted("is not above 0", "write a whole number of at least 1")
    return found


def counts(value: Any) -> dict[str, int] | None:
    """Return whole numbers above 0 by name; None if there are none."""
    if not isinstance(value, Mapping):
        raise NotConverted("is not a map", "write `name: number` pairs")
    return {str(name): count(one) for name, one in value.items()} or None


def flag(value: Any) -> bool:
    """Return true or false; the texts of both count."""
    found = read_scalar(value) if isinstance(value, str) else value
    if isinstance(found, int) and found in {0, 1}:
        return bool(found)
    raise NotConverted("is not true or false", "write true or false")


def checkpointing(value: Any) -> bool:
    """Return whether activations are recomputed; where they are kept in the meantime has no effect on the result."""
    return True if str(value).startswith(("offload", "legacy")) else flag(value)


def inverse(value: Any) -> bool:
    """Return the opposite of a flag."""
    return not flag(value)


def text(value: Any) -> str:
    """Return a text in one line."""
    return str(value).strip()


def words(value: Any) -> list[str]:
    """Return a list of words, which may be written as one text with commas or spaces."""
    if isinstance(value, str):
        return [part for part in re.split(r"[,\s]+", value) if part]
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def only_true(value: Any) -> bool | None:
    """Return true, else None."""
    return flag(value) or None


def only_false(value: Any) -> bool | None:
    """Return false, else None."""
    return None if flag(value) else False


def choice(known: Mapping[str, Any], reason: str, fix: str = "") -> Callable[[Any], Any]:
    """Return a converter of words."""

    def choose(value: Any) -> Any:
        word = str(value).lower()
        if word in known:
            return known[word]
        raise NotConverted(reason, fix)

    return choose


def optimiser(value: Any) -> str:
    """Return the optimiser of the same name, or with the same update rule."""
    word = text(value)
    if word in {one.value for one in Optimiser}:
        return word
    if word in SAME_OPTIMISERS:
        return SAME_OPTIMISERS[word].value
    raise NotConverted("there is no such optimiser; the default is used", "docs/settings.md lists those there are")


def schedule(value: Any) -> str:
    """Return the schedule of the same name."""
    word = text(value).lower()
    known = [one.value for one in Schedule]
    if word in known:
        return word
    near = nearest(word, known)
    raise NotConverted("there is no such schedule; the default is used", f"the nearest is {near}" if near else "")


def percent(value: Any) -> int | None:
    """Return the share of held-out rows in percent."""
    share = number(value)
    if share <= 0:
        return None
    if share >= 1:
        fix = "set dataset.validationSplitPercent, or give the rows with --validation"
        raise NotConverted("a number of rows cannot be held out, only a share in percent", fix, changes_training=True)
    return min(50, max(1, round(share * 100)))


def steps(value: Any) -> int:
    """Return a number of steps."""
    found = number(value)
    if found < 1:
        raise NotConverted(STRATEGY_IS_STEPS, changes_training=False)
    return whole(found)


def modules(value: Any) -> list[str] | None:
    """Return the modules of an adapter; None is every linear layer."""
    names = words(value)
    if {name.lower() for name in names} & {"all", "all-linear", "all_linear"}:
        return None
    return _require_modules(names, "targetModules", "every linear layer gets an adapter")


def whole_modules(value: Any) -> list[str] | None:
    """Return the modules that are trained in full."""
    return _require_modules(words(value), "modulesToSave", "none is trained in full") or None


def _require_modules(names: list[str], field: str, otherwise: str) -> list[str]:
    """Return the names of modules, each once; raise NotConverted for a regular expression."""
    if any(not re.fullmatch(MODULE, name) for name in names):
        fix = f"list the ends of the modules' names in tuning.lora.{field}"
        raise NotConverted(f"a regular expression cannot choose modules; {otherwise}", fix)
    return list(dict.fromkeys(names))
