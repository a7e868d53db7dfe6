from typing import Any

import pytest

from finetune_trainer.data.rows import ChatRow
from finetune_trainer.errors import Stopped
from finetune_trainer.pipeline.dataset import ENCODED_AT_ONCE, encode_rows, fetch_rows
from finetune_trainer.pipeline.inputs import load_inputs
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.tokenization.labeler import Labeler


def test_the_model_that_an_earlier_run_left_in_the_workspace_is_removed(world: Any) -> None:
    preflight(world.run)
    left_over = [world.workspace / "model" / "chat_template.jinja", world.workspace / "result" / "adapter.bin"]
    for path in left_over:
        path.parent.mkdir()
        path.write_text("{{ raise_exception('another model') }}")
    inputs = load_inputs(world.run)
    assert [path for path in left_over if path.exists()] == []
    assert (inputs.model / "model.safetensors").exists()
    assert len(inputs.train) == 80


def test_a_stop_ends_the_making_of_samples_after_some_rows(world: Any, model_folder: Any) -> None:
    preflight(world.run)
    rows: list[ChatRow] = fetch_rows(world.config, world.storage, world.workspace, lambda _count: None).train
    told: list[int] = []

    def on_rows() -> None:
        told.append(1)
        if len(told) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        encode_rows(rows * (5 * ENCODED_AT_ONCE // len(rows)), Labeler(model_folder), "Chat", 128, on_rows)
    assert len(told) == 3
