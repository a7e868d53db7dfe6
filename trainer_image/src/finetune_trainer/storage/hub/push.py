"""Push files to a repository of a hub, in one commit, with `huggingface_hub`: a repository is read by our own client.

The library has no limit of time and no way to stop: it works in a thread, which is left when it stalls or at SIGTERM.
"""

import io
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune_api import __version__
from finetune_api.output import HubOutput
from finetune_trainer.errors import InvalidConfig, StorageUnavailable, TrainerError, causes, one_line
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.http_client import BUSY, ServerBusy, open_http, pause, retry_after
from finetune_trainer.storage.hub.client import CA_FIELD, MIN_RETRY_SECONDS
from finetune_trainer.storage.hub.errors import connection_error
from finetune_trainer.storage.hub.storage import HubStore
from finetune_trainer.storage.hub.uris import HubConnection, HubUri, Kind, Repo, matches_entry
from finetune_trainer.storage.retries import retry
from finetune_trainer.storage.watch import Watch

T = TypeVar("T")
logger = logging.getLogger(__name__)

PLACE = "spec.output.hub"
TIMEOUT = httpx2.Timeout(60.0, connect=5.0)
IDLE_SECONDS = 120.0
"""How long the library may read no byte of the files before the push counts as stalled."""
POLL_SECONDS = 0.2
WORDS = 200
"""Characters of the hub's own message that are repeated."""
ADAPTER_CONFIG = "adapter_config.json"
MODEL_WEIGHTS = re.compile(r"(model(-\d+-of-\d+)?[.]safetensors|pytorch_model(-\d+-of-\d+)?[.]bin)([.]index[.]json)?")
"""Weights of a full model at the root of a repository, as transformers looks for them."""
UNKNOWN_ANSWERS = (httpx2.HTTPError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
"""What the library raises: errors of the connection, and those of a response that is not a hub's."""


@dataclass(frozen=True)
class Pushed:
    """A commit that has every file."""

    commit: str
    url: str


@dataclass(frozen=True)
class HubPusher:
    """One repository to push to."""

    connection: HubConnection
    output: HubOutput
    stop: StopFlag
    retry_seconds: float = 0.0
    on_work: Callable[[], None] = field(default=lambda: None)
    """Called while the push is under way; may raise to leave it."""

    def check(self, *, is_model: bool | None) -> None:
        """Raise if the token may not push to the repository, or if it is public; changes nothing on the hub."""
        self._retry(lambda _moved: self._check(is_model))

    def push(self, files: Mapping[str, Path], title: str, *, is_model: bool) -> Pushed:
        """Commit the files at the root of the repository, and read their digests back; create what does not exist.

        Without a difference to the branch there is no new commit.
        """
        return self._retry(lambda moved: self._push(files, title, is_model, moved))

    def _check(self, is_model: bool | None) -> None:
        api = self._api()
        account = self._whoami(api)
        info = self._find(api)
        if info is None:
            self._require_owner(account)
            return
        self._require_visibility(info)
        self._require_write(api)
        if is_model is not None:
            self._require_kind(_root_files(self._find(api, self.output.revision) or info), is_model)

    def _push(self, files: Mapping[str, Path], title: str, is_model: bool, moved: Callable[[], None]) -> Pushed:
        api, repo, revision = self._api(), self.output.repo, self.output.revision
        if self._find(api) is None:
            api.create_repo(repo, private=self.output.private, exist_ok=True)
        info = self._find(api)
        if info is None:
            raise self._refused("the repository was created, and the hub does not show it")
        self._require_visibility(info)
        branch = self._find(api, revision)
        if branch is None:
            api.create_branch(repo, branch=revision, exist_ok=True)
            branch = info
        found = _root_files(branch)
        self._require_kind(found, is_model)
        # Of a model with other shards, transformers would load the old weights.
        stale = [name for name in found if MODEL_WEIGHTS.fullmatch(name) and name not in files]
        with ExitStack() as opened:
            readers = {name: opened.enter_context(_Watched(path, moved)) for name, path in files.items()}
            done = api.create_commit(
                repo,
                [
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=one) for name, one in readers.items()),
                    *(CommitOperationDelete(path_in_repo=name) for name in stale),
                ],
                commit_message=title,
                revision=revision,
            )
        moved()
        self._prove(done.oid, files, moved)
        return Pushed(done.oid, f"{self.connection.endpoint}/{repo}/tree/{done.oid}")

    def _prove(self, commit: str, files: Mapping[str, Path], moved: Callable[[], None]) -> None:
        """Compare what the hub lists at the commit with the files."""
        store = HubStore(self.connection, stop=self.stop)
        listed = {one.key: one for one in store.list(str(HubUri(self._repo, commit, "")))}
        for name, path in files.items():
            moved()
            if name not in listed or not matches_entry(path, listed[name]):
                raise StorageUnavailable(f"{self._where}: commit {commit} does not have {name} as it was pushed")

    def _api(self) -> HfApi:
        token = self.connection.access(self._repo).token
        return HfApi(self.connection.endpoint, token, library_name="finetune-trainer", library_version=__version__)

    def _whoami(self, api: HfApi) -> Mapping[str, Any]:
        """Return the account of the token; empty if the hub has no accounts, as some mirrors."""
        try:
            return api.whoami()
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                return {}
            raise

    def _find(self, api: HfApi, revision: str | None = None) -> Any | None:
        """Return the repository at a revision, or None if it does not exist or the token may not see it."""
        try:
            return api.repo_info(self.output.repo, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if error.response.status_code == 401 and revision is None:
                return None  # so does the hub answer without the right to see a private one
            if error.response.status_code == 404:
                return None
            raise

    def _require_owner(self, account: Mapping[str, Any]) -> None:
        """Raise if the account may not create the repository; what the hub does not list is left to the push."""
        owner, name = self.output.repo.split("/")[0], account.get("name")
        token = (account.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise self._refused(f"the token in {self._holder} can only read: put one with the right to write there")
        if not name or name.lower() == owner.lower():
            return
        roles = {str(one.get("name", "")).lower(): one.get("roleInOrg") for one in account.get("orgs") or ()}
        if owner.lower() not in roles:
            whose = f"there is no such repository, and the token in {self._holder} is of {one_line(str(name), 96)}"
            raise self._refused(f"{whose}, who cannot create one for {owner}: correct {PLACE}.repo, or the token")
        if roles[owner.lower()] == "read":
            raise self._refused(f"the account of the token in {self._holder} can only read in the organisation {owner}")

    def _require_visibility(self, info: Any) -> None:
        if self.output.private and info.private is not True:
            raise self._refused(
                f"the repository is public, and {PLACE}.private is true: make it private, name another one, or set "
                f"{PLACE}.private false"
            )

    def _require_write(self, api: HfApi) -> None:
        try:
            api.auth_check(self.output.repo, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            logger.info("%s: the hub does not check rights before a push", self._where)

    def _require_kind(self, found: Collection[str], is_model: bool) -> None:
        """Raise if the repository has what would be loaded in place of the result, or with it."""
        other = "an adapter" if is_model and ADAPTER_CONFIG in found else ""
        if not is_model and any(MODEL_WEIGHTS.fullmatch(name) for name in found):
            other = "a full model"
        if other:
            own = "a full model" if is_model else "an adapter"
            both = f"the repository has {other}, and the result is {own}: libraries would load a mixture of both"
            raise self._refused(f"{both}; name another repository in {PLACE}.repo")

    @property
    def _repo(self) -> Repo:
        return Repo(Kind.MODEL, self.output.repo)

    @property
    def _where(self) -> str:
        return f"{HubUri(self._repo, None, '')} at {self.connection.endpoint}"

    @property
    def _holder(self) -> str:
        secret = self.connection.access(self._repo).secret
        return f"the Secret {secret}" if secret else f"the Secret named by {PLACE}.credentialsSecretRef"

    def _refused(self, why: str) -> TrainerError:
        return InvalidConfig(f"{self._where}: {why}")

    def _retry(self, work: Callable[[Callable[[], None]], T]) -> T:
        with self._library():
            budget = max(self.retry_seconds, MIN_RETRY_SECONDS)
            return retry(lambda: self._watch(work), lambda error: pause(error, self.stop), budget, self.stop)

    @contextmanager
    def _library(self) -> Iterator[None]:
        """Give the library our client for the block: with the hub's authority, with time-outs, and online.

        Its own messages are not logged, because they have signed addresses.
        """
        disable_progress_bars()
        hub_logging.set_verbosity(logging.CRITICAL)
        set_client_factory(partial(open_http, self.connection.ca_file, TIMEOUT, CA_FIELD, follow_redirects=True))
        try:
            yield
        finally:
            set_client_factory(default_client_factory)

    def _watch(self, work: Callable[[Callable[[], None]], T]) -> T:
        """Return the result of the work, which runs in a thread; leave it at SIGTERM, and if nothing moves."""
        watch = Watch("hub-push", self.stop, self.on_work, IDLE_SECONDS, POLL_SECONDS)

        def run(moved: Callable[[], None]) -> T:
            with self._named():
                return work(moved)

        silence = f"{self._where}: the hub does not respond for {IDLE_SECONDS:.0f} seconds"
        unknown = self._refused("the push failed: see the log of the pod")  # an error that no library documents
        return watch.run(run, StorageUnavailable(silence), unknown)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Translate the library's errors into ours, without tokens and signed addresses."""
        try:
            yield
        except UNKNOWN_ANSWERS as error:
            raise self._translate(error) from None

    def _translate(self, error: BaseException) -> TrainerError:
        chain = list(causes(error))
        if refusal := next((one for one in chain if isinstance(one, HfHubHTTPError)), None):
            return self._refusal(refusal)
        if broken := next((one for one in chain if isinstance(one, httpx2.HTTPError)), None):
            return connection_error(broken, HubUri(self._repo, None, ""), self.connection)
        what = f"the push fails with {type(error).__name__}: {self._quote(str(error))}"
        return self._refused(f"{what}: check {self.connection.endpoint_setting} and any proxy")

    def _refusal(self, error: HfHubHTTPError) -> TrainerError:
        status = error.response.status_code
        words = self._quote(error.server_message or error.response.headers.get("X-Error-Message") or "")
        said = f"{status}: {words}" if words else str(status)
        if status in BUSY or status in {409, 412}:
            busy = f"{self._where}: the hub fails or is busy ({said}): try again later"
            return ServerBusy(busy, retry_after(error.response))
        if status == 401:
            return self._refused(f"the hub refuses the token in {self._holder} ({said}): put a valid one there")
        if status in {403, 404}:
            grant = f"give the account of the token in {self._holder} the right to write, or correct {PLACE}.repo"
            return self._refused(f"the push is forbidden ({said}): {grant}")
        return self._refused(f"the hub refuses the push ({said})")

    def _quote(self, words: str) -> str:
        """Return the hub's words in one line, without the token and without addresses, which may be signed."""
        token = self.connection.access(self._repo).token
        if token:
            words = words.replace(token, "…")
        return one_line(re.sub(r"https?://\S+", "…", words), WORDS)


class _Watched(io.BufferedReader):
    """A file whose reads are reported. The library sends such a file over HTTP, not with a client of its own (Xet)."""

    def __init__(self, path: Path, moved: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path))
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        self._moved()
        return super().read(size)


def _root_files(info: Any) -> list[str]:
    return [one.rfilename for one in info.siblings or () if "/" not in one.rfilename]
