"""Tries configurations with wrong and extreme values, and shows every end but the allowed ones.

    python -m benchmarks.fuzz_configs --count=2000

Each configuration is the digits recipe at a size of seconds with one or two fields changed: a
wrong type, a number that is negative, zero, huge or not finite, None, a misspelt or missing
name, another choice. It may end in three ways:

* refused: one line that names the field, before anything is written;
* stopped: one line after a number that is not finite, or where files cannot be used;
* trained: to the end, with finite metrics.

A traceback, a number that is not finite in the metrics, or a configuration that takes more
than `--timeout` seconds is a fault: exit status 1. `--train=0.1` trains a share of the
accepted ones; the others are only built, and so are any of more than 20 steps or 64 blocks. On
CPU.

    python -m benchmarks.fuzz_configs --large

instead sets each number of things, one after the other, to 1,000 and to 100,000: sizes that may
fit the memory, and take long.
"""

import argparse
import collections
import contextlib
import copy
import json
import math
import os
import pathlib
import random
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from configs import digits_prc
from vmoe_prc.config import ConfigError, complete, fields, override
from vmoe_prc.config.schema import Field
from vmoe_prc.config.sections import fields_of
from vmoe_prc.errors import RunError

STEPS = 3
# More steps or blocks than this are only built: they are no fault, but take long. Blocks are
# compiled one by one, each in about 2 s of a core here.
MOST_STEPS = 20
MOST_BLOCKS = 64
MEMORY = 8 * 2**30
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SMALL = {
    "train_steps": STEPS,
    "dataset": {
        "train": {"split": "train[:64]", "batch_size": 8, "shuffle_buffer": 64},
        "test": {"split": "test[:32]", "batch_size": 16},
        "test_pairs": None,
    },
    "model": {
        "hidden_size": 16,
        "patch_size": (8, 8),
        "encoder": {
            "num_layers": 2,
            "mlp_dim": 32,
            "moe": {"layers": (1,), "group_size": 17 * 4},
        },
    },
    "optimizer": {"learning_rate": {"warmup_steps": 1}},
    "evaluate": {"every_steps": STEPS},
    "save_checkpoint": {"every_steps": STEPS},
    "report_progress": {"every_steps": 1},
}
# Sections that are off, for `large`. Mixed images have no pairs.
MORE = {
    "adversarial": {"max_epsilon": 0.01},
    "fewshot": {
        "datasets": {"numbers": ("digits", "train[:64]", "train[64:96]", "test[:32]")},
        "process": 'decode|resize(32)|value_range(-1, 1)|keep("image", "label")',
        "batch_size": 16,
        "shots": (1,),
        "every_steps": STEPS,
    },
    "profile": {"first_profile": 2, "num_profile_steps": 1},
}
MIXED = {"consistency": None, "mixup": {"concentration": 0.2}}
LARGE = (1_000, 100_000)
VALUES = (
    *(None, True, False, "", "x", "None", "a\nb", "é" * 20, "(" * 200, "x" * 100_000),
    *(0, 1, -1, 2, 3, 7, 2**31, 2**40, -(2**63), 2**63, 10**30, 10**5000),
    *(0.0, 0.5, 1.0, -1.0, 1e-300, 1e38, 3.5e38, 1e300, math.nan, math.inf, -math.inf),
    *((), (1,), (0, 1), (1, 1), (-1,), (10**20,), (math.nan,), ("a", "b"), (("(", 0.1),)),
    *((("kernel", math.inf),), ((".*", ("expert",)),), ((".*", "expert"),), ((".*", 3),)),
    *({}, {"name": "x"}, {"a": {"b": 1}}, [1, 2], object, 1j, b"x"),
)


def base() -> dict[str, Any]:
    """Returns the configuration that is changed."""
    return complete(override(digits_prc.get_config(), SMALL)).to_dict()


def all_paths(values: Any, section: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple]:
    """Yields (path, field) of every field, also of the sections that are off."""
    try:
        found = fields_of(section, values or {})
    except ConfigError:  # A section that chooses nothing.
        return
    for key, field in found.items():
        path, value = (*prefix, key), (values or {}).get(key)
        yield path, field
        if field.named:
            for name, item in (value or {}).items():
                yield from all_paths(item, field.section, (*path, name))
        elif field.section is not None:
            yield from all_paths(value, field.section, path)


def mutate(rng: random.Random, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns a changed copy of a configuration, and what was changed."""
    config, changes = copy.deepcopy(config), []
    paths = list(all_paths(config, fields.Config))
    for path, field in rng.sample(paths, rng.choice((1, 1, 2))):
        *sections, key = path
        target = config
        for name in sections:
            if not isinstance(target.get(name), dict):
                target[name] = {}
            target = target[name]
        kind = rng.random()
        if kind < 0.05:
            target.pop(key, None)
            changes.append(f"{'.'.join(path)} deleted")
        elif kind < 0.1:
            misspelt = key[: len(key) // 2] + key[len(key) // 2 + 1 :]
            target[misspelt] = target.pop(key, None)
            changes.append(f"{'.'.join(path)} misspelt")
        else:
            target[key] = _value(rng, field)
            changes.append(f"{'.'.join(path)} = {_show(target[key])}")
    return "; ".join(changes), config


def large() -> list[tuple[str, dict[str, Any]]]:
    """Returns configurations with one large number, and what it is the number of."""
    found = []
    for sections, changed in ((MORE, None), (MIXED, "mixup")):
        config = complete(override(base(), sections)).to_dict()
        for path, field in all_paths(config, fields.Config):
            is_number = re.search(r"\bint\b", str(field.hint)) and field.section is None
            if not is_number or changed not in (None, path[0]):
                continue
            for number in LARGE:
                tuples = ((number,), (number, number)) if "tuple" in str(field.hint) else ()
                for value in (number, *tuples):
                    changes: Any = value
                    for key in reversed(path):
                        changes = {key: changes}
                    found.append((f"{'.'.join(path)} = {value}", override(config, changes)))
    return found


def _value(rng: random.Random, field: Field) -> Any:
    """Draws a value: any at all, or one at the edge of what the field allows."""
    edges = [field.info.minimum, field.info.maximum, field.info.above]
    edges = [edge for edge in edges if edge is not None]
    if field.section is None and field.choices and rng.random() < 0.5:
        return rng.choice(field.choices)
    if edges and rng.random() < 0.3:
        return rng.choice(edges) * rng.choice((1, 1, 2)) + rng.choice((0, 1, -1))
    return rng.choice(VALUES)


def _show(value: Any) -> str:
    try:
        return repr(value)[:80]
    except ValueError:
        return "a huge int"


def validate(config: dict[str, Any]) -> tuple[str, str]:
    """Completes a configuration.

    Returns:
      'accepted', 'refused' or 'traceback', and the text of the error.
    """
    try:
        complete(config)
    except ConfigError as error:
        return _refused(error)
    except Exception:
        return "traceback", traceback.format_exc()
    return "accepted", ""


def _refused(error: Exception) -> tuple[str, str]:
    text = str(error)
    if "\n" in text or len(text) > 2_000:
        return "no single line", text
    return "refused", text


def run(config: dict[str, Any], train: bool, workdir: pathlib.Path) -> tuple[str, str]:
    """Builds a configuration and trains it; returns how it ended, as `validate` does."""
    from vmoe_prc.train import loop, program
    from vmoe_prc.workdir.metrics import METRICS_FILE

    try:
        built = program.build_program(complete(config))
        blocks = built.config.model.encoder.num_layers
        if not train or built.total_steps > MOST_STEPS or blocks > MOST_BLOCKS:
            return "built", ""
        loop.train_and_evaluate(complete(config), workdir)
    except ConfigError as error:
        if workdir.exists():
            return "written before it was refused", str(error)
        return _refused(error)
    except RunError as error:
        return "stopped", str(error)
    except Exception:
        return "traceback", traceback.format_exc()
    for line in (workdir / METRICS_FILE).read_text().splitlines():
        numbers = [value for value in json.loads(line).values() if isinstance(value, float)]
        if not all(map(math.isfinite, numbers)):
            return "not finite", line
    return "trained", ""


def _draws(args: argparse.Namespace) -> Callable[[random.Random, int], tuple[str, dict[str, Any]]]:
    """Returns the function that makes a configuration, and says what was changed."""
    if args.large:
        configs = large()
        return lambda rng, number: configs[number]
    config = base()
    return lambda rng, number: mutate(rng, config)


def worker(args: argparse.Namespace) -> None:
    """Runs the numbers of configurations that come on stdin; prints how each ended."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    draw, share = _draws(args), args.train
    for line in sys.stdin:
        rng = random.Random(f"{args.seed}/{int(line)}")
        _, mutated = draw(rng, int(line))
        with tempfile.TemporaryDirectory() as folder:
            end = run(mutated, rng.random() < share, pathlib.Path(folder) / "run")
        print(json.dumps(end), flush=True)


class _Worker:
    """A process that runs configurations one after the other, and is started again if it hangs."""

    def __init__(self, arguments: list[str], cache: str):
        self._command = [sys.executable, "-m", "benchmarks.fuzz_configs", "--worker", *arguments]
        # Many changes leave the compiled programs as they are.
        self._environment = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": COMPILE_QUICKLY,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._process: subprocess.Popen | None = None

    def run(self, number: int, timeout: float) -> tuple[str, str]:
        """Runs one configuration within `timeout` seconds."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                # A configuration may start processes.
                start_new_session=True,
                env={**os.environ, **self._environment},
            )
        print(number, file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else ""
        while line and not line.startswith("["):  # What the summary of a run prints.
            line = self._process.stdout.readline()
        if line:
            return tuple(json.loads(line))
        self.close()
        return ("died" if ready else "hang"), ""

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


ALLOWED = {"refused", "stopped", "trained", "built"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, help="configurations, 2000 by default")
    parser.add_argument("--large", action="store_true", help="large numbers of things")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes")
    parser.add_argument("--train", type=float, default=1.0, help="share trained of the accepted")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of one, at most")
    parser.add_argument("--cache", help="folder of compiled programs to keep for the next time")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        worker(args)
        return 0
    count = args.count or (len(large()) - args.first if args.large else 2000)
    # What has been tried is also printed when the time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ends: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: print(_listed(ends), flush=True))
        cache = args.cache or stack.enter_context(tempfile.TemporaryDirectory())
        arguments = [f"--seed={args.seed}", f"--train={args.train}", *["--large"] * args.large]
        process, draw = _Worker(arguments, cache), _draws(args)
        stack.callback(process.close)
        for number in range(args.first, args.first + count):
            changes, config = draw(random.Random(f"{args.seed}/{number}"), number)
            end, text = validate(config)
            if end == "accepted":
                end, text = process.run(number, args.timeout)
            ends[end] += 1
            if end not in ALLOWED:
                print(f"{number}: {end}: {changes}\n{text}", flush=True)
    return int(not ends.keys() <= ALLOWED)


def _listed(ends: collections.Counter[str]) -> str:
    return ", ".join(f"{end}: {count}" for end, count in sorted(ends.items()))


if __name__ == "__main__":
    sys.exit(main())
