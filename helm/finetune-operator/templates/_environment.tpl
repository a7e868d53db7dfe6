{{/* The operator's variables, as a list. */}}
{{- define "finetune-operator.environment" -}}
- {name: FINETUNE_TRAINER_IMAGE, value: {{ include "finetune-operator.image" (dict "image" .Values.trainer.image "appVersion" .Chart.AppVersion) | quote }}}
{{- if .Values.preflight.image.repository }}
- {name: FINETUNE_PREFLIGHT_IMAGE, value: {{ include "finetune-operator.image" (dict "image" .Values.preflight.image "appVersion" .Chart.AppVersion) | quote }}}
{{- end }}
- {name: FINETUNE_PREFLIGHT_MEMORY_LIMIT, value: {{ .Values.preflight.memoryLimit | quote }}}
- {name: FINETUNE_PREFLIGHT_WORKSPACE_LIMIT, value: {{ .Values.preflight.workspaceLimit | quote }}}
- {name: FINETUNE_TRAINER_RUN_AS_USER, value: {{ include "finetune-operator.scalar" .Values.trainer.runAsUser | quote }}}
- {name: FINETUNE_DEFAULT_CPU_REQUEST, value: {{ include "finetune-operator.scalar" .Values.trainer.defaultRequests.cpu | quote }}}
- {name: FINETUNE_DEFAULT_MEMORY_REQUEST, value: {{ include "finetune-operator.scalar" .Values.trainer.defaultRequests.memory | quote }}}
{{- $pods := .Values.trainer.defaults }}
{{- $secrets := list }}
{{- range $pods.imagePullSecrets }}
{{- $secrets = append $secrets .name }}
{{- end }}
- {name: FINETUNE_DEFAULT_IMAGE_PULL_SECRETS, value: {{ join "," $secrets | quote }}}
- {name: FINETUNE_DEFAULT_TOLERATIONS, value: {{ include "finetune-operator.json" $pods.tolerations | quote }}}
- {name: FINETUNE_DEFAULT_NODE_SELECTOR, value: {{ include "finetune-operator.json" $pods.nodeSelector | quote }}}
- {name: FINETUNE_DEFAULT_RUNTIME_CLASS, value: {{ $pods.runtimeClassName | quote }}}
- {name: FINETUNE_DEFAULT_POD_LABELS, value: {{ include "finetune-operator.json" $pods.podLabels | quote }}}
- {name: FINETUNE_DEFAULT_POD_ANNOTATIONS, value: {{ include "finetune-operator.json" $pods.podAnnotations | quote }}}
- {name: FINETUNE_CPU_POD_NODE_SELECTOR, value: {{ include "finetune-operator.json" .Values.trainer.cpuPods.nodeSelector | quote }}}
- {name: FINETUNE_CPU_POD_TOLERATIONS, value: {{ if kindIs "slice" .Values.trainer.cpuPods.tolerations }}{{ toJson .Values.trainer.cpuPods.tolerations | quote }}{{ else }}""{{ end }}}
- {name: FINETUNE_NODE_AVOIDANCE, value: {{ .Values.trainer.nodeAvoidance | quote }}}
- {name: FINETUNE_NODE_SHUTDOWN_SECONDS, value: {{ include "finetune-operator.scalar" .Values.trainer.nodeShutdownSeconds | quote }}}
- {name: FINETUNE_DEFAULT_START_DEADLINE_SECONDS, value: {{ include "finetune-operator.scalar" $pods.startDeadlineSeconds | quote }}}
- {name: FINETUNE_DEFAULT_ACTIVE_DEADLINE_SECONDS, value: {{ include "finetune-operator.scalar" $pods.activeDeadlineSeconds | quote }}}
- {name: FINETUNE_DEFAULT_TTL_SECONDS_AFTER_FINISHED, value: {{ include "finetune-operator.scalar" $pods.ttlSecondsAfterFinished | quote }}}
- {name: FINETUNE_SIMULATED_GPUS, value: {{ .Values.trainer.simulatedGpus | quote }}}
{{- if .Values.release.enabled }}
- {name: FINETUNE_RELEASES, value: "true"}
{{- end }}
- {name: FINETUNE_WATCH_NAMESPACES, value: {{ join "," .Values.watchNamespaces | quote }}}
- {name: FINETUNE_ALLOWED_IMAGES, value: {{ join "," .Values.allowed.images | quote }}}
- {name: FINETUNE_ALLOWED_SERVICE_ACCOUNTS, value: {{ join "," .Values.allowed.serviceAccounts | quote }}}
- {name: FINETUNE_ALLOWED_PRIORITY_CLASSES, value: {{ join "," .Values.allowed.priorityClasses | quote }}}
- {name: FINETUNE_ALLOWED_WORKLOAD_PRIORITY_CLASSES, value: {{ join "," .Values.allowed.workloadPriorityClasses | quote }}}
- {name: FINETUNE_ALLOWED_RUNTIME_CLASSES, value: {{ join "," .Values.allowed.runtimeClasses | quote }}}
- {name: FINETUNE_ALLOWED_TOLERATIONS, value: {{ join "," .Values.allowed.tolerations | quote }}}
- {name: FINETUNE_ALLOWED_NODE_SELECTORS, value: {{ join "," .Values.allowed.nodeSelectors | quote }}}
- {name: FINETUNE_ALLOWED_MODEL_CACHE_CLAIMS, value: {{ join "," .Values.allowed.modelCacheClaims | quote }}}
- {name: FINETUNE_ALLOWED_SOURCE_CLAIMS, value: {{ join "," .Values.allowed.sourceClaims | quote }}}
- {name: FINETUNE_MAX_GRACE_PERIOD_SECONDS, value: {{ include "finetune-operator.scalar" .Values.allowed.maxGracePeriodSeconds | quote }}}
- {name: FINETUNE_ALLOWED_ENV, value: {{ join "," .Values.allowed.env | quote }}}
- {name: FINETUNE_ALLOWED_POD_ANNOTATIONS, value: {{ join "," .Values.allowed.podAnnotations | quote }}}
- {name: FINETUNE_ALLOWED_POD_LABELS, value: {{ join "," .Values.allowed.podLabels | quote }}}
- {name: FINETUNE_ALLOWED_STORAGE_ENDPOINTS, value: {{ join "," .Values.allowed.storageEndpoints | quote }}}
- {name: FINETUNE_ALLOWED_STORAGE_PREFIXES, value: {{ join "," .Values.allowed.storagePrefixes | quote }}}
- {name: FINETUNE_DEFAULT_STORAGE_ENDPOINT, value: {{ .Values.defaultStorage.endpoint | quote }}}
- {name: FINETUNE_DEFAULT_STORAGE_REGION, value: {{ .Values.defaultStorage.region | quote }}}
- {name: FINETUNE_DEFAULT_STORAGE_FORCE_PATH_STYLE, value: {{ include "finetune-operator.scalar" .Values.defaultStorage.forcePathStyle | quote }}}
- {name: FINETUNE_DEFAULT_STORAGE_CREDENTIALS_SECRET, value: {{ .Values.defaultStorage.credentialsSecret | quote }}}
- {name: FINETUNE_DEFAULT_STORAGE_CA_SECRET, value: {{ .Values.defaultStorage.caSecret | quote }}}
- {name: FINETUNE_ALLOWED_HUB_ENDPOINTS, value: {{ join "," .Values.allowed.hubEndpoints | quote }}}
- {name: FINETUNE_ALLOWED_REGISTRY_ENDPOINTS, value: {{ join "," .Values.allowed.registryEndpoints | quote }}}
- {name: FINETUNE_ALLOWED_TRACKING_ENDPOINTS, value: {{ join "," .Values.allowed.trackingEndpoints | quote }}}
- {name: FINETUNE_ALLOWED_REWARD_ENDPOINTS, value: {{ join "," .Values.allowed.rewardEndpoints | quote }}}
- {name: FINETUNE_ALLOWED_RELEASE_ENDPOINTS, value: {{ join "," .Values.allowed.releaseEndpoints | quote }}}
- {name: FINETUNE_DEFAULT_HUB_ENDPOINT, value: {{ .Values.defaultHub.endpoint | quote }}}
- {name: FINETUNE_DEFAULT_HUB_CA_SECRET, value: {{ .Values.defaultHub.caSecret | quote }}}
- {name: FINETUNE_DEFAULT_HUB_TOKEN_SECRET, value: {{ .Values.defaultHub.tokenSecret | quote }}}
- {name: FINETUNE_HTTP_PROXY, value: {{ .Values.proxy.http | quote }}}
- {name: FINETUNE_HTTPS_PROXY, value: {{ .Values.proxy.https | quote }}}
- {name: FINETUNE_NO_PROXY, value: {{ .Values.proxy.noProxy | quote }}}
{{- with .Values.networkPolicy }}
- {name: FINETUNE_ISOLATE_TRAINING_PODS, value: {{ .trainingPods | quote }}}
{{- if .enabled }}
- {name: FINETUNE_PROGRESS_CLIENTS, value: {{ include "finetune-operator.progressClients" $ | fromYamlArray | toJson | quote }}}
{{- end }}
{{- if .egress.enabled }}
- {name: FINETUNE_POD_EGRESS, value: {{ default list .egress.rules | toJson | quote }}}
- {name: FINETUNE_DNS_PORTS, value: {{ join "," .dnsPorts | quote }}}
{{- end }}
{{- end }}
- {name: FINETUNE_PROGRESS_INTERVAL_SECONDS, value: {{ include "finetune-operator.scalar" .Values.progressIntervalSeconds | quote }}}
- {name: FINETUNE_FINISHED_JOB_METRICS_SECONDS, value: {{ int .Values.monitoring.finishedJobSeconds | quote }}}
- {name: FINETUNE_RESYNC_SECONDS, value: {{ int .Values.resyncSeconds | quote }}}
- {name: FINETUNE_WORKERS, value: {{ int .Values.workers | quote }}}
- {name: FINETUNE_API_QPS, value: {{ include "finetune-operator.scalar" .Values.apiQps | quote }}}
- {name: FINETUNE_API_BURST, value: {{ int .Values.apiBurst | quote }}}
- {name: FINETUNE_LOG_FORMAT, value: {{ .Values.logFormat | quote }}}
- {name: FINETUNE_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
- {name: FINETUNE_LEASE_NAMESPACE, value: {{ .Release.Namespace | quote }}}
- {name: FINETUNE_LEASE_NAME, value: {{ include "finetune-operator.fullname" . | quote }}}
- name: FINETUNE_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end }}
