from collections.abc import Callable
from typing import Any

import pytest


def test_an_unknown_context_is_refused_with_the_known_ones(front: Any, finetune: Callable[..., Any]) -> None:
    done = finetune("list", "--context", "other")
    assert (done.code, "it has lab" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("answer", "exit_code", "message"),
    [
        ((401, b""), 4, "log in again, or renew the token"),
        ((403, {"message": "alice cannot list"}), 4, "alice cannot list\n  ask an administrator for the verb"),
        ((404, {"message": "404 page not found"}), 3, "the operator's CustomResourceDefinition is not installed"),
        ((409, {"message": "conflict"}), 1, "error: conflict\n"),
        ((400, b"[]"), 1, "error: the API server returned 400\n"),
        ((429, {"message": "slow down"}), 5, "error: slow down\n  the API server"),
        ((500, b"<html>"), 5, "error: the API server returned 500\n  the API server"),
    ],
)
def test_a_refusal_has_its_exit_code_and_a_fix(
    front: Any, finetune: Callable[..., Any], answer: tuple[int, Any], exit_code: int, message: str
) -> None:
    front.answers["finetunejobs"] = [answer]
    done = finetune("list", "--context", "lab")
    assert (done.code, message in done.err) == (exit_code, True), done.err


def test_the_namespace_is_the_options_before_the_contexts(front: Any, finetune: Callable[..., Any]) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    assert finetune("list", "--context", "lab").err == "no jobs in namespace team-a\n"
    assert finetune("list", "--context", "lab", "-n", "other").err == "no jobs in namespace other\n"
    assert finetune("list", "--context", "lab", "-A").err == "no jobs in any namespace\n"
    paths = [path.partition("?")[0] for _, path, _ in front.requests]
    prefix = "/apis/finetune.dev/v1alpha1"
    assert paths == [
        f"{prefix}/namespaces/team-a/finetunejobs",
        f"{prefix}/namespaces/other/finetunejobs",
        f"{prefix}/finetunejobs",
    ]
