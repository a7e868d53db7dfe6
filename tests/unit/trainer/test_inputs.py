from typing import Any

from finetune_trainer.inputs import load_inputs
from finetune_trainer.preflight import preflight


def test_the_model_that_an_earlier_run_left_in_the_workspace_is_removed(world: Any) -> None:
    preflight(world.config, world.storage, world.workspace, world.reporter, world.stop)
    left_over = [world.workspace / "model" / "chat_template.jinja", world.workspace / "result" / "adapter.bin"]
    for path in left_over:
        path.parent.mkdir()
        path.write_text("{{ raise_exception('another model') }}")
    inputs = load_inputs(world.config, world.storage, world.workspace, world.reporter, world.stop)
    assert [path for path in left_over if path.exists()] == []
    assert (inputs.model / "model.safetensors").exists()
    assert len(inputs.train) == 80
