"""``python -m benchmarks``: speed, measured on an otherwise idle machine."""

from __future__ import annotations

from benchmarks import speed


def main() -> None:
    """Print each measurement beside its peer and its bar."""
    header = ("what", "energylens", "peer in the same run", "bar")
    lines = [header, *speed.run()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
