"""What a folder of a result or an adapter has, before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.merging.tuned_folder import TunedFolder, read_tuned

CONFIG: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "acme/base"}


def make_adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_the_adapter_of_a_result_is_preferred_to_its_merged_model(tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", revision="main")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")
    assert read_tuned(tmp_path) == TunedFolder(tmp_path / "adapter", True, "hf://acme/base", "main")


def test_a_folder_with_the_adapter_itself_is_read(tmp_path: Path) -> None:
    assert read_tuned(make_adapter(tmp_path / "own")).weights == tmp_path / "own"


def test_a_result_of_method_full_has_only_the_model(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")
    assert read_tuned(tmp_path) == TunedFolder(tmp_path / "merged", False)
    assert read_tuned(tmp_path / "merged") == TunedFolder(tmp_path / "merged", False)


@pytest.mark.parametrize(
    ("named", "uri"),
    [
        ("s3://bucket/base", "s3://bucket/base"),
        ("hf://acme/base", "hf://acme/base"),
        ("acme/base", "hf://acme/base"),
        ("/home/me/base", None),
        ("../base", None),
        (None, None),
    ],
)
def test_the_base_is_a_uri_or_unknown(tmp_path: Path, named: str | None, uri: str | None) -> None:
    assert read_tuned(make_adapter(tmp_path / "own", base_model_name_or_path=named)).base == uri


def refusal(folder: Path) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        read_tuned(folder)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "IA3"}, "only LORA is loaded"),
        ({"task_type": "SEQ_CLS"}, "a reward model, which scores a text"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
    ],
)
def test_an_adapter_that_would_answer_wrongly_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    error = refusal(make_adapter(tmp_path / "own", **changes))
    assert error.code is ExitCode.MODEL_UNAVAILABLE
    assert why in error.message


def test_a_pickle_is_refused_and_missing_weights_are_named(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "own")
    (folder / "adapter_model.safetensors").unlink()
    assert "there is no adapter_model.safetensors" in refusal(folder).message
    (folder / "adapter_model.bin").touch()
    assert "pickle" in refusal(folder).message


def test_a_folder_without_a_model_and_one_that_does_not_exist_are_named(tmp_path: Path) -> None:
    assert "has neither adapter/adapter_config.json nor merged/config.json" in refusal(tmp_path).message
    assert refusal(tmp_path / "none").code is ExitCode.INVALID_CONFIG
