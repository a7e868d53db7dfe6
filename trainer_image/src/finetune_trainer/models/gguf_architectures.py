"""Which architectures llama.cpp's converter knows, by a table of the pinned version; nothing is imported or loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.trainable import find_architecture

TABLE = Path(__file__).with_name("gguf_architectures.json")


def require_convertible(config: Mapping[str, Any]) -> None:
    """Refuse `output.gguf` for a model that llama.cpp cannot convert, by the `config.json` of its folder; raises
    InvalidConfig."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    name = find_architecture(config).name
    text = config.get("text_config")
    inner = text.get("architectures") if isinstance(text, dict) else None
    if not {name, *(inner or [])} & set(table["architectures"]):
        raise InvalidConfig(
            f"output.gguf: llama.cpp of this image (llama-cpp-python {table['llama-cpp-python']}) cannot convert "
            f"{name}: remove output.gguf"
        )
