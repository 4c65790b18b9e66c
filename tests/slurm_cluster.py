"""A real Slurm of three nodes, each a process of this machine, for tests."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = 3
NODE_TIMEOUT_SECONDS = 20
# From SIGTERM to SIGKILL of jobs of partition `main` whose nodes one of `urgent` needs.
GRACE_SECONDS = 600


def is_installed() -> bool:
    return os.geteuid() == 0 and all(shutil.which(name) for name in PROGRAMS)


@contextlib.contextmanager
def slurm(folder: pathlib.Path):
    """Runs Slurm with its files and ports apart; yields the environment of its commands."""
    host = socket.gethostname().partition(".")[0]
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    socket_path = folder / "munge.socket"
    ports = _free_ports(1 + NODES)
    conf = folder / "slurm.conf"
    conf.write_text(
        f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={socket_path}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout={NODE_TIMEOUT_SECONDS}
SchedulerParameters=sched_interval=1
NodeName=node[1-{NODES}] NodeAddr=127.0.0.1 NodeHostname={host} \\
  Port={",".join(map(str, ports[1:]))} CPUs=4 RealMemory=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={GRACE_SECONDS}
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
    )
    env = {**os.environ, "SLURM_CONF": os.fspath(conf)}
    with contextlib.ExitStack() as stack:
        munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key"]
        munge += [f"--socket={socket_path}", f"--pid-file={folder}/munged.pid"]
        munge += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
        stack.enter_context(_running(munge, env))
        _until(socket_path.exists)
        stack.enter_context(_running(["slurmctld", "-D", "-f", os.fspath(conf)], env))
        for i in range(1, NODES + 1):
            stack.enter_context(node(f"node{i}", env))
        idle = ["sinfo", "--noheader", "--format=%D", "--states=idle"]
        _until(lambda: _output(idle, env) == str(NODES))
        yield env


def state(job: str, env: dict[str, str]) -> dict[str, str]:
    """Returns what `scontrol show job` says."""
    words = _output(["scontrol", "--oneliner", "show", "job", job], env).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_for(job: str, env: dict[str, str], *states: str, seconds: float = 90) -> dict[str, str]:
    """Waits until the job is in one of the states."""
    _until(lambda: state(job, env)["JobState"] in states, seconds)
    return state(job, env)


def lose_node(name: str, env: dict[str, str]) -> None:
    """Kills the daemon of a node, and all that the jobs have there."""
    parents, lost = {}, []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environ = (folder / "environ").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
            parent = int(status.partition("PPid:")[2].split()[0])
            parents[int(folder.name)] = parent, words[0]
            # Other clusters of this machine may have nodes of this name.
            if f"SLURM_CONF={env['SLURM_CONF']}".encode() not in environ:
                continue
            if f"SLURMD_NODENAME={name}".encode() in environ or words[:4] == [
                *(b"slurmd", b"-D", b"-N", name.encode()),
            ]:
                lost.append(int(folder.name))
    steps = [pid for pid, (_, program) in parents.items() if program.startswith(b"slurmstepd")]
    lost += [pid for pid in steps if any(parents[task][0] == pid for task in lost)]
    for pid in lost:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def node(name: str, env: dict[str, str]):
    """Runs the daemon of a node; there, and in its tasks, the nodes have addresses."""
    hosts = pathlib.Path(env["SLURM_CONF"]).with_name("hosts")
    names = " ".join(f"node{i}" for i in range(1, NODES + 1))
    hosts.write_text(f"{pathlib.Path('/etc/hosts').read_text()}\n127.0.0.1 {names}\n")
    in_view = 'mount --bind "$0" /etc/hosts && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", in_view, os.fspath(hosts)]
    command += ["slurmd", "-D", "-N", name, "-f", env["SLURM_CONF"]]
    with _running(command, env):
        yield


def _output(command, env):
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


@contextlib.contextmanager
def _running(command, env):
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _until(condition, timeout=90):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.CalledProcessError):
            if condition():
                return
        time.sleep(0.3)
    raise TimeoutError("Slurm did not get there")


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
