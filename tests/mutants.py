"""Sample random mutants of the sources and print how many of them the unit tests kill.

`make mutants COUNT=100 PACKAGES="policy data"`. A mutant is one small change of one function: another comparison,
operator or constant, a condition that is always true or false, a return value or a call that is left out. Each is
written into a copy of the sources. Against the copy run the unit tests of its module, then those of its package, then
all of the program, until one fails, which is printed. Tests that do not end in time kill too, and are counted apart.
Left out are functions of at most three lines, `__init__` and its kind, and calls that only log or print.
"""

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("crds/src", "operator/src", "trainer_image/src")
UNIT = ROOT / "tests" / "unit"
TESTS = {
    "finetune_api": "api", "finetune_trainer": "trainer", "finetune_operator": "operator",
    "kubectl_finetune": "kubectl_finetune", "finetune_client": "finetune_client",
}  # fmt: skip
COMPARISONS = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
Function = ast.FunctionDef | ast.AsyncFunctionDef
TRIVIAL_LINES = 3
"""Functions of at most so many lines are left out."""
TIME_OUT = "time-out"


@dataclass(frozen=True)
class Mutant:
    """One change: which one of its file, and what to print of it."""

    path: Path
    number: int
    line: int
    function: str
    change: str

    def text(self) -> str:
        """Return the file as it becomes."""
        tree = _parse(self.path)
        _, _, change, _ = next(islice(_changes(tree), self.number, None))
        change()
        return ast.unparse(ast.fix_missing_locations(tree))

    @property
    def package(self) -> str:
        """The package below the distribution's, for example `policy`."""
        parts = self.path.parts[2:]
        return f"{parts[0]}.{parts[1]}" if len(parts) > 2 else parts[0]

    def tests(self) -> list[Path]:
        """The unit tests that mirror the module and its package, if there are any, and those of the whole program."""
        program, *folders, module = self.path.parts[2:]
        package = (UNIT / TESTS[program]).joinpath(*folders)
        mirrors = [package / f"test_{module}", package, UNIT / TESTS[program]]
        return [tests for tests in dict.fromkeys(mirrors) if tests.exists()]


def all_mutants(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    for number, (function, node, _, words) in enumerate(_changes(_parse(path))):
        yield Mutant(path, number, getattr(node, "lineno", function.lineno), function.name, words)


def _parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def _changes(tree: ast.Module) -> Iterator[tuple[Function, ast.AST, Callable[[], None], str]]:
    """Yield each change of the functions of a file as a function that makes it, with its place and description."""
    seen: set[ast.AST] = set()  # a function inside another is a part of both
    for function in ast.walk(tree):
        if not isinstance(function, Function):
            continue
        if (function.end_lineno or 0) - function.lineno < TRIVIAL_LINES or function.name.startswith("__"):
            continue
        for node in ast.walk(function):
            if node in seen:
                continue
            seen.add(node)
            for name, value, words in _replacements(node):
                yield function, node, partial(setattr, node, name, value), words


def _replacements(node: ast.AST) -> Iterator[tuple[str, object, str]]:
    """Yield the attributes of a node to replace, each with its new value and a description."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and (other := COMPARISONS.get(type(node.ops[0]))):
        yield ("ops", [other()], f"{type(node.ops[0]).__name__} → {other.__name__}")
    elif isinstance(node, ast.BoolOp):
        other = ast.And if isinstance(node.op, ast.Or) else ast.Or
        yield ("op", other(), f"{type(node.op).__name__} → {other.__name__}")
    elif isinstance(node, ast.BinOp) and (other := OPERATORS.get(type(node.op))):
        yield ("op", other(), f"{type(node.op).__name__} → {other.__name__}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield ("operand", ast.UnaryOp(op=ast.Not(), operand=node.operand), "not x → x")
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ("value", not node.value, f"{node.value} → {not node.value}")
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield ("value", node.value + 1, f"{node.value} → {node.value + 1}")
    elif isinstance(node, ast.If | ast.IfExp):
        yield ("test", ast.Constant(value=True), "condition → True")
        yield ("test", ast.Constant(value=False), "condition → False")
    elif isinstance(node, ast.Return) and node.value is not None and not _is_falsy(node.value):
        yield ("value", ast.Constant(value=None), "return → return None")
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _is_output(node.value):
        yield ("value", ast.Constant(value=None), "call → nothing")


def _is_falsy(node: ast.expr) -> bool:
    """Return whether it is None, or False, which None equals for nearly every caller."""
    return isinstance(node, ast.Constant) and (node.value is None or node.value is False)


def _is_output(call: ast.Call) -> bool:
    return ast.unparse(call.func).startswith(("logger.", "logging.", "print", "warnings."))


class Copy:
    """A copy of the sources that the tests import in place of the installed ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for source in SOURCES:
            shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
        for path in folder.rglob("*.py"):  # as a mutant is written, so that it differs in its change alone
            path.write_text(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))), encoding="utf-8")
        paths = os.pathsep.join(str(folder / source) for source in SOURCES)
        self.environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    def run(self, tests: Path, seconds: float) -> str:
        """Run tests until the first failure; return which one failed, or why none passed, and nothing if all passed."""
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", str(tests),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=self.environment, capture_output=True, check=False, timeout=seconds, text=True
            )
        except subprocess.TimeoutExpired:
            return TIME_OUT
        if done.returncode == 0:
            return ""
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        return failed[1] if failed else f"exit code {done.returncode}"

    def kill(self, mutant: Mutant, seconds: dict[Path, float]) -> str:
        """Write the mutant into the copy, run its tests, and put the file back; return what killed it."""
        target = self.folder / mutant.path
        before = target.read_bytes()
        target.write_text(mutant.text(), encoding="utf-8")
        try:
            return next((killer for tests in mutant.tests() if (killer := self.run(tests, seconds[tests]))), "")
        finally:
            target.write_bytes(before)


def find_files(wanted: list[str]) -> list[Path]:
    """Return the source files of the packages, or all."""
    files = sorted(path.relative_to(ROOT) for source in SOURCES for path in (ROOT / source).rglob("*.py"))
    if not wanted:
        return files
    return [path for path in files if any(word in path.parts or word == path.parts[2] for word in wanted)]


def main() -> int:
    """Sample, try and print; exit code 1 if a package kills less than `--least` per cent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="for example policy, data, kubectl_finetune; default: all")
    parser.add_argument("--count", type=int, default=50, help="mutants to try (default 50)")
    parser.add_argument("--seed", type=int, default=None, help="of the sample; printed, so that it can be repeated")
    parser.add_argument("--least", type=float, default=0.0, help="per cent that each package must kill")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.randrange(10**6)
    chance = random.Random(seed)
    files = find_files(asked.packages)
    if not files:
        parser.error(f"no source file belongs to {', '.join(asked.packages)}")
    mutants = [mutant for path in files for mutant in all_mutants(path)]
    sample = chance.sample(mutants, min(asked.count, len(mutants)))
    print(f"{len(sample)} of {len(mutants)} mutants, seed {seed}", flush=True)
    tried: dict[str, int] = defaultdict(int)
    killed: dict[str, int] = defaultdict(int)
    timed_out = 0
    with tempfile.TemporaryDirectory() as folder:
        sources = Copy(Path(folder))
        seconds: dict[Path, float] = {}
        for tests in sorted({tests for mutant in sample for tests in mutant.tests()}):
            began = time.monotonic()
            if failure := sources.run(tests, 1800):
                print(f"{tests} without a mutant: {failure}; see make unit", file=sys.stderr)
                return 2
            seconds[tests] = 120 + 10 * (time.monotonic() - began)
        for number, mutant in enumerate(sample, start=1):
            killer = sources.kill(mutant, seconds)
            tried[mutant.package] += 1
            killed[mutant.package] += bool(killer)
            timed_out += killer == TIME_OUT
            state = f"killed by {killer}" if killer else "SURVIVES"
            print(f"{number:4} {mutant.path}:{mutant.line} {mutant.function}: {mutant.change}  {state}", flush=True)
    print(f"{timed_out} of the killed by a time-out")
    return print_rates(tried, killed, asked.least)


def print_rates(tried: dict[str, int], killed: dict[str, int], least: float) -> int:
    """Print the kill rate of each package; return 1 if one is too low."""
    low = False
    for package in sorted(tried):
        rate = 100 * killed[package] / tried[package]
        low |= rate < least
        print(f"{package:34} {killed[package]:4} of {tried[package]:4} killed  {rate:5.1f} %")
    total, dead = sum(tried.values()), sum(killed.values())
    print(f"{'all':34} {dead:4} of {total:4} killed  {100 * dead / max(total, 1):5.1f} %")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
