"""KServe's storage initializer copies the folders that a report's manifests name, and nothing beside them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import Hub
from kserve_storage import initialize_storage
from s3_servers import S3Server
from tiny_model import make_tiny_model

from finetune_trainer.report.serving import Place, kserve_adapter, kserve_llm_adapter, kserve_merged

BUCKET = "copied"
FOLDERS = {"models/base": "config.json", "out/adapter": "adapter_config.json", "out/merged": "config.json"}
PLACE = Place("support-bot", f"s3://{BUCKET}/out", f"s3://{BUCKET}/models/base")


@pytest.fixture(scope="module")
def environment(s3_server: S3Server) -> dict[str, str]:
    """What the controllers set for a Secret with an endpoint; every folder has a neighbour whose name begins so."""
    s3 = s3_server.client()
    s3.create_bucket(Bucket=BUCKET)
    for folder, file in FOLDERS.items():
        for key in (f"{folder}/{file}", f"{folder}/deeper/{file}", f"{folder}-large/{file}", f"{folder}.txt"):
            s3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    return {
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the base model."""
    root = tmp_path_factory.mktemp("hub")
    make_tiny_model(root / "models" / "acme" / "base")
    with Hub(root).serving() as served:
        yield served


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def of_adapter_service(place: Place) -> list[str]:
    return [one["uri"] for one in yaml.safe_load(kserve_adapter(place, 16))["spec"]["predictor"]["storageUris"]]


def of_llm_service(place: Place) -> list[str]:
    model = yaml.safe_load(kserve_llm_adapter(place, 16))["spec"]["model"]
    return [model["uri"], model["lora"]["adapters"][0]["uri"]]


def of_merged_service(place: Place) -> list[str]:
    return [yaml.safe_load(kserve_merged(place))["spec"]["predictor"]["model"]["storageUri"]]


@pytest.mark.parametrize("uris", [of_adapter_service, of_llm_service, of_merged_service])
def test_no_neighbour_of_a_folder_is_copied(
    uris: Callable[[Place], list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    pairs = {uri: tmp_path / str(number) for number, uri in enumerate(uris(PLACE))}
    initialize_storage([word for uri, folder in pairs.items() for word in (uri, str(folder))], environment)
    for uri, folder in pairs.items():
        file = FOLDERS[uri.removeprefix(f"s3://{BUCKET}/").rstrip("/")]
        assert files(folder) == {file, f"deeper/{file}"}


def test_a_base_comes_from_the_hub_that_the_manifest_names(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    place = replace(PLACE, base="hf://acme/base", hub_endpoint=hub.endpoint)
    (initializer,) = yaml.safe_load(kserve_llm_adapter(place, 16))["spec"]["template"]["initContainers"]
    named: dict[str, Any] = {one["name"]: one["value"] for one in initializer["env"]}
    initialize_storage([of_llm_service(place)[0], str(tmp_path / "base")], environment | named)
    assert {"config.json", "model.safetensors"} <= files(tmp_path / "base")
