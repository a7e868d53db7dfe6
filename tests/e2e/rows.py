"""Rows that a tiny model can learn: a fruit for each colour, as answers, as judged answers and as text."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import cycle
from typing import Any

COLOURS = {"red": "apple", "yellow": "banana", "green": "pear", "blue": "plum", "black": "olive", "white": "radish"}
Row = dict[str, Any]


def colours(count: int) -> Iterator[tuple[str, str, str]]:
    """A question, its right answer and a wrong one."""
    fruits = list(COLOURS.values())
    for number in range(count):
        colour, fruit = list(COLOURS.items())[number % len(COLOURS)]
        other = fruits[(number + 1) % len(fruits)]
        ask = f"Number {number}: name a {colour} fruit."
        yield ask, f"A {colour} fruit is the {fruit}.", f"No idea, {other} perhaps?"


def colour_rows(count: int) -> list[Row]:
    """The answers as Alpaca, OpenAI and ShareGPT rows in turn."""
    rows: list[Row] = []
    for number, (ask, answer, _) in enumerate(colours(count)):
        if number % 3 == 0:
            rows.append({"instruction": ask, "input": "", "output": answer})
        elif number % 3 == 1:
            rows.append({"messages": [user(ask), assistant(answer)]})
        else:
            rows.append({"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]})
    return rows


def preference_rows(count: int) -> list[Row]:
    """The right answer chosen and the wrong one rejected, in four of the shapes that people have."""
    rows: list[Row] = []
    for number, (ask, good, bad) in enumerate(colours(count)):
        shapes: list[Row] = [
            {"prompt": ask, "chosen": good, "rejected": bad},
            {"chosen": [user(ask), assistant(good)], "rejected": [user(ask), assistant(bad)]},
            {
                "input": {"messages": [user(ask)]},
                "preferred_output": [assistant(good)],
                "non_preferred_output": [assistant(bad)],
            },
            {
                "conversations": [{"from": "human", "value": ask}],
                "chosen": {"from": "gpt", "value": good},
                "rejected": {"from": "gpt", "value": bad},
            },
        ]
        rows.append(shapes[number % len(shapes)])
    return rows


def judged_rows(count: int) -> list[Row]:
    """Every other answer is the wrong one, and labelled so."""
    return [
        {"prompt": ask, "completion": bad if number % 2 else good, "label": not number % 2}
        for number, (ask, good, bad) in enumerate(colours(count))
    ]


def text_rows(count: int) -> list[Row]:
    """Documents of a few sentences."""
    answers = [answer for _, answer, _ in colours(count * 3)]
    return [{"text": f"Page {page}. " + " ".join(answers[3 * page : 3 * page + 3])} for page in range(count)]


def prompt_rows(count: int) -> list[Row]:
    """Questions without answers."""
    return [{"prompt": ask} for ask, _, _ in colours(count)]


def sum_rows(count: int) -> list[Row]:
    """Questions with worked answers that end in their result."""
    pairs = [(number % 10, number // 10) for number in range(count)]
    return [{"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"} for a, b in pairs]


def ticket_rows(count: int) -> list[Row]:
    """Texts with their class."""
    return [
        {"text": f"Ticket {number}: my {fruit} is late.", "label": colour}
        for number, (colour, fruit) in zip(range(count), cycle(COLOURS.items()), strict=False)
    ]


def support_csv(count: int) -> str:
    """A CSV file with columns that no format knows."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["question", "reply"])
    writer.writerows((ask, answer) for ask, answer, _ in colours(count))
    return text.getvalue()


def jsonl(rows: list[Row]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def assistant(content: str) -> Row:
    return {"role": "assistant", "content": content}
