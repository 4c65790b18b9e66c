"""Options with dashes and underscores, and errors."""

import pytest

from vmoe_prc.runtime.arguments import ArgumentParser, above_zero, at_least


def test_dashes_and_underscores_are_the_same():
    parser = ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    command = parser.add_subparsers().add_parser("run")
    command.add_argument("--work-dir")
    for words in (
        ["--dry_run", "run", "--work_dir=a_b"],
        ["--dry-run", "run", "--work-dir", "a_b"],
    ):
        args = parser.parse_args(words)
        assert args.dry_run and args.work_dir == "a_b"


def test_mistakes_are_one_line(capsys):
    parser = ArgumentParser(prog="program")
    command = parser.add_subparsers().add_parser("run")
    command.add_argument("--images", type=at_least(1))
    command.add_argument("--megabytes", type=above_zero(float))
    for words, message in (
        (["run", "--imges=2"], "unrecognized arguments: --imges=2; did you mean '--images'?"),
        (["run", "--images=0"], "0: expected a number from 1 on"),
        (["run", "--megabytes=0"], "0: expected a number above 0"),
        (["run", "--megabytes=nan"], "nan: expected a number above 0"),
        (["run", "--images=x"], "invalid int value: 'x'"),
        (["run", "here"], "unrecognized arguments: here; program --help lists the options"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(words)
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
