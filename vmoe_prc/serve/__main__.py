"""Serves a page to ask trained models about pictures, on this machine.

    python -m vmoe_prc.serve workdir/baseline workdir/prc

Two models are shown side by side. Pictures stay in memory; nothing is written.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.arguments import ArgumentParser, above_zero, at_least
from vmoe_prc.runtime.programs import add_traceback_argument, run_program

MOST_MODELS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command until it is interrupted; returns its exit status."""
    args = _parser().parse_intermixed_args(argv)
    return run_program(lambda: _serve(args), args.traceback)


def _serve(args: argparse.Namespace) -> None:
    if len(args.workdir) > MOST_MODELS:
        raise ConfigError("WORKDIR", len(args.workdir), f"at most {MOST_MODELS} models are shown")
    # Imported here so that --help need not wait for JAX and TensorFlow.
    from vmoe_prc.predict.model import open_model
    from vmoe_prc.serve.gallery import Gallery
    from vmoe_prc.serve.server import create_server

    models = [open_model(os.path.expanduser(path)) for path in args.workdir]
    gallery = Gallery(models, args.max_images)
    try:
        server = create_server(gallery, args.host, args.port, int(args.max_megabytes * 1e6))
    except OSError as error:
        raise ConfigError("--port", args.port, f"cannot be listened on: {error.strerror}") from None
    with server:
        host, port = server.server_address[:2]
        print(f"http://{host}:{port}/ shows {' and '.join(m.name for m in models)}; end: Ctrl-C")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m vmoe_prc.serve",
        description=__doc__,
    )
    parser.add_argument(
        "workdir",
        nargs="+",
        metavar="WORKDIR",
        help="work directory of a run, an exported folder or another checkpoint; one or two",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; by default this machine's only"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="8000 by default; 0 for any free one"
    )
    parser.add_argument(
        "--max-megabytes",
        type=above_zero(float),
        default=20.0,
        help="largest file of a picture, 20 by default",
    )
    parser.add_argument(
        "--max-images",
        type=at_least(1),
        default=100,
        help="pictures kept in memory, 100 by default",
    )
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
