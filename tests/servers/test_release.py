"""Releases to a real vLLM. The adapters are random: the held-out answers are what one of them answers, so that it is
better on them than any other."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released_results import publish_result, release_config
from safetensors.numpy import load_file, save, save_file
from tiny_model import HIDDEN, LAYERS, make_tiny_model
from vllm_server import Server, serving

from finetune_api.handoff import SERVER_KEY_FILE
from finetune_api.release import ReleasedResult, ReleaseReport
from finetune_trainer.release.release import release
from finetune_trainer.storage.local import LocalStore

pytestmark = pytest.mark.timeout(2700)

QUESTIONS = [f"What is the colour of number {number}?" for number in range(24)]
HEADS = 2
"""vLLM serves no narrower heads on a CPU."""
SECRET = "hunter2"
SHARPER = 20
"""Factor of the random base's embeddings, without which its answers are all equally likely."""


def adapter_weights(seed: int, rank: int) -> bytes:
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        at = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{at}.lora_A.weight"] = generator.normal(0, 1, (rank, HIDDEN)).astype(np.float32)
        tensors[f"{at}.lora_B.weight"] = generator.normal(0, 1, (HIDDEN, rank)).astype(np.float32)
    return bytes(save(tensors))


def adapter_config(rank: int) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["o_proj"], "bias": "none"}


@dataclass
class World:
    """A server, a volume that it sees at the same path, and results."""

    server: Server
    folder: Path
    results: dict[str, ReleasedResult] = field(default_factory=dict)
    maps: dict[str, Path] = field(default_factory=dict)

    def publish(self, name: str, seed: int, rank: int, answers: dict[str, str], tokenizer: Path | None = None) -> None:
        uri = f"s3://bucket/{name}"
        self.maps[uri] = self.folder / name
        turns = [
            [{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in answers.items()
        ]
        question, answer = next(iter(answers.items()))
        self.results[name] = publish_result(
            self.folder / name,
            uri,
            adapter=adapter_config(rank),
            weights=adapter_weights(seed, rank),
            rows=[{"messages": one} for one in turns],
            tokenizer=tokenizer or self.folder / "tokenizer",
            spec={
                "evaluation": {"prompts": [{"prompt": question, "expected": re.escape(answer[:8])}], "maxNewTokens": 8}
            },
        )

    def release(self, name: str, path: str = "", *, has_key: bool = True, **more: Any) -> ReleaseReport:
        volume = self.folder / "adapters"
        target = {
            "url": self.server.url,
            "adapterName": "bot",
            "volume": {"claimName": "a", "path": path or str(volume)},
        }
        config = release_config(self.results[name], {"vllm": target}, **more)
        secrets = self.folder / ("secrets" if has_key else "no-secrets")
        return release(config, LocalStore(self.maps), self.folder / "work", volume, secrets=secrets)

    def ask(self, model: str, question: str) -> str:
        turns = [{"role": "user", "content": question}]
        asked = {"model": model, "messages": turns, "max_tokens": 8, "temperature": 0}
        status, text = self.server.post("/v1/chat/completions", **asked)
        assert status == 200, text
        return str(json.loads(text)["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("release")
    base = make_tiny_model(folder / "base", heads=HEADS)
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= SHARPER
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (folder / "adapters").mkdir()
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder / "tokenizer")
    (folder / "secrets").mkdir()
    (folder / "secrets" / SERVER_KEY_FILE).write_text(SECRET)
    with serving("vllm serve base --enable-lora --max-lora-rank 16", folder, SECRET) as server:
        found = World(server, folder)
        first = folder / "by-hand"
        first.mkdir()
        (first / "adapter_config.json").write_text(json.dumps(adapter_config(8)))
        (first / "adapter_model.safetensors").write_bytes(adapter_weights(1, 8))
        status, text = server.post("/v1/load_lora_adapter", lora_name="by-hand", lora_path=str(first))
        assert status == 200, text
        answers = {question: found.ask("by-hand", question) for question in QUESTIONS}
        answers = {question: answer for question, answer in answers.items() if answer}
        assert len(answers) >= 20
        server.post("/v1/unload_lora_adapter", lora_name="by-hand")
        shutil.rmtree(first)
        for name, seed, rank in (("good", 1, 8), ("weak", 2, 8), ("broad", 3, 24)):
            found.publish(name, seed, rank, answers)
        yield found


def test_a_better_result_replaces_a_worse_one_and_the_way_back_is_held(world: World) -> None:
    first = world.release("weak")
    assert (first.outcome, first.replaced) == ("Released", None), first.message
    assert world.server.models() == {"base", "bot"}
    before = world.ask("bot", QUESTIONS[0])

    second = world.release("good", require={"matchedPercent": 100})
    assert second.outcome == "Released", second.message
    assert second.replaced
    assert second.replaced.uri == "s3://bucket/weak"
    compared = second.comparison
    assert compared
    assert compared.verdict == "Better"
    assert compared.rows >= 20
    assert compared.challenger_matched_percent == 100
    after = world.ask("bot", QUESTIONS[0])
    assert after != before
    assert world.server.models() == {"base", "bot"}

    back = world.release("weak")
    assert (back.outcome, back.comparison and back.comparison.verdict) == ("Held", "Worse"), back.message
    assert back.comparison
    assert back.comparison.champion_loss == pytest.approx(compared.challenger_loss, rel=1e-3)
    assert world.ask("bot", QUESTIONS[0]) == after
    assert world.server.models() == {"base", "bot"}


def test_a_server_that_asks_for_a_key_refuses_a_release_without_it(world: World) -> None:
    found = world.release("good", has_key=False)
    assert found.outcome == "Refused"
    assert "the server answers 401: Unauthorized: set target.vllm.credentialsSecretRef" in found.message


def test_a_rank_that_the_server_refuses_is_named_with_its_flag(world: World) -> None:
    world.release("good")
    answer = world.ask("bot", QUESTIONS[0])
    found = world.release("broad")
    assert found.outcome == "Refused"
    assert "LoRA rank 24 is greater than max_lora_rank 16" in found.message
    assert "start it with `--max-lora-rank 32`" in found.message
    assert world.ask("bot", QUESTIONS[0]) == answer


def test_the_link_on_the_volume_leads_to_the_released_adapter(world: World) -> None:
    """A restarted server is given it by `--lora-modules`, which loads in the same way."""
    world.release("good")
    assert world.server.post("/v1/unload_lora_adapter", lora_name="bot")[0] == 200
    link = str(world.folder / "adapters" / "bot")
    status, text = world.server.post("/v1/load_lora_adapter", lora_name="bot", lora_path=link)
    assert status == 200, text
    found = world.release("good")
    assert (found.outcome, "bot answers with it; before: s3://bucket/good" in found.message) == ("Released", True)
    found = world.release("good")
    assert (found.outcome, "answers with it already" in found.message) == ("Released", True)


def test_a_result_of_another_chat_template_is_refused_unless_the_release_accepts_its_tokens(world: World) -> None:
    world.release("good")
    other = world.folder / "other-template"
    shutil.copytree(world.folder / "tokenizer", other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("'<|im_start|>' +", "'### ' +")
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    answers = {question: world.ask("bot", question) or "None." for question in QUESTIONS}
    before = world.ask("bot", QUESTIONS[0])
    world.publish("other", 1, 8, answers, other)

    refused = world.release("other")
    assert refused.outcome == "Refused", refused.message
    assert r"writes another text, '…user\nHello<|im_end|>\n<|im_start|>assistant\n' in place of" in refused.message
    assert "/chat_template.jinja`" in refused.message
    assert world.ask("bot", QUESTIONS[0]) == before

    accepted = world.release("other", require={"tokens": "Any"})
    assert accepted.outcome == "Released", accepted.message
    assert "the server does not read what the result was trained on" in accepted.message


def test_a_volume_that_the_server_does_not_mount_is_named(world: World) -> None:
    found = world.release("weak", path="/nowhere")
    assert found.outcome == "Refused"
    assert "No adapter found for" in found.message
    assert "mount the claim of target.vllm.volume at its path in the server" in found.message
