"""Numbers of a comparison as text: scores in percent, differences in percentage points."""

import math

from fcnlab.comparison.intervals import Bounds, Interval

MISSING = "-"
MINUS = "\N{MINUS SIGN}"  # between two names
# The scores' names in tables and figures; those in files are the keys.
SCORE_TITLES = {"miou": "mIoU", "pixel_acc": "pixel acc.", "mean_acc": "mean acc.", "fw_iou": "f.w. IoU"}
SCORE_TITLES |= {"miou_i": "mIoU-I", "miou_c": "mIoU-C"}
SCORE_TITLES |= {"miou_i10": "worst mIoU-I", "miou_c10": "worst mIoU-C"}


def percent(value: float | None, digits: int = 2) -> str:
    """Format a ratio in percent; a dash for None and nan."""
    return MISSING if value is None or value != value else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """Format a difference in percentage points, with its sign."""
    return f"{round(100 * value, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def probability(p: float | None) -> str:
    """Format a p value with its significant digits."""
    if p is None:
        return MISSING
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def interval(value: Interval | Bounds | None) -> str:
    """Format the ends of an interval in percentage points."""
    return MISSING if value is None else f"{points(value.low)} to {points(value.high)}"


def significant(value: float) -> str:
    """Format a number with three significant digits, or all before the point; never with an exponent."""
    before = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:,.{max(2 - before, 0)}f}"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def listed(names: list[str], most: int, between: str = ", ") -> str:
    """Join up to ``most`` names, and the number of further ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more
