"""The child process that renders chat templates: requests from standard input, texts to standard output."""

import marshal
import signal
import sys

from finetune_trainer.limits import limit_process
from finetune_trainer.tokenization.template_sandbox import (
    FAILS,
    HEAD_BYTES,
    VARIABLES,
    SandboxedTemplate,
    TemplateFailure,
)


def main() -> None:
    """Answer requests until standard input ends: MEMORY (bytes) for all, SECONDS of CPU time for each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends this process
    memory, seconds = sys.argv[1:]
    limit_process(int(memory))
    templates: dict[int, SandboxedTemplate | TemplateFailure] = {}
    while head := sys.stdin.buffer.read(HEAD_BYTES):
        # From the parent, which is trusted; what goes back is text.
        number, new, requests = marshal.loads(sys.stdin.buffer.read(int.from_bytes(head)))  # noqa: S302
        for request in requests:
            signal.setitimer(signal.ITIMER_PROF, float(seconds))  # its signal ends the process
            try:
                if number not in templates:
                    templates[number] = _compile(*new)
                answer = b"+" + _render(templates[number], *request).encode("utf-8", "surrogatepass")
            except TemplateFailure as failure:
                answer = b"-" + str(failure)[:1000].encode("utf-8", "surrogatepass")
            except Exception as error:  # noqa: BLE001 - whatever a template's author caused, it is the row's failure
                answer = f"-{FAILS}{type(error).__name__}".encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            sys.stdout.buffer.write(len(answer).to_bytes(HEAD_BYTES))
            sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()


def _compile(source: str, variables: dict[str, object]) -> SandboxedTemplate | TemplateFailure:
    try:
        return SandboxedTemplate(source, variables)
    except TemplateFailure as failure:
        return failure


def _render(
    template: SandboxedTemplate | TemplateFailure,
    messages: list[dict[str, object]] | str | None = None,
    tools: list[object] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    if isinstance(template, TemplateFailure):
        raise template
    if messages is None:
        return ""
    if messages == VARIABLES:
        return " ".join(template.list_variables())
    assert not isinstance(messages, str)  # noqa: S101 - for the type checker
    return template.render(messages, tools, add_generation_prompt=add_generation_prompt)


if __name__ == "__main__":
    main()
