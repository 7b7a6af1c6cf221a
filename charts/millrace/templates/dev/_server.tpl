{{/* What the two servers have in common: (dict "root" $ "server" "redis" "values" .Values.dev.redis "port" 6379 "container" <yaml>
     "volumes" <yaml>). Both official images run as user 999. */}}
{{- define "millrace.devSecurityContext" -}}
{{- if hasKey (.Values.dev | default dict) "podSecurityContext" }}
{{- toYaml .Values.dev.podSecurityContext }}
{{- else }}
runAsNonRoot: true
runAsUser: 999
runAsGroup: 999
fsGroup: 999
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}
{{- end }}

{{/* The Secret with the servers' certificate; empty: no TLS. */}}
{{- define "millrace.devTlsSecret" -}}
{{- with (.Values.dev).tls }}
{{- if .enabled }}
{{- default (printf "%s-tls" (include "millrace.devName" $)) .existingSecret }}
{{- end }}
{{- end }}
{{- end }}

{{/* Its volume. Postgres takes a key only if no other user may read it: the files are root's, and of the pod's group. */}}
{{- define "millrace.devTlsVolume" -}}
- { name: tls, secret: { secretName: {{ . }}, defaultMode: 288 } }
{{- end }}

{{- define "millrace.devServer" -}}
{{- $name := printf "%s-%s" (include "millrace.devName" .root) .server }}
{{- $selector := printf "app.kubernetes.io/name: millrace-dev\napp.kubernetes.io/instance: %s\napp.kubernetes.io/component: %s" .root.Release.Name .server }}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- $selector | nindent 4 }}
    {{- include "millrace.commonLabels" .root | nindent 4 }}
spec:
  selector:
    {{- $selector | nindent 4 }}
  ports:
    - { name: {{ .server }}, port: {{ .port }}, targetPort: {{ .server }} }
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- $selector | nindent 4 }}
    {{- include "millrace.commonLabels" .root | nindent 4 }}
spec:
  serviceName: {{ $name }}
  replicas: 1
  selector:
    matchLabels:
      {{- $selector | nindent 6 }}
  template:
    metadata:
      labels:
        {{- $selector | nindent 8 }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 60
      securityContext:
        {{- include "millrace.devSecurityContext" .root | nindent 8 }}
      containers:
        - name: {{ .server }}
          image: {{ printf "%s:%s" .values.image.repository .values.image.tag | quote }}
          imagePullPolicy: {{ default "IfNotPresent" .values.image.pullPolicy }}
          ports:
            - { name: {{ .server }}, containerPort: {{ .port }} }
          {{- .container | nindent 10 }}
          {{- with .values.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: { drop: [ALL] }
      {{- with .volumes }}
      volumes:
        {{- . | nindent 8 }}
      {{- end }}
  volumeClaimTemplates:
    - apiVersion: v1
      kind: PersistentVolumeClaim
      metadata:
        name: data
        labels:
          {{- $selector | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .values.storageClassName }}
        storageClassName: {{ . | quote }}
        {{- end }}
        resources:
          requests:
            storage: {{ .values.storage }}
{{- end }}
