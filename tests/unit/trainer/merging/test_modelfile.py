"""The Modelfile for Ollama has the chat template in Go's form, where that is the template's own text in every turn."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune_api.inputs.chat_template import ChatTemplateName
from finetune_trainer.data.rows import BadRow, Message
from finetune_trainer.merging.modelfile import Render, Turns, build_modelfile, find_turns
from finetune_trainer.tokenization.chosen_template import TemplateChoice
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.template import ChatTemplate

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}"
    "{% for one in messages %}{{ '<|im_start|>' + one.role + '\\n' + one.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LIKE_LLAMA = (
    "{{ bos_token }}{% for one in messages %}"
    "{{ '<|start|>' + one.role + '<|end|>\\n\\n' + one.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
)
COUNTING = (
    "{% for one in messages %}{{ loop.index ~ one.role + ': ' + one.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def renderer(text: str) -> Render:
    template = ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"})
    return lambda messages: template.render(list(messages), None, add_generation_prompt=True)


def test_a_template_of_turns_is_found_with_what_it_writes_around_each() -> None:
    found = find_turns(renderer(LIKE_LLAMA), "<s>")
    assert found == Turns(
        before_system="<|start|>system<|end|>\n\n",
        after_system="<|eot|>",
        before_user="<|start|>user<|end|>\n\n",
        before_answer="<|eot|><|start|>assistant<|end|>\n\n",
        after_answer="<|eot|>",
        ask="<|eot|><|start|>assistant<|end|>\n\n",
        default="",
    )


def test_a_system_text_of_the_template_itself_becomes_that_of_the_modelfile() -> None:
    found = find_turns(renderer(DEFAULT_SYSTEM), "")
    assert found
    assert found.default == "You are kind."
    text = build_modelfile("model-Q8_0.gguf", found, ["<|im_end|>"], is_chat=True)
    assert 'SYSTEM """You are kind."""\n' in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text


@pytest.mark.parametrize("name", [ChatTemplateName.CHATML, ChatTemplateName.ALPACA, ChatTemplateName.VICUNA])
def test_the_templates_that_a_job_chooses_by_name_are_found(model_folder: Path, name: ChatTemplateName) -> None:
    labeler = Labeler(model_folder, TemplateChoice(name=name))
    found = find_turns(lambda messages: labeler.render_prompt(messages)[0], labeler.added_bos)
    assert found
    question = [Message(role="user", content="Why?")]
    assert labeler.render_prompt(question)[0].endswith(f"{found.before_user}Why?{found.ask}")


def test_what_asks_for_an_answer_may_differ_from_what_is_before_earlier_ones() -> None:
    turns = Turns("", " ", "USER: ", " ASSISTANT: ", "</s>", " ASSISTANT:", "")
    text = build_modelfile("model-Q8_0.gguf", turns, [], is_chat=True)
    assert "{{ if eq (len (slice $.Messages $at)) 1 }} ASSISTANT:{{ else }} ASSISTANT: {{ end }}" in text


def test_a_template_that_depends_on_more_than_the_turn_is_left_to_ollama() -> None:
    assert find_turns(renderer(COUNTING), "") is None
    text = build_modelfile("model-Q8_0.gguf", None, [], is_chat=True)
    assert 'TEMPLATE "' not in text
    assert "FROM ./model-Q8_0.gguf\n" in text


def test_a_template_that_refuses_a_system_text_is_left_to_ollama() -> None:
    def refuse(messages: Sequence[Message]) -> str:
        raise BadRow("TEMPLATE_ERROR", "no system role")  # type: ignore[arg-type]

    assert find_turns(refuse, "") is None


@pytest.mark.parametrize("text", ["{{", '"""'])
def test_text_that_a_modelfile_cannot_quote_is_left_to_ollama(text: str) -> None:
    render = renderer(LIKE_LLAMA)
    assert find_turns(lambda messages: render(messages).replace("<|eot|>", text), "<s>") is None


def test_a_model_that_continues_texts_gets_no_turns() -> None:
    assert 'TEMPLATE """{{ .Prompt }}"""' in build_modelfile("model-F16.gguf", None, [], is_chat=False)
