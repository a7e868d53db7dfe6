"""Check a job against the allow-lists, with one message for each refusal."""

import ipaddress
import re
import socket
from collections.abc import Iterator

from finetune_api.blocks import STORAGE_SCHEME, is_under
from finetune_api.endpoints import matches_pattern, parse_host
from finetune_api.pods.affinity import node_keys
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec_sources import list_sources
from finetune_api.tracking import WandbMode
from finetune_operator.kube.images import repository
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.manifests.effective_spec import find_claims, hub_endpoint, uses_hub
from finetune_operator.settings import Settings

AWS_ENDPOINT = "https://s3.amazonaws.com"
"""Endpoint of a job that names none, if the operator has no default storage."""
WANDB_ENDPOINT = "https://api.wandb.ai"
"""Server of a W&B run that names none."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
METADATA_NAMES = frozenset(
    {
        *("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"),
        *("metadata.tencentyun.com", "metadata.platformequinix.com", "metadata.packet.net"),
        *("api.metadata.cloud.ibm.com", "metadata.nic.lan", "rancher-metadata"),
    }
)
"""Names of Google, AWS, Tencent, Equinix, IBM and Rancher; the others are reached by their link-local address."""
METADATA_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
        *("fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "fd00:42::42/128"),
    )
)
LOADS_CODE = re.compile(r"PLUGIN|COMMAND|UCX_MODULE|WEIGHTS_ONLY|^LD_|PYTHONHOME|PATH$|_DIR$|_FILE$")
"""Variables that name a library, a program (which UCX runs on a signal) or a file, or let torch unpickle one; no
pattern of the allow-list covers them. The chart's admission policy has the same expression."""
CONTROL_PLANE = "node-role.kubernetes.io/"
NODE_CONDITIONS = "node.kubernetes.io/"
"""Keys of nodes that are not for jobs, and of taints of nodes in trouble; a `*` alone does not match them."""
_EMBEDDED = tuple(
    ipaddress.IPv6Network(text)
    for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
"""Networks whose addresses end with one of IPv4: compatible, mapped, translated, and the two of NAT64."""
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
"""Prefixes of a site's own NAT64, of 48, 56, 64 or 96 bits: around its ninth byte, an address has that of IPv4 at once
after the prefix (RFC 6052)."""
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
"""The third quarter of an address that ends with one of IPv4."""


def find_refusal(job: FineTuneJob, settings: Settings) -> str | None:
    """Return why the job is not allowed, with the setting that would allow it; None if it is allowed."""
    spec = job.spec
    if spec is None:
        return None
    return (
        _check_image(spec, settings)
        or _check_service_account(spec, job.key.namespace, settings)
        or _check_priority_classes(spec, settings)
        or _check_placement(spec, settings)
        or _check_claims(spec, job.key.namespace, settings)
        or _check_grace_period(spec, settings)
        or _check_environment(spec, settings)
        or _check_annotations(spec, settings)
        or _check_labels(spec, settings)
        or _check_storage(spec, settings)
        or _check_prefixes(spec, job.key.namespace, settings)
        or _check_hub(spec, settings)
        or _check_registry(spec, settings)
        or _check_tracking(spec, settings)
        or _check_rewards(spec, settings)
    )


def _check_image(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    image = spec.trainer.image
    allowed = {repository(one) for one in [settings.trainer_image, *settings.allowed_images]}
    if image is None or repository(image) in allowed:
        return None
    return f"image {image} is not allowed: use a tag of {settings.trainer_image}, or add it to FINETUNE_ALLOWED_IMAGES"


def _check_service_account(spec: FineTuneJobSpec, namespace: str, settings: Settings) -> str | None:
    name = spec.trainer.service_account_name
    if name in {None, "default"} or {name, f"{namespace}/{name}"} & set(settings.allowed_service_accounts):
        return None
    return f"service account {name} is not allowed: add it to FINETUNE_ALLOWED_SERVICE_ACCOUNTS"


def _check_priority_classes(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    scheduling = spec.scheduling
    pods, workload = (
        (scheduling.priority_class_name, scheduling.workload_priority_class_name) if scheduling else (None, None)
    )
    if pods is not None and pods not in settings.allowed_priority_classes:
        return f"priority class {pods} is not allowed: add it to FINETUNE_ALLOWED_PRIORITY_CLASSES"
    if workload is not None and workload not in settings.allowed_workload_priority_classes:
        return (
            f"workload priority class {workload} is not allowed: add it to FINETUNE_ALLOWED_WORKLOAD_PRIORITY_CLASSES"
        )
    return None


def _check_placement(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    """Check what chooses the nodes and the runtime of the pods."""
    if (scheduling := spec.scheduling) is None:
        return None
    runtimes = [scheduling.runtime_class_name] if scheduling.runtime_class_name else []
    return (
        _check_names(
            "toleration",
            [one.key for one in scheduling.tolerations or ()],
            settings.allowed_tolerations,
            "FINETUNE_ALLOWED_TOLERATIONS",
            (CONTROL_PLANE, NODE_CONDITIONS),
        )
        or _check_names(
            "node selector",
            [*(scheduling.node_selector or ()), *node_keys(scheduling.affinity)],
            settings.allowed_node_selectors,
            "FINETUNE_ALLOWED_NODE_SELECTORS",
            (CONTROL_PLANE,),
        )
        or _check_names("runtime class", runtimes, settings.allowed_runtime_classes, "FINETUNE_ALLOWED_RUNTIME_CLASSES")
    )


def _check_claims(spec: FineTuneJobSpec, namespace: str, settings: Settings) -> str | None:
    """Check the claims that pods mount: the model cache, and those that `pvc://` URIs are in."""

    def check(kind: str, claims: list[str], allowed: list[str], setting: str) -> str | None:
        own = [one if "/" in one else f"{namespace}/{one}" for one in allowed]
        return _check_names(kind, [f"{namespace}/{one}" for one in claims], own, setting)

    cache = [spec.model_cache.claim_name] if spec.model_cache else []
    return check(
        "model cache claim", cache, settings.allowed_model_cache_claims, "FINETUNE_ALLOWED_MODEL_CACHE_CLAIMS"
    ) or check("source claim", find_claims(spec), settings.allowed_source_claims, "FINETUNE_ALLOWED_SOURCE_CLAIMS")


def _check_grace_period(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    given, longest = spec.checkpoint.grace_period_seconds, settings.max_grace_period_seconds
    if given <= longest:
        return None
    return (
        f"checkpoint.gracePeriodSeconds {given} is not allowed: a drained node would wait for the pod so long; "
        f"use at most {longest}, or raise FINETUNE_MAX_GRACE_PERIOD_SECONDS"
    )


def _check_environment(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    given, allowed = [one.name for one in spec.trainer.env or ()], settings.allowed_env
    for name in given:
        if LOADS_CODE.search(name) and name not in allowed:
            return (
                f"environment variable {name} is not allowed: it loads a library, program or file, which a job could "
                "bring along; if all users are trusted, name it in FINETUNE_ALLOWED_ENV without a *"
            )
    return _check_names("environment variable", given, allowed, "FINETUNE_ALLOWED_ENV")


def _check_annotations(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    given, allowed = list(spec.trainer.pod_annotations or ()), settings.allowed_pod_annotations
    return _check_names("pod annotation", given, allowed, "FINETUNE_ALLOWED_POD_ANNOTATIONS")


def _check_labels(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    given, allowed = list(spec.trainer.pod_labels or ()), settings.allowed_pod_labels
    return _check_names("pod label", given, allowed, "FINETUNE_ALLOWED_POD_LABELS")


def _check_names(
    kind: str, given: list[str], allowed: list[str], setting: str, reserved: tuple[str, ...] = ()
) -> str | None:
    """Refuse the first name that no entry matches; a `*` at the end of an entry matches any rest, but nothing that
    begins with a reserved prefix, unless the entry begins with it too."""
    for name in given:
        if not any(_names(one, name, reserved) for one in allowed):
            return f"{kind} {name} is not allowed: add it to {setting} (allowed: {', '.join(allowed) or 'none'})"
    return None


def _names(entry: str, name: str, reserved: tuple[str, ...]) -> bool:
    if not entry.endswith("*"):
        return name == entry
    start = entry[:-1]
    return name.startswith(start) and all(start.startswith(one) or not name.startswith(one) for one in reserved)


def _check_storage(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    named = spec.storage.endpoint if spec.storage else None
    default = settings.default_storage_endpoint
    allowed = settings.allowed_storage_endpoints
    return check_endpoint("storage", named or default or AWS_ENDPOINT, default, allowed)


def _check_prefixes(spec: FineTuneJobSpec, namespace: str, settings: Settings) -> str | None:
    """Check that every object that the spec names is under a prefix of the job's namespace."""
    allowed = settings.storage_prefixes_of(namespace)
    for field, uri, is_folder in _storage_uris(spec) if allowed else ():
        named = f"{uri.rstrip('/')}/" if is_folder else uri
        if not is_under(named, allowed):
            return (
                f"{field} {uri} is not allowed: use a path under {' or '.join(allowed)}, without '..', or add its "
                "prefix to FINETUNE_ALLOWED_STORAGE_PREFIXES"
            )
    return None


def _storage_uris(spec: FineTuneJobSpec) -> Iterator[tuple[str, str, bool]]:
    """Yield every `s3://` URI of the spec with its field, and whether it names a folder."""
    yield "output.uri", spec.output.uri, True
    for one in list_sources(spec):
        if one.uri.startswith(STORAGE_SCHEME):
            yield f"{one.place}.uri", one.uri, one.is_folder


def _check_hub(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    """Check the hub, unless the job names none and takes nothing from one."""
    named = spec.hub.endpoint if spec.hub else None
    if named is None and not uses_hub(spec):
        return None
    return check_endpoint(
        "hub", hub_endpoint(spec, settings), settings.default_hub_endpoint, settings.allowed_hub_endpoints
    )


def _check_registry(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    registry = spec.output.oci
    if registry is None:
        return None
    return check_endpoint("registry", registry.endpoint, None, settings.allowed_registry_endpoints)


def _check_tracking(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    """Check the servers of the trackers; an offline run has none."""
    tracking, servers = spec.tracking, []
    if tracking and tracking.mlflow:
        servers.append(tracking.mlflow.endpoint)
    if tracking and tracking.wandb and tracking.wandb.mode is WandbMode.ONLINE:
        servers.append(tracking.wandb.endpoint or WANDB_ENDPOINT)
    return _check_endpoints("tracking", servers, settings.allowed_tracking_endpoints)


def _check_rewards(spec: FineTuneJobSpec, settings: Settings) -> str | None:
    """Check the servers that score answers."""
    servers = [one.service.endpoint for one in spec.rewards if one.service]
    return _check_endpoints("reward", servers, settings.allowed_reward_endpoints)


def _check_endpoints(kind: str, endpoints: list[str], allowed: list[str]) -> str | None:
    refusals = (check_endpoint(kind, one, None, allowed) for one in endpoints)
    return next(filter(None, refusals), None)


def check_endpoint(kind: str, endpoint: str, default: str | None, allowed: list[str]) -> str | None:
    """Return why a server may not be used, by the operator's list of that kind; None if it may."""
    if endpoint == default:
        return None
    try:
        host = parse_host(endpoint)
    except ValueError as error:  # a job that was stored before the CRD refused it
        return f"{kind} endpoint {endpoint} is not a URL: {error}"
    if is_metadata_address(host):
        return f"{kind} endpoint {endpoint} is a link-local or metadata address, which is never allowed"
    if not allowed or any(matches_pattern(endpoint, pattern) for pattern in allowed):
        return None
    return f"{kind} endpoint {endpoint} is not allowed: add it to FINETUNE_ALLOWED_{kind.upper()}_ENDPOINTS"


def is_metadata_address(host: str) -> bool:
    """Return whether a host is a cloud's metadata service or link-local, in any notation of its address."""
    host = host.rstrip(".").lower()
    if host in METADATA_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            # The C library also reads 2852039166, 0xa9fea9fe and 169.254.43518 as addresses, and so do HTTP clients.
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return False
    return any(one in network for one in _equivalent_addresses(address) for network in METADATA_NETWORKS)


def _equivalent_addresses(address: Address) -> list[Address]:
    """Return the address, and the IPv4 addresses that a network may translate it to."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    found: list[Address | None] = [address, address.sixtofour, *(address.teredo or ())]
    bits = int(address)
    if any(address in network for network in _EMBEDDED) or bits >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(ipaddress.IPv4Address(bits & 0xFFFFFFFF))
    if address in _LOCAL_NAT64:
        octets = address.packed[:8] + address.packed[9:]
        found += [ipaddress.IPv4Address(octets[start : start + 4]) for start in (6, 7, 8)]
    return [one for one in found if one is not None]
