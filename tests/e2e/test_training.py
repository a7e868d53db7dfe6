"""The three methods on a tiny model, from manifest to published result, each proven from outside."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rows import colour_rows, jsonl
from user import BUCKET, Bench, kubectl, wait_for

from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.tokenization.labeler import Labeler

MALFORMED = ['{"instruction": "cut', '{"instruction": "no answer"}', '{"title": "neither format"}'] * 10
LEARN = {
    "learningRate": 1e-2,
    "maxSteps": 20,
    "perDeviceTrainBatchSize": 4,
    "gradientAccumulationSteps": 1,
    "maxLength": 128,
}
METHODS: dict[str, dict[str, Any]] = {
    "qlora": {"output": {"merge": "BF16"}},
    "lora": {"tuning": {"method": "LoRA", "lora": {"rank": 8}}, "output": {"merge": "FP32"}},
    "full": {"tuning": {"method": "Full"}, "output": {"merge": "FP32"}},
}
QUESTION = "What is the colour of sky 7?"
EVALUATION = {"steps": 10, "prompts": [{"prompt": QUESTION}], "maxNewTokens": 12, "gate": {"mustImprove": True}}
QUESTIONS = [{"question": f"{n} and one are", "choices": [str(n), str(n + 1)], "answer": 1} for n in range(30)]
ALONE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, question, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
messages = [{"role": "user", "content": question}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt, max_new_tokens=tokens, do_sample=False, eos_token_id=[2], pad_token_id=2)
answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True).strip()
print(json.dumps([str(model.dtype), answer]))
"""
"""What somebody does with a published model who knows nothing of how it was made."""


@pytest.fixture(scope="module")
def results(bench: Bench) -> dict[str, dict[str, Any]]:
    """The final status of a job for each method, trained on rows of which a tenth are malformed."""
    rows = jsonl(colour_rows(270)) + "".join(f"{line}\n" for line in MALFORMED)
    train, questions = bench.put("malformed.jsonl", rows), bench.put("questions.jsonl", jsonl(QUESTIONS))
    jobs = {}
    for name, changes in METHODS.items():
        spec = {
            "hyperparameters": LEARN,
            "evaluation": EVALUATION | {"ability": {"uri": questions}},
            "dataset": {"train": {"uri": train}, "validationSplitPercent": 10},
        } | changes
        spec["output"] = {"uri": bench.uri(f"out/{name}")} | changes.get("output", {})
        jobs[name] = bench.apply(name, **spec)
    return {name: job.wait("Complete") for name, job in jobs.items()}


@pytest.mark.parametrize(("name", "method"), [("qlora", "QLoRA"), ("lora", "LoRA"), ("full", "Full")])
def test_training_lowers_the_loss_and_shows_its_method(
    results: dict[str, dict[str, Any]], name: str, method: str
) -> None:
    status = results[name]
    assert status["resolved"]["method"] == method
    assert status["metrics"]["evalLoss"] < status["metrics"]["baselineEvalLoss"]
    assert status["progress"]["percent"] == 100
    assert (status["attempts"], status["runs"], status.get("failures", 0), status.get("preemptions", 0)) == (1, 1, 0, 0)


@pytest.mark.parametrize("name", ["qlora", "lora", "full"])
def test_the_questions_on_general_ability_are_answered_before_and_after(
    bench: Bench, results: dict[str, dict[str, Any]], name: str
) -> None:
    found = results[name]["evaluation"]["ability"]
    assert found["questions"] == 30
    difference = found["differencePoints"]
    assert difference == pytest.approx(found["afterPercent"] - found["beforePercent"], abs=0.01)
    assert found["differenceLowPoints"] <= difference <= found["differenceHighPoints"]
    assert "of 30 questions" in bench.read(results[name]["artifacts"]["reportURI"]).decode()
    asked = bench.read(bench.uri(f"out/{name}/dataset/ability.jsonl")).decode().splitlines()
    assert [json.loads(line)["question"] for line in asked] == [row["question"] for row in QUESTIONS]


@pytest.mark.parametrize("name", ["qlora", "lora"])
def test_peft_loads_the_adapter_from_the_bucket_and_gets_the_trained_loss(
    bench: Bench, results: dict[str, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    from peft import PeftModel

    adapter = bench.download(results[name]["artifacts"]["adapterURI"], tmp_path / "adapter")
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        == f"s3://{BUCKET}/tiny-model"
    )
    base = load(bench, tmp_path, quantised=name == "qlora")
    model = PeftModel.from_pretrained(base, str(adapter))
    loss = held_out_loss(bench, results[name], model, adapter)
    assert math.isclose(loss, results[name]["metrics"]["evalLoss"], rel_tol=2e-3)


@pytest.mark.parametrize("name", ["qlora", "lora"])
def test_the_verdict_is_that_of_the_adapter_on_the_16_bit_base(
    bench: Bench, results: dict[str, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    from peft import PeftModel

    status = results[name]
    adapter = bench.download(status["artifacts"]["adapterURI"], tmp_path / "adapter")
    base = load(bench, tmp_path, quantised=False)
    found = status["evaluation"]
    assert math.isclose(held_out_loss(bench, status, base, adapter), found["before"], rel_tol=2e-3)
    model = PeftModel.from_pretrained(base, str(adapter))
    assert math.isclose(held_out_loss(bench, status, model, adapter), found["after"], rel_tol=2e-3)
    complete = next(one for one in status["conditions"] if one["type"] == "Complete")
    assert found["verdictMessage"] in complete["message"]
    assert found["differenceLow"] <= found["difference"] <= found["differenceHigh"] < 0


@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_published_model_loads_without_peft_and_gets_the_trained_loss(
    bench: Bench, results: dict[str, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    from transformers import AutoModelForCausalLM

    merged = bench.download(results[name]["artifacts"]["mergedURI"], tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(str(merged), dtype=torch.float32)
    loss = held_out_loss(bench, results[name], model, merged)
    assert math.isclose(loss, results[name]["metrics"]["evalLoss"], rel_tol=2e-3)


@pytest.mark.parametrize(("name", "dtype"), [("qlora", "bfloat16"), ("lora", "float32"), ("full", "float32")])
def test_the_full_model_loaded_elsewhere_answers_like_the_trained_one(
    bench: Bench, results: dict[str, dict[str, Any]], tmp_path: Path, name: str, dtype: str
) -> None:
    found = results[name]["evaluation"]
    assert (found["gate"], found["mergeGate"], found["verdict"]) == ("Passed", "Passed", "Better")
    merged = bench.download(results[name]["artifacts"]["mergedURI"], tmp_path / "merged")
    command = [sys.executable, "-c", ALONE, str(merged), QUESTION, "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, answer = json.loads(done.stdout.splitlines()[-1])
    assert told == f"torch.{dtype}"
    found = json.loads(bench.read(bench.uri(f"out/{name}/validation.json")))
    (chosen,) = [one for one in found["candidates"] if one["name"] == found["chosen"]]
    assert [answer] == chosen["answers"]
    if dtype == "float32":  # nothing was rounded
        assert "The full model answers the same." in bench.read(results[name]["artifacts"]["reportURI"]).decode()


def test_a_job_whose_gate_is_not_met_fails_with_its_adapter_published_and_shows_it_everywhere(bench: Bench) -> None:
    job = bench.apply("strict", evaluation=EVALUATION | {"gate": {"maxEvalLoss": 0.5}})
    status = job.wait("Failed")
    words = "above maxEvalLoss 0.5"
    assert (status["phase"], status["reason"], status["evaluation"]["gate"]) == ("Failed", "GateNotMet", "NotMet")
    assert "GateNotMet" in kubectl("get", "ftj", "strict", "-n", bench.namespace, "-o", "wide").stdout
    assert words in kubectl("describe", "ftj", "strict", "-n", bench.namespace).stdout
    assert words in bench.read(status["artifacts"]["reportURI"]).decode()
    assert job.condition("Published")["status"] == "True"
    assert "adapter/adapter_model.safetensors" in bench.keys(bench.uri("out/strict"))
    path = "/api/v1/namespaces/finetune-system/services/finetune-operator:metrics/proxy/metrics"
    mine = f'name="strict",namespace="{bench.namespace}"'
    series = f"finetune_job_gate_passed{{{mine}}} 0.0"  # what another test scraped is repeated for a second
    wait_for("the series of the gate", lambda: series in kubectl("get", "--raw", path).stdout)


def test_malformed_rows_are_counted_exactly_in_status_report_and_bucket(
    bench: Bench, results: dict[str, dict[str, Any]]
) -> None:
    dataset = results["qlora"]["dataset"]
    assert (dataset["rows"], dataset["acceptedRows"], dataset["rejectedRows"]) == (300, 270, 30)
    assert sum(dataset["rejectedRowsByCode"].values()) == 30
    assert dataset["rejectedRowsByCode"]["BAD_JSON"] == 10
    assert dataset["rowsByFormat"] == {"Alpaca": 90, "OpenAI": 90, "ShareGPT": 90}
    assert dataset["trainRows"] + dataset["validationRows"] == 270
    rejected = bench.read(bench.uri("out/qlora/rejected_rows.jsonl")).decode().splitlines()
    assert [json.loads(line)["line"] for line in rejected] == list(range(271, 301))
    report = bench.read(results["qlora"]["artifacts"]["reportURI"]).decode()
    assert "BAD_JSON" in report


def test_the_deliverables_are_there_and_the_manifest_proves_them(
    bench: Bench, results: dict[str, dict[str, Any]]
) -> None:
    keys = set(bench.keys(bench.uri("out/qlora")))
    assert keys >= {
        "owner.json", "manifest.json", "lineage.json", "finetune_config.yaml", "finetune_report.md", "report.html",
        "curves.png", "metrics.jsonl", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "dataset/train.arrow", "dataset/train.jsonl",
    }  # fmt: skip
    config = yaml.safe_load(bench.read(results["qlora"]["artifacts"]["configURI"]))
    assert "QLoRA" in json.dumps(config)
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "verify", bench.uri("out/qlora")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_object_is_found_by_verify(bench: Bench, results: dict[str, dict[str, Any]]) -> None:
    bench.s3.put_object(Bucket=BUCKET, Key=bench.key(bench.uri("out/full/metrics.jsonl")), Body=b"forged")
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "verify", bench.uri("out/full")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "metrics.jsonl" in done.stdout + done.stderr


def test_conditions_columns_and_events_show_what_happened(bench: Bench, results: dict[str, dict[str, Any]]) -> None:
    true = {one["type"] for one in results["qlora"]["conditions"] if one["status"] == "True"}
    # Whether anybody asked while there was a checkpoint is a matter of seconds in so short a job.
    assert true - {"GracePeriodSufficient"} == {"Accepted", "Validated", "Published", "Complete", "Ready"}
    table = kubectl("get", "ftj", "qlora", "-n", bench.namespace).stdout
    assert table.split() == ["NAME", "PHASE", "DONE", "CHANGE", "AGE", "qlora", "Succeeded", "100", *table.split()[8:]]
    assert results["qlora"]["evaluation"]["change"] in table
    assert "100%" in kubectl("get", "ftj", "qlora", "-n", bench.namespace, "-o", "wide").stdout
    events = kubectl("get", "events", "-n", bench.namespace, "--field-selector", "involvedObject.name=qlora").stdout
    assert all(reason in events for reason in ("PreflightStarted", "TrainingStarted", "Completed"))
    assert "backoffLimit" in kubectl("explain", "finetunejob.spec").stdout


def test_a_job_deleted_after_success_and_applied_again_is_adopted_not_trained_again(
    bench: Bench, results: dict[str, dict[str, Any]]
) -> None:
    manifest = kubectl("get", "ftj", "qlora", "-n", bench.namespace, "-o", "yaml").stdout
    spec = yaml.safe_load(manifest)["spec"]
    before = bench.read(bench.uri("out/qlora/manifest.json"))
    kubectl("delete", "ftj", "qlora", "-n", bench.namespace, "--wait")
    again = bench.apply("qlora", **spec)
    status = again.wait("Complete")
    assert again.jobs() == []
    assert status["metrics"] == results["qlora"]["metrics"]
    assert status["artifacts"]["manifestSHA256"] == results["qlora"]["artifacts"]["manifestSHA256"]
    assert bench.read(bench.uri("out/qlora/manifest.json")) == before


def test_a_job_that_is_deleted_takes_its_jobs_and_pods_with_it(
    bench: Bench, results: dict[str, dict[str, Any]]
) -> None:
    kubectl("delete", "ftj", "lora", "-n", bench.namespace, "--wait")
    wait_for(
        "the children to be gone",
        lambda: (
            not kubectl(
                "get", "jobs,pods,configmaps", "-n", bench.namespace, "-l", "finetune.dev/job-name=lora", "-o", "name"
            ).stdout
        ),
    )


def load(bench: Bench, directory: Path, *, quantised: bool) -> Any:
    """The tiny base model as the trainer held it: NF4 under QLoRA, else 32 bit."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = bench.download(f"s3://{BUCKET}/tiny-model", directory / "base")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    extra = {"quantization_config": nf4} if quantised else {}
    return AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, **extra)


def held_out_loss(bench: Bench, status: dict[str, Any], model: Any, tokenizer: Path) -> float:
    """Mean loss per trained token over the published validation rows."""
    labeler = Labeler(tokenizer)
    rows = tokenizer / "validation.jsonl"
    rows.write_bytes(bench.read(f"{status['artifacts']['uri'].rstrip('/')}/dataset/validation.jsonl"))
    total, tokens = 0.0, 0
    model.eval()
    for row in read_accepted(rows):
        encoded = labeler.encode(row, "Chat", 128)
        assert isinstance(encoded, list)
        for sample in encoded:
            ids, labels = torch.tensor([sample.input_ids]), torch.tensor([sample.labels])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[:, :-1].float()
            targets = labels[:, 1:]
            total += float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="sum"))
            tokens += int((targets != -100).sum())
    return total / tokens
