"""The adapter that a job continues from, before a GPU is held: whose it is, whether it is safe, whether it fits."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_api.handoff import ExitCode, Manifest, ManifestFile, Outcome, Report
from finetune_api.status import PublishedJob
from finetune_trainer.commands.local_stores import connect_here
from finetune_trainer.errors import StorageDenied, TrainerError
from finetune_trainer.pipeline.inputs import load_inputs
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import Entry, sha256_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
}
PEFT = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "s3://bucket/model",
    "r": 2,
    "lora_alpha": 4,
}
FROM_URI = {"tuning": {"method": "LoRA", "initialAdapter": {"uri": "s3://bucket/parent/adapter"}}}
FROM_PARENT = {
    "lineage": {"parentRef": {"name": "parent"}},
    "tuning": {"method": "LoRA", "initialAdapter": {"fromParent": True}},
}


def factors(module: str, size: int = 8, rank: int = 2) -> dict[str, np.ndarray]:
    name = f"base_model.model.model.layers.{module}"
    return {
        f"{name}.lora_A.weight": np.ones((rank, size), np.float32),
        f"{name}.lora_B.weight": np.ones((size, rank), np.float32),
    }


FITTING = factors("0.self_attn.q_proj") | factors("1.self_attn.q_proj")


@pytest.fixture
def adapter(world: Any) -> Path:
    """An adapter that fits the model, in the result of another job."""
    (world.bucket / "model" / "config.json").write_text(json.dumps(CONFIG))
    layers = [f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer in (0, 1) for kind in "qo"]
    weights = {name: np.zeros((8, 8), np.float32) for name in layers}
    weights["model.embed_tokens.weight"] = np.zeros((512, 8), np.float32)
    save_file(weights, world.bucket / "model" / "model.safetensors")
    folder: Path = world.bucket / "parent" / "adapter"
    folder.mkdir(parents=True)
    write_adapter(folder)
    return folder


def write_adapter(folder: Path, tensors: dict[str, np.ndarray] = FITTING, **changes: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(PEFT | changes))
    save_file(tensors, folder / "adapter_model.safetensors")


def publish(folder: Path, *names: str) -> PublishedJob:
    """The job that published these files, as the operator saw it when it was complete."""
    files = [
        ManifestFile(path=f"adapter/{name}", size=1, sha256=sha256_file(folder / "adapter" / name)) for name in names
    ]
    report = Report(outcome=Outcome.PUBLISHED, reason="", message="", job_uid="u-0", config_sha256="")
    manifest = Manifest(namespace="team", name="parent", uid="u-0", config_sha256="", files=files, result=report)
    data = manifest.model_dump_json(by_alias=True).encode()
    (folder / "manifest.json").write_bytes(data)
    return PublishedJob(
        name="parent",
        uid="u-0",
        objective="Chat",
        output_uri="s3://bucket/parent",
        manifest_sha256=hashlib.sha256(data).hexdigest(),
    )


def publish_all(folder: Path) -> PublishedJob:
    return publish(folder, "adapter_config.json", "adapter_model.safetensors")


def check(world: Any, changes: dict[str, Any], parent: PublishedJob | None = None) -> Report:
    world.with_config(changes)
    world.config = world.config.model_copy(update={"parent": parent})
    return preflight(world.run)


EXPERTS = "1.mlp.experts"
PARAMETERS = ["experts.down_proj", "experts.gate_up_proj"]


def expert_factors(module: str, inputs: int, outputs: int, experts: int = 3, rank: int = 2) -> dict[str, np.ndarray]:
    name = f"base_model.model.model.layers.{module}"
    return {
        f"{name}.lora_A.weight": np.ones((experts * rank, inputs), np.float32),
        f"{name}.lora_B.weight": np.ones((outputs, experts * rank), np.float32),
    }


ON_EXPERTS = (
    FITTING
    | expert_factors(f"{EXPERTS}.base_layer", inputs=8, outputs=12)
    | expert_factors(EXPERTS, inputs=6, outputs=8)
)


@pytest.fixture
def mixture(world: Any, adapter: Path) -> Path:
    """An adapter on a model whose second layer has three experts, stored one by one and under another name."""
    weights = load_file(world.bucket / "model" / "model.safetensors")
    for expert in range(3):
        name = f"model.layers.1.block_sparse_moe.experts.{expert}"
        weights |= {f"{name}.{kind}.weight": np.zeros((6, 8), np.float32) for kind in ("w1", "w3")}
        weights[f"{name}.w2.weight"] = np.zeros((8, 6), np.float32)
    save_file(weights, world.bucket / "model" / "model.safetensors")
    write_adapter(adapter, ON_EXPERTS, target_parameters=PARAMETERS)
    return adapter


def refusal(world: Any, code: ExitCode, changes: dict[str, Any] = FROM_URI, parent: PublishedJob | None = None) -> str:
    with pytest.raises(TrainerError) as caught:
        check(world, changes, parent)
    assert caught.value.code is code
    assert not world.out.exists()
    return caught.value.message


def test_an_adapter_of_the_same_base_passes_and_fixes_rank_and_modules(world: Any, adapter: Path) -> None:
    report = check(world, FROM_URI)
    assert report.resolved
    assert (report.resolved.lora_rank, report.resolved.lora_alpha) == (2, 4)
    assert report.resolved.target_modules == ["q_proj"]
    assert report.lineage
    assert report.lineage.initial_adapter_sha256 == sha256_file(adapter / "adapter_model.safetensors")
    assert report.lineage.parent is None


def test_a_parents_adapter_passes_with_the_parent_in_the_lineage(world: Any, adapter: Path) -> None:
    parent = publish_all(adapter.parent)
    report = check(world, FROM_PARENT, parent)
    assert report.lineage
    assert report.lineage.parent == parent
    assert report.lineage.initial_adapter_sha256 == sha256_file(adapter / "adapter_model.safetensors")


def test_a_parent_whose_result_was_replaced_is_refused_with_what_to_do(world: Any, adapter: Path) -> None:
    parent = publish_all(adapter.parent)
    (adapter.parent / "manifest.json").write_bytes((adapter.parent / "manifest.json").read_bytes() + b"\n")
    sentence = refusal(world, ExitCode.MODEL_UNAVAILABLE, FROM_PARENT, parent)
    assert "the result of parent was replaced after that job completed" in sentence
    assert "restore the old one, or recreate this job" in sentence
    assert f"SHA-256 {sha256_file(adapter.parent / 'manifest.json')} instead of {parent.manifest_sha256}" in sentence


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_parent_of_which_nothing_is_read_is_proven_all_the_same(world: Any, adapter: Path, change: str) -> None:
    parent = publish_all(adapter.parent)
    assert check(world, {"lineage": {"parentRef": {"name": "parent"}}}, parent).lineage
    manifest = adapter.parent / "manifest.json"
    if change == "removed":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes() + b"\n")
    shutil.rmtree(world.out)
    sentence = refusal(world, ExitCode.MODEL_UNAVAILABLE, {"lineage": {"parentRef": {"name": "parent"}}}, parent)
    assert f"the result of parent was {change} after that job completed" in sentence


def test_a_parent_whose_result_was_removed_is_refused_with_what_to_do(world: Any, adapter: Path) -> None:
    parent = publish_all(adapter.parent)
    (adapter.parent / "manifest.json").unlink()
    sentence = refusal(world, ExitCode.MODEL_UNAVAILABLE, FROM_PARENT, parent)
    assert "the result of parent was removed after that job completed" in sentence
    assert "run parent again" in sentence


@pytest.mark.parametrize(
    ("name", "tensors", "changes"),
    [
        ("adapter_config.json", FITTING, {"revision": "other"}),
        ("adapter_model.safetensors", {name: tensor * 2 for name, tensor in FITTING.items()}, {}),
    ],
)
def test_a_file_that_is_not_that_of_the_parents_manifest_is_refused(
    world: Any, adapter: Path, name: str, tensors: dict[str, np.ndarray], changes: dict[str, Any]
) -> None:
    parent = publish_all(adapter.parent)
    before = sha256_file(adapter / name)
    write_adapter(adapter, tensors, **changes)
    sentence = refusal(world, ExitCode.MODEL_UNAVAILABLE, FROM_PARENT, parent)
    assert f"{name} does not match its SHA-256 in the manifest" in sentence
    assert f"({sha256_file(adapter / name)} instead of {before})" in sentence


def test_a_parent_without_an_adapter_is_refused(world: Any, adapter: Path) -> None:
    sentence = refusal(world, ExitCode.INVALID_CONFIG, FROM_PARENT, publish(adapter.parent))
    assert "parent published no adapter" in sentence


def test_without_the_operator_a_parent_cannot_be_found(world: Any, adapter: Path) -> None:
    assert "name the adapter with tuning.initialAdapter.uri" in refusal(world, ExitCode.INVALID_CONFIG, FROM_PARENT)


def test_an_adapter_on_another_base_is_refused_with_both_names(world: Any, adapter: Path) -> None:
    write_adapter(adapter, base_model_name_or_path="s3://bucket/other")
    sentence = refusal(world, ExitCode.INVALID_CONFIG)
    assert "was trained on s3://bucket/other, but spec.model.uri is s3://bucket/model" in sentence


@pytest.mark.parametrize(
    "lineage", ["", "[]", "{", '{"baseModel": {"files": {}}}', '{"baseModel": {"files": {"model.safetensors": "0"}}}']
)
def test_an_adapter_on_a_copy_of_the_base_passes_by_the_digests_of_its_lineage_alone(
    world: Any, adapter: Path, lineage: str
) -> None:
    write_adapter(adapter, base_model_name_or_path="s3://elsewhere/model")
    (adapter.parent / "lineage.json").write_text(lineage)
    refusal(world, ExitCode.INVALID_CONFIG)
    digest = sha256_file(world.bucket / "model" / "model.safetensors")
    (adapter.parent / "lineage.json").write_text(
        json.dumps({"baseModel": {"files": {"model.safetensors": digest, "config.json": "any"}}})
    )
    assert check(world, FROM_URI).outcome is Outcome.VALIDATED


@pytest.mark.parametrize("place", ["adapter", "kept-checkpoints/step-000002"])
def test_an_adapter_whose_base_has_other_weights_now_is_refused_though_the_name_is_the_same(
    world: Any, adapter: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"tuning": {"method": "LoRA", "initialAdapter": {"uri": f"s3://bucket/parent/{place}"}}}
    folder = adapter.parent / place
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder)
    base = {"uri": "hf://acme/base", "revision": "a" * 40, "files": {"model.safetensors": "0" * 64}}
    (adapter.parent / "lineage.json").write_text(json.dumps({"baseModel": base}))
    found = sha256_file(world.bucket / "model" / "model.safetensors")
    sentence = f"has the SHA-256 {'0' * 12}, here {found[:12]}: name the base that it was trained on, hf://acme/base@aa"
    assert check(world, changes).outcome is Outcome.VALIDATED  # S3 lists no digests: the weights are read by the pod
    with pytest.raises(TrainerError) as caught:
        load_inputs(world.run)
    assert (caught.value.code, sentence in caught.value.message) == (ExitCode.INVALID_CONFIG, True)
    shutil.rmtree(world.out)

    listed = type(world.storage).list

    def with_digests(store: Any, uri: str, *limit: int) -> list[Entry]:
        entries = listed(store, uri, *limit)
        if uri != "s3://bucket/model":
            return entries
        return [replace(one, sha256=sha256_file(world.bucket / "model" / one.key)) for one in entries]

    monkeypatch.setattr(type(world.storage), "list", with_digests)  # as a hub does
    assert sentence in refusal(world, ExitCode.INVALID_CONFIG, changes)
    base["files"] = {"model.safetensors": found}
    (adapter.parent / "lineage.json").write_text(json.dumps({"baseModel": base}))
    assert check(world, changes).outcome is Outcome.VALIDATED
    assert load_inputs(world.run).initial_adapter


def test_an_adapter_whose_result_may_not_be_read_passes_by_the_name_of_its_base(
    world: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = type(world.storage).read

    def denied(store: Any, uri: str, *limit: int) -> bytes | None:
        if uri == "s3://bucket/parent/lineage.json":
            raise StorageDenied("no")
        found: bytes | None = read(store, uri, *limit)
        return found

    monkeypatch.setattr(type(world.storage), "read", denied)
    assert check(world, FROM_URI).outcome is Outcome.VALIDATED


def test_an_adapter_that_is_mapped_without_its_result_passes_though_no_key_is_for_the_jobs_store(
    world: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `finetune-trainer run` with --map for model, rows, adapter and output."""
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    names = ("model", "rows.jsonl", "parent/adapter", "out")
    maps = {f"s3://bucket/{name}": world.bucket / name for name in names}
    world.with_config(FROM_URI | {"storage": {"endpoint": "http://minio.minio:9000"}})
    world.storage = connect_here(world.config.spec, world.stop, LocalStore(maps))
    assert preflight(world.run).outcome is Outcome.VALIDATED


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (factors("0.attn.c_attn"), "has none of its modules (c_attn)"),
        (FITTING | factors("7.self_attn.q_proj"), "no layer model.layers.7.self_attn.q_proj"),
        (factors("0.self_attn.q_proj", size=16), "is 8 by 8 in the model and 16 by 16 in the adapter"),
    ],
    ids=["another architecture", "more layers", "another width"],
)
def test_an_adapter_that_does_not_fit_the_model_is_refused(
    world: Any, adapter: Path, tensors: dict[str, np.ndarray], sentence: str
) -> None:
    write_adapter(adapter, tensors)
    assert sentence in refusal(world, ExitCode.INVALID_CONFIG)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task_type": "SEQ_CLS"}, "is for task SEQ_CLS, but only CAUSAL_LM can be continued"),
        ({"peft_type": "IA3"}, "is of type IA3, but only LORA can be continued"),
        ({"use_dora": True}, "more than plain LoRA (use_dora)"),
        ({"rank_pattern": {"q_proj": 4}}, "more than plain LoRA (rank_pattern)"),
        ({"alpha_pattern": ["q_proj"]}, "its alpha_pattern is not a map"),
        ({"alpha_pattern": {"q_proj": 2.5}}, "its alphaPattern is invalid"),
        ({"alpha_pattern": {"q_proj(": 2}}, "the pattern q_proj( of an adapter's modules is not a regular expression"),
        (
            {"alpha_pattern": {"q_proj": 2, ".*": 3}},
            "be continued: its alphaPattern has 2 for q_proj and 3 for .*, and",
        ),
        ({"init_lora_weights": "pissa"}, "more than plain LoRA (init_lora_weights pissa)"),
        ({"r": 3}, "more than plain LoRA (rank_pattern)"),
        ({"lora_alpha": "high"}, "its alpha is invalid"),
    ],
)
def test_an_adapter_that_would_be_continued_as_another_is_refused(
    world: Any, adapter: Path, changes: dict[str, Any], sentence: str
) -> None:
    write_adapter(adapter, **changes)
    assert sentence in refusal(world, ExitCode.INVALID_CONFIG)


EMBEDDINGS = {"base_model.model.model.embed_tokens.weight": np.ones((512, 8), np.float32)}


def test_the_modules_that_an_adapter_has_in_full_are_continued_and_no_others(world: Any, adapter: Path) -> None:
    write_adapter(adapter, FITTING | EMBEDDINGS, modules_to_save=["embed_tokens"])
    report = check(world, FROM_URI)
    assert report.resolved
    assert report.resolved.modules_to_save == ["model.embed_tokens"]
    tuning = FROM_URI["tuning"] | {"lora": {"modulesToSave": ["model.norm"]}}
    shutil.rmtree(world.out)
    assert "tuning.lora.modulesToSave is model.norm, but the adapter s3://bucket/parent/adapter has model.embed" in (
        refusal(world, ExitCode.INVALID_CONFIG, {"tuning": tuning})
    )


def test_an_adapter_with_whole_modules_is_not_continued_on_a_base_that_is_shared_out(world: Any, adapter: Path) -> None:
    write_adapter(adapter, FITTING | EMBEDDINGS, modules_to_save=["embed_tokens"])
    tuning = FROM_URI["tuning"] | {"method": "LoRA", "lora": {"shardBase": True}}
    spec = FROM_URI | {"tuning": tuning, "resources": {"gpusPerNode": 2}}
    assert "remove tuning.lora.shardBase" in refusal(world, ExitCode.INVALID_CONFIG, spec)


@pytest.mark.parametrize(
    ("tensors", "names", "sentence"),
    [
        ({"base_model.model.model.embed_tokens.weight": np.ones((514, 8), np.float32)}, ["embed_tokens"],
         "embed_tokens.weight is 512 by 8 in the model and 514 by 8 in the adapter"),
        (EMBEDDINGS, None, "more than plain LoRA (base_model.model.model.embed_tokens.weight)"),
        ({}, ["embed_tokens"], "more than plain LoRA (modules_to_save)"),
    ],
    ids=["a larger vocabulary", "not in the configuration", "not in the file"],
)  # fmt: skip
def test_an_adapter_whose_whole_modules_do_not_fit_is_refused(
    world: Any, adapter: Path, tensors: dict[str, np.ndarray], names: list[str] | None, sentence: str
) -> None:
    write_adapter(adapter, FITTING | tensors, modules_to_save=names)
    assert sentence in refusal(world, ExitCode.INVALID_CONFIG)


@pytest.mark.parametrize("objective", ["Instruction", "Chat", "DPO", "KTO"])
def test_a_reward_models_adapter_cannot_be_continued_by_a_language_model(
    world: Any, adapter: Path, objective: str
) -> None:
    score = {"base_model.model.score.weight": np.ones((1, 8), np.float32)}
    write_adapter(adapter, FITTING | score, task_type="SEQ_CLS", modules_to_save=["score"])
    assert "is for task SEQ_CLS" in refusal(world, ExitCode.INVALID_CONFIG, FROM_URI | {"objective": objective})


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickled_adapter_is_refused_unopened(
    world: Any, adapter: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / name)
    read = world.storage.read_range
    opened: list[str] = []

    def noted(uri: str, *span: int) -> bytes:
        opened.append(uri)
        return bytes(read(uri, *span))

    monkeypatch.setattr(world.storage, "read_range", noted)
    assert "a pickle file, which can run code when loaded" in refusal(world, ExitCode.MODEL_UNAVAILABLE)
    assert [uri for uri in opened if "adapter" in uri] == []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "there is no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("["), "is not a JSON object"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "is not a JSON object"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "there is no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"{}"), "adapter_model.safetensors"),
    ],
)
def test_a_folder_that_is_not_an_adapter_is_refused(
    world: Any, adapter: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(adapter)
    assert sentence in refusal(world, ExitCode.MODEL_UNAVAILABLE)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"rank": 4}, "tuning.lora.rank is 4, but the adapter s3://bucket/parent/adapter has 2"),
        ({"alpha": 8}, "tuning.lora.alpha is 8"),
        ({"useRslora": True}, "tuning.lora.useRslora is true"),
        ({"targetModules": ["o_proj"]}, "tuning.lora.targetModules is o_proj"),
        (
            {"rankPattern": {"q_proj": 4}},
            'tuning.lora.rankPattern is {"q_proj": 4}, but the adapter s3://bucket/parent/adapter has none: remove',
        ),
    ],
)
def test_a_setting_that_the_adapter_contradicts_is_refused_by_its_field(
    world: Any, adapter: Path, asked: dict[str, Any], sentence: str
) -> None:
    changes = {"tuning": FROM_URI["tuning"] | {"lora": asked}}
    assert sentence in refusal(world, ExitCode.INVALID_CONFIG, changes)


def test_an_adapter_with_patterns_passes_and_fixes_those_that_match_a_module(world: Any, adapter: Path) -> None:
    own = factors("0.self_attn.q_proj", rank=4) | factors("1.self_attn.q_proj")
    patterns = {"rank_pattern": {r"layers\.0\..*": 4, "o_proj": 8}, "alpha_pattern": {"q_proj": 16}}
    write_adapter(adapter, own, **patterns)
    report = check(world, FROM_URI)
    assert report.resolved
    assert (report.resolved.lora_rank, report.resolved.rank_pattern) == (2, {r"layers\.0\..*": 4})
    assert report.resolved.alpha_pattern == {"q_proj": 16}


def test_what_the_job_sets_as_the_adapter_has_it_passes_and_dropout_stays_its_own(world: Any, adapter: Path) -> None:
    lora = {"rank": 2, "alpha": 4, "targetModules": ["q_proj"], "dropout": 0.25}
    report = check(world, {"tuning": FROM_URI["tuning"] | {"lora": lora}})
    assert report.resolved
    assert report.resolved.lora_dropout == 0.25


def test_an_adapter_that_is_also_on_experts_is_continued_on_them(world: Any, mixture: Path) -> None:
    report = check(world, FROM_URI)
    assert report.resolved
    assert (report.resolved.target_experts, report.resolved.target_modules) == (True, ["q_proj"])
    assert (report.resolved.lora_rank, report.resolved.lora_dropout) == (2, 0.0)


@pytest.mark.parametrize(
    ("tensors", "changes", "sentence"),
    [
        (ON_EXPERTS, {"target_parameters": None}, "more than plain LoRA (target_parameters)"),
        (ON_EXPERTS, {"target_parameters": ["mlp.weight"]}, "more than plain LoRA (target_parameters)"),
        (FITTING, {"target_parameters": PARAMETERS}, "more than plain LoRA (target_parameters)"),
        (ON_EXPERTS, {"rank_pattern": {"gate_up_proj": 4}}, "more than plain LoRA (rank_pattern)"),
        (ON_EXPERTS, {"alpha_pattern": {"gate_up_proj": 4}}, "more than plain LoRA (alpha_pattern)"),
        (ON_EXPERTS | expert_factors(EXPERTS, 6, 8, rank=3), {"r": 2}, "more than plain LoRA (rank_pattern)"),
        (
            ON_EXPERTS | expert_factors(EXPERTS, 6, 8, experts=4),
            {},
            "model.layers.1.mlp.experts are 3 of 8 by 6 and 3 of 12 by 8 in the model and 3 of 12 by 8 and 4 of 8 by 6",
        ),
        (ON_EXPERTS | expert_factors("0.mlp.experts", 6, 8), {}, "has no experts in model.layers.0.mlp.experts"),
    ],
)
def test_an_adapter_on_other_experts_than_the_models_is_refused(
    world: Any, mixture: Path, tensors: dict[str, np.ndarray], changes: dict[str, Any], sentence: str
) -> None:
    write_adapter(mixture, tensors, **{"target_parameters": PARAMETERS} | changes)
    assert sentence in refusal(world, ExitCode.INVALID_CONFIG)


def test_dropout_is_refused_for_an_adapter_that_is_also_on_experts(world: Any, mixture: Path) -> None:
    changes = {"tuning": FROM_URI["tuning"] | {"lora": {"dropout": 0.25}}}
    assert "which have none: remove tuning.lora.dropout" in refusal(world, ExitCode.INVALID_CONFIG, changes)


def test_an_adapter_is_not_put_on_experts_by_the_job_that_continues_it(world: Any, mixture: Path) -> None:
    write_adapter(mixture)
    changes = {"tuning": FROM_URI["tuning"] | {"lora": {"targetExperts": True}}}
    sentence = refusal(world, ExitCode.INVALID_CONFIG, changes)
    assert "tuning.lora.targetExperts is true, but the adapter s3://bucket/parent/adapter has false" in sentence


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_an_adapter_on_experts_that_the_model_does_not_have_is_refused(world: Any, adapter: Path, method: str) -> None:
    changes = {"tuning": {"method": method, "lora": {"targetExperts": True}}}
    sentence = refusal(world, ExitCode.INVALID_CONFIG, changes)
    assert sentence == "the model s3://bucket/model has no experts; remove tuning.lora.targetExperts"
