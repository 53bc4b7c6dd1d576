"""Custom contracts for import-linter: slices import each other only through their `__init__`,
and each uses only its own tables.

The slices, tables and locks to check are derived from the files on disk. A contract that finds
nothing to check is broken, because it would otherwise pass for ever.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grimp
from importlinter import Contract, ContractCheck, fields, output
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract

from tests.architecture.imports import imports_of_tests
from tests.architecture.locks import check_locks

HANDLERS, TABLES = ".handlers", ".tables"


class _NonEmpty:
    """Breaks a contract if a slice lacks a module that the contract names.

    Such a module, named with a wildcard like `features.*.handlers`, may have been renamed.
    """

    def expressions(self) -> Iterable[str]:
        raise NotImplementedError

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        missing = sorted(_missing(graph, self.expressions()))
        if missing:
            return ContractCheck(kept=False, metadata={"missing": missing})
        check: ContractCheck = super().check(graph, verbose)  # type: ignore[misc]  # a mixin
        return check

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module in check.metadata.get("missing", ()):
            output.print_error(f"There is no {module}: nothing was checked.")
        if "missing" not in check.metadata:
            super().render_broken_contract(check)  # type: ignore[misc]  # a mixin


class NonEmptyForbiddenContract(_NonEmpty, ForbiddenContract):
    """The contract `forbidden`, which also breaks if a module is missing."""

    def expressions(self) -> Iterable[str]:
        sources: Any = self.source_modules
        forbidden: Any = self.forbidden_modules
        return map(str, {*sources, *forbidden})


class NonEmptyAcyclicContract(_NonEmpty, AcyclicSiblingsContract):
    """The contract `acyclic_siblings`, which also breaks if there are no siblings."""

    def expressions(self) -> Iterable[str]:
        ancestors: Any = self.ancestors
        return [f"{ancestor}.*" for ancestor in ancestors]


class NeededKernelContract(Contract):
    """A feature imports each module of the kernel, itself or by way of another: what only the app
    uses belongs to the app.

    Configuration: `offered` are modules that the app needs too, whether a feature does or not.
    """

    offered = fields.SetField(subfield=fields.StringField(), required=False)

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        kernel = {
            each for each in graph.find_descendants("shared") if not graph.find_children(each)
        }
        offered: Any = self.offered
        needed = graph.find_upstream_modules("features", as_package=True)
        unneeded = sorted(kernel - needed - set(offered or ()))
        return ContractCheck(kept=not unneeded, metadata={"unneeded": unneeded})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module in check.metadata["unneeded"]:
            output.print_error(f"No feature imports {module}.")


class SlicesContract(Contract):
    """Only a slice itself imports the modules inside it; all other code imports its package.

    Configuration: `package` is the package whose subpackages are the slices.
    """

    package = fields.StringField()

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        slices = graph.find_children(str(self.package))
        violations = [
            f"{importer}:{details['line_number']} imports {imported}"
            for slice_ in sorted(slices)
            for importer, imported in _imports_from_outside(graph, slice_)
            for details in graph.get_import_details(importer=importer, imported=imported)
        ]
        violations += [
            f"{found.place} imports {found.imported}"
            for found in imports_of_tests(Path.cwd())
            if _is_inside_another(found.imported, f"{self.package}.{found.feature}", graph)
        ]
        metadata = {"violations": violations, "slices": slices}
        return ContractCheck(kept=bool(slices) and not violations, metadata=metadata)

    def render_broken_contract(self, check: ContractCheck) -> None:
        if not check.metadata["slices"]:
            output.print_error(f"There are no slices in {self.package}: nothing was checked.")
        for violation in check.metadata["violations"]:
            slice_ = ".".join(violation.rsplit(" ", 1)[1].split(".")[:2])
            output.print_error(
                f"{violation}; import what you need from {slice_}, or have it exported there."
            )


class TablesContract(Contract):
    """Each feature uses only its own tables, as tests/architecture/ownership.py derives them.

    Imports the features for that. The contract is broken if an import fails, or if no feature has
    a table.
    """

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        try:
            from tests.architecture.ownership import (
                check_tables,  # late: it imports the kernel, which may be broken
            )

            checked, violations = check_tables(graph, Path.cwd())
        except Exception as error:  # the other contracts must still be reported
            checked, violations = set(), [f"the features cannot be imported: {error}"]
        kept = bool(checked) and not violations
        return ContractCheck(kept=kept, metadata={"checked": checked, "violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        if not check.metadata["checked"]:
            output.print_error("No table of a feature was checked.")
        for violation in check.metadata["violations"]:
            output.print_error(violation)


class OwnersContract(Contract):
    """Each key of a private table begins with its owner, as tests/architecture/owner_keys.py says.

    A database that is distributed over machines by owner could not keep another key.
    """

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        try:
            from tests.architecture.owner_keys import check_keys  # late, as above

            checked, violations = check_keys()
        except Exception as error:
            checked, violations = [], [f"the features cannot be imported: {error}"]
        kept = bool(checked) and not violations
        return ContractCheck(kept=kept, metadata={"checked": checked, "violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        if not check.metadata["checked"]:
            output.print_error("No table with an owner_id was checked.")
        for violation in check.metadata["violations"]:
            output.print_error(violation)


class LocksContract(Contract):
    """Each advisory lock is named after the package that takes it.

    Two slices that used the same lock number would block each other.
    """

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        found, violations = check_locks(Path.cwd())
        kept = bool(found) and not violations
        return ContractCheck(kept=kept, metadata={"found": found, "violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        if not check.metadata["found"]:
            output.print_error("No advisory lock was found: nothing was checked.")
        for violation in check.metadata["violations"]:
            output.print_error(f"{violation}; say advisory_lock('<package>.<what>').")


def _imports_from_outside(graph: grimp.ImportGraph, slice_: str) -> list[tuple[str, str]]:
    """Returns (importer, imported) for each import of a module in the slice from outside it."""
    return [
        (importer, module)
        for module in sorted(graph.find_descendants(slice_))
        for importer in sorted(graph.find_modules_that_directly_import(module))
        if not f"{importer}.".startswith(f"{slice_}.")
    ]


def _is_inside_another(imported: str, slice_: str, graph: grimp.ImportGraph) -> bool:
    """Returns whether the import is inside another slice: tests, a module, or a name in one."""
    package, name, inside = [*imported.split("."), "", ""][:3]
    other = f"{package}.{name}"
    if package != slice_.split(".", maxsplit=1)[0] or other == slice_:
        return False
    return inside == "tests" or f"{other}.{inside}" in graph.modules


def _missing(graph: grimp.ImportGraph, expressions: Iterable[str]) -> set[str]:
    """Returns the modules that the wildcard expressions require and that do not exist.

    An expression that matches no slice is returned itself. A slice has the module itself, or in one
    of its parts. A slice without tables needs no handlers, because its router may need no
    statements.
    """
    missing = set()
    for expression in expressions:
        package, wildcard, rest = expression.partition(".*")
        if wildcard:
            slices, module = graph.find_children(package), rest.removeprefix(".*")
            if module == HANDLERS:
                slices = {slice_ for slice_ in slices if _has(graph, slice_, TABLES)}
            missing |= {slice_ + module for slice_ in slices if not _has(graph, slice_, module)}
            missing |= set() if slices else {expression}
    return missing


def _has(graph: grimp.ImportGraph, slice_: str, module: str) -> bool:
    """Returns whether the slice or one of its parts has the module."""
    places = {slice_, *graph.find_children(slice_)}
    return any(place + module in graph.modules for place in places)
