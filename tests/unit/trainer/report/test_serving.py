import json
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml

from finetune_trainer.report.serving import (
    Place,
    adapter_obstacles,
    ask_snippet,
    fetch_base,
    fetch_result,
    highest_rank,
    kserve_adapter,
    kserve_llm_adapter,
    kserve_merged,
    max_lora_rank,
    peft_snippet,
    servability_table,
    service_name,
    vllm_adapter_snippet,
)

GOOD: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_rslora": True,
}
FOLDER = "/mnt/models/adapter"
PLACE = Place("support-bot", "s3://bucket/out", "hf://owner/base", "a" * 40, "http://minio:9000")


def test_a_plain_adapter_of_rank_16_has_no_obstacle() -> None:
    assert adapter_obstacles(GOOD) == []
    assert adapter_obstacles(GOOD | {"target_modules": "all-linear", "modules_to_save": None}) == []


@pytest.mark.parametrize(
    ("rank", "flag"), [(1, 8), (16, 16), (17, 32), (24, 32), (64, 64), (300, 320), (512, 512), (513, None)]
)
def test_the_least_value_that_the_server_takes_is_named(rank: int, flag: int | None) -> None:
    assert max_lora_rank(rank) == flag


@pytest.mark.parametrize(
    ("change", "reason", "is_final"),
    [
        ({"r": 32}, "rank 32 is above the server's default of 16", False),
        ({"r": 24}, "24 itself is not a value that it accepts", False),
        ({"rank_pattern": {"q_proj": 64}, "alpha_pattern": {"q_proj": 64}}, "rank 64 is above", False),
        ({"r": 1024}, "rank 1024 is above 512", True),
        ({"modules_to_save": ["lm_head"]}, "whole modules are trained in addition to the adapter: lm\\_head", True),
        ({"use_dora": True}, "DoRA", True),
        ({"bias": "lora_only"}, "biases are trained (lora\\_only)", True),
        (
            {"target_modules": ["q_proj", "model.embed_tokens"]},
            "embeddings or output head (model.embed\\_tokens) are",
            True,
        ),
        ({"target_modules": ["lm_head"]}, "embeddings or output head", True),
        ({"target_parameters": ["experts.down_proj"]}, "not tried with an adapter on experts", True),
    ],
)
def test_each_obstacle_comes_with_its_reason_and_a_fix(change: dict[str, Any], reason: str, is_final: bool) -> None:
    (found,) = adapter_obstacles(GOOD | change)
    assert reason in found.reason
    assert found.is_final is is_final
    assert ("`--max-lora-rank" in found.fix) is not is_final


@pytest.mark.parametrize(
    ("change", "is_reported"),
    [
        ({"rank_pattern": {"q_proj": 4}, "use_rslora": False}, True),
        ({"alpha_pattern": {"q_proj": 4}}, True),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}, "use_rslora": False}, False),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}}, True),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 16}}, False),
        ({"rank_pattern": {"q_proj": 16}}, False),
        ({"rank_pattern": {}, "alpha_pattern": None}, False),
    ],
)
def test_scalings_of_single_modules_need_a_server_that_reads_them(change: dict[str, Any], is_reported: bool) -> None:
    table = servability_table(GOOD | change, has_merged=False, is_reward_model=False)
    assert ("since vLLM 0.32" in table) is is_reported
    assert ("use vLLM 0.32 or later, or set `output.merge`" in table) is is_reported
    assert not any(one.is_final for one in adapter_obstacles(GOOD | change))


def test_the_rank_of_an_adapter_is_that_of_its_largest_module() -> None:
    assert highest_rank({"r": 8, "rank_pattern": {"q_proj": 64, "k_proj": 2}}) == 64
    assert highest_rank({"r": 8, "rank_pattern": {"q_proj": 4}}) == 8


def test_the_table_answers_for_every_folder_and_server() -> None:
    table = servability_table(GOOD | {"r": 24}, has_merged=False, is_reward_model=False)
    assert "| `adapter/` | PEFT         | yes         |" in table
    assert "start it with `--max-lora-rank 32`" in table
    assert "it was not requested" in table
    assert "no server for text generation" in servability_table(GOOD, has_merged=True, is_reward_model=True)


def test_a_local_result_is_not_fetched_from_a_store_that_does_not_have_it() -> None:
    local = replace(PLACE, base="s3://bucket/base", is_local=True)
    assert fetch_result(local, "adapter") == "# adapter: in the folder of this report"
    assert fetch_base(local).startswith("# base: the folder that --map names for s3://bucket/base")
    assert fetch_base(replace(PLACE, is_local=True)).startswith("hf download owner/base")


def test_a_base_of_another_hub_is_fetched_from_there() -> None:
    mirror = replace(PLACE, hub_endpoint="https://hub.example.org")
    assert fetch_base(mirror).startswith("HF_ENDPOINT=https://hub.example.org hf download owner/base")


def test_kserve_manifests_are_yaml_that_names_the_folders() -> None:
    merged = yaml.safe_load(kserve_merged(PLACE))
    assert (merged["apiVersion"], merged["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert merged["spec"]["predictor"]["model"]["storageUri"] == "s3://bucket/out/merged/"
    assert merged["spec"]["predictor"]["model"]["args"] == ["--model_name=tuned"]
    predictor = yaml.safe_load(kserve_adapter(PLACE, 24))["spec"]["predictor"]
    assert [one["uri"] for one in predictor["storageUris"]] == [
        f"hf://owner/base:{'a' * 40}",
        "s3://bucket/out/adapter/",
    ]
    assert "--max-lora-rank=32" in predictor["model"]["args"]
    assert {f"--chat-template={FOLDER}/chat_template.jinja", f"--generation-config={FOLDER}"} <= {
        *predictor["model"]["args"]
    }


def test_an_llm_service_of_kserve_names_the_adapter_its_rank_and_its_template() -> None:
    manifest = yaml.safe_load(kserve_llm_adapter(PLACE, 24))
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1alpha2", "LLMInferenceService")
    assert manifest["spec"]["model"] == {
        "uri": f"hf://owner/base:{'a' * 40}",
        "lora": {"maxRank": 32, "adapters": [{"name": "tuned", "uri": "s3://bucket/out/adapter/"}]},
    }
    assert list(manifest["spec"]["template"]) == ["containers"]
    (server,) = manifest["spec"]["template"]["containers"]
    assert server["args"] == [
        "--chat-template=/mnt/lora/tuned/chat_template.jinja",
        "--generation-config=/mnt/lora/tuned",
    ]


def test_the_base_is_called_otherwise_if_the_job_has_the_name_of_the_adapter() -> None:
    place = replace(PLACE, name="Tuned")
    model = yaml.safe_load(kserve_llm_adapter(place, 24))["spec"]["model"]
    assert (model["name"], model["lora"]["adapters"][0]["name"]) == ("tuned-base", "tuned")
    arguments = yaml.safe_load(kserve_adapter(place, 24))["spec"]["predictor"]["model"]["args"]
    assert {"--model_name=tuned-base", f"--lora-modules=tuned={FOLDER}"} <= {*arguments}


@pytest.mark.parametrize("base", ["s3://bucket/models/base", "s3://bucket/models/base/"])
def test_kserve_copies_no_neighbour_whose_name_begins_with_that_of_the_base(base: str) -> None:
    place = replace(PLACE, base=base)
    assert yaml.safe_load(kserve_llm_adapter(place, 16))["spec"]["model"]["uri"] == "s3://bucket/models/base/"
    uris = yaml.safe_load(kserve_adapter(place, 16))["spec"]["predictor"]["storageUris"]
    assert uris[0]["uri"] == "s3://bucket/models/base/"


def test_a_base_in_a_claim_is_served_from_it() -> None:
    place = replace(PLACE, base="pvc://models/llama/8b/")
    assert fetch_base(place) == "# base: llama/8b in the PersistentVolumeClaim models, mounted or copied"
    assert yaml.safe_load(kserve_llm_adapter(place, 16))["spec"]["model"]["uri"] == "pvc://models/llama/8b"
    for base, folder in (("pvc://models/llama/8b/", "base/llama/8b"), ("pvc://models", "base")):
        predictor = yaml.safe_load(kserve_adapter(replace(PLACE, base=base), 16))["spec"]["predictor"]
        assert predictor["storageUris"][0] == {"uri": base.rstrip("/"), "mountPath": "/mnt/models/base"}
        assert f"--model_dir=/mnt/models/{folder}" in predictor["model"]["args"]


def test_kserve_is_given_the_address_of_another_hub_if_the_base_is_there() -> None:
    mirror = replace(PLACE, hub_endpoint="https://hub.example.org")
    (initializer,) = yaml.safe_load(kserve_llm_adapter(mirror, 16))["spec"]["template"]["initContainers"]
    assert initializer == {
        "name": "storage-initializer",
        "env": [{"name": "HF_ENDPOINT", "value": "https://hub.example.org"}],
    }
    stored = replace(mirror, base="s3://bucket/base")
    assert "initContainers" not in kserve_llm_adapter(stored, 16)


@pytest.mark.parametrize("output", ["s3://b/a: b # c", "s3://b/'\"", "s3://b/{x}", "s3://b/- y"])
def test_odd_addresses_stay_one_value_in_yaml_and_one_word_of_a_shell(output: str) -> None:
    place = Place("n", output, output)
    assert yaml.safe_load(kserve_merged(place))["spec"]["predictor"]["model"]["storageUri"] == f"{output}/merged/"
    assert shlex.split(fetch_result(place, "merged"))[-2:] == [f"{output}/merged", "merged"]
    assert shlex.split(fetch_base(place))[-2] == output


@pytest.mark.parametrize(
    ("name", "label"),
    [("support-bot", "support-bot"), ("a.b.c", "a-b-c"), ("1st", "m-1st"), ("x" * 60, "x" * 50), ("---", "m")],
)
def test_the_service_has_a_name_that_dns_takes(name: str, label: str) -> None:
    assert service_name(name) == label


@pytest.mark.parametrize(("namespace", "longest"), [("ml", 50), ("team-of-support", 37), ("n" * 63, 1)])
def test_name_and_namespace_of_an_inference_service_fit_into_the_host_that_kserve_makes(
    namespace: str, longest: int
) -> None:
    place = replace(PLACE, name="x" * 60, namespace=namespace)
    for manifest in (kserve_merged(place), kserve_adapter(place, 16)):
        assert yaml.safe_load(manifest)["metadata"]["name"] == "x" * longest
    assert yaml.safe_load(kserve_llm_adapter(place, 16))["metadata"]["name"] == "x" * 50


def test_every_command_names_the_adapters_tokenizer_if_that_of_the_base_reads_otherwise() -> None:
    place = replace(PLACE, needs_tokenizer=True)
    assert vllm_adapter_snippet(place, 8).endswith(" --tokenizer adapter")
    for manifest in (kserve_adapter(place, 8), kserve_llm_adapter(place, 8)):
        assert re.search(r"- --tokenizer=/mnt/\S+\n", manifest)
    for usual in (vllm_adapter_snippet(PLACE, 8), kserve_adapter(PLACE, 8), kserve_llm_adapter(PLACE, 8)):
        assert "--tokenizer" not in usual


def test_snippets_are_python_and_words_of_a_shell() -> None:
    for is_chat in (True, False):
        snippet = peft_snippet("Qwen3_5ForConditionalGeneration", is_chat=is_chat)
        compile(snippet, "snippet", "exec")
        assert ("apply_chat_template" in snippet) is is_chat
        assert "import AutoTokenizer, GenerationConfig, Qwen3_5ForConditionalGeneration\n" in snippet
        assert 'Qwen3_5ForConditionalGeneration.from_pretrained("base")' in snippet
    words = shlex.split(vllm_adapter_snippet(PLACE, 24))
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert words[words.index("--generation-config") + 1] == "adapter"
    for is_chat, asked in ((True, "messages"), (False, "prompt")):
        body = json.loads(shlex.split(ask_snippet(is_chat=is_chat))[-1])
        assert {"model", asked} < set(body)
        assert body["model"] == "tuned"
