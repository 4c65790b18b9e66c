"""Damage of files at random, by a seed, and what may come of it."""

import argparse
import collections
import pathlib
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

SECONDS = 60

# Damages something, and reads it; raises one of the errors that refuse it, or `WrongDataError`.
Case = Callable[[np.random.Generator, pathlib.Path], None]
# How many of each kind ended how, and a text per failure.
Ends = tuple[dict[str, collections.Counter], list[str]]


class WrongDataError(AssertionError):
    """Damage that changed data without a word."""


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages the content of a file in one of eight ways."""
    begin, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    end = min(end, begin + int(rng.integers(1, 600)))
    bit = bytearray(content)
    bit[min(begin, len(bit) - 1)] ^= 1 << int(rng.integers(8))
    ways = (
        bytes(bit),
        content[:begin],
        content[begin:],
        content[:begin] + content[end:],
        content[:begin] + bytes(end - begin) + content[end:],
        content[:begin] + rng.bytes(end - begin) + content[end:],
        content[:begin] + rng.bytes(12) + content[begin:],
        content[:end] + content[begin:],
    )
    return ways[rng.integers(len(ways))]


def run_case(
    case: Case, seed: Sequence[int], refusals: tuple[type[Exception], ...]
) -> tuple[str, str]:
    """Runs one case.

    Args:
      case: The case.
      seed: Seed of its random numbers.
      refusals: Errors that refuse a file.

    Returns:
      How it ended: 'used', 'refused', 'traceback', 'hang' or 'wrong'; and the text of the error.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as work:
            case(np.random.default_rng(seed), pathlib.Path(work))
    except refusals as error:
        text = str(error)
        return ("refused", text) if text and "\n" not in text else ("traceback", repr(text))
    except TimeoutError as error:
        return "hang", str(error)
    except WrongDataError as error:
        return "wrong", str(error)
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
    return "used", ""


def run(
    cases: Mapping[str, Case],
    order: Sequence[str],
    refusals: tuple[type[Exception], ...],
    seeds: Iterable[int],
    kinds: Sequence[str],
) -> Ends:
    """Runs a case per seed.

    Args:
      cases: The cases by kind.
      order: All kinds; the place of a kind is part of the seeds of its cases.
      refusals: Errors that refuse a file.
      seeds: One for each case.
      kinds: Kinds to take turns.
    """
    ends: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    failures = []
    for seed in seeds:
        kind = kinds[seed % len(kinds)]
        end, text = run_case(cases[kind], [seed, order.index(kind)], refusals)
        ends[kind][end] += 1
        if end not in ("used", "refused"):
            failures.append(f"{kind}, seed {seed}: {end}\n{text}")
    return dict(ends), failures


def main(
    name: str, description: str | None, run: Callable[[int, int], Ends], argv: Sequence[str] | None
) -> int:
    """Runs a fuzz command; returns its exit status.

    Args:
      name: Its module.
      description: For `--help`.
      run: Runs a number of cases from a seed on.
      argv: Arguments; by default the arguments of this process.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=1000, help="number of damaged files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first")
    args = parser.parse_args(argv)
    ends, failures = run(args.count, args.seed)
    for kind, counts in sorted(ends.items()):
        print(f"{kind}: " + ", ".join(f"{n} {end}" for end, n in sorted(counts.items())))
    for text in failures:
        print(f"\n{text}")
    print(f"\n{args.count} files, {len(failures)} failures")
    return 1 if failures else 0
