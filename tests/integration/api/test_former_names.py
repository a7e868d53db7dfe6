"""A manifest with a former name: what the API server makes of it, which does not read the table of former names."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from finetune_api import names
from finetune_api.manifest.former_names import FORMER_FIELDS, FORMER_WORDS

SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
    "scheduling": {"queueName": "a"},
    "tracking": {
        "mlflow": {"endpoint": "http://mlflow:5000", "experiment": "e"},
        "wandb": {"project": "p", "credentialsSecretRef": {"name": "w"}},
    },
}
VALUES: dict[str, Any] = {
    "resources.nodes": 2,
    "scheduling.workloadPriorityClass": "urgent",
    "tracking.mlflow.uri": "http://mlflow:5000",
    "tracking.wandb.baseUrl": "https://wandb.example",
    "tracking.wandb.secretRef": {"name": "w"},
}
REQUIRED = {"tracking.mlflow.uri", "tracking.wandb.secretRef"}
"""Former names of fields without which the job is refused."""
Create = Callable[..., tuple[dict[str, Any], str]]


def with_former(path: str) -> dict[str, Any]:
    """The spec with a former name in place of the current one."""
    blocks, _, field = path.rpartition(".")
    spec = block = SPEC | {}
    for part in blocks.split("."):
        block[part] = dict(block.get(part, {}))
        block = block[part]
    block.pop(FORMER_FIELDS[path], None)
    block[field] = VALUES[path]
    return spec


@pytest.fixture
def create(control_plane: Path) -> Iterator[Create]:
    with config.new_client_from_config(str(control_plane)) as api:
        objects = client.CustomObjectsApi(api)

        def call(spec: dict[str, Any], validation: str) -> tuple[dict[str, Any], str]:
            """The object that would be stored, and the warnings."""
            body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "former"}, "spec": spec}
            where = (names.GROUP, names.VERSION, "default", names.PLURAL)
            made, _, headers = objects.create_namespaced_custom_object_with_http_info(
                *where, body, field_validation=validation, dry_run="All"
            )
            return made, headers.get("Warning", "")

        yield call


@pytest.mark.parametrize("path", FORMER_FIELDS)
def test_kubectl_apply_is_refused_with_the_path_of_the_former_name(create: Create, path: str) -> None:
    with pytest.raises(client.ApiException, match=f'unknown field \\\\"spec.{path}\\\\"'):
        create(with_former(path), "Strict")


@pytest.mark.parametrize("path", sorted(FORMER_FIELDS.keys() - REQUIRED))
def test_a_client_that_does_not_ask_for_strict_validation_loses_the_field_with_a_warning(
    create: Create, path: str
) -> None:
    block, warning = create(with_former(path), "Warn")
    assert f'unknown field "spec.{path}"' in warning.replace("\\", "")
    for part in f"spec.{path}".split(".")[:-1]:
        block = block[part]
    assert path.rpartition(".")[2] not in block
    assert block.get("numNodes", 1) == 1


@pytest.mark.parametrize("path", sorted(REQUIRED))
def test_such_a_client_is_refused_if_the_current_field_is_required(create: Create, path: str) -> None:
    with pytest.raises(client.ApiException, match=rf"spec.{path.rpartition('.')[0]}.{FORMER_FIELDS[path]}") as caught:
        create(with_former(path), "Warn")
    assert caught.value.status == 422


@pytest.mark.parametrize(("path", "word"), [(path, word) for path, words in FORMER_WORDS.items() for word in words])
def test_a_former_word_is_refused_with_the_words_that_there_are(create: Create, path: str, word: str) -> None:
    field = path.rpartition(".")[2]
    with pytest.raises(client.ApiException, match=f"{field}: Unsupported value.*{FORMER_WORDS[path][word]}"):
        create(SPEC | {"hyperparameters": {field: word}}, "Warn")
