"""Which servers can serve the result, and how: obstacles by the rules of vLLM, and snippets to copy."""

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from finetune_api.inputs.claims import is_claim_uri, split_claim_uri
from finetune_trainer.report.text import inline, table
from finetune_trainer.storage.hub.uris import is_hub_uri, repo_name

NO = "no"
VLLM_DEFAULT_RANK = 16
VLLM_WITH_PATTERNS = "0.32"
"""The first version that scales a module by its own rank and alpha; earlier ones ignore both patterns."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `--max-lora-rank` that vLLM accepts; adapters of lower ranks are served too."""
UNSERVED_MODULES = ("embed_tokens", "wte", "lm_head", "embed_out")
MERGE_INSTEAD = "set `output.merge` and serve `merged/`"
LONGEST_NAME = 50
LONGEST_LABEL = 63
RESOURCES = {"limits": {"cpu": "4", "memory": "24Gi", "nvidia.com/gpu": "1"}}
ADAPTER_NAME = "tuned"
"""The model's name in requests to a server of the snippets."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a server refuses an adapter, and the fix; `answer` is under which condition it serves it, else `no`."""

    reason: str
    fix: str
    answer: str = NO
    is_certain: bool = False
    """Whether the tests have seen vLLM refuse such an adapter, so that no server needs to be asked."""

    @property
    def is_final(self) -> bool:
        """Whether no setting of a server suffices."""
        return self.answer == NO


@dataclass(frozen=True, slots=True)
class Place:
    """The locations of base and result, and the result's name; a local result is in the folder of its report."""

    name: str
    output: str
    base: str
    revision: str | None = None
    endpoint: str | None = None
    hub_endpoint: str | None = None
    is_local: bool = False
    image: str | None = None
    """The result in a registry, as `host/path:tag`, if it is pushed to one as an image."""
    artifact: str | None = None
    """The same, if it is pushed as a ModelPack artifact."""
    namespace: str = "default"
    needs_tokenizer: bool = False
    """Whether a server would read other tokens with the base's tokenizer than with that of the adapter."""


def max_lora_rank(rank: int) -> int | None:
    """Return the lowest `--max-lora-rank` that accepts an adapter of this rank; None if there is none."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def highest_rank(adapter: Mapping[str, Any]) -> int:
    """Return the highest rank of an adapter's modules, from its `adapter_config.json`."""
    return max([int(adapter.get("r") or 0), *map(int, (adapter.get("rank_pattern") or {}).values())])


def _has_own_scalings(adapter: Mapping[str, Any]) -> bool:
    """Return whether a pattern changes the scaling of a module, and not only its rank."""
    ranks, alphas = adapter.get("rank_pattern") or {}, adapter.get("alpha_pattern") or {}
    rank, alpha = int(adapter.get("r") or 0), float(adapter.get("lora_alpha") or 0)

    def scale(key: str) -> float:
        own = int(ranks.get(key, rank))
        return float(alphas.get(key, alpha)) / (math.sqrt(own) if adapter.get("use_rslora") else own)

    return len({scale(key) for key in [*ranks, *alphas]} | {scale("")}) > 1


def adapter_obstacles(adapter: Mapping[str, Any]) -> list[Obstacle]:
    """Return what prevents vLLM from serving an adapter by default, from its `adapter_config.json`."""
    rank = highest_rank(adapter)
    allowed = max_lora_rank(rank)
    found = []
    if allowed is None:
        found.append(Obstacle(f"rank {rank} is above {VLLM_RANKS[-1]}, the highest that vLLM accepts", MERGE_INSTEAD))
    elif rank > VLLM_DEFAULT_RANK:
        hint = "" if rank == allowed else f"; {rank} itself is not a value that it accepts"
        reason = f"rank {rank} is above the server's default of {VLLM_DEFAULT_RANK}{hint}"
        found.append(Obstacle(reason, f"start it with `--max-lora-rank {allowed}`", "with a flag"))
    if _has_own_scalings(adapter):
        reason = f"some modules have a scaling of their own, which vLLM reads since {VLLM_WITH_PATTERNS}"
        fix = f"use vLLM {VLLM_WITH_PATTERNS} or later, or {MERGE_INSTEAD}"
        found.append(Obstacle(reason, fix, f"since vLLM {VLLM_WITH_PATTERNS}"))
    if saved := adapter.get("modules_to_save"):
        reason = f"whole modules are trained in addition to the adapter: {_names(saved)}"
        found.append(Obstacle(reason, MERGE_INSTEAD, is_certain=True))
    if adapter.get("use_dora"):
        found.append(Obstacle("DoRA's magnitudes are not supported", MERGE_INSTEAD, is_certain=True))
    if adapter.get("bias", "none") != "none":
        found.append(Obstacle(f"biases are trained ({inline(adapter['bias'])})", MERGE_INSTEAD, is_certain=True))
    if parameters := adapter.get("target_parameters"):
        found.append(Obstacle(f"it was not tried with an adapter on experts ({_names(parameters)})", MERGE_INSTEAD))
    targets = adapter.get("target_modules") or []
    names = targets if isinstance(targets, list | tuple) else []  # a text is a pattern of names
    unserved = [name for name in names if name.rpartition(".")[2] in UNSERVED_MODULES]
    if unserved:
        reason = f"adapters on embeddings or output head ({_names(unserved)}) are served for some architectures only"
        found.append(Obstacle(reason, MERGE_INSTEAD))
    return found


def servability_table(
    adapter: Mapping[str, Any] | None, *, has_merged: bool, is_reward_model: bool, withheld: str = ""
) -> str:
    """Return one row per folder and server, with reason and fix if it cannot be served as it is."""
    servers = "vLLM, KServe"
    rows = []
    if is_reward_model:
        reason = "a reward model scores a text and generates none, so no server for text generation accepts it"
        folders = (["`adapter/`"] if adapter is not None else []) + (["`merged/`"] if has_merged else [])
        rows += [[folder, servers, "no", reason, "use it as shown below"] for folder in folders]
    elif adapter is not None:
        rows.append(["`adapter/`", "PEFT", "yes", "-", "-"])
        obstacles = adapter_obstacles(adapter)
        is_refused = any(one.is_final for one in obstacles)
        rows += [["`adapter/`", servers, NO if is_refused else one.answer, one.reason, one.fix] for one in obstacles]
        rows += [] if obstacles else [["`adapter/`", servers, "yes", "-", "-"]]
    if not is_reward_model:
        missing = (
            ["it was withheld", 'see "The full model"'] if withheld else ["it was not requested", "set `output.merge`"]
        )
        merged = ["yes", "-", "-"] if has_merged else ["no", *missing]
        rows.append(["`merged/`", servers, *merged])
    return table(["folder", "server", "servable?", "why not", "what to do"], rows)


def fetch_base(place: Place) -> str:
    """Return the command that copies the base model to the folder `base`."""
    if is_hub_uri(place.base):
        revision = f" --revision {shlex.quote(place.revision)}" if place.revision else ""
        where = f"HF_ENDPOINT={shlex.quote(place.hub_endpoint)} " if place.hub_endpoint else ""
        return f"{where}hf download {shlex.quote(repo_name(place.base))}{revision} \\\n  --local-dir base"
    if is_claim_uri(place.base) and not place.is_local:
        claim, path = split_claim_uri(place.base)
        return f"# base: {path or 'the top folder'} in the PersistentVolumeClaim {claim}, mounted or copied"
    if place.is_local:
        return f"# base: the folder that --map names for {shlex.quote(place.base)}, or a copy of it"
    return f"aws{_endpoint(place)} s3 cp --recursive {shlex.quote(place.base)} base"


def fetch_result(place: Place, folder: str, target: str | None = None) -> str:
    """Return the command that copies a folder of the result to `target`, or to one of the same name."""
    if place.is_local:
        return f"# {target or folder}: {f'a copy of {folder}, ' if target else ''}in the folder of this report"
    return f"aws{_endpoint(place)} s3 cp --recursive {shlex.quote(f'{place.output}/{folder}')} {target or folder}"


_ENCODE_QUESTION = """\
question = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(
    question, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""


def peft_snippet(loader: str, *, is_chat: bool) -> str:
    """Return Python code that answers with the adapter on the base, which that class of transformers loads: in a
    conversation, or by continuing a text."""
    encode = _ENCODE_QUESTION if is_chat else 'inputs = tokenizer("Hello", return_tensors="pt")'
    return f"""\
from peft import PeftModel
from transformers import {", ".join(sorted([loader, "AutoTokenizer", "GenerationConfig"]))}

tokenizer = AutoTokenizer.from_pretrained("adapter")
model = PeftModel.from_pretrained({loader}.from_pretrained("base"), "adapter")
settings = GenerationConfig.from_pretrained("adapter", max_new_tokens=128)
{encode}
print(tokenizer.decode(model.generate(**inputs, generation_config=settings)[0]))"""


def vllm_adapter_snippet(place: Place, rank: int) -> str:
    """Return the command that serves the adapter on the base."""
    allowed = max_lora_rank(rank) or VLLM_RANKS[-1]
    return (
        f"vllm serve base --enable-lora --max-lora-rank {allowed} --lora-modules {ADAPTER_NAME}=adapter \\\n"
        f"  {' '.join(_settings_of(place, 'adapter'))}"
    )


def vllm_merged_snippet() -> str:
    """Return the command that serves the full model under the adapter's name."""
    return f"vllm serve merged --served-model-name {ADAPTER_NAME}"


def llama_cpp_snippet(file_type: str) -> str:
    """Return the command that serves a GGUF file on the port of the other snippets."""
    return f"llama-server --port 8000 --alias {ADAPTER_NAME} -m gguf/model-{file_type}.gguf"


def ollama_snippet(place: Place) -> str:
    """Return the commands that add a GGUF file to Ollama and ask it."""
    name = service_name(place.name)
    return f"ollama create {name} -f gguf/Modelfile\nollama run {name} Hello"


def ask_snippet(*, is_chat: bool) -> str:
    """Return the command that asks a server of this machine: a conversation, or a text to continue."""
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]} if is_chat else {"prompt": "Hello"}
    body = json.dumps({"model": ADAPTER_NAME, **asked, "max_tokens": 128, "temperature": 0})
    path = "chat/completions" if is_chat else "completions"
    return f"curl http://localhost:8000/v1/{path} -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"


def kserve_merged(place: Place) -> str:
    """Return an InferenceService of the full model under the adapter's name."""
    return _service(place, [f"--model_name={ADAPTER_NAME}"], {"storageUri": f"{place.output}/merged/"})


def kserve_adapter(place: Place, rank: int) -> str:
    """Return an InferenceService of base and adapter; several URIs for one model need KServe 0.16."""
    folder, base = "/mnt/models/adapter", "/mnt/models/base"
    # Of a claim, KServe mounts the top folder there, whatever path the URI has.
    path = split_claim_uri(place.base)[1] if is_claim_uri(place.base) else ""
    arguments = [
        f"--model_name={_base_name(place)}",
        f"--model_dir={'/'.join(filter(None, (base, path)))}",
        "--enable-lora",
        f"--max-lora-rank={max_lora_rank(rank) or VLLM_RANKS[-1]}",
        f"--lora-modules={ADAPTER_NAME}={folder}",
        *_settings_of(place, folder, "="),
    ]
    uris = [
        {"uri": _kserve_uri(place), "mountPath": base},
        {"uri": f"{place.output}/adapter/", "mountPath": folder},
    ]
    return _service(place, arguments, {}, {"storageUris": uris})


def kserve_llm_adapter(place: Place, rank: int) -> str:
    """Return an LLMInferenceService of base and adapter; its controller serves adapters since KServe 0.19.

    The hub of the base is named to the initializer, which takes settings since KServe 0.20.
    """
    adapters = {
        "maxRank": max_lora_rank(rank) or VLLM_RANKS[-1],
        "adapters": [{"name": ADAPTER_NAME, "uri": f"{place.output}/adapter/"}],
    }
    # KServe names the base like the service.
    base = {"name": name} if (name := _base_name(place)) != service_name(place.name) else {}
    arguments = _settings_of(place, f"/mnt/lora/{ADAPTER_NAME}", "=")
    server = {"name": "main", "args": arguments, "resources": RESOURCES}
    template: dict[str, Any] = {"containers": [server]}
    if names_hub(place):
        hub = {"name": "HF_ENDPOINT", "value": place.hub_endpoint}
        template["initContainers"] = [{"name": "storage-initializer", "env": [hub]}]
    spec = {
        "model": {"uri": _kserve_uri(place), **base, "lora": adapters},
        "replicas": 1,
        "router": {"gateway": {}, "route": {}},
        "template": template,
    }
    return _manifest("serving.kserve.io/v1alpha2", "LLMInferenceService", service_name(place.name), spec)


def image_volume(image: str) -> str:
    """Return the parts of a pod that mount an image with the result."""
    volume = {"name": "model", "image": {"reference": image, "pullPolicy": "IfNotPresent"}}
    mount = {"name": "model", "mountPath": "/mnt/model", "subPath": "models", "readOnly": True}
    pod = {"volumes": [volume], "containers": [{"name": "main", "volumeMounts": [mount]}]}
    return yaml.safe_dump(pod, sort_keys=False, width=1000).rstrip()


def pull_artifact(place: Place) -> str:
    """Return the command that copies a ModelPack artifact to a folder."""
    return f"oras pull {shlex.quote(place.artifact or '')} --output {service_name(place.name)}"


def names_hub(place: Place) -> bool:
    """Return whether the base is in a hub other than huggingface.co, whose address KServe needs."""
    return bool(place.hub_endpoint) and is_hub_uri(place.base)


def service_name(name: str, longest: int = LONGEST_NAME) -> str:
    """Return the job's name as a DNS label, as a service needs: no dots, no digit at the start."""
    label = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return (label if label[:1].isalpha() else f"m-{label}")[:longest].rstrip("-")


def _base_name(place: Place) -> str:
    """Return a name for the base under which no request for the adapter reaches it; KServe refuses equal names."""
    name = service_name(place.name)
    return f"{ADAPTER_NAME}-base" if name == ADAPTER_NAME else name


def _service(
    place: Place, arguments: list[str], source: Mapping[str, Any], adapter: Mapping[str, Any] | None = None
) -> str:
    model = {
        "modelFormat": {"name": "huggingface"},
        "args": arguments,
        **source,
        "resources": RESOURCES,
    }
    spec = {"predictor": {"model": model, **(adapter or {})}}
    # KServe creates nothing if this label of its host is too long: NAME-predictor-NAMESPACE.
    longest = LONGEST_LABEL - len(f"-predictor-{place.namespace}")
    name = service_name(place.name, max(1, min(LONGEST_NAME, longest)))
    return _manifest("serving.kserve.io/v1beta1", "InferenceService", name, spec)


def _manifest(version: str, kind: str, name: str, spec: Mapping[str, Any]) -> str:
    manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=1000).rstrip()


def _settings_of(place: Place, folder: str, sign: str = " ") -> list[str]:
    """Return the flags without which a server uses the base's chat template, ends of an answer and tokenizer."""
    tokenizer = [f"--tokenizer{sign}{folder}"] if place.needs_tokenizer else []
    return [f"--chat-template{sign}{folder}/chat_template.jinja", f"--generation-config{sign}{folder}", *tokenizer]


def _kserve_uri(place: Place) -> str:
    """Return the base's URI; without its last slash, KServe would also copy `base-large` for `base`."""
    if is_claim_uri(place.base):
        return place.base.rstrip("/")
    if not is_hub_uri(place.base):
        return f"{place.base.rstrip('/')}/"
    return f"hf://{repo_name(place.base)}" + (f":{place.revision}" if place.revision else "")


def _endpoint(place: Place) -> str:
    return f" --endpoint-url {shlex.quote(place.endpoint)}" if place.endpoint else ""


def _names(values: object) -> str:
    return inline(", ".join(map(str, values)) if isinstance(values, list | tuple) else values)
