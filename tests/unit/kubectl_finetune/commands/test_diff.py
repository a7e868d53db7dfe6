from collections.abc import Callable

from finetune_client.cluster.job import Job
from kubectl_finetune.commands import diff

Make = Callable[..., Job]
Printed = Callable[..., str]


def test_a_difference_has_both_values_and_the_change_in_percent(job: Make, printed: Printed) -> None:
    spec = {"objective": "DPO", "dpo": {"beta": 0.1}, "suspend": True, "hyperparameters": {"maxSteps": 100}}
    other = job("two", spec, metrics={"evalLoss": 1.2}, runs=3)
    page = [
        line.split()
        for line in printed(diff.difference_page(job("one", {"hyperparameters": {"maxSteps": 0}}), other)).splitlines()
    ]
    assert page[:2] == [["Spec"], ["FIELD", "one", "two", "CHANGE"]]
    assert page[page.index(["Result"]) - 1] == []
    assert ["objective", "Chat", "DPO"] in page
    assert ["dpo.beta", "-", "0.1"] in page
    assert ["suspend", "-", "true"] in page
    assert ["hyperparameters.maxSteps", "0", "100"] in page
    assert ["runs", "1", "3", "+200.0", "%"] in page
    assert ["metrics.evalLoss", "1.5", "1.2", "-20.0", "%"] in page
    assert ["metrics.trainLoss", "1.4231", "-"] in page


def test_true_and_false_have_no_change_in_percent(job: Make, printed: Printed) -> None:
    page = printed(diff.difference_page(job("one", {"suspend": True}), job("two", {"suspend": False})))
    assert ["suspend", "true", "false"] in [line.split() for line in page.splitlines()]


def test_jobs_without_a_difference_have_two_empty_parts(job: Make, printed: Printed) -> None:
    assert printed(diff.difference_page(job(), job())) == "Spec\n  no difference\n\nResult\n  no difference\n"
    assert diff.differences(job(), job()) == {"spec": {}, "result": {}}


def test_an_empty_block_differs_from_none(job: Make) -> None:
    found = diff.differences(job("one", {"earlyStopping": {}}), job())
    assert found["spec"] == {"earlyStopping": ({}, None)}


def test_sources_of_rows_are_compared_by_uri_whatever_their_order(job: Make, printed: Printed) -> None:
    faq, chats, more = (f"s3://rows/{name}.jsonl" for name in ("faq", "chats", "more"))
    specs = [
        {"dataset": {"train": {"sources": [{"uri": faq, "weight": 3}, {"uri": chats, "weight": 1}]}}},
        {"dataset": {"train": {"sources": [{"uri": chats, "weight": 1}, {"uri": faq, "weight": 2}, {"uri": more}]}}},
    ]
    counted = [
        {"sources": [{"uri": faq, "sha256": "a" * 64, "trainRows": 30}, {"uri": chats, "trainRows": 10}]},
        {"sources": [{"uri": chats, "trainRows": 10}, {"uri": faq, "sha256": "b" * 64, "trainRows": 20}]},
    ]
    left, right = (
        job(name, spec, dataset=dataset) for name, spec, dataset in zip(("one", "two"), specs, counted, strict=True)
    )
    found = diff.differences(left, right)
    assert found["spec"] == {
        f"dataset.train.sources[{faq}].weight": (3, 2),
        f"dataset.train.sources[{more}]": (None, "used"),
    }
    assert found["result"] == {
        f"dataset.sources[{faq}].sha256": ("a" * 64, "b" * 64),
        f"dataset.sources[{faq}].trainRows": (30, 20),
    }
