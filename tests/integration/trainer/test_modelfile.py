"""The template of a Modelfile, written by the template library of Go, with which Ollama writes it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune_trainer.data.rows import Message
from finetune_trainer.merging.modelfile import build_modelfile, find_turns
from finetune_trainer.tokenization.template import ChatTemplate

PROGRAM = Path(__file__).resolve().parents[2] / "fixtures" / "go_template.go"
TURNS = "{% for one in messages %}{{ '<|' + one.role + '|>\\n' + one.content | trim + '<|end|>\\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|system|>\nYou are kind.<|end|>\n{% endif %}"
ROLES = (
    "{% for one in messages %}{% if one.role == 'user' %}{{ 'USER: ' + one.content }}{% elif one.role == 'system' %}"
    "{{ one.content + ' ' }}{% else %}{{ ' ASSISTANT: ' + one.content + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed, whose library writes the template")
    program = tmp_path_factory.mktemp("go") / "render"
    subprocess.run(["go", "build", "-o", str(program), str(PROGRAM)], check=True)
    return program


@pytest.mark.parametrize(
    ("template", "bos"),
    [
        pytest.param(TURNS + ASK, "", id="turns"),
        pytest.param("{{ bos_token }}" + TURNS + ASK, "<s>", id="begin of text"),
        pytest.param(DEFAULT_SYSTEM + TURNS + ASK, "", id="system text of its own"),
        pytest.param(ROLES, "", id="another ask"),
    ],
)
def test_it_is_the_models_own_template_in_every_turn(go_program: Path, template: str, bos: str) -> None:
    own = ChatTemplate(template, {"bos_token": "<s>"})

    def render(messages: list[Message]) -> str:
        return own.render(messages, None, add_generation_prompt=True)

    turns = find_turns(lambda messages: render(list(messages)), bos)
    assert turns
    written = build_modelfile("model-Q8_0.gguf", turns, [], is_chat=True).split('"""')[1]
    system: list[Message] = [{"role": "system", "content": "Be <brief> & kind."}]
    chat: list[Message] = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Five?"},
    ]
    for messages in (chat[:1], chat[:3], chat, system + chat[:1], system + chat):
        given = messages
        if turns.default and messages[0]["role"] != "system":  # Ollama adds that of the Modelfile
            given = [{"role": "system", "content": turns.default}, *messages]
        asked = json.dumps({"Template": written, "Messages": given})
        done = subprocess.run([str(go_program)], input=asked, capture_output=True, check=True, text=True)
        assert bos + done.stdout == render(messages)
