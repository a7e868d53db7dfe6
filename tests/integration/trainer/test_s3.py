"""S3Store against a real S3 server."""

import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from s3_servers import CONFINED_PREFIX

from finetune_api.handoff import ExitCode
from finetune_api.spec import Checkpoint
from finetune_api.spec import Storage as StorageSpec
from finetune_trainer.entrypoints.pod import TRAINER_RETRY_SECONDS
from finetune_trainer.errors import ObjectMissing, Stopped, StorageDenied, StorageUnavailable, TrainerError
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.protocol import Entry
from finetune_trainer.storage.retries import MAX_WAIT
from finetune_trainer.storage.routed import RoutedStore
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import S3Connection, connect_s3

MIB = 1024 * 1024


@pytest.fixture
def storage(s3_server: Any, aws_environment: None) -> S3Store:
    return S3Store(connect_s3(s3_server.spec()))


def keys(access: str, secret: str) -> dict[str, str]:
    return {"aws_access_key_id": access, "aws_secret_access_key": secret}


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_small_objects_are_written_read_and_listed(storage: S3Store, bucket: str) -> None:
    storage.put(f"s3://{bucket}/out/a/one.json", b"1")
    storage.put(f"s3://{bucket}/out/two.json", b"22")
    storage.put(f"s3://{bucket}/outside.json", b"333")
    digests = [hashlib.md5(content).hexdigest() for content in (b"1", b"22")]
    listed = [Entry("a/one.json", 1, digests[0]), Entry("two.json", 2, digests[1])]
    assert storage.list(f"s3://{bucket}/out") == listed
    assert storage.read(f"s3://{bucket}/out/two.json") == b"22"
    assert storage.first(f"s3://{bucket}/out") == listed[0]


def test_more_keys_than_a_page_are_all_listed(storage: S3Store, s3_server: Any, bucket: str) -> None:
    client = s3_server.client()
    for index in range(1005):
        client.put_object(Bucket=bucket, Key=f"many/{index:04}", Body=b"")
    assert len(storage.list(f"s3://{bucket}/many")) == 1005


def test_an_absent_object_reads_as_none_and_downloads_as_missing(storage: S3Store, bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{bucket}/absent"
    assert storage.read(uri) is None
    assert storage.list(uri) == []
    assert storage.first(uri) is None
    for ask in (lambda: storage.download(uri, tmp_path / "x"), lambda: storage.sha256(uri)):
        with pytest.raises(ObjectMissing, match="absent does not exist at http"):
            ask()


def test_keys_that_are_limited_to_a_prefix_read_an_absent_object_as_none(s3_server: Any, tmp_path: Path) -> None:
    """HeadBucket refuses these keys."""
    bucket, _, prefix = CONFINED_PREFIX.partition("/")
    s3_server.client().create_bucket(Bucket=bucket)
    storage = S3Store(S3Connection(s3_server.spec(), s3_server.confine()))
    uri = f"s3://{bucket}/{prefix}/out"
    storage.probe(uri)
    assert storage.read(f"{uri}/owner.json") is None
    assert storage.size(f"{uri}/owner.json") is None
    with pytest.raises(ObjectMissing, match="absent does not exist at http"):
        storage.download(f"{uri}/absent", tmp_path / "x")
    storage.put(f"{uri}/owner.json", b"{}")
    assert storage.read(f"{uri}/owner.json") == b"{}"
    with pytest.raises(StorageDenied, match="access is denied"):
        storage.probe(f"s3://{bucket}/team-b/out")


def test_only_the_first_conditional_write_wins(storage: S3Store, bucket: str) -> None:
    uri = f"s3://{bucket}/owner.json"
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read(uri) == b"first"


def test_of_many_conditional_writes_at_once_exactly_one_wins(storage: S3Store, bucket: str) -> None:
    uri, won = f"s3://{bucket}/contended.json", []
    barrier = threading.Barrier(6)

    def contend(index: int) -> None:
        barrier.wait()
        if storage.put_if_absent(uri, str(index).encode()):
            won.append(index)

    threads = [threading.Thread(target=contend, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read(uri) == str(won[0]).encode()


def test_a_file_of_several_parts_arrives_whole_and_is_counted(storage: S3Store, bucket: str, tmp_path: Path) -> None:
    source, uri = tmp_path / "big", f"s3://{bucket}/big"
    block = bytes(range(256)) * 4096
    with source.open("wb") as file:
        for _ in range(40):
            file.write(block)
    sent: list[int] = []
    received: list[int] = []
    storage.upload(source, uri, sent.append)
    storage.download(uri, tmp_path / "deep" / "copy", received.append)
    assert sum(sent) == sum(received) == 40 * MIB
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert hashlib.sha256((tmp_path / "deep" / "copy").read_bytes()).hexdigest() == digest
    assert storage.sha256(uri) == digest
    assert storage.read_range(uri, MIB + 3, 5) == b"\x03\x04\x05\x06\x07"


UPLOAD_IN_LITTLE_MEMORY = """
import sys
from pathlib import Path
from finetune_api.spec import Storage
from finetune_trainer.limits import limit_process
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3

storage = S3Store(connect_s3(Storage.model_validate_json(sys.argv[3])))
storage.put(sys.argv[2] + "-small", b"the libraries are loaded now")
limit_process(128 << 20)
storage.upload(Path(sys.argv[1]), sys.argv[2])
"""


def test_a_large_file_is_uploaded_without_its_parts_in_memory(
    s3_server: Any, aws_environment: None, bucket: str, tmp_path: Path
) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(320 * MIB)
    arguments = [str(source), f"s3://{bucket}/large", s3_server.spec().model_dump_json(by_alias=True)]
    subprocess.run([sys.executable, "-c", UPLOAD_IN_LITTLE_MEMORY, *arguments], check=True, timeout=600)


def test_a_folder_is_copied_as_far_as_accepted(storage: S3Store, bucket: str, tmp_path: Path) -> None:
    for name in ("config.json", "sub/weights", "pytorch_model.bin"):
        storage.put(f"s3://{bucket}/model/{name}", name.encode())
    paths = storage.download_folder(
        f"s3://{bucket}/model", tmp_path / "model", accept=lambda key: not key.endswith(".bin")
    )
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["model/config.json", "model/sub/weights"]
    assert paths[1].read_bytes() == b"sub/weights"


def test_a_small_object_of_a_folder_takes_one_request_and_is_counted(
    s3_server: Any, aws_environment: None, bucket: str, tmp_path: Path
) -> None:
    connection = connect_s3(s3_server.spec())
    requests: list[str] = []
    connection.client.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.method))
    storage = RoutedStore(lambda: S3Store(connection), pytest.fail)  # as in a pod
    contents = {f"part-{number}": bytes([number]) * number for number in range(12)}  # one of them is empty
    for name, data in contents.items():
        storage.put(f"s3://{bucket}/many/{name}", data)
    requests.clear()
    received: list[int] = []
    paths = storage.download_folder(f"s3://{bucket}/many", tmp_path / "many", received.append)
    assert {path.name: path.read_bytes() for path in paths} == contents
    assert requests == ["GET"] * (1 + len(contents))  # one of them lists
    assert sorted(filter(None, received)) == list(range(1, 12))
    assert len(list((tmp_path / "many").iterdir())) == len(contents)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_stop_ends_a_transfer_and_comes_out_as_itself(
    storage: S3Store, bucket: str, tmp_path: Path, direction: str
) -> None:
    source, uri = tmp_path / "big", f"s3://{bucket}/folder/big"
    source.write_bytes(b"x" * 40 * MIB)
    if direction == "download":
        storage.upload(source, uri)

    def stopped(_count: int) -> None:
        raise Stopped

    calls = {
        "upload": lambda: storage.upload(source, uri, stopped),
        "download": lambda: storage.download(uri, tmp_path / "copy", stopped),
    }
    with pytest.raises(Stopped):
        calls[direction]()
    assert not (tmp_path / "copy").exists()
    assert bool(storage.list(f"s3://{bucket}/folder")) == (direction == "download")


@pytest.mark.parametrize(
    ("access", "secret", "expected"),
    [("unknown-key", "s3cr3t", "the access key is unknown"), (None, "s3cr3t", "the secret key does not match")],
)
def test_wrong_keys_are_denied_and_no_secret_is_shown(
    s3_server: Any, bucket: str, tmp_path: Path, *, access: str | None, secret: str, expected: str
) -> None:
    storage = S3Store(S3Connection(s3_server.spec(), keys(access or s3_server.access_key, secret)))
    uri = f"s3://{bucket}/out/owner.json"
    calls: list[Callable[[], object]] = [
        lambda: storage.probe(uri),
        lambda: storage.read(uri),
        lambda: storage.list(uri),
        lambda: storage.put(uri, b"x"),
        lambda: storage.put_if_absent(uri, b"x"),
    ]
    for call in calls:
        with pytest.raises(StorageDenied) as caught:
            call()
        assert expected in caught.value.message
        assert bucket in caught.value.message
        assert s3_server.endpoint in caught.value.message
        assert "s3cr3t" not in caught.value.message
    for blind in (lambda: storage.first(uri), lambda: storage.download(uri, tmp_path / "x")):
        with pytest.raises(StorageDenied):
            blind()


def test_a_missing_bucket_is_denied_with_the_fix(storage: S3Store, tmp_path: Path) -> None:
    uri = "s3://no-such-bucket/key"
    calls: list[Callable[[], object]] = [
        lambda: storage.probe(uri),
        lambda: storage.list(uri),
        lambda: storage.read(uri),
        lambda: storage.first(uri),
        lambda: storage.download(uri, tmp_path / "x"),
    ]
    for call in calls:
        with pytest.raises(StorageDenied, match="bucket does not exist: create it"):
            call()


def test_a_closed_port_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    storage = S3Store(S3Connection(StorageSpec(endpoint=f"http://127.0.0.1:{port}"), keys("a", "b")))
    with pytest.raises(StorageUnavailable, match="storage cannot be reached"):
        storage.probe("s3://bucket/key")


def test_an_endpoint_that_never_answers_is_unavailable(silent_endpoint: str) -> None:
    storage = S3Store(S3Connection(StorageSpec(endpoint=silent_endpoint), keys("a", "b")))
    with pytest.raises(StorageUnavailable):
        storage.probe("s3://bucket/key")


def test_a_patient_storage_waits_for_a_store_that_comes_back(s3_server: Any, bucket: str) -> None:
    """A relay in front of the server stands for the store; it opens seconds after the first try."""
    port = start_relay(s3_server, delay=6.0)
    storage = S3Store(
        S3Connection(
            StorageSpec(endpoint=f"http://127.0.0.1:{port}"), keys(s3_server.access_key, s3_server.secret_key)
        ),
        retry_seconds=60,
    )
    storage.put(f"s3://{bucket}/late", b"arrived")
    assert storage.read(f"s3://{bucket}/late") == b"arrived"


def test_a_stop_ends_the_retries_of_a_store_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    stop = StopFlag()
    connection = S3Connection(StorageSpec(endpoint=f"http://127.0.0.1:{port}"), keys("a", "b"))
    storage = S3Store(connection, TRAINER_RETRY_SECONDS, stop)
    threading.Timer(2.0, stop.set).start()
    began = time.monotonic()
    with pytest.raises((Stopped, StorageUnavailable)):
        storage.put("s3://bucket/key", b"x")
    assert time.monotonic() - began < TRAINER_RETRY_SECONDS / 2


def test_a_silent_store_leaves_most_of_the_grace_period_after_a_stop() -> None:
    """The tries inside botocore cannot be ended, nor can a wait between ours."""
    config = S3Connection(StorageSpec(endpoint="http://127.0.0.1:1"), keys("a", "b")).client.meta.config
    longest = config.retries["total_max_attempts"] * (config.connect_timeout + config.read_timeout)
    assert longest + MAX_WAIT < Checkpoint().grace_period_seconds * 0.8


def test_a_connection_that_breaks_again_and_again_is_unavailable(
    s3_server: Any, storage: S3Store, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(b"x" * 20 * MIB)
    storage.upload(tmp_path / "big", f"s3://{bucket}/big")
    port = start_relay(s3_server, most=MIB)
    weak = S3Store(connect_s3(StorageSpec(endpoint=f"http://127.0.0.1:{port}")))
    with pytest.raises(StorageUnavailable):
        weak.download(f"s3://{bucket}/big", tmp_path / "copy")
    with pytest.raises(StorageUnavailable):
        weak.sha256(f"s3://{bucket}/big")
    assert not (tmp_path / "copy").exists()


def test_a_stop_ends_the_download_of_a_small_object(storage: S3Store, bucket: str, tmp_path: Path) -> None:
    storage.put(f"s3://{bucket}/some/weights", b"x" * MIB)
    seen: list[int] = []

    def stopped(count: int) -> None:
        seen.append(count)
        if len(seen) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        storage.download_folder(f"s3://{bucket}/some", tmp_path / "some", stopped)
    assert seen == [0, 0]
    assert not list((tmp_path / "some").iterdir())


def test_an_object_that_was_replaced_by_a_longer_one_is_downloaded_whole(
    storage: S3Store, bucket: str, tmp_path: Path
) -> None:
    storage.put(f"s3://{bucket}/some/rows", b"x" * 3 * MIB)
    received: list[int] = []
    storage.download_entry(f"s3://{bucket}/some", Entry("rows", 10), tmp_path / "rows", received.append)
    assert (tmp_path / "rows").read_bytes() == b"x" * 3 * MIB
    assert sum(received) == 3 * MIB


@pytest.mark.parametrize("size", [10, 40 * MIB], ids=["small", "in parts"])
def test_an_object_that_was_replaced_after_it_was_listed_is_refused(
    storage: S3Store, bucket: str, tmp_path: Path, size: int
) -> None:
    """A model or a dataset that somebody uploads again meanwhile would be a mixture of both."""
    uri = f"s3://{bucket}/some"
    storage.put(f"{uri}/weights", b"x" * size)
    (listed,) = storage.list(uri)
    storage.put(f"{uri}/weights", b"y" * size)
    with pytest.raises(StorageUnavailable, match="weights was replaced while its folder was read"):
        storage.download_entry(uri, listed, tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_an_object_that_is_replaced_in_the_middle_of_a_download_is_refused(
    s3_server: Any, storage: S3Store, bucket: str, aws_environment: None, tmp_path: Path
) -> None:
    """The first part has been received, and others may have been."""
    uri = f"s3://{bucket}/weights"
    storage.put(uri, b"x" * 160 * MIB)
    connection = connect_s3(s3_server.spec())
    first = threading.Lock()

    def replace(request: Any, **_: object) -> None:
        if request.headers.get("If-Match") and first.acquire(blocking=False):
            storage.put(uri, b"y" * 160 * MIB)

    connection.client.meta.events.register("before-send.s3.GetObject", replace)
    with pytest.raises(StorageUnavailable, match="weights was replaced while its folder was read"):
        S3Store(connection).download(uri, tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_a_small_object_that_breaks_off_leaves_no_file(
    s3_server: Any, storage: S3Store, bucket: str, tmp_path: Path
) -> None:
    storage.put(f"s3://{bucket}/some/weights", b"x" * 4 * MIB)
    weak = S3Store(connect_s3(StorageSpec(endpoint=f"http://127.0.0.1:{start_relay(s3_server, most=MIB)}")))
    with pytest.raises(StorageUnavailable):
        weak.download_folder(f"s3://{bucket}/some", tmp_path / "some")
    assert not list((tmp_path / "some").iterdir())


def test_an_error_of_this_machine_is_not_reported_as_one_of_storage(
    storage: S3Store, bucket: str, tmp_path: Path
) -> None:
    storage.put(f"s3://{bucket}/x", b"x")
    with pytest.raises(IsADirectoryError):
        storage.download(f"s3://{bucket}/x", tmp_path)


def start_relay(server: Any, *, delay: float = 0.0, most: int | None = None) -> int:
    """A port that leads to the server, from `delay` seconds on, and breaks after `most` bytes of an answer."""
    port = free_port()
    target = int(server.endpoint.rsplit(":", 1)[1])
    listener = None if delay else socket.create_server(("127.0.0.1", port))
    threading.Thread(target=_relay, args=(port, target, delay, most, listener), daemon=True).start()
    return port


def _relay(port: int, target: int, delay: float, most: int | None, listener: socket.socket | None) -> None:
    time.sleep(delay)
    with listener or socket.create_server(("127.0.0.1", port)) as server:
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", target))
            for source, sink, limit in ((near, far, None), (far, near, most)):
                threading.Thread(target=_pump, args=(source, sink, limit), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
    moved = 0
    try:
        while data := source.recv(65536):
            sink.sendall(data)
            moved += len(data)
            if limit is not None and moved > limit:
                break
    except OSError:
        pass
    finally:
        for one in (sink, source):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.mark.parametrize("layout", ["keys", "ini"])
def test_credentials_come_from_a_mounted_secret(s3_server: Any, bucket: str, tmp_path: Path, layout: str) -> None:
    access, secret = s3_server.access_key, s3_server.secret_key
    if layout == "keys":
        (tmp_path / "AWS_ACCESS_KEY_ID").write_text(f"{access}\n")
        (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text(secret)
    else:
        (tmp_path / "credentials").write_text(
            f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"
        )
    spec = s3_server.spec().model_copy(update={"credentials_secret_ref": {"name": "s3"}})
    storage = S3Store(connect_s3(spec, credentials_dir=tmp_path))
    storage.put(f"s3://{bucket}/x", b"x")
    assert storage.read(f"s3://{bucket}/x") == b"x"


@pytest.mark.parametrize("content", [{}, {"AWS_ACCESS_KEY_ID": "a"}, {"credentials": "s3cr3t without section"}])
def test_a_secret_without_the_keys_is_denied_and_not_shown(
    s3_server: Any, tmp_path: Path, content: dict[str, str]
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    spec = s3_server.spec().model_copy(update={"credentials_secret_ref": {"name": "s3"}})
    with pytest.raises(StorageDenied) as caught:
        connect_s3(spec, credentials_dir=tmp_path)
    assert "credentials" in caught.value.message
    assert "s3cr3t" not in caught.value.message


def test_no_credentials_at_all_are_denied(s3_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageDenied, match="no storage credentials"):
        S3Store(connect_s3(s3_server.spec())).probe("s3://bucket/key")


def test_a_private_authority_is_trusted_when_it_is_given_and_only_then(
    s3_server: Any, tmp_path: Path, aws_environment: None
) -> None:
    bucket = "over-tls"
    s3_server.client(tls=True).create_bucket(Bucket=bucket)
    (tmp_path / "ca.crt").write_bytes(s3_server.authority.read_bytes())
    spec = StorageSpec(endpoint=s3_server.tls_endpoint)
    trusting = S3Store(connect_s3(spec.model_copy(update={"ca_secret_ref": {"name": "ca"}}), ca_dir=tmp_path))
    trusting.put(f"s3://{bucket}/x", b"over TLS")
    assert trusting.read(f"s3://{bucket}/x") == b"over TLS"
    with pytest.raises(StorageUnavailable, match=r"certificate is not trusted .* set spec.storage.caSecretRef"):
        S3Store(connect_s3(spec)).probe(f"s3://{bucket}/x")


def test_an_authority_that_is_not_mounted_is_an_invalid_config(s3_server: Any, tmp_path: Path) -> None:
    spec = s3_server.spec().model_copy(update={"ca_secret_ref": {"name": "ca"}})
    with pytest.raises(TrainerError, match=r"needs the key ca\.crt") as caught:
        connect_s3(spec, ca_dir=tmp_path)
    assert caught.value.code is ExitCode.INVALID_CONFIG
