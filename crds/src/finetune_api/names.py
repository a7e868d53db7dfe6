"""Every string the cluster sees: group, labels, condition types, reasons, events. Nothing else may spell them."""

from enum import StrEnum

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT_NAME = "ftj"
CATEGORY = "finetune"

LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_JOB_NAME = f"{GROUP}/job-name"
LABEL_ATTEMPT = f"{GROUP}/attempt"
ANNOTATION_JOB_NAME = f"{GROUP}/job-name"
"""On children: the FineTuneJob's full name, which may be longer than a label value."""

ANNOTATION_SUSPENDED_BY = f"{GROUP}/suspended-by"
"""On children: who suspended the Job; without it somebody else did, and has to let it go on."""

APP_NAME = "finetunejob"
MANAGED_BY = "finetune-operator"
TRAINER_CONTAINER = "trainer"


class Component(StrEnum):
    """The value of `app.kubernetes.io/component` on what the operator creates."""

    PREFLIGHT = "preflight"
    TRAINER = "trainer"


class Phase(StrEnum):
    """One word for people, derived from the conditions by one function; machines read the conditions."""

    PENDING = "Pending"
    PREFLIGHT = "Preflight"
    STARTING = "Starting"
    TRAINING = "Training"
    PUBLISHING = "Publishing"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """The condition types of a FineTuneJob; the last three are the kstatus convention that GitOps tools read."""

    ACCEPTED = "Accepted"
    SUSPENDED = "Suspended"
    VALIDATED = "Validated"
    RUNNING = "Running"
    EARLY_STOPPED = "EarlyStopped"
    PUBLISHED = "Published"
    COMPLETE = "Complete"
    FAILED = "Failed"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason(StrEnum):
    """The one-word cause on a condition, an event or `status.reason`."""

    # Accepted
    ACCEPTED = "Accepted"
    FORBIDDEN = "Forbidden"
    INVALID_SPEC = "InvalidSpec"
    NAME_CONFLICT = "NameConflict"
    API_DENIED = "APIDenied"
    WAITING_FOR_PARENT = "WaitingForParent"
    PARENT_FAILED = "ParentFailed"
    # Suspended
    USER_REQUESTED = "UserRequested"
    JOB_SUSPENDED = "JobSuspended"
    NOT_SUSPENDED = "NotSuspended"
    # Validated
    DATASET_VALID = "DatasetValid"
    ADOPTED = "Adopted"
    PREFLIGHT_RUNNING = "PreflightRunning"
    PREFLIGHT_FAILED = "PreflightFailed"
    # Running
    PODS_RUNNING = "PodsRunning"
    PODS_STARTING = "PodsStarting"
    NOT_STARTED = "NotStarted"
    FINISHED = "Finished"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_CREATION_REFUSED = "PodCreationRefused"
    MOUNT_FAILED = "MountFailed"
    BACKING_OFF = "BackingOff"
    UNREACHABLE = "Unreachable"
    STOPPING = "Stopping"
    NODE_LOST = "NodeLost"
    NO_PROGRESS = "NoProgress"
    # EarlyStopped
    PATIENCE_EXHAUSTED = "PatienceExhausted"
    NOT_TRIGGERED = "NotTriggered"
    NOT_CONFIGURED = "NotConfigured"
    # Published and Complete
    MANIFEST_REPORTED = "ManifestReported"
    NOT_PUBLISHED = "NotPublished"
    SUCCEEDED = "Succeeded"
    # Failed: the exit table
    INVALID_CONFIG = "InvalidConfig"
    DATASET_UNUSABLE = "DatasetUnusable"
    MODEL_UNAVAILABLE = "ModelUnavailable"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    INTERNAL_ERROR = "InternalError"
    WONT_FIT = "WontFit"
    OUTPUT_CONFLICT = "OutputConflict"
    PREEMPTED = "Preempted"
    PEER_LOST = "PeerLost"
    DIVERGED = "Diverged"
    STORAGE_DENIED = "StorageDenied"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    OUT_OF_MEMORY = "OutOfMemory"
    CONTAINER_ERROR = "ContainerError"
    RESULT_MISSING = "ResultMissing"
    JOB_DELETED = "JobDeleted"
    EVICTED = "Evicted"
    WORKSPACE_FULL = "WorkspaceFull"
    POD_REJECTED = "PodRejected"
    UNOBSERVED = "Unobserved"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    TOO_MANY_PREEMPTIONS = "TooManyPreemptions"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    # kstatus
    PENDING = "Pending"
    PROGRESSING = "Progressing"


class EventReason(StrEnum):
    """Reasons of the events posted on a FineTuneJob; one per state change, never per reconcile."""

    ACCEPTED = "Accepted"
    REFUSED = "Refused"
    WAITING_FOR_PARENT = "WaitingForParent"
    PREFLIGHT_STARTED = "PreflightStarted"
    DATASET_VALIDATED = "DatasetValidated"
    ROWS_REJECTED = "RowsRejected"
    TRAINING_STARTED = "TrainingStarted"
    TRAINING_RETRIED = "TrainingRetried"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_CREATION_REFUSED = "PodCreationRefused"
    MOUNT_FAILED = "MountFailed"
    CONTAINER_ERROR = "ContainerError"
    NODE_LOST = "NodeLost"
    NO_PROGRESS = "NoProgress"
    UNREACHABLE = "Unreachable"
    TRAINER_PREEMPTED = "TrainerPreempted"
    TRAINER_FAILED = "TrainerFailed"
    EARLY_STOPPED = "EarlyStopped"
    ADOPTED = "Adopted"
    COMPLETED = "Completed"
    FAILED = "Failed"
