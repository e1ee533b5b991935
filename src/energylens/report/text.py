"""A report as text for a terminal."""

from __future__ import annotations

from dataclasses import replace

from energylens.report.document import Block, Equation, Facts, Figure, Items, Prose, Report, Table
from energylens.words import WIDTH, wrapped

TALLEST = 6  # lines of a cell of the text beyond which rows are set under each other


def shortest(report: Report) -> str:
    """Set the answer alone, in some twenty lines: what to run, how sure, on what it rests."""
    lines = [*wrapped(report.subtitle), *wrapped(report.banner.headline)]
    for block in report.sections[0].blocks:
        if isinstance(block, Items) and block.title != "How sure":
            continue
        if isinstance(block, Items):
            lines += ["", *(line for item in block.items for line in wrapped(item))]
        elif isinstance(block, Prose) and not block.lead:
            continue
        else:
            lines += ["", *_block_text(block)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def lines_of(report: Report, *, brief: bool = False) -> str:
    """Set what was gathered as text of 80 columns.

    Figures become their text alternative and their numbers; ``brief`` leaves out all but what
    comes first. Needs no optional package.
    """
    edge = "!" if report.banner.loud else "|"
    lines = [*wrapped(report.title), *wrapped(report.subtitle), ""]
    for line in (report.banner.headline, *report.banner.lines):
        lines += [f"{edge} {part}" for part in wrapped(line, WIDTH - 2)]
    for section in report.sections[: 1 if brief else None]:
        lines += ["", "", section.title.upper(), "=" * len(section.title)]
        for block in section.blocks:
            lines += ["", *_block_text(block)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _block_text(block: Block) -> list[str]:
    match block:
        case Prose():
            return wrapped(block.text)
        case Items():
            lines = [line for i in block.items for line in wrapped(i, indent="  ", first="- ")]
            return [f"{block.title}:", *lines] if block.title else lines
        case Facts():
            width = max(len(label) for label, _, _ in block.facts)
            return [
                line
                for label, value, note in block.facts
                for line in wrapped(
                    f"{value}, {note}" if note else value,
                    indent=" " * (width + 2),
                    first=f"{label:<{width}}  ",
                )
            ]
        case Equation():
            return [f"    {part}" for line in block.lines for part in line.split("\n")]
        case Table():
            return _table_text(block)
        case Figure():
            picture = block.picture
            return [
                *wrapped(f"{picture.title}: {picture.alternative} {picture.caption}"),
                *(["", *_table_text(block.table)] if block.table else []),
            ]


def _table_text(table: Table) -> list[str]:
    """Set a table in 80 columns; where its words do not fit even wrapped, row under row."""
    grid = [table.columns, *table.rows]
    count = len(table.columns)
    room = WIDTH - 2 * (count - 1)
    widths = [max(len(row[j]) for row in grid) for j in range(count)]
    least = [
        max((len(word) for row in grid for word in row[j].split()), default=1) for j in range(count)
    ]
    title = [f"{table.title}: "] if table.title else []
    lines = [*wrapped("".join([*title, table.caption])), ""]
    floor = [least[j] if table.numeric(j) else min(16, least[j]) for j in range(count)]
    if sum(floor) > room and all(table.numeric(j) for j in range(1, count)):
        # Numbers of one kind of thing: as many as fit, then the others beneath.
        fitting, used = 1, widths[0]
        while used + 2 + floor[fitting] <= WIDTH:
            used += 2 + floor[fitting]
            fitting += 1
        upper, lower = (
            replace(
                table,
                title=title,
                caption=caption,
                columns=tuple(table.columns[j] for j in kept),
                rows=tuple(tuple(row[j] for j in kept) for row in table.rows),
            )
            for title, caption, kept in (
                (table.title, table.caption, range(fitting)),
                ("", "Continued:", (0, *range(fitting, count))),
            )
        )
        return [*_table_text(upper), "", *_table_text(lower)]
    while sum(widths) > room and widths != floor:
        # Narrow the widest column that can still be narrowed, words before numbers.
        able = [j for j in range(count) if widths[j] > floor[j]]
        widths[max(able, key=lambda j: widths[j])] -= 1
    tallest = max(
        (len(cell) / widths[j] for row in table.rows for j, cell in enumerate(row)), default=0
    )
    if sum(widths) > room or tallest > TALLEST:
        label = max(len(name) for name in table.columns[1:])
        for row in table.rows:
            lines += wrapped(f"{table.columns[0]} {row[0]}" if table.numeric(0) else row[0])
            for name, cell in zip(table.columns[1:], row[1:], strict=True):
                lines += wrapped(cell, indent=" " * (label + 4), first=f"  {name:<{label}}  ")
        return lines

    def set_row(row: tuple[str, ...]) -> list[str]:
        cells = [wrapped(cell, widths[j]) for j, cell in enumerate(row)]
        height = max(map(len, cells))
        filled = [cell + [""] * (height - len(cell)) for cell in cells]
        return [
            "  ".join(
                part.rjust(widths[j]) if table.numeric(j) else part.ljust(widths[j])
                for j, part in enumerate(parts)
            )
            for parts in zip(*filled, strict=True)
        ]

    lines += [*set_row(table.columns), "  ".join("-" * width for width in widths)]
    for row in table.rows:
        lines += set_row(row)
    return lines
