"""A model larger than the memory of its pod is merged all the same, and its gate says that it cannot be run."""

import json
from typing import Any

import pytest
import yaml
from kubernetes import client
from user import Bench, kubectl, wait_for

pytestmark = pytest.mark.nightly

LIMIT_MIB = 1024
SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from finetune_trainer.merging.gate import GateNotRun, run_gate
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.pipeline.full_model import make_candidate
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.models.files.tensor_files import TensorFiles, total_bytes

torch.set_num_threads(1)
base, adapter, merged = (Path("/workspace") / name for name in ("base", "adapter", "merged"))
layers, width = 16, 8192
where = {}
base.mkdir(), adapter.mkdir()
for layer in range(layers):
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    where[name] = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
    generator = torch.Generator().manual_seed(layer)
    weight = torch.empty(width, width, dtype=torch.bfloat16).normal_(generator=generator)
    save_file({name: weight}, base / where[name], metadata={"format": "pt"})
    del weight
(base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
(base / "config.json").write_text(json.dumps({"vocab_size": 512, "dtype": "bfloat16"}))
prefix = "base_model.model.model.layers.{}.mlp.up_proj."
factors = {}
for layer in range(layers):
    factors[prefix.format(layer) + "lora_A.weight"] = torch.ones(8, width)
    factors[prefix.format(layer) + "lora_B.weight"] = torch.ones(width, 8)
save_file(factors, adapter / "adapter_model.safetensors")
(adapter / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
candidate = Candidate(name="unquantised base", directory=merged)
plan = GatePlan(base=base, adapter=adapter, precision="BF16", candidates=[candidate], samples=[], prompts=[],
            stop_ids=[2], max_new_tokens=8, tokenizer_sha256={}, device="cpu")
make_candidate(plan, candidate, lambda: None)
with TensorFiles.of_folder(base) as old, TensorFiles.of_folder(merged) as new:
    name = f"model.layers.{layers - 1}.mlp.up_proj.weight"
    right = torch.equal(new.read(name), (old.read(name).float() + 8).to(torch.bfloat16))
try:
    run_gate(plan, Path("/workspace"), lambda: None, StopFlag())
    reason = ""
except GateNotRun as why:
    reason = str(why)
print(json.dumps({"bytes": total_bytes(merged), "right": right, "gate": reason}))
"""


def pod(image: str) -> dict[str, Any]:
    memory = {"limits": {"memory": f"{LIMIT_MIB}Mi"}, "requests": {"memory": "256Mi", "cpu": "500m"}}
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    user = {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "merge"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": user,
            "volumes": [{"name": "workspace", "emptyDir": {}}],
            "containers": [
                {
                    "name": "merge",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", SCRIPT],
                    "env": [{"name": name, "value": "/workspace"} for name in names],
                    "resources": memory,
                    "securityContext": secure,
                    "volumeMounts": [{"name": "workspace", "mountPath": "/workspace"}],
                }
            ],
        },
    }


def test_a_model_of_twice_the_pods_memory_is_merged_and_its_gate_reports_what_it_lacks(bench: Bench) -> None:
    deployed = client.AppsV1Api().read_namespaced_deployment("finetune-operator", "finetune-system")
    settings = {one.name: one.value for one in deployed.spec.template.spec.containers[0].env}
    image = next(value for name, value in settings.items() if name.endswith("TRAINER_IMAGE"))
    kubectl("apply", "-n", bench.namespace, "-f", "-", stdin=yaml.safe_dump(pod(image)))

    def ended() -> str:
        phase = str(client.CoreV1Api().read_namespaced_pod("merge", bench.namespace).status.phase)
        return phase if phase in {"Succeeded", "Failed"} else ""

    phase = wait_for("the merge", ended)
    logs = kubectl("logs", "merge", "-n", bench.namespace).stdout
    assert phase == "Succeeded", logs
    found = json.loads(logs.splitlines()[-1])
    assert found["bytes"] >= 2 * LIMIT_MIB * 1024**2
    assert found["right"]
    assert "loading one model at a time takes" in found["gate"]
    assert "raise resources.limits.memory" in found["gate"]
