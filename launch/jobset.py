"""Prints the manifest of a run on Kubernetes, for `kubectl create -f -`.

    python launch/jobset.py tpu --name=prc-k2 --image=IMAGE --accelerator=tpu-v5-lite-podslice \
        --topology=4x4 --hosts=4 --chips=4 -- --config=configs/imagenet_prc.py:k=2 \
        --workdir=gs://my-bucket/prc-k2 --config.model.dtype=bfloat16 | kubectl create -f -

It is `jobset_tpu.yaml` or `jobset_gpu.yaml` with the values of its options; what else differs on
your cluster, change there. What follows `--` goes to vmoe_prc.main as it is, or, with
`--program=study` and `--only=I`, to vmoe_prc.study, of which it carries out one run.
"""

import argparse
import json
import pathlib
import re
import sys

import yaml

LAUNCH = pathlib.Path(__file__).parent


def manifest(options: argparse.Namespace) -> dict:
    """Fills in the template of the options."""
    tree = yaml.safe_load((LAUNCH / f"jobset_{options.kind}.yaml").read_text())
    tree["metadata"]["name"] = options.name
    workers = tree["spec"]["replicatedJobs"][0]
    workers["replicas"] = options.slices
    job = workers["template"]["spec"]
    job["parallelism"] = job["completions"] = options.hosts
    pod = job["template"]["spec"]
    pod["serviceAccountName"] = options.service_account
    [container] = pod["containers"]
    container["image"] = options.image
    container["command"][-1] = f"vmoe_prc.{options.program}"
    [resource] = container["resources"]["limits"]
    container["resources"]["limits"][resource] = options.chips
    if options.kind == "tpu":
        pod["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": options.accelerator,
            "cloud.google.com/gke-tpu-topology": options.topology,
        }
        container["args"] = []
    elif options.accelerator:
        pod["nodeSelector"] = {"cloud.google.com/gke-accelerator": options.accelerator}
    container["args"].append(f"--num_processes={options.hosts * options.slices}")
    # Kubernetes would replace $(NAME) by an environment variable.
    container["args"] += [word.replace("$(", "$$(") for word in options.flags]
    variables = [{"name": name, "value": value} for name, value in options.env]
    container["env"] = container.get("env", []) + variables
    return tree


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line; a value that Kubernetes would refuse ends the program."""
    own, separator, flags = _split(arguments)
    parser = argparse.ArgumentParser(
        usage="%(prog)s {tpu,gpu} OPTIONS -- FLAGS OF THE PROGRAM", allow_abbrev=False
    )
    parser.add_argument("kind", choices=["tpu", "gpu"])
    name = "up to 40 lower-case letters, digits and '-', a letter first"
    parser.add_argument(
        "--name", required=True, type=_matching("[a-z]([-a-z0-9]{0,38}[a-z0-9])?"), help=name
    )
    parser.add_argument("--program", choices=["main", "study", "analyze"], default="main")
    parser.add_argument("--image", required=True, type=_matching(r"[a-z0-9][-\w./:@]*"))
    parser.add_argument("--hosts", required=True, type=_count, help="hosts of a slice, or nodes")
    parser.add_argument("--chips", required=True, type=_count, help="TPU chips or GPUs of a host")
    parser.add_argument("--slices", default=1, type=_count, help="slices of TPUs")
    label = _matching(r"[a-zA-Z0-9]([-\w.]{0,61}[a-zA-Z0-9])?")
    parser.add_argument("--accelerator", type=label, help="label of the nodes on GKE")
    parser.add_argument("--topology", type=_matching(r"\d+x\d+(x\d+)?"), help="such as 4x4")
    parser.add_argument(
        "--service_account", default="default", type=_matching("[a-z0-9][-a-z0-9.]*")
    )
    parser.add_argument("--env", action="append", default=[], type=_variable, metavar="NAME=VALUE")
    options = parser.parse_args(own)
    if not separator:
        parser.error("the flags of the program follow after --")
    if options.kind == "tpu" and not (options.accelerator and options.topology):
        parser.error("tpu needs --accelerator and --topology")
    if options.kind == "gpu" and options.slices > 1:
        parser.error("--slices is for tpu")
    options.flags = flags
    return options


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:index], arguments[index : index + 1], arguments[index + 1 :]


def _matching(pattern: str):
    def parse_text(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} does not match {pattern}")
        return text

    return parse_text


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value.replace("$(", "$$(")


if __name__ == "__main__":
    # JSON: what YAML takes for a number, a boolean or null differs between its versions.
    print(json.dumps(manifest(parse(sys.argv[1:])), indent=2))
