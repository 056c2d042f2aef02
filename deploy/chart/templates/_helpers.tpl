{{/* The name of all objects. */}}
{{- define "typha.name" -}}
{{- if and (ne .Values.mode "own") (eq .Values.name "calico-typha") -}}
{{- fail (printf "name: calico-typha is the name of the original's objects, which stay in mode %s" .Values.mode) -}}
{{- end -}}
{{- .Values.name | default (ternary "calico-typha" "typha" (eq .Values.mode "own")) -}}
{{- end -}}

{{/* What selects the pods. A Deployment's selector cannot change, so it depends on name and mode alone. In mode own it is the
original's, so that the release can take over the original's Deployment. */}}
{{- define "typha.selector" -}}
{{- if eq .Values.mode "join" -}}
k8s-app: calico-typha
app.kubernetes.io/name: {{ include "typha.name" . }}
{{- else -}}
k8s-app: {{ include "typha.name" . }}
{{- end -}}
{{- end -}}

{{- define "typha.labels" -}}
k8s-app: {{ ternary "calico-typha" (include "typha.name" .) (eq .Values.mode "join") }}
app.kubernetes.io/name: {{ include "typha.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "typha.metadata" -}}
name: {{ include "typha.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "typha.labels" . | nindent 2 }}
{{- end -}}

{{/* Ports as JSON: client, health, metrics. */}}
{{- define "typha.ports" -}}
{{- $moved := and .Values.hostNetwork (eq .Values.mode "beside") -}}
{{- $ports := dict
  "client" (int (.Values.ports.client | default (ternary 5474 5473 $moved)))
  "health" (int (.Values.ports.health | default (ternary 9198 9098 $moved)))
  "metrics" (int (.Values.ports.metrics | default (ternary 9193 9093 $moved))) -}}
{{- if lt (len (uniq (values $ports))) 3 -}}
{{- fail (printf "ports: the client, health and metrics ports must differ: %s" (toJson $ports)) -}}
{{- end -}}
{{- toJson $ports -}}
{{- end -}}

{{- define "typha.image" -}}
{{- $repository := required "image.repository is needed: no image is published. Build one with the Dockerfile, push it, and name it" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Where the certificates come from, as JSON: the Secret and its keys, and the authorities' kind, name and key. Fails with what
is missing. */}}
{{- define "typha.certificates" -}}
{{- $tls := .Values.tls -}}
{{- if not (or $tls.clientCN $tls.clientURISAN) -}}
{{- fail "tls.clientCN or tls.clientURISAN is needed: the name that the agents' certificates have (typha-client with Calico's operator). tls.mode=none switches TLS off" -}}
{{- end -}}
{{- if eq $tls.mode "certManager" -}}
{{- $secret := printf "%s-tls" (include "typha.name" .) -}}
{{- dict "secret" $secret "certificateKey" "tls.crt" "privateKeyKey" "tls.key" "caKind" "secret" "ca" $secret "caKey" "ca.crt" | toJson -}}
{{- else -}}
{{- $secret := required "tls.secret.name is needed: the Secret with the server's certificate and key. tls.mode=certManager has it made, tls.mode=none switches TLS off" $tls.secret.name -}}
{{- if and $tls.ca.secret $tls.ca.configMap -}}
{{- fail "tls.ca.secret and tls.ca.configMap exclude each other" -}}
{{- end -}}
{{- dict "secret" $secret "certificateKey" $tls.secret.certificateKey "privateKeyKey" $tls.secret.privateKeyKey
  "caKind" (ternary "configMap" "secret" (ne $tls.ca.configMap "")) "ca" ($tls.ca.configMap | default $tls.ca.secret | default $secret) "caKey" $tls.ca.key | toJson -}}
{{- end -}}
{{- end -}}

{{/* The feeds file. */}}
{{- define "typha.feeds" -}}
{{- dict "feeds" .Values.feeds | toYaml -}}
{{- end -}}
