"""Pack several short samples into one sequence, for models that support it; torch is not needed.

Rows of one sequence never attend to each other: the positions restart with each row, and the models named here derive
their attention masks from the positions. A test for each model compares the logits of packed and single rows.
"""

from array import array
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from finetune_api.objectives import SUPERVISED, Objective
from finetune_api.spec import Packing
from finetune_trainer.errors import InvalidConfig

EXACT_MODELS = frozenset(
    {
        *("llama", "mistral", "ministral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2"),
        *("gemma3_text", "phi", "phi3", "smollm3", "granite", "granitemoe", "olmo", "olmo2", "olmo3", "starcoder2"),
        *("cohere", "cohere2", "stablelm", "gpt_neox", "gpt2", "glm", "glm4", "exaone4", "helium", "nemotron", "arcee"),
        *("seed_oss", "ernie4_5", "apertus"),
    }
)
"""Values of `model_type` whose attention, fused and plain, keeps packed rows apart."""
FLASH_MODELS = EXACT_MODELS - {"gemma2", "nemotron", "stablelm"}
"""Those of them whose attention a flash kernel computes: Gemma 2 caps its scores, and in transformers the other two do
not pass on where rows begin."""
MAX_ROWS = 16
"""Rows in one sequence: no more than an optimiser step is meant to hold, so that packing does not enlarge it."""
PADDED = 1.05
"""Factor by which a batch may grow when its rows are put into shorter lines."""
WORTH = 2.0
"""Rows that must share a sequence on average before `Auto` packs; below that, padding costs little."""


def group_lengths(lengths: Sequence[int], max_length: int, max_rows: int | None = MAX_ROWS) -> list[list[int]]:
    """Return which samples share a sequence, by their indices: the longest first, each where the least room remains."""
    groups: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for at, group in zip(order, fill_groups((lengths[at] for at in order), max_length, max_rows), strict=True):
        if group == len(groups):
            groups.append([])
        groups[group].append(at)
    return groups


def fill_groups(lengths: Iterable[int], max_length: int, max_rows: int | None) -> Iterator[int]:
    """Yield the group of each sample; `lengths` are in descending order, and groups are numbered as they begin."""
    rows = array("I")
    rooms: list[int] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    for length in lengths:
        found = bisect_left(rooms, length)
        if found == len(rooms):
            group, room = len(rows), max_length
            rows.append(0)
        else:
            room = rooms[found]
            group = by_room[room].pop()
            if not by_room[room]:
                rooms.pop(found)
        rows[group] += 1
        left = room - length
        if left > 0 and (max_rows is None or rows[group] < max_rows):
            if not by_room[left]:
                insort(rooms, left)
            by_room[left].append(group)
        yield group


def fold_rows(lines: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
    """Return the rows of a batch, by their indices, in short lines: attention grows with the square of a line's length.

    `lines` are the lengths of the rows in each sequence. Padded to the longest line, the batch has no more than
    `most_tokens` and hardly more than its rows; where that cannot be, the sequences stay as they are.
    """
    lengths = [length for line in lines for length in line]
    most = min(most_tokens, int(PADDED * sum(lengths)))
    longest = max(lengths)
    for width in range(longest, max(map(sum, lines)), max(longest // 4, 1)):
        groups = group_lengths(lengths, width, None)
        if len(groups) * max(sum(lengths[at] for at in group) for group in groups) <= most:
            return groups
    places = iter(range(len(lengths)))
    return [[next(places) for _ in line] for line in lines]


def count_packed(
    lengths: Sequence[int], max_length: int, objective: Objective, asked: Packing, model_type: str
) -> int | None:
    """Return the packed sequences, or None if the samples are not packed; an `Always` that is impossible is refused.

    `Auto` packs plain text wherever that is exact, and conversations where at least two share a sequence on average.
    """
    if asked is Packing.NEVER or objective not in SUPERVISED:
        return None
    if model_type not in EXACT_MODELS:
        if asked is Packing.ALWAYS:
            raise InvalidConfig(
                f"hyperparameters.packing {asked}: rows of one sequence are not known to stay apart in the attention "
                f"of {model_type or 'this model'}: set packing Never or Auto"
            )
        return None
    counts = Counter(lengths)
    descending = (length for length in sorted(counts, reverse=True) for _ in range(counts[length]))
    packed = 1 + max(fill_groups(descending, max_length, max_rows_for(objective)), default=-1)
    is_worth = asked is Packing.ALWAYS or objective is Objective.DOMAIN_ADAPTATION or len(lengths) >= WORTH * packed
    return packed if packed and is_worth else None


def max_rows_for(objective: str) -> int | None:
    """Return the maximum of rows in one sequence; plain text may be cut anywhere and has no maximum."""
    return None if objective == Objective.DOMAIN_ADAPTATION else MAX_ROWS
