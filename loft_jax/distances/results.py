"""The results of a comparison of checkpoints: as a search of tickets, and as a page with figures."""

from collections.abc import Sequence
from dataclasses import replace

from loft_jax.distances.checkpoints import Checkpoints
from loft_jax.distances.figures import figures_of
from loft_jax.files import stop_on_write_error, write_atomically
from loft_jax.filters import Rules, Scope
from loft_jax.report import Part, Table, make_picture, render, style, write_tables
from loft_jax.tickets import Reference, SearchFiles, TicketSearch

_PAGE, _FIGURES, _TABLES = "report.html", "figures", "tables"


def compare(
    checkpoints: Checkpoints, reference: int, ratios: Sequence[float], scope: Scope, rules: Rules
) -> TicketSearch:
    """Rank the filters of every checkpoint, measure distances and draw tickets.

    Args:
      checkpoints: what is compared.
      reference: number of the checkpoint from which distances are measured.
      ratios, scope, rules: how tickets are drawn, as in `Ticket`.

    Returns:
      The results, in the files' form of a run: round t is checkpoint t, and the column `run` its file. Of a checkpoint
      alone the distances are None.

    Raises:
      UserError: a pattern of the rules matches no layer.
    """
    of_reference = Reference(checkpoints, reference)
    found = TicketSearch.compute(checkpoints, of_reference, ratios, scope, checkpoints.norm, rules=rules)
    rows = [row | {"run": str(checkpoints.paths[row["round"]])} for row in found.rows]
    if len(checkpoints.rounds) == 1:
        rows = [row | dict.fromkeys((column for column in row if column.startswith("to_")), None) for row in rows]
    names = {"checkpoints": checkpoints.names, "files": list(map(str, checkpoints.paths))}
    return replace(found, rows=rows, options=found.options | names)


def write_page(checkpoints: Checkpoints, found: TicketSearch) -> tuple[int, int]:
    """Write report.html with its figures and tables, from the written results.

    Returns:
      The number of figures, and the bytes of the page.

    Raises:
      RunStopped: they cannot be written.
    """
    out = checkpoints.path
    search = SearchFiles.read(checkpoints.directory)
    assert search is not None, "the results are written before their page"
    with stop_on_write_error(out / _PAGE):
        for name in (_FIGURES, _TABLES):
            (out / name).mkdir(exist_ok=True)
            for before in (out / name).glob("*"):
                before.unlink()
        with style():
            draws = figures_of(checkpoints, search, found.tickets)
            pictures = [picture for draw in draws if (picture := make_picture(draw, out / _FIGURES))]
    table = Table("layers", "Layers", _layer_rows(found), "Distances are divided by chance.")
    missing = [("left out", checkpoints.unmatched)] if checkpoints.unmatched else []
    part = Part(_title(checkpoints), missing=missing, pictures=pictures, tables=[table])
    write_tables([part], out / _TABLES)
    page = render("LoFT: distances of checkpoints", [part]).encode()
    write_atomically(out / _PAGE, page)
    return len(pictures), len(page)


def _layer_rows(found: TicketSearch) -> list[dict]:
    """Return a row for each layer: its filters, and the distance of every checkpoint from the reference."""
    names = found.options["checkpoints"]
    rows = {group: {"layer": group, "filters": ranks.shape[1]} for group, ranks in found.rankings.items()}
    for row in found.rows:
        distance = row["to_reference_normalised"]
        rows[row["group"]][names[row["round"]]] = None if distance is None else round(distance, 3)
    return list(rows.values())


def _title(checkpoints: Checkpoints) -> str:
    names = checkpoints.names
    return names[0] if len(names) == 1 else f"{len(names)} checkpoints, from {names[0]} to {names[-1]}"
