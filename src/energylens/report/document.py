"""The parts that a report is made of: paragraphs, facts, tables, figures, sections."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from energylens.errors import MissingExtraError
from energylens.report.drawing import Picture

LISTED = 40  # most lines of a table that grows with the data

# ------------------------------------------------------------------------------------- the blocks


@dataclass(frozen=True, kw_only=True)
class Prose:
    """A paragraph; ``lead`` sets it large."""

    text: str
    lead: bool = False
    kind: str = "prose"


@dataclass(frozen=True, kw_only=True)
class Items:
    """A list of sentences, under a title if it has one."""

    items: tuple[str, ...]
    title: str = ""
    kind: str = "items"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Few numbers that matter most: label, value, note."""

    facts: tuple[tuple[str, str, str], ...]
    kind: str = "facts"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells by row; the row whose first cell is ``highlight`` stands out."""

    title: str = ""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    highlight: str = ""
    kind: str = "table"

    def short(self, column: int) -> bool:
        """Whether the cells of a column are too short to be broken."""
        longest = max((len(row[column]) for row in self.rows), default=0)
        return longest <= (18 if column else 40)

    def numeric(self, column: int) -> bool:
        """Whether every cell of a column begins as a number does, or says there is none."""
        return all(re.match(r"(?:[-+−]|> )?[\d–]", row[column]) for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Equation:
    """The law, line by line, for a page and for text."""

    tex: tuple[str, ...]
    lines: tuple[str, ...]
    name: str = "equation"
    kind: str = "equation"

    def mathml(self) -> list[str]:
        """Typeset each line, as an element that the browser sets with the page's letters.

        Raises
        ------
        MissingExtraError
            If latex2mathml is not installed.
        """
        try:
            from latex2mathml.converter import convert
        except ImportError as error:
            raise MissingExtraError("latex2mathml", "report", "A formula in a page") from error
        return [
            convert(tex, display="block").replace(
                "<math ", f'<math aria-label="{html.escape(" ".join(line.split()))}" ', 1
            )
            for tex, line in zip(self.tex, self.lines, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its numbers beneath."""

    picture: Picture
    table: Table | None
    kind: str = "figure"

    @classmethod
    def of(cls, picture: Picture) -> Figure:
        """Put a picture's numbers beneath it; the row of the law stands out."""
        if not picture.rows:
            return cls(picture=picture, table=None)
        table = Table(
            caption=f"The numbers: {picture.title[0].lower()}{picture.title[1:]}",
            columns=picture.columns,
            rows=picture.rows,
            highlight="energylens",
        )
        return cls(picture=picture, table=table)


Block = Prose | Items | Facts | Table | Equation | Figure


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of the report; a page folds away all but its first ``open_blocks``."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    open_blocks: int | None = None

    @property
    def folded(self) -> tuple[Block, ...]:
        """What a page shows only when it is asked for."""
        return () if self.open_blocks is None else self.blocks[self.open_blocks :]

    @property
    def folded_titles(self) -> str:
        """What is folded away, by its titles."""
        titles = [
            block.picture.title if isinstance(block, Figure) else getattr(block, "title", "")
            for block in self.folded
        ]
        named = [title for title in titles if title]
        return "; ".join(named) or "More"


@dataclass(frozen=True, kw_only=True)
class Banner:
    """Where the joules come from; loud if some of them were not measured."""

    loud: bool
    headline: str
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is said."""

    title: str
    subtitle: str
    banner: Banner
    sections: tuple[Section, ...]
