"""Who writes a base model, and wants its chat template to stop or exhaust the pod that renders it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_trainer.data.rows import Message
from finetune_trainer.tokenization import template
from finetune_trainer.tokenization.template import ChatTemplate, TemplateFailure

MESSAGES: list[Message] = [{"role": "user", "content": "q"}]
DOUBLING = "".join(
    f"{{% macro m{n}() %}}{{{{ m{n - 1}() }}}}{{{{ m{n - 1}() }}}}{{% endmacro %}}" for n in range(1, 40)
)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small limits of the process that renders."""
    monkeypatch.setattr(template, "MAX_MEMORY_BYTES", 64 << 20)
    monkeypatch.setattr(template, "MAX_SECONDS", 1.0)
    template._WORKER.close()
    yield
    template._WORKER.close()


@pytest.mark.parametrize(
    "source",
    [
        "{{ (1).to_bytes(2000000000, 'big') }}",
        "{% macro m0() %}xxxxxxxxxxxxxxxx{% endmacro %}" + DOUBLING + "{{ m39() }}",
        "{{ 'x' | batch(2000000000, 'x') | list | length }}",
        "{{ 'a\\nb' | indent(2000000000) }}",
        "{% for a in [0] * 100000 %}{% for b in [0] * 100000 %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(t='xx') %}{% for n in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
        "{{ ([0] * 1000000) | map('string') | join('x' * 1000000) | length }}",
    ],
    ids=["bytes", "macros", "batch", "indent", "loops", "doubled text", "join"],
)
def test_a_template_that_takes_memory_or_time_without_end_fails_for_its_row(source: str, limits: None) -> None:
    with pytest.raises(TemplateFailure):
        ChatTemplate(source, {}).render(MESSAGES)
    assert ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES) == "q"


def test_a_template_that_exceeds_its_limits_again_and_again_is_not_rendered_any_more(limits: None) -> None:
    endless = ChatTemplate("{% for a in [0] * 1000000 %}{% for b in [0] * 1000000 %}{% endfor %}{% endfor %}", {})
    messages = []
    for _ in range(5):
        with pytest.raises(TemplateFailure) as failure:
            endless.render(MESSAGES)
        messages.append(str(failure.value))
    assert messages[:3] == ["the chat template takes more than 1 s for this conversation"] * 3
    assert messages[3:] == ["the chat template exceeds its limits for one conversation after another"] * 2


def test_the_process_that_renders_has_no_keys(monkeypatch: pytest.MonkeyPatch, limits: None) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES) == "q"
    children = Path("/proc/thread-self/children").read_text().split()
    assert children
    assert all(b"secret" not in Path(f"/proc/{child}/environ").read_bytes() for child in children)
    assert os.environ["HF_TOKEN"] == "secret"
