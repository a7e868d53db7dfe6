"""Effects of policies are folded in order, and a pod is judged once."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.names import ConditionType, Reason
from finetune_operator.policy import decision
from finetune_operator.policy.decision import Effect, requeue_in, set_condition
from finetune_operator.policy.pods.run_outcome import read_report

Build = Callable[..., Any]


def test_the_earliest_requeue_wins_whichever_policy_asks_for_it() -> None:
    for effect in (requeue_in(30) + requeue_in(0), requeue_in(0) + requeue_in(30), Effect() + requeue_in(0)):
        assert effect.requeue_after == 0
    assert (Effect() + Effect()).requeue_after is None


def test_conditions_stay_in_order_and_an_action_is_kept_unless_a_later_policy_has_another(scene: Build) -> None:
    first, second = scene().to_training().observe().own
    stopped = set_condition(ConditionType.RUNNING, "False", Reason.STOPPING) + Effect(delete=first)
    started = set_condition(ConditionType.RUNNING, "False", Reason.PODS_STARTING)
    both = stopped + started
    assert [one.reason for one in both.conditions] == [Reason.STOPPING, Reason.PODS_STARTING]
    assert (both.delete, (both + Effect(delete=second)).delete) == (first, second)


def test_only_functions_that_record_change_the_status() -> None:
    """The fold in `plan`, the conditions and the pinned parents, which `plan` asks for first, are the exceptions."""
    found = set()
    for path in sorted(Path(decision.__file__).parent.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                if any(isinstance(target, ast.Attribute) for target in targets):
                    found.add((path.stem, function.name.strip("_").partition("_")[0]))
    changing = {(module, verb) for module, verb in found if module != "conditions" and verb not in {"record", "add"}}
    assert changing == {("plan", "plan"), ("dependencies", "pin")}
    assert len(found) > len(changing)


def test_a_termination_message_is_parsed_once_in_one_plan(scene: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scene(resources={"numNodes": 2, "gpusPerNode": 1}).to_training()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(first, 0, one.published())
    one.end(second, 0)
    one.complete("one-1")
    parsed = []
    monkeypatch.setattr(decision, "read_report", lambda pod, job: (parsed.append(pod.uid), read_report(pod, job))[1])
    assert one.look().status.is_true(ConditionType.COMPLETE)
    assert sorted(parsed) == sorted(pod["metadata"]["uid"] for pod in (first, second))


def test_children_of_a_dead_uid_are_waited_out(scene: Any) -> None:
    one = scene()
    one.settle()
    one.object["metadata"]["uid"] = "second-uid"
    one.object["status"] = {"observedGeneration": -1}
    decision = one.look()
    assert (decision.create, decision.requeue_after) == (None, 20.0)
    one.children.clear()
    assert one.look().create is not None
