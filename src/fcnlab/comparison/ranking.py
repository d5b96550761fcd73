"""The result of a comparison in sentences: one that ranks the groups, and one for each kind of exception to it."""

from collections.abc import Sequence

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.formats import counted, listed, percent, points
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.pairs import Pair

MOST_NAMED = 5  # groups or pairs in one sentence
VERDICTS = {  # in sentences, the best first
    "better": "better",
    "higher": "higher for these trained models (retraining was not tested)",
    "equivalent": "equivalent",
    "undecided": "undecided",
    "lower": "lower for these trained models (retraining was not tested)",
    "worse": "worse",
    "none": "without a verdict",
}


def ranks(comparison: Comparison) -> dict[str, int]:
    """Return the rank of each group by name; empty if the verdicts of all pairs give no ranking.

    They give none if there is a single group, if a pair has no verdict, or if a group with a higher mIoU is worse on
    the seeds that it shares with another.
    Groups are in the order of their mIoU. A rank ends before the first group that differs significantly from the first
    group of the rank.
    """
    groups, pairs = comparison.groups, comparison.pairs
    if not pairs or len(pairs) < len(groups) * (len(groups) - 1) // 2 or any(pair.verdict == "none" for pair in pairs):
        return {}
    places = {group.name: place for place, group in enumerate(groups)}
    if any(_differs(pair) and places[pair.leader.name] > places[_trailing(pair).name] for pair in pairs):
        return {}
    apart = {frozenset((pair.first.name, pair.second.name)) for pair in pairs if _differs(pair)}
    found, first = {groups[0].name: 1}, groups[0]
    for group in groups[1:]:
        ends = frozenset((first.name, group.name)) in apart
        found[group.name] = len(found) + 1 if ends else found[first.name]
        first = group if ends else first
    return found


def _differs(pair: Pair) -> bool:
    return pair.verdict in ("better", "higher", "lower", "worse")


def _trailing(pair: Pair) -> Group:
    return pair.second if pair.leader is pair.first else pair.first


def answers(comparison: Comparison) -> list[str]:
    """Return the result as sentences."""
    return [*_verdicts(comparison), *_not_equivalent(comparison)]


def _not_equivalent(comparison: Comparison) -> list[str]:
    """Return a sentence if equivalence was tested and not shown: the verdicts do not mention it."""
    tested = [pair for pair in comparison.pairs if pair.margin and pair.p_equivalent is not None]
    if not tested or any(pair.equivalent for pair in tested):
        return []
    subject = "The difference is not" if len(comparison.pairs) == 1 else "No difference is"
    return [f"{subject} shown to be smaller than {100 * (tested[0].margin or 0):g} points of mIoU."]


def _verdicts(comparison: Comparison) -> list[str]:
    pairs = comparison.pairs
    if not pairs:
        return ["Only one group: there is nothing to compare."]
    if len(pairs) == 1:
        return [_answer(pairs[0], comparison)]
    if all(pair.verdict == "none" for pair in pairs):
        return [f"No verdict: {pairs[0].scope}."]
    if ranks(comparison):
        return _ranking(comparison)
    return _against_baseline(comparison) if comparison.baseline else [_answer(pair, comparison) for pair in pairs]


# Two groups


def _answer(pair: Pair, comparison: Comparison) -> str:
    """Return the result of a pair as sentences, from the side of the leading group."""
    sign = 1 if pair.leader is pair.first else -1
    leader, trailing = (comparison.label(group) for group in (pair.first, pair.second)[::sign])
    size = _size(pair, sign)
    match pair.verdict:
        case "none":
            return f"No verdict on {leader} and {trailing}: {size}, on {pair.scope}."
        case "equivalent":
            margin = f"{100 * (pair.margin or 0):g}"
            return f"{leader} and {trailing} are equivalent within {margin} points of mIoU: {size}."
        case "undecided":
            return f"Undecided between {leader} and {trailing}: {size}.{_advice(pair)}"
        case "better" | "worse":
            return f"{leader} is better than {trailing}: {size}."
        case _:
            return f"{leader} has a higher mIoU than {trailing}, for these trained models: {size}; {pair.of_seeds}."


def _size(pair: Pair, sign: int) -> str:
    """Format the difference and, if available, its interval and what that is over."""
    value, found = f"{points(sign * pair.difference)} points of mIoU", pair.interval
    if found is None:
        return value
    low, high = sorted((sign * found.low, sign * found.high))
    over = f"{pair.of_seeds} and {pair.images} images" if pair.two_factor else f"{pair.images} images"
    return f"{value} ({100 * (1 - pair.alpha):g} % interval {points(low)} to {points(high)}, over {over})"


def _advice(pair: Pair) -> str:
    """Return what an undecided comparison could have found, and what would decide it."""
    if pair.design is None:
        return f" {pair.of_seeds.capitalize()}."
    return (
        f" These seeds and images find differences of {100 * pair.design.detectable:.1f} points or more, with a"
        f" probability of 80 %. {needs(pair)}"
    )


def needs(pair: Pair) -> str:
    """Return what the observed difference would need to be found."""
    assert pair.design is not None
    seeds, images = pair.design.seeds, pair.design.images
    with_seeds = f"{seeds} seeds on these images" if seeds else "more than 1,000 seeds on these images"
    with_images = f"{images:,} images with these seeds" if images else "more than a million images with these seeds"
    return f"The observed difference would need {with_seeds}, or {with_images}."


# All pairs of several groups


def _ranking(comparison: Comparison) -> list[str]:
    """Return the ranked sentence, and sentences on the pairs that it does not describe."""
    ranked, by_rank = ranks(comparison), dict[int, list[Group]]()
    for group in comparison.groups:
        by_rank.setdefault(ranked[group.name], []).append(group)
    places = [f"{rank}. {_and([_scored(group, comparison) for group in groups])}" for rank, groups in by_rank.items()]
    sentence = f"Ranking by mIoU: {'; '.join(places)}."
    if any(len(groups) > 1 for groups in by_rank.values()):
        sentence += " Between groups that share a rank, no difference was found."
    across = [pair for pair in comparison.pairs if ranked[pair.first.name] != ranked[pair.second.name]]
    within = [pair for pair in comparison.pairs if ranked[pair.first.name] == ranked[pair.second.name]]
    if across and all(_differs(pair) and pair.two_factor for pair in across):
        sentence += " Groups of different ranks differ significantly, over seeds and images."
    exceptions = [
        ("Undecided although the ranks differ", [pair for pair in across if pair.verdict == "undecided"]),
        ("Different although the ranks are equal", [pair for pair in within if _differs(pair)]),
        *_of_all_pairs(comparison),
    ]
    return [sentence, *(f"{state}: {_pairs(pairs, comparison)}." for state, pairs in exceptions if pairs)]


def _of_all_pairs(comparison: Comparison) -> list[tuple[str, list[Pair]]]:
    """Return the verdicts that a ranking does not show: equivalent, and significant over images only."""
    margin = next((f" within {100 * pair.margin:g} points" for pair in comparison.pairs if pair.margin), "")
    return [
        (f"Equivalent{margin}", [pair for pair in comparison.pairs if pair.verdict == "equivalent"]),
        (
            "Different for these trained models only, because retraining was not tested",
            [pair for pair in comparison.pairs if pair.verdict in ("higher", "lower")],
        ),
    ]


def _pairs(pairs: Sequence[Pair], comparison: Comparison) -> str:
    names = [f"{comparison.label(pair.first)} and {comparison.label(pair.second)}" for pair in pairs]
    return listed(names, MOST_NAMED, between="; ")


# Many groups and a baseline


def _against_baseline(comparison: Comparison) -> list[str]:
    """Return how many groups are better and worse than the baseline, with names and differences of a few."""
    assert comparison.baseline is not None
    parts = []
    for verdict in VERDICTS:
        pairs = [pair for pair in comparison.pairs if pair.verdict == verdict]
        names = [f"{comparison.label(pair.first)} ({points(pair.difference)})" for pair in pairs]
        subject = f"{counted(len(names), 'group')} {'is' if len(names) == 1 else 'are'} {VERDICTS[verdict]}"
        parts += [f"{subject}: {listed(names, MOST_NAMED)}"] if names else []
    return [f"Compared with {_scored(comparison.baseline, comparison)}, {'; '.join(parts)}."]


def _scored(group: Group, comparison: Comparison) -> str:
    return f"{comparison.label(group)} ({percent(group.mean())} %)"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
