"""Lists and runs the commands: `vmoe-prc COMMAND …` or `python -m vmoe_prc COMMAND …`."""

import runpy
import sys

import vmoe_prc

# Name -> module, which also runs as `python -m MODULE`, and what it does.
COMMANDS = {
    "prepare": ("vmoe_prc.data.prepare", "prepare a data set"),
    "look": ("vmoe_prc.look", "show the data of a configuration before training"),
    "train": ("vmoe_prc.main", "train and evaluate a model"),
    "predict": ("vmoe_prc.predict", "classify images with a trained model"),
    "compile": ("vmoe_prc.compile", "compile a train step for accelerators that are not there"),
    "study": ("vmoe_prc.study", "train several arms with several seeds and compare them"),
    "ensemble": ("vmoe_prc.study.ensemble", "train many small runs at once on one device"),
    "ensemble-tables": ("vmoe_prc.study.ensemble.tables", "tables of such small runs"),
    "analyze": ("vmoe_prc.analyze", "measure and draw the routing of trained models"),
    "report": ("vmoe_prc.report", "gather finished runs in tables or in one HTML page"),
    "convert-config": ("vmoe_prc.convert_config", "convert a config file of V-MoE or PRC"),
    "config": ("vmoe_prc.config", "print the reference of all fields of a configuration"),
    "export": ("vmoe_prc.checkpoints.export", "write a trained model for other programs"),
    "serve": ("vmoe_prc.serve", "serve a page to play with the routing of trained models"),
}


def main() -> int:
    """Runs the command that the first argument names; returns the exit status."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "--helpfull"):
        print(_help())
    elif name == "--version":
        print(f"vmoe_prc {vmoe_prc.__version__}")
    elif name in COMMANDS:
        module, _ = COMMANDS[name]
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        from vmoe_prc.config import ConfigError, nearest

        allowed = f"unknown; allowed: {', '.join(COMMANDS)}"
        error = ConfigError("command", name, allowed, nearest(name, COMMANDS))
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {sentence}" for name, (_, sentence) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vmoe-prc [--version] COMMAND …",
            "",
            "Sparse mixture-of-experts vision transformers with Pairwise Router Consistency.",
            "",
            "commands:",
            *lines,
            "",
            "`vmoe-prc COMMAND --help` lists the options of a command.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
