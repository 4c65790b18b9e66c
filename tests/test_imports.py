"""The core loads without TensorFlow; imports run one way; importing is quick."""

import ast
import pathlib
import subprocess
import sys

import pytest

import vmoe_prc

PACKAGE = pathlib.Path(vmoe_prc.__file__).parent
CORE = [
    "agreement",
    "alignment",
    "checkpoints.checksum",
    "checkpoints.export",
    "checkpoints.orbax",
    "checkpoints.params",
    "checkpoints.safetensors",
    "checkpoints.transfer",
    "checkpoints.vmoe_format",
    "class_folders",
    "compilation_cache",
    "config",
    "device_peak",
    "errors",
    "evaluate",
    "initialization",
    "lock",
    "losses",
    "mesh",
    "metrics",
    "mixup",
    "models",
    "optimizer",
    "preemption",
    "processes",
    "recipes",
    "report.__main__",
    "schedule",
    "study.__main__",
    "train_state",
    "traffic",
    "train_step",
]
# Each layer imports only layers above it.
LAYERS = [
    {
        "arrays",
        "compilation_cache",
        "data.lifetime",
        "config",
        "device_peak",
        "errors",
        "files",
        "summary",
        "progress",
    },
    {
        "bootstrap",
        "class_folders",
        "config_file",
        "preemption",
        "processes",
        "workdir",
        "recipes",
        "mesh",
        "alignment",
    },
    {"lock"},
    {"data.pp", "data.affine", "data.tfrecords", "data.photometric"},
    {"data.decoding", "data.resample"},
    {"data.views"},
    {
        "data.image_ops",
        "data.datasets.digits",
        "data.datasets.folder",
        "data.datasets.imagenet21k",
        "data.feed",
    },
    {"data.two_views", "data.randaugment", "data.datasets"},
    {"data.source", "data.prepare"},
    {"data.preprocess"},
    {"data.bad_examples"},
    {"data.pipeline"},
    {"data"},
    {"device_data"},
    {"models.rows", "models.grouped"},
    {"models.dispatch", "models.attention", "models.flops", "models.sharded"},
    {"models.routing", "models.dropless"},
    {"models.moe"},
    {"models.vit"},
    {"models"},
    {"losses.classification", "losses.balance", "losses.consistency"},
    {"losses"},
    {"agreement", "schedule", "mixup", "traffic"},
    {"optimizer", "train_state"},
    {"train_step"},
    {"fewshot"},
    {"checkpoints"},
    {"checkpoints.checksum"},
    {"checkpoints.orbax", "checkpoints.transfer"},
    {"checkpoints.vmoe_format", "checkpoints.safetensors"},
    {"checkpoints.params"},
    {"checkpoints.export"},
    {"initialization"},
    {"metrics", "evaluate"},
    {"report", "report.published", "report.runs"},
    {"report.experiments"},
    {"report.tables"},
    {"report.paired"},
    {"report.formats", "report.differences"},
    {"writers"},
    {
        "analysis",
        "analysis.palette",
        "analysis.routing",
        "analysis.perturbations",
        "analysis.attacks",
        "analysis.opened_run",
        "analysis.specialisation",
    },
    {"analysis.panels", "analysis.similarity"},
    {
        "analysis.plots",
        "analysis.maps",
        "analysis.routing_table",
        "analysis.agreement",
        "analysis.robustness",
        "analysis.curves",
        "analysis.differences",
        "analysis.specialisation_figure",
    },
    {"analysis.training_picture", "analysis.pictures", "analysis.experts"},
    {"profiling", "program"},
    {"evaluations", "non_finite"},
    {"report.curves", "report.embedding"},
    {"report.page", "report.models"},
    {"report.routing", "report.saved"},
    {"report.gather"},
    {"report.__main__"},
    {"loop", "analyze"},
    {"study", "study.plan"},
    {"study.results", "study.runner"},
    {"main"},
    {"study.__main__"},
]


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmoe_prc"):
            base = node.module.removeprefix("vmoe_prc").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / inner.replace(".", "/")).with_suffix(".py").exists()
                is_package = (PACKAGE / inner.replace(".", "/")).is_dir()
                yield inner if is_module or is_package else base


def test_imports_run_one_way():
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        if not name:
            continue
        assert name in layer, f"{name} has no layer"
        for imported in imported_modules(path):
            parent = name.startswith(f"{imported}.") or imported.startswith(f"{name}.")
            assert parent or layer[imported] < layer[name], f"{name} imports {imported}"


def run_without_tensorflow(code):
    blocked = "import sys; sys.modules['tensorflow'] = sys.modules['clu'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False
    )


def test_core_loads_without_tensorflow():
    code = "\n".join(f"import vmoe_prc.{module}" for module in CORE)
    result = run_without_tensorflow(code)
    assert result.returncode == 0, result.stderr


def test_the_block_on_tensorflow_works():
    assert run_without_tensorflow("import vmoe_prc.data").returncode != 0


@pytest.mark.parametrize("module", ["vmoe_prc", "vmoe_prc.main"])
def test_importing_loads_no_framework(module):
    code = f"import {module}, sys; sys.exit(bool({{'jax', 'tensorflow'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
