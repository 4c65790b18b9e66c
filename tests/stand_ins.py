"""Programs of clusters that record how they are called, for the tests of launch/."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

# Flags by command, from the reference pages of the programs; `*` where we check no flags.
FLAGS = {
    "gcloud compute tpus queued-resources create": (
        "accelerator-type async boot-disk data-disk description guaranteed internal-ips labels "
        "metadata metadata-from-file network node-count node-id node-prefix project range reserved "
        "runtime-version scopes service-account spot subnetwork tags topology type zone"
    ),
    "gcloud compute tpus queued-resources list": "filter format limit page-size project zone",
    "gcloud compute tpus queued-resources delete": "async force project quiet zone",
    "gcloud compute tpus tpu-vm ssh": (
        "command dry-run internal-ip output-directory plain project ssh-flag ssh-key-file worker "
        "zone"
    ),
    "gcloud compute tpus tpu-vm scp": (
        "compress dry-run internal-ip plain project recurse scp-flag ssh-key-file worker zone"
    ),
    "git": "format output",
    "kubectl": "filename follow namespace output selector tail",
    "sbatch": (
        "account chdir cpus-per-task gpus-per-node job-name nodes ntasks-per-node open-mode output "
        "partition requeue signal time"
    ),
    "scancel": "me name",
    "scontrol": "",
    "squeue": "format jobs me name noheader",
    "srun": "cpus-per-task wait",
}

# Records the call, then does what the test says in `$STAND_INS/PROGRAM.py`, if anything.
PROGRAM = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["STAND_INS"])
name = pathlib.Path(sys.argv[0]).name
call = {{"argv": [name, *sys.argv[1:]]}}
if "--filename=-" in sys.argv:
    call["input"] = sys.stdin.read()
with (folder / "calls").open("a") as file:
    file.write(json.dumps(call) + "\\n")
behaviour = folder / (name + ".py")
if behaviour.exists():
    exec(behaviour.read_text())
"""


class StandIns:
    """Stand-ins on the PATH of the scripts that it runs.

    Args:
      folder: Where they and their records are.
    """

    def __init__(self, folder):
        self.folder = folder
        for name in ("gcloud", "git", "kubectl", "sbatch", "scancel", "scontrol", "squeue", "srun"):
            self.program(name)
        self.env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "STAND_INS": str(folder),
            "TMPDIR": str(folder),
        }

    def program(self, name, behaviour=""):
        """Puts a program on the PATH that also runs some Python."""
        path = self.folder / name
        path.write_text(PROGRAM.format(python=sys.executable))
        path.chmod(0o755)
        (self.folder / f"{name}.py").write_text(behaviour)

    def run(self, script, *arguments, env=None):
        """Runs a script of launch/ to its end."""
        return subprocess.run(
            [ROOT / "launch" / script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self.env | (env or {}),
            timeout=60,
        )

    def refuses(self, message, script, *arguments):
        """Checks that a script ends with one line that says why, before it calls anything."""
        result = self.run(script, *arguments)
        assert result.returncode == 2
        assert message in result.stderr and result.stderr.count("\n") == 1
        assert self.calls == []

    @property
    def calls(self):
        """What has been called, one dict a call, with its `argv`."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def commands(self):
        """The words of the calls to clusters, each checked to have only flags that exist."""
        commands = [call["argv"] for call in self.calls if call["argv"][0] != "python3"]
        for words in commands:
            check_flags(words)
        return commands


def check_flags(words):
    """Fails on flags that the program does not have."""
    known = next(
        f for command, f in FLAGS.items() if words[: len(command.split())] == command.split()
    )
    own = words
    if words[0] in ("sbatch", "srun"):
        # The first word that is no flag begins the command that they run.
        own = words[: 1 + next(i for i, w in enumerate(words[1:]) if not w.startswith("--"))]
    flags = {w.removeprefix("--").partition("=")[0] for w in own if w.startswith("--")}
    assert flags <= set(known.split()), words


def shown(result):
    """The words of the commands that a dry run has shown."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]
