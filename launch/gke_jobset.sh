#!/usr/bin/env bash
# Trains on a TPU slice of Google Kubernetes Engine, as a JobSet.
#
#   launch/gke_jobset.sh ACTION --name=NAME [OPTIONS] [-- FLAGS OF vmoe_prc.main]
#
# Actions:
#   render    prints the manifest
#   apply     submits it; a run that is in --workdir is resumed
#   logs      shows the log of --worker, and goes on as it grows
#   status    shows the JobSet and its pods
#   stop      deletes the JobSet: the program has the time to write a checkpoint
#
# After a preemption the JobSet starts all of its pods again, and the program resumes.
#
# Options:
#   --name=NAME              lower-case letters, digits and '-'
#   --image=IMAGE            made from launch/Dockerfile; for render, apply
#   --accelerator=TYPE       label of the nodes, such as tpu-v5-lite-podslice, tpu-v6e-slice
#   --topology=TOPOLOGY      such as 4x4 or 2x2x4
#   --chips_per_host=N       by default 4
#   --config=RECIPE          such as configs/imagenet_prc.py:k=1
#   --workdir=gs://PATH      where the run is kept
#   --data_dir=gs://PATH     where TFDS has prepared the data set
#   --service_account=NAME   of Kubernetes, which may use the bucket; by default default
#   --namespace=NAME         by default default
#   --max_restarts=N         by default 100
#   --worker=N               whose log is shown; by default 0
#   --dry_run                prints the commands instead of running them
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly LABEL='[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?'
# Seconds from SIGTERM to SIGKILL, when pods are deleted or preempted.
readonly GRACE_SECONDS=300

# A word of a command as a string of YAML.
yaml_string() {
  local text=${1//\\/\\\\}
  # Kubernetes would replace $(NAME) by a variable.
  # shellcheck disable=SC2016
  text=${text//'$('/'$$('}
  printf '"%s"' "${text//\"/\\\"}"
}

check_manifest() {
  check image '[a-z0-9][-a-zA-Z0-9._/:@]*' "the name of a container image"
  check accelerator 'tpu-[a-z0-9]+(-[a-z0-9]+)*' "such as tpu-v5-lite-podslice"
  check topology '[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?' "such as 4x4 or 2x2x4"
  check_number chips_per_host
  check_number max_restarts
  check service_account "$LABEL" "the name of a service account"
  check_bucket workdir
  [[ -z ${OPTION[data_dir]} ]] || check_bucket data_dir
  train_command python
  CHIPS=$((${OPTION[topology]//x/*}))
  ((CHIPS % OPTION[chips_per_host] == 0)) ||
    fail "--chips_per_host = ${OPTION[chips_per_host]}: must divide the $CHIPS chips of --topology"
}

manifest() {
  local hosts=$((CHIPS / OPTION[chips_per_host])) word
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${OPTION[name]}
  namespace: ${OPTION[namespace]}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${OPTION[max_restarts]}
  replicatedJobs:
  - name: workers
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $GRACE_SECONDS
            serviceAccountName: ${OPTION[service_account]}
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: ${OPTION[accelerator]}
              cloud.google.com/gke-tpu-topology: ${OPTION[topology]}
            containers:
            - name: train
              image: ${OPTION[image]}
              ports:
              - containerPort: 8471
              - containerPort: 8080
              resources:
                requests:
                  google.com/tpu: ${OPTION[chips_per_host]}
                limits:
                  google.com/tpu: ${OPTION[chips_per_host]}
              command:
EOF
  for word in "${TRAIN[@]}"; do
    printf '              - %s\n' "$(yaml_string "$word")"
  done
}

OPTION=(
  [name]="" [image]="" [accelerator]="" [topology]="" [chips_per_host]=4 [config]=""
  [workdir]="" [data_dir]="" [service_account]=default [namespace]=default [max_restarts]=100
  [worker]=0
)
parse_options "$@"
check_name
check namespace "$LABEL" "the name of a namespace"
check worker '[0-9]+' "a number"
KUBECTL=(kubectl --namespace="${OPTION[namespace]}")
PODS="jobset.sigs.k8s.io/jobset-name=${OPTION[name]}"

case $ACTION in
  render)
    check_manifest
    manifest
    ;;
  apply)
    check_manifest
    run_with_input "$(manifest)" "${KUBECTL[@]}" apply --filename=-
    ;;
  logs)
    run "${KUBECTL[@]}" logs --follow --tail=100 \
      --selector="$PODS,batch.kubernetes.io/job-completion-index=${OPTION[worker]}"
    ;;
  status)
    run "${KUBECTL[@]}" get jobset "${OPTION[name]}"
    run "${KUBECTL[@]}" get pods --selector="$PODS" --output=wide
    ;;
  stop) run "${KUBECTL[@]}" delete jobset "${OPTION[name]}" ;;
  *) fail "'$ACTION': no such action; see $0 --help" ;;
esac
