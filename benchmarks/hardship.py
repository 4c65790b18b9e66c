"""Trains where files cannot be written, opened or found, and looks at how runs end.

    python -m benchmarks.hardship

For each hardship a small run is started with it, until it ends: files may not grow (as on a full
disk, at several sizes), few files may be open at once, the work directory is read-only, or is
removed, renamed or its file system filled in the middle. The run must end well, or with one
line and no traceback; then the same command, without the hardship, must finish with the same bits
as an undisturbed run. Prints a table; exit status 1 if a case does not end so. On CPU. A read-only
directory stops only users other than root, and filling a file system needs root.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from benchmarks import soak
from vmoe_prc.errors import PREEMPTED_STATUS

STEPS = 12
DISK_BYTES = 4 * 2**20
# Sizes from a few lines of metrics to a whole checkpoint.
FILE_SIZES = (0, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
OPEN_FILES = (24, 32, 48, 64, 100)
# 1: cannot continue; 2: files cannot be used.
STATUSES = (0, 1, 2, PREEMPTED_STATUS)


@dataclasses.dataclass(frozen=True)
class Hardship:
    """What is done to a run.

    Attributes:
      limit: Name of a limit of `resource` for the process of the run, and its value.
      disturb: Called after its first checkpoint, with its work directory.
      prepare: Called before it starts, with its work directory.
      disk: Whether its work directory is on a small file system.
      lost_metrics: Whether it takes away metrics that were written.
    """

    limit: tuple[str, int] | None = None
    disturb: Callable[[pathlib.Path], None] | None = None
    prepare: Callable[[pathlib.Path], None] | None = None
    disk: bool = False
    lost_metrics: bool = False


def remove(workdir: pathlib.Path) -> None:
    """Removes the work directory."""
    shutil.rmtree(workdir, ignore_errors=True)


def rename(workdir: pathlib.Path) -> None:
    """Renames the work directory."""
    workdir.rename(workdir.with_name("renamed"))


def remove_checkpoints(workdir: pathlib.Path) -> None:
    """Removes the directory of the checkpoints."""
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def fill(workdir: pathlib.Path) -> None:
    """Fills the file system."""
    with contextlib.suppress(OSError), (workdir.parent / "ballast").open("wb") as file:
        while True:
            file.write(bytes(2**14))
            file.flush()


def make_read_only(workdir: pathlib.Path) -> None:
    """Lets nobody write."""
    workdir.mkdir()
    workdir.chmod(0o555)


HARDSHIPS = {
    **{f"no file over {size:,} bytes": Hardship(("RLIMIT_FSIZE", size)) for size in FILE_SIZES},
    **{f"{count} open files": Hardship(("RLIMIT_NOFILE", count)) for count in OPEN_FILES},
    "removed": Hardship(disturb=remove, lost_metrics=True),
    "renamed": Hardship(disturb=rename),
    "checkpoints removed": Hardship(disturb=remove_checkpoints),
    "read-only": Hardship(prepare=make_read_only),
    "full": Hardship(disturb=fill, disk=True),
}


# Sets a limit, and becomes the program.
_LIMITED = """
import os, resource, sys
name, value, *arguments = sys.argv[1:]
resource.setrlimit(getattr(resource, name), (int(value), int(value)))
os.execv(sys.executable, [sys.executable, *arguments])
"""


def start(
    workdir: pathlib.Path, folder: pathlib.Path, limit: tuple[str, int] | None = None
) -> tuple[subprocess.Popen, pathlib.Path]:
    """Starts a run in a process; returns it with the file of its log."""
    log = folder / f"log{len(list(folder.glob('log*')))}.txt"
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TFDS_DATA_DIR": str(folder / "data"),
    }
    arguments = ["-m", "vmoe_prc.main", f"--config={soak.__file__}:{STEPS}"]
    with log.open("w") as file:
        # The limit is not for the log.
        copy = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
    name, value = limit or ("RLIMIT_CORE", 0)
    process = subprocess.Popen(
        [sys.executable, "-c", _LIMITED, name, str(value), *arguments, f"--workdir={workdir}"],
        stdout=copy.stdin,
        stderr=copy.stdin,
        env={**os.environ, **environment},
    )
    copy.stdin.close()
    return process, log


def try_hardship(name: str, folder: pathlib.Path) -> tuple[str, list[str]]:
    """Runs a case; returns its row of the table, and what did not end as it should."""
    hardship = HARDSHIPS[name]
    with _place(hardship.disk, folder / re.sub(r"\W+", "-", name)) as place:
        workdir = place / "run"
        if hardship.prepare:
            hardship.prepare(workdir)
        process, log = start(workdir, folder, hardship.limit)
        while hardship.disturb and process.poll() is None:
            names = [p.name for p in (workdir / "checkpoints").glob("*")]
            if any(map(str.isdigit, names)):
                hardship.disturb(workdir)
                break
            time.sleep(0.02)
        status, text = process.wait(), log.read_text(errors="replace")
        faults = [] if status in STATUSES else [f"status {status}"]
        if "Traceback (most recent call last)" in text:
            faults.append(f"a traceback: {text[-2000:]}")
        lines = [line for line in text.splitlines() if line.startswith("error:")]
        if status and len(lines) != 1:
            faults.append(f"{len(lines)} lines of errors: {text[-500:]}")
        (place / "ballast").unlink(missing_ok=True)
        if (place / "renamed").exists():
            shutil.rmtree(workdir, ignore_errors=True)
            (place / "renamed").rename(workdir)
        if hardship.prepare:
            workdir.chmod(0o755)
        process, log = start(workdir, folder)
        if process.wait():
            faults.append(f"does not resume: {log.read_text(errors='replace')[-500:]}")
        else:
            faults += soak.differences(workdir, folder / "undisturbed", hardship.lost_metrics)
    said = lines[-1].replace(str(place), "") if lines else ""
    return f"| {name} | {status} | {said[:150]} |", faults


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="a regular expression; by default all")
    args = parser.parse_args(argv)
    root = not os.geteuid()
    names = [n for n, h in HARDSHIPS.items() if (root if h.disk else not (root and h.prepare))]
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        process, log = start(folder / "undisturbed", folder)
        if process.wait():
            sys.exit(log.read_text(errors="replace"))
        print("| hardship | exit status | what it says |\n| --- | --- | --- |")
        for name in names:
            if re.search(args.cases, name):
                row, faults = try_hardship(name, folder)
                print(row, *(f"FAULT: {fault}" for fault in faults), sep="\n", flush=True)
                failed |= bool(faults)
    return int(failed)


@contextlib.contextmanager
def _place(disk: bool, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder, and a small file system in it where the case needs one."""
    folder.mkdir()
    if not disk:
        yield folder
        return
    size = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
