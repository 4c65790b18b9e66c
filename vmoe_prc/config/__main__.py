"""Prints the reference of the configuration: `python -m vmoe_prc.config --markdown`."""

import argparse

from vmoe_prc.config.reference import markdown


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m vmoe_prc.config", description=__doc__)
    parser.add_argument(
        "--markdown", action="store_true", required=True, help="as docs/CONFIG.md has it"
    )
    parser.parse_args()
    print(markdown(), end="")


if __name__ == "__main__":
    main()
