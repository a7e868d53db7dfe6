"""Every rule of the CRD, once accepted and once refused by a real API server, with its message and the field's path."""

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from finetune_api import names
from finetune_api.evaluate_mode import WITHOUT_EFFECT
from finetune_api.schema.crd import build_crd

ROOT = Path(__file__).parents[3]
Spec = dict[str, Any]

SUBSET = "config and split are for a whole dataset of a hub"
ONE_OR_SEVERAL = "give either uri or sources"
HUB_ROWS = {"uri": "hf://datasets/owner/rows"}
S3 = "must be s3://bucket/path"
URI = "a path segment"
LORA = "lora has no effect with method Full"
EXPERTS = "an adapter on experts has no dropout"
QUANTIZATION = "quantization needs method QLoRA or Auto"
VALIDATION = "give either validation or validationSplitPercent"
LENGTH = "give at most one of numTrainEpochs and maxSteps"
WARMUP = "warmupSteps must be a fraction"
KEYS = "each key must match"
TOPOLOGY = "modes Required and Preferred need a level"
EARLY = "earlyStopping needs held-out rows"
ABILITY = {"ability": {"uri": "s3://data/questions.jsonl"}}
APART = {"resources": {"merge": {}}}
EVERY_STEP = {"evaluation": {"steps": 1}}
EXPECTING = {"prompts": [{"prompt": "Why?", "expected": "because"}]}
MODEL = "must be hf://owner/name, pvc://claim/path, or s3://bucket/path"
DATA = "must be hf://datasets/owner/name[/path], pvc://claim/path, or s3://bucket/path"
REVISION = "revision is only for hf:// URIs"
REPO = "must be owner/name of a repository for models"
IMAGE = "must be host/path of a repository, in lower case and with the registry's host"
BRANCH = "a push goes to a branch, and revision is a commit"
TOKEN = "credentialsSecretRef is only for hf:// URIs"
ONE_OBJECT = "sha256 is only for a single object"
CONTINUED = "method Full trains no adapter"
ADAPTER = "give the adapter either by uri or by fromParent"
PARENT = "initialAdapter.fromParent needs a parent"
CLAIM = "give the claim either by resourceClaimName or by resourceClaimTemplateName"
VOLUME_SIZE = "sizeLimit is required with storageClassName"
REWARD_SOURCE = "give the reward model either by uri or by jobRef"
REWARDS = "give either rewardModel or rewards"
TARGET = "targetTokens is required with type Length"
PATTERN = "pattern is required with type Regex"
ANSWER = "answer is required with type Answer"
SERVICE = "service is required with type Service"
GRADER = {"type": "Service", "service": {"endpoint": "http://grader:8000"}}
GROUP = "pattern is required with extract Pattern"
TOLERANCE = "absoluteTolerance and relativeTolerance are only for match Numeric"
CASE = "ignoreCase is only for match Exact"
SCHEMA = "match JsonSchema needs one schema"
JSON_PART = "JSON is the whole answer or the group of a pattern"
NEEDS_REWARD = "objective RLHF needs a reward"
NO_LOSS = "RLHF has no held-out loss"
NO_MERGE = "objective RewardModel publishes no merged model"
NO_FULL_MODEL = "GGUF files are made from the full model"
NO_ANSWERS = "a reward model generates no answers"
PACKING = "packing works with objectives"
FLASH = "FlashAttention works with objectives"
DROPOUT = "objectives DPO, KTO, RLHF and Distillation train without dropout"
ROWS_OF_KTO = "objective KTO measures its divergence over the rows of a batch"
WANDB_KEY = "credentialsSecretRef is required with mode Online"
WANDB_URL = "endpoint and caSecretRef have no effect with mode Offline"
MERGED = "engine VLLM gets the adapter merged into its base"
LINEAR = "engine VLLM gets adapters on linear layers only"
ALONE = "engine VLLM samples in one process"
OF_VLLM = "gpuMemoryFraction is of engine VLLM"
GROUPS = "a step must contain whole groups of answers"
OUTSIDE = "output.uri is below a folder of the rows"
UNKNOWN_RESOURCE = "not a resource of a container"
WHOLE_DEVICE = "a request of a device must be its limit"

BASE: Spec = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
}
SPLIT = {"dataset": {"train": {"uri": "s3://data/train.jsonl"}, "validationSplitPercent": 10}}
FILE = {"dataset": {"train": {"uri": "s3://data/train.jsonl"}, "validation": {"uri": "s3://data/val.jsonl"}}}
WSD = {"lrSchedulerType": "warmup_stable_decay"}

LENGTHS = [{"type": "Length", "targetTokens": 8}]


def source(uri: str, **fields: Any) -> Spec:
    return {"dataset": {"train": {"uri": uri} | fields}}


def answers(**fields: Any) -> Spec:
    return rlhf(rewards=[{"type": "Answer", "answer": {"match": "Exact"} | fields}])


def blend(*sources: Spec, **fields: Any) -> Spec:
    """Return a job with sources of rows, each with a URI of its own unless it has one."""
    named = [{"uri": f"s3://data/{at}.jsonl"} | one for at, one in enumerate(sources)]
    return {"dataset": {"train": {"sources": named} | fields}}


EXISTS_WITH_VALUE = {"operator": "Exists", "value": "x"}
REQUIRED_NODES = "spec.scheduling.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"


def tolerating(toleration: Spec) -> Spec:
    return {"scheduling": {"tolerations": [{"key": "gpu"} | toleration]}}


def spreading(**fields: Any) -> Spec:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"} | fields
    return {"scheduling": {"topologySpreadConstraints": [constraint]}}


def near(requirement: Spec) -> Spec:
    terms = [{"matchExpressions": [{"key": "gpus"} | requirement]}]
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"scheduling": {"affinity": {"nodeAffinity": nodes}}}


def push(repo: str, **fields: Any) -> Spec:
    return {"output": {"uri": "s3://models/out", "hub": {"repo": repo} | fields}}


def to_registry(repository: str, **fields: Any) -> Spec:
    return {"output": {"uri": "s3://models/out", "oci": {"repository": repository} | fields}}


def blend_of(objective: str, data_format: str) -> Spec:
    return base(objective, "Auto") | blend({}, {"format": data_format})


def rlhf(**fields: Any) -> Spec:
    return {"objective": "RLHF", "rlhf": fields}


def by_vllm(method: str, **lora: Any) -> Spec:
    tuning = {"method": method} | ({"lora": lora} if lora else {})
    return rlhf(rewards=LENGTHS, rollouts={"engine": "VLLM"}) | {"tuning": tuning}


def shared_groups(resources: Spec) -> Spec:
    """Return a job whose processes have two answers of a step each, and groups of eight."""
    hyper = {"perDeviceTrainBatchSize": 1, "gradientAccumulationSteps": 2}
    return rlhf(rewards=LENGTHS) | {"tuning": {"method": "LoRA"}, "hyperparameters": hyper, "resources": resources}


def distillation(**teacher: Any) -> Spec:
    return {"objective": "Distillation", "distillation": {"teacher": {"uri": "s3://models/larger"} | teacher}}


def base(objective: str, data_format: str) -> Spec:
    extra = {"RLHF": rlhf(rewards=LENGTHS), "Distillation": distillation()}.get(objective, {})
    return extra | {
        "objective": objective,
        "dataset": {"train": {"uri": "s3://data/train.jsonl"}, "format": data_format},
    }


def wandb(**fields: Any) -> Spec:
    return {"tracking": {"wandb": {"project": "p"} | fields}}


SHARED_TEACHER: Spec = {
    "objective": "Distillation",
    "distillation": {"teacher": {"uri": "s3://models/larger"}, "shardTeacher": True},
}
EVALUATING: Spec = SPLIT | {"mode": "Evaluate", "tuning": {"initialAdapter": {"uri": "s3://models/adapter"}}}
_NOTHING = "mode Evaluate trains nothing: remove "
EVALUATE_REFUSES: list[tuple[str, str, Any]] = [
    ("mode Evaluate measures a loss per token", "objective", "DPO"),
    ("mode Evaluate loads the base in 16 bits", "tuning.method", "QLoRA"),
    ("mode Evaluate compares with the base", "evaluation.baseline", False),
    ("mode Evaluate packs no rows", "hyperparameters.packing", "Always"),
    ("mode Evaluate runs in one process", "resources.numNodes", 2),
    *(
        (f"{_NOTHING}{path}", path, value)
        for path, value in {
            "hyperparameters.numTrainEpochs": 1,
            "hyperparameters.maxSteps": 1,
            "hyperparameters.learningRate": 0.1,
            "hyperparameters.lrSchedulerType": "linear",
            "hyperparameters.warmupSteps": 1,
            "hyperparameters.decaySteps": 1,
            "hyperparameters.minLrRatio": 0.1,
            "hyperparameters.neftuneNoiseAlpha": 5,
            "hyperparameters.weightDecay": 0.1,
            "hyperparameters.adamBeta1": 0.8,
            "hyperparameters.adamBeta2": 0.95,
            "hyperparameters.adamEpsilon": 1e-6,
            "hyperparameters.maxGradNorm": 1,
            "hyperparameters.optim": "adamw_torch",
            "hyperparameters.gradientAccumulationSteps": 1,
            "hyperparameters.gradientCheckpointing": True,
            "tuning.lora": {"rank": 8},
            "tuning.quantization": {"doubleQuant": False},
            "tuning.vramBudget": "24Gi",
            "evaluation.steps": 1,
            "earlyStopping": {},
            "checkpoint.steps": 1,
            "checkpoint.keep": 1,
            "resources.merge": {},
        }.items()
    ),
]


def merged(spec: Spec, path: str, value: Any) -> Spec:
    """Return the spec with one more field."""
    changed = copy.deepcopy(spec)
    *folders, name = path.split(".")
    block = changed
    for folder in folders:
        block = block.setdefault(folder, {})
    block[name] = value
    return changed


def without(spec: Spec, name: str) -> Spec:
    """Return the spec without one block."""
    return {key: value for key, value in spec.items() if key != name}


AT_CREATION = [
    (WANDB_KEY, wandb(credentialsSecretRef={"name": "key"}), wandb(), "spec.tracking.wandb.credentialsSecretRef"),
    (
        WANDB_KEY,
        wandb(mode="Offline"),
        wandb(mode="Offline", credentialsSecretRef={"name": "key"}),
        "spec.tracking.wandb.credentialsSecretRef",
    ),
    (
        WANDB_URL,
        wandb(endpoint="https://wandb.example", credentialsSecretRef={"name": "key"}),
        wandb(mode="Offline", endpoint="https://wandb.example"),
        "spec.tracking.wandb.endpoint",
    ),
    (MODEL, {"model": {"uri": "s3://models/a b/c"}}, {"model": {"uri": "https://example.com/model"}}, "spec.model.uri"),
    (MODEL, {"model": {"uri": "hf://org/name-1.5B"}}, {"model": {"uri": "hf://name"}}, "spec.model.uri"),
    (MODEL, {"model": {"uri": "hf://org/name"}}, {"model": {"uri": "hf://datasets/org/name"}}, "spec.model.uri"),
    (DATA, source("hf://datasets/org/name/data/*.parquet"), source("hf://org/name"), "spec.dataset.train.uri"),
    (DATA, source("s3://data/rows/**/*.jsonl.gz"), source("gs://bucket/rows.jsonl"), "spec.dataset.train.uri"),
    (DATA, source("pvc://team-data/rows/*.jsonl"), source("pvc:///rows.jsonl"), "spec.dataset.train.uri"),
    (
        "must be pvc://claim/path, or s3://bucket/path",
        {"evaluation": {"ability": {"uri": "pvc://shared/arc/test.parquet"}}},
        {"evaluation": {"ability": {"uri": "hf://datasets/org/name"}}},
        "spec.evaluation.ability.uri",
    ),
    (MODEL, {"model": {"uri": "pvc://models"}}, {"model": {"uri": "pvc://Models/llama"}}, "spec.model.uri"),
    (MODEL, {"model": {"uri": "pvc://models/llama/"}}, {"model": {"uri": "pvc://models//llama"}}, "spec.model.uri"),
    (
        REVISION,
        {"model": {"uri": "hf://org/name", "revision": "refs/pr/3"}},
        {"model": {"uri": "s3://models/base", "revision": "main"}},
        "spec.model.revision",
    ),
    *(
        (message, {"model": BASE["model"] | good}, {"model": BASE["model"] | bad}, f"spec.model.{place}")
        for message, good, bad, place in (
            (
                "give either name or configMapKeyRef",
                {"chatTemplate": {"name": "ChatML"}},
                {"chatTemplate": {"name": "ChatML", "configMapKeyRef": {"name": "a", "key": "b"}}},
                "chatTemplate.name",
            ),
            (
                "give either name or configMapKeyRef",
                {"chatTemplate": {"configMapKeyRef": {"name": "a", "key": "b.jinja"}}},
                {"chatTemplate": {}},
                "chatTemplate.name",
            ),
            (
                "these variables have a value already",
                {"chatTemplateKwargs": {"enable_thinking": "false"}},
                {"chatTemplateKwargs": {"messages": "none"}},
                "chatTemplateKwargs",
            ),
            (
                KEYS,
                {"chatTemplateKwargs": {"reasoning_effort": "high"}},
                {"chatTemplateKwargs": {"Effort!": "high"}},
                "chatTemplateKwargs",
            ),
        )
    ),
    (
        TOKEN,
        source("hf://datasets/org/name", credentialsSecretRef={"name": "hf"}),
        source("s3://data/train.jsonl", credentialsSecretRef={"name": "hf"}),
        "spec.dataset.train.credentialsSecretRef",
    ),
    (
        ONE_OBJECT,
        source("s3://data/train.jsonl", sha256="0" * 64),
        source("s3://data/*.jsonl", sha256="0" * 64),
        "spec.dataset.train.sha256",
    ),
    (
        CONTINUED,
        {"tuning": {"initialAdapter": {"uri": "s3://models/sft/adapter"}}},
        {"tuning": {"method": "Full", "initialAdapter": {"uri": "s3://models/sft/adapter"}}},
        "spec.tuning.initialAdapter",
    ),
    (
        "checkpoint.keep publishes adapters, which method Full does not train",
        {"checkpoint": {"keep": 10}},
        {"checkpoint": {"keep": 1}, "tuning": {"method": "Full"}},
        "spec.checkpoint.keep",
    ),
    (
        ADAPTER,
        {"tuning": {"initialAdapter": {"uri": "hf://org/adapter"}}},
        {"tuning": {"initialAdapter": {}}},
        "spec.tuning.initialAdapter.uri",
    ),
    (
        PARENT,
        {"tuning": {"initialAdapter": {"fromParent": True}}, "lineage": {"parentRef": {"name": "sft"}}},
        {"tuning": {"initialAdapter": {"fromParent": True}}, "lineage": {}},
        "spec.tuning.initialAdapter.fromParent",
    ),
    (
        CLAIM,
        {"resources": {"claims": [{"name": "gpu", "resourceClaimName": "one"}]}},
        {"resources": {"claims": [{"name": "gpu"}]}},
        "spec.resources.claims[0].resourceClaimName",
    ),
    *(
        ("the GPUs of a pod are not in requests or limits", good, {"resources": bad}, "spec.resources.gpusPerNode")
        for good, bad in (
            ({"resources": {"gpusPerNode": 8}}, {"limits": {"nvidia.com/gpu": 8}}),
            ({"resources": {"limits": {"rdma/hca": 1}}}, {"requests": {"nvidia.com/gpu": 8}}),
            (
                {"resources": {"gpuResourceName": "amd.com/gpu", "gpusPerNode": 2}},
                {"gpuResourceName": "amd.com/gpu", "limits": {"amd.com/gpu": 2}},
            ),
            ({}, {"gpuResourceName": "amd.com/gpu", "limits": {"nvidia.com/gpu": 2}}),
        )
    ),
    *(
        ("memory below 1Mi", {block: nest(good)}, {block: nest(bad)}, f"spec.{block}")
        for block, nest in (
            ("resources", dict),
            ("resources", lambda one: {"merge": one}),
            ("preflight", lambda one: {"resources": one}),
        )
        for good, bad in (
            ({"requests": {"memory": "16Gi"}}, {"requests": {"memory": 16}}),
            ({"limits": {"memory": 17179869184}}, {"limits": {"memory": "16"}}),
            ({"requests": {"memory": "1Mi", "cpu": 1}}, {"requests": {"memory": "900m"}}),
        )
    ),
    *(
        (
            "a request is above its limit",
            {"resources": {"requests": {name: low}, "limits": {name: high}}},
            {"resources": {"requests": {name: high}, "limits": {name: low}}},
            "spec.resources.requests",
        )
        for name, low, high in (("memory", "16Gi", "32Gi"), ("cpu", "500m", 1), ("memory", "1G", "1Gi"))
    ),
    *(
        (message, {block: nest(good)}, {block: nest(bad)}, f"spec.{block}")
        for block, nest in (
            ("resources", dict),
            ("resources", lambda one: {"merge": one}),
            ("preflight", lambda one: {"resources": one}),
        )
        for message, good, bad in (
            (UNKNOWN_RESOURCE, {"requests": {"ephemeral-storage": "1Gi"}}, {"requests": {"storage": "1Gi"}}),
            (UNKNOWN_RESOURCE, {"limits": {"rdma/hca": 1}}, {"limits": {"hca": 1}}),
            (UNKNOWN_RESOURCE, {"limits": {"hugepages-2Mi": "4Mi", "cpu": 1}}, {"limits": {"hugepages": "4Mi"}}),
            (WHOLE_DEVICE, {"requests": {"rdma/hca": 1}, "limits": {"rdma/hca": 1}}, {"requests": {"rdma/hca": 1}}),
            (WHOLE_DEVICE, {"limits": {"rdma/hca": 2}}, {"requests": {"rdma/hca": 1}, "limits": {"rdma/hca": 2}}),
        )
    ),
    (
        "several slices of a GPU (MIG) cannot train together",
        {"resources": {"gpuResourceName": "nvidia.com/mig-3g.40gb", "gpusPerNode": 1}},
        {"resources": {"gpuResourceName": "nvidia.com/mig-3g.40gb", "gpusPerNode": 2}, "tuning": {"method": "LoRA"}},
        "spec.resources.gpusPerNode",
    ),
    (
        "name the vendor of the GPU too",
        {"resources": {"gpuResourceName": "amd.com/gpu"}},
        {"resources": {"gpuResourceName": "gpu"}},
        "spec.resources.gpuResourceName",
    ),
    (
        "vramBudget below 1Mi",
        {"tuning": {"vramBudget": "24Gi"}},
        {"tuning": {"vramBudget": 24}},
        "spec.tuning.vramBudget",
    ),
    *(
        (f"{path.split('.')[-1]} below 1Mi", {"resources": good}, {"resources": bad}, f"spec.resources.{path}")
        for path, good, bad in (
            ("shmSize", {"shmSize": "8Gi"}, {"shmSize": 8}),
            ("shmSize", {"shmSize": 1048576}, {"shmSize": "512k"}),
            ("workspace.sizeLimit", {"workspace": {"sizeLimit": "1Mi"}}, {"workspace": {"sizeLimit": "500"}}),
        )
    ),
    (
        VOLUME_SIZE,
        {"resources": {"workspace": {"sizeLimit": "500Gi", "storageClassName": "fast"}}},
        {"resources": {"workspace": {"storageClassName": "fast"}}},
        "spec.resources.workspace.sizeLimit",
    ),
    (
        REWARD_SOURCE,
        rlhf(rewardModel={"jobRef": {"name": "reward"}}),
        rlhf(rewardModel={}),
        "spec.rlhf.rewardModel.uri",
    ),
    (REWARDS, rlhf(rewards=LENGTHS), rlhf(), "spec.rlhf.rewardModel"),
    (
        OF_VLLM,
        by_vllm("LoRA") | rlhf(rewards=LENGTHS, rollouts={"engine": "VLLM", "gpuMemoryFraction": 0.5}),
        rlhf(rewards=LENGTHS, rollouts={"gpuMemoryFraction": 0.5}),
        "spec.rlhf.rollouts.gpuMemoryFraction",
    ),
    *(
        (
            "lossType and scaleRewards are of algorithm GRPO",
            rlhf(rewards=LENGTHS, algorithm="GRPO", **setting),
            rlhf(rewards=LENGTHS, algorithm="RLOO", **setting),
            "spec.rlhf.algorithm",
        )
        for setting in ({"lossType": "grpo"}, {"scaleRewards": "none"})
    ),
    (MERGED, by_vllm("LoRA"), by_vllm("QLoRA"), "spec.rlhf.rollouts.engine"),
    (MERGED, by_vllm("Full"), by_vllm("Auto"), "spec.rlhf.rollouts.engine"),
    (LINEAR, by_vllm("LoRA", useDora=True), by_vllm("LoRA", modulesToSave=["norm"]), "spec.rlhf.rollouts.engine"),
    (LINEAR, by_vllm("LoRA", targetExperts=False), by_vllm("LoRA", targetExperts=True), "spec.rlhf.rollouts.engine"),
    (ALONE, by_vllm("LoRA"), by_vllm("LoRA") | {"resources": {"gpusPerNode": 2}}, "spec.rlhf.rollouts.engine"),
    (REWARDS, rlhf(rewards=LENGTHS), rlhf(rewards=LENGTHS, rewardModel={"uri": "s3://m/r"}), "spec.rlhf.rewardModel"),
    (TARGET, rlhf(rewards=LENGTHS), rlhf(rewards=[{"type": "Length"}]), "spec.rlhf.rewards[0].targetTokens"),
    (
        PATTERN,
        rlhf(rewards=[{"type": "Regex", "pattern": "yes"}]),
        rlhf(rewards=[{"type": "Length", "targetTokens": 4, "pattern": "yes"}]),
        "spec.rlhf.rewards[0].pattern",
    ),
    (ANSWER, answers(), rlhf(rewards=[{"type": "Answer"}]), "spec.rlhf.rewards[0].answer"),
    (SERVICE, rlhf(rewards=[GRADER]), rlhf(rewards=[{"type": "Service"}]), "spec.rlhf.rewards[0].service"),
    (
        ANSWER,
        answers(column="solution"),
        rlhf(rewards=[{"type": "Length", "targetTokens": 4, "answer": {"match": "Exact"}}]),
        "spec.rlhf.rewards[0].answer",
    ),
    (
        GROUP,
        answers(extract="Pattern", pattern="<a>(.*)</a>"),
        answers(extract="Pattern"),
        "spec.rlhf.rewards[0].answer.pattern",
    ),
    (GROUP, answers(), answers(pattern="(a)"), "spec.rlhf.rewards[0].answer.pattern"),
    (
        TOLERANCE,
        answers(match="Numeric", absoluteTolerance=0.1, relativeTolerance=0.01),
        answers(relativeTolerance=0.01),
        "spec.rlhf.rewards[0].answer.match",
    ),
    (
        CASE,
        answers(ignoreCase=True),
        answers(match="Numeric", ignoreCase=True),
        "spec.rlhf.rewards[0].answer.ignoreCase",
    ),
    (
        SCHEMA,
        answers(match="JsonSchema", jsonSchema="{}"),
        answers(match="JsonSchema"),
        "spec.rlhf.rewards[0].answer.jsonSchema",
    ),
    (
        SCHEMA,
        answers(match="JsonSchema", column="schema"),
        answers(match="JsonSchema", column="schema", jsonSchema="{}"),
        "spec.rlhf.rewards[0].answer.jsonSchema",
    ),
    (
        SCHEMA,
        answers(match="Json"),
        answers(match="Json", jsonSchema="{}"),
        "spec.rlhf.rewards[0].answer.jsonSchema",
    ),
    *(
        (
            "similarity is required with match Similar",
            answers(match="Similar", similarity="RougeL"),
            refused,
            "spec.rlhf.rewards[0].answer.similarity",
        )
        for refused in (answers(match="Similar"), answers(match="Exact", similarity="RougeL"))
    ),
    (
        JSON_PART,
        answers(match="Json", extract="Pattern", pattern="<a>(.*)</a>"),
        answers(match="Json", extract="Boxed"),
        "spec.rlhf.rewards[0].answer.extract",
    ),
    *(
        (
            f"{block} is only for objective {objective}",
            {"objective": objective, block: settings},
            {"objective": "Chat", block: settings},
            f"spec.{block}",
        )
        for block, objective, settings in (
            ("dpo", "DPO", {"lossType": "ipo"}),
            ("kto", "KTO", {"desirableWeight": 2}),
            ("rlhf", "RLHF", {"rewards": [{"type": "Length", "targetTokens": 4}]}),
            ("distillation", "Distillation", {"teacher": {"uri": "pvc://models/larger"}}),
        )
    ),
    *(
        (
            "labelSmoothing is of losses robust and exo_pair",
            {"objective": "DPO", "dpo": {"lossType": "robust", "labelSmoothing": 0.1}},
            {"objective": "DPO", "dpo": {"labelSmoothing": 0.1} | other},
            "spec.dpo.labelSmoothing",
        )
        for other in ({}, {"lossType": "ipo"})
    ),
    (
        "objective Distillation needs a model to learn from",
        distillation(),
        {"objective": "Distillation"},
        "spec.distillation",
    ),
    *(
        (
            "objective Distillation compares the output heads as they are",
            distillation() | {"tuning": {"lora": {"targetModules": ["q_proj"]}}},
            distillation() | {"tuning": {"lora": wrong}},
            "spec.tuning.lora",
        )
        for wrong in (
            {"targetModules": ["q_proj", "lm_head"]},
            {"targetModules": ["language_model.lm_head"]},
            {"modulesToSave": ["embed_tokens"]},
        )
    ),
    *(
        (
            message,
            distillation(uri="hf://acme/larger", **only),
            distillation(**only),
            f"spec.distillation.teacher.{field}",
        )
        for message, field, only in (
            (REVISION, "revision", {"revision": "main"}),
            (TOKEN, "credentialsSecretRef", {"credentialsSecretRef": {"name": "token"}}),
        )
    ),
    (NEEDS_REWARD, rlhf(rewards=LENGTHS), {"objective": "RLHF"}, "spec.rlhf"),
    (
        NO_LOSS,
        rlhf(rewards=LENGTHS) | SPLIT,
        rlhf(rewards=LENGTHS) | SPLIT | {"earlyStopping": {}},
        "spec.earlyStopping",
    ),
    (
        NO_MERGE,
        {"objective": "RewardModel"},
        {"objective": "RewardModel", "output": {"uri": "s3://models/out", "merge": "BF16"}},
        "spec.output.merge",
    ),
    (
        NO_ANSWERS,
        {"objective": "DPO", "evaluation": {"prompts": [{"prompt": "Why?"}]}},
        {"objective": "RewardModel", "evaluation": {"prompts": [{"prompt": "Why?"}]}},
        "spec.evaluation.prompts",
    ),
    (
        "a reward model answers no questions: remove evaluation.ability",
        {"objective": "DPO", "evaluation": ABILITY},
        {"objective": "RewardModel", "evaluation": ABILITY},
        "spec.evaluation.ability",
    ),
    *(
        (
            "must be https://host, http://host or http://host:port in ASCII",
            {block: {"endpoint": "http://[2001:db8::1]:9000/path"}},
            {block: {"endpoint": endpoint}},
            f"spec.{block}.endpoint",
        )
        for block, endpoint in [
            ("storage", "file:///etc/passwd"),
            ("storage", "http://user:secret@minio:9000"),
            ("hub", "hub.example"),
            ("storage", "http://169。254。169。254"),
            ("storage", "http://[x]"),
            ("hub", "http://[1:2]:80"),
            ("storage", "http://minio:65536"),
        ]
    ),
    *(
        (
            "jsonSchema is required with match JsonSchema",
            SPLIT | {"evaluation": {"answers": {"match": "JsonSchema", "jsonSchema": "{}"}}},
            SPLIT | {"evaluation": {"answers": refused}},
            "spec.evaluation.answers.jsonSchema",
        )
        for refused in ({"match": "JsonSchema"}, {"match": "Json", "jsonSchema": "{}"})
    ),
    (
        "minCorrect needs answers to held-out rows: set evaluation.answers.match",
        SPLIT | {"evaluation": {"answers": {"match": "Exact"}, "gate": {"minCorrect": 90}}},
        SPLIT | {"evaluation": {"gate": {"minCorrect": 90}}},
        "spec.evaluation.gate.minCorrect",
    ),
    (
        "evaluation.answers is for rows with an answer to imitate or prefer",
        SPLIT | {"objective": "KTO", "evaluation": {"answers": {"match": "Exact"}}},
        SPLIT | {"objective": "DomainAdaptation", "evaluation": {"answers": {"match": "Exact"}}},
        "spec.evaluation.answers",
    ),
    (
        "evaluation.answers needs held-out rows",
        SPLIT | {"evaluation": {"answers": {"match": "Exact"}}},
        {"evaluation": {"answers": {"match": "Exact"}}},
        "spec.evaluation.answers",
    ),
    (
        "maxForgotten needs questions: set evaluation.ability.uri",
        {"evaluation": ABILITY | {"gate": {"maxForgotten": 2}}},
        {"evaluation": {"gate": {"maxForgotten": 2}}},
        "spec.evaluation.gate.maxForgotten",
    ),
    *(
        (
            "uri must be one file",
            {"evaluation": {"ability": {"uri": "pvc://shared/questions.jsonl"}}},
            {"evaluation": {"ability": {"uri": uri}}},
            "spec.evaluation.ability.uri",
        )
        for uri in ("s3://data/questions/", "s3://data/*.jsonl", "pvc://shared/questions/")
    ),
    (
        "queueName and resources are those of the preflight pod",
        {"preflight": {"queueName": "checks"}},
        {"preflight": {"enabled": False, "queueName": "checks"}},
        "spec.preflight.enabled",
    ),
    *(
        (
            "without preflight one process checks and trains",
            {"preflight": {"enabled": False}},
            {"preflight": {"enabled": False}, "resources": many},
            "spec.preflight.enabled",
        )
        for many in ({"numNodes": 2}, {"gpusPerNode": 2}, {"merge": {}})
    ),
    (
        PACKING,
        {"objective": "DomainAdaptation", "hyperparameters": {"packing": "Always"}},
        {"objective": "DPO", "hyperparameters": {"packing": "Always"}},
        "spec.hyperparameters.packing",
    ),
    (
        PACKING,
        {"objective": "DomainAdaptation", "hyperparameters": {"packing": "Always"}},
        {"objective": "DPO", "hyperparameters": {"packing": "Always"}},
        "spec.hyperparameters.packing",
    ),
    *(
        (
            DROPOUT,
            base(objective, "Auto") | {"tuning": {"lora": {"dropout": 0}}},
            base(objective, "Auto") | {"tuning": {"lora": {"dropout": 0.1}}},
            "spec.tuning.lora.dropout",
        )
        for objective in ("DPO", "KTO", "RLHF", "Distillation")
    ),
    (
        FLASH,
        {"objective": "Chat", "hyperparameters": {"attention": "FlashAttention"}},
        {"objective": "DPO", "hyperparameters": {"attention": "FlashAttention"}},
        "spec.hyperparameters.attention",
    ),
    (
        GROUPS,
        rlhf(rewards=LENGTHS) | {"hyperparameters": {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 2}},
        rlhf(rewards=LENGTHS) | {"hyperparameters": {"perDeviceTrainBatchSize": 3, "gradientAccumulationSteps": 2}},
        "spec.rlhf.numGenerations",
    ),
    (GROUPS, shared_groups({"gpusPerNode": 4}), shared_groups({"gpusPerNode": 3}), "spec.rlhf.numGenerations"),
    (
        GROUPS,
        shared_groups({"numNodes": 4, "gpusPerNode": 0}),
        shared_groups({"numNodes": 2}),
        "spec.rlhf.numGenerations",
    ),
    *(
        (
            "the base is shared out over several GPUs",
            good | {"tuning": {"method": method, "lora": {"shardBase": True}}},
            bad | {"tuning": {"method": method, "lora": {"shardBase": True}}},
            "spec.tuning.lora.shardBase",
        )
        for method, good, bad in (
            ("LoRA", {"resources": {"gpusPerNode": 2}}, {"resources": {"gpusPerNode": 1}}),
            ("QLoRA", {"resources": {"gpusPerNode": 2}}, {"resources": {"gpusPerNode": 1}}),
            ("Auto", {"resources": {"gpusPerNode": 2}}, {"resources": {"gpusPerNode": 1}}),
            ("LoRA", {"resources": {"numNodes": 2, "gpusPerNode": 0}}, {"resources": {"gpusPerNode": 0}}),
        )
    ),
    (
        "the teacher is shared out over several GPUs",
        SHARED_TEACHER | {"resources": {"gpusPerNode": 2}},
        SHARED_TEACHER | {"resources": {"gpusPerNode": 1}},
        "spec.distillation.shardTeacher",
    ),
    *(
        (
            "a base that is shared out has plain adapters on linear layers",
            {"resources": {"gpusPerNode": 2}, "tuning": {"method": "LoRA", "lora": {"shardBase": False} | other}},
            {"resources": {"gpusPerNode": 2}, "tuning": {"method": "LoRA", "lora": {"shardBase": True} | other}},
            "spec.tuning.lora.shardBase",
        )
        for other in (
            {"useDora": True},
            {"targetExperts": True},
            {"modulesToSave": ["norm"]},
            {"initLoraWeights": "PiSSA"},
            {"initLoraWeights": "EVA"},
        )
    ),
    (
        ROWS_OF_KTO,
        {"objective": "KTO", "hyperparameters": {"perDeviceTrainBatchSize": 2}},
        {"objective": "KTO", "hyperparameters": {"perDeviceTrainBatchSize": 1}},
        "spec.hyperparameters.perDeviceTrainBatchSize",
    ),
    *(
        (OUTSIDE, good | {"output": {"uri": inside}}, bad | {"output": {"uri": inside}}, "spec.output.uri")
        for good, bad, inside in (
            (source("s3://data/rows/a.jsonl"), source("s3://data/rows/"), "s3://data/rows/out"),
            (source("s3://data/rows/*.jsonl"), source("s3://data/rows"), "s3://data/rows/out/"),
            (source("s3://data/row/"), source("s3://data/rows/"), "s3://data/rows"),
            (blend({}), blend({}, {"uri": "s3://data/rows/"}), "s3://data/rows/a/b"),
            (FILE, {"dataset": FILE["dataset"] | {"validation": {"uri": "s3://data/held/"}}}, "s3://data/held/out"),
        )
    ),
    (ONE_OR_SEVERAL, blend({}), blend({}, uri="s3://data/x"), "spec.dataset.train.uri"),
    (ONE_OR_SEVERAL, source("s3://data/x"), {"dataset": {"train": {}}}, "spec.dataset.train.uri"),
    (
        NO_FULL_MODEL,
        {"output": {"uri": "s3://models/out", "merge": "BF16", "gguf": ["Q4_K_M", "F16"]}},
        {"output": {"uri": "s3://models/out", "gguf": ["Q4_K_M", "F16"]}},
        "spec.output.gguf",
    ),
    (REPO, push("acme/helpdesk"), push("hf://acme/helpdesk"), "spec.output.hub.repo"),
    (REPO, push("acme/helpdesk"), push("acme"), "spec.output.hub.repo"),
    (BRANCH, push("acme/helpdesk"), push("acme/helpdesk", revision="a" * 40), "spec.output.hub.revision"),
    (IMAGE, to_registry("r.example/a"), to_registry("https://r.example/a"), "spec.output.oci.repository"),
    (IMAGE, to_registry("localhost:5000/a/b_c"), to_registry("team/helpdesk"), "spec.output.oci.repository"),
    (IMAGE, to_registry("registry:5000/a"), to_registry("r.example/a:v1"), "spec.output.oci.repository"),
    (IMAGE, to_registry("10.0.0.1/a--b/c__d.e"), to_registry("r.example/A"), "spec.output.oci.repository"),
    (IMAGE, to_registry("r.example/a", tag="v1"), to_registry("r.example/../a"), "spec.output.oci.repository"),
    (REVISION, blend(HUB_ROWS | {"revision": "v1"}), blend(HUB_ROWS, revision="v1"), "spec.dataset.train.revision"),
    (REVISION, blend(HUB_ROWS), blend({}, {"revision": "v1"}), "spec.dataset.train.sources[1].revision"),
    *(
        (SUBSET, right({name: "main"}), wrong({name: "main"}), f"spec.dataset.{path}.{name}")
        for name in ("config", "split")
        for right, wrong, path in (
            (
                lambda given: source(HUB_ROWS["uri"], **given),
                lambda given: source("hf://datasets/owner/rows/data/", **given),
                "train",
            ),
            (lambda given: blend(HUB_ROWS | given), lambda given: blend(HUB_ROWS, **given), "train"),
            (lambda given: blend(HUB_ROWS | given), lambda given: blend({}, given), "train.sources[1]"),
            (
                lambda given: {"dataset": {"train": HUB_ROWS, "validation": HUB_ROWS | given}},
                lambda given: {"dataset": {"train": HUB_ROWS, "validation": {"uri": "s3://data/x"} | given}},
                "validation",
            ),
        )
    ),
    (ONE_OBJECT, blend({"sha256": "0" * 64}), blend({}, sha256="0" * 64), "spec.dataset.train.sha256"),
    (
        ONE_OBJECT,
        blend({"sha256": "0" * 64}),
        blend({"uri": "s3://data/", "sha256": "0" * 64}),
        "spec.dataset.train.sources[0].sha256",
    ),
    (
        TOKEN,
        blend({}, HUB_ROWS, credentialsSecretRef={"name": "token"}),
        blend({}, credentialsSecretRef={"name": "token"}),
        "spec.dataset.train.credentialsSecretRef",
    ),
    (
        "two sources have the same uri",
        blend(HUB_ROWS | {"config": "a"}, HUB_ROWS | {"config": "b"}, HUB_ROWS | {"config": "b", "split": "test"}),
        blend({}, {"uri": "s3://data/0.jsonl"}),
        "spec.dataset.train.sources",
    ),
    (
        "some sources have a weight and others none",
        blend({"weight": 1}, {"weight": 2}, stoppingStrategy="AllExhausted"),
        blend({"weight": 1}, {}),
        "spec.dataset.train.sources",
    ),
    (
        "stoppingStrategy is only for a blend by weight",
        blend({"weight": 1}, stoppingStrategy="FirstExhausted"),
        blend({}, stoppingStrategy="AllExhausted"),
        "spec.dataset.train.stoppingStrategy",
    ),
    (
        "maxSamples is for a single source",
        blend({"maxSamples": 5}),
        {"dataset": blend({})["dataset"] | {"maxSamples": 5}},
        "spec.dataset.maxSamples",
    ),
    *(
        (
            f"objective {objective} cannot use rows of this format",
            accepted(objective, right),
            accepted(objective, wrong),
            path,
        )
        for accepted, path in ((base, "spec.dataset.format"), (blend_of, "spec.dataset.train.sources"))
        for objective, right, wrong in (
            ("Instruction", "Alpaca", "Text"),
            ("Chat", "Preference", "Text"),
            ("DPO", "Preference", "OpenAI"),
            ("KTO", "Unpaired", "Alpaca"),
            ("RewardModel", "Preference", "Unpaired"),
            ("RLHF", "PromptCompletion", "Text"),
            ("Distillation", "OpenAI", "Text"),
            ("DomainAdaptation", "Text", "ShareGPT"),
        )
    ),
    (S3, {"output": {"uri": "s3://abc/x"}}, {"output": {"uri": "s3://ab/x"}}, "spec.output.uri"),
    (
        S3,
        {"output": {"uri": "s3://abc/é/日本\u200d"}},
        {"output": {"uri": "s3://abc/\u202egnp.exe"}},
        "spec.output.uri",
    ),
    (S3, {"output": {"uri": "s3://abc/a b"}}, {"output": {"uri": "s3://abc/a\x9b2J"}}, "spec.output.uri"),
    (URI, {"model": {"uri": "s3://models/a..b"}}, {"model": {"uri": "s3://models/../b"}}, "spec.model.uri"),
    (URI, {"output": {"uri": "s3://models/x/"}}, {"output": {"uri": "s3://models/x/.."}}, "spec.output.uri"),
    (
        LORA,
        {"tuning": {"method": "LoRA", "lora": {"rank": 8}}},
        {"tuning": {"method": "Full", "lora": {}}},
        "spec.tuning.lora",
    ),
    *(
        (EXPERTS, {"tuning": {"lora": accepted}}, {"tuning": {"lora": refused}}, "spec.tuning.lora.dropout")
        for accepted, refused in (
            ({"targetExperts": True, "dropout": 0}, {"targetExperts": True, "dropout": 0.05}),
            ({"targetExperts": False, "dropout": 0.05}, {"targetExperts": True, "dropout": 0.5}),
        )
    ),
    *(
        (
            "first values from the weights are of plain adapters",
            {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA"}}},
            {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA"} | other}},
            "spec.tuning.lora.initLoraWeights",
        )
        for other in ({"useDora": True}, {"targetExperts": True})
    ),
    (
        "an adapter that starts from the weights is published with twice its rank",
        {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "OLoRA", "rank": 128}}},
        {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "OLoRA", "rank": 129}}},
        "spec.tuning.lora.rank",
    ),
    *(
        (
            "first values from the weights need them in 16 bits",
            {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA"}}},
            {"tuning": {"method": method, "lora": {"initLoraWeights": "PiSSA"}}},
            "spec.tuning.lora.initLoraWeights",
        )
        for method in ("QLoRA", "Auto")
    ),
    (
        "first values from the rows are of adapters on linear layers",
        {"tuning": {"lora": {"initLoraWeights": "EVA", "useDora": True}}},
        {"tuning": {"lora": {"initLoraWeights": "EVA", "targetExperts": True}}},
        "spec.tuning.lora.initLoraWeights",
    ),
    (
        "an adapter that is continued has its values",
        {"tuning": {"initialAdapter": {"uri": "s3://models/sft/adapter"}, "lora": {"dropout": 0.1}}},
        {"tuning": {"initialAdapter": {"uri": "s3://models/sft/adapter"}, "lora": {"initLoraWeights": "Gaussian"}}},
        "spec.tuning.lora.initLoraWeights",
    ),
    (
        "a reward model's adapter does not start from the weights",
        {"objective": "RewardModel", "tuning": {"method": "LoRA", "lora": {"initLoraWeights": "Gaussian"}}},
        {"objective": "RewardModel", "tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA"}}},
        "spec.tuning.lora.initLoraWeights",
    ),
    (
        "an adapter that starts from the weights is published with twice its ranks",
        {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA", "rankPattern": {"q": 128, "k": 1}}}},
        {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA", "rankPattern": {"q": 129, "k": 1}}}},
        "spec.tuning.lora.rankPattern",
    ),
    *(
        (
            "a pattern repeats no group and has at most four repetitions",
            {"tuning": {"lora": {field: {r".*\.layers\.[0-9]+\..*(q|k)_proj$": 4}}}},
            {"tuning": {"lora": {field: {"q_proj": 4, pattern: 4}}}},
            f"spec.tuning.lora.{field}",
        )
        for field, pattern in (("rankPattern", "(.+)+x"), ("alphaPattern", ".*a.*b.*c.*d.*"))
    ),
    *(
        (
            KEYS,
            {"tuning": {"lora": {field: {"q" * 256: 4}}}},
            {"tuning": {"lora": {field: {key: 4}}}},
            f"spec.tuning.lora.{field}",
        )
        for field, key in (("rankPattern", "q" * 257), ("alphaPattern", "q\n"))
    ),
    *(
        (
            "an adapter on experts has one rank and one alpha",
            {"tuning": {"lora": {"targetExperts": False, field: {"q_proj": 4}}}},
            {"tuning": {"lora": {"targetExperts": True, field: {"q_proj": 4}}}},
            "spec.tuning.lora.targetExperts",
        )
        for field in ("rankPattern", "alphaPattern")
    ),
    (
        "an adapter on experts has no magnitudes",
        {"tuning": {"lora": {"targetExperts": False, "useDora": True}}},
        {"tuning": {"lora": {"targetExperts": True, "useDora": True}}},
        "spec.tuning.lora.useDora",
    ),
    (
        QUANTIZATION,
        {"tuning": {"method": "QLoRA", "quantization": {"doubleQuant": False}}},
        {"tuning": {"method": "LoRA", "quantization": {}}},
        "spec.tuning.quantization",
    ),
    (
        VALIDATION,
        FILE,
        {"dataset": FILE["dataset"] | {"validationSplitPercent": 5}},
        "spec.dataset.validationSplitPercent",
    ),
    (
        LENGTH,
        {"hyperparameters": {"maxSteps": 10}},
        {"hyperparameters": {"maxSteps": 10, "numTrainEpochs": 1}},
        "spec.hyperparameters.maxSteps",
    ),
    (
        WARMUP,
        {"hyperparameters": {"warmupSteps": 5}},
        {"hyperparameters": {"warmupSteps": 5.5}},
        "spec.hyperparameters.warmupSteps",
    ),
    *(
        (message, {"hyperparameters": accepted}, {"hyperparameters": refused}, f"spec.hyperparameters.{field}")
        for message, accepted, refused, field in (
            (
                "minLrRatio is the end of schedules",
                {"lrSchedulerType": "cosine_with_min_lr", "minLrRatio": 0.1},
                {"lrSchedulerType": "cosine", "minLrRatio": 0.1},
                "minLrRatio",
            ),
            ("minLrRatio is the end of schedules", WSD | {"minLrRatio": 0}, {"minLrRatio": 0}, "minLrRatio"),
            ("decaySteps is the end of schedule", WSD | {"decaySteps": 0.2}, {"decaySteps": 0.2}, "decaySteps"),
            ("decaySteps must be a fraction", WSD | {"decaySteps": 5}, WSD | {"decaySteps": 5.5}, "decaySteps"),
            (
                "warmupSteps and decaySteps together",
                WSD | {"warmupSteps": 0.5, "decaySteps": 0.5},
                WSD | {"warmupSteps": 0.5, "decaySteps": 0.6},
                "decaySteps",
            ),
            (
                "schedule constant has no warm-up",
                {"lrSchedulerType": "constant", "warmupSteps": 0},
                {"lrSchedulerType": "constant", "warmupSteps": 0.1},
                "warmupSteps",
            ),
            (
                "schedule constant has no warm-up",
                {"lrSchedulerType": "constant_with_warmup", "warmupSteps": 5},
                {"lrSchedulerType": "constant", "warmupSteps": 5},
                "warmupSteps",
            ),
            *(
                (
                    "adamBeta1 and adamBeta2 are of AdamW, Lion and AdEMAMix",
                    {"adamBeta2": 0.95, "optim": "lion_8bit"},
                    {"adamBeta2": 0.95, "optim": optim},
                    "optim",
                )
                for optim in ("adafactor", "adagrad", "rmsprop", "sgd")
            ),
            *(
                (
                    "adamEpsilon is of AdamW and AdEMAMix",
                    {"adamEpsilon": 1e-6, "optim": "adamw_8bit"},
                    {"adamEpsilon": 1e-6, "optim": optim},
                    "optim",
                )
                for optim in ("lion_32bit", "paged_lion_8bit", "sgd")
            ),
            (
                "the noise of NEFTune depends on the length of a row, which packing",
                {"neftuneNoiseAlpha": 5, "packing": "Never"},
                {"neftuneNoiseAlpha": 5, "packing": "Always"},
                "packing",
            ),
            (
                "the noise of NEFTune depends on the length of a row, which FlashAttention",
                {"neftuneNoiseAlpha": 5, "attention": "SDPA"},
                {"neftuneNoiseAlpha": 5, "attention": "FlashAttention"},
                "attention",
            ),
        )
    ),
    (
        "rows of objective DomainAdaptation are plain text",
        {"objective": "Chat", "dataset": BASE["dataset"] | {"systemMessage": "Be brief."}},
        {"objective": "DomainAdaptation", "dataset": BASE["dataset"] | {"systemMessage": "Be brief."}},
        "spec.dataset.systemMessage",
    ),
    (
        "rows of objective DomainAdaptation are plain text, which is split",
        {"objective": "DPO", "dataset": BASE["dataset"] | {"longRows": "Skip"}},
        {"objective": "DomainAdaptation", "dataset": BASE["dataset"] | {"longRows": "Skip"}},
        "spec.dataset.longRows",
    ),
    (
        "trainOn works with objectives Instruction and Chat",
        {"objective": "Chat", "dataset": BASE["dataset"] | {"trainOn": "Everything"}},
        {"objective": "DPO", "dataset": BASE["dataset"] | {"trainOn": "LastAnswer"}},
        "spec.dataset.trainOn",
    ),
    (
        "NEFTune works with objectives",
        {"objective": "Instruction", "hyperparameters": {"neftuneNoiseAlpha": 5}},
        {"objective": "DPO", "hyperparameters": {"neftuneNoiseAlpha": 5}},
        "spec.hyperparameters.neftuneNoiseAlpha",
    ),
    (
        KEYS,
        {"resources": {"limits": {"cpu": 4, "example.com/gpu": "1", "memory": "24Gi"}}},
        {"resources": {"limits": {"a b": "1"}}},
        "spec.resources.limits",
    ),
    (
        TOPOLOGY,
        {"scheduling": {"queueName": "team-a", "topology": {"mode": "Required", "level": "example.com/rack"}}},
        {"scheduling": {"topology": {"mode": "Preferred"}}},
        "spec.scheduling.topology.level",
    ),
    (
        TOPOLOGY,
        {"scheduling": {"topology": {"mode": "Unconstrained"}}},
        {"scheduling": {"topology": {"mode": "Unconstrained", "level": "rack"}}},
        "spec.scheduling.topology.level",
    ),
    *(
        (message, tolerating(good), tolerating(bad), f"spec.scheduling.tolerations[0].{path}")
        for message, path, good, bad in (
            ("a toleration with operator Exists has no value", "value", {"operator": "Exists"}, EXISTS_WITH_VALUE),
            ("a toleration with operator Exists has no value", "value", {"value": "x"}, EXISTS_WITH_VALUE),
            (
                "tolerationSeconds is only for effect NoExecute",
                "effect",
                {"effect": "NoExecute", "tolerationSeconds": 60},
                {"tolerationSeconds": 60},
            ),
            (
                "tolerationSeconds is only for effect NoExecute",
                "effect",
                {"effect": "NoSchedule"},
                {"effect": "NoSchedule", "tolerationSeconds": 60},
            ),
        )
    ),
    (
        "minDomains is only for whenUnsatisfiable DoNotSchedule",
        spreading(whenUnsatisfiable="DoNotSchedule", minDomains=2),
        spreading(whenUnsatisfiable="ScheduleAnyway", minDomains=2),
        "spec.scheduling.topologySpreadConstraints[0].minDomains",
    ),
    *(
        (
            "operators In and NotIn need values, Exists and DoesNotExist have none",
            spreading(labelSelector={"matchExpressions": [{"key": "app"} | good]}),
            spreading(labelSelector={"matchExpressions": [{"key": "app"} | bad]}),
            "spec.scheduling.topologySpreadConstraints[0].labelSelector.matchExpressions[0].values",
        )
        for good, bad in (
            ({"operator": "In", "values": ["x"]}, {"operator": "NotIn"}),
            ({"operator": "Exists"}, {"operator": "Exists", "values": ["x"]}),
            ({"operator": "DoesNotExist", "values": []}, {"operator": "In", "values": []}),
        )
    ),
    *(
        (
            "and Gt and Lt one integer",
            near(good),
            near(bad),
            f"{REQUIRED_NODES}.nodeSelectorTerms[0].matchExpressions[0].values",
        )
        for good, bad in (
            ({"operator": "In", "values": ["x", "y"]}, {"operator": "In"}),
            ({"operator": "Gt", "values": ["4"]}, {"operator": "Gt", "values": ["x"]}),
            ({"operator": "Lt", "values": ["0"]}, {"operator": "Lt", "values": ["1", "2"]}),
            ({"operator": "Exists"}, {"operator": "Exists", "values": ["x"]}),
            ({"operator": "DoesNotExist"}, {"operator": "Gt"}),
        )
    ),
    *((message, EVALUATING, merged(EVALUATING, path, value), "spec.mode") for message, path, value in EVALUATE_REFUSES),
    ("mode Evaluate evaluates an existing", EVALUATING, without(EVALUATING, "tuning"), "spec.mode"),
    ("mode Evaluate needs held-out rows", EVALUATING, EVALUATING | {"dataset": BASE["dataset"]}, "spec.mode"),
    (EARLY, SPLIT | {"earlyStopping": {"patience": 2}}, {"earlyStopping": {"patience": 2}}, "spec.earlyStopping"),
    *(
        ("without a full model no pod merges", good | APART, {"tuning": {"method": "LoRA"}} | APART, "spec.resources")
        for good in (
            {"tuning": {"method": "Full"}},
            {"tuning": {"method": "LoRA"}, "output": BASE["output"] | {"merge": "BF16"}},
        )
    ),
    ("evaluation.steps needs held-out rows", SPLIT | EVERY_STEP, EVERY_STEP, "spec.evaluation.steps"),
    *(
        ("resumePolicy Never saves no checkpoint", good, bad, "spec.checkpoint.steps")
        for good, bad in (
            ({"checkpoint": {"steps": 5}}, {"checkpoint": {"steps": 5, "resumePolicy": "Never"}}),
            (
                {"checkpoint": {"steps": 5, "resumePolicy": "Never", "keep": 1}},
                SPLIT | {"checkpoint": {"steps": 5, "resumePolicy": "Never", "keep": 1}},
            ),
        )
    ),
    (
        "maxEvalLoss and mustImprove need held-out rows",
        SPLIT | {"evaluation": {"gate": {"maxEvalLoss": 2}}},
        {"evaluation": {"gate": {"maxEvalLoss": 2}}},
        "spec.evaluation.gate",
    ),
    (
        "RLHF has no held-out loss: remove evaluation.gate.maxEvalLoss",
        rlhf(rewards=LENGTHS) | SPLIT | {"evaluation": {"gate": {"mustImprove": True}}},
        rlhf(rewards=LENGTHS) | SPLIT | {"evaluation": {"gate": {"maxEvalLoss": 2}}},
        "spec.evaluation.gate.maxEvalLoss",
    ),
    (
        "evaluation.gate has no condition",
        SPLIT | {"evaluation": {"gate": {"maxEvalLoss": 2}}},
        SPLIT | {"evaluation": {"gate": {}}},
        "spec.evaluation.gate",
    ),
    (
        "mustMatchExpected needs an expected answer",
        {"evaluation": {"gate": {"mustMatchExpected": True}} | EXPECTING},
        {"evaluation": {"gate": {"mustMatchExpected": True}, "prompts": [{"prompt": "Why?"}]}},
        "spec.evaluation.gate.mustMatchExpected",
    ),
    (
        "mustImprove compares with the model before training",
        SPLIT | {"evaluation": {"gate": {"mustImprove": True}}},
        SPLIT | {"evaluation": {"gate": {"mustImprove": True}, "baseline": False}},
        "spec.evaluation.gate.mustImprove",
    ),
]
CHANGES = {
    "mode": "Evaluate",
    "objective": "Instruction",
    "model": {"uri": "s3://models/other"},
    "tuning": {"method": "LoRA"},
    "dataset": SPLIT["dataset"] | {"maxSamples": 5},
    "hyperparameters": {"maxSteps": 7},
    "evaluation": {"steps": 3},
    "output": {"uri": "s3://models/elsewhere"},
    "earlyStopping": {"patience": 9},
    "dpo": {"beta": 0.2},
    "lineage": {"parentRef": {"name": "other"}},
}
FIXED_WITH_THEIR_OBJECTIVE = ("kto", "rlhf", "distillation")
REFUSED_BY_SCHEMA = [
    ({"startDeadlineSeconds": 0}, "spec.startDeadlineSeconds"),
    ({"activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds"),
    ({"stallTimeoutSeconds": 9}, "spec.stallTimeoutSeconds"),
    ({"ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished"),
    ({"suspend": "yes"}, "spec.suspend"),
    ({"checkpoint": {"keep": -1}}, "spec.checkpoint.keep"),
    ({"checkpoint": {"keep": 11}}, "spec.checkpoint.keep"),
    ({"objective": "Telepathy"}, "spec.objective"),
    ({"model": {"uri": "s3://models"}}, "spec.model.uri"),
    ({"tuning": {"lora": {"rank": 0}}}, "spec.tuning.lora.rank"),
    ({"hyperparameters": {"learningRate": 0}}, "spec.hyperparameters.learningRate"),
    ({"hyperparameters": {"learningRate": "fast"}}, "spec.hyperparameters.learningRate"),
    ({"tuning": {"vramBudget": "a lot"}}, "spec.tuning.vramBudget"),
    (
        {"tuning": {"initialAdapter": {"fromParent": False}}, "lineage": {"parentRef": {"name": "sft"}}},
        "spec.tuning.initialAdapter.fromParent",
    ),
    ({"dpo": {"lossType": "guess"}}, "spec.dpo.lossType"),
    ({"model": {"uri": "hf://org/name", "revision": "../../etc"}}, "spec.model.revision"),
    ({"model": BASE["model"] | {"chatTemplate": {"name": "Llama"}}}, "spec.model.chatTemplate.name"),
    ({"model": BASE["model"] | {"chatTemplateKwargs": {"a": False}}}, "spec.model.chatTemplateKwargs.a"),
    ({"dataset": {"train": {"uri": "s3://data/x"}, "columns": {"Prompt!": "x"}}}, "spec.dataset.columns"),
    ({"resources": {"requests": {"memory": "lots"}}}, "spec.resources.requests"),
    ({"dataset": {"train": {"uri": "s3://data/x", "sha256": "abc"}}}, "spec.dataset.train.sha256"),
    (blend(), "spec.dataset.train.sources"),
    (source("hf://datasets/owner/rows", config="../x"), "spec.dataset.train.config"),
    (source("hf://datasets/owner/rows", split="a b"), "spec.dataset.train.split"),
    (blend(*({} for _ in range(17))), "spec.dataset.train.sources"),
    (blend({"weight": 1}, {"weight": 0}), "spec.dataset.train.sources[1].weight"),
    (blend({"sample": "Last"}), "spec.dataset.train.sources[0].sample"),
]
UNKNOWN_FIELDS = [
    ({"learningRate": 1e-4}, "spec.learningRate"),
    ({"hyperparameters": {"learning_rate": 1e-4}}, "spec.hyperparameters.learning_rate"),
    ({"hyperparameters": {"epochs": 1}}, "spec.hyperparameters.epochs"),
    ({"tuning": {"lora": {"r": 8}}}, "spec.tuning.lora.r"),
    (blend({}, {"weight": 1, "fraction": 0.5}), "spec.dataset.train.sources[1].fraction"),
]


@pytest.fixture(scope="module")
def jobs(control_plane: Path) -> Iterator["Jobs"]:
    with config.new_client_from_config(str(control_plane)) as api:
        yield Jobs(client.CustomObjectsApi(api))


class Jobs:
    """FineTuneJobs of one namespace, as a user applies them."""

    def __init__(self, api: client.CustomObjectsApi) -> None:
        self.api = api
        self.created = 0

    def create(self, spec: Spec, *, dry_run: bool = True) -> dict[str, Any]:
        self.created += 1
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": f"rule-{self.created}"},
            "spec": spec,
        }
        extra = {"dry_run": "All"} if dry_run else {}
        return self.api.create_namespaced_custom_object(
            names.GROUP, names.VERSION, "default", names.PLURAL, body, field_validation="Strict", **extra
        )

    def replace(self, stored: dict[str, Any], spec: Spec) -> dict[str, Any]:
        body = {key: stored[key] for key in ("apiVersion", "kind", "metadata")} | {"spec": spec}
        return self.api.replace_namespaced_custom_object(
            names.GROUP, names.VERSION, "default", names.PLURAL, stored["metadata"]["name"], body, dry_run="All"
        )

    def refusal(self, spec: Spec) -> str:
        with pytest.raises(client.ApiException) as caught:
            self.create(spec)
        return said(caught.value)


def said(error: client.ApiException) -> str:
    return str(json.loads(error.body)["message"])


def all_rules(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for rule in node.get("x-kubernetes-validations", []):
            yield rule.get("messageExpression", rule["message"])
        for child in node.values():
            yield from all_rules(child)
    if isinstance(node, list):
        for child in node:
            yield from all_rules(child)


@pytest.mark.parametrize(("message", "good", "bad", "path"), AT_CREATION)
def test_a_rule_accepts_the_right_spec_and_names_field_and_fix_for_the_wrong_one(
    jobs: Jobs, message: str, good: Spec, bad: Spec, path: str
) -> None:
    jobs.create(BASE | good)
    refusal = jobs.refusal(BASE | bad)
    assert message in refusal
    assert path in refusal


def test_every_field_of_a_training_is_named_if_mode_evaluate_is_given_several(jobs: Jobs) -> None:
    given = ("hyperparameters.maxSteps", "earlyStopping", "checkpoint.steps")
    spec = EVALUATING
    for path, value in ((path, value) for _, path, value in EVALUATE_REFUSES if path in given):
        spec = merged(spec, path, value)
    refusal = jobs.refusal(BASE | spec)
    assert [path for path in given if f"{_NOTHING}{path}" not in refusal] == []
    assert {path for _, path, _ in EVALUATE_REFUSES} >= set(WITHOUT_EFFECT)


def test_every_rule_of_the_crd_is_in_one_of_these_tables() -> None:
    tested = (
        [message for message, *_ in AT_CREATION]
        + [f"{name} is fixed when the job is created" for name in (*CHANGES, *FIXED_WITH_THEIR_OBJECTIVE)]
        + ["evaluation.prompts, by which mustMatchExpected judges the result, is fixed when the job is created"]
        + [f"{path} is fixed when the job is created" for path in ("preflight.enabled", "checkpoint.keep")]
    )
    rules = list(all_rules(build_crd()))
    assert len(rules) > len(CHANGES)
    assert [message for message in rules if not any(one in message for one in tested)] == []


TEACHER = {"uri": "hf://acme/larger"}
OPERATIONAL = {
    "suspend": True,
    "backoffLimit": 7,
    "maxPreemptions": 7,
    "startDeadlineSeconds": 7,
    "activeDeadlineSeconds": 7,
    "stallTimeoutSeconds": 70,
    "ttlSecondsAfterFinished": 0,
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_a_field_that_is_fixed_at_creation_cannot_change_but_others_can(jobs: Jobs, field: str) -> None:
    blocks = {"earlyStopping": {"patience": 3}, "lineage": {"parentRef": {"name": "sft"}}}
    blocks |= {"objective": "DPO", "dpo": {}} if field == "dpo" else {}
    stored = jobs.create(BASE | SPLIT | blocks, dry_run=False)
    jobs.replace(stored, stored["spec"] | OPERATIONAL)
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, stored["spec"] | {field: CHANGES[field]})
    assert f"{field} is fixed when the job is created" in said(caught.value)
    assert f"spec.{field}" in said(caught.value)


@pytest.mark.parametrize(
    ("objective", "before", "after"),
    [
        ("KTO", {"beta": 0.1}, {"beta": 0.2}),
        ("RLHF", {"rewards": LENGTHS}, {"rewards": LENGTHS, "numGenerations": 4}),
        ("Distillation", {"teacher": TEACHER}, {"teacher": TEACHER, "beta": 0}),
        ("Distillation", {"teacher": TEACHER}, {"teacher": {"uri": "hf://acme/other"}}),
    ],
)
def test_the_settings_of_an_objective_are_fixed_at_creation(
    jobs: Jobs, objective: str, before: Spec, after: Spec
) -> None:
    block = objective.lower()
    stored = jobs.create(BASE | {"objective": objective, block: before}, dry_run=False)
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, stored["spec"] | {block: after})
    assert f"{block} is fixed when the job is created" in said(caught.value)


def test_the_token_of_a_teacher_can_be_added_changed_and_removed(jobs: Jobs) -> None:
    without = jobs.create(BASE | distillation(**TEACHER), dry_run=False)
    having = jobs.create(BASE | distillation(**TEACHER, **TOKEN), dry_run=False)
    jobs.replace(without, having["spec"])
    jobs.replace(having, without["spec"])
    jobs.replace(having, without["spec"] | distillation(**TEACHER, credentialsSecretRef={"name": "other"}))


@pytest.mark.parametrize("before", [{}, {"earlyStopping": {"patience": 3}}], ids=["added", "removed"])
def test_an_optional_block_can_be_neither_added_nor_removed(jobs: Jobs, before: Spec) -> None:
    stored = jobs.create(BASE | SPLIT | before, dry_run=False)
    after = copy.deepcopy(stored["spec"])
    if before:
        del after["earlyStopping"]
    else:
        after["earlyStopping"] = {"patience": 3}
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, after)
    assert "earlyStopping is fixed when the job is created" in said(caught.value)


OFF = {"enabled": False}
HUB_SOURCE = {"uri": "hf://datasets/acme/rows"}
TOKEN = {"credentialsSecretRef": {"name": "token"}}
HUB_JOB = BASE | {
    "model": {"uri": "hf://acme/tiny", "revision": "main"},
    "dataset": {"train": HUB_SOURCE, "validation": HUB_SOURCE | {"revision": "v1"}},
}


@pytest.mark.parametrize(
    "change",
    [
        {"model": HUB_JOB["model"] | TOKEN},
        {"dataset": HUB_JOB["dataset"] | {"train": HUB_SOURCE | TOKEN}},
        {"dataset": HUB_JOB["dataset"] | {"validation": HUB_JOB["dataset"]["validation"] | TOKEN}},
        {"lineage": {"annotations": {"ticket": "5"}}},
        {"output": HUB_JOB["output"] | {"hub": {"repo": "acme/helpdesk"} | TOKEN}},
        {"output": HUB_JOB["output"] | {"oci": {"repository": "r.example/helpdesk"} | TOKEN}},
        {"lineage": {}},
        {"evaluation": {"prompts": [{"prompt": "token?"}]}},
        {"evaluation": {"prompts": []}},
    ],
)
def test_a_part_that_decides_nothing_about_the_result_can_be_added_changed_and_removed(
    jobs: Jobs, change: Spec
) -> None:
    without = jobs.create(HUB_JOB, dry_run=False)
    jobs.replace(without, without["spec"] | change)
    having = jobs.create(HUB_JOB | change, dry_run=False)
    jobs.replace(having, without["spec"])
    other = json.loads(json.dumps(having["spec"]).replace('"token"', '"other"').replace('"5"', '"6"'))
    jobs.replace(having, other)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"uri": "hf://acme/tiny"}},
        {"model": {"uri": "hf://acme/tiny", "revision": "v2"}},
        {"model": {"uri": "hf://acme/other", "revision": "main"}},
        {"dataset": {"train": HUB_SOURCE}},
        {"dataset": HUB_JOB["dataset"] | {"train": HUB_SOURCE | {"revision": "v2"}}},
        {"dataset": HUB_JOB["dataset"] | {"validation": HUB_SOURCE}},
        {"dataset": HUB_JOB["dataset"] | {"validation": HUB_SOURCE | {"revision": "v2"}}},
        {"dataset": HUB_JOB["dataset"] | {"columns": {"prompt": "question"}}},
        {"dataset": HUB_JOB["dataset"] | {"maxRejectedPercent": 30}},
        {"dataset": HUB_JOB["dataset"] | {"maxSamples": 3}},
        {"dataset": HUB_JOB["dataset"] | {"format": "OpenAI"}},
        {"dataset": HUB_JOB["dataset"] | {"train": {"sources": [HUB_SOURCE]}}},
        {"lineage": {"parentRef": {"name": "sft"}}},
        {"evaluation": {"maxNewTokens": 8}},
        {"evaluation": {"steps": 8}},
        {"evaluation": {"ability": {"uri": "s3://data/questions.jsonl"}}},
    ],
)
def test_every_other_part_of_such_a_block_is_fixed(jobs: Jobs, change: Spec) -> None:
    stored = jobs.create(HUB_JOB, dry_run=False)
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, stored["spec"] | change)
    assert f"{next(iter(change))} is fixed when the job is created, except" in said(caught.value)


@pytest.mark.parametrize(("before", "after"), [({}, False), ({"preflight": {}}, False), ({"preflight": OFF}, True)])
def test_whether_a_job_has_a_preflight_is_fixed(jobs: Jobs, before: Spec, after: bool) -> None:
    stored = jobs.create(BASE | before, dry_run=False)
    jobs.replace(stored, stored["spec"] | {"preflight": {"enabled": not after}})
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, stored["spec"] | {"preflight": {"enabled": after}})
    assert "preflight.enabled is fixed when the job is created" in said(caught.value)


@pytest.mark.parametrize(("before", "after"), [({}, 1), ({"checkpoint": {"keep": 2, "steps": 5}}, 0)])
def test_how_many_checkpoints_a_job_keeps_is_fixed_and_the_rest_of_the_block_is_not(
    jobs: Jobs, before: Spec, after: int
) -> None:
    stored = jobs.create(BASE | before, dry_run=False)
    kept = stored["spec"]["checkpoint"]["keep"]
    jobs.replace(stored, stored["spec"] | {"checkpoint": {"keep": kept, "steps": 7, "saveTotalLimit": 5}})
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, stored["spec"] | {"checkpoint": {"keep": after}})
    assert "checkpoint.keep is fixed when the job is created" in said(caught.value)


@pytest.mark.parametrize("prompts", [None, [], [{"prompt": "b?", "expected": "b"}]])
def test_prompts_are_fixed_if_the_result_is_judged_by_them(jobs: Jobs, prompts: Any) -> None:
    evaluation = {"prompts": [{"prompt": "a?", "expected": "a"}], "gate": {"mustMatchExpected": True}}
    stored = jobs.create(BASE | {"evaluation": evaluation}, dry_run=False)
    edited = {"gate": evaluation["gate"]} | ({} if prompts is None else {"prompts": prompts})
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, stored["spec"] | {"evaluation": edited})
    assert "evaluation.prompts, by which mustMatchExpected judges the result, is fixed" in said(caught.value)


@pytest.mark.parametrize(("patch", "path"), REFUSED_BY_SCHEMA)
def test_a_value_out_of_bounds_is_refused_with_its_path(jobs: Jobs, patch: Spec, path: str) -> None:
    assert path in jobs.refusal(BASE | patch)


def test_a_number_that_a_client_sends_as_a_text_is_refused_with_its_path_and_type(jobs: Jobs) -> None:
    """PyYAML reads `2e-4` as a text; docs/gitops.md quotes this answer."""
    refusal = jobs.refusal(BASE | {"hyperparameters": {"learningRate": "2e-4"}})
    assert "spec.hyperparameters.learningRate" in refusal
    assert "must be of type number" in refusal


@pytest.mark.parametrize(("patch", "path"), UNKNOWN_FIELDS)
def test_a_misspelt_field_is_refused_by_its_path(jobs: Jobs, patch: Spec, path: str) -> None:
    refusal = jobs.refusal(BASE | patch)
    assert "unknown field" in refusal
    assert path in refusal


def test_the_smallest_job_gets_the_documented_defaults(jobs: Jobs) -> None:
    stored = jobs.create(BASE, dry_run=False)
    assert stored["spec"]["tuning"] == {"method": "Auto"}
    assert stored["spec"]["hyperparameters"] == {
        "maxLength": 2048,
        "packing": "Auto",
        "precision": "Auto",
        "seed": 42,
    }
    assert stored["status"] == {"observedGeneration": -1}


def test_applying_the_defaulted_job_again_changes_nothing(jobs: Jobs) -> None:
    stored = jobs.create(BASE, dry_run=False)
    again = jobs.replace(stored, BASE)
    assert again["metadata"]["generation"] == stored["metadata"]["generation"]
    assert again["spec"] == stored["spec"]


def test_the_api_server_has_the_version_that_was_asked_for(control_plane: Path) -> None:
    minor = os.environ.get("KUBERNETES_MINOR")
    folder = f"kubernetes-{minor}" if minor else "kubernetes"
    pinned = (ROOT / "tests/cluster/binaries" / folder / "go.mod").read_text()
    with config.new_client_from_config(str(control_plane)) as api:
        served = client.VersionApi(api).get_code().git_version
    assert re.search(rf"k8s.io/kubernetes {re.escape(served)}\b", pinned)
