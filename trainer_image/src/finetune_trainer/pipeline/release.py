"""Release a published result: verify it, then give it the name under which a server answers, or point to it."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.evaluation import EvaluationStatus, Verdict
from finetune_api.handoff import Artifact, ExitCode, Manifest, ManifestFile, Outcome
from finetune_api.objectives import Objective
from finetune_api.release import (
    FilesTarget,
    ReleaseComparison,
    ReleaseConfig,
    ReleasedResult,
    ReleaseOutcome,
    ReleaseReport,
    Rollback,
    VLLMTarget,
)
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.config.manifest import read_manifest
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.release_questions import Questions, compare_answers, read_rows
from finetune_trainer.pipeline.release_volume import ReleaseVolume
from finetune_trainer.publishing.publish import find_file_faults
from finetune_trainer.report.serving import adapter_obstacles, highest_rank, max_lora_rank
from finetune_trainer.serving.vllm import ServerLostError, ServerRefusedError, VLLMServer
from finetune_trainer.storage.protocol import Store, join_uri

logger = logging.getLogger(__name__)

POINTER = "release.json"
ADAPTER_CONFIG = "adapter/adapter_config.json"
NO_KEY = "releases have no API key: let the server accept these pods without one"
CONNECTIONS = 8
"""New connections that must all lead to the server that has the adapter: a Service of two pods passes with 1 in 256."""
LOADING_OFF = "start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"


class Refused(Exception):  # noqa: N818 - named after the event
    """The result is not released, and a retry would find the same."""

    def __init__(self, message: str, outcome: ReleaseOutcome = ReleaseOutcome.REFUSED) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Candidate:
    """A verified result."""

    manifest: Manifest
    spec: FineTuneJobSpec
    folder: str
    """`adapter`, or `merged` of a result without an adapter."""
    files: list[ManifestFile]
    """The files of this folder."""
    adapter: dict[str, object]
    """The content of `adapter_config.json`."""
    rows: Path | None
    """A copy of the held-out rows."""


def release(
    config: ReleaseConfig,
    storage: Store,
    workspace: Path,
    volume: Path,
    check: Callable[[], None] = lambda: None,
) -> ReleaseReport:
    """Release what verifies; return what answers afterwards. Raises ServerLostError if a retry may succeed.

    `check` is called before each request to the server, and raises after SIGTERM.
    """
    try:
        found = verify(config, storage, workspace)
        if config.target.files:
            return point_to(config, config.target.files, found, storage)
        if found.folder != Artifact.ADAPTER:
            raise Refused("the result has no adapter: release it with target.files, and serve its merged/ folder")
        _require_served(found)
        if config.target.vllm is None:
            return report(config, ReleaseOutcome.VERIFIED, f"{len(found.files)} files match the manifest")
        return VLLMRelease(config, config.target.vllm, found, volume).run(storage, check)
    except Refused as refused:
        return report(config, refused.outcome, str(refused))
    except ServerRefusedError as refused:
        fix = f": {NO_KEY}" if refused.status in {401, 403} else ""
        # A question may be what ends the server: it is not asked again.
        outcome = ReleaseOutcome.FAILED if refused.status >= 500 else ReleaseOutcome.REFUSED
        return report(config, outcome, f"{refused}{fix}; what answered before keeps the name")


def report(config: ReleaseConfig, outcome: ReleaseOutcome, message: str, **more: object) -> ReleaseReport:
    """Return the report of this release."""
    content = {"outcome": outcome, "message": message[:1024], "release_uid": config.uid}
    return ReleaseReport.model_validate(content | {"generation": config.generation} | more)


def verify(config: ReleaseConfig, storage: Store, workspace: Path) -> Candidate:
    """Return the result, with every file that is released or asked verified by its digest; raise Refused."""
    uri, wanted = config.candidate.uri.rstrip("/"), config.candidate.manifest_sha256
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    if data is None:
        raise Refused(f"{uri} has no {Artifact.MANIFEST}: it is not a published result")
    digest = hashlib.sha256(data).hexdigest()
    if digest != wanted:
        raise Refused(f"{uri}: the manifest has SHA-256 {digest} instead of {wanted}: name the result that you mean")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError:
        raise Refused(f"{uri}: {Artifact.MANIFEST} cannot be read") from None
    paths = {file.path for file in manifest.files}
    folder = Artifact.ADAPTER if ADAPTER_CONFIG in paths else Artifact.MERGED
    files = [file for file in manifest.files if file.path.startswith(f"{folder}/")]
    asked = {Artifact.CONFIG, Artifact.VALIDATION_ROWS}
    read = [*files, *(file for file in manifest.files if file.path in asked)]
    if not files or Artifact.CONFIG not in paths:
        raise Refused(f"{uri} publishes no model: name the result of a job that trained one")
    if faults := find_file_faults(uri, read, storage):
        raise Refused(f"{uri} is damaged: {'; '.join(faults[:3])}")
    workspace.mkdir(parents=True, exist_ok=True)
    for name in asked & paths:
        storage.download(join_uri(uri, name), workspace / Path(name).name)
    spec = read_manifest(workspace / Artifact.CONFIG, manifest.uid).spec
    _require(config, manifest, spec)
    adapter = json.loads(storage.read(join_uri(uri, ADAPTER_CONFIG)) or b"{}")
    rows = workspace / Path(Artifact.VALIDATION_ROWS).name
    return Candidate(manifest, spec, folder, files, adapter, rows if Artifact.VALIDATION_ROWS in paths else None)


def _require(config: ReleaseConfig, manifest: Manifest, spec: FineTuneJobSpec) -> None:
    """Raise Refused if the result does not meet the conditions of the release by its own report."""
    found, required = manifest.result.evaluation or EvaluationStatus(), config.require
    if spec.objective is Objective.REWARD_MODEL:
        raise Refused("a reward model generates no text, so no server answers with it")
    if manifest.result.outcome is Outcome.GATE_NOT_MET or found.gate == "NotMet":
        raise Refused(f"its gate is not met: {found.gate_message or manifest.result.message}")
    if required and required.gate and found.gate != required.gate:
        raise Refused(f"require.gate is Passed, but the job has no evaluation.gate (it is {found.gate}): set one")
    if required and required.verdict and found.verdict != required.verdict:
        raise Refused(f"require.verdict is Better, and the job's is {found.verdict}: {found.verdict_message}")


def _require_served(found: Candidate) -> None:
    """Raise Refused for an adapter that vLLM, which KServe runs too, is known to refuse."""
    certain = [f"{one.reason}: {one.fix}" for one in adapter_obstacles(found.adapter) if one.is_certain]
    if certain:
        raise Refused(f"vLLM does not serve this adapter: {'; '.join(certain)}")


def point_to(config: ReleaseConfig, target: FilesTarget, found: Candidate, storage: Store) -> ReleaseReport:
    """Write the pointer, which is one object; the one before it must be of the same release."""
    uri, now = join_uri(target.uri, POINTER), datetime.now(UTC)
    owner = {"namespace": config.namespace, "name": config.name}
    before = _read_pointer(storage, uri)
    if before and before.get("release") != owner:
        raise Refused(f"{uri} belongs to another release ({before.get('release')}): name another target.files.uri")
    new = config.candidate.model_copy(update={"released_time": now})
    old = None
    with suppress(ValidationError):
        old = ReleasedResult.model_validate(before.get("released")) if before else None
    if old and (old.uri, old.manifest_sha256) == (new.uri, new.manifest_sha256):
        return report(config, ReleaseOutcome.RELEASED, f"{uri} names it already", answering=old)
    rank = highest_rank(found.adapter)
    lineage = found.manifest.result.lineage
    content = {
        "release": owner,
        "released": new.model_dump(mode="json", by_alias=True, exclude_none=True),
        "previous": old.model_dump(mode="json", by_alias=True, exclude_none=True) if old else None,
        "folder": join_uri(config.candidate.uri, found.folder),
        "files": [file.model_dump(by_alias=True) for file in found.files],
        "baseModel": {"uri": lineage.base_model_uri, "revision": lineage.base_model_revision} if lineage else None,
        "maxLoraRank": max_lora_rank(rank) if rank else None,
    }
    data = json.dumps(content, indent=2).encode()
    storage.put(uri, data)
    return report(config, ReleaseOutcome.RELEASED, f"{uri} names it", answering=new, replaced=old)


def _read_pointer(storage: Store, uri: str) -> dict[str, object] | None:
    data = storage.read(uri)
    try:
        found = json.loads(data) if data else None
    except ValueError:
        found = {}
    return found if found is None or isinstance(found, dict) else {}


class VLLMRelease:
    """One release to a vLLM server: try it under its own name, compare, then give it the served name in place."""

    def __init__(self, config: ReleaseConfig, target: VLLMTarget, found: Candidate, volume: Path) -> None:
        self._config, self._found, self._name = config, found, target.adapter_name
        self._claim = target.volume.claim_name
        self._volume = ReleaseVolume(volume, target.volume.path, target.adapter_name, self._claim)
        self._url = target.find_address(config.namespace)
        self._questions = Questions(found.spec, read_rows(found.rows) if found.rows else [])
        known = config.answering
        self._is_known = known is not None and known.manifest_sha256 == config.candidate.manifest_sha256
        """Whether the result answers already, by the status."""
        since = known.released_time if known and self._is_known else None
        self._new = config.candidate.model_copy(update={"released_time": since or datetime.now(UTC)})

    def run(self, storage: Store, check: Callable[[], None]) -> ReleaseReport:
        """Release the adapter, or leave or give back the name to the one before it."""
        digests = {file.path.partition("/")[2]: file.sha256 for file in self._found.files}
        with VLLMServer(self._url, check) as server:
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
            return compare_answers(champion, self._questions.ask(server, folder))
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
        message = f"{self._name} answers with it; {self._describe(old, before)}"
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
        if problem := self._find_objection(compare_answers(None, answers)):
            return self._report(ReleaseOutcome.HELD, f"{problem}; {kept}", answering=self._new)
        self._volume.link(folder)
        message = f"{self._name} answers with it already"
        return self._report(ReleaseOutcome.RELEASED, message, answering=self._new)

    def _describe(self, old: ReleasedResult | None, before: str | None) -> str:
        if before is None:
            return f"nothing answered as {self._name} before"
        return f"before: {old.uri if old else before}"

    def _report(self, outcome: ReleaseOutcome, message: str, **more: object) -> ReleaseReport:
        return report(self._config, outcome, message, **more)
