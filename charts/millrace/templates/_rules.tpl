{{/* What the operator may do where its pipelines are. docs/kubernetes.md says why, rule by rule. There is none on Secrets. */}}
{{- define "millrace.rules" -}}
- apiGroups: [millrace.dev]
  resources: [recordpipelines]
  verbs: [list, watch, patch]
- apiGroups: [millrace.dev]
  resources: [recordpipelines/status]
  verbs: [patch]
- apiGroups: [millrace.dev]
  resources: [recordpipelines/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, delete]
- apiGroups: [batch]
  resources: [cronjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, create, patch]
{{- end }}

{{/* What it may do in its own namespace: (dict "name" <the Lease>). A rule for `create` cannot name the object. */}}
{{- define "millrace.ownRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ .name }}]
  verbs: [get, patch]
{{- end }}

{{/* A role and its binding, for the whole cluster or in each watched namespace:
     (dict "root" $ "name" … "rules" … "account" … "labels" … "annotations" (dict "role" … "binding" …)). */}}
{{- define "millrace.grant" -}}
{{- $ := .root }}
{{- $grant := . }}
{{- range $namespace := (.root.Values.watchNamespaces | default (list "") | uniq) }}
{{- /* Outside the release's namespace, releases of one name must not share it. */}}
{{- $name := eq $namespace $.Release.Namespace | ternary $grant.name (printf "%s-%s" $.Release.Namespace $grant.name) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ if $namespace }}Role{{ else }}ClusterRole{{ end }}
metadata:
  name: {{ $name }}
  {{- if $namespace }}
  namespace: {{ $namespace }}
  {{- end }}
  labels:
    {{- $grant.labels | nindent 4 }}
  {{- with $grant.roleAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
rules:
  {{- $grant.rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ if $namespace }}RoleBinding{{ else }}ClusterRoleBinding{{ end }}
metadata:
  name: {{ $name }}
  {{- if $namespace }}
  namespace: {{ $namespace }}
  {{- end }}
  labels:
    {{- $grant.labels | nindent 4 }}
  {{- with $grant.bindingAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ if $namespace }}Role{{ else }}ClusterRole{{ end }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $grant.account }}
    namespace: {{ $.Release.Namespace }}
{{- end }}
{{- end }}
