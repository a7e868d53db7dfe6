"""What to change: one table from the words of scheduler, kubelet, registry and API server to a line for people."""

import re

from finetune_api.names import Reason

R = Reason

FIXES_BY_MESSAGE: dict[str, tuple[tuple[str, str], ...]] = {
    R.UNSCHEDULABLE: (
        (r"Insufficient (?P<what>[\w.-]+/[\w.-]*\w)", "wait for a free {what}, or check resources.gpuResourceName"),
        (r"Insufficient (?P<what>cpu|memory|ephemeral-storage)", "ask for less {what} in resources.requests"),
        (r"node affinity/selector", "change scheduling.nodeSelector to labels that a node has"),
        (r"untolerated taint", "tolerate the taint in scheduling.tolerations"),
        (r"volume node affinity conflict", "choose a node that can reach the volume in scheduling.nodeSelector"),
        (r"Too many pods|no nodes available", "wait, or add a node"),
    ),
    R.IMAGE_PULL_FAILED: (
        (r"(?i)unauthorized|denied|authentication|no basic auth|forbidden", "give trainer.imagePullSecrets"),
        (r"(?i)not ?found|manifest unknown|does not exist", "check the name and the tag of trainer.image"),
        (r"(?i)toomanyrequests|429", "the registry limits pulls: wait, or give trainer.imagePullSecrets"),
        (r"(?i)x509|certificate", "let the node trust the registry's authority"),
        (r"(?i)no such host|time-?out|refused|unreachable|dial tcp|EOF", "let the node reach the registry"),
        (r"(?i)couldn't parse|invalid reference|InvalidImageName", "correct the spelling of trainer.image"),
        (r"ErrImageNeverPull|Never", "load the image into the node, or set trainer.imagePullPolicy to IfNotPresent"),
        (r"no space left", "free the node's disk"),
        (r"no match for platform|exec format", "use an image for the node's architecture"),
    ),
    R.POD_CREATION_REFUSED: (
        (r"exceeded quota", "ask for less in resources, or have the quota raised"),
        (r"failed quota.*must specify", "give what the quota asks for in resources.requests and resources.limits"),
        (r"(maximum|minimum) \S+ usage per|max limit to request ratio", "keep resources within the LimitRange"),
        (r"violates PodSecurity", "let the namespace enforce no more than level restricted"),
        (r"(?i)service ?account", "create the service account, or change trainer.serviceAccountName"),
        (r"no PriorityClass", "create the priority class, or change scheduling.priorityClassName"),
        (r"(?i)RuntimeClass", "create the runtime class, or change scheduling.runtimeClassName"),
        (r"admission webhook", "ask who runs this webhook"),
    ),
    R.MOUNT_FAILED: (
        (r'secret "[^"]+" not found', "create this Secret in the job's namespace, and the pod starts by itself"),
        (r'configmap "[^"]+" not found', "delete the Job, and the operator makes it anew"),
        (r"non-existent (secret|config) key", "add this key"),
        (r"Multi-Attach|already (used|attached|mounted)", "end the pod that holds the volume"),
    ),
    R.NO_MATCHING_FLAVOR: (
        (
            r"resource (?P<what>\S+) unavailable in ClusterQueue",
            "have the ClusterQueue cover {what}, or change resources (gpuResourceName, requests)",
        ),
        (r"maximum capacity", "ask for less in resources, or have the queue's quota raised"),
        (r"node affinity", "change scheduling.nodeSelector to labels of a flavor"),
        (r"untolerated taint", "tolerate the taint in scheduling.tolerations"),
    ),
    R.QUEUE_NOT_FOUND: (
        (r"LocalQueue", "create it in the job's namespace, or change scheduling.queueName"),
        (r"ClusterQueue", "have it created, or change scheduling.queueName"),
    ),
    R.CONTAINER_ERROR: (
        (r"(?i)run as non-?root|will run as root", "use a trainer image with a numeric user other than root"),
        (r"(?i)executable file not found|no such file", "use a trainer image in trainer.image"),
        (r'secret "[^"]+" not found', "create this Secret in the job's namespace"),
    ),
}
"""For troubles with many causes: the first lines that fit the words."""

FIXES_BY_REASON: dict[str, str] = {
    R.UNSCHEDULABLE: "see what the nodes offer with kubectl describe nodes",
    R.IMAGE_PULL_FAILED: "check trainer.image and trainer.imagePullSecrets",
    R.POD_CREATION_REFUSED: "change what is refused; the Job tries again by itself",
    R.MOUNT_FAILED: "mend the volume, and the pod starts by itself",
    R.CONTAINER_ERROR: "see kubectl logs and kubectl describe pod",
    R.NO_MATCHING_FLAVOR: "ask for what the queue's flavors offer",
    R.QUEUE_NOT_FOUND: "change scheduling.queueName",
    R.NO_MATCHING_TOPOLOGY: "change scheduling.topology to a level that the queue's flavors have",
    R.QUEUE_STOPPED: "wait until it is started again, or change scheduling.queueName",
    R.QUEUE_MISSING: "set scheduling.queueName",
    R.KUEUE_MISSING: "install Kueue, or remove scheduling.queueName",
    R.INVALID_CONFIG: "correct the spec in a new job",
    R.DATASET_UNUSABLE: "check the rows with finetune-trainer check-data, or raise dataset.maxRejectedPercent",
    R.MODEL_UNAVAILABLE: "check model.uri, model.revision and the token",
    R.STORAGE_UNAVAILABLE: "let the pods reach the storage endpoint",
    R.INTERNAL_ERROR: "see kubectl logs; report it if it comes again",
    R.WONT_FIT: "use QLoRA, a shorter maxLength, or a larger vramBudget",
    R.OUTPUT_CONFLICT: "give each job an output.uri of its own",
    R.DIVERGED: "lower hyperparameters.learningRate, or look for broken rows",
    R.STORAGE_DENIED: "check bucket and keys in storage.credentialsSecretRef",
    R.GATE_NOT_MET: "read finetune_report.md and validation.json under output.uri",
    R.GPU_OUT_OF_MEMORY: "lower perDeviceTrainBatchSize or maxLength, or use QLoRA",
    R.OUT_OF_MEMORY: "raise resources.limits.memory, or lower the batch size or maxLength",
    R.WORKSPACE_FULL: "raise resources.workspace.sizeLimit, or keep the model in a modelCache",
    R.EVICTED: "set resources.requests to what the trainer uses",
    R.POD_REJECTED: "see the node's device plugin and kubelet",
    R.NO_PROGRESS: "raise stallTimeoutSeconds if a step may take that long",
    R.RESULT_MISSING: "use a trainer image in trainer.image",
}
"""For each other trouble, what helps as a rule."""

HINTS_BY_EXIT_CODE: dict[int, str] = {
    126: "use a trainer image in trainer.image",
    127: "use a trainer image in trainer.image",
    137: "it was killed: raise checkpoint.gracePeriodSeconds if that was at the end of a grace period",
    139: "it crashed in native code: check the node's GPU driver against the image",
    143: "it was told to end before it could say so",
}

DISRUPTIONS: dict[str, str] = {
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "EvictionByEvictionAPI": "it was evicted, as a drain of its node does",
    "DeletionByTaintManager": "its node was tainted, or did not answer",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node shut down, or ran low on memory or disk",
}
"""What the reasons of condition DisruptionTarget mean."""

MAX_FIXES = 2
_FULL = re.compile(r"(?i)emptydir|ephemeral|local storage|disk ?pressure|no space left")


def is_about_space(words: str) -> bool:
    """Whether an eviction was for the disk."""
    return _FULL.search(words) is not None


def fix(reason: str, words: str) -> str:
    """What to change, or nothing when nobody knows."""
    found = []
    for pattern, line in FIXES_BY_MESSAGE.get(reason, ()):
        match = re.search(pattern, words)
        if match:
            found.append(line.format(**match.groupdict()))
    return ", or ".join(found[:MAX_FIXES]) or FIXES_BY_REASON.get(reason, "")


def append_fix(reason: str, words: str) -> str:
    """The words, and what to change."""
    line = fix(reason, words)
    said = words.strip().rstrip(".: ")
    return f"{said}: {line}" if line and line not in said else said
