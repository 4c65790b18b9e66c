"""The manifest of a JobSet, and what is done with it."""

import pytest
import yaml
from stand_ins import shown

NAME = ["--name=prc-k2"]
RUN = [
    *(*NAME, "--image=europe-docker.pkg.dev/project/images/vmoe_prc:1.0"),
    *("--accelerator=tpu-v5-lite-podslice", "--topology=4x8", "--service_account=trainer"),
    *("--config=configs/imagenet_prc.py:k=2", "--workdir=gs://bucket/prc-k2"),
    "--data_dir=gs://bucket/tfds",
]
OVERRIDES = [
    "--config.model.encoder.moe.layers=(3, 5)",
    '--config.description=it\'s "$HOME": \\ # - {} $(HOSTNAME) é',
    "--config.mixup=",
]


def test_the_manifest(stand_ins):
    result = stand_ins.run("gke_jobset.sh", "render", *RUN, "--", *OVERRIDES)
    assert result.returncode == 0, result.stderr
    jobset = yaml.safe_load(result.stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "prc-k2"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    # 32 chips on hosts of 4; one that fails ends the job, which the JobSet starts again.
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (8, 8, 0)
    assert job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == [
        *("env", "TFDS_DATA_DIR=gs://bucket/tfds", "python", "-m", "vmoe_prc.main"),
        *("--config=configs/imagenet_prc.py:k=2", "--workdir=gs://bucket/prc-k2"),
        # Kubernetes makes one $ of two.
        *(word.replace("$(", "$$(") for word in OVERRIDES),
    ]


def test_what_is_applied_is_what_is_rendered_and_shown(stand_ins):
    rendered = stand_ins.run("gke_jobset.sh", "render", *RUN, "--", *OVERRIDES).stdout
    dry = stand_ins.run("gke_jobset.sh", "apply", *RUN, "--dry_run", "--", *OVERRIDES)
    assert stand_ins.calls == []
    first, *lines = dry.stdout.splitlines(keepends=True)
    assert first == "kubectl --namespace=default apply --filename=- <<'EOF'\n"
    assert "".join(lines) == rendered + "EOF\n"
    stand_ins.run("gke_jobset.sh", "apply", *RUN, "--", *OVERRIDES)
    (call,) = stand_ins.calls
    assert call["input"] == rendered
    assert call["argv"] == ["kubectl", "--namespace=default", "apply", "--filename=-"]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("logs", ["logs --follow --tail=100 --selector={pods},{index}=0"]),
        ("status", ["get jobset prc-k2", "get pods --selector={pods} --output=wide"]),
        ("stop", ["delete jobset prc-k2"]),
    ],
)
def test_other_actions(stand_ins, action, expected):
    labels = {
        "pods": "jobset.sigs.k8s.io/jobset-name=prc-k2",
        "index": "batch.kubernetes.io/job-completion-index",
    }
    dry = stand_ins.run("gke_jobset.sh", action, *NAME, "--namespace=research", "--dry_run")
    assert stand_ins.run("gke_jobset.sh", action, *NAME, "--namespace=research").returncode == 0
    words = [text.format(**labels).split() for text in expected]
    assert stand_ins.commands == [["kubectl", "--namespace=research", *w] for w in words]
    assert shown(dry) == stand_ins.commands


def test_stops_where_kubectl_fails(stand_ins):
    stand_ins.program("kubectl", "sys.exit(4)")
    assert stand_ins.run("gke_jobset.sh", "apply", *RUN).returncode == 4
    assert stand_ins.run("gke_jobset.sh", "status", *NAME).returncode == 4
    assert len(stand_ins.calls) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--image=a b", "--image = 'a b': expected the name of a container image"),
        ("--topology=4", "--topology = '4': expected such as 4x4"),
        ("--chips_per_host=5", "must divide the 32 chips"),
        ("--accelerator=nvidia", "--accelerator"),
        ("--namespace=a;b", "--namespace"),
        ("--workdir=/local", "expected gs://BUCKET/PATH"),
    ],
)
def test_what_is_refused(stand_ins, option, message):
    stand_ins.refuses(message, "gke_jobset.sh", "apply", *RUN, option)
