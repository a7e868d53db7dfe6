"""What the operator must be allowed, and which of it is missing."""

from typing import cast

from finetune_api import names
from finetune_operator.cluster import EVENTS, NETWORKING, Cluster
from finetune_operator.kube.objects import Object
from finetune_operator.settings import Settings

Right = tuple[str, str, str, str]
"""Verb, API group, resource and subresource."""
RIGHTS: tuple[Right, ...] = (
    *((verb, names.GROUP, names.PLURAL, "") for verb in ("get", "list", "watch")),
    ("patch", names.GROUP, names.PLURAL, "status"),
    *((verb, "batch", "jobs", "") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *((verb, "", "pods", "") for verb in ("list", "watch")),
    *((verb, "", kind, "") for kind in ("configmaps", "services") for verb in ("get", "list", "create", "delete")),
    ("list", "", "events", ""),
    *((verb, EVENTS, "events", "") for verb in ("create", "patch")),
    *((verb, names.KUEUE_GROUP, "workloads", "") for verb in ("list", "watch", "patch")),
    *((verb, NETWORKING, "networkpolicies", "") for verb in ("get", "list", "create", "delete")),
)
"""Those of NetworkPolicies are needed only if the settings ask for some."""
RELEASE_RIGHTS: tuple[Right, ...] = (
    *((verb, names.GROUP, names.RELEASE_PLURAL, "") for verb in ("get", "list", "watch")),
    ("patch", names.GROUP, names.RELEASE_PLURAL, "status"),
)


async def list_missing_rights(cluster: Cluster, settings: Settings) -> list[str]:
    """Return the rights that the operator lacks, as `verb resource (namespace)`.

    One review lists the rules of a namespace; only a right that is in none of them is asked for by itself.
    """
    missing = []
    for namespace in settings.watch_namespaces or [""]:
        # No role binding can exist in a namespace of this name, so its rules are those of all namespaces.
        spec = {"namespace": namespace or names.MANAGED_BY + ".none"}
        rules = (await _review(cluster, "SelfSubjectRulesReview", spec)).get("resourceRules") or []
        for right in needed_rights(settings):
            if not any(_allows(rule, right) for rule in rules) and not await _is_allowed(cluster, right, namespace):
                verb, _, resource, part = right
                name = f"{resource}/{part}" if part else resource
                missing.append(f"{verb} {name} ({namespace or 'all namespaces'})")
    return missing


async def _is_allowed(cluster: Cluster, right: Right, namespace: str) -> bool:
    asked = dict(zip(("verb", "group", "resource", "subresource"), right, strict=True))
    spec = {"resourceAttributes": asked | ({"namespace": namespace} if namespace else {})}
    return bool((await _review(cluster, "SelfSubjectAccessReview", spec))["allowed"])


async def _review(cluster: Cluster, kind: str, spec: Object) -> Object:
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    answer = await cluster.request("POST", f"/apis/authorization.k8s.io/v1/{kind.lower()}s", body=body)
    return cast("Object", answer["status"])


def needed_rights(settings: Settings) -> list[Right]:
    """Return the rights that the operator uses with these settings."""
    optional = RELEASE_RIGHTS if settings.releases else ()
    return [right for right in (*RIGHTS, *optional) if right[1] != NETWORKING or settings.has_network_policies]


def _allows(rule: Object, right: Right) -> bool:
    """Return whether a rule grants a right on all objects of its kind."""
    verb, group, resource, part = right
    wanted = (("verbs", verb), ("apiGroups", group), ("resources", f"{resource}/{part}" if part else resource))
    return not rule.get("resourceNames") and all({"*", word} & set(rule.get(name) or ()) for name, word in wanted)
