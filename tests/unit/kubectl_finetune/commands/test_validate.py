import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubectl_finetune.commands.validate import find_program, options

EXAMPLES = sorted((Path(__file__).parents[4] / "crds" / "examples").rglob("*.yaml"))
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: job}
spec:
  objective: Chat
  model: {uri: s3://bucket/model}
  dataset: {train: {uri: s3://bucket/rows.jsonl}}
  output: {uri: s3://bucket/out}
"""


@pytest.fixture
def validate(finetune: Callable[..., Any], tmp_path: Path) -> Callable[[str], Any]:
    def call(text: str, *options: str) -> Any:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        done = finetune("validate", str(path), *options)
        done.out, done.err = (text.replace(f"{tmp_path}/", "") for text in (done.out, done.err))
        return done

    return call


@pytest.mark.parametrize("path", [one for one in EXAMPLES if one.name != "queues.yaml"], ids=lambda path: path.name)
def test_every_example_is_valid(finetune: Callable[..., Any], path: Path) -> None:
    done = finetune("validate", str(path))
    assert (done.code, "is valid" in done.out) == (0, True)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (
            "  hyperparameters: {learning_rate: 1e-4}\n",
            "job.yaml:9: spec.hyperparameters.learning_rate is not a field\n    value: 1e-4\n"
            "    fix: did you mean learningRate?",
        ),
        ("  learningRate: 1e-4\n", "did you mean spec.hyperparameters.learningRate?"),
        ("  tuning: {lora: {r: 8}}\n", "fix: PEFT's r is tuning.lora.rank\n"),
        (
            "  hyperparameters: {micro_batch_size: 4}\n",
            "fix: axolotl's micro_batch_size is hyperparameters.perDeviceTrainBatchSize\n",
        ),
        (
            "  systemPrompt: Be brief.\n",
            "spec.systemPrompt is not a field\n    value: Be brief.\n    fix: axolotl's system_prompt is "
            "dataset.systemMessage\n",
        ),
        ("  dataset: {defaultSystem: a}\n", "fix: LLaMA-Factory's default_system is dataset.systemMessage\n"),
        ("  n_epochs: 3\n", "fix: OpenAI's n_epochs is hyperparameters.numTrainEpochs\n"),
        (
            "  hyperparameters: {packing: On}\n",
            "spec.hyperparameters.packing must be a text, not true or false\n    value: On\n    fix: YAML reads On as "
            "true: write Always\n",
        ),
        ("  hyperparameters: {packing: off}\n", "YAML reads off as false: write Never\n"),
        ("  hyperparameters: {fusedKernels: Off}\n", "YAML reads Off as false: write Never\n"),
        ("  hyperparameters: {fusedKernels: yes}\n", "YAML reads yes as true: write Auto or Never\n"),
        (
            "  hyperparameters: {packing: 1_0}\n",
            "must be a text, not a number\n    value: 1_0\n    fix: write Auto or Always or Never\n",
        ),
        (
            "  hyperparameters: {packing: onn}\n",
            "spec.hyperparameters.packing must be one of Auto, Always, Never\n    value: onn\n"
            "    fix: write Auto or Always or Never\n",
        ),
        ("  tuning: []\n", "spec.tuning must be a block of fields, not a list"),
        ("  unknownThing: 1\n", "fix: remove it; see kubectl explain finetunejob.spec"),
        ("  lineage: {unknownThing: 1}\n", "fix: remove it; spec.lineage has parentRef, annotations"),
        ('  hyperparameters: {learningRate: "2e-4"}\n', 'value: "2e-4"\n    fix: remove the quotes: 0.0002'),
        ('  hyperparameters: {learningRate: "3E-7"}\n', 'value: "3E-7"\n    fix: remove the quotes: 3.0e-07'),
        ('  hyperparameters: {learningRate: "0.1"}\n', 'value: "0.1"\n    fix: remove the quotes: 0.1'),
        ('  hyperparameters: {maxSteps: "1e3"}\n', 'value: "1e3"\n    fix: remove the quotes: 1000'),
        ('  hyperparameters: {maxSteps: "10"}\n', 'value: "10"\n    fix: remove the quotes: 10'),
        ("  hyperparameters: {learningRate: 2}\n", "spec.hyperparameters.learningRate must be at most 1"),
        ("  hyperparameters: {learningRate: 0}\n", "must be more than 0"),
        (
            "  tuning: {vramBudget: [8Gi]}\n",
            'spec.tuning.vramBudget must be a number or a text, not a list\n    value: ["8Gi"]\n'
            "    fix: write 24Gi, for example\n",
        ),
        ("  resources: {shmSize: true}\n", "spec.resources.shmSize must be a number or a text, not true or false\n"),
        ("  tuning: {vramBudget: a lot}\n", "fix: write a number with a unit, for example 24Gi"),
        (
            "  resources: {requests: {memory: 24GB}}\n",
            "spec.resources.requests.memory does not match the format of this field\n    value: 24GB\n"
            "    fix: did you mean 24Gi?",
        ),
        ("  tuning: {method: full}\n", "did you mean Full?"),
        ('  suspend: "yes"\n', "write true or false, without quotes"),
        ("  earlyStopping: {}\n", "set dataset.validation or dataset.validationSplitPercent"),
        ("  tuning: {method: Full, lora: {rank: 8}}\n", "fix: remove tuning.lora, or set method to QLoRA or LoRA"),
        (
            "  backoffLimit: 1\n  backoffLimit: 2\n",
            "job.yaml:10:3: spec.backoffLimit is given twice, first in line 9; kubectl uses the last\n"
            "    value: 2\n    fix: remove one of the two\n",
        ),
        ("  resources: {requests: {memory: lots}}\n", "job.yaml:9: spec.resources.requests.memory does not match"),
    ],
)
def test_a_problem_is_reported_with_line_field_value_and_fix(
    validate: Callable[[str], Any], extra: str, told: str
) -> None:
    done = validate(JOB + extra)
    assert (done.code, "is valid" in done.out) == (1, False)
    assert told in done.out


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "kind: FineTuneJob",
            "kind: FinetuneJob",
            "kind is not known\n    value: FinetuneJob\n    fix: kind: FineTuneJob",
        ),
        ("kind: FineTuneJob\n", "", "kind is missing\n    fix: kind: FineTuneJob"),
        ("metadata: {name: job}\n", "", "metadata is missing\n    fix: metadata: {name: my-job}"),
        ("{name: job}", "{}", "metadata.name is missing"),
        ("{name: job}", f"{{name: {'j' * 254}}}", "metadata.name is not a valid Kubernetes name"),
        (
            "{name: job}",
            "{name: job, label: {a: b}}",
            'metadata.label is not a field\n    value: {"a": "b"}\n    fix: did you mean labels?',
        ),
        (
            "{name: job}",
            "{name: job, colour: red}",
            "metadata.colour is not a field\n    value: red\n    fix: remove it",
        ),
        (
            "spec:",
            "base_model: x\nspec:",
            "value: x\n    fix: axolotl's base_model is model.uri (write hf://owner/name)\n",
        ),
        ("spec:", "modell: 1\nspec:", "modell is not a field\n    value: 1\n    fix: did you mean spec.model?"),
        ("spec:", "lr: 1\nspec:", "fix: did you mean spec.hyperparameters.learningRate?"),
        ("spec:", "qqq: 1\nspec:", "fix: remove it"),
        (JOB[JOB.index("spec:") :], "spec:\n", "job.yaml:4: spec is missing\n    fix: kubectl finetune new"),
        ("v1alpha1", "v1", "fix: apiVersion: finetune.dev/v1alpha1"),
        ("{name: job}", "{name: My_Job}", "metadata.name is not a valid Kubernetes name"),
        ("{name: job}", "{name: job, labels: {a: 1}}", "metadata.labels.a must be a text"),
        ("  objective: Chat\n", "", "spec.objective is missing"),
        ("s3://bucket/out", "s3://bucket/../out", "spec.output.uri a path segment '.' or '..' is not allowed"),
        ("spec:", "specs:", "did you mean spec?"),
        ("spec:\n", "spec:\n\t", "job.yaml:5:1: is not YAML: a tab indents this line\n    fix: indent with spaces\n"),
        ("{name: job}", "{name: job, labels: [a]}", 'metadata.labels must be a block of fields\n    value: ["a"]'),
    ],
)
def test_a_wrong_head_or_value_is_reported(validate: Callable[[str], Any], old: str, new: str, told: str) -> None:
    done = validate(JOB.replace(old, new))
    assert done.code == 1
    assert told in done.out


GRADED = (
    "  rlhf: {rewards: [{type: Regex, pattern: 'a('}, "
    "{type: Answer, answer: {match: Exact, extract: Pattern, pattern: '(a)(b)'}}]}\n"
)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "rows.jsonl}}",
            "rows.jsonl}, columns: {promt: body, completion: category}}",
            "job.yaml:7: spec.dataset.columns.promt is in no format\n    value: body\n    fix: did you mean prompt?\n",
        ),
        (
            "{train: {uri: s3://bucket/rows.jsonl}}",
            "{train: {sources: [{uri: s3://bucket/a}, {uri: s3://bucket/b, columns: {zebra: body}}]}}",
            "spec.dataset.train.sources[1].columns.zebra is in no format\n    value: body\n"
            "    fix: the known names are messages, ",
        ),
        (
            "  output:",
            "  evaluation: {prompts: [{prompt: a, expected: a}, {prompt: b, expected: '([billing'}]}\n  output:",
            "job.yaml:8: spec.evaluation.prompts[1].expected is not a regular expression (unterminated character set "
            'at position 1)\n    value: "([billing"\n    fix: correct it, in the syntax of Python\n',
        ),
        (
            "  objective: Chat\n",
            "  objective: RLHF\n" + GRADED,
            "spec.rlhf.rewards[0].pattern is not a regular expression",
        ),
        (
            "  objective: Chat\n",
            "  objective: RLHF\n" + GRADED,
            'spec.rlhf.rewards[1].answer.pattern has 2 groups\n    value: "(a)(b)"\n'
            "    fix: put the part to compare in one group, and write others as (?:…)\n",
        ),
        (
            "  output:",
            "  tuning: {lora: {alphaPattern: {'q_proj[': 8}}}\n  output:",
            "spec.tuning.lora.alphaPattern has a key that is not a regular expression, q_proj[ (unterminated",
        ),
    ],
)
def test_what_preflight_always_refuses_is_a_problem(
    validate: Callable[[str], Any], old: str, new: str, told: str
) -> None:
    done = validate(JOB.replace(old, new))
    assert done.code == 1
    assert told in done.out


def test_every_name_of_a_column_and_every_python_expression_is_valid(validate: Callable[[str], Any]) -> None:
    columns = ", ".join(f"{name}: own" for name in ("messages", "role", "content", "kto_tag"))
    prompts = r"[{prompt: a, expected: '(?i)^\s*(?P<x>a|b)(?=c)\Z'}]"
    job = (
        JOB.replace("rows.jsonl}}", f"rows.jsonl}}, columns: {{{columns}}}}}")
        + f"  evaluation: {{prompts: {prompts}}}\n"
    )
    assert validate(job).code == 0


def test_a_long_value_is_cut_to_eighty_characters(validate: Callable[[str], Any]) -> None:
    out = validate(JOB + f"  suspend: [{'x' * 75}, 1]\n").out
    assert [line.partition("value: ")[2] for line in out.splitlines() if "value: " in line] == [f'["{"x" * 75}",…']
    exact = '["' + "x" * 76 + '"]'
    assert f"    value: {exact}\n" in validate(JOB + f"  suspend: {exact}\n").out


def test_a_file_without_a_job_is_invalid_at_its_first_line(validate: Callable[[str], Any]) -> None:
    assert validate("kind: Secret\n").out == "job.yaml:1: no FineTuneJob found\n    fix: kind: FineTuneJob\n"
    fix = "write a FineTuneJob: kubectl finetune new"
    assert validate("- 1\n").out == f"job.yaml:1: is not an object\n    value: [1]\n    fix: {fix}\n"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("FineTuneJob", "spec.suspend must be true or false"),
        ("", 'kind is not known\n    value: ""\n    fix: kind: FineTuneJob'),
        ("FineTuningJob", "kind is not known\n    value: FineTuningJob\n    fix: did you mean FineTuneJob?"),
    ],
)
def test_a_job_of_a_foreign_api_group_is_known_by_its_kind(
    validate: Callable[[str], Any], kind: str, told: str
) -> None:
    text = JOB.replace("finetune.dev/v1alpha1", "other.dev/v1").replace("kind: FineTuneJob", f'kind: "{kind}"')
    out = validate(text + "  suspend: 1\n").out
    assert told in out
    assert ("apiVersion is not known" in out) == (kind != "FineTuningJob")


def test_every_object_of_the_own_api_group_is_checked(validate: Callable[[str], Any]) -> None:
    out = validate(JOB.replace("kind: FineTuneJob", "kind: Service") + "  suspend: 1\n").out
    assert "kind is not known\n    value: Service\n    fix: kind: FineTuneJob" in out
    assert "spec.suspend must be true or false" in out


def test_a_folder_means_its_manifests_and_an_unreadable_path_is_an_error(
    finetune: Callable[..., Any], tmp_path: Path
) -> None:
    done = finetune("validate", str(tmp_path))
    assert (done.code, "has no YAML files\n  name a folder with .yaml, .yml or .json files\n" in done.err) == (1, True)
    (tmp_path / "a.yaml").write_text(JOB)
    (tmp_path / "b.json").write_text(yaml_as_json(JOB, "other"))
    (tmp_path / "notes.txt").write_text("no manifest")
    assert finetune("validate", str(tmp_path)).out == "job is valid\nother is valid\n"
    done = finetune("validate", str(tmp_path / "none.yaml"))
    missing = "none.yaml cannot be read: No such file or directory\n  check the path, and who may read it\n"
    assert (done.code, missing in done.err) == (1, True)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    assert "is not a text in UTF-8\n  save it in UTF-8\n" in finetune("validate", str(tmp_path / "a.yaml")).err


def test_a_file_that_is_given_twice_is_checked_once(finetune: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    for paths in ((".", "job.yaml"), ("job.yaml", "./job.yaml"), ("-", "-")):
        found = [one if one == "-" else str(tmp_path / one) for one in paths]
        done = finetune("validate", *found, stdin=JOB)
        assert (done.code, done.out) == (0, "job is valid\n")


def yaml_as_json(text: str, name: str) -> str:
    return json.dumps(yaml.safe_load(text.replace("{name: job}", f"{{name: {name}}}").replace("/out", f"/{name}")))


def test_rows_of_several_jobs_are_refused(validate: Callable[..., Any]) -> None:
    second = JOB.replace("name: job", "name: two").replace("/out", "/two")
    done = validate(f"{JOB}---\n{second}", "--rows", "rows.jsonl")
    assert (done.code, "--rows needs one job, but the files have 2" in done.err) == (2, True)


def test_a_file_in_place_of_the_folder_for_rows_is_refused(validate: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("notes")
    for option in ("kept", "kept/sub"):
        done = validate(JOB, "--rows", "rows.jsonl", "--rows-out", f"{tmp_path}/{option}")
        assert (done.code, f"--rows-out {option} cannot be made: kept is a file" in done.err) == (2, True)
        assert "name a folder" in done.err


def test_a_folder_for_rows_without_rows_is_refused(validate: Callable[..., Any]) -> None:
    done = validate(JOB, "--rows-out", "kept")
    assert (done.code, done.out, "--rows-out needs --rows" in done.err) == (2, "", True)


def test_rows_of_sources_with_their_own_format_are_checked_one_by_one(validate: Callable[..., Any]) -> None:
    sources = "{sources: [{uri: s3://bucket/a.jsonl}, {uri: s3://bucket/b.jsonl, columns: {prompt: q}}]}"
    done = validate(JOB.replace("{uri: s3://bucket/rows.jsonl}", sources), "--rows", "rows.jsonl")
    assert done.code == 2
    assert "dataset.train.sources have their own" in done.err
    assert "finetune-trainer check-data FILE" in done.err


def test_faults_of_sources_are_named_by_their_path(validate: Callable[..., Any]) -> None:
    sources = "{sources: [{uri: s3://bucket/a.jsonl, weight: 1}, {uri: s3://bucket/b.jsonl, weight: 0}]}"
    done = validate(JOB.replace("{uri: s3://bucket/rows.jsonl}", sources))
    assert done.code == 1
    assert "spec.dataset.train.sources[1].weight must be more than 0" in done.out
    sources = "{sources: [{uri: s3://bucket/a.jsonl, weight: 1}, {uri: s3://bucket/a.jsonl, fraction: 1}]}"
    done = validate(JOB.replace("{uri: s3://bucket/rows.jsonl}", sources))
    assert "spec.dataset.train.sources[1].fraction" in done.out
    assert "TRL's fraction is dataset.train.sources (its share of the mixture is weight in each source)" in done.out
    done = validate(JOB.replace("{uri: s3://bucket/rows.jsonl}", sources.replace(", fraction: 1", "")))
    assert "spec.dataset.train.sources two sources have the same uri" in done.out
    assert "spec.dataset.train.sources some sources have a weight and others none" in done.out


def test_the_manifests_dataset_becomes_the_options_of_the_check() -> None:
    dataset = {"format": "Auto", "columns": {"prompt": "question"}, "maxRejectedPercent": 0, "systemMessage": "Go."}
    assert options({"objective": "Chat", "dataset": dataset}) == [
        *("--job-fields", "--objective", "Chat", "--format", "Auto", "--columns", "prompt=question"),
        *("--max-rejected-percent", "0", "--system-message", "Go."),
    ]
    assert options({"objective": "Chat", "dataset": {}}) == ["--job-fields", "--objective", "Chat"]


def test_every_problem_is_reported_at_once_in_the_order_of_the_file(validate: Callable[[str], Any]) -> None:
    text = JOB.replace("Chat", "chat") + "  nodes: 2\n  suspend: 1\n"
    lines = [line for line in validate(text).out.splitlines() if line.startswith("job.yaml")]
    assert [line.split(":")[1] for line in lines] == ["5", "9", "10"]


def test_two_jobs_cannot_share_a_name_or_an_output(validate: Callable[[str], Any]) -> None:
    done = validate(JOB + "---\n" + JOB)
    assert "job.yaml:12: metadata.name is also that of job\n    value: job\n" in done.out
    assert "job.yaml:17: spec.output.uri is also that of job\n    value: s3://bucket/out\n" in done.out


def test_jobs_with_generated_names_or_a_parent_in_the_same_file_have_no_problem_and_no_note(
    validate: Callable[[str], Any],
) -> None:
    nightly = JOB.replace("{name: job}", "{generateName: nightly-}")
    child = JOB.replace("{name: job}", "{name: child, labels: null}").replace("/out", "/child")
    parts = [
        JOB,
        child + "  lineage: {parentRef: {name: job}}\n",
        nightly.replace("/out", "/1"),
        nightly.replace("/out", "/2"),
    ]
    done = validate("---\n".join(parts))
    assert (done.code, done.out.count("is valid\n"), done.err) == (0, 4, "")


def test_a_name_has_at_most_253_characters(validate: Callable[[str], Any]) -> None:
    assert validate(JOB.replace("{name: job}", f"{{name: {'j' * 253}}}")).code == 0


def test_other_kinds_are_passed_over_and_a_parent_elsewhere_is_remarked(validate: Callable[[str], Any]) -> None:
    secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s3}\n"
    done = validate(JOB + "  lineage: {parentRef: {name: sft}}\n" + secret)
    assert done.code == 0
    assert "a Secret was not checked" in done.err
    assert "job waits for sft, which is not in these files" in done.err


def test_programs_get_the_same_as_json_and_yaml(validate: Callable[..., Any]) -> None:
    found = yaml.safe_load(validate(JOB + "  suspend: 1\n", "-o", "yaml").out)
    assert found["valid"] == []
    assert found["problems"][0]["field"] == "spec.suspend"
    assert found["problems"][0]["line"] == 9


def test_a_job_whose_name_the_api_server_makes_is_called_by_its_beginning(validate: Callable[..., Any]) -> None:
    text = JOB.replace("{name: job}", "{generateName: nightly-}")
    assert validate(text).out == "nightly- is valid\n"
    assert yaml.safe_load(validate(text, "-o", "yaml").out)["valid"] == ["nightly-"]


@pytest.mark.parametrize("text", ["x: &a [*a]\n", "x: &a {b: *a}\n", "x: " + "[" * 3000 + "]" * 3000 + "\n"])
def test_what_is_nested_without_end_is_a_fault_of_the_file(validate: Callable[..., Any], text: str) -> None:
    done = validate(text)
    assert done.code == 1
    assert done.out.startswith("job.yaml:1")
    assert ": is not YAML: " in done.out
    assert "nested more than 100 deep" in done.out


def test_rows_that_cannot_be_checked_here_name_the_install_that_there_is(
    validate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = validate(JOB, "--rows", "rows.jsonl")
    assert (done.code, "clone of the operator's repository: pip install '.[check]'" in done.err) == (1, True)


def test_a_trainer_that_does_not_start_is_passed_over_without_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    for folder, code in (("beside", 1), ("path", 0)):
        program = tmp_path / folder / "finetune-trainer"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho Usage\nexit {code}\n")
        program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "beside" / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}")
    assert find_program() == str(tmp_path / "path" / "finetune-trainer")
    assert capfd.readouterr() == ("", "")


@pytest.mark.process
def test_rows_are_checked_by_the_trainers_own_check_which_leaves_only_what_was_requested(
    validate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, scratch, here, kept = (tmp_path / name for name in ("rows.jsonl", "scratch", "here", "kept"))
    for folder in (scratch, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    rows.write_text("".join(f'{{"prompt": "{n}?", "chosen": "Yes.", "rejected": "No."}}\n' for n in range(5)))
    done = validate(JOB.replace("Chat", "DPO"), "--rows", str(rows), "--rows-out", str(kept))
    assert (done.code, len((kept / "accepted.jsonl").read_text().splitlines())) == (0, 5), done.err
    plain, for_programs = (
        validate(JOB.replace("Chat", "DPO"), "--rows", str(rows), *more) for more in ((), ("-o", "json"))
    )
    assert (for_programs.code, json.loads(for_programs.out)["valid"]) == (0, ["job"])
    assert plain.out.removeprefix("job is valid\n") in for_programs.err
    rows.write_text('{"neither": 1}\n')
    assert validate(JOB, "--rows", str(rows)).code == 65
    assert (list(here.iterdir()), list(scratch.iterdir())) == ([], [])


def test_the_faults_of_every_document_and_of_yaml_itself_are_one_answer(validate: Callable[[str], Any]) -> None:
    broken = JOB.replace("objective: Chat", 'objective: "Chat')
    second = JOB.replace("name: job", "name: two").replace("/out", "/two") + "  dpo: {}\n  suspend: 1\n"
    done = validate(f"{JOB}  backoffLimit: -1\n---\n{broken}---\n{second}")
    assert done.code == 1
    assert [line for line in done.out.splitlines() if line.startswith("job.yaml")] == [
        "job.yaml:9: spec.backoffLimit must be at least 0",
        "job.yaml:15:14: is not YAML: the quote that opens here is not closed",
        "job.yaml:28: spec.dpo dpo is only for objective DPO",
        "job.yaml:29: spec.suspend must be true or false, not a number",
    ]


def test_the_fields_of_a_manifest_with_tabs_are_checked_as_well(validate: Callable[[str], Any]) -> None:
    out = validate(JOB + "  hyperparameters:\n\t\tlearning_rate: 1e-4\n").out
    assert "job.yaml:10:1: is not YAML: a tab indents this line\n    fix: indent with spaces\n" in out
    assert "job.yaml:10: spec.hyperparameters.learning_rate is not a field\n" in out


def test_every_item_of_a_list_is_checked(validate: Callable[[str], Any]) -> None:
    first, second = (yaml.safe_load(JOB.replace("name: job", f"name: {n}").replace("/out", f"/{n}")) for n in "ab")
    for kind in ("List", "FineTuneJobList"):
        listed = {"apiVersion": "v1", "kind": kind, "items": [first, second]}
        assert validate(yaml.safe_dump(listed)).out == "a is valid\nb is valid\n"
    wrong = {"apiVersion": "v1", "kind": "List", "items": [first, second | {"spec": second["spec"] | {"suspend": 1}}]}
    text = yaml.safe_dump(wrong)
    line = text.splitlines().index("    suspend: 1") + 1
    done = validate(text)
    assert done.code == 1
    assert done.out.startswith(f"job.yaml:{line}: items[1].spec.suspend must be true or false, not a number\n")


def test_a_list_may_hold_other_kinds(validate: Callable[[str], Any]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(JOB), {"kind": "Secret"}]}
    done = validate(yaml.safe_dump(listed))
    assert (done.code, done.out) == (0, "job is valid\n")
    assert "a Secret was not checked" in done.err


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        (
            "  resources: {nodes: 2}\n",
            "spec.resources.nodes is called spec.resources.numNodes now\n    value: 2\n    fix: write numNodes: 2\n",
        ),
        (
            "  scheduling: {queueName: a, workloadPriorityClass: urgent}\n",
            "spec.scheduling.workloadPriorityClass is called spec.scheduling.workloadPriorityClassName now\n"
            "    value: urgent\n    fix: write workloadPriorityClassName: urgent\n",
        ),
        (
            "  tracking: {mlflow: {uri: http://mlflow:5000, experiment: e}}\n",
            "spec.tracking.mlflow.uri is called spec.tracking.mlflow.endpoint now\n    value: http://mlflow:5000\n"
            "    fix: write endpoint: http://mlflow:5000\n",
        ),
        (
            "  tracking: {wandb: {project: p, credentialsSecretRef: {name: w}, baseUrl: https://wandb.example}}\n",
            "spec.tracking.wandb.baseUrl is called spec.tracking.wandb.endpoint now\n    value: https://wandb.example\n"
            "    fix: write endpoint: https://wandb.example\n",
        ),
        (
            "  tracking: {wandb: {project: p, secretRef: {name: w}}}\n",
            "spec.tracking.wandb.secretRef is called spec.tracking.wandb.credentialsSecretRef now\n"
            '    value: {"name": "w"}\n    fix: write credentialsSecretRef: {name: w}\n',
        ),
        (
            "  resources: {numNodes: 2, nodes: 2}\n",
            "spec.resources.nodes is called spec.resources.numNodes now\n    value: 2\n"
            "    fix: remove it, numNodes is there too\n",
        ),
        (
            '  hyperparameters: {packing: "On"}\n',
            'spec.hyperparameters.packing must be one of Auto, Always, Never\n    value: "On"\n'
            "    fix: On is called Always now: write packing: Always\n",
        ),
        (
            '  hyperparameters: {packing: "Off"}\n',
            'spec.hyperparameters.packing must be one of Auto, Always, Never\n    value: "Off"\n'
            "    fix: Off is called Never now: write packing: Never\n",
        ),
        (
            '  hyperparameters: {fusedKernels: "Off"}\n',
            'spec.hyperparameters.fusedKernels must be one of Auto, Never\n    value: "Off"\n'
            "    fix: Off is called Never now: write fusedKernels: Never\n",
        ),
    ],
)
def test_a_former_name_or_word_is_the_one_problem_and_the_current_one_its_fix(
    validate: Callable[[str], Any], extra: str, problem: str
) -> None:
    done = validate(JOB + extra)
    assert (done.code, done.out) == (1, f"job.yaml:9: {problem}")


def test_rules_on_a_field_with_a_former_name_are_checked_too(validate: Callable[[str], Any]) -> None:
    out = validate(JOB + "  resources: {nodes: 2}\n  preflight: {enabled: false}\n").out
    assert "fix: write numNodes: 2" in out
    assert "without preflight one process checks and trains" in out
    done = validate(JOB.replace("Chat", "DPO") + '  hyperparameters: {packing: "On"}\n')
    assert "packing works with objectives Instruction, Chat and DomainAdaptation" in done.out
    assert "spec.tracking.mlflow.endpoint must be https://host" in (
        validate(JOB + "  tracking: {mlflow: {uri: mlflow, experiment: e}}\n").out
    )


def test_the_new_words_need_no_quotes(validate: Callable[[str], Any]) -> None:
    for words in ("packing: Always, fusedKernels: Never", "packing: Never, fusedKernels: Auto", "packing: Auto"):
        assert validate(JOB + f"  hyperparameters: {{{words}}}\n").out == "job is valid\n"


def test_a_dropout_that_the_objective_would_ignore_is_refused(validate: Callable[[str], Any]) -> None:
    text = JOB.replace("Chat", "DPO") + "  tuning: {lora: {dropout: 0.1}}\n"
    done = validate(text)
    assert done.out == (
        "job.yaml:9: spec.tuning.lora.dropout objectives DPO, KTO, RLHF and Distillation train without dropout\n"
        "    value: 0.1\n"
        "    fix: remove tuning.lora.dropout\n"
    )
    assert validate(text.replace("0.1", "0")).code == 0
    assert validate(text.replace("DPO", "RewardModel")).code == 0


RELEASE = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneRelease
metadata: {name: support-bot}
spec:
  jobRef: {name: support-bot}
  target: {files: {uri: s3://serving/support-bot}}
"""


def test_a_release_is_checked_by_its_own_schema(validate: Callable[..., Any]) -> None:
    done = validate(RELEASE)
    assert (done.code, done.out) == (0, "support-bot is valid\n")
    done = validate(f"{JOB}---\n{RELEASE}", "-o", "json")
    assert json.loads(done.out)["valid"] == ["job", "support-bot"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("jobRef: {name: support-bot}", "jobref: {name: support-bot}", "did you mean jobRef?"),
        ("target:", "uri: s3://models/a\n  target:", "spec give exactly one of jobRef and uri"),
        ("  target: {files: {uri: s3://serving/support-bot}}", "  target: {}", "give exactly one of vllm, kserve"),
        ("files: {uri: s3://serving/support-bot}", "files: {}", "spec.target.files.uri is missing"),
        ("kind: FineTuneRelease", "kind: FinetuneRelease", "fix: kind: FineTuneRelease"),
        ("finetune.dev/v1alpha1", "finetune.dev/v1", "fix: apiVersion: finetune.dev/v1alpha1"),
    ],
)
def test_a_fault_of_a_release_is_named_with_its_fix(
    validate: Callable[..., Any], old: str, new: str, told: str
) -> None:
    done = validate(RELEASE.replace(old, new))
    assert done.code == 1
    assert told in done.out


def test_the_release_of_the_documentation_is_valid(validate: Callable[..., Any]) -> None:
    text = (Path(__file__).parents[4] / "docs" / "release.md").read_text(encoding="utf-8")
    found = [one for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "kind: FineTuneRelease" in one]
    assert found
    for one in found:
        assert validate(one).code == 0, one


def test_a_folder_is_checked_with_the_folders_below_it(finetune: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "team" / "a").mkdir(parents=True)
    (tmp_path / "one.yaml").write_text(JOB)
    (tmp_path / "team" / "a" / "two.yaml").write_text(JOB.replace("job", "other").replace("Chat", "Chatter"))
    done = finetune("validate", str(tmp_path))
    assert done.code == 1
    assert "team/a/two.yaml:5: spec.objective must be one of" in done.out


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (
            {"labels": {"team": "a b"}},
            'labels.team is not a valid value of a label\n    value: "a b"\n    fix: at most',
        ),
        ({"labels": {"bad key!": "x"}}, "is not a valid key of labels"),
        ({"labels": {"a/b/c": "x"}}, "is not a valid key of labels"),
        ({"annotations": {"x y": "z"}}, "is not a valid key of annotations"),
        ({"generateName": "Bad_"}, "metadata.generateName is not the beginning of a valid Kubernetes name"),
        ({"generateName": 5}, "metadata.generateName is not the beginning"),
        ({"finalizers": "x"}, "metadata.finalizers must be a list"),
        ({"finalizers": [1]}, "metadata.finalizers[0] must be a text"),
        ({"finalizers": ["a b"]}, "metadata.finalizers[0] is not a valid name of a finalizer"),
        ({"ownerReferences": ["a"]}, "metadata.ownerReferences[0] must be a block of fields"),
        ({"namespace": "Team_A"}, 'namespace cannot be the name of a namespace\n    value: "Team_A"\n    fix: at most'),
        ({"namespace": ["a"]}, "metadata.namespace cannot be the name of a namespace"),
        ({"name": "one\n"}, "metadata.name is not a valid Kubernetes name"),
    ],
    ids=str,
)
def test_metadata_that_the_api_server_refuses_is_a_problem(
    validate: Callable[[str], Any], metadata: dict[str, Any], told: str
) -> None:
    done = validate(JOB.replace("{name: job}", json.dumps({"name": "job"} | metadata)))
    assert (done.code, done.out.count("fix:"), told in done.out) == (1, 1, True), done


def test_a_starter_for_a_namespace_that_cannot_exist_is_refused(finetune: Callable[..., Any]) -> None:
    given = ("--model", "hf://owner/model", "--data", "s3://data/rows/", "--result", "s3://models/out", "-f", "-")
    done = finetune("new", "one", "-n", "A b", *given)
    assert (done.code, done.out, "metadata.namespace cannot be the name" in done.err) == (2, "", True)
