"""Results of verbs as a person reads them in a terminal."""

from clipling.printing.shown import in_order, percent, table
from clipling.printing.verbs import text

__all__ = ["in_order", "percent", "table", "text"]
