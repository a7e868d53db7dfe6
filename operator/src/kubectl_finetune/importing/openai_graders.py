"""OpenAI's graders as computed rewards: comparisons and similarities of texts, and weighted sums of them."""

import ast
import re
import warnings
from collections.abc import Mapping
from typing import Any

MOST_REWARDS, LARGEST_WEIGHT, LONGEST_PATTERN = 8, 1000, 512
"""As in `rlhf.rewards`."""
LONGEST_FORMULA = 1000
SIMILARITIES = {"fuzzy_match": "FuzzyMatch", "rouge_1": "Rouge1", "rouge_2": "Rouge2", "rouge_l": "RougeL"}
"""Metrics of `text_similarity` that are computed, by their names there."""
_COLUMN = re.compile(r"\{\{\s*item\.([A-Za-z0-9_]+)\s*\}\}")
_ANSWER = re.compile(r"\{\{\s*sample\.output_text\s*\}\}")

Reward = dict[str, Any]
Weights = dict[str, float]


def read_rewards(grader: Any) -> list[Reward]:
    """Return the rewards of a grader; raises ValueError with the reason if none computes the same."""
    if not isinstance(grader, dict):
        raise ValueError("a grader is an object")
    if grader.get("type") != "multi":
        return [_read_reward(grader)]
    graders = grader.get("graders")
    if not isinstance(graders, dict) or not graders:
        raise ValueError("a grader of type multi has its graders by name in graders")
    weights = read_weights(_text(grader, "calculate_output"))
    if unknown := sorted(weights.keys() - graders.keys()):
        raise ValueError(f"calculate_output names {', '.join(unknown)}, which graders does not have")
    if len(weights) > MOST_REWARDS:
        raise ValueError(f"{len(weights)} graders are summed, of at most {MOST_REWARDS} rewards")
    return [_weigh(_name_fault(name, graders[name]), name, weight) for name, weight in weights.items()]


def read_weights(formula: str) -> Weights:
    """Return the weight of each grader in a sum such as `0.7 * a + b / 2`, without those whose weight is 0.

    Raises ValueError for another formula.
    """
    other = ValueError(f"calculate_output {formula[:80]!r} is not a sum of graders with weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, about numbers that touch words
            tree = ast.parse(formula.strip(), mode="eval") if len(formula) <= LONGEST_FORMULA else None
        constant, weights = _linear(tree.body) if tree else (0.0, {})
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        raise other from None
    counted = {name: rounded for name, weight in weights.items() if (rounded := float(f"{weight:.12g}"))}
    if constant or not counted:
        raise other
    return counted


def _linear(node: ast.expr) -> tuple[float, Weights]:
    """Return constant and weights of an expression; raises ValueError if it is not linear."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return float(value), {}
        case ast.Name(id=name):
            return 0.0, {name: 1.0}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return _scale(_linear(operand), -1.0 if isinstance(sign, ast.USub) else 1.0)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as sign, right=right):
            return _add(_linear(left), _scale(_linear(right), -1.0 if isinstance(sign, ast.Sub) else 1.0))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            one, other = _linear(left), _linear(right)
            if one[1] and other[1]:
                raise ValueError("a product of graders")
            return _scale(one, other[0]) if one[1] else _scale(other, one[0])
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            divisor = _linear(right)
            if divisor[1]:
                raise ValueError("a division by a grader")
            return _scale(_linear(left), 1 / divisor[0])
    raise ValueError("not linear")


def _scale(linear: tuple[float, Weights], factor: float) -> tuple[float, Weights]:
    return linear[0] * factor, {name: weight * factor for name, weight in linear[1].items()}


def _add(one: tuple[float, Weights], other: tuple[float, Weights]) -> tuple[float, Weights]:
    names = [*one[1], *(name for name in other[1] if name not in one[1])]
    return one[0] + other[0], {name: one[1].get(name, 0.0) + other[1].get(name, 0.0) for name in names}


def _weigh(reward: Reward, name: str, weight: float) -> Reward:
    if abs(weight) > LARGEST_WEIGHT:
        raise ValueError(f"{name} has the weight {weight:g}, of at most {LARGEST_WEIGHT}: divide all weights")
    return reward if weight == 1 else reward | {"weight": weight}


def _name_fault(name: str, grader: Any) -> Reward:
    try:
        return _read_reward(grader)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _read_reward(grader: Any) -> Reward:
    kind = grader.get("type") if isinstance(grader, dict) else None
    match kind:
        case "string_check":
            return _read_comparison(grader)
        case "text_similarity":
            return _read_similarity(grader)
    raise ValueError(f"a grader of type {kind} cannot be computed")


def _read_similarity(grader: Mapping[str, Any]) -> Reward:
    """Return the reward of a `text_similarity` with a column of the row; its `pass_threshold` is not of a reward."""
    metric, reference = _text(grader, "evaluation_metric"), _text(grader, "reference")
    _require_whole_answer(grader)
    if metric not in SIMILARITIES:
        raise ValueError(f"evaluation_metric {metric[:80]} is not computed: use {', '.join(SIMILARITIES)}")
    column = _COLUMN.fullmatch(reference.strip())
    if not column:
        raise ValueError("the reference of a similarity is one column of the row: {{item.NAME}}")
    return {"type": "Answer", "answer": {"match": "Similar", "similarity": SIMILARITIES[metric], "column": column[1]}}


def _read_comparison(grader: Mapping[str, Any]) -> Reward:
    """Return the reward of a `string_check`: with a column of the row, or with a text that is the same for all rows."""
    operation, reference = _text(grader, "operation"), _text(grader, "reference")
    _require_whole_answer(grader)
    if column := _COLUMN.fullmatch(reference.strip()):
        if operation != "eq":
            raise ValueError(f"operation {operation} does not compare with a column of the row, only eq does")
        return {"type": "Answer", "answer": {"match": "Exact", "column": column[1]}}
    if "{{" in reference:
        raise ValueError("the reference is neither one column, {{item.NAME}}, nor a plain text")
    plain = re.escape(reference)
    patterns = {"eq": rf"\A\s*{plain}\s*\Z", "like": plain, "ilike": f"(?i:{plain})"}
    if operation not in patterns or not reference:
        raise ValueError(f"operation {operation} is not computed: use eq, like or ilike with a reference")
    pattern = patterns[operation]
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"the reference is a pattern of {len(pattern)} characters, of at most {LONGEST_PATTERN}")
    return {"type": "Regex", "pattern": pattern}


def _require_whole_answer(grader: Mapping[str, Any]) -> None:
    if not _ANSWER.fullmatch(_text(grader, "input").strip()):
        raise ValueError("only whole answers can be compared: input {{sample.output_text}}")


def _text(grader: Mapping[str, Any], key: str) -> str:
    """Return a value that must be a text; raises ValueError."""
    value = grader.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {'missing' if value is None else 'no text'}: write a text")
    return value
