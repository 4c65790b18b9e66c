"""The table that a run ends with, as plain text of at most 100 columns."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

from vmoe_prc.config.metric_names import FEWSHOT, MetricName, block_order, parse_names
from vmoe_prc.workdir.text_tables import aligned_lines

_LOADS_PER_ROW = 8
_Metrics = Mapping[MetricName, float]
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
    metrics = parse_names(results)
    sections = [_accuracy_table(metrics), _fewshot_table(metrics)]
    for split in _groups(metrics):
        sections += [_routing_table(split, metrics), _load_table(split, metrics)]
    sections += [_evaluator_table(metrics, evaluators), _path_list(paths or {})]
    return "\n\n".join(section for section in sections if section)


def _accuracy_table(metrics: _Metrics) -> str:
    found = {
        split: (metrics.get(MetricName("accuracy", split)), metrics.get(MetricName("loss", split)))
        for split in _groups(metrics)
    }
    rows = [
        [split, _percent(accuracy), _number(loss)]
        for split, (accuracy, loss) in found.items()
        if accuracy is not None or loss is not None
    ]
    if not rows:
        return ""
    return _table("Classification", ["split", "accuracy %", "loss"], rows)


def _fewshot_table(metrics: _Metrics) -> str:
    """Accuracy by data set and number of shots."""
    found = {
        (name.dataset, name.shots): value
        for name, value in metrics.items()
        if name.dataset is not None and name.shots is not None and name.measure == "shot"
    }
    if not found:
        return ""
    shots = sorted({number for _, number in found})
    names = list(dict.fromkeys(name for name, _ in found))
    rows = [[name, *(_percent(found.get((name, number))) for number in shots)] for name in names]
    return _table("Few-shot accuracy (%)", ["data set", *(f"{n}-shot" for n in shots)], rows)


def _routing_table(split: str, metrics: _Metrics) -> str:
    """Agreement and dropped tokens, one row per block; the last row is over all blocks."""
    rows_of = {
        block: {column: metrics.get(MetricName(column, split, block)) for column in _COLUMNS}
        for block in (*_blocks(split, metrics), None)
    }
    columns = [c for c in _COLUMNS if any(row[c] is not None for row in rows_of.values())]
    if not columns:
        return ""
    rows = [
        [block or "all blocks", *(_percent(row[column]) for column in columns)]
        for block, row in rows_of.items()
    ]
    title = f"Routing, {split}: agreement of matched patches and dropped tokens (%)"
    return _table(title, ["block", *(_COLUMNS[c] for c in columns)], rows)


def _load_table(split: str, metrics: _Metrics) -> str:
    """Each expert's share of the kept tokens, eight experts per row."""
    rows = []
    for block in _blocks(split, metrics):
        loads = {
            name.expert: value
            for name, value in metrics.items()
            if (name.group, name.block, name.measure) == (split, block, "load")
            and name.expert is not None
        }
        experts = sorted(loads)
        cells = [_percent(loads[expert]) for expert in experts]
        for start in range(0, len(cells), _LOADS_PER_ROW):
            name = f"  from {experts[start]}" if start else block
            rows.append([name, *cells[start : start + _LOADS_PER_ROW]])
    if not rows:
        return ""
    columns = max(map(len, rows))
    rows = [row + [""] * (columns - len(row)) for row in rows]
    title = f"Load, {split}: share of the kept tokens that each expert got (%)"
    return _table(title, ["block", *map(str, range(columns - 1))], rows)


def _evaluator_table(metrics: _Metrics, labels: Sequence[str]) -> str:
    rows = [
        [str(name), _number(value)]
        for label in labels
        for name, value in metrics.items()
        if name.group == label
    ]
    return _table("Other evaluators", ["metric", "value"], rows) if rows else ""


def _path_list(paths: Mapping[str, str | PathLike[str]]) -> str:
    if not paths:
        return ""
    width = max(map(len, paths))
    lines = [f"  {name:<{width}}  {path}" for name, path in paths.items()]
    return "\n".join(["Files", _rule("Files"), *lines])


def _groups(names: Iterable[MetricName]) -> list[str]:
    """The splits among the names, and the other evaluators."""
    groups = dict.fromkeys(name.group for name in names)
    return [group for group in groups if group is not None and group != FEWSHOT]


def _blocks(split: str, names: Iterable[MetricName]) -> list[str]:
    """The blocks of a split among the names, by number: encoderblock_7 before encoderblock_11."""
    blocks = {name.block for name in names if name.group == split and name.block is not None}
    return sorted(blocks, key=block_order)


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
