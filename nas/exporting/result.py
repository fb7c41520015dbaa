"""What an export returns."""

from dataclasses import dataclass
from pathlib import Path

from nas.exporting.comparison import Accuracies, Comparison

CARD_JSON, CARD_MARKDOWN = ".card.json", ".card.md"  # after the whole name of the file


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the file.
        format: of `FORMATS`.
        size_bytes: of the file.
        batch: images it takes at a time; None for any number.
        comparison: its outputs beside PyTorch's.
        images: what was compared on, in words.
        weights: where they are from, in words.
        fresh: whether they are as initialised.
        accuracies: of int8 on all test images; None for other formats and for fresh weights.
    """

    path: Path
    format: str
    size_bytes: int
    batch: int | None
    comparison: Comparison
    images: str
    weights: str
    fresh: bool
    accuracies: Accuracies | None = None

    @property
    def max_difference(self) -> float:
        """Largest difference of a logit from PyTorch's."""
        return self.comparison.max_difference

    @property
    def card(self) -> Path:
        """The model card as JSON."""
        return self.path.with_name(self.path.name + CARD_JSON)

    @property
    def card_markdown(self) -> Path:
        """The model card as Markdown."""
        return self.path.with_name(self.path.name + CARD_MARKDOWN)
