"""An import-linter contract: the kernel names no feature, not in strings either."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grimp
from importlinter import Contract, ContractCheck, output

KERNEL = ("shared", "tests/kit")
NAMES = r"""(?ix)
    /(?:{names})\b                                          # a path, or a folder
    | \b(?:{names})(?: : \w | \.(?!\w*\() \w)               # a scope, or a module
    | \b(?:FROM|INTO|UPDATE|JOIN|TABLE|ON)\s+(?:{names})\b  # a table in SQL
"""


class KernelNamesContract(Contract):
    """No string of the kernel or the test kit has a feature's path, scope, module or table: another
    product, with other features, uses the same kernel."""

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        names = [slice_.partition(".")[2] for slice_ in graph.find_children("features")]
        violations = list(named_features(Path.cwd(), names)) if names else ["there is no feature"]
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for violation in check.metadata["violations"]:
            output.print_error(violation)


def named_features(root: Path, names: list[str]) -> Iterator[str]:
    """Yields a line for each string of the kernel that names one of the features."""
    pattern = re.compile(NAMES.format(names="|".join(map(re.escape, sorted(names)))))
    for folder in KERNEL:
        for path in sorted((root / folder).rglob("*.py")):
            for node in _strings(ast.parse(path.read_text())):
                if found := pattern.search(str(node.value)):
                    place = f"{path.relative_to(root)}:{node.lineno}"
                    yield f"{place} names a feature: {found.group()!r}"


def _strings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yields the constants that are no docstrings: the examples of these may name anything."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield node
