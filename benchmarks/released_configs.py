"""Which config files of google-research/vmoe and m82kada/PRC run here, as Markdown.

    python -m benchmarks.released_configs CHECKOUT...
    python -m benchmarks.released_configs --train CHECKOUT...

docs/PARITY.md has the table. Nothing is trained and no data are read: a file runs if its
configuration is complete here, with every op of its preprocessing. With `--train` those that run
also take two steps and are evaluated, as commands with flags that make the model tiny and replace
every data set by scikit-learn's digits.
"""

import argparse
import ast
import contextlib
import io
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import ml_collections

from vmoe_prc.config import ConfigError, complete
from vmoe_prc.config.files import read_config_file, read_released
from vmoe_prc.config.released import is_released
from vmoe_prc.convert_config import Log, converted_fields

IMAGES = 8
# Arguments of files that have several models.
ARGUMENTS = {
    "pretrain_jft4b.py": ("vit-s16", "ec-s16", "soft-s16"),
    "pretrain_laion.py": ("vit-s16", "ec-s16", "soft-s16"),
}


def config_files(checkout: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the config files of a checkout, and the modules that they share."""
    for path in sorted(checkout.rglob("*.py")):
        if "configs" in path.parts and path.name != "__init__.py":
            yield path


def kind(path: pathlib.Path) -> str:
    """Returns 'config' for a file that defines `get_config`, or what else it is."""
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError:
        return "is no Python"
    found = any(isinstance(x, ast.FunctionDef) and x.name == "get_config" for x in tree.body)
    return "config" if found else "is imported by the others"


def judge(source: str, notes: set[tuple[str, str]]) -> tuple[str, str]:
    """Returns what becomes of a config file, and why not if it does not run; adds to notes."""
    try:
        config = read_released(source, "FILE").to_dict()
    except ConfigError as error:
        return "no", str(error)
    if not is_released(config):
        return "no", "is not recognised"
    log = Log()
    with contextlib.redirect_stderr(io.StringIO()):
        fields = converted_fields(config, log)
    if log.refusals:
        return "no", "; ".join(f"`{field}`: {instead}" for field, _, instead in log.refusals)
    complete(fields)
    notes.update(log.notes)
    return "as it is", ""


def small_flags(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the fields that make two steps of a configuration small, on digits.

    Sizes of images, ops, losses and optimiser stay. Each split has the images of one routing group;
    few-shot evaluations are left out.

    Args:
      config: A complete configuration.
    """
    moe = config.model.encoder.moe
    # Of the 128 images of a group of the ensembles.
    images = max(IMAGES, 128 if moe.get("ensemble_size", 1) > 1 else 0)
    small: dict[str, Any] = {
        "train_steps": 2,
        "model.hidden_size": 32,
        **{f"model.encoder.{k}": 2 for k in ("num_layers", "num_heads")},
        "model.encoder.mlp_dim": 32,
        **({"model.encoder.moe.layers": (1,)} if moe.layers else {}),
        "optimizer.learning_rate.warmup_steps": 1,
        "initialization.prefix": None,
    }
    if "cooldown_steps" in config.optimizer.learning_rate:
        small["optimizer.learning_rate.cooldown_steps"] = 0
    for name, split in config.dataset.items():
        # Their labels have other names, or there are several.
        labels = r"\b(inkey|key)=.(original_label|real_label|labels)."
        process = re.sub(labels, "inkey='label'", split.process)
        small |= {
            f"dataset.{name}.{key}": value
            for key, value in {
                "name": "digits",
                "split": "train" if name == "train" else "test[:16]",
                "cache": None,
                "shuffle_buffer": 64 if name == "train" else 0,
                "batch_size": images // 2 if "two_views" in process else images,
                "process": process.replace("ignore_no_labels|", ""),
            }.items()
        }
    if config.fewshot:
        small["fewshot"] = None
    return small


def train(source: str, config: ml_collections.ConfigDict) -> str:
    """Takes two small steps as a command; returns what its summary or its error begins with."""
    flags = [f"--config.{name}={value}" for name, value in small_flags(config).items()]
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "vmoe_prc.main", f"--config={source}", *flags]
        command.append(f"--workdir={workdir}/run")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no: {done.stderr.strip().splitlines()[-1]}"
        summary = (pathlib.Path(workdir) / "run" / "summary.txt").read_text()
    losses = re.findall(r"^ +(\w+) +[\d.]+ +([\d.]+)$", summary, re.MULTILINE)
    return "yes: loss " + ", ".join(f"{loss} on {split}" for split, loss in losses)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", nargs="+", type=pathlib.Path)
    parser.add_argument("--train", action="store_true", help="take two small steps of each")
    args = parser.parse_args()
    trained = " trains two steps |" if args.train else ""
    print(
        f"| file | runs |{trained} what is in the way |\n| --- | --- |{trained and ' --- |'} --- |"
    )
    counts: dict[str, int] = {}
    notes: set[tuple[str, str]] = set()
    for checkout in args.checkouts:
        for path in config_files(checkout):
            name = path.relative_to(checkout)
            if (reason := kind(path)) != "config":
                print(f"| {name} | no config |{trained and ' |'} {reason} |")
                continue
            for argument in ARGUMENTS.get(path.name, ("",)):
                verdict, reason = judge(f"{path}:{argument}" if argument else str(path), notes)
                label = f"{name}:{argument}" if argument else name
                outcome = trained and " |"
                if args.train and verdict == "as it is":
                    source = f"{path}:{argument}" if argument else str(path)
                    config = complete(read_config_file(source, "--config"))
                    outcome = f" {train(source, config)} |"
                reason = reason.replace("|", r"\|")
                print(f"| {label} | {verdict} |{outcome} {reason} |", flush=True)
                counts[verdict] = counts.get(verdict, 0) + 1
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    print("\nWhat changes in those that run:\n")
    for field, text in sorted(notes):
        print(f"- `{field}`: {text}")


if __name__ == "__main__":
    main()
