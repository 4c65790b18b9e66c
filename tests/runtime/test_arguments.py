"""Options with dashes and underscores."""

from vmoe_prc.runtime.arguments import ArgumentParser, with_underscores


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


def test_flags_of_absl_may_have_dashes():
    argv = ["main", "--num-processes=2", "--data-dir", "a-b", "--from=x-y", "-", "--"]
    assert with_underscores(argv) == [
        *("main", "--num_processes=2", "--data_dir", "a-b", "--from=x-y", "-", "--")
    ]
