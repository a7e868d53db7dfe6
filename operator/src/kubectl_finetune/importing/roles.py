"""Roles of turns: which words preflight understands, as docs/datasets.md lists them."""

from collections.abc import Iterable, Mapping

from finetune_api.manifest.yaml_document import FieldPath
from kubectl_finetune.importing.draft import Draft

ROLES: Mapping[str, frozenset[str]] = {
    "system": frozenset({"system", "developer"}),
    "user": frozenset({"user", "human", "prompter", "question"}),
    "assistant": frozenset(
        {"assistant", "gpt", "bot", "model", "chatgpt", "ai", "answer", "function_call", "tool_call"}
    ),
    "tool": frozenset(
        {"tool", "observation", "observations", "function", "function_response", "tool_response", "ipython"}
    ),
}
ROLE_KEYS = {"role", "from", "speaker"}
CONTENT_KEYS = {"content", "value", "text"}


def turn_columns(role: object, content: object) -> dict[str, str]:
    """Return what of a turn has a name that is not found by itself."""
    found = {}
    if role is not None and str(role) not in ROLE_KEYS:
        found["role"] = str(role)
    if content is not None and str(content) not in CONTENT_KEYS:
        found["content"] = str(content)
    return found


def check_roles(draft: Draft, path: FieldPath, roles: Mapping[str, Iterable[str]]) -> None:
    """Name the words for roles that preflight would reject, or take for another role."""
    unknown = [
        word
        for role, words in roles.items()
        for word in words
        if word.lower().replace("-", "_") not in ROLES.get(role.lower(), frozenset())
    ]
    if unknown:
        reason = f"a turn with the role {', '.join(sorted(set(unknown)))} is rejected"
        draft.lose(path, reason, "rename the roles in the rows")
