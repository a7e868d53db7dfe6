from finetune_trainer.evaluation.run_record import BaseFacts, Licence
from finetune_trainer.report.notes import build_notes, describe_resumes, licence_note


def test_an_unknown_licence_is_reported_as_unknown() -> None:
    assert "licence of the base model is unknown" in licence_note(None)


def test_a_stated_licence_is_quoted_from_the_card() -> None:
    message = licence_note(Licence(("other",), "llama3.2", "https://example.org/LICENSE"))
    assert message == (
        "The base model's card states the licence `other` (llama3.2), `https://example.org/LICENSE`; it also applies "
        "to the tuned model."
    )


def test_a_default_template_is_reported_if_one_is_used() -> None:
    facts = BaseFacts(is_template_made=True)
    assert any("no chat template" in note for note in build_notes(facts, [], 1, uses_template=True))
    assert not any("no chat template" in note for note in build_notes(facts, [], 1, uses_template=False))


def test_a_base_whose_tokenizer_servers_read_otherwise_is_reported() -> None:
    facts = BaseFacts(is_tokenizer_read_otherwise=True)
    assert any("read **other tokens**" in note for note in build_notes(facts, [], 1, uses_template=False))


def test_prompts_longer_than_the_context_are_reported_by_number() -> None:
    facts = BaseFacts(context_length=100, prompt_tokens=(10, 101, 100))
    (message,) = [note for note in build_notes(facts, [], 1, uses_template=True) if "context of 100" in note]
    assert "number 2 (101 tokens)" in message


def test_the_report_shows_how_often_the_run_was_resumed_and_from_where() -> None:
    assert "ran **without interruption**" in describe_resumes([], 1)
    assert "**resumed once**, from step 40. This was attempt 2 of the job." in describe_resumes([40], 2)
    assert "**resumed 3 times**, from steps 40, 40 and 80." in describe_resumes([40, 40, 80], 1)
