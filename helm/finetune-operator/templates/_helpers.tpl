{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* A Service's name has no dot, which a release's name may have, and begins with a letter. */}}
{{- define "finetune-operator.fullname" -}}
{{- $name := include "finetune-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- $name = .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- $name = .Release.Name }}
{{- else }}
{{- $name = printf "%s-%s" .Release.Name $name }}
{{- end }}
{{- $name = replace "." "-" $name }}
{{- if regexMatch "^[0-9]" $name }}
{{- $name = printf "r-%s" $name }}
{{- end }}
{{- $name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels of an object. Takes a list: the chart's root, and maps of further labels, each key once; the last map wins. */}}
{{- define "finetune-operator.labelsWith" -}}
{{- $root := first . }}
{{- $labels := include "finetune-operator.selectorLabels" $root | fromYaml }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version) }}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- range prepend (rest .) $root.Values.commonLabels }}
{{- range $name, $value := . }}
{{- $_ := set $labels $name $value }}
{{- end }}
{{- end }}
{{- toYaml $labels }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{- include "finetune-operator.labelsWith" (list .) }}
{{- end }}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "finetune-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* repository@digest, or repository:tag. Takes {image, appVersion}. */}}
{{- define "finetune-operator.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .appVersion .image.tag) }}
{{- end }}
{{- end }}

{{/* NetworkPolicyPeers: the trainers in the namespaces that are served. */}}
{{- define "finetune-operator.trainers" -}}
- namespaceSelector:
    {{- with .Values.watchNamespaces }}
    matchExpressions:
    - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
    {{- else }}
    {}
    {{- end }}
  podSelector:
    matchLabels:
      app.kubernetes.io/managed-by: finetune-operator
    matchExpressions:
    - {key: app.kubernetes.io/component, operator: In, values: [trainer, merge]}
{{- end }}

{{/* NetworkPolicyPeers: the operator, and who may scrape metrics. */}}
{{- define "finetune-operator.progressClients" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ .Release.Namespace | quote }}
  podSelector:
    matchLabels:
      {{- include "finetune-operator.selectorLabels" . | nindent 6 }}
{{- with .Values.networkPolicy.scrapers }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A number, switch or text as text; nothing for "" and for a value that is left out. A number in a values file is a float,
which prints as 1.00065e+09, and as digits in JSON. */}}
{{- define "finetune-operator.scalar" -}}
{{- if kindIs "string" . }}{{ . }}{{ else if not (kindIs "invalid" .) }}{{ toJson . }}{{ end }}
{{- end }}

{{/* A list or map as JSON; nothing for an empty one. */}}
{{- define "finetune-operator.json" -}}
{{- with . }}{{ toJson . }}{{ end }}
{{- end }}

{{/* Fails if a value is absent that has no empty form. Helm drops a key without a value before it checks the schema, and an
absent number would be 0, an absent switch off, and absent ports all ports. */}}
{{- define "finetune-operator.checkValues" -}}
{{- $empty := list }}
{{- $required := list "image.repository" "image.pullPolicy" "trainer.image.repository" "trainer.nodeAvoidance" "trainer.simulatedGpus"
  "allowed.maxGracePeriodSeconds" "crds.enabled" "crds.keep" "release.enabled" "release.kserve" "serviceAccount.create"
  "rbac.create" "rbac.aggregateToDefaultRoles" "admissionPolicy.enabled" "networkPolicy.enabled"
  "networkPolicy.apiServerPorts" "networkPolicy.dnsPorts" "networkPolicy.trainingPods" "networkPolicy.egress.enabled"
  "monitoring.operator" "monitoring.trainers" "monitoring.alerts" "monitoring.dashboards" "monitoring.interval"
  "monitoring.pendingFor" "monitoring.finishedJobSeconds" "monitoring.scrapeAnnotations" "logFormat" "logLevel"
  "progressIntervalSeconds" "resyncSeconds" "workers" "apiQps" "apiBurst" "flowSchema.enabled" "flowSchema.priorityLevel"
  "flowSchema.matchingPrecedence" "replicas" "revisionHistoryLimit" }}
{{- range $path := $required }}
{{- $value := $.Values }}
{{- range splitList "." $path }}
{{- $value = get (default dict $value) . }}
{{- end }}
{{- if has (toString $value) (list "" "<nil>") }}
{{- $empty = append $empty $path }}
{{- end }}
{{- end }}
{{- if $empty }}
{{- fail (printf "without a value in a values file: %s: set a value, or remove the line for the default" (join ", " $empty)) }}
{{- end }}
{{- end }}

{{/* The operator's rights: golden-tested, and listed in operator/README.md. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, create, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list, watch, patch]
{{- if .Values.release.enabled }}
- apiGroups: [finetune.dev]
  resources: [finetunereleases]
  verbs: [get, list, watch]
- apiGroups: [finetune.dev]
  resources: [finetunereleases/status]
  verbs: [patch]
{{- if .Values.release.kserve }}
- apiGroups: [serving.kserve.io]
  resources: [llminferenceservices]
  verbs: [get, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get]
{{- end }}
{{- end }}
{{- if or .Values.networkPolicy.trainingPods .Values.networkPolicy.egress.enabled }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, create, delete]
{{- end }}
{{- end }}
