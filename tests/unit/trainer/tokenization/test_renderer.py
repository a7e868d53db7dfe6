from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow, Message
from finetune_trainer.tokenization import renderer
from finetune_trainer.tokenization.renderer import FIX, FIX_FOR_REFUSED, Renderer
from finetune_trainer.tokenization.tokenizer import load_tokenizer_files

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_CALLS = CHATML.replace(
    "message['content'] +", "message['content'] + (message.tool_calls | tojson if message.tool_calls else '') +"
)
SYSTEM: Message = {"role": "system", "content": "Be brief."}
TWO: list[Message] = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look_up"}}
CALL: Any = {"type": "function", "function": {"name": "look_up", "arguments": {}}}


def make(build_model: Any, template: str = CHATML, **config: Any) -> Renderer:
    return Renderer(template, load_tokenizer_files(build_model(template, **config)))


def refusal(found: Renderer, messages: list[Message], turns: list[int], tools: Any = None) -> str:
    with pytest.raises(BadRow) as bad:
        found.find(messages, tools, turns)
    assert bad.value.code is RejectCode.TEMPLATE_ERROR
    return bad.value.detail


@pytest.mark.parametrize("name", ["MAX_TURNS", "MAX_RENDERED_CHARACTERS"])
def test_a_conversation_may_have_as_much_as_the_limit(
    build_model: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make(build_model)
    size = {"MAX_TURNS": 4, "MAX_RENDERED_CHARACTERS": 4 * sum(len(message["content"]) for message in TWO)}[name]
    monkeypatch.setattr(renderer, name, size)
    assert found.find(TWO, None, [3]).renderings
    assert found.render_prompt(TWO, None)
    monkeypatch.setattr(renderer, name, size - 1)
    for render in (lambda: found.find(TWO, None, [3]), lambda: found.render_prompt(TWO, None)):
        with pytest.raises(BadRow, match="4 turns of this length") as bad:
            render()
        assert bad.value.code is RejectCode.TOO_LONG


def test_an_answer_that_is_shown_only_in_the_words_of_the_user_is_misplaced(build_model: Any) -> None:
    dropping = CHATML.replace("message['content'] +", "(message['content'] if message['role'] == 'user' else '') +")
    echo: list[Message] = [{"role": "user", "content": "Say First."}, {"role": "assistant", "content": "First."}]
    detail = refusal(make(build_model, dropping), echo, [1])
    assert detail == "the chat template does not render the answer of turn 2 in its place"


def test_a_call_that_is_shown_only_in_the_words_of_the_user_is_misplaced(build_model: Any) -> None:
    once = WITH_CALLS.replace("if message.tool_calls", "if message.tool_calls and loop.length < 3")
    turns: list[Message] = [
        {"role": "user", "content": "look_up?"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "b", "tool_calls": [CALL]},
    ]
    found = make(build_model, once)
    assert "the answer of turn 4 in its place" in refusal(found, turns, [3])
    assert found.find([turns[0], turns[3]], None, [1]).renderings


def test_a_turn_that_is_left_out_is_named_with_its_role(build_model: Any) -> None:
    found = make(build_model, CHATML.replace("in messages", "in messages[1:]"))
    assert refusal(found, TWO, [3]) == f"the chat template omits or alters turn 1 (user): {FIX}"


def test_a_result_that_a_template_writes_as_a_json_string_is_not_lost(build_model: Any) -> None:
    quoted = "message['content'] | tojson if message.role == 'tool' else message['content']"
    shown = make(build_model, WITH_CALLS.replace("message['content']", f"({quoted})"))
    turns: list[Message] = [
        {"role": "user", "content": "look_up?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"degrees": 4, "in": "\u00e9\n"}'},
        {"role": "assistant", "content": "4"},
    ]
    (rendering,) = shown.find(turns, None, [3]).renderings
    assert r'"{\"degrees\": 4, \"in\": \"é\n\"}"' in rendering.text
    turns[0]["content"] = 'the "colour"'
    escaped = make(build_model, WITH_CALLS.replace("message['content']", "(message['content'] | tojson)"))
    assert "alters turn 1 (user)" in refusal(escaped, turns, [3])


def test_a_prompt_without_its_tools_is_refused(build_model: Any) -> None:
    found = make(build_model)
    with pytest.raises(BadRow, match=r"omits the tools: set model\.chatTemplate to one that writes them"):
        found.render_whole_prompt(TWO[:1], [TOOL])
    shown = make(build_model, "{% if tools %}{{ tools | string }}{% endif %}" + CHATML)
    assert "look_up" in shown.render_whole_prompt(TWO[:1], [TOOL])
    assert shown.find(TWO, [TOOL], [3]).renderings[0].text.startswith("[{")


def test_tools_that_are_shown_only_in_the_call_of_an_answer_are_left_out(build_model: Any) -> None:
    turns: list[Message] = [TWO[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    found = make(build_model, WITH_CALLS)
    assert refusal(found, turns, [1], [TOOL]).startswith("the chat template omits the tools: set model.chatTemplate")
    written = [{"role": "user", "content": "look_up(what) finds things. One?"}, turns[1]]
    assert found.find(written, [TOOL], [1]).renderings  # type: ignore[arg-type]
    assert make(build_model, "{{ tools | string }}" + WITH_CALLS).find(turns, [TOOL], [1]).renderings
    in_system = "{% if messages[0].role == 'system' %}{{ tools | string }}{% endif %}" + WITH_CALLS
    with_system = make(build_model, in_system)
    assert with_system.find([SYSTEM, *turns], [TOOL], [2]).renderings
    assert "omits the tools" in refusal(with_system, turns, [1], [TOOL])


def test_a_template_that_writes_one_of_several_calls_of_the_same_tool_is_refused(build_model: Any) -> None:
    first = make(build_model, WITH_CALLS.replace("message.tool_calls | tojson", "message.tool_calls[:1] | tojson"))
    calls: Any = [
        {"type": "function", "function": {"name": "look_up", "arguments": {"what": what}}} for what in ("fox", "dog")
    ]
    turns: list[Message] = [TWO[0], {"role": "assistant", "content": "", "tool_calls": calls}]
    assert refusal(first, turns, [1]) == (
        "the chat template omits some of several tool calls in one turn: set model.chatTemplate to one that writes all "
        "of them, or give each call, with its result, a turn of its own"
    )
    with pytest.raises(BadRow, match="omits some of several tool calls"):
        first.render_whole_prompt([*turns, {"role": "tool", "content": "4"}], None)
    assert "dog" in make(build_model, WITH_CALLS).find(turns, None, [1]).renderings[0].text
    turns[1]["tool_calls"] = calls[:1]
    assert first.find(turns, None, [1]).renderings


def test_a_result_that_is_shown_only_in_the_answer_that_repeats_it_is_left_out(build_model: Any) -> None:
    turns: list[Message] = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<tool_call>2 + 2</tool_call>"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    without = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}")
    assert refusal(make(build_model, without), turns, [3]) == f"the chat template omits or alters turn 3 (tool): {FIX}"
    assert make(build_model).find(turns, None, [1, 3]).renderings


def test_calls_in_a_prompt_that_the_template_drops_are_refused(build_model: Any) -> None:
    prompt: list[Message] = [
        TWO[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
    ]
    with pytest.raises(BadRow, match="omits tool calls"):
        make(build_model).render_whole_prompt(prompt, None)
    assert "look_up" in make(build_model, WITH_CALLS).render_whole_prompt(prompt, None)


def test_a_template_that_drops_tool_calls_is_refused_only_for_rows_with_calls(build_model: Any) -> None:
    call: list[Message] = [TWO[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert refusal(make(build_model), call, [1]) == (
        "the chat template omits tool calls: set model.chatTemplate to one that writes them, or remove them from the "
        "rows"
    )
    assert make(build_model).find(TWO, None, [1, 3]).renderings
    assert make(build_model, WITH_CALLS).find(call, None, [1]).renderings


def test_a_failure_is_quoted_up_to_two_hundred_characters_before_its_fix(build_model: Any) -> None:
    failing = "{% if messages | length > 3 %}{{ raise_exception('x' * 500) }}{% endif %}" + CHATML
    found = make(build_model, failing)
    quoted = f"the chat template fails: {'x' * 175}: {FIX_FOR_REFUSED}"
    assert refusal(found, TWO, [3]) == quoted
    with pytest.raises(BadRow) as bad:
        found.render_prompt(TWO, None)
    assert bad.value.detail == quoted


def test_the_system_text_joins_the_first_prompt_only_where_it_must(build_model: Any) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    found = make(build_model, refusing)
    assert found.fit_system([SYSTEM, *TWO]) == (
        [{"role": "user", "content": "Be brief.\n\nOne?"}, *TWO[1:]],
        (RepairCode.SYSTEM_MERGED,),
    )
    assert found.fit_system(TWO) == (TWO, ())
    assert found.fit_system([SYSTEM, *TWO[1:]]) == ([SYSTEM, *TWO[1:]], ())
    assert make(build_model).fit_system([SYSTEM, *TWO]) == ([SYSTEM, *TWO], ())


def test_contents_are_text_where_a_template_takes_both_and_parts_where_it_takes_no_text(build_model: Any) -> None:
    shown = "message['content'] if message['content'] is string else 'part ' + message['content'][0]['text']"
    parts = CHATML.replace("message['content']", "'part ' + message['content'][0]['text']")
    assert "\nOne?" in make(build_model, CHATML.replace("message['content']", f"({shown})")).render_prompt(TWO, None)
    assert "\npart One?" in make(build_model, parts).render_prompt(TWO, None)
    failing = make(build_model, "{{ raise_exception('text' if messages[0]['content'] is string else 'parts') }}")
    with pytest.raises(BadRow, match="text"):
        failing.render_prompt(TWO, None)


def test_the_end_of_an_answer_is_its_stop_token_or_the_end_of_the_text(build_model: Any) -> None:
    assert make(build_model).end_of_answer() == "<|im_end|>"
    assert make(build_model, CHATML.replace("<|im_end|>", "")).end_of_answer() == "<eos>"


def test_reasoning_is_lost_where_the_span_of_its_answer_does_not_show_it(build_model: Any) -> None:
    found = make(build_model)
    asked: Message = {"role": "user", "content": "hm"}
    thinking: Message = {"role": "assistant", "content": "First.", "reasoning_content": "hm"}
    assert found.find([asked, thinking], None, [1]).reasoning_lost == 1
    inline: Message = {"role": "assistant", "content": "<think> hm </think>First."}
    assert found.find([asked, inline], None, [1]).reasoning_lost == 0
    trimming = CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
    assert make(build_model, trimming).find([asked, inline], None, [1]).reasoning_lost == 1


def test_arguments_are_objects_for_a_template_that_takes_both_and_text_for_one_that_joins_them(
    build_model: Any,
) -> None:
    call: Any = {"type": "function", "function": {"name": "look_up", "arguments": {"what": "fox"}}}
    turns: list[Message] = [TWO[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    (both,) = make(build_model, WITH_CALLS).find(turns, None, [1]).renderings
    assert '"arguments": {"what": "fox"}' in both.text
    shown = (
        "(message.tool_calls[0].function.name + message.tool_calls[0].function.arguments if message.tool_calls else '')"
    )
    joining = CHATML.replace("message['content'] +", f"message['content'] + {shown} +")
    (joined,) = make(build_model, joining).find(turns, None, [1]).renderings
    assert 'look_up{"what": "fox"}<|im_end|>' in joined.text
    nameless = make(build_model, joining.replace("message.tool_calls[0].function.name + ", ""))
    assert refusal(nameless, turns, [1]).startswith("the chat template omits tool calls: set model.chatTemplate")


def test_a_template_that_drops_the_text_next_to_a_call_is_named_as_the_cause(build_model: Any) -> None:
    calls_alone = WITH_CALLS.replace("message['content'] +", "(message['content'] if not message.tool_calls else '') +")
    turns: list[Message] = [TWO[0], {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}]
    assert refusal(make(build_model, calls_alone), turns, [1]) == (
        "the chat template omits or alters the text next to the tool calls of turn 2: set model.chatTemplate to one "
        "that writes both, or remove the text from the rows"
    )
    silent: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert make(build_model, calls_alone).find([TWO[0], silent], None, [1]).renderings


def test_a_template_that_removes_the_text_next_to_a_call_once_it_is_answered_is_refused_with_what_to_remove(
    build_model: Any,
) -> None:
    forgetful = WITH_CALLS.replace(
        "message['content'] +",
        "(message['content'] if not message.tool_calls or loop.last or messages[-1].role == 'tool' else '') +",
        1,
    )
    found = make(build_model, forgetful)
    turns: list[Message] = [
        {"role": "user", "content": "look_up?"},
        {"role": "assistant", "content": "I look it up.", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    assert refusal(found, turns, [3]) == (
        "the chat template does not separate the answer of turn 4 from the prompt: set model.chatTemplate to one that "
        "does, or remove the text and the reasoning next to the tool calls before it"
    )
    turns[1]["content"] = ""
    assert found.find(turns, None, [1, 3]).renderings
