import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from report_record import ALL_HOSTILE, make_merge, make_run

from finetune_api.evaluation import EvaluationStatus
from finetune_api.handoff import Artifact, JobConfig
from finetune_api.output import OciOutput
from finetune_api.spec import Checkpoint, FineTuneJobSpec
from finetune_api.status import DatasetStatus, EarlyStoppingStatus, Resolved
from finetune_trainer.evaluation.gate_rules import MergeCheck, ValidationResult
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.kept_steps import describe_steps
from finetune_trainer.evaluation.measurements import Measured, TrainPoint
from finetune_trainer.evaluation.run_record import Answer, Machine, RunRecord, SampleStats, Served
from finetune_trainer.report import text
from finetune_trainer.report.curves import curve_table
from finetune_trainer.report.document import write_documents, write_report

HOSTILE = "a|b](http://evil) <script>x</script> `code` \x1b[31mred\x1b[0m\n# heading"


def make_record(tmp_path: Path, **changes: object) -> RunRecord:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/base; rm -rf ~"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 10},
            "earlyStopping": {"patience": 3},
            "output": {"uri": "s3://bucket/out"},
        }
    )
    history = History(tmp_path / "metrics.jsonl")
    history.add_evaluation(0, Measured(3.5, 200))
    for step in range(1, 41):
        history.add_step(TrainPoint(step, step / 10, 3.0 - step / 40, 1e-4, 0.5, 123.0, 0.1))
        if step % 10 == 0:
            history.add_evaluation(step, Measured(3.2 - step / 50, 200))
    record = RunRecord(
        config=JobConfig(namespace="default", name="support-bot", uid="u", config_sha256="c" * 64, spec=spec),
        settings=Resolved(
            method="QLoRA",
            method_reason="Auto is QLoRA",
            total_steps=40,
            max_length=128,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=8,
            global_batch_size=16,
            seed=42,
            lora_rank=16,
        ),
        dataset=DatasetStatus(
            rows=110,
            accepted_rows=100,
            rejected_rows=10,
            rejected_rows_by_code={"BAD_JSON": 7, "NULL_FIELD": 3},
            rows_by_format={"Alpaca": 100},
        ),
        samples=SampleStats(90, 10, 90, 0.031, 0.42, 60, 128, 128),
        previews=[[("<|user|>", False), ("the answer", True), ("\n", False)]],
        history=history,
        baseline=Measured(3.5, 200, 0.1, batches=((3.4, 20),) * 5 + ((3.6, 20),) * 5),
        final=Measured(2.4, 200, 0.1, batches=((2.2, 20),) * 5 + ((2.6, 20),) * 5),
        compared_rows=10,
        best_step=40,
        early_stopping=EarlyStoppingStatus(stopped=False, patience=3),
        trainable_parameters=1234,
        answers=[Answer("Why?", "no idea", "because")],
        merge=None,
        machine=Machine("CPU, 2 threads", 3 * 2**30, None, 61.5, {"torch": "2.13.0"}),
    )
    return replace(record, **changes)


def write(record: RunRecord, folder: Path) -> str:
    write_documents(record, folder, {})
    return (folder / Artifact.REPORT).read_text()


def test_the_result_compares_base_and_tuned_model_with_an_interval(tmp_path: Path) -> None:
    report = write(make_record(tmp_path), tmp_path)
    assert "**Better than the base model: held-out loss 3.5 → 2.4, -31 % (95 % interval " in report
    assert "| base model    | 3.5  | 33.12      | 200    |" in report
    assert "| tuned model   | 2.4  | 11.02      | 200    |" in report
    assert "step 40 of 40, the best of 4 evaluations" in report
    assert "Student's t over 10 groups of the same held-out rows" in report
    assert "because this one was chosen from 4 evaluations" in report


def test_sections_are_one_empty_line_apart(tmp_path: Path) -> None:
    assert "\n\n\n" not in write(make_record(tmp_path), tmp_path)


def test_the_report_begins_with_what_was_trained_where_and_when(tmp_path: Path) -> None:
    _, _, about = write(make_record(tmp_path), tmp_path).splitlines()[:3]
    assert re.search(r"`s3://bucket/base.*` on `.*` · `default/support-bot` · \d{4}-\d\d-\d\d$", about)


def test_a_qlora_result_shows_the_served_model_before_the_one_in_training(tmp_path: Path) -> None:
    served = Served(Measured(3.2, 200), Measured(2.6, 200))
    lines = write(make_record(tmp_path, served=served), tmp_path).splitlines()
    names = [line.split("|")[1].strip() for line in lines if "4-bit base)" in line or "16-bit base)" in line]
    assert names == [
        "base model, as served (16-bit base)", "tuned model, as served (16-bit base)",
        "base model, in training (4-bit base)", "tuned model, in training (4-bit base)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("epoch", "sentence"),
    [
        (0.05, "The training read 4 of 90 rows (0.05 epochs)."),
        (1.0, "The training read each row once."),
        (2.5, "The training read its rows 2.5 times."),
    ],
)
def test_the_report_has_how_often_the_rows_were_read(tmp_path: Path, epoch: float, sentence: str) -> None:
    record = make_record(tmp_path)
    record.history.train[-1] = replace(record.history.train[-1], epoch=epoch)
    assert sentence in write(record, tmp_path)


def test_every_figure_of_the_data_is_shown(tmp_path: Path) -> None:
    report = write(make_record(tmp_path), tmp_path)
    assert "110 rows read, 100 accepted, 10 skipped" in report
    assert "3.1 % of the training rows were truncated at 128 tokens" in report
    assert "42.0 % of the tokens are trained" in report
    assert "| `BAD_JSON`   | 7    | The line is not valid JSON" in report
    assert "⟦the answer⟧" in report


CODES = {"BAD_JSON": 7, "TOO_LONG": 3}
SUMMARY = {
    "train": {
        "files": [
            {
                "file": "s3://bucket/a|b.jsonl",
                "rows": 70,
                "acceptedRows": 60,
                "rejectedRowsByCode": {"BAD_JSON": 7, "TOO_LONG": 3},
            },
            {"file": "s3://bucket/c.csv", "rows": 40, "acceptedRows": 40, "rejectedRowsByCode": {}},
        ],
        "lengths": {"p50": 60, "p90": 110, "p99": 180, "max": 400, "advisedMaxLength": 192},
    },
    "validation": None,
}


def test_every_file_is_listed_with_what_became_of_its_rows(tmp_path: Path) -> None:
    lines = write(make_record(tmp_path, summary=SUMMARY), tmp_path).splitlines()
    assert "| training | `s3://bucket/a¦b.jsonl` | 70   | 60       | 10      | `BAD_JSON` 7, `TOO_LONG` 3 |" in lines
    assert "| training | `s3://bucket/c.csv`     | 40   | 40       | 0       | -                          |" in lines


def test_columns_that_nothing_reads_are_named_with_their_share_of_the_rows(tmp_path: Path) -> None:
    report = write(make_record(tmp_path, summary=SUMMARY), tmp_path)
    assert "content that is not used" not in report
    train = SUMMARY["train"] | {"acceptedRows": 40, "unusedColumns": {"solution": 40, "a|b": 1}}
    lines = write(make_record(tmp_path, summary=SUMMARY | {"train": train}), tmp_path).splitlines()
    assert (
        "Columns with content that is not used, in percent of the accepted rows: `solution` (100.0 %), `a¦b` (2.5 %). "
        "If they belong to the training, name them in `dataset.columns`."
    ) in lines


def test_of_many_files_the_first_are_listed_and_the_rest_is_summed_up(tmp_path: Path) -> None:
    files = [{"file": f"s3://bucket/{n}", "rows": 3, "acceptedRows": 2, "rejectedRowsByCode": {}} for n in range(25)]
    report = write(make_record(tmp_path, summary={"train": {"files": files, "lengths": {}}}), tmp_path)
    (rest,) = [line for line in report.splitlines() if "5 more, in `dataset/summary.json`" in line]
    assert [cell.strip() for cell in rest.split("|")[3:6]] == ["15", "10", "5"]
    assert "s3://bucket/20" not in report


def test_lengths_are_shown_with_the_limit_that_truncates_them(tmp_path: Path) -> None:
    report = write(make_record(tmp_path, summary=SUMMARY), tmp_path)
    (line,) = [line for line in report.splitlines() if line.startswith("| training rows")]
    assert [cell.strip() for cell in line.split("|")[2:8]] == ["60", "110", "180", "400", "192", "128"]


def test_a_packed_run_reports_sequences_and_their_rows(tmp_path: Path) -> None:
    changes = {"packing": True, "num_train_epochs": 2.0, "total_steps": 40, "per_device_train_batch_size": 1}
    settings = make_record(tmp_path).settings.model_copy(update=changes | {"global_batch_size": 8})
    report = write(make_record(tmp_path, settings=settings), tmp_path)
    assert "1 sequences × 8 accumulated = **8 sequences a step**, with 9 rows a step on average: short" in report  # noqa: RUF001


def test_rows_of_a_step_are_those_that_were_read_in_its_steps(tmp_path: Path) -> None:
    record = make_record(tmp_path, samples=SampleStats(100, 10, 100, 0, 0.42, 60, 128, 128))
    record.settings.packing = True
    record.history.train[:] = [replace(record.history.train[0], step=6, epoch=0.98)]
    report = write(record, tmp_path)
    assert "The training read about 98 of 100 rows (0.98 epochs)." in report
    assert "with 16.3 rows a step on average" in report


def test_the_estimate_is_next_to_the_peak(tmp_path: Path) -> None:
    settings = make_record(tmp_path).settings.model_copy(update={"estimated_gpu_memory_bytes": 10 * 2**30})
    machine = Machine("GPU", 9 * 2**30, 80 * 2**30, 61.5, {})
    report = write(make_record(tmp_path, settings=settings, machine=machine), tmp_path)
    assert "peak memory 9.0 GiB of the GPU's 80.0 GiB; preflight's estimate for a GPU was 10.0 GiB" in report


def test_settings_answers_and_cost_are_shown(tmp_path: Path) -> None:
    report = write(make_record(tmp_path), tmp_path)
    assert "8 accumulated = **16 rows a step**" in report
    assert "    no idea" in report
    assert "    because" in report
    assert "123 tokens per second" in report
    assert "peak memory 3.0 GiB" in report
    assert "--max-lora-rank 16" in report


def test_a_run_without_held_out_rows_is_reported_as_such(tmp_path: Path) -> None:
    record = make_record(tmp_path, baseline=None, final=None, best_step=None, early_stopping=None)
    assert "**Not evaluated: no rows were held out.**" in write(record, tmp_path)


def test_early_stopping_gives_its_reason(tmp_path: Path) -> None:
    stopped = EarlyStoppingStatus(stopped=True, stopped_at_step=30, patience=3, evaluations_without_improvement=3)
    report = write(make_record(tmp_path, early_stopping=stopped), tmp_path)
    assert "**Stopped early** at step 30: 3 evaluations in a row did not lower the evaluation loss by 0.001" in report


def test_the_full_model_comes_with_its_comparison(tmp_path: Path) -> None:
    good = ValidationResult("dequantised base", [], 2.41, 2.4, 0.0012, 0.991, 0.998, 0.2, 512)
    bad = ValidationResult("unquantised base", [], 2.93, 2.9, 0.0013, 0.99, 0.997, 0.2, 512)
    merge = MergeCheck("BF16", 2.4, [bad, good], [["its held-out loss is 2.93"], []], good)
    report = write(make_record(tmp_path, merge=merge), tmp_path)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if " base " in line]
    assert ["dequantised base", "2.41", "0.0012", "99.1 %", "99.8 %", "published"] in table
    assert ["unquantised base", "2.93", "0.0013", "99.0 %", "99.7 %", "withheld"] in table
    assert "- its held-out loss is 2.93" in report
    assert "vllm serve merged --served-model-name tuned" in report


def test_a_withheld_full_model_is_reported_and_not_served(tmp_path: Path) -> None:
    merge = MergeCheck("FP16", 2.4, [ValidationResult("unquantised base", ["x"])], [["tensor w is not finite"]], None)
    report = write(make_record(tmp_path, merge=merge), tmp_path)
    assert "**There is no `merged/`**: the full model in FP16 is withheld: tensor w is not finite. " in report
    assert "Set output.merge to BF16 or FP32" in report
    assert "vllm serve merged" not in report


def test_every_gate_that_is_not_met_is_in_the_report_with_its_fix(tmp_path: Path) -> None:
    reasons = [f"gate {number} is not met because of {'these figures ' * 8}" for number in range(5)]
    fault = f"tensor {'w' * 300} is not finite"
    merge = MergeCheck("FP16", 2.4, [ValidationResult("unquantised base", ["x"])], [[fault]], None)
    evaluation = EvaluationStatus(gate="NotMet", gate_message=f"{'; '.join(reasons)}. Set output.merge to BF16")
    report = write(make_record(tmp_path, merge=merge, evaluation=evaluation), tmp_path)
    assert all(f"gate {number} is not met" in report for number in range(5))
    assert report.count("Set output.merge to BF16") == 2


def test_the_report_names_what_to_change_if_the_gate_could_not_run(tmp_path: Path) -> None:
    merge = MergeCheck("BF16", 2.4, [], [], None, "it takes 9 GiB of memory: raise resources.limits.memory")
    report = write(make_record(tmp_path, merge=merge), tmp_path)
    assert "its gate could not run: it takes 9 GiB of memory: raise resources.limits.memory" in report


def test_answers_show_whether_they_match_and_what_the_full_model_answers(tmp_path: Path) -> None:
    answers = [
        Answer("a?", "no", "yes", "yes", "^yes$", is_expected=True),
        Answer("b?", "no", "maybe", "perhaps", "^yes$", is_expected=False),
    ]
    report = write(make_record(tmp_path, answers=answers), tmp_path)
    assert "Tuned model, which matches `^yes$`" in report
    assert "Tuned model, which **does not match** `^yes$`" in report
    assert "The full model answers the same." in report
    assert "perhaps" in report


def test_the_system_message_of_the_rows_is_where_the_commands_of_servers_are(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    dataset = record.config.spec.dataset.model_copy(update={"system_message": "Name the class."})
    spec = record.config.spec.model_copy(update={"dataset": dataset})
    assert "system message" not in write(record, tmp_path)
    report = write(replace(record, config=record.config.model_copy(update={"spec": spec})), tmp_path)
    assert "before each conversation; the commands below have none:\n\n    Name the class.\n" in report
    shared = {"share": 0.9532, "begins": "Be | brief"}
    report = write(replace(record, summary=dict(record.summary) | {"sharedSystem": shared}), tmp_path)
    assert '95 % of the training rows have a system message that begins with "Be' in report


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    answers = [Answer(HOSTILE, HOSTILE, HOSTILE)]
    dataset = DatasetStatus(rows=1, accepted_rows=1, rows_by_format={HOSTILE[:40]: 1})
    report = write(make_record(tmp_path, answers=answers, dataset=dataset), tmp_path)
    assert "\x1b" not in report
    lines = report.splitlines()
    assert not [line for line in lines if line.startswith(("# heading", "<script"))]
    assert [line for line in lines if line.startswith("| a\\|b\\](http")]


def test_the_whole_report_holds_no_html_no_link_and_no_picture_but_its_own(tmp_path: Path) -> None:
    """By a parser that lets HTML through; what a terminal obeys is not there either."""
    run = make_run(tmp_path)
    report = write(replace(run, machine=replace(run.machine, device=ALL_HOSTILE)), tmp_path)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(report)
    found = [one for token in tokens for one in [token, *(token.children or [])]]
    assert not {"html_block", "html_inline", "link_open", "fence", "blockquote_open", "hr"} & {
        one.type for one in found
    }
    assert [one.attrs["src"] for one in found if one.type == "image"] == ["curves.png", "lengths.png"]
    headings = [found[at + 1].content for at, one in enumerate(found) if one.type == "heading_open"]
    assert not [heading for heading in headings if "heading" in heading]
    assert not [character for character in report if ord(character) < 32 and character != "\n"]


@pytest.mark.parametrize("is_local", [True, False])
def test_the_report_shows_how_to_try_the_result_and_where_its_folders_are(tmp_path: Path, is_local: bool) -> None:
    record = make_record(tmp_path)
    record = replace(record, config=record.config.model_copy(update={"is_local": is_local}))
    serving = write(record, tmp_path).partition("## How to serve it")[2]
    assert "`finetune-trainer chat DIR`" in serving
    assert ("Copy the folders to this machine:" in serving) is not is_local
    assert ("Where the folders are:" in serving) is is_local


def test_the_kept_checkpoints_are_a_table_after_the_result_with_the_command_that_fetches_one(tmp_path: Path) -> None:
    kept = describe_steps([20, 30], make_record(tmp_path).history)
    record = make_record(tmp_path, kept=kept)
    sway = {20: 0.1, 30: 0.6, 40: 0.1}  # step 30 has a higher loss in half of the rows, and a lower one in the others
    for place, point in enumerate(record.history.evaluations):
        batches = tuple((point.loss + sway.get(point.step, 0) * (-1) ** at, 20) for at in range(10))
        record.history.evaluations[place] = replace(point, measured=Measured(point.loss, 200, batches=batches))
    record.config.spec.checkpoint.keep = 2
    section = write(record, tmp_path).partition("## Kept checkpoints")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == ["step", "epochs", "held-out loss", "from the result", "folder"]
    assert rows[2:] == [
        ["40", "4", "2.4", "-", "`adapter/`, the result"],
        ["30", "3", "2.6", "+8.3 % (95 % interval -13 to +24 %)", "`kept-checkpoints/step-000030/`"],
        ["20", "2", "2.8", "+17 % (95 % interval +17 to +17 %)", "`kept-checkpoints/step-000020/`"],
    ]
    assert "aws s3 cp --recursive s3://bucket/out/kept-checkpoints/step-000030 adapter" in section
    assert "on its 4-bit base" in section
    assert "the training had no more" not in section
    record.config.spec.checkpoint.keep = 3
    assert "`checkpoint.keep` is 3, but the training had no more evaluations" in write(record, tmp_path)
    assert "Kept checkpoints" not in write(make_record(tmp_path), tmp_path)


def test_without_held_out_rows_the_kept_checkpoints_are_the_last_ones(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    history = replace(record.history, evaluations=[], path=tmp_path / "other.jsonl")
    spec = record.config.spec.model_copy(update={"checkpoint": Checkpoint(keep=2, steps=10)})
    config = record.config.model_copy(update={"spec": spec, "is_local": True})
    record = replace(record, config=config, history=history, best_step=None, kept=describe_steps([30], history))
    section = write(record, tmp_path).partition("## Kept checkpoints")[2].partition("\n## ")[0]
    assert "no rows were held out, so they are the last ones" in section
    assert re.search(r"\| 40 +\| 4 +\| - +\| - +\| `adapter/`, the result", section)
    assert "no more steps at which a checkpoint was due: set `checkpoint.steps` lower" in section
    assert "# adapter: a copy of kept-checkpoints/step-000030, in the folder of this report" in section


@pytest.mark.parametrize(
    ("fields", "has_model", "words", "missing"),
    [
        (None, True, [], ["From the registry"]),
        ({}, False, ["`r.example/bot:support-bot` is an image with the adapter in `/models`"], ["oci+native", "oras"]),
        (
            {"tag": "v2"},
            True,
            ["with the full model", "reference: r.example/bot:v2", "oci+native://r.example/bot:v2"],
            [],
        ),
        ({"format": "ModelPack"}, False, ["oras pull r.example/bot:support-bot --output support-bot"], ["subPath"]),
    ],
)
def test_the_report_shows_how_to_mount_or_pull_what_a_registry_gets(
    tmp_path: Path, fields: dict[str, str] | None, has_model: bool, words: list[str], missing: list[str]
) -> None:
    record = make_record(tmp_path, merge=make_merge(2.4) if has_model else None)
    spec = record.config.spec
    oci = None if fields is None else OciOutput.model_validate({"repository": "r.example/bot", **fields})
    spec = spec.model_copy(update={"output": spec.output.model_copy(update={"oci": oci})})
    record = replace(record, config=record.config.model_copy(update={"spec": spec}))
    serving = write(record, tmp_path).partition("## How to serve it")[2]
    assert all(word in serving for word in words)
    assert not any(word in serving for word in missing)


def test_no_figure_of_a_whole_report_is_missing(tmp_path: Path) -> None:
    assert not re.search(r"\bNone\b|\bnan\b", write(make_run(tmp_path), tmp_path))


def test_a_uri_in_a_command_is_one_word_of_the_shell(tmp_path: Path) -> None:
    assert "cp --recursive 's3://bucket/base; rm -rf ~' base" in write(make_record(tmp_path), tmp_path)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    write_report(make_record(tmp_path), tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_curve_table_has_the_baseline_and_the_mean_of_the_steps_between(tmp_path: Path) -> None:
    table = curve_table(make_record(tmp_path).history).splitlines()
    assert table[2].split("|")[1:4] == [" 0    ", " -             ", " 3.5             "]
    assert [cell.strip() for cell in table[3].split("|")[1:4]] == ["10", "2.862", "3"]


def test_a_long_training_gives_a_short_table(tmp_path: Path) -> None:
    history = History(tmp_path / "long.jsonl")
    for step in range(1, 1001):
        history.add_step(TrainPoint(step, 0.1, 1.0, 1e-4, 1.0, 1.0, 1.0))
    table = curve_table(history).splitlines()
    assert len(table) <= 2 + 20
    assert table[-1].startswith("| 1000")


def test_the_model_card_has_front_matter_and_names_the_base(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    write_report(make_record(tmp_path), tmp_path)
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    assert "`s3://bucket/base; rm -rf ~`" in body


def test_numbers_and_sizes_are_short() -> None:
    assert [text.number(value) for value in (None, 1.23456, 0.0, float("inf"), 1e9)] == [
        "-",
        "1.235",
        "0",
        "∞",
        "1.000e+09",
    ]
    assert [text.size(value) for value in (None, 12, 2048, 5 * 2**20, 3 * 2**40)] == [
        "-",
        "12 B",
        "2 KiB",
        "5 MiB",
        "3072.0 GiB",
    ]
    assert text.code("a`b") == "`` a`b ``"


def test_the_sources_of_a_blend_are_a_table_with_their_shares(tmp_path: Path) -> None:
    entry = {"rows": 40, "acceptedRows": 38, "rejectedRows": 2, "rejectedRowsByCode": {"BAD_JSON": 2}}
    blend = [
        entry | {"uri": "s3://bucket/a.jsonl", "weight": 3.0, "sample": "Random", "trainRows": 30,
                 "trainedTokens": 900, "shareOfRows": 0.6, "shareOfTrainedTokens": 0.75, "lengths": {"p99": 77}},
        entry | {"uri": "s3://bucket/b.jsonl", "maxSamples": 20, "trainRows": 20,
                 "trainedTokens": 300, "shareOfRows": 0.4, "shareOfTrainedTokens": 0.25},
    ]  # fmt: skip
    report = write(make_record(tmp_path, summary={"blend": blend}), tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines()]
    read = ["40", "38", "2"]
    assert ["`s3://bucket/a.jsonl`", "weight 3, at random", *read, "30", "60.0 %", "900", "75.0 %", "77"] in rows
    assert ["`s3://bucket/b.jsonl`", "maxSamples 20", *read, "20", "40.0 %", "300", "25.0 %", "-"] in rows
    assert "Sources, with what one pass" not in write(make_record(tmp_path), tmp_path)
