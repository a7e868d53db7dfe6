"""The release of an adapter to a vLLM server: tried, compared, given the served name, and taken back if it fails."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.evaluation import Verdict
from finetune_api.handoff import ExitCode
from finetune_api.release import (
    ReleaseComparison,
    ReleaseConfig,
    ReleasedResult,
    ReleaseOutcome,
    ReleaseReport,
    Rollback,
    VLLMTarget,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.release.candidate import Candidate, Refused, report
from finetune_trainer.release.questions import Questions, compare_answers, read_rows
from finetune_trainer.release.reading import OTHER_TOKENIZER, load_reading
from finetune_trainer.release.vllm_server import ServerLostError, ServerRefusedError, VLLMServer
from finetune_trainer.release.volume import ReleaseVolume
from finetune_trainer.report.serving import adapter_obstacles
from finetune_trainer.storage.protocol import Store

CONNECTIONS = 8
"""New connections that must all lead to the server that has the adapter: a Service of two pods passes with 1 in 256."""
UNLIKE = "the server does not read what the result was trained on"
LOADING_OFF = "start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"


class VLLMRelease:
    """One release to a vLLM server: try it under its own name, compare, then give it the served name in place."""

    def __init__(self, config: ReleaseConfig, target: VLLMTarget, found: Candidate, volume: Path) -> None:
        self._config, self._found, self._name = config, found, target.adapter_name
        self._claim = target.volume.claim_name
        self._volume = ReleaseVolume(volume, target.volume.path, target.adapter_name, self._claim)
        self._url = target.find_address(config.namespace)
        rows = read_rows(found.rows) if found.rows else []
        self._questions = Questions(found.spec, rows, load_reading(found.tokenizer))
        known = config.answering
        self._is_known = known is not None and known.manifest_sha256 == config.candidate.manifest_sha256
        """Whether the result answers already, by the status."""
        since = known.released_time if known and self._is_known else None
        self._new = config.candidate.model_copy(update={"released_time": since or datetime.now(UTC)})

    def run(self, storage: Store, secrets: Path | None, check: Callable[[], None]) -> ReleaseReport:
        """Release the adapter, or leave or give back the name to the one before it."""
        digests = {file.path.partition("/")[2]: file.sha256 for file in self._found.files}
        with VLLMServer(self._url, secrets, check) as server:
            served = server.wait()
            before = served.get(self._name)
            if before == "":
                raise Refused(f"{self._name} is the name of the server's base model: use another adapterName")
            self._require_owned()
            self._volume.keep(self._find_used(served))
            folder = self._volume.copy(self._config.candidate, digests, storage)
            champion = self._volume.find(before) if before else None
            if before and champion == folder:
                if earlier := self._find_interrupted(folder):
                    champion, before = earlier, self._start_again(server, earlier)
                elif not self._volume.is_link(before):  # which the server may have read when it led elsewhere
                    return self._confirm(server, folder, before)
            old = self._volume.read(champion) if champion else None
            comparison = self._try(server, folder, is_listed=folder in served, has_champion=before is not None)
            if problem := self._find_objection(comparison):
                message = f"{problem}; {self._describe(old, before)}"
                return self._report(ReleaseOutcome.HELD, message, answering=old, comparison=comparison)
            return self._promote(server, folder, before, champion, comparison)

    def _require_owned(self) -> None:
        """Raise Refused if another release uses this name on the volume for another server, whose folders it keeps."""
        if owner := self._volume.own(f"{self._config.namespace}/{self._config.name}", self._url):
            whose = f"release {owner.get('release')} for {owner.get('server')}"
            message = f"adapterName {self._name} on claim {self._claim} belongs to {whose}"
            fix = f"use another claim or adapterName, or remove {self._volume.owner_record} from the claim"
            raise Refused(f"{message}: {fix} if that release is gone")

    def _find_used(self, served: Mapping[str, str]) -> set[str]:
        """Return the folders that the server, its next start or a rollback reads, and the result's own."""
        paths = [*served.values(), self._volume.path_of(self._name)]
        found = {self._volume.find(path) or "" for path in paths}
        results = [self._config.candidate, self._config.answering]
        return found | {self._volume.name_of(one) for one in results if one}

    def _try(self, server: VLLMServer, folder: str, *, is_listed: bool, has_champion: bool) -> ReleaseComparison:
        """Ask the champion and, loaded under its folder's name, the challenger."""
        champion = self._questions.ask(server, self._name) if has_champion else None
        path = self._volume.path_of(folder)
        try:
            self._load(server, folder, path, in_place=is_listed)
            self._require_alone(server, folder, path)
            challenger = self._questions.ask(server, folder)
            if problem := self._find_unlike_reading():
                raise Refused(problem)
            return compare_answers(champion, challenger, self._found.choices)
        finally:
            with server.unchecked(), suppress(ServerRefusedError, ServerLostError):
                self._unload(server, folder)

    def _load(self, server: VLLMServer, name: str, path: str, *, in_place: bool) -> None:
        try:
            server.load(name, path, in_place=in_place)
        except ServerRefusedError as refused:
            raise Refused(self._explain(refused)) from None

    def _unload(self, server: VLLMServer, name: str) -> None:
        """Unload an adapter from the one server pod that has it."""
        for _ in range(CONNECTIONS):
            if name in server.list_models():
                server.unload(name)
                return
            server.reconnect()

    def _require_alone(self, server: VLLMServer, name: str, path: str) -> None:
        """Raise Refused if a new connection leads to a server pod that does not have the adapter.

        A load reaches one pod only, and all requests of a connection that is kept reach the same one.
        """
        for _ in range(CONNECTIONS):
            server.reconnect()
            if server.list_models().get(name) != path:
                fix = "use a Service of exactly one pod, or the address of one pod"
                raise Refused(f"several server pods answer at {self._url}, and not all have the adapter: {fix}")

    def _explain(self, refused: ServerRefusedError) -> str:
        """Return the server's words with the fix."""
        if refused.is_route_missing:
            return f"{refused}: {LOADING_OFF}"
        if "No adapter found" in str(refused):
            return f"{refused}: mount the claim of target.vllm.volume at its path in the server"
        fixes = [f"{one.reason}: {one.fix}" for one in adapter_obstacles(self._found.adapter)]
        return f"{refused}: {'; '.join(fixes) or 'see the log of the server'}"

    def _find_unlike_reading(self) -> str | None:
        """Return how the server reads otherwise than the training, with the fix, unless the release accepts that."""
        problem = self._questions.problem
        if not problem or self._accepts_any_tokens:
            return None
        files = self._volume.path_of(self._volume.name_of(self._config.candidate))
        if problem.startswith(OTHER_TOKENIZER):
            fix = f"start it with `--tokenizer {files}`, or a copy of this folder"
        else:
            fix = f"start it with `--chat-template {files}/chat_template.jinja`, or a copy of this file"
        return f"{UNLIKE}: {problem}; {fix}; set require.tokens to Any if this is intended"

    @property
    def _accepts_any_tokens(self) -> bool:
        return bool(self._config.require and self._config.require.tokens)

    @property
    def _remark(self) -> str:
        """What a release states that accepts other tokens; empty if the server reads as the training did."""
        return f"; {UNLIKE}: {self._questions.problem}" if self._questions.problem else ""

    def _find_objection(self, comparison: ReleaseComparison) -> str | None:
        least = self._config.require.matched_percent if self._config.require else None
        matched = comparison.challenger_matched_percent
        if comparison.verdict == Verdict.WORSE:
            losses = f"held-out loss {comparison.champion_loss:.5g} → {comparison.challenger_loss:.5g}"
            return f"it is worse than what answers, on {comparison.rows} rows through the server: {losses}"
        if least is not None and matched is None:
            return "require.matchedPercent needs evaluation.prompts with expected, and the job has none"
        if least is not None and matched is not None and matched < least:
            return f"{matched:.0f} % of the expected answers match, and require.matchedPercent is {least}"
        return None

    def _promote(
        self, server: VLLMServer, folder: str, before: str | None, champion: str | None, comparison: ReleaseComparison
    ) -> ReleaseReport:
        """Give the served name to the adapter; if the server fails then, do as asked."""
        old = self._volume.read(champion) if champion else None
        server.check()
        try:
            with server.unchecked():
                server.load(self._name, self._volume.path_of(folder), in_place=before is not None)
            self._questions.ask(server, self._name)
            self._volume.link(folder)
        except (ServerRefusedError, ServerLostError) as problem:
            return self._take_back(server, problem, before, champion, comparison)
        except TrainerError as error:  # not of the server: another pod tries again
            refused = self._give_back(server, before, champion)
            end = (
                f"could not be rolled back: {refused}" if refused else f"was rolled back; {self._describe(old, before)}"
            )
            error.message += f"; {self._name} {end}"
            raise
        self._volume.keep({folder, champion or ""})
        message = f"{self._name} answers with it; {self._describe(old, before)}{self._remark}"
        return self._report(ReleaseOutcome.RELEASED, message, answering=self._new, replaced=old, comparison=comparison)

    def _take_back(
        self,
        server: VLLMServer,
        problem: Exception,
        before: str | None,
        champion: str | None,
        comparison: ReleaseComparison,
    ) -> ReleaseReport:
        """Do as `rollback` asks with the name of a server that failed."""
        old = self._volume.read(champion) if champion else None
        message = f"the server failed after it got the name {self._name}"
        if self._config.rollback is Rollback.NEVER:
            message += f", and rollback is Never: {problem}"
            return self._report(ReleaseOutcome.FAILED, message, answering=self._new, replaced=old)
        if refused := self._give_back(server, before, champion):
            message += f": {problem}; nor could it be rolled back: {refused}"
            return self._report(ReleaseOutcome.FAILED, message, comparison=comparison)
        message += f": {problem}; {self._describe(old, before)}"
        return self._report(ReleaseOutcome.ROLLED_BACK, message, answering=old, comparison=comparison)

    def _give_back(self, server: VLLMServer, before: str | None, champion: str | None) -> Exception | None:
        """Give the name to what had it before, also after SIGTERM; return the error if the server fails."""
        try:
            with server.unchecked():
                if before is None:
                    server.unload(self._name)
                else:
                    server.load(self._name, self._volume.path_of(champion) if champion else before, in_place=True)
        except (ServerRefusedError, ServerLostError) as problem:
            return problem
        return None

    def _find_interrupted(self, folder: str) -> str | None:
        """Return what answered before an earlier pod gave the name to this folder and ended without a report."""
        if self._is_known:
            return None
        known, linked = self._config.answering, self._volume.find(self._volume.path_of(self._name))
        found = [linked, self._volume.name_of(known) if known else None]
        return next((one for one in found if one and one != folder and self._volume.read(one)), None)

    def _start_again(self, server: VLLMServer, champion: str) -> str:
        """Give the name back to what answered before an interrupted release; return its path."""
        path = self._volume.path_of(champion)
        try:
            server.load(self._name, path, in_place=True)
        except (ServerRefusedError, ServerLostError) as problem:
            message = f"{self._name} has this result from a pod that did not end its release, and the one before it"
            raise TrainerError(ExitCode.STORAGE_UNAVAILABLE, f"{message} cannot be loaded: {problem}") from None
        return path

    def _confirm(self, server: VLLMServer, folder: str, path: str) -> ReleaseReport:
        """Ask the result that has the name already."""
        self._require_alone(server, self._name, path)
        kept = f"{self._name} had this result already, and keeps it"
        try:
            answers = self._questions.ask(server, self._name)
        except ServerRefusedError as refused:
            return self._report(ReleaseOutcome.FAILED, f"{refused}; {kept}", answering=self._new)
        if problem := self._find_unlike_reading():
            return self._report(ReleaseOutcome.REFUSED, f"{problem}; {kept}", answering=self._new)
        if problem := self._find_objection(compare_answers(None, answers)):
            return self._report(ReleaseOutcome.HELD, f"{problem}; {kept}", answering=self._new)
        self._volume.link(folder)
        message = f"{self._name} answers with it already{self._remark}"
        return self._report(ReleaseOutcome.RELEASED, message, answering=self._new)

    def _describe(self, old: ReleasedResult | None, before: str | None) -> str:
        if before is None:
            return f"nothing answered as {self._name} before"
        return f"before: {old.uri if old else before}"

    def _report(self, outcome: ReleaseOutcome, message: str, **more: object) -> ReleaseReport:
        return report(self._config, outcome, message, **more)
