"""Contracts of import-linter's own kind: slices meet only through their `__init__`, and each
touches only its own tables."""

from pathlib import Path

import grimp
from importlinter import Contract, ContractCheck, fields, output


class SlicesContract(Contract):
    """Whatever is below a slice is imported by that slice alone; neighbours import its package.

    Configuration: `package` holds the slices, one subpackage each. They are derived from
    what is on disk, and a package without any breaks the contract: a check that has nothing
    to check would pass for ever.
    """

    package = fields.StringField()

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        slices = graph.find_children(str(self.package))
        breaches = [
            details
            for slice_ in sorted(slices)
            for importer, imported in _imports_from_outside(graph, slice_)
            for details in graph.get_import_details(importer=importer, imported=imported)
        ]
        metadata = {"breaches": breaches, "slices": slices}
        return ContractCheck(kept=bool(slices) and not breaches, metadata=metadata)

    def render_broken_contract(self, check: ContractCheck) -> None:
        if not check.metadata["slices"]:
            output.print_error(f"There are no slices in {self.package}: nothing was checked.")
        for breach in check.metadata["breaches"]:
            slice_ = ".".join(breach["imported"].split(".")[:2])
            output.print_error(
                f"{breach['importer']}:{breach['line_number']} imports {breach['imported']};"
                f" import what you need from {slice_}, or have it exported there."
            )


class TablesContract(Contract):
    """What belongs to whom is derived from what is on disk; where no feature has a table, the
    contract is broken. To find out, the features are imported: if that fails, so does this.
    """

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        try:
            from tests.ownership import check_tables  # it imports the kernel, which may be broken

            checked, breaches = check_tables(graph, Path.cwd())
        except Exception as error:  # the other contracts are to be heard too
            checked, breaches = set(), [f"the features cannot be imported: {error}"]
        kept = bool(checked) and not breaches
        return ContractCheck(kept=kept, metadata={"checked": checked, "breaches": breaches})

    def render_broken_contract(self, check: ContractCheck) -> None:
        if not check.metadata["checked"]:
            output.print_error("No table of a feature was checked.")
        for breach in check.metadata["breaches"]:
            output.print_error(breach)


def _imports_from_outside(graph: grimp.ImportGraph, slice_: str) -> list[tuple[str, str]]:
    """(importer, imported) where a module below the slice is imported by another slice."""
    neighbours = slice_.split(".", maxsplit=1)[0] + "."
    return [
        (importer, module)
        for module in sorted(graph.find_descendants(slice_))
        for importer in sorted(graph.find_modules_that_directly_import(module))
        if importer.startswith(neighbours) and not f"{importer}.".startswith(f"{slice_}.")
    ]
