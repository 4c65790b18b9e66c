"""The table that a run ends with, as plain text of at most 100 columns."""

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

from vmoe_prc.workdir.text_tables import aligned_lines

_LOADS_PER_ROW = 8
_BLOCK = re.compile(r"(?P<block>[^/]*?(?P<number>\d+))/")
_FEWSHOT = re.compile(r"fewshot/(?P<name>.*)/(?P<shots>\d+)shot$")
_COLUMNS = {
    "top1": "top-1",
    "top2": "top-2",
    "top2_unordered": "top-2 unord.",
    "overlap": "overlap",
    "kappa": "kappa",
    "kappa_place": "kappa place",
    "dropped": "dropped",
}


def format_summary(
    results: Mapping[str, float],
    paths: Mapping[str, str | PathLike[str]] | None = None,
    evaluators: Sequence[str] = (),
) -> str:
    """Formats the results of the last evaluation.

    Args:
      results: Metrics by their flat names, as the evaluator gives them; all but the
        losses are shares in [0, 1]:
          '{split}/accuracy', '{split}/loss': of the classification;
          '{split}/{block}/top1', '…/top2', '…/top2_unordered', '…/overlap': agreement
            of the experts of matched patches; '…/dropped': tokens dropped;
            '…/load/{expert}': share of the kept tokens that an expert got;
          '{split}/top1' and so on: the same over all blocks;
          'fewshot/{name}/{shots}shot': accuracy of a few-shot evaluation.
        A block is a name without '/' that ends in its number, such as 'encoderblock_3'.
        Metrics that are missing (top-2 where K = 1, agreement of a split without pairs)
        get no column, or '-' if others have them; unknown names are left out.
      paths: Where the run left its files, by what they are, such as 'checkpoint',
        'TensorBoard', 'metrics' and 'picture'.
      evaluators: Labels of further evaluators, whose metrics '{label}/…' are all listed.

    Returns:
      Lines of at most 100 columns, except where a path is longer.
    """
    sections = [_accuracy_table(results), _fewshot_table(results)]
    for split in _splits(results):
        prefix = f"{split}/"
        own = {k.removeprefix(prefix): v for k, v in results.items() if k.startswith(prefix)}
        sections += [_routing_table(split, own), _load_table(split, own)]
    sections += [_evaluator_table(results, evaluators), _path_list(paths or {})]
    return "\n\n".join(section for section in sections if section)


def _accuracy_table(results: Mapping[str, float]) -> str:
    splits = [s for s in _splits(results) if f"{s}/accuracy" in results or f"{s}/loss" in results]
    if not splits:
        return ""
    rows = [
        [
            split,
            _percent(results.get(f"{split}/accuracy")),
            _number(results.get(f"{split}/loss")),
        ]
        for split in splits
    ]
    return _table("Classification", ["split", "accuracy %", "loss"], rows)


def _fewshot_table(results: Mapping[str, float]) -> str:
    """Accuracy by data set and number of shots."""
    found = {
        (m["name"], int(m["shots"])): v for k, v in results.items() if (m := _FEWSHOT.match(k))
    }
    if not found:
        return ""
    shots = sorted({number for _, number in found})
    names = list(dict.fromkeys(name for name, _ in found))
    rows = [[name, *(_percent(found.get((name, number))) for number in shots)] for name in names]
    return _table("Few-shot accuracy (%)", ["data set", *(f"{n}-shot" for n in shots)], rows)


def _routing_table(split: str, results: Mapping[str, float]) -> str:
    """Agreement and dropped tokens, a row a block; the last row is over all blocks."""
    prefixes = {block: f"{block}/" for block in _blocks(results)} | {"all blocks": ""}
    columns = [c for c in _COLUMNS if any(p + c in results for p in prefixes.values())]
    if not columns:
        return ""
    rows = [
        [name, *(_percent(results.get(prefix + column)) for column in columns)]
        for name, prefix in prefixes.items()
    ]
    title = f"Routing, {split}: agreement of matched patches and dropped tokens (%)"
    return _table(title, ["block", *(_COLUMNS[c] for c in columns)], rows)


def _load_table(split: str, results: Mapping[str, float]) -> str:
    """Each expert's share of the kept tokens, eight experts a row."""
    rows = []
    for block in _blocks(results):
        prefix = f"{block}/load/"
        experts = sorted(int(k.removeprefix(prefix)) for k in results if k.startswith(prefix))
        cells = [_percent(results[f"{prefix}{e}"]) for e in experts]
        for start in range(0, len(cells), _LOADS_PER_ROW):
            name = f"  from {experts[start]}" if start else block
            rows.append([name, *cells[start : start + _LOADS_PER_ROW]])
    if not rows:
        return ""
    columns = max(map(len, rows))
    rows = [row + [""] * (columns - len(row)) for row in rows]
    title = f"Load, {split}: share of the kept tokens that each expert got (%)"
    return _table(title, ["block", *map(str, range(columns - 1))], rows)


def _evaluator_table(results: Mapping[str, float], labels: Sequence[str]) -> str:
    rows = [
        [name, _number(value)]
        for label in labels
        for name, value in results.items()
        if name.startswith(f"{label}/")
    ]
    return _table("Other evaluators", ["metric", "value"], rows) if rows else ""


def _path_list(paths: Mapping[str, str | PathLike[str]]) -> str:
    if not paths:
        return ""
    width = max(map(len, paths))
    lines = [f"  {name:<{width}}  {path}" for name, path in paths.items()]
    return "\n".join(["Files", _rule("Files"), *lines])


def _splits(results: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.split("/", 1)[0] for name in results if "/" in name))


def _blocks(results: Iterable[str]) -> list[str]:
    """The blocks among the names, by number: encoderblock_7 before encoderblock_11."""
    numbers = {m["block"]: int(m["number"]) for name in results if (m := _BLOCK.match(name))}
    return sorted(numbers, key=lambda block: (numbers[block], block))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * float(share):.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{float(value):.4f}"


def _rule(title: str) -> str:
    return "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * len(title)


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """Aligns cells: the first column to the left, numbers to the right."""
    lines = aligned_lines([header, *rows], str.rjust, first=str.ljust)
    return "\n".join([title, _rule(title), *(f"  {line}" for line in lines)])
