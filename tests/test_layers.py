"""Imports point down: the order of the packages is part of the design, so it is a test."""

import ast
import subprocess
import sys
from pathlib import Path

import nucfast

LEVELS = [
    {"errors", "version"},
    {"_core"},
    {"ops"},
    {"nuclei", "slide", "engine", "metrics"},
    {"output"},
    {"testing", "pipeline"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
PACKAGE = Path(nucfast.__file__).parent
FORBIDDEN = {"torch", "nucfast_training", "nucfast_export"}
# Neither is needed before work begins, and each costs more than the whole of `nucfast --help` may.
HEAVY = ["torch", "pyarrow", "cv2", "openvino", "onnxruntime", "openslide", "tifffile", "rich"]


def imported(path: Path) -> list[str]:
    """Dotted names that a module imports when it is itself imported, whatever the style."""
    names = []
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += list(ast.iter_child_nodes(node))
    return names


def test_imports_point_down():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if part in {"__init__", "bundles"}:
            continue
        for name in imported(path):
            top, *rest = name.split(".")
            if top in FORBIDDEN:
                wrong.append(f"{path.name} imports {name}")
            if top == "nucfast" and rest and LEVEL.get(rest[0], 0) > LEVEL[part]:
                wrong.append(f"{part}: {path.name} imports {name}")
    assert wrong == []


def test_every_package_has_a_level():
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__", "bundles"} <= set(LEVEL)


def test_import_is_light():
    code = f"import sys, nucfast, nucfast.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
