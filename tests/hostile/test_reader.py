"""What pods, storage and the cluster wrote is printed as text: it controls no terminal and forges no line."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.handoff import Artifact
from finetune_api.text.printable import printable

Finetune = Callable[..., Any]
HOSTILE = "\x1b[2J\x9b2J\u202egnp.exe\u2066\u061c\u2028\x7f\nforged line\r\t."
SHOWN = printable(HOSTILE)
DIGEST = "ab" * 32
COMPLETE = [
    {
        "type": kind,
        "status": "True",
        "reason": "Succeeded",
        "message": f"Published. {HOSTILE}",
        "lastTransitionTime": "2026-03-01T12:25:00Z",
    }
    for kind in ("Accepted", "Validated", "Complete")
]
OWN_STYLES = re.compile(r"\x1b\[[0-9;]*m")
OWN_CURSOR = re.compile(r"\x1b\[(\?25[lh]|2K|1A)|\r")
PODS: dict[str, Any] = {
    "metadata": {
        "name": "one-1-abc",
        "namespace": "team-a",
        "uid": "u1",
        "creationTimestamp": "2026-03-01T12:01:00Z",
        "annotations": {"finetune.dev/job-name": "one"},
    },
    "status": {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}]},
}


def assert_text(out: str) -> None:
    """Check that nothing but line ends and tabs of our own is left of what a terminal interprets."""
    assert [one for one in out if printable(one, lines=True) != one] == []
    assert [line for line in out.splitlines() if line.lstrip().startswith("forged line")] == []


@pytest.fixture
def raw(job: Any) -> dict[str, Any]:
    """A complete job with foreign text wherever the API server accepts it."""
    spec = {
        "objective": f"Chat{HOSTILE}",
        "model": {"uri": f"s3://b/{HOSTILE}"},
        "output": {"uri": f"s3://b/{HOSTILE}"},
    }
    spec |= {"scheduling": {"queueName": HOSTILE}, "tuning": {"method": HOSTILE}}
    spec |= {"lineage": {"parentRef": {"name": "parent"}}}
    found: dict[str, Any] = json.loads(json.dumps(job(spec=spec, conditions=COMPLETE).raw))
    status = found["status"]
    status |= {"message": HOSTILE, "phase": f"Training{HOSTILE}"[:64], "reason": HOSTILE}
    status["progress"] |= {"display": HOSTILE, "stage": HOSTILE, "note": HOSTILE}
    status["history"][0] |= {
        "message": HOSTILE,
        "nodeName": HOSTILE,
        "podName": HOSTILE,
        "reason": HOSTILE,
        "result": HOSTILE,
    }
    status["currentRun"] |= {"podName": HOSTILE, "nodeName": HOSTILE, "stoppingReason": HOSTILE}
    status["dataset"] |= {"rejectedRowsByCode": {HOSTILE: 1}}
    status["resolved"] |= {"method": HOSTILE, "methodReason": HOSTILE}
    status["evaluation"] = {
        "verdict": HOSTILE,
        "change": HOSTILE,
        "servedAs": HOSTILE,
        "gate": HOSTILE,
        "message": HOSTILE,
    }
    status["artifacts"] = {"uri": "s3://b/out", "reportURI": "s3://b/out/r.md", "manifestSHA256": DIGEST}
    status["lineage"] = {"trainerImage": HOSTILE, "datasetSHA256": DIGEST, "baseModelURI": "hf://owner/model"}
    parent = {"name": HOSTILE, "uid": "u", "objective": HOSTILE, "outputURI": "s3://b/out", "manifestSHA256": DIGEST}
    status["lineage"]["parent"] = parent
    found["metadata"]["annotations"] = {"a": HOSTILE, f"key{HOSTILE}": "b"}
    return found


@pytest.fixture
def hostile(front: Any, raw: dict[str, Any]) -> Any:
    two = raw | {"metadata": raw["metadata"] | {"name": "two"}, "spec": raw["spec"] | {"objective": "DPO"}}
    two |= {"status": raw["status"] | {"phase": "Succeeded"}}
    event = {"type": HOSTILE, "reason": HOSTILE, "message": HOSTILE, "lastTimestamp": "2026-03-01T12:25:00Z"}
    front.answers = {
        "one": [(200, raw)],
        "two": [(200, two)],
        "events": [(200, {"items": [event]})],
        "pods": [(200, {"items": [PODS]})],
        "finetunejobs": [(200, {"items": [raw, two], "metadata": {}})],
        "parent": [(404, {"message": f"not found {HOSTILE}", "details": {"name": "parent"}})],
        "log": [(200, HOSTILE.replace("\n", "").encode() + b"\x9b2J \xff \xe2\x80\xae\n")],
    }
    return front


COMMANDS = (
    *("list", "list -A", "describe one", "progress one", "lineage one", "diff one two", "report one"),
    *("suspend one", "resume one", "cancel one --yes", "logs one", "logs one -f"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_foreign_text_as_text(hostile: Any, finetune: Finetune, command: str) -> None:
    done = finetune(*command.split(), "--context", "lab")
    assert_text(done.out + done.err)
    assert "\\u001b[2J" in done.out + done.err


@pytest.mark.parametrize(
    "command", ["list", "describe one", "progress one", "lineage one", "diff one two", "report one"]
)
def test_a_terminal_gets_only_our_own_colours(
    hostile: Any, finetune: Finetune, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    out = finetune(*command.split(), "--context", "lab").out
    plain = OWN_CURSOR.sub("", OWN_STYLES.sub("", out))
    assert plain != out
    assert_text(plain)


@pytest.mark.parametrize("command", ["list", "describe one", "lineage one", "diff one two", "report one"])
def test_programs_get_the_same_values_in_escapes_of_json_and_yaml(
    hostile: Any, finetune: Finetune, command: str
) -> None:
    as_json = finetune(*command.split(), "-o", "json", "--context", "lab").out
    as_yaml = finetune(*command.split(), "-o", "yaml", "--context", "lab").out
    assert_text(as_json)
    assert_text(as_yaml)
    assert json.loads(as_json) == yaml.safe_load(as_yaml)


def test_json_and_yaml_are_the_object_as_the_api_server_sent_it(
    hostile: Any, finetune: Finetune, raw: dict[str, Any]
) -> None:
    assert json.loads(finetune("describe", "one", "-o", "json", "--context", "lab").out) == raw
    assert yaml.safe_load(finetune("describe", "one", "-o", "yaml", "--context", "lab").out) == raw


@pytest.mark.parametrize("code", [400, 403, 422, 429, 500])
def test_an_error_of_the_api_server_is_one_line_of_text(front: Any, finetune: Finetune, code: int) -> None:
    front.answers["one"] = [(code, {"message": f"denied {HOSTILE}"})]
    done = finetune("describe", "one", "--context", "lab")
    assert_text(done.out + done.err)
    assert done.err.splitlines()[0] == f"error: denied {SHOWN}"


def test_a_kubelets_message_is_text_while_a_log_is_waited_for(hostile: Any, finetune: Finetune) -> None:
    waiting = {"waiting": {"reason": HOSTILE, "message": HOSTILE}}
    status = {"containerStatuses": [{"name": "trainer", "state": waiting}]}
    hostile.answers["pods"] = [(200, {"items": [PODS | {"status": status}]})]
    done = finetune("logs", "one", "--context", "lab")
    assert_text(done.out + done.err)
    assert f"has not started: {SHOWN} {SHOWN}" in done.err


def test_a_log_keeps_its_lines_and_shows_what_a_terminal_would_obey(hostile: Any, finetune: Finetune) -> None:
    hostile.answers["log"] = [(200, "step 1\n\ta\nGröße \x1b[2J\x9b2J\u202e\r\n".encode() + b"\x9b\xff\xe2\x80\n")]
    out = finetune("logs", "one", "--context", "lab").out
    assert out == "step 1\n\ta\nGröße \\u001b[2J\\u009b2J\\u202e\\r\n\\x9b\\xff\\xe2\\x80\n"


def test_a_log_is_unchanged_only_with_raw(hostile: Any, finetune: Finetune) -> None:
    data = b"\x1b[31mred\x1b[0m \xe2\x80\xae \xc3\xa9\n"
    hostile.answers["log"] = [(200, data)]
    assert finetune("logs", "one", "--raw", "--context", "lab").out.encode() == data
    assert finetune("logs", "one", "-f", "--raw", "--context", "lab").out.encode() == data


def test_the_name_of_an_imported_file_is_a_comment_of_the_manifest(finetune: Finetune, tmp_path: Path) -> None:
    """Whoever applies what is printed must not apply what the file's author put into its name."""
    file = tmp_path / "a\n---\n{kind: Evil}\n---\n#\x1b[2J.yaml"
    file.write_text("base_model: acme/tiny\nadapter: lora\n")
    printed = finetune("import", str(file), "--from", "axolotl").out
    assert [one["kind"] for one in yaml.safe_load_all(printed)] == ["FineTuneJob"]
    assert_text(printed)


def test_a_report_from_storage_is_text(
    front: Any, finetune: Finetune, job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    boto3 = pytest.importorskip("boto3")
    report = f"# Report\n\n\t{HOSTILE}".encode()
    digest = hashlib.sha256(report).hexdigest()
    result = {"outcome": "Published", "reason": "Succeeded", "message": "", "jobUID": "u", "configSHA256": DIGEST}
    entries = [{"path": name, "size": 1, "sha256": digest} for name in (Artifact.REPORT, Artifact.REPORT_PAGE)]
    manifest = json.dumps(
        {"namespace": "a", "name": "one", "uid": "u", "configSHA256": DIGEST, "result": result, "files": entries}
    ).encode()

    class Bucket:
        def client(self, *_: object, **__: object) -> "Bucket":
            return self

        def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - names of boto3
            import io

            return {"Body": io.BytesIO(manifest if Key.endswith(Artifact.MANIFEST) else report)}

    monkeypatch.setattr(boto3, "Session", Bucket)
    artifacts = {
        "uri": "s3://b/out",
        "reportURI": "s3://b/out/r.md",
        "manifestSHA256": hashlib.sha256(manifest).hexdigest(),
    }
    front.answers["one"] = [(200, job(artifacts=artifacts).raw)]
    options = ("--endpoint", "http://minio:9000", "--context", "lab")
    done = finetune("report", "one", "--show", *options)
    assert done.out.startswith("# Report\n\n\t\\u001b[2J\\u009b2J\\u202egnp.exe")
    assert [one for one in done.out if printable(one, lines=True) != one] == []
    finetune("report", "one", "--save", str(tmp_path), *options)
    assert (tmp_path / "finetune_report.md").read_bytes() == report


def test_a_manifest_from_elsewhere_is_shown_as_text(finetune: Finetune, tmp_path: Any) -> None:
    path = tmp_path / "job.yaml"
    bad = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": HOSTILE}, HOSTILE: 1}
    path.write_text(json.dumps(bad | {"spec": {"objective": HOSTILE, HOSTILE: 1}}))
    for output in ((), ("-o", "json"), ("-o", "yaml")):
        done = finetune("validate", str(path), *output)
        assert done.code == 1
        assert_text(done.out + done.err)
        assert "u001b" in done.out.lower() or "\\e[2J" in done.out
