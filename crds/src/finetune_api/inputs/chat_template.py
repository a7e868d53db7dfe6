"""The chat template of a job, in place of the model's own."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import ATOMIC, GRANULAR, Block, ObjectName, cel, with_rules

RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
"""Variables of a template that are set for each conversation, or by the tokenizer."""


class ChatTemplateName(StrEnum):
    """Chat templates that the trainer has."""

    CHATML = "ChatML"
    ALPACA = "Alpaca"
    VICUNA = "Vicuna"
    COMPLETION = "Completion"


class ConfigMapKeyRef(Block):
    """A key of a ConfigMap in the job's own namespace."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: ObjectName
    """Name of the ConfigMap."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key of the ConfigMap, for example `chat_template.jinja`."""


ONE_TEMPLATE = "has(self.name) != has(self.configMapKeyRef)"


class ChatTemplate(Block):
    """The chat template to train and to serve with: one of the trainer's, or a ConfigMap's."""

    model_config = with_rules(
        cel(ONE_TEMPLATE, "give either name or configMapKeyRef: set one of the two", ".name"),
    )

    name: ChatTemplateName | None = None
    """A template of the trainer, for text without tools. `ChatML`: `<|im_start|>user`, the text and `<|im_end|>`.
    `Alpaca`: `### Instruction:` and `### Response:`. `Vicuna`: `USER:` and `ASSISTANT:`. `Completion`: the texts alone,
    without marks. Marks that are not tokens of the model are ordinary text, and an answer then ends with the model's
    end token. Exclusive with `configMapKeyRef`. Default: none."""
    config_map_key_ref: ConfigMapKeyRef | None = None
    """A key of a ConfigMap with a template in Jinja. Preflight reads it, and the training uses what preflight has
    read. Exclusive with `name`. Default: none."""


ChatTemplateKwargs = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")],
        Annotated[str, StringConstraints(max_length=256)],
    ],
    Field(max_length=16, json_schema_extra=GRANULAR),
]
UNRESERVED = f"!has(self.chatTemplateKwargs) || self.chatTemplateKwargs.all(one, !(one in {list(RESERVED)}))"
KWARGS_RULE = cel(
    UNRESERVED, f"these variables have a value already: remove {', '.join(RESERVED)}", ".chatTemplateKwargs"
)
