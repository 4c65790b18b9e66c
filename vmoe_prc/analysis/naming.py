"""Names that tell runs apart in tables and figures."""

from collections.abc import Sequence


def distinct_names(candidates: Sequence[Sequence[str]]) -> list[str]:
    """Names N things as shortly as possible.

    Args:
      candidates: For each thing its possible names, the shortest first; all of one length.

    Returns:
      N different names: the first candidates that all differ, or else the last ones, of
      which repeated ones are numbered, such as "PRC (2)".
    """
    if not candidates:
        return []
    for names in zip(*candidates, strict=True):
        if len(set(names)) == len(names):
            return list(names)
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(names, counts, strict=True)]
