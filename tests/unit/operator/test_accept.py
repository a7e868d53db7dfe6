"""The allow-lists."""

from typing import Any

import pytest

from finetune_operator.accept import is_metadata_address, refusal
from finetune_operator.settings import Settings


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.1.1",
        "2852039166",
        "0xa9fea9fe",
        "169.254.43518",
        "fe80::1",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "METADATA.google.internal.",
        "100.100.100.200",
    ],
)
def test_metadata_addresses_are_known_in_every_spelling(host: str) -> None:
    assert is_metadata_address(host)


@pytest.mark.parametrize("host", ["minio.minio", "10.0.0.1", "s3.eu-west-1.amazonaws.com", "::1", "1.2.3.4"])
def test_other_addresses_are_not(host: str) -> None:
    assert not is_metadata_address(host)


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ({"trainer": {"image": "other.example/x:1"}}, {"allowed_images": ["other.example/x"]}),
        ({"trainer": {"serviceAccountName": "ml"}}, {"allowed_service_accounts": ["team/ml"]}),
        ({"scheduling": {"priorityClassName": "high"}}, {"allowed_priority_classes": ["high"]}),
    ],
)
def test_what_is_refused_by_default_is_allowed_by_its_setting(scene: Any, spec: Any, allowed: Any) -> None:
    job = scene(**spec).job
    assert "not allowed" in (refusal(job, Settings(trainer_image="registry.example/trainer:1")) or "")
    assert refusal(job, Settings(trainer_image="registry.example/trainer:1", **allowed)) is None


def test_a_service_account_of_another_namespace_is_not_meant(scene: Any) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_service_accounts=["other/ml"])
    assert refusal(scene(trainer={"serviceAccountName": "ml"}).job, settings)


def test_a_list_of_endpoints_excludes_all_others(scene: Any) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_storage_endpoints=["https://*.s3.example"])
    assert refusal(scene(storage={"endpoint": "https://eu.s3.example/"}).job, settings) is None
    assert refusal(scene(storage={"endpoint": "https://eu.s3.example.evil"}).job, settings)


def test_no_list_allows_a_metadata_address(scene: Any) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_storage_endpoints=["*"])
    assert "never allowed" in (refusal(scene(storage={"endpoint": "http://169.254.169.254"}).job, settings) or "")


def test_settings_are_read_from_the_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "x/y:1")
    monkeypatch.setenv("FINETUNE_WATCH_NAMESPACES", "a, b,")
    monkeypatch.setenv("FINETUNE_TRAINER_RUN_AS_USER", "")
    monkeypatch.setenv("FINETUNE_DEFAULT_STORAGE_ENDPOINT", "")
    settings = Settings()
    assert settings.watch_namespaces == ["a", "b"]
    assert settings.trainer_run_as_user is None
    assert settings.default_storage() is None
