"""Find the prompt that two answers share: the longest common prefix of their conversations."""

from collections.abc import Sequence

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import BadRow, Message

Turns = list[Message]


def split_pair(prompt: Turns, chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Return the prompt and the turns after it on each side; raises BadRow with NO_SHARED_PROMPT or SAME_PAIR.

    `chosen` and `rejected` are answers, or conversations that may repeat the prompt; `prompt` comes from
    other columns.
    """
    if _is_conversation(chosen) and not _is_conversation(rejected):
        rejected = chosen[:-1] + rejected
    is_repeated = bool(prompt) and _begins_with(chosen, prompt) and _begins_with(rejected, prompt)
    if is_repeated:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    shared = _count_shared(chosen, rejected)
    prompt = prompt + chosen[:shared] if is_repeated else join_prompt(prompt, chosen[:shared])
    if not any(message["role"] != "system" for message in prompt):
        raise BadRow(RejectCode.NO_SHARED_PROMPT, "chosen and rejected share no prompt, and no column contains one")
    chosen, rejected = chosen[shared:], rejected[shared:]
    if chosen and _texts(chosen) == _texts(rejected):
        raise BadRow(RejectCode.SAME_PAIR, "the chosen and the rejected answer are the same")
    return prompt, chosen, rejected


def _is_conversation(turns: Turns) -> bool:
    return bool(turns) and turns[0]["role"] != "assistant"


def _begins_with(turns: Turns, start: Turns) -> bool:
    return len(turns) > len(start) and turns[: len(start)] == start


def _count_shared(chosen: Turns, rejected: Turns) -> int:
    """Return the number of common turns that belong to the prompt, so that each side keeps an answer."""
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    parted = [turns[common]["role"] for turns in (chosen, rejected) if common < len(turns)]
    if common and len(parted) == 2 and parted != ["assistant", "assistant"]:
        detail = f"chosen and rejected differ at turn {common + 1}, which is not an answer in both"
        raise BadRow(RejectCode.NO_SHARED_PROMPT, detail)
    if len(parted) < 2:  # one is a prefix of the other: its last answer is compared
        common -= 1
        while common > 0 and chosen[common]["role"] != "assistant":
            common -= 1
    return max(common, 0)


def drop_answer(prompt: Turns, chosen: Turns) -> Turns:
    """Return the prompt without its last answer, if the turns before it are those with which `chosen` begins."""
    if not prompt or prompt[-1]["role"] != "assistant":
        return prompt
    asked, said = (list(map(_key, _part_system(turns)[1])) for turns in (prompt[:-1], chosen))
    return prompt[:-1] if asked and len(said) > len(asked) and said[: len(asked)] == asked else prompt


def join_prompt(prompt: Turns, shared: Turns) -> Turns:
    """Append turns to the prompt, without those of its last turns that a conversation among them repeats.

    A conversation that contains the whole prompt replaces it. The prompt's system text stays if `shared` has none.
    """
    if not shared or shared[0]["role"] == "assistant":
        return prompt + shared
    (system, asked), (other_system, said) = _part_system(prompt), _part_system(shared)
    if not asked or not said or said[0]["role"] != "user":
        return prompt + shared
    asked_keys, said_keys = list(map(_key, asked)), list(map(_key, said))
    is_contained = len(asked) in _count_repeated(asked_keys, said_keys)
    repeated = len(asked) if is_contained else _count_repeated(said_keys, asked_keys)[-1]
    if not repeated:
        return prompt + shared
    return (other_system or system) + asked[: len(asked) - repeated] + said


def _part_system(turns: Turns) -> tuple[Turns, Turns]:
    count = next((at for at, message in enumerate(turns) if message["role"] != "system"), len(turns))
    return turns[:count], turns[count:]


def _key(message: Message) -> tuple[str, str, object]:
    return message["role"], message["content"].strip(), message.get("tool_calls")


def _count_repeated(start: Sequence[object], turns: Sequence[object]) -> list[int]:
    """Return for each turn how many turns, up to it, repeat the first ones of `start`; in linear time (KMP)."""
    joined = [*start, None, *turns]
    counts = [0]
    for turn in joined[1:]:
        count = counts[-1]
        while count and joined[count] != turn:
            count = counts[count - 1]
        counts.append(count + (joined[count] == turn))
    return counts[len(start) + 1 :]


def _texts(turns: Turns) -> list[Message]:
    return [Message(**{**message, "content": message["content"].strip()}) for message in turns]
