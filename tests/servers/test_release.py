"""Releases to a real vLLM, by the pod's own command: results of real trainings on one base, and a real S3 server."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from released_results import release_config
from tiny_model import make_tiny_model
from vllm_server import Server, serving

from finetune_api.release import ReleasedResult, ReleaseReport

pytestmark = pytest.mark.timeout(2700)

BUCKET, HEADS = "servers", 2
QUESTIONS = {"What is the colour of the sky?": "The sky is blue.", "How many legs has a spider?": "It has eight legs."}
HYPERPARAMETERS = {
    "learningRate": 0.01,
    "perDeviceTrainBatchSize": 8,
    "gradientAccumulationSteps": 1,
    "maxLength": 64,
}
HELD_OUT = [
    {"instruction": f"{question} Sentence {number}.", "output": answer}
    for number in range(100, 112)
    for question, answer in QUESTIONS.items()
]
PROMPTS = [{"prompt": question, "expected": answer.rstrip(".")} for question, answer in QUESTIONS.items()]


@dataclass(frozen=True)
class Pod:
    """The pod of a release of `bot`."""

    server: Server
    volume: Path
    s3: Any
    folder: Path

    def publish(self, name: str) -> ReleasedResult:
        data = self.s3.client().get_object(Bucket=BUCKET, Key=f"{name}/out/manifest.json")["Body"].read()
        return ReleasedResult(uri=f"s3://{BUCKET}/{name}/out", manifest_sha256=hashlib.sha256(data).hexdigest())

    def release(self, name: str, **more: Any) -> ReleaseReport:
        volume = {"claimName": "adapters", "path": str(self.volume)}
        target = {"vllm": {"url": self.server.url, "adapterName": "bot", "volume": volume}}
        config = release_config(self.publish(name), target, storage={"endpoint": self.s3.endpoint}, **more)
        (self.folder / "config.json").write_text(config.model_dump_json(by_alias=True, exclude_none=True))
        log = self.folder / "termination-log"
        log.write_text("")
        command = [
            *(sys.executable, "-m", "finetune_trainer", "release", "--config", str(self.folder / "config.json")),
            *("--workspace", str(self.folder / "work"), "--volume", str(self.volume), "--termination-log", str(log)),
        ]
        keys = {"AWS_ACCESS_KEY_ID": self.s3.access_key, "AWS_SECRET_ACCESS_KEY": self.s3.secret_key}
        environment = os.environ | keys | {"NO_PROXY": "127.0.0.1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        return ReleaseReport.model_validate_json(log.read_text())

    def answers(self, model: str = "bot") -> list[str]:
        found = []
        for question in QUESTIONS:
            asked = {"messages": [{"role": "user", "content": question}], "max_tokens": 32, "temperature": 0}
            status, text = self.server.post("/v1/chat/completions", model=model, **asked)
            assert status == 200, text
            found.append(json.loads(text)["choices"][0]["message"]["content"].strip())
        return found


@pytest.fixture(scope="module")
def pod(make_result: Any, s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A server of the base alone, and three results: hardly trained, trained, and of a rank that it refuses."""
    folder = tmp_path_factory.mktemp("release")
    base = make_tiny_model(folder / "base", heads=HEADS)
    rows = "".join(json.dumps(row) + "\n" for row in HELD_OUT).encode()
    for name, steps, rank in (("weak", 2, 8), ("good", 50, 8), ("broad", 2, 24)):
        s3_server.client().put_object(Bucket=BUCKET, Key=f"{name}/held-out.jsonl", Body=rows)
        uri = f"s3://{BUCKET}/{name}"
        make_result(
            name,
            base,
            tuning={"method": "LoRA", "lora": {"rank": rank}},
            dataset={"train": {"uri": f"{uri}/rows.jsonl"}, "validation": {"uri": f"{uri}/held-out.jsonl"}},
            hyperparameters={**HYPERPARAMETERS, "maxSteps": steps},
            evaluation={"prompts": PROMPTS, "maxNewTokens": 32},
        )
    volume = folder / "adapters"
    volume.mkdir()
    template = s3_server.client().get_object(Bucket=BUCKET, Key="good/out/adapter/chat_template.jinja")["Body"].read()
    (folder / "chat_template.jinja").write_bytes(template)
    command = "vllm serve base --enable-lora --max-lora-rank 16 --chat-template chat_template.jinja"
    with serving(command, folder) as server:
        yield Pod(server, volume, s3_server, folder)


def test_a_better_result_replaces_a_worse_one_and_the_way_back_is_held(pod: Pod) -> None:
    first = pod.release("weak")
    assert (first.outcome, first.replaced) == ("Released", None), first.message
    assert pod.server.models() == {"base", "bot"}
    assert pod.answers() != list(QUESTIONS.values())

    second = pod.release("good", require={"verdict": "Better", "matchedPercent": 100})
    assert second.outcome == "Released", second.message
    assert second.replaced
    assert second.replaced.uri.endswith("/weak/out")
    compared = second.comparison
    assert compared
    assert (compared.verdict, compared.rows, compared.challenger_matched_percent) == ("Better", len(HELD_OUT), 100)
    assert pod.answers() == list(QUESTIONS.values())
    assert pod.server.models() == {"base", "bot"}

    back = pod.release("weak")
    assert (back.outcome, back.comparison and back.comparison.verdict) == ("Held", "Worse"), back.message
    assert pod.answers() == list(QUESTIONS.values())
    assert pod.server.models() == {"base", "bot"}


def test_the_loss_through_the_server_is_that_of_the_report(pod: Pod) -> None:
    """The same rows and tokens but the end of each answer, which a conversation in a request does not have."""
    manifest = pod.s3.client().get_object(Bucket=BUCKET, Key="good/out/manifest.json")["Body"].read()
    reported = json.loads(manifest)["result"]["evaluation"]
    found = pod.release("weak").comparison
    assert found
    assert found.champion_loss == pytest.approx(reported["after"], abs=0.1)
    assert reported["verdict"] == "Better"


def test_a_rank_that_the_server_refuses_is_named_with_its_flag(pod: Pod) -> None:
    pod.release("good")
    found = pod.release("broad")
    assert found.outcome == "Refused"
    assert "LoRA rank 24 is greater than max_lora_rank 16" in found.message
    assert "start it with `--max-lora-rank 32`" in found.message
    assert pod.answers() == list(QUESTIONS.values())


def test_the_link_on_the_volume_leads_a_restarted_server_to_the_released_adapter(pod: Pod) -> None:
    pod.release("good")
    assert pod.server.post("/v1/unload_lora_adapter", lora_name="bot")[0] == 200
    status, text = pod.server.post("/v1/load_lora_adapter", lora_name="bot", lora_path=str(pod.volume / "bot"))
    assert status == 200, text
    found = pod.release("good")
    assert (found.outcome, "answers with it already" in found.message) == ("Released", True)
    assert pod.answers() == list(QUESTIONS.values())
