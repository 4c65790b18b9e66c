"""The notebooks run from a clean kernel, and are stored as they ran."""

import json
import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vmoe_prc.analysis.routing_table import read_routing_table
from vmoe_prc.report.runs import read_run

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 500_000
COMPILATION_CACHE = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def run(notebook, tmp_path, **environment):
    """Executes a notebook in a kernel that knows nothing of this process; returns its output."""
    clean = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    clean |= {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    # Whole test sets are evaluated: programs that are compiled quickly would take longer in all.
    clean |= {k: v for k, v in os.environ.items() if k in COMPILATION_CACHE}
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    client = NotebookClient(notebook, timeout=600, resources=resources)
    client.execute(env={**clean, **environment})
    return "\n".join(printed(notebook))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [o.text if o.output_type == "stream" else o.data.get("text/plain", "") for o in outputs]


def pictures(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_as_they_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.get("name", output.output_type) for cell in cells for output in cell.outputs}
    assert kinds <= {"stdout", "execute_result", "display_data"}  # no error, nothing on stderr
    # Cells that only import, check or set something have no output.
    silent = [cell for cell in cells if not cell.outputs]
    assert len(silent) <= len(cells) // 3
    assert pictures(notebook) >= 5
    assert path.stat().st_size < MAX_BYTES
    assert str(ROOT) not in path.read_text() and "/home/" not in path.read_text()


def test_an_error_in_a_cell_is_an_error_of_the_test(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(notebook, tmp_path)


@pytest.mark.slow
def test_prc_explained(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "prc_explained.ipynb", as_version=4)
    text = run(notebook, tmp_path)
    by_hand, by_library = map(float, re.search(r"loss (\S+) = (\S+)", text).groups())
    assert by_hand == pytest.approx(by_library) and by_hand > 0
    before, after = map(int, re.search(r"same first expert: (\d+)% -> (\d+)%", text).groups())
    assert after > before + 20
    loads = {
        name: [float(share) for share in re.search(rf"{name}: \[(.*?)\]", text)[1].split()]
        for name in ("random", "PRC", "l2")
    }
    assert min(loads["PRC"]) > 0.1 and max(loads["l2"]) > 0.9


@pytest.mark.slow
def test_routing_tables_trains_what_is_missing(tmp_path, digits_dir):
    notebook = nbformat.read(ROOT / "notebooks" / "routing_tables.ipynb", as_version=4)
    workdir = tmp_path / "runs"
    environment = {"VMOE_PRC_WORKDIR": str(workdir), "VMOE_PRC_STEPS": "12"}
    text = run(notebook, tmp_path, TFDS_DATA_DIR=digits_dir, **environment)
    assert sorted(path.parent.name for path in workdir.glob("*/summary.txt")) == ["prc", "vmoe"]
    table = read_routing_table(workdir / "prc" / "analysis" / "routing_test_pairs.parquet")
    assert f"{len(table):,} rows" in text
    tops = dict(re.findall(r"(\w+): top1 (\S+)% of", text))
    for name, top1 in tops.items():
        metrics = read_run(workdir / name).metrics
        assert float(top1) == pytest.approx(100 * metrics["test_pairs/top1"], abs=0.006)
    assert tops.keys() == {"prc", "vmoe"}


def test_the_tutorial_makes_the_photos_of_the_example():
    notebook = nbformat.read(ROOT / "notebooks" / "own_photos.ipynb", as_version=4)
    example = (ROOT / "examples" / "make_photos.py").read_text().rstrip()
    assert example in [cell.source for cell in code_cells(notebook)]


@pytest.mark.slow
def test_own_photos_from_a_folder_to_a_server(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "own_photos.ipynb", as_version=4)
    folder = tmp_path / "tutorial"
    environment = {"VMOE_PRC_WORKDIR": str(folder), "VMOE_PRC_STEPS": "12"}
    text = run(notebook, tmp_path, TFDS_DATA_DIR=str(tmp_path / "data"), **environment)
    run_folder = folder / "workdir" / "photos"
    assert json.loads((run_folder / "config.json").read_text())["train_steps"] == 12
    assert (run_folder / "mistakes-worst.png").exists()
    assert (folder / "shared" / "README.md").exists()
    assert float(re.search(r"largest difference of the probabilities (\S+)", text)[1]) < 1e-4
    # The answer of the server: a class and its probability.
    name, probability = re.findall(r"\['(\w+)', (0\.\d+)\]", text)[-1]
    assert name in {path.name for path in (folder / "photos").iterdir()} and float(probability) > 0
