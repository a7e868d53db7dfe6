"""Who writes a base model, and wants its chat template or its files to stop or exhaust the pod that reads them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode, Outcome
from finetune_trainer.data.rows import Message
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.check import find_adapter_faults
from finetune_trainer.models.adapters.initial import read_base_digests
from finetune_trainer.models.files import base_model
from finetune_trainer.pipeline.preflight import preflight
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


def test_a_conversation_that_ends_the_process_costs_no_other_one_that_is_rendered_with_it(limits: None) -> None:
    loop = "{% for a in [0] * 1000000 %}{% for b in [0] * 1000000 %}{% endfor %}{% endfor %}"
    source = "{% if messages[0].content == 'bad' %}" + loop + "{% endif %}{{ messages[0].content }}"
    shown = ChatTemplate(source, {})
    talks: list[list[Message]] = [[{"role": "user", "content": text}] for text in ("a", "bad", "b")]
    shown.render_ahead(talks)
    assert [shown.render(talks[0]), shown.render(talks[2])] == ["a", "b"]
    with pytest.raises(TemplateFailure):
        shown.render(talks[1])


def test_texts_that_are_rendered_ahead_are_limited_in_all(monkeypatch: pytest.MonkeyPatch, limits: None) -> None:
    monkeypatch.setattr(template, "MAX_AHEAD_BYTES", 1 << 20)
    large = ChatTemplate("{{ 'x' * 500000 }}{{ messages[0].content }}", {})
    talks: list[list[Message]] = [[{"role": "user", "content": str(number)}] for number in range(3)]
    large.render_ahead(talks)
    assert not large._ahead
    assert [large.render(one)[-1] for one in talks] == ["0", "1", "2"]


def test_the_process_that_renders_has_no_keys(monkeypatch: pytest.MonkeyPatch, limits: None) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES) == "q"
    children = Path("/proc/thread-self/children").read_text().split()
    assert children
    assert all(b"secret" not in Path(f"/proc/{child}/environ").read_bytes() for child in children)
    assert os.environ["HF_TOKEN"] == "secret"


ODD = (
    None,
    -1,
    True,
    1.5,
    float("inf"),
    float("nan"),
    10**400,
    "many",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    {"9" * 5000: {}},
)
TOKEN = {"content": "<odd>"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer_config.json", {key: value}) for key in ("extra_special_tokens", "eos_token") for value in ODD),
        *(("tokenizer_config.json", {"added_tokens_decoder": value}) for value in ODD),
        *(("tokenizer_config.json", {"added_tokens_decoder": {"9": TOKEN | {"special": value}}}) for value in ODD),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: TOKEN}}),
        ("special_tokens_map.json", {"additional_special_tokens": 1}),
        *(("added_tokens.json", {"<odd>": value}) for value in ODD),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_odd_value_in_a_file_of_the_tokenizer_is_not_an_internal_error(
    world: Any, model_folder: Path, name: str, content: dict[str, Any]
) -> None:
    path = model_folder / name
    usual = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(usual | content), encoding="utf-8")
    try:
        outcome: object = preflight(world.run).outcome
    except TrainerError as error:
        outcome = error.code
    assert outcome in {Outcome.VALIDATED, ExitCode.MODEL_UNAVAILABLE}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"])
def test_a_file_that_is_too_large_to_parse_is_refused_by_name(
    world: Any, model_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "JSON_LIMIT", 100_000)
    monkeypatch.setattr(base_model, "TEXT_LIMIT", 100_000)
    with (model_folder / name).open("a") as file:
        file.write(" " * 100_001)
    with pytest.raises(TrainerError, match=rf"{name} has 1\d\d,\d\d\d bytes, and the limit is 100,000") as refused:
        preflight(world.run)
    assert refused.value.code is ExitCode.MODEL_UNAVAILABLE


def test_a_header_that_is_too_large_to_parse_is_refused_before_it_is_read(
    world: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "HEADER_LIMIT", 1000)
    (model_folder / "model.safetensors").write_bytes((2000).to_bytes(8, "little") + b"{" * 4000)
    with pytest.raises(TrainerError, match=r"the header of model\.safetensors has 2,000 bytes, and the limit is 1,000"):
        preflight(world.run)


def test_a_model_of_ever_more_tensors_is_refused(
    world: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "MAX_TENSORS", 1)
    with pytest.raises(TrainerError, match="the weights have more than 1 tensors") as refused:
        preflight(world.run)
    assert refused.value.code is ExitCode.MODEL_UNAVAILABLE


NESTED = b"[" * 100_000 + b"]" * 100_000


def test_nested_json_next_to_an_adapter_is_read_as_what_is_not_there(tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(len(NESTED).to_bytes(8, "little") + NESTED)
    unread = ["adapter_config.json or the header of adapter_model.safetensors cannot be read"]
    assert find_adapter_faults(weights, b"{}", "") == unread
    assert find_adapter_faults(weights, NESTED, "") == unread
    assert read_base_digests(NESTED) == {}


@pytest.mark.parametrize("offsets", [[0, 1e999], [0, 10**400], ["0", "1"], [None, 1]])
def test_odd_offsets_of_an_adapters_tensor_are_a_fault_of_the_file(tmp_path: Path, offsets: list[object]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    assert find_adapter_faults(weights, b'{"peft_type": "LORA"}', "") == [
        "adapter_config.json or the header of adapter_model.safetensors cannot be read"
    ]
