"""`validate` without a cluster says what kubectl and the API server say with one."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from finetune_api import names
from finetune_api.manifest.yaml_document import read_documents
from kubectl_finetune.commands.validate import check_files

ROOT = Path(__file__).parents[3]
BASE: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"objective": "Telepathy"},
    {"learningRate": 1e-4},
    {"suspend": "yes"},
    {"suspend": None},
    {"suspend": 1},
    {"startDeadlineSeconds": 0},
    {"backoffLimit": 1.5},
    {"backoffLimit": True},
    {"hyperparameters": {"learning_rate": 1e-4}},
    {"hyperparameters": {"learningRate": 0}},
    {"hyperparameters": {"learningRate": 1}},
    {"hyperparameters": {"learningRate": "1e-4"}},
    {"hyperparameters": {"packing": True}},
    {"hyperparameters": {"packing": "On"}},
    {"hyperparameters": {"packing": "Always", "fusedKernels": "Never"}},
    {"hyperparameters": {"fusedKernels": False}},
    {"objective": "DPO", "tuning": {"lora": {"dropout": 0.1}}},
    {"objective": "DPO", "tuning": {"lora": {"dropout": 0}}},
    {"backoffLimit": -1, "dpo": {"beta": 0.1}},
    {"resources": {"requests": {"memory": "24GB"}}},
    {"hyperparameters": {"maxSteps": 5, "numTrainEpochs": 1}},
    {"hyperparameters": {"warmupSteps": 5.5}},
    {"dataset": {"train": {"uri": "s3://data/rows"}, "columns": {}}},
    {"hyperparameters": {"lrSchedulerType": "linearly"}},
    {"hyperparameters": {"seed": 2**32}},
    {"hyperparameters": []},
    {"tuning": {"vramBudget": "a lot"}},
    {"tuning": {"vramBudget": 80}},
    {"tuning": {"vramBudget": "80Gi"}},
    {"tuning": {"vramBudget": True}},
    {"tuning": {"vramBudget": -1}},
    {"resources": {"shmSize": -1}},
    {"resources": {"requests": {"cpu": -1}}},
    {"tuning": {"method": "Full", "lora": {}}},
    {"tuning": {"lora": {"targetModules": ["q_proj", "q_proj"]}}},
    {"tuning": {"lora": {"targetModules": []}}},
    {"tuning": {"lora": {"rank": "8"}}},
    {"tuning": {"lora": {"rankPattern": {}}}},
    {"tuning": {"lora": {"rankPattern": {"q_proj": 257}}}},
    {"tuning": {"lora": {"rankPattern": {r"layers\.[0-9]+\..*(q|k)_proj$": 4}}}},
    {"tuning": {"lora": {"alphaPattern": {"": 4}}}},
    {"tuning": {"lora": {"alphaPattern": {"(.+)+": 4}}}},
    {"tuning": {"lora": {"alphaPattern": {".*.*.*.*.*": 4}}}},
    {"tuning": {"lora": {"rankPattern": {f"q{at}": 4 for at in range(33)}}}},
    {"tuning": {"initialAdapter": {"fromParent": True}}},
    {"tuning": {"initialAdapter": {"fromParent": False}}},
    {"earlyStopping": {}},
    {"evaluation": {"steps": 5}},
    {"checkpoint": {"steps": 5, "resumePolicy": "Never"}},
    {"checkpoint": {"steps": 5, "resumePolicy": "Never", "keep": 1}, "tuning": {"method": "LoRA"}},
    {"evaluation": {"prompts": [{"prompt": ""}]}},
    {"evaluation": {"gate": {}}},
    {"model": {"uri": "s3://models/../base"}},
    {"model": {"uri": "s3://models/base", "revision": "main"}},
    {"model": {}},
    {"dataset": {"train": {"uri": "s3://data/x"}, "columns": {"Prompt!": "x"}}},
    {"dataset": {"train": {"uri": "s3://data/x"}, "columns": {"p" * 65: "x"}}},
    {"model": {"uri": "s3://models/base", "chatTemplateKwargs": {"p" * 65: "x"}}},
    {"model": {"uri": "s3://models/base", "chatTemplateKwargs": {"p" * 64: "x"}}},
    {"dataset": {"train": {"uri": "s3://data/x", "sha256": "abc"}}},
    {"resources": {"requests": {"memory": "lots"}}},
    {"resources": {"requests": {"a b": "1"}}},
    {"resources": {"requests": {"cpu": 4}}},
    {"resources": {"requests": {"cpu": 4}, "limits": {"cpu": "4000m"}}},
    {"resources": {"requests": {"cpu": "4001m"}, "limits": {"cpu": 4}}},
    {"resources": {"requests": {"memory": 1048575}}},
    {"resources": {"limits": {"memory": "1048576"}, "requests": {}}},
    {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    {"resources": {"limits": {"rdma/hca": 1}}},
    {"resources": {"requests": {"rdma/hca": 1}}},
    {"resources": {"requests": {"rdma/hca": 1}, "limits": {"rdma/hca": "1000m"}}},
    {"resources": {"requests": {"storage": "1Gi"}}},
    {"resources": {"merge": {"limits": {"hugepages-2Mi": "4Mi"}}}},
    {"preflight": {"resources": {"limits": {"gpu": 1}}}},
    {"resources": {"gpuResourceName": "gpu"}},
    {"dataset": {"train": {"uri": "s3://models/"}}},
    {"dataset": {"train": {"uri": "s3://models/out"}}},
    {"dataset": {"train": {"uri": "s3://models/ou"}}},
    {"dataset": {"train": {"sources": [{"uri": "s3://data/a"}, {"uri": "s3://models/out/"}]}}},
    {"hyperparameters": {"warmupSteps": 5, "lrSchedulerType": "constant"}},
    {"trainer": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
    {"trainer": {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]}},
    {"trainer": {"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}},
    {"objective": "KTO", "resources": {"numNodes": 2}},
    {"objective": "KTO", "resources": {"numNodes": 2}, "tuning": {"method": "QLoRA"}},
    {"objective": "KTO", "hyperparameters": {"perDeviceTrainBatchSize": 1}},
    {"storage": {"endpoint": "http://user:secret@minio:9000"}},
    {"lineage": {"annotations": {"ticket": 5}}},
    {"dpo": {"beta": 0.1}},
]


@pytest.fixture(scope="module")
def refuses(control_plane: Path) -> Callable[..., bool]:
    numbers = itertools.count()
    api = client.CustomObjectsApi(config.new_client_from_config(str(control_plane)))

    def call(spec: dict[str, Any], metadata: dict[str, Any] | None = None) -> bool:
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "spec": spec}
        body["metadata"] = {"name": f"agrees-{next(numbers)}"} | (metadata or {})
        where = (names.GROUP, names.VERSION, "default", names.PLURAL)
        try:
            api.create_namespaced_custom_object(*where, body, field_validation="Strict", dry_run="All")
        except client.ApiException as error:
            if error.status in {400, 422}:
                return True
            raise
        return False

    return call


@pytest.mark.parametrize("change", CHANGES, ids=json.dumps)
def test_a_manifest_is_valid_exactly_where_the_api_server_takes_it(
    refuses: Callable[..., bool], change: dict[str, Any]
) -> None:
    spec = BASE | change
    manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "one"}, "spec": spec}
    problems = check_files([("job.yaml", json.dumps(manifest))]).problems
    assert bool(problems) == refuses(spec), [problem.text() for problem in problems]


WORDS = """
1e-4 2.0E-4 .5 5. 1e3 10 +5 -3 010 0o10 0x1F 1_000 3.0 09 -09 0b11 On on OFF oFF y N Yes no ~ null Null nUll 1:30
2026-03-01 80Gi 1e 0x 1__0 _1 1_ .e3 +.5 -.5e2 0 00 1.5.2 true True tRUE 12e03 0.0 -0 1e400 _ 0_ 0_7 . +
0x_ -0x_ 0b_ 0o_
"""


def test_every_unquoted_scalar_is_read_as_by_the_real_kubectl(kubectl_program: str, tmp_path: Path) -> None:
    path = tmp_path / "object.yaml"
    named = {f"word{number}": word for number, word in enumerate(WORDS.split())}
    words = "".join(f"  {name}: {word}\n" for name, word in named.items())
    path.write_text(f"apiVersion: v1\nkind: Thing\nmetadata: {{name: one}}\nspec:\n{words}")
    command = [kubectl_program, "label", "--local", "-f", str(path), "-o", "json", "a=b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    meant = json.loads(done.stdout)["spec"]
    (document,) = read_documents(path.read_text())
    pairs = {word: (document.value["spec"][name], meant.get(name)) for name, word in named.items()}
    assert {word: pair for word, pair in pairs.items() if repr(pair[0]) != repr(pair[1])} == {}


@pytest.fixture(scope="module")
def kubectl_program() -> str:
    command = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py"), "env"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(one for one in told.splitlines() if one.startswith("export PATH="))
    script = f"{line}; command -v kubectl"
    return subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout.strip()


METADATA: list[dict[str, Any]] = [
    {},
    {"labels": {"team": "a b"}},
    {"labels": {"team": ""}},
    {"labels": {"team": "a" * 64}},
    {"labels": {"team": "A_b.c"}},
    {"labels": {"bad key!": "x"}},
    {"labels": {"acme.com/": "x"}},
    {"labels": {"/team": "x"}},
    {"labels": {"a/b/c": "x"}},
    {"labels": {"Acme.com/team": "x"}},
    {"annotations": {"Acme.com/Team": "any text, of any kind"}},
    {"annotations": {"x y": "z"}},
    {"generateName": "bad_"},
    {"generateName": "good-"},
    {"generateName": "good.-"},
    {"generateName": "-"},
    {"generateName": "bad."},
    {"finalizers": "x"},
    {"finalizers": ["acme.com/x"]},
    {"finalizers": ["a b"]},
    {"finalizers": None},
    {"ownerReferences": ["x"]},
]


@pytest.mark.parametrize("metadata", METADATA, ids=json.dumps)
def test_metadata_is_valid_exactly_where_the_api_server_takes_it(
    refuses: Callable[..., bool], metadata: dict[str, Any]
) -> None:
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "one"} | metadata}
    problems = check_files([("job.yaml", json.dumps(head | {"spec": BASE}))]).problems
    assert bool(problems) == refuses(BASE, metadata), [problem.text() for problem in problems]
