"""Hub URIs and the access to them: `hf://owner/name`, `hf://datasets/owner/name/path`."""

import hashlib
import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from finetune_api.blocks import SecretRef
from finetune_api.endpoints import is_endpoint
from finetune_api.handoff import HUB_CA_DIR, HUB_TOKEN_FILE, HUB_TOKENS_DIR, HubRole
from finetune_api.inputs.sources import Hub, Model
from finetune_api.output import COMMIT
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec_sources import SpecSource, list_sources
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.storage.own_servers import OwnKey, explain_withheld
from finetune_trainer.storage.protocol import Entry, mounted_authority, sha256_file

logger = logging.getLogger(__name__)

SCHEME = "hf://"
DATASETS = "datasets/"
ENDPOINT = "https://huggingface.co"
TOKEN = re.compile(r"[\x21-\x7e]{1,512}")


class Kind(StrEnum):
    """The two kinds of repositories that a job reads."""

    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True, slots=True)
class Repo:
    """One repository; `name` is `owner/name`."""

    kind: Kind
    name: str

    @property
    def page(self) -> str:
        """Return its page, relative to the endpoint."""
        return f"{DATASETS if self.kind is Kind.DATASET else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class HubUri:
    """A repository, a commit and a path in it; without a commit, the newest of `main`."""

    repo: Repo
    commit: str | None
    path: str

    def __str__(self) -> str:
        pinned = f"@{self.commit}" if self.commit else ""
        return f"{SCHEME}{self.repo.page}{pinned}{'/' if self.path else ''}{self.path}"


def is_hub_uri(uri: str) -> bool:
    """Return whether a URI is read from a hub."""
    return uri.startswith(SCHEME)


def parse_hub_uri(uri: str) -> HubUri:
    """Parse a URI that the API server has validated, pinned or not."""
    rest = uri.removeprefix(SCHEME)
    kind = Kind.DATASET if rest.startswith(DATASETS) else Kind.MODEL
    owner, _, below = (rest.removeprefix(DATASETS) if kind is Kind.DATASET else rest).partition("/")
    name, _, path = below.partition("/")
    name, _, commit = name.partition("@")
    return HubUri(Repo(kind, f"{owner}/{name}"), commit or None, path.rstrip("/"))


def strip_commit(uri: str) -> str:
    """Return the URI without the commit, as a user writes it."""
    if not is_hub_uri(uri):
        return uri
    parts = parse_hub_uri(uri)
    return str(HubUri(parts.repo, None, parts.path))


def parse_commit(uri: str) -> str | None:
    """Return the commit of a pinned hub URI, else None."""
    return parse_hub_uri(uri).commit if is_hub_uri(uri) else None


def repo_name(uri: str) -> str:
    """Return `owner/name` of a hub repository; any other URI unchanged."""
    return parse_hub_uri(uri).repo.name if is_hub_uri(uri) else uri


def pinned_commit(model: Model) -> str | None:
    """Return the commit of a hub's model, if its revision is one."""
    return model.revision if is_hub_uri(model.uri) and COMMIT.fullmatch(model.revision or "") else None


def matches_entry(path: Path, entry: Entry) -> bool:
    """Return whether a local file matches the hub's entry: SHA-256 of large files, git's digest of small ones."""
    if path.stat().st_size != entry.size:
        return False
    if entry.sha256:
        return sha256_file(path) == entry.sha256
    return not entry.etag or _git_digest(path) == entry.etag


def _git_digest(path: Path) -> str:
    state = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: state).hexdigest()


def pinned_model_uri(model: Model) -> str:
    """Return the URI of a model, with its commit if known."""
    commit = pinned_commit(model)
    return f"{model.uri}@{commit}" if commit else model.uri


@dataclass(frozen=True, slots=True)
class Access:
    """Access to a repository: the token, if any, and the part of the spec that names the repository."""

    place: str
    token: str | None = field(default=None, repr=False)
    secret: str | None = None
    is_public: bool = False
    """True if the spec has no field for a token there."""

    @property
    def token_field(self) -> str:
        """The field that names the Secret of the token, which all sources of training rows share."""
        return f"{self.place.partition('.sources[')[0]}.credentialsSecretRef"


@dataclass(frozen=True, slots=True)
class HubConnection:
    """How to reach a hub, and the token for each repository of the job."""

    endpoint: str = ENDPOINT
    ca_file: Path | None = None
    accesses: Mapping[Repo, Access] = field(default_factory=dict)
    fallback: Access = Access("spec.model")
    """For repositories that the spec does not name, such as the base of a reward model."""
    is_here: bool = False
    """True outside a pod: endpoint, token and authority are then set in the environment."""
    withheld: str | None = None
    """Outside a pod, why the token of this machine is not sent to this hub."""

    def access(self, repo: Repo) -> Access:
        """Return the access to a repository."""
        return self.accesses.get(repo, self.fallback)

    @property
    def endpoint_setting(self) -> str:
        """Return the setting of the endpoint for messages."""
        return "spec.hub.endpoint or HF_ENDPOINT" if self.is_here else "spec.hub.endpoint"


def connect_hub(
    spec: FineTuneJobSpec, tokens_dir: Path = Path(HUB_TOKENS_DIR), ca_dir: Path = Path(HUB_CA_DIR)
) -> HubConnection:
    """Return the connection of a pod: tokens and CA from mounted files."""
    hub = spec.hub or Hub()
    accesses: dict[Repo, Access] = {}
    fallback = Access("spec.model")
    for one in _list_hub_sources(spec):
        place = f"spec.{one.place}"
        if one.role:
            access = _mounted_access(place, one.role, one.secret, tokens_dir)
        else:
            access = fallback = Access(place, is_public=True)
        _add(accesses, one.uri, access)
    ca_file = mounted_authority(ca_dir, "spec.hub") if hub.ca_secret_ref else None
    return HubConnection(_checked_url(hub.endpoint or ENDPOINT, "spec.hub.endpoint"), ca_file, accesses, fallback)


def connect_output_hub(
    spec: FineTuneJobSpec, tokens_dir: Path = Path(HUB_TOKENS_DIR), ca_dir: Path = Path(HUB_CA_DIR)
) -> HubConnection:
    """Return the connection of a pod that pushes to `output.hub`; raise without a token."""
    hub, output = spec.hub or Hub(), spec.output.hub
    if output is None:
        raise ValueError("the job has no output.hub")
    access = _mounted_access("spec.output.hub", HubRole.OUTPUT, output.credentials_secret_ref, tokens_dir)
    if access.token is None:
        message = f"{access.place} has no token to push with: set credentialsSecretRef to a Secret with the key"
        raise InvalidConfig(f"{message} {HUB_TOKEN_FILE}")
    endpoint = _checked_url(hub.endpoint or ENDPOINT, "spec.hub.endpoint")
    repo = Repo(Kind.MODEL, output.repo)
    ca_file = mounted_authority(ca_dir, "spec.hub") if hub.ca_secret_ref else None
    return HubConnection(endpoint, ca_file, {repo: access})


def connect_hub_here(spec: FineTuneJobSpec, named: Collection[str] = ()) -> HubConnection:
    """Return the connection outside a pod: the manifest's hub or `HF_ENDPOINT`.

    The token of this machine belongs to `HF_ENDPOINT`; another hub gets it only if the user `named` it.
    """
    own = os.environ.get("HF_ENDPOINT") or ENDPOINT
    _checked_url(own, "HF_ENDPOINT")  # before the import of the library, which fails on an invalid one

    from huggingface_hub import get_token  # noqa: PLC0415 - a quarter of a second that only hub URIs need

    asked = spec.hub.endpoint if spec.hub else None
    endpoint = _checked_url(asked or own, "spec.hub.endpoint")
    token = get_token()
    token = _checked(token, "HF_TOKEN") if token else None
    key = OwnKey("the token in HF_TOKEN", own, "HF_ENDPOINT")
    field = "spec.hub.endpoint" if asked else "HF_ENDPOINT"
    withheld = explain_withheld(key, field, endpoint, named) if token else None
    if withheld:
        logger.warning("%s; public repositories are read without it", withheld)
        token = None
    accesses: dict[Repo, Access] = {}
    for one in _list_hub_sources(spec):
        _add(accesses, one.uri, Access(f"spec.{one.place}", token))
    return HubConnection(endpoint, None, accesses, Access("spec.model", token), is_here=True, withheld=withheld)


def _list_hub_sources(spec: FineTuneJobSpec) -> list[SpecSource]:
    """Return the job's sources on a hub, those without a field for a token last."""
    return sorted((one for one in list_sources(spec) if is_hub_uri(one.uri)), key=lambda one: one.role is None)


def _add(accesses: dict[Repo, Access], uri: str, access: Access) -> None:
    """Add an access; if two sources share a repository, the first token applies to both."""
    repo = parse_hub_uri(uri).repo
    if repo not in accesses or (access.token and not accesses[repo].token):
        accesses[repo] = access


def _mounted_access(place: str, role: HubRole, credentials: SecretRef | None, tokens_dir: Path) -> Access:
    """Return the access with the token that is mounted for a role, if one is."""
    access = Access(place, secret=credentials.name if credentials else None)
    path = tokens_dir / role / HUB_TOKEN_FILE
    token = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if token:
        where = f"the key {HUB_TOKEN_FILE} of the Secret named by {access.token_field}"
        return replace(access, token=_checked(token, where))
    if access.secret:
        raise InvalidConfig(f"the Secret {access.secret} named by {access.token_field} needs the key {HUB_TOKEN_FILE}")
    return access


def _checked(token: str, where: str) -> str:
    """Return a valid token; the client's error would quote an invalid one."""
    if not TOKEN.fullmatch(token):
        raise InvalidConfig(f"{where} contains no valid token: one line of visible characters")
    return token


def _checked_url(endpoint: str, setting: str) -> str:
    if not is_endpoint(endpoint):
        raise InvalidConfig(f"{setting} is {endpoint!r}: write https://host, http://host or http://host:port")
    return endpoint.rstrip("/")
