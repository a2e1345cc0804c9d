"""The house rules that a program can check: layers, suffixes, sizes, docstrings, cost of import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxvsa"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    *MODULES,
    *(p for d in ("tests", "benchmarks") for p in ROOT.glob(f"{d}/**/*.py")),
]

STEPS = (
    {"core"},
    {"layers", "data", "metrics"},
    {"systems"},
    {"training", "evaluation", "interop"},
    {"workflows"},
    {"doors"},
)
STEP = {room: step for step, rooms in enumerate(STEPS) for room in rooms}
FOREIGN = ("tensorflow", "torch", "transformers", "peft", "clu")
HEAVY = ("matplotlib", "sklearn", "tensorflow_datasets")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything a file imports, inside functions too; `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """`jaxvsa.data.plan` -> data; what lies directly in the package is a door."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in STEP else "doors"


def wrong_imports(module: str, source: str) -> list[str]:
    """Imports of `module` (`jaxvsa.data.plan`) that the staircase forbids."""
    own, found, seen = room(module), [], {}
    for name in imports(ast.parse(source)):
        top = name.partition(".")[0]
        if top in FOREIGN or (own == "data" and top in ("flax", "optax")):
            found.append(f"{module} imports {top}")
        if top != "jaxvsa":
            continue
        other = room(name)
        if own == other == "systems" and module.count(".") > 2:
            system, target = module.split(".")[2], name.split(".")[2]
            if (PACKAGE / "systems" / target).is_dir() and target != system:
                found.append(f"{module} imports another system, {name}")
        if own != other and STEP[other] >= STEP[own]:
            found.append(f"{module} ({own}) imports {name} ({other})")
        if own not in ("workflows", "doors", other):
            first = seen.setdefault(STEP[other], other)
            if first != other:
                found.append(f"{module} sees two rooms of one step, {first} and {other}")
    return found


def wrong_terms(source: str) -> list[str]:
    """Einsum terms that differ from the suffixes of their operands or of the result's name."""
    tree, found = ast.parse(source), []
    results = {
        id(node.value): node.targets[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and len(node.targets) == 1
    }
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and called(call) == "einsum" and call.args):
            continue
        spec = call.args[0]
        if not (isinstance(spec, ast.Constant) and isinstance(spec.value, str)):
            found.append(f"line {call.lineno}: the terms of an einsum are written out")
            continue
        left, _, right = spec.value.replace(" ", "").partition("->")
        terms, operands = left.split(","), call.args[1:]
        if len(terms) != len(operands):
            found.append(f"line {call.lineno}: {len(terms)} terms, {len(operands)} operands")
        named = [*zip(terms, operands, strict=False), (right, results.get(id(call)))]
        for term, operand in named:
            suffix = suffix_of(operand)
            if suffix is not None and suffix != term:
                found.append(f"line {call.lineno}: '{term}' is not the suffix of _{suffix}")
    return found


def called(call: ast.Call) -> str:
    """The last part of the name of the function that is called."""
    function = call.func
    return getattr(function, "attr", getattr(function, "id", ""))


def suffix_of(operand: ast.AST | None) -> str | None:
    """What follows the last underscore of a plain name or attribute; None if there is nothing."""
    name = getattr(operand, "attr", getattr(operand, "id", ""))
    stem, _, suffix = name.rpartition("_")
    return suffix if stem else None


def missing_docstrings(source: str) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""

    def public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                # `setup` is Linen's own name for what `__init__` would do.
                if child.name.startswith("_") or child.name == "setup":
                    continue
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from public(child, f"{child.name}.")

    tree = ast.parse(source)
    nodes = [("module", tree), *public(tree)]
    return [name for name, node in nodes if not ast.get_docstring(node)]


def too_long(source: str) -> list[str]:
    """Files over 400 lines and functions over 50, where a docstring costs nothing."""
    lines = len(source.splitlines())
    found = [f"{lines} lines"] if lines > 400 else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            text = node.body[0] if ast.get_docstring(node) else None
            size = node.end_lineno - node.lineno + 1
            size -= text.end_lineno - text.lineno + 1 if text else 0
            found += [f"{node.name}: {size} lines"] if size > 50 else []
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.smoke
@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_keeps_the_rules(path):
    source = path.read_text(encoding="utf-8")
    assert wrong_imports(name_of(path), source) == []
    assert wrong_terms(source) == []
    assert missing_docstrings(source) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_is_short(path):
    assert too_long(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("core.trees", "from jaxvsa.data import plan", "(core) imports jaxvsa.data.plan (data)"),
        ("data.plan", "import jaxvsa.layers.attention", "(data) imports jaxvsa.layers.attention"),
        ("data.plan", "def f():\n    import optax", "imports optax"),
        ("training.loop", "from jaxvsa.evaluation.evaluator import run", "imports jaxvsa.evalu"),
        ("workflows.fit", "from jaxvsa.train import main", "imports jaxvsa.train.main (doors)"),
        ("interop.a", "import jaxvsa.data.text, jaxvsa.layers.attention", "two rooms of one step"),
        ("systems.clever.loss", "from jaxvsa.systems.vccsa import loss", "another system"),
        ("interop.torch_file", "def f():\n    import torch.nn", "imports torch"),
    ],
)
def test_staircase_catches(module, line, message):
    (found,) = wrong_imports(f"jaxvsa.{module}", line)
    assert message in found


def test_staircase_lets_lower_steps_and_the_own_room_through():
    source = "import jaxvsa.core.files, jaxvsa.data.plan, jaxvsa.layers.attention, flax"
    assert wrong_imports("jaxvsa.workflows.fit", source) == []
    assert wrong_imports("jaxvsa.systems.vccsa.loss", "import jaxvsa.systems.base") == []
    assert wrong_imports("jaxvsa.train", "from jaxvsa import __version__") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('y_bd = jnp.einsum("bt,td->bd", x_bt, k_dt)', "'td' is not the suffix of _dt"),
        ('y_bd = jnp.einsum("bt,td->db", x_bt, k_td)', "'db' is not the suffix of _bd"),
        ('y = f(np.einsum("bq->b", self.x_bt))', "'bq' is not the suffix of _bt"),
        ("y_b = einsum(terms, x_bt)", "written out"),
        ('y_b = jnp.einsum("bt,t->b", x_bt)', "2 terms, 1 operands"),
    ],
)
def test_suffixes_catch(line, message):
    (found,) = wrong_terms(line)
    assert message in found


def test_suffixes_let_equal_terms_and_bare_names_through():
    assert wrong_terms('y_bd = jnp.einsum("bt,td->bd", x_bt, self.kernel_td)') == []
    assert wrong_terms('y_bd = jnp.einsum("bt,td->bd", x, f(k)) + 1') == []


def test_sizes_and_docstrings_catch():
    long = "def f():\n" + "    x = 1\n" * 50
    assert too_long(long) == ["f: 51 lines"]
    assert too_long("x = 1\n" * 401) == ["401 lines"]
    source = '"""M."""\nclass A:\n    """A."""\n    def b(self): ...\n    def _c(self): ...\n'
    assert missing_docstrings(source) == ["A.b"]
    assert missing_docstrings("x = 1") == ["module"]


@pytest.mark.smoke
def test_importing_everything_does_no_work():
    names = [name_of(path) for path in MODULES]
    code = f"""
import importlib, sys
import jaxvsa
assert "jax" not in sys.modules, "import jaxvsa imports jax"
for name in {names}:
    importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a device was looked up"
print(*sorted({{*sys.modules}} & {{*{FOREIGN + HEAVY}}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
