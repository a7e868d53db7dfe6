"""A job that chooses its chat template and trains on everything, from preflight to what a server loads."""

import json

from training_world import MakeBench
from transformers import AutoTokenizer

from finetune_api.handoff import Artifact, Outcome

TEXT = (
    "{% if tone is defined %}({{ tone }}) {% endif %}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_the_adapter_and_the_merged_model_carry_the_chosen_template(make_bench: MakeBench) -> None:
    bench = make_bench(
        model={
            "uri": "s3://bucket/model",
            "chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "ours"}},
            "chatTemplateKwargs": {"tone": "calm"},
        },
        output={"uri": "s3://bucket/output", "merge": "FP32"},
    )
    bench.spec["dataset"]["trainOn"] = "Everything"
    bench.spec["hyperparameters"] = bench.spec["hyperparameters"] | {"maxSteps": 2}
    config = bench.config().model_copy(update={"config_maps": {"templates": {"ours": TEXT}}, "is_local": True})
    bench.config = lambda *_: config  # type: ignore[method-assign]
    report = bench.run()
    assert report.outcome in {Outcome.PUBLISHED, Outcome.GATE_NOT_MET}
    asked = [{"role": "user", "content": "What?"}]
    for folder in (Artifact.ADAPTER, Artifact.MERGED):
        served = AutoTokenizer.from_pretrained(bench.output / folder)
        text = served.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert text == f"(calm) [user] What?{served.eos_token}\n[assistant] "
    lineage = json.loads((bench.output / Artifact.LINEAGE).read_text())
    assert lineage["chatTemplate"] == {
        "configMapKeyRef": {"name": "templates", "key": "ours"},
        "kwargs": {"tone": "calm"},
        "sha256": lineage["baseModel"]["chatTemplateSHA256"],
    }
    assert "`templates/ours` was **chosen by the job**" in (bench.output / Artifact.REPORT).read_text()
