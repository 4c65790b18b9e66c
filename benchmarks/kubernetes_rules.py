"""Looks at what Kubernetes makes of the exit statuses of a run, in the place of its nodes.

    KUBECONFIG=... python -m benchmarks.kubernetes_rules

Creates the JobSets and the study of `launch/` at an API server, in a namespace that it deletes
afterwards, ends their pods with the statuses of each case, and prints how each ends, in Markdown;
exit status 1 if one ends otherwise. Needs kubectl and the controllers of Kubernetes and JobSet.
There must be no scheduler and no kubelet: this program places the pods on two nodes in name only.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from vmoe_prc.errors import PREEMPTED_STATUS
from vmoe_prc.workdir.text_tables import markdown_lines

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
NAMESPACE = f"vmoe-prc-rules-{os.getpid()}"
# One for each slice of TPUs.
NODES = ("vmoe-prc-rules-0", "vmoe-prc-rules-1")
# A pod that is evicted, or whose node dies.
DISRUPTED = -1
LABEL = "jobset.sigs.k8s.io"
INDEX = "batch.kubernetes.io/job-completion-index"

Pod = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class JobSetCase:
    """A run, and how it has to end.

    Attributes:
      kind: "gpu", of two hosts; "tpu", of two slices with four hosts each.
      statuses: Statuses of one process in the first attempts; afterwards all end with 0.
      ends: "Completed" or "Failed".
      restarts: How many times all pods have to start anew.
      counted: How many of these may count towards the limit.
    """

    kind: str
    statuses: tuple[int, ...]
    ends: str
    restarts: int
    counted: int


JOBSETS = {
    "finishes": JobSetCase("gpu", (), "Completed", 0, 0),
    "wrong-configuration": JobSetCase("gpu", (2,), "Failed", 0, 0),
    "interrupted": JobSetCase("gpu", (PREEMPTED_STATUS,) * 5, "Completed", 5, 0),
    "node-dies": JobSetCase("gpu", (DISRUPTED,) * 5, "Completed", 5, 0),
    "fails-and-recovers": JobSetCase("gpu", (1, 137, 134), "Completed", 3, 3),
    "fails": JobSetCase("gpu", (1,) * 9, "Failed", 3, 3),
    "slices": JobSetCase("tpu", (PREEMPTED_STATUS, 1), "Completed", 2, 1),
}
# By index of the run: the statuses of its attempts, of which the last is repeated, and how many
# attempts there have to be.
STUDY = {
    0: ((0,), 1),
    1: ((2,), 1),
    2: ((*(PREEMPTED_STATUS,) * 5, 0), 6),
    3: ((*(DISRUPTED,) * 5, 0), 6),
    4: ((1, 137, 134, 0), 4),
    5: ((1,), 4),
}
COMPLETED, FAILED = "0,2-4", "1,5"


def kubectl(*words: str, text: str | None = None) -> str:
    """Returns the output of kubectl; its error is a note of the exception."""
    command = ["kubectl", f"--namespace={NAMESPACE}", *words]
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, check=True
        ).stdout
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


def serve_pods(ended: Callable[[Pod], int | None]) -> None:
    """Starts the pods that are new, and ends those for which there is a status."""
    for pod in json.loads(kubectl("get", "pods", "--output=json"))["items"]:
        name = pod["metadata"]["name"]
        # A pod may be gone since it was listed.
        with contextlib.suppress(subprocess.CalledProcessError):
            if "deletionTimestamp" in pod["metadata"]:
                kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
            elif "nodeName" not in pod["spec"]:
                _start(pod)
            elif pod["status"]["phase"] == "Running" and (status := ended(pod)) is not None:
                _end(pod, status)


def _start(pod: Pod) -> None:
    name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name},
        "target": {"kind": "Node", "name": NODES[int(labels.get(f"{LABEL}/job-index", 0))]},
    }
    place = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/binding"
    kubectl("create", f"--raw={place}", "--filename=-", text=json.dumps(binding))
    _set_status(pod, "Running", {"running": {}})


def _end(pod: Pod, status: int) -> None:
    conditions = []
    if status == DISRUPTED:
        status = 137
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        conditions = [{**disrupted, "reason": "EvictionByEvictionAPI"}]
    phase = "Failed" if status else "Succeeded"
    _set_status(pod, phase, {"terminated": {"exitCode": status}}, conditions)


def _set_status(
    pod: Pod, phase: str, state: dict[str, Any], conditions: Sequence[dict[str, str]] = ()
) -> None:
    container = {
        "name": pod["spec"]["containers"][0]["name"],
        "image": pod["spec"]["containers"][0]["image"],
        "imageID": "none",
        "ready": phase == "Running",
        "restartCount": 0,
        "state": state,
    }
    ready = {"type": "Ready", "status": "True" if phase == "Running" else "False"}
    status = {"phase": phase, "conditions": [ready, *conditions], "containerStatuses": [container]}
    patch = json.dumps({"status": status})
    kubectl(
        "patch", "pod", pod["metadata"]["name"], "--subresource=status", "--type=merge", "-p", patch
    )


def try_jobset(name: str, seconds: float) -> tuple[str, bool]:
    """Runs a case; returns how it ended in words, and whether that is right."""
    case = JOBSETS[name]
    words = [f"--name={name}", "--image=none", "--hosts=2", "--chips=8"]
    if case.kind == "tpu":
        words += ["--hosts=4", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--slices=2"]
    command = [sys.executable, str(LAUNCH / "jobset.py"), case.kind, *words, "--", "--config=a.py"]
    manifest = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kubectl("create", "--validate=strict", "--filename=-", text=manifest)

    def ended(pod: Pod) -> int | None:
        labels = pod["metadata"]["labels"]
        if labels[f"{LABEL}/jobset-name"] != name:
            return None
        attempt = int(pod["metadata"]["annotations"][f"{LABEL}/restart-attempt"])
        if attempt >= len(case.statuses):
            return 0
        is_broken = (labels[INDEX], labels[f"{LABEL}/job-index"]) == ("1", "0")
        return case.statuses[attempt] if is_broken else None

    status: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and "terminalState" not in status:
        serve_pods(ended)
        time.sleep(0.5)
        status = json.loads(kubectl("get", "jobset", name, "--output=json")).get("status", {})
    kubectl("delete", "jobset", name, "--wait=false")
    found = (
        status.get("terminalState", "has not ended"),
        status.get("restarts", 0),
        status.get("restartsCountTowardsMax", 0),
    )
    words = f"{found[0]}, {found[1]} restarts, {found[2]} of them counted"
    return words, found == (case.ends, case.restarts, case.counted)


def try_study(seconds: float) -> tuple[str, bool]:
    """Runs the study; returns how it ended in words, and whether that is right."""
    file = f"--filename={LAUNCH / 'kubernetes_study.yaml'}"
    kubectl("create", "--dry-run=server", "--validate=strict", file)
    job = json.loads(kubectl("create", "--dry-run=client", "--output=json", file))
    job["spec"].update(completions=len(STUDY), parallelism=len(STUDY))
    created = kubectl("create", "--output=name", "--filename=-", text=json.dumps(job)).strip()
    attempts: dict[int, list[str]] = {index: [] for index in STUDY}

    def ended(pod: Pod) -> int:
        index = int(pod["metadata"]["labels"][INDEX])
        attempts[index].append(pod["metadata"]["name"])
        statuses, _ = STUDY[index]
        return statuses[min(len(attempts[index]), len(statuses)) - 1]

    status: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not status.get("conditions"):
        serve_pods(ended)
        time.sleep(0.5)
        status = json.loads(kubectl("get", created, "--output=json")).get("status", {})
    counts = {index: len(names) for index, names in attempts.items()}
    found = (status.get("completedIndexes"), status.get("failedIndexes"))
    tried = ", ".join(map(str, counts.values()))
    words = f"done: {found[0]}, failed: {found[1]}; attempts: {tried}"
    right = {index: count for index, (_, count) in STUDY.items()}
    return words, found == (COMPLETED, FAILED) and counts == right


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kubernetes_rules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600, help="limit of each case")
    args = parser.parse_args(argv)
    rows, failed = [["run", "statuses of one process", "end"]], False
    kubectl("create", "namespace", NAMESPACE)
    try:
        for node in NODES:
            metadata = {"name": node, "labels": {"cloud.google.com/gke-nodepool": node}}
            manifest = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
            kubectl("create", "--filename=-", text=json.dumps(manifest))
        for name, case in JOBSETS.items():
            words, is_right = try_jobset(name, args.seconds)
            rows.append([name, _listed(case.statuses), words])
            failed |= not is_right
        words, is_right = try_study(args.seconds)
        rows.append(["study", "; ".join(_listed(s) for s, _ in STUDY.values()), words])
        failed |= not is_right
    finally:
        # Nobody else says that the pods of these nodes have ended.
        kubectl("delete", "jobset,job", "--all", "--wait=false")
        kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        kubectl("delete", "node", "--ignore-not-found", *NODES)
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    print("\n".join(markdown_lines(rows)))
    return int(failed)


def _listed(statuses: Sequence[int]) -> str:
    return ", ".join("evicted" if s == DISRUPTED else str(s) for s in statuses)


if __name__ == "__main__":
    sys.exit(main())
