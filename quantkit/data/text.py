"""Texts in files: with labels a `.tsv` (a text, a tab and its label in each line) or a `.csv` with a comma; without, a `.txt`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from quantkit.core.errors import DataError

SEPARATORS = {".tsv": "\t", ".csv": ","}
LINES = ".txt"  # a text in each line
HEADINGS = ("label", "labels", "target", "class")


def read_lines(path: Path) -> list[str]:
    """The texts of a file without labels, one a line; empty lines are left out. Raises DataError as `read_texts`."""
    if path.suffix != LINES:
        raise DataError(f"{path} for a network that continues texts", "a .txt with a text in each line", "leave the labels out")
    if not path.exists():
        raise DataError(f"no file {path}", "a .txt with a text in each line", "check the path")
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", "text in UTF-8", "save it again as UTF-8") from error
    if not any(texts):
        raise DataError(f"{path} has no lines", "a text in each", "copy or download it again")
    return [text for text in texts if text]


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """The texts and their labels, as text. A first line whose label is a heading is left out.

    Raises DataError for a file that is missing, empty or not UTF-8, and for a line without a label, by its number.
    """
    if path.suffix not in SEPARATORS:
        raise DataError(f"{path} for a network that wants labels", "a .tsv or .csv, a text and its label in each line", "add the labels")
    if not path.exists():
        raise DataError(f"no file {path}", "a .tsv or .csv of texts and labels", "check the path")
    separator = SEPARATORS[path.suffix]
    # A tab never stands in a text, a quotation mark does.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    texts, labels = [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter=separator, quoting=quoting), 1):
                if not row:
                    continue
                if len(row) != 2:
                    got = f"line {number} of {path} has {len(row)} columns"
                    raise DataError(got, "two: a text and its label", f"separate them by one {'tab' if separator != ',' else 'comma'}")
                texts.append(row[0])
                labels.append(row[1])
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", "text in UTF-8", "save it again as UTF-8") from error
    if labels and labels[0].strip().lower() in HEADINGS:
        texts, labels = texts[1:], labels[1:]
    if not texts:
        raise DataError(f"{path} has no lines", "a text and its label in each", "copy or download it again")
    return texts, labels
