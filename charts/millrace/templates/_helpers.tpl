{{/* Names, labels, and what several templates say alike. Sections are read as ((.Values.a).b): `helm upgrade --reuse-values`
     from an older version of this chart has none of the newer ones. */}}

{{- define "millrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "millrace.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains (include "millrace.name" .) .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "millrace.name" .) | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Names of what has no namespace: releases of one name in two namespaces must not share it. */}}
{{- define "millrace.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "millrace.fullname" .) }}
{{- end }}

{{- define "millrace.serviceAccount" -}}
{{- if dig "create" true (.Values.serviceAccount | default dict) }}
{{- default (include "millrace.fullname" .) ((.Values.serviceAccount).name) }}
{{- else }}
{{- default "default" ((.Values.serviceAccount).name) }}
{{- end }}
{{- end }}

{{/* The pods of pipelines have the name `millrace`: the operator's must not be selected with them. */}}
{{- define "millrace.selector" -}}
app.kubernetes.io/name: millrace-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "millrace.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: millrace
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
{{ include "millrace.commonLabels" . }}
{{- end }}

{{/* Labels of what is neither the operator nor a pipeline: (dict "root" $ "component" "…"). */}}
{{- define "millrace.labelsOf" -}}
app.kubernetes.io/name: millrace-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{ include "millrace.commonLabels" .root }}
{{- end }}

{{- define "millrace.image" -}}
{{- printf "%s:%s" (default "millrace/operator" ((.Values.image).repository)) (default .Chart.AppVersion ((.Values.image).tag)) }}
{{- end }}

{{- define "millrace.pullPolicy" -}}
{{- default "IfNotPresent" ((.Values.image).pullPolicy) }}
{{- end }}

{{- define "millrace.podSecurityContext" -}}
{{- if hasKey .Values "podSecurityContext" }}
{{- toYaml .Values.podSecurityContext }}
{{- else }}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end }}
{{- end }}

{{- define "millrace.securityContext" -}}
{{- if hasKey .Values "securityContext" }}
{{- toYaml .Values.securityContext }}
{{- else }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}
{{- end }}

{{/* Of the pods that look once and end. */}}
{{- define "millrace.checkResources" -}}
{{- if hasKey (.Values.checks | default dict) "resources" }}
{{- toYaml .Values.checks.resources }}
{{- else }}
requests: { cpu: 10m, memory: 32Mi }
limits: { memory: 128Mi }
{{- end }}
{{- end }}

{{/* What tells the operator, and the check before an uninstall, whose pipelines are its own. */}}
{{- define "millrace.identity" -}}
- { name: MILLRACE_OPERATOR_RELEASE, value: {{ .Release.Name | quote }} }
- { name: MILLRACE_OPERATOR_NAMESPACE, value: {{ .Release.Namespace | quote }} }
- { name: MILLRACE_WATCH_NAMESPACES, value: {{ join "," (.Values.watchNamespaces | default list | uniq) | quote }} }
- { name: MILLRACE_LOG, value: {{ default "info,kube=warn,hyper=warn" ((.Values.log).filter) | quote }} }
- { name: MILLRACE_LOG_FORMAT, value: {{ default "json" ((.Values.log).format) | quote }} }
{{- end }}

{{/* How the pods of this chart that run the operator's image are placed and secured. */}}
{{- define "millrace.podPlace" -}}
{{- /* A Service called millrace-… would put MILLRACE_… variables into every pod beside it. */}}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "millrace.podSecurityContext" . | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "millrace.devName" -}}
{{- default (printf "%s-dev" .Release.Name) ((.Values.dev).name) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The name of a Secret of the development servers: (dict "root" $ "of" "redis", "postgres" or "key"). */}}
{{- define "millrace.devSecret" -}}
{{- $values := index (.root.Values.dev | default dict) .of | default dict }}
{{- default (printf "%s-%s" (include "millrace.devName" .root) .of) $values.existingSecret }}
{{- end }}
