"""Fixes for messages of the scheduler, the kubelet, the registry and the API server."""

import re

from finetune_api.names import Component, Reason

R = Reason

FIXES_BY_MESSAGE: dict[str, tuple[tuple[str, str], ...]] = {
    R.UNSCHEDULABLE: (
        (r"Insufficient (?P<what>[\w.-]+/[\w.-]*\w)", "wait for a free {what}, or check resources.gpuResourceName"),
        (r"Insufficient (?P<what>cpu|memory|ephemeral-storage)", "request less {what} in resources.requests"),
        (r"node affinity/selector", "change scheduling.nodeSelector to labels that a node has"),
        (r"untolerated taint", "tolerate the taint in scheduling.tolerations"),
        (r"volume node affinity conflict", "choose a node that can reach the volume in scheduling.nodeSelector"),
        (r"Too many pods|no nodes available", "wait, or add a node"),
        (
            r"pod group is not ready",
            "wait until all pods of the job fit at once; kubectl describe podgroups shows what is missing",
        ),
        (r"scheduling gates: ", "the controller that set them has to remove them"),
        (
            r"waits for its resource claims",
            "check that they exist in the job's namespace with kubectl get resourceclaims,resourceclaimtemplates, and "
            "scheduling.schedulerName",
        ),
        (r"has not handled the pod$", "check scheduling.schedulerName, and that this scheduler runs"),
        (
            r"PodResourceClaim .* not found",
            "create it in the job's namespace, or correct resources.claims",
        ),
        (
            r"cannot allocate all claims",
            "wait for free devices, or request fewer in the claims of resources.claims; kubectl get resourceslices "
            "shows what the nodes offer",
        ),
        (
            r"waiting for ephemeral volume controller",
            "see kubectl get persistentvolumeclaims: volumes of ended pods count for the namespace's quota too",
        ),
        (
            r"ephemeral volume .*exceeded quota",
            "see kubectl get persistentvolumeclaims: volumes of ended pods count too; or have the quota raised",
        ),
        (r"ephemeral volume .* create PVC .*denied", "change what it names, or ask its owner for an exception"),
    ),
    R.IMAGE_PULL_FAILED: (
        (r"(?i)unauthorized|denied|authentication|no basic auth|forbidden", "set trainer.imagePullSecrets"),
        (r"(?i)not ?found|manifest unknown|does not exist", "check the name and the tag of trainer.image"),
        (r"(?i)toomanyrequests|429", "the registry limits pulls: wait, or set trainer.imagePullSecrets"),
        (r"(?i)x509|certificate", "add the registry's CA to the node's trust store"),
        (r"(?i)no such host|time-?out|refused|unreachable|dial tcp|EOF", "make the registry reachable from the node"),
        (r"(?i)couldn't parse|invalid reference|InvalidImageName", "correct the spelling of trainer.image"),
        (r"ErrImageNeverPull|Never", "load the image onto the node, or set trainer.imagePullPolicy to IfNotPresent"),
        (r"no space left", "free disk space on the node"),
        (r"no match for platform|exec format", "use an image for the node's architecture"),
    ),
    R.POD_CREATION_REFUSED: (
        (
            r"exceeded quota: \S+ requested: (count/\S+|pods|services|configmaps)=1,",
            "wait until others have ended, or have the quota raised",
        ),
        (
            r"exceeded quota(?!: \S+ requested: (count/\S+|pods|services|configmaps)=1,)",
            "request less in {resources}, or have the quota raised",
        ),
        (r"failed quota.*must specify", "set what the quota requires in {resources}.requests and {resources}.limits"),
        (r"(maximum|minimum) \S+ usage per|max limit to request ratio", "keep {resources} within the LimitRange"),
        (
            r"must be less than or equal to \S+ limit",
            "set {resources}.requests, or to {{}} for those of the LimitRange",
        ),
        (r"violates PodSecurity", "have the namespace enforce no more than Pod Security level restricted"),
        (r"(?i)service ?account", "create the service account, or change trainer.serviceAccountName"),
        (r"no PriorityClass", "create the priority class, or change scheduling.priorityClassName"),
        (r"(?i)RuntimeClass", "create the runtime class, or change scheduling.runtimeClassName"),
        (
            r"(?i)\blabels?\b.*\b(required|must|missing)\b|\b(required|must|missing)\b.*\blabels?\b",
            "set the label in trainer.defaults.podLabels of the chart, or in trainer.podLabels",
        ),
        (
            r"(?i)\bannotations?\b.*\b(required|must|missing)\b|\b(required|must|missing)\b.*\bannotations?\b",
            "set the annotation in trainer.defaults.podAnnotations of the chart, or in trainer.podAnnotations",
        ),
        (r"admission webhook|AdmissionPolicy", "change what it names, or ask its owner for an exception"),
    ),
    R.MOUNT_FAILED: (
        (
            r'secret "[^"]+" not found',
            "create this Secret in the job's namespace, or correct its name in the spec; the pod then starts",
        ),
        (
            r'"chat-template" : configmap "[^"]+" not found',
            "create this ConfigMap in the job's namespace; the pod then starts",
        ),
        (r'configmap "[^"]+" not found', "delete the Job; the operator recreates it"),
        (r"non-existent (secret|config) key", "add this key"),
        (
            r"Multi-Attach|already (used|attached|mounted)",
            "wait until the pod that holds the volume has ended, or use a claim that is ReadWriteMany",
        ),
    ),
    R.MULTIKUEUE_UNSUPPORTED: (
        (
            r"^preflight's queue",
            "set preflight.queueName to a queue of this cluster, or create the job in the other one",
        ),
        (
            r"^merge's queue",
            "set resources.merge.queueName to a queue of this cluster, or create the job in the other one",
        ),
    ),
    R.NO_MATCHING_FLAVOR: (
        (
            r"resource (?P<what>\S+) unavailable in ClusterQueue",
            "have {what} added to the ClusterQueue, or change resources (gpuResourceName, requests)",
        ),
        (r"maximum capacity", "request less in resources, or have the queue's quota raised"),
        (r"node affinity", "change scheduling.nodeSelector to labels of a flavor"),
        (r"untolerated taint", "tolerate the taint in scheduling.tolerations"),
    ),
    R.QUEUE_NOT_FOUND: (
        (r"LocalQueue", "create it in the job's namespace, or change scheduling.queueName"),
        (r"ClusterQueue", "have it created, or change scheduling.queueName"),
    ),
    R.CONTAINER_ERROR: (
        (r"unsatisfied condition: cuda", "update the node's NVIDIA driver to 580 or later, which CUDA 13 needs"),
        (r"(?i)run as non-?root|will run as root", "use a trainer image with a numeric non-root user"),
        (r"(?i)executable file not found|no such file", "use a trainer image in trainer.image"),
        (r'secret "[^"]+" not found', "create this Secret in the job's namespace, or correct its name in the spec"),
    ),
}
"""For reasons with many causes: patterns of the message, each with its fix; `{resources}` is the pod's own field."""

_RESOURCES: dict[str, str] = {Component.PREFLIGHT: "preflight.resources", Component.MERGE: "resources.merge"}

FIXES_BY_REASON: dict[str, str] = {
    R.MULTIKUEUE_UNSUPPORTED: "set scheduling.queueName to a queue of this cluster, or create the job in the other one",
    R.UNSCHEDULABLE: "see what the nodes offer with kubectl describe nodes",
    R.IMAGE_PULL_FAILED: "check trainer.image and trainer.imagePullSecrets",
    R.POD_CREATION_REFUSED: "change what is refused; it is tried again",
    R.MOUNT_FAILED: "fix the volume; the pod then starts",
    R.CONTAINER_ERROR: "see kubectl logs and kubectl describe pod",
    R.STOP_REFUSED: "change what is refused; the operator tries again",
    R.NO_MATCHING_FLAVOR: "request what the queue's flavors offer",
    R.QUEUE_NOT_FOUND: "change scheduling.queueName",
    R.NO_MATCHING_TOPOLOGY: "change scheduling.topology to a level that the queue's flavors have",
    R.QUEUE_STOPPED: "wait until it is started again, or change scheduling.queueName",
    R.QUEUE_MISSING: "set scheduling.queueName",
    R.KUEUE_MISSING: "install Kueue, or remove scheduling.queueName",
    R.INVALID_CONFIG: "correct the spec in a new job",
    R.DATASET_UNUSABLE: "check the rows with finetune-trainer check-data, or raise dataset.maxRejectedPercent",
    R.MODEL_UNAVAILABLE: "check model.uri, model.revision and the token",
    R.STORAGE_UNAVAILABLE: "make the storage endpoint reachable from the pods",
    R.INTERNAL_ERROR: "see kubectl logs; report it if it happens again",
    R.WONT_FIT: "use QLoRA, a shorter maxLength, or a larger vramBudget",
    R.GPU_UNUSABLE: "check the node's driver and container runtime, or choose other GPUs by scheduling.nodeSelector",
    R.OUTPUT_CONFLICT: "give each job its own output.uri",
    R.DIVERGED: "lower hyperparameters.learningRate, or look for broken rows",
    R.STORAGE_DENIED: "check bucket and keys in storage.credentialsSecretRef",
    R.GATE_NOT_MET: "read finetune_report.md and validation.json under output.uri",
    R.GPU_OUT_OF_MEMORY: "lower perDeviceTrainBatchSize or maxLength, or use QLoRA",
    R.GPU_FAULT: "drain the node and have its GPU checked",
    R.REWARD_UNAVAILABLE: "read the log of the server in rlhf.rewards[].service",
    R.OUT_OF_MEMORY: "raise resources.limits.memory, or lower the batch size or maxLength",
    R.WORKSPACE_FULL: "raise resources.workspace.sizeLimit, with storageClassName on a full node, or use a modelCache",
    R.EVICTED: "set resources.requests to what the trainer uses",
    R.POD_REJECTED: "check the node's device plugin and kubelet",
    R.NO_PROGRESS: "raise stallTimeoutSeconds if a step can take that long",
    R.RESULT_MISSING: "use a trainer image in trainer.image",
}
"""The usual fix of each reason."""

HINTS_BY_EXIT_CODE: dict[int, str] = {
    126: "use a trainer image in trainer.image",
    127: "use a trainer image in trainer.image",
    137: "killed by SIGKILL: raise checkpoint.gracePeriodSeconds if that was at the end of a grace period",
    139: "crashed in native code: check the node's GPU driver against the image",
    143: "terminated by SIGTERM before it could write its report",
}

DISRUPTIONS: dict[str, str] = {
    "PreemptionByScheduler": "a pod with higher priority preempted it",
    "EvictionByEvictionAPI": "it was evicted, for example by a node drain",
    "DeletionByTaintManager": "its node was tainted, or did not respond",
    "DeletionByPodGC": "its node no longer exists",
    "TerminationByKubelet": "its node shut down, or ran low on memory or disk",
}
"""Meaning of the reasons of condition DisruptionTarget."""

MAX_FIXES = 2
_FULL = re.compile(r"(?i)emptydir|ephemeral|local storage|disk ?pressure|no space left")


def is_disk_eviction(message: str) -> bool:
    """Return whether an eviction was caused by a full disk."""
    return _FULL.search(message) is not None


def find_fix(reason: str, message: str, component: str) -> str:
    """Return what to change for a pod of this component, or an empty string if no fix is known."""
    found, resources = [], _RESOURCES.get(component, "resources")
    for pattern, line in FIXES_BY_MESSAGE.get(reason, ()):
        match = re.search(pattern, message)
        if match:
            found.append(line.format(resources=resources, **match.groupdict()))
    return ", or ".join(found[:MAX_FIXES]) or FIXES_BY_REASON.get(reason, "")


def append_fix(reason: str, message: str, component: str = Component.TRAINER) -> str:
    """Return the message with what to change, unless it already names that."""
    fix = find_fix(reason, message, component)
    cause = message.strip().rstrip(".: ")
    return f"{cause}: {fix}" if fix and fix not in cause else cause
