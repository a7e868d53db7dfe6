"""The trainer reads the rows of an imported job by the columns that the import has written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.objectives import Objective
from finetune_trainer.commands.check_data import Request, check_local_rows
from kubectl_finetune.commands.import_file import import_file
from kubectl_finetune.importing.draft import Options

AXOLOTL = {
    "base_model": "acme/base-1b",
    "adapter": "lora",
    "datasets": [
        {
            "path": "acme/chats",
            "type": "chat_template",
            "field_messages": "dialog",
            "message_property_mappings": {"role": "speaker_kind", "content": "utterance"},
        }
    ],
}
LLAMA_FACTORY = {"model_name_or_path": "acme/base-1b", "stage": "sft", "do_train": True, "dataset": "chats"}
INFO = {
    "chats": {
        "hf_hub_url": "acme/chats",
        "formatting": "sharegpt",
        "columns": {"messages": "dialog"},
        "tags": {"role_tag": "speaker_kind", "content_tag": "utterance"},
    }
}


@pytest.mark.parametrize("file", [AXOLOTL, LLAMA_FACTORY], ids=["axolotl", "LLaMA-Factory"])
def test_turns_with_names_of_their_own_are_read(tmp_path: Path, file: dict[str, Any]) -> None:
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(file))
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    manifest = import_file(path, "", Options()).manifest
    assert manifest is not None
    turns = [{"speaker_kind": "user", "utterance": "q"}, {"speaker_kind": "assistant", "utterance": "a"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"dialog": turns}))
    columns = manifest["spec"]["dataset"]["columns"]
    check_local_rows([str(rows)], tmp_path / "checked", Request(Objective.CHAT, columns=columns))
    (row,) = map(json.loads, (tmp_path / "checked" / "accepted.jsonl").read_text().splitlines())
    assert [turn["content"] for turn in row["messages"]] == ["q", "a"]
