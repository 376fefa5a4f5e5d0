"""Numbers as texts: costs, shares, thresholds and factors."""

import math

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_words(cost: float | None, unit: str) -> str:
    """A cost with its unit, such as "12.3 M MACs"; three digits."""
    if cost is None:
        return "unknown"
    for size, prefix in PREFIXES:
        # Just below a step, three digits would round up to 1000.
        if abs(cost) >= size * 0.9995:
            return f"{cost / size:.3g} {prefix} {unit}"
    return f"{cost:.3g} {unit}"


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage; a dash for NaN, the share of no rows."""
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def between(interval: tuple[float, float], digits: int = 1) -> str:
    """An interval of shares, such as "91.2 to 93.0 %"."""
    return f"{100 * interval[0]:.{digits}f} to {100 * interval[1]:.{digits}f} %"


def signed(value: float, digits: int = 2) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.{digits}f}"


def threshold_words(threshold: float | None) -> str:
    """A threshold, or "never"."""
    return "never" if threshold is None or math.isinf(threshold) else f"{threshold:.4f}"


def times_words(factor: float, *, noun: str = "", than: str = "", form: str = ".3g") -> str:
    """How many times less, or more, such as "7.14 times more" and "5.88 times fewer MACs than large".

    The factor is the other amount divided by this one, above 0, so that more than 1 means less. `noun` is what is
    counted, `than` the model or plan with the other amount, `form` the format of the number.
    """
    times = max(factor, 1 / factor)
    shown = f"{times:,.0f}" if times >= 100 else f"{times:{form}}"
    if float(shown.replace(",", "")) == 1:
        words = ("as many", noun) if noun else ("as much",)
        return " ".join((*words, *(("as", than) if than else ())))
    less = "fewer" if noun else "less"
    words = (shown, "times", less if factor > 1 else "more", noun, *(("than", than) if than else ()))
    return " ".join(word for word in words if word)


def times_between(interval: tuple[float, float], factor: float, *, noun: str = "", form: str = ".3g") -> str:
    """The interval of a factor of `times_words`; numbers alone where both ends are on the factor's side of 1."""
    low, high = interval
    if low >= 1 and factor >= 1:
        return f"{low:{form}} to {high:{form}}"
    if high <= 1 and factor <= 1:
        return f"{1 / high:{form}} to {1 / low:{form}}"
    return f"{times_words(low, noun=noun, form=form)} to {times_words(high, noun=noun, form=form)}"


def shortened(name: str, most: int = 40) -> str:
    """A name of at most `most` letters; both ends stay, since similar names differ there."""
    if len(name) <= most:
        return name
    tail = (most - 1) * 2 // 5
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"
