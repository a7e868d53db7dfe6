"""Keys for a registry from a configuration of Docker, and what is answered to a challenge."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.output import OciOutput
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.oci.auth import Challenge, find_key, parse_challenge, token_address
from finetune_trainer.storage.oci.connection import connect_registry

TOKENS = "https://auth.example/token"


def encoded(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


def config(**entries: Any) -> bytes:
    return json.dumps({"auths": {name: {"auth": encoded(user)} for name, user in entries.items()}}).encode()


@pytest.mark.parametrize(
    ("names", "host", "path", "user"),
    [
        ({"registry.example": "jo:x"}, "registry.example", "team/bot", "jo:x"),
        ({"https://registry.example/v2/": "jo:x"}, "Registry.Example", "team/bot", "jo:x"),
        ({"registry.example:5000": "jo:x"}, "registry.example:5000", "team/bot", "jo:x"),
        ({"registry.example:5000": "jo:x"}, "registry.example", "team/bot", None),
        ({"registry.example": "a:a", "registry.example/team": "b:b"}, "registry.example", "team/bot", "b:b"),
        ({"registry.example/te": "a:a"}, "registry.example", "team/bot", None),
        ({"registry.example.evil.test": "a:a"}, "registry.example", "team/bot", None),
        ({"https://index.docker.io/v1/": "jo:x"}, "docker.io", "team/bot", "jo:x"),
        ({}, "registry.example", "team/bot", None),
    ],
)
def test_the_entry_of_the_registry_is_used(names: dict[str, str], host: str, path: str, user: str | None) -> None:
    assert find_key(config(**names), host, path) == (encoded(user) if user else None)


def test_a_password_may_have_several_lines_and_user_and_password_may_be_written_out() -> None:
    key = '_json_key:{\n  "type": "service_account"\n}'
    assert find_key(config(**{"registry.example": key}), "registry.example", "bot") == encoded(key)
    plain = {"auths": {"registry.example": {"username": "jo", "password": "a:b"}}}
    assert find_key(json.dumps(plain).encode(), "registry.example", "bot") == encoded("jo:a:b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not a configuration of Docker"),
        (b"[]", "is not a configuration of Docker"),
        (b'{"auths": {"r.example": {"auth": "!"}}}', "has neither auth"),
        (b'{"auths": {"r.example": {"auth": "am8="}}}', "has neither auth"),
        (b'{"auths": {"r.example": {"identitytoken": "secret-token"}}}', "has neither auth"),
    ],
)
def test_an_unusable_key_is_named_and_not_quoted(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        find_key(content, "r.example", "bot")
    assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Basic realm="x"'], Challenge("basic")),
        ([f'Bearer realm="{TOKENS}",service="r"'], Challenge("bearer", TOKENS, "r")),
        ([f'bearer realm="{TOKENS}", scope="repository:a/b:pull,push"'], Challenge("bearer", TOKENS)),
        (["Negotiate", 'Basic realm="x"'], Challenge("basic")),
        (["Bearer"], Challenge("bearer")),
        (["Bearer realm"], None),
        ([], None),
    ],
)
def test_a_challenge_is_read(headers: list[str], found: Challenge | None) -> None:
    assert parse_challenge(headers) == found


@pytest.mark.parametrize(
    ("realm", "is_insecure", "is_asked"),
    [
        (TOKENS, False, True),
        ("http://auth.example/token", False, False),
        ("http://auth.example/token", True, True),
        ("https://jo:x@auth.example/token", False, False),
        ("file:///etc/passwd", True, False),
        ("", True, False),
    ],
)
def test_a_token_is_requested_over_tls_for_pushes_to_the_repository_alone(
    realm: str, is_insecure: bool, is_asked: bool
) -> None:
    found = token_address(Challenge("bearer", realm, "r&x"), "team/bot", is_insecure=is_insecure)
    wanted = f"{realm}?service=r%26x&scope=repository%3Ateam%2Fbot%3Apull%2Cpush"
    assert found == (wanted if is_asked else None)


def output(**fields: Any) -> OciOutput:
    return OciOutput.model_validate({"repository": "registry.example:5000/team/bot", **fields})


@pytest.mark.parametrize(
    ("fields", "endpoint", "path"),
    [
        ({}, "https://registry.example:5000", "team/bot"),
        ({"insecure": True}, "http://registry.example:5000", "team/bot"),
        ({"repository": "docker.io/acme/bot"}, "https://registry-1.docker.io", "acme/bot"),
        ({"repository": "docker.io/bot"}, "https://registry-1.docker.io", "library/bot"),
    ],
)
def test_a_repository_is_reached_at_its_registry(fields: dict[str, Any], endpoint: str, path: str) -> None:
    found = connect_registry(output(**fields))
    assert (found.endpoint, found.path, found.key) == (endpoint, path, None)


def test_the_key_is_read_from_the_mounted_secret_and_never_shown(tmp_path: Path) -> None:
    asked = output(credentialsSecretRef={"name": "push"}, caSecretRef={"name": "ca"})
    with pytest.raises(TrainerError, match=r"Secret push named by spec\.output\.oci\.credentialsSecretRef has no key"):
        connect_registry(asked, tmp_path, tmp_path)
    (tmp_path / ".dockerconfigjson").write_bytes(config(**{"other.example": "jo:hidden"}))
    with pytest.raises(TrainerError, match=r"has no entry for registry\.example:5000 under auths"):
        connect_registry(asked, tmp_path, tmp_path)
    (tmp_path / ".dockerconfigjson").write_bytes(config(**{"registry.example:5000": "jo:hidden"}))
    with pytest.raises(TrainerError, match=r"caSecretRef needs the key ca\.crt"):
        connect_registry(asked, tmp_path, tmp_path)
    (tmp_path / "ca.crt").write_text("")
    found = connect_registry(asked, tmp_path, tmp_path)
    assert (found.key, found.password) == (encoded("jo:hidden"), "hidden")
    assert encoded("jo:hidden") not in repr(found)
