"""A chosen chat template from the spec to the training: read, refused, stored, restored, recorded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.chat_template import read_choice
from finetune_trainer.pipeline.inputs import load_inputs
from finetune_trainer.pipeline.preflight import preflight

BY_NAME = {"name": "Alpaca"}
BY_KEY = {"configMapKeyRef": {"name": "templates", "key": "ours.jinja"}}
OURS = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>\r\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def choose(world: Any, text: str | None = OURS, **model: Any) -> None:
    world.with_config({"model": {"uri": "s3://bucket/model"} | model})
    given = {"templates": {"ours.jinja": text}} if text is not None else {}
    world.config = world.config.model_copy(update={"is_local": True, "config_maps": given})


def summary(world: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world.out / Artifact.DATASET_SUMMARY).read_text())
    return found


def test_the_training_uses_the_template_that_preflight_has_read(world: Any) -> None:
    choose(world, chatTemplate=BY_KEY)
    preflight(world.run)
    stored = world.out / Artifact.CHAT_TEMPLATE
    assert stored.read_bytes() == OURS.replace("\r", "").encode()
    choose(world, "changed since", chatTemplate=BY_KEY)
    inputs = load_inputs(world.run)
    assert inputs.labeler.template_text == OURS.replace("\r", "")
    assert inputs.labeler.template_sha256 == summary(world)["chatTemplate"]["sha256"]
    assert inputs.rows.summary["chatTemplate"] | {"sha256": ""} == BY_KEY | {"sha256": ""}
    stored.write_text(OURS.replace("[", "("))
    with pytest.raises(TrainerError, match=r"dataset/chat_template\.jinja was changed after preflight"):
        load_inputs(world.run)


def test_a_template_by_name_is_recorded(world: Any) -> None:
    choose(world, chatTemplate=BY_NAME)
    preflight(world.run)
    assert summary(world)["chatTemplate"]["name"] == "Alpaca"
    assert "### Response:" in load_inputs(world.run).labeler.template_text


def test_a_job_without_a_choice_records_and_stores_nothing_of_it(world: Any) -> None:
    preflight(world.run)
    assert "chatTemplate" not in summary(world)
    assert not (world.out / Artifact.CHAT_TEMPLATE).exists()


def test_a_template_that_does_not_render_is_refused_before_anything_is_stored(world: Any) -> None:
    choose(world, "{{ messages }", chatTemplate=BY_KEY)
    with pytest.raises(TrainerError, match=r"spec\.model\.chatTemplate: the chat template does not compile") as error:
        preflight(world.run)
    assert error.value.code is ExitCode.INVALID_CONFIG
    assert not world.out.exists()


def test_rows_that_it_cannot_render_are_named_by_line(world: Any) -> None:
    refusing = "{% if 'plus' in messages[0]['content'] %}{{ raise_exception('no sums') }}{% endif %}" + OURS
    choose(world, refusing, chatTemplate=BY_KEY)
    with pytest.raises(TrainerError, match=r"lines 1, .*TEMPLATE_ERROR: the chat template fails: no sums"):
        preflight(world.run)


def test_a_configmap_that_is_not_in_the_file_of_a_local_run_is_named(world: Any) -> None:
    choose(world, None, chatTemplate=BY_KEY)
    with pytest.raises(
        TrainerError, match=r"chatTemplate\.configMapKeyRef: templates is not available: .* key ours\.jinja"
    ):
        preflight(world.run)


def test_a_pod_reads_the_mounted_key(world: Any, tmp_path: Path) -> None:
    choose(world, chatTemplate=BY_KEY)
    config = world.config.model_copy(update={"is_local": False})
    with pytest.raises(TrainerError, match=r"templates has no usable key ours\.jinja: No such file"):
        read_choice(config, tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TrainerError, match="not text in UTF-8"):
        read_choice(config, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("mounted")
    assert read_choice(config, tmp_path).text == "mounted"


def test_preflight_states_by_which_factor_a_template_multiplies_the_samples(world: Any) -> None:
    numbered = (
        "{% for m in messages %}[{{ m['role'] }}{{ ' earlier' if m['role'] == 'assistant' and not loop.last }}] "
        "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    turns = [{"role": role, "content": "what"} for role in ("user", "assistant") * 3]
    rows = [json.dumps({"messages": [*turns[:-1], {"role": "assistant", "content": f"is {at}"}]}) for at in range(20)]
    (world.bucket / "rows.jsonl").write_text("\n".join(rows))
    choose(world, numbered, chatTemplate=BY_KEY)
    report = preflight(world.run)
    assert "rows are" in report.message
    assert "samples (3.00 times as many)" in report.message
    choose(world, OURS, chatTemplate=BY_KEY)
    shutil.rmtree(world.out)
    assert "splits" not in preflight(world.run).message
