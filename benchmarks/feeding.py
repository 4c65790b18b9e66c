"""What the hosts of a pod must read and decode to keep its devices busy, as a Markdown table.

    python -m benchmarks.feeding --cpu=1948 --parent=15 --sizes=8,32,128,512

Calculated, not measured on a pod. The images a second that a device takes are from
`benchmarks.cost`: operations of the model by its formula, peak rate of the device as published, and
an assumed utilisation. CPU time per image (a pair of views) is given: `--cpu` of all processes, as
`benchmarks.input_pipeline` measures it for crops and flips, `--parent` of the process that trains,
from `benchmarks.worker_processes`. Every process reads its rows only, so that a host's part does
not depend on the number of hosts. What a host can deliver is a bound: its cores do nothing else,
are as fast as the one that was measured, and do not disturb each other; the process that trains,
one a host, hands on one batch after the other.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence

from benchmarks import timing
from benchmarks.cost import RECIPES, Work, work_of
from vmoe_prc.runtime.peaks import peak_flops
from vmoe_prc.workdir.text_tables import markdown_lines

SIZES = (8, 16, 32, 64, 128, 256, 512)
# Devices of a host.
HOSTS = {"TPU v4": 4, "NVIDIA H100 80GB HBM3": 8}
# Bytes of an image: 147 GB for the 1.28 million of ImageNet-1k, 1.3 TB for the 14.2 of 21k.
RECORD_BYTES = {"ImageNet-1K": 115_000, "ImageNet-21k": 92_000}


def rows_of(
    name: str, work: Work, device: str, sizes: Sequence[int], args: argparse.Namespace
) -> Iterator[dict[str, str]]:
    """Makes one row per number of devices.

    Args:
      name: Name of the recipe.
      work: What a step of it asks for.
      device: Kind of device.
      sizes: Numbers of devices.
      args: The parsed flags.
    """
    peak = peak_flops(device, "bfloat16")
    assert peak is not None, device
    rate = work.step_images * args.utilisation * peak / work.step_flops
    per_host = HOSTS[device] * rate
    delivered = 1e6 * min(args.cores / args.cpu, 1 / args.parent)
    for size in sizes:
        hosts = size // HOSTS[device]
        bytes_per_second = per_host * RECORD_BYTES[name]
        yield {
            "recipe": name,
            "device": device,
            "devices": f"{size}",
            "hosts": f"{hosts}",
            "images/s a device": f"{rate:,.0f}",
            "images/s a host": f"{per_host:,.0f}",
            "GB/s a host": f"{bytes_per_second / 1e9:.2f}",
            "GB/s in all": f"{hosts * bytes_per_second / 1e9:.1f}",
            "cores a host": f"{per_host * args.cpu / 1e6:.0f}",
            f"{args.cores} cores deliver": f"{min(1, delivered / per_host):.0%}",
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feeding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cpu", type=float, required=True, help="CPU µs of an image, measured")
    parser.add_argument(
        "--parent",
        type=float,
        required=True,
        help="CPU µs of an image in the process that trains, measured",
    )
    parser.add_argument("--cores", type=int, default=96, help="cores of a host")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak, assumed")
    parser.add_argument("--sizes", type=timing.integers, default=SIZES, help="numbers of devices")
    args = parser.parse_args(argv)
    rows = []
    for name in RECORD_BYTES:
        module, _, arguments = RECIPES[name].partition(":")
        work = work_of(importlib.import_module(f"configs.{module}").get_config(arguments))
        for device in HOSTS:
            rows += rows_of(name, work, device, args.sizes, args)
    print("\n".join(markdown_lines([[*rows[0]], *([*row.values()] for row in rows)])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
