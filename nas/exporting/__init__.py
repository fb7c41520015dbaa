"""``nas.export``: a network becomes a file for another runtime, compared with PyTorch before it appears."""

from nas.exporting.comparison import TOLERANCE as TOLERANCE
from nas.exporting.comparison import Accuracies as Accuracies
from nas.exporting.comparison import Comparison as Comparison
from nas.exporting.export import export as export
from nas.exporting.export import export_all as export_all
from nas.exporting.formats import FORMATS as FORMATS
from nas.exporting.result import ExportResult as ExportResult
from nas.exporting.source import ExportSource as ExportSource
