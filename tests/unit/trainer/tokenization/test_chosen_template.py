"""The chat template that a job chooses, with its variables: what is trained, and what is published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.inputs.chat_template import ChatTemplateName
from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, Source
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.saved import save_tokenizer
from finetune_trainer.tokenization.chosen_template import TemplateChoice, parse_value
from finetune_trainer.tokenization.labeler import Labeler, load_labeler

BuildModel = Callable[..., Path]
TURNS: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
READS_EFFORT = (
    "\n  {%- for m in messages %}\n  {{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n  {%- endfor %}\n"
    "{% if add_generation_prompt %}\n  assistant:{% if effort == 'low' %} (quick){% endif %}{% endif %}"
)


def row(messages: list[Message] | None = None) -> ChatRow:
    return ChatRow(TURNS if messages is None else messages, Source("rows.jsonl", 1), DataFormat.OPENAI)


def pieces(labeler: Labeler) -> list[tuple[str, bool]]:
    return [(text, trained) for text, trained in labeler.preview(row())]


@pytest.mark.parametrize(
    ("name", "context", "answers"),
    [
        (
            "ChatML",
            [
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n",
                "\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n",
                "\n",
            ],
            ["First.<eos>", "Second.<eos>"],
        ),
        (
            "Alpaca",
            [
                "Be brief.\n\n### Instruction:\nOne?\n\n### Response:\n",
                "\n\n### Instruction:\nTwo?\n\n### Response:\n",
                "\n\n",
            ],
            ["First.<eos>", "Second.<eos>"],
        ),
        (
            "Vicuna",
            ["Be brief. USER: One? ASSISTANT:", "USER: Two? ASSISTANT:"],
            [" First.<eos>", " Second.<eos>"],
        ),
        ("Completion", ["Be brief.One?", "Two?"], ["First.<eos>", "Second.<eos>"]),
    ],
)
def test_a_template_by_name_trains_exactly_the_answers_and_their_ends(
    build_model: BuildModel, name: str, context: list[str], answers: list[str]
) -> None:
    labeler = load_labeler(build_model(), "model", TemplateChoice(ChatTemplateName(name)))
    found = pieces(labeler)
    assert [text for text, trained in found if trained] == answers
    assert [text for text, trained in found if not trained] == context
    assert not labeler.is_fallback_template


def test_chatml_ends_answers_with_its_own_token_if_the_model_has_it(build_model: BuildModel) -> None:
    folder = build_model(tokens=("<|im_start|>", "<|im_end|>"))
    chosen = load_labeler(folder, "model", TemplateChoice(ChatTemplateName.CHATML))
    assert [text for text, trained in pieces(chosen) if trained] == ["First.<|im_end|>", "Second.<|im_end|>"]
    assert Labeler(folder).template_text.count("eos_token") == 1  # as before, if nothing is chosen


def test_a_chosen_template_replaces_every_template_of_the_model(build_model: BuildModel) -> None:
    folder = build_model("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert load_labeler(folder, "model", TemplateChoice(ChatTemplateName.ALPACA)).templates.keys() == {"default"}


def test_turns_that_a_template_has_no_words_for_are_an_error_of_the_row(build_model: BuildModel) -> None:
    labeler = load_labeler(build_model(), "model", TemplateChoice(ChatTemplateName.VICUNA))
    call: Any = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    messages: list[Message] = [
        TURNS[1],
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "4"},
        TURNS[2],
    ]
    result = labeler.encode(row(messages), "Chat", 1000)
    assert isinstance(result, BadRow)
    assert "has no turns of the role tool" in result.detail or "omits tool calls" in result.detail


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "gptoss"])
def test_variables_are_defaults_of_the_published_template_that_a_request_may_replace(
    name: str, shipped_model: Callable[[str], Path], shipped_tokenizer: Callable[[str], Any], tmp_path: Path
) -> None:
    key, text, value = ("reasoning_effort", "high", "high") if name == "gptoss" else ("enable_thinking", "false", False)
    labeler = load_labeler(shipped_model(name), "model", TemplateChoice(kwargs={key: text}))
    save_tokenizer(shipped_model(name), tmp_path / "adapter", labeler)
    published = (tmp_path / "adapter" / "chat_template.jinja").read_text("utf-8")
    tokenizer, asked = shipped_tokenizer(name), [dict(TURNS[1])]
    for given in ({}, {key: "low" if name == "gptoss" else True}):
        own = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **({key: value} | given))
        served = tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, chat_template=published, **given
        )
        assert served == own
    assert labeler.render_prompt([TURNS[1]])[0] == tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True, **{key: value}
    )
    assert Labeler(tmp_path / "adapter").template_sha256 == labeler.template_sha256


def test_variables_do_not_change_how_the_beginning_of_a_template_is_rendered(build_model: BuildModel) -> None:
    folder = build_model(READS_EFFORT)
    plain, quick = Labeler(folder), Labeler(folder, TemplateChoice(kwargs={"effort": "low"}))
    texts = [labeler.render_prompt([TURNS[1]])[0] for labeler in (plain, quick)]
    assert texts[1] == texts[0] + " (quick)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("true", True), ("2", 2), ("0.5", 0.5), ("null", None), ("high", "high"), ('"true"', "true")),
        *(("NaN", "NaN"), ("[1]", "[1]"), ("", ""), ("{", "{")),
    ],
)
def test_a_variable_is_a_scalar_of_json_or_a_text(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("value", ["'; {{ 1 }} \" %} \\", "Größe 🦊", "{% raw %}"])
def test_the_text_of_a_variable_stays_a_text(build_model: BuildModel, value: str) -> None:
    folder = build_model("{{ note }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    labeler = Labeler(folder, TemplateChoice(kwargs={"note": value}))
    assert labeler.render_prompt([TURNS[1]])[0].startswith(value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (TemplateChoice(text="{{ x"), r"spec\.model\.chatTemplate: the chat template does not compile"),
        (TemplateChoice(text="{{ raise_exception('no') }}"), r"chatTemplate: it cannot render .* fails: no"),
        (
            TemplateChoice(text="hello"),
            r"chatTemplate: it cannot render .* omits or alters turn 1 \(user\): correct the template",
        ),
        (TemplateChoice(text="{% for _ in range(999999999) %}{% endfor %}"), r"chatTemplate: .* at most 100000 items"),
        (
            TemplateChoice(text="{{ effort }}", kwargs={"efort": "1"}),
            r"chatTemplateKwargs: the chat template does not read efort: use its own variables \(effort\)",
        ),
        (TemplateChoice(ChatTemplateName.ALPACA, kwargs={"a": "1"}), r"chatTemplateKwargs: .* read a: remove it"),
    ],
)
def test_a_template_that_does_not_render_is_refused_by_field(
    build_model: BuildModel, choice: TemplateChoice, message: str
) -> None:
    with pytest.raises(TrainerError, match=message) as error:
        load_labeler(build_model(), "model", choice)
    assert error.value.code is ExitCode.INVALID_CONFIG


def test_a_template_that_asks_for_a_system_text_is_taken(build_model: BuildModel) -> None:
    text = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    assert pieces(load_labeler(build_model(), "model", TemplateChoice(text=text)))
