"""What counts of an answer, and when it is the reference: known answers, also to odd and hostile texts."""

import time
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.rewards import AnswerReward
from finetune_trainer.errors import TrainerError
from finetune_trainer.rewards.matching import Matcher, after_hashes, last_boxed, last_number, parse_choice, parse_number

GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether she sold 48+24 = <<48+24=72>>72 clips.\n#### 72"
MATH = r"The sum is $\frac{1}{2} + \frac{1}{2}$, so the answer is $\boxed{1{,}5}$ or rather $\boxed{\text{odd} {x}}$."


def matcher(**settings: Any) -> Matcher:
    return Matcher(AnswerReward.model_validate(settings), "rlhf.rewards[0].answer")


def is_correct(answer: str, *references: str, **settings: Any) -> bool:
    return bool(matcher(**settings).score(answer, references))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", 72),
        (" 72. ", 72),
        ("1,000", 1000),
        ("1,234,567.5", 1234567.5),
        ("1e3", 1000),
        ("-2.5E-1", -0.25),
        ("$5", 5),
        ("-$5", -5),
        ("$-5", -5),
        ("$5$", 5),
        (r"\$1,000", 1000),
        ("€7", 7),
        ("50%", 50),
        (r"50\%", 50),
        ("\u22123", -3),
        ("+3", 3),
        ("007", 7),
        (".5", 0.5),
        ("5.", 5),
        ("1e308", 10**308),
    ],
)
def test_a_number_is_read_as_people_and_models_write_it(text: str, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "-", "$", "%", "e3", "nan", "NaN", "inf", "-Infinity", "seven", "1,0000", "1,00", "10,00,000",
        "1 000", "1.2.3", "1/2", "0x10", "1_000", "١٢", "\uff11\uff12", "²", "1e309", "1e9999", "1e99999999999",
        "9" * 65, "9" * 1_000_000, "1,000 apples", "--1", "1e", "12\n13", "True",
    ],
)  # fmt: skip
def test_any_other_text_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("no number", None),
        ("She has 3 apples and 14 pears.", "14"),
        ("It costs $1,234.50.", "1,234.50"),
        ("It costs $1,234.50", "1,234.50"),
        ("x = -4", "-4"),
        ("x=\u22124", "-4"),
        ("5 - 3", "3"),
        ("(7)-3", "3"),
        ("a loss of -$20!", "-20"),
        ("- 7 apples", "7"),
        ("about 1e3 in all", "1e3"),
        ("5km", "5"),
        ("50%", "50"),
        ("wait...5", "5"),
        ("H2O", None),
        ("x2", None),
        ("1,0000", None),
        ("3 or 1,2", None),
        ("version 1.2.3", None),
        ("٣", None),
        ("9" * 1_000_000, None),
        (f"3 {'9' * 100}", None),
    ],
)
def test_the_last_number_of_a_text_is_found_or_none(text: str, found: str | None) -> None:
    assert last_number(text) == found


def test_the_marked_result_of_a_worked_solution_is_found() -> None:
    assert after_hashes(GSM8K) == "72"
    assert after_hashes("#### 1\n#### 2 \nSo it is 2.") == "2"
    assert after_hashes("72") is None
    assert last_boxed(MATH) == r"\text{odd} {x}"
    assert last_boxed(r"\boxed{1} and \boxed{2") is None, "the answer was cut off inside the last box"
    assert last_boxed("72") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (b). ", "B"),
        ("**C**", "C"),
        ("The answer is (C).", "C"),
        ("Answer: A. No, I take that back. Answer: D", "D"),
        (r"Answer: $\boxed{B}$", "B"),
        (r"So we get $\boxed{\,}$, that is $\boxed{E}$.", "E"),
        ("C) because it is red", "C"),
        ("A cat sat on the mat.", None),
        ("I think so", None),
        ("answer: Apple", None),
        ("AB", None),
        ("É", None),
        ("", None),
        ("B" * 1_000_000, None),
    ],
)
def test_the_letter_of_a_choice_is_found_and_an_article_is_none(text: str, letter: str | None) -> None:
    assert parse_choice(text) == letter


@pytest.mark.parametrize(
    ("settings", "answer", "reference", "expected"),
    [
        ({"match": "Exact"}, " Paris\n", "Paris", True),
        ({"match": "Exact"}, "paris", "Paris", False),
        ({"match": "Exact"}, "Paris.", "Paris", False),
        ({"match": "Exact", "ignoreCase": True}, "STRASSE", "straße", True),
        ({"match": "Exact"}, "e\u0301", "é", True),
        ({"match": "Exact", "extract": "Pattern", "pattern": r"<a>(.*?)</a>"}, "<a>no</a> <a>yes</a>", "yes", True),
        ({"match": "Exact", "extract": "Pattern", "pattern": r"<a>(.*?)</a>"}, "yes", "yes", False),
        ({"match": "Numeric"}, "1,000", "1e3", True),
        ({"match": "Numeric"}, "It is 72", GSM8K, False),
        ({"match": "Numeric"}, "72", GSM8K, True),
        ({"match": "Numeric", "extract": "LastNumber"}, "So it is 72 clips.", GSM8K, True),
        ({"match": "Numeric", "extract": "Hashes"}, "I compute\n#### 72", GSM8K, True),
        ({"match": "Numeric", "extract": "Hashes"}, "72", GSM8K, False),
        ({"match": "Numeric", "extract": "Boxed"}, r"\boxed{72}", GSM8K, True),
        ({"match": "Numeric", "extract": "Boxed"}, r"\boxed{72}", "72", True),
        ({"match": "Numeric"}, "0.3", "0.1", False),
        ({"match": "Numeric", "absoluteTolerance": 0.2}, "0.3", "0.1", True),
        ({"match": "Numeric", "absoluteTolerance": 0.1}, "0.3", "0.1", False),
        ({"match": "Numeric", "relativeTolerance": 0.01}, "101", "100", True),
        ({"match": "Numeric", "relativeTolerance": 0.01}, "101.1", "100", False),
        ({"match": "Numeric", "relativeTolerance": 0.01}, "-101", "-100", True),
        ({"match": "Numeric", "absoluteTolerance": 5, "relativeTolerance": 0.01}, "104", "100", True),
        ({"match": "Numeric"}, "nan", "nan", False),
        ({"match": "Numeric"}, "", "0", False),
        ({"match": "Numeric"}, "0", "-0.0", True),
        ({"match": "MultipleChoice"}, "The answer is (B).", "b", True),
        ({"match": "MultipleChoice"}, "The answer is (B).", "C", False),
        ({"match": "MultipleChoice"}, "", "C", False),
    ],
)
def test_an_answer_is_correct_if_it_is_the_reference(
    settings: dict[str, Any], answer: str, reference: str, expected: bool
) -> None:
    assert matcher(**settings).find_fault(reference) is None or reference == "nan"
    assert is_correct(answer, reference, **settings) is expected


@pytest.mark.parametrize(
    ("answer", "reference", "settings"),
    [
        ("<think>\n\n</think>\n\nred", "red", {"match": "Exact"}),
        ("Is it 3 or 4? Four.\n</think>\n\n4", "4", {"match": "Numeric"}),
        ("<think>The answer is A, no: B.</think>B", "B", {"match": "MultipleChoice"}),
        ('<think>{"age": 3}</think>\n{"age": 36}', '{"age": 36}', {"match": "Json"}),
        ('<think>\n\n</think>\n\n{"age": 36}', '{"type": "object"}', {"match": "JsonSchema"}),
        ("<think>It was 71.</think>It is 72", "72", {"match": "Numeric", "extract": "LastNumber"}),
        ("red", "<think>\nIt is red.\n</think>\n\nred", {"match": "Exact"}),
        ("<think>a red one</think>blue", "red", {"match": "Exact", "extract": "Pattern", "pattern": "a (red) one"}),
    ],
)
def test_reasoning_is_not_a_part_of_the_answer_but_a_pattern_reads_it(
    answer: str, reference: str, settings: dict[str, Any]
) -> None:
    """Some templates, as that of Qwen 3, write marks of reasoning in every answer, also without any."""
    assert is_correct(answer, reference, **settings)


def test_reasoning_that_does_not_end_has_no_answer() -> None:
    assert not is_correct("<think>\nred", "red", match="Exact")
    assert not is_correct("<think>red</think>", "red", match="Exact")


def test_similarity_is_that_of_the_answer_without_its_reasoning() -> None:
    assert matcher(match="Similar", similarity="Rouge1").score("<think>one two</think>red sea", ["red sea"]) == 1


def test_any_of_several_references_is_correct() -> None:
    assert is_correct("UK", "United Kingdom", "UK", match="Exact")
    assert not is_correct("UK", match="Exact")


@pytest.mark.parametrize(
    ("settings", "reference", "fault"),
    [
        ({"match": "Exact"}, " ", "is empty"),
        ({"match": "Numeric"}, "seventy-two", "is not a number"),
        ({"match": "MultipleChoice"}, "Paris", "is not the letter of a choice"),
        ({"match": "Exact", "extract": "Pattern", "pattern": "^((?:a|aa)+)$"}, "a" * 200 + "b", "takes the pattern"),
    ],
)
def test_a_reference_that_no_answer_can_equal_has_a_fault(settings: dict[str, Any], reference: str, fault: str) -> None:
    assert fault in (matcher(**settings).find_fault(reference) or "")


@pytest.mark.parametrize("pattern", ["answer", "(a)(b)", "(open"])
def test_a_pattern_needs_exactly_one_group(pattern: str) -> None:
    with pytest.raises(TrainerError, match=r"rlhf\.rewards\[0\]\.answer\.pattern") as caught:
        matcher(match="Exact", extract="Pattern", pattern=pattern)
    assert caught.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize(
    "text",
    [
        "1," * 100_000,
        "-$" * 100_000,
        r"\boxed{" * 30_000,
        "#" * 200_000,
        "answer " * 30_000,
        "(" * 200_000,
        pytest.param("\u0301\u0323" * 50_000, id="accents"),
    ],
)
def test_the_time_of_a_comparison_is_linear_in_a_long_answer(text: str) -> None:
    """A quadratic search of these texts takes minutes."""
    began = time.process_time()
    for settings in ({"match": "Numeric", "extract": "LastNumber"}, {"match": "MultipleChoice"}, {"match": "Exact"}):
        assert not is_correct(text, "7", **settings)
    assert last_boxed(text) is None
    after_hashes(text)
    assert time.process_time() - began < 10
