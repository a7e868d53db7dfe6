"""Notes to read before the result is used: licence, chat template, long prompts and resumed runs."""

from collections.abc import Iterator, Sequence

from finetune_trainer.evaluation.run_record import BaseFacts, Licence
from finetune_trainer.report.text import code, inline


def build_notes(
    base: BaseFacts,
    resumed_from: Sequence[int] | None,
    attempt: int,
    *,
    uses_template: bool,
    has_preflight: bool = True,
) -> list[str]:
    """Return sentences in Markdown, those about use first; `resumed_from` is None if nothing was trained."""
    found = [licence_note(base.licence)]
    if base.is_template_made and uses_template:
        found.append(
            "The base model has **no chat template** of its own: a plain one (in ChatML format, with its markers as "
            "ordinary text) was used for training. Serve with the `chat_template.jinja` next to the weights."
        )
    if base.chosen_template and uses_template:
        found.append(
            f"The chat template {code(base.chosen_template)} was **chosen by the job**, in place of the base model's "
            "own. Serve with the `chat_template.jinja` next to the weights."
        )
    if base.is_tokenizer_read_otherwise:
        found.append(
            "Servers read **other tokens** with the base's tokenizer than the training did, because transformers "
            "builds the class that it names by rules of its own. Serve the adapter with the tokenizer in its own "
            "folder, as the commands of this report do, or set `output.merge` and serve `merged/`."
        )
    found += _long_prompts(base)
    if not has_preflight:
        found.append(
            "The job had **no preflight** (`preflight.enabled: false`): dataset, model and storage were checked by the "
            "training itself, at the start of each of its runs."
        )
    return found if resumed_from is None else [*found, describe_resumes(resumed_from, attempt)]


def licence_note(licence: Licence | None) -> str:
    """Return what the base model's card states about its licence."""
    if licence is None:
        return (
            "The **licence of the base model is unknown**: its folder has no `README.md` that states one. Look it up "
            "before you publish or sell anything, because it also applies to the tuned model."
        )
    named = f" ({inline(licence.name)})" if licence.name else ""
    link = f", {code(licence.link)}" if licence.link else ""
    names = ", ".join(map(code, licence.identifiers))
    return f"The base model's card states the licence {names}{named}{link}; it also applies to the tuned model."


def describe_resumes(resumed_from: Sequence[int], attempt: int) -> str:
    """Return how often the training was resumed, and from which steps."""
    which = f" This was attempt {attempt} of the job." if attempt > 1 else ""
    if not resumed_from:
        return f"The training ran **without interruption**: no checkpoint was resumed.{which}"
    many = len(resumed_from)
    times = {1: "once", 2: "twice"}.get(many, f"{many} times")
    *others, last = [str(step) for step in resumed_from]
    steps = f"step {last}" if not others else f"steps {', '.join(others)} and {last}"
    return (
        f"The training was **resumed {times}**, from {steps}.{which} The job's status shows why each run ended: "
        "preempted, evicted or failed."
    )


def _long_prompts(base: BaseFacts) -> Iterator[str]:
    if base.context_length is None:
        return
    longer = [
        f"{at} ({tokens} tokens)" for at, tokens in enumerate(base.prompt_tokens, 1) if tokens > base.context_length
    ]
    if longer:
        yield (
            f"These of `evaluation.prompts` have more tokens than the model's context of {base.context_length}, and "
            f"their answers are meaningless: number {', '.join(longer)}."
        )
