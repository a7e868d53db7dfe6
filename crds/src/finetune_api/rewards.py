"""What scores or compares an answer: reward models, computed rewards, servers, and the reference of its row."""

import json
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from finetune_api.blocks import (
    SET,
    Block,
    Endpoint,
    JobReference,
    ModelUri,
    SecretRef,
    cel,
    with_rule,
    with_rules,
)


class RewardType(StrEnum):
    """Type of a computed reward."""

    LENGTH = "Length"
    REGEX = "Regex"
    ANSWER = "Answer"
    SERVICE = "Service"


class Match(StrEnum):
    """How an answer is compared with the row's reference."""

    EXACT = "Exact"
    NUMERIC = "Numeric"
    MULTIPLE_CHOICE = "MultipleChoice"
    JSON = "Json"
    JSON_SCHEMA = "JsonSchema"
    SIMILAR = "Similar"


class CountedMatch(StrEnum):
    """The same, without a part of a correct answer."""

    EXACT = "Exact"
    NUMERIC = "Numeric"
    MULTIPLE_CHOICE = "MultipleChoice"
    JSON = "Json"
    JSON_SCHEMA = "JsonSchema"


class Similarity(StrEnum):
    """How the similarity of two texts is measured."""

    FUZZY_MATCH = "FuzzyMatch"
    ROUGE_1 = "Rouge1"
    ROUGE_2 = "Rouge2"
    ROUGE_L = "RougeL"


class Extract(StrEnum):
    """The part of an answer that is compared."""

    WHOLE = "Whole"
    LAST_NUMBER = "LastNumber"
    BOXED = "Boxed"
    HASHES = "Hashes"
    PATTERN = "Pattern"


class RewardModelSource(Block):
    """The model that scores answers."""

    model_config = with_rule(
        "has(self.uri) != has(self.jobRef)",
        "give the reward model either by uri or by jobRef: set one of the two",
        ".uri",
    )

    uri: ModelUri | None = None
    """Folder of a model that objective RewardModel published, or of a sequence classification model with one label,
    with the forms of `model.uri`. Exclusive with `jobRef`. Default: the result of `jobRef`."""
    job_ref: JobReference | None = None
    """FineTuneJob with objective RewardModel that publishes it; this job waits until it is complete.
    Exclusive with `uri`. Default: none."""


ONE_JSON_SCHEMA = "self.match == 'JsonSchema' ? has(self.jsonSchema) != has(self.column) : !has(self.jsonSchema)"
HAS_SIMILARITY = "(self.match == 'Similar') == has(self.similarity)"
JSON_EXTRACT = "!(self.match in ['Json', 'JsonSchema']) || self.extract in ['Whole', 'Pattern']"


def _require_schema(text: str) -> str:
    """Raise ValueError for a text that is not JSON, or no schema at all; preflight finds what else is wrong."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}): write the schema as JSON text") from None
    if not isinstance(schema, dict | bool):
        raise ValueError('is not a JSON schema: write an object such as {"type": "object"}')
    return text


ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
SchemaText = Annotated[str, StringConstraints(min_length=2, max_length=16384), AfterValidator(_require_schema)]
COMPARISON_RULES = (
    cel(
        "(self.extract == 'Pattern') == has(self.pattern)",
        "pattern is required with extract Pattern and refused with any other: set or remove it",
        ".pattern",
    ),
    cel(
        "self.match == 'Numeric' || (!has(self.absoluteTolerance) && !has(self.relativeTolerance))",
        "absoluteTolerance and relativeTolerance are only for match Numeric: remove them",
        ".match",
    ),
    cel(
        "self.match == 'Exact' || !self.ignoreCase",
        "ignoreCase is only for match Exact: remove it",
        ".ignoreCase",
    ),
    cel(
        JSON_EXTRACT,
        "JSON is the whole answer or the group of a pattern: set extract to Whole or Pattern",
        ".extract",
    ),
)


class AnswerComparison(Block):
    """How an answer is compared with the row's reference."""

    extract: Extract = Extract.WHOLE
    """Part of the answer that is compared: `Whole`; `LastNumber`, the last number in it; `Boxed`, the last
    `\\boxed{…}`; `Hashes`, what follows the last `####` in its line; or `Pattern`, the group of `pattern`. An answer
    without this part is wrong. Default: `Whole`."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Regular expression (Python syntax) with one group, whose last match is compared; only with extract `Pattern`.
    Default: none."""
    absolute_tolerance: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """Largest difference from the reference that is correct; only with match `Numeric`. Default: 0."""
    relative_tolerance: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same as a share of the reference; the larger of the two tolerances counts. Default: 0."""
    ignore_case: bool = False
    """Ignore upper and lower case; only with match `Exact`. Default: false."""


class AnswerReward(AnswerComparison):
    """How an answer is compared with the row's reference."""

    model_config = with_rules(
        *COMPARISON_RULES,
        cel(
            HAS_SIMILARITY,
            "similarity is required with match Similar and refused with any other: set or remove it",
            ".similarity",
        ),
        cel(
            ONE_JSON_SCHEMA,
            "match JsonSchema needs one schema, in jsonSchema or in a column of the rows, and any other match has "
            "none: set or remove jsonSchema",
            ".jsonSchema",
        ),
    )

    match: Match
    """`Exact`: the same text, without spaces around it. `Numeric`: the same number within the tolerances; `1,000`,
    `1e3` and `$1000` are the same. `MultipleChoice`: the same letter, given as `B`, `(B)`, `B.` or `answer: B`.
    `Json`: JSON with the same value. `JsonSchema`: JSON that is valid by a schema. `Similar`: a text that is the more
    correct, from 0 to 1, the more similar it is, measured as in `similarity`."""
    similarity: Similarity | None = None
    """How similar two texts are; only with match `Similar`. `FuzzyMatch`: by the fewest characters to insert and delete
    (rapidfuzz's `ratio`). `Rouge1`, `Rouge2`: by the words, or pairs of adjacent words, that both have. `RougeL`: by
    the longest sequence of words that both have, in the same order. ROUGE is the F-measure, without stemming, and
    ignores upper and lower case. Default: none."""
    column: ColumnName | None = None
    """Column of the rows with the reference, or a path inside one (`reward_model.ground_truth`): a text, a number, or a
    list of either, any of which is correct; with match `Json` and `JsonSchema` also an object. Default: the row's own
    answer, which `dataset.columns` can map."""
    json_schema: SchemaText | None = None
    """JSON schema of a correct answer to any row, as JSON text; only with match `JsonSchema`. References lead into the
    schema itself, and a `pattern` has neither look-around nor back-references. Default: that of the row's `column`."""


class RewardService(Block):
    """A server of yours that scores answers, for example code that runs tests, or another model that judges."""

    endpoint: Endpoint
    """URL that up to 16 answers at once are posted to as JSON, with their prompts and the references of their rows; the
    response is `{"rewards": [0.5, …]}`, one number for each answer."""
    columns: Annotated[list[ColumnName], Field(min_length=1, max_length=16, json_schema_extra=SET)] | None = None
    """Columns of the rows that the server gets in addition to the row's own answer; a row without one of them is
    rejected. Default: none."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Time in which one request must have its response. A request that fails is repeated for three minutes, then the
    run ends and is repeated from its last checkpoint; a failure is never a reward. Default: 60."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `REWARD_TOKEN`, a bearer token that is sent in each request's `Authorization`.
    Default: no credentials."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of the endpoint.
    Default: the image's authorities."""


FIELDS_BY_TYPE = {"Length": "targetTokens", "Regex": "pattern", "Answer": "answer", "Service": "service"}


class Reward(Block):
    """A reward that is computed from the answer's text, from a comparison with its row's reference, or by a server."""

    model_config = with_rules(
        *(
            cel(
                f"(self.type == '{kind}') == has(self.{field})",
                f"{field} is required with type {kind} and refused with any other: set or remove it",
                f".{field}",
            )
            for kind, field in FIELDS_BY_TYPE.items()
        )
    )

    type: RewardType
    """`Length`: 1 at `targetTokens`, falling linearly to 0 with the distance in tokens. `Regex`: 1 if `pattern` is
    found in the answer, else 0. `Answer`: 1 if the answer is that of its row, compared as in `answer`, else 0; with
    match `Similar` any value between.
    `Service`: the number that the server in `service` gives."""
    target_tokens: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Answer length (tokens) with the highest reward; only with type `Length`. Default: none."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Regular expression (Python syntax) to find in the answer; only with type `Regex`. Default: none."""
    answer: AnswerReward | None = None
    """Comparison with the reference of the answer's row; only with type `Answer`. Default: none."""
    service: RewardService | None = None
    """Server that scores the answers; only with type `Service`. Default: none."""
    weight: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    """Factor of this reward in the sum; a negative weight is a penalty. Default: 1."""
