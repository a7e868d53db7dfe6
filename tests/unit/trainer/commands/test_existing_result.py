"""A result that is there is adopted only by a run with the same inputs."""

import json
from typing import Any

import pytest

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.commands.existing_result import require_same_inputs
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.preflight import preflight

TEMPLATE = (
    "{% if tone is defined %}({{ tone }}) {% endif %}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_a_result_of_another_text_of_the_chat_template_is_not_that_of_the_run(world: Any) -> None:
    chosen = {"configMapKeyRef": {"name": "templates", "key": "ours"}}
    world.with_config(
        {"model": {"uri": "s3://bucket/model", "chatTemplate": chosen, "chatTemplateKwargs": {"tone": "calm"}}}
    )
    world.config = world.config.model_copy(update={"is_local": True, "config_maps": {"templates": {"ours": TEMPLATE}}})
    preflight(world.run)
    summary = json.loads((world.out / Artifact.DATASET_SUMMARY).read_text())
    (world.out / Artifact.LINEAGE).write_text(json.dumps({"chatTemplate": summary["chatTemplate"]}))
    require_same_inputs(world.config, world.storage, world.storage)
    edited = {"templates": {"ours": TEMPLATE.replace("[assistant]", "[model]")}}
    with pytest.raises(
        TrainerError, match=r"the chat template of model\.chatTemplate\.configMapKeyRef differs"
    ) as caught:
        require_same_inputs(world.config.model_copy(update={"config_maps": edited}), world.storage, world.storage)
    assert caught.value.code is ExitCode.OUTPUT_CONFLICT
