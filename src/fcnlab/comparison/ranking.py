"""The result of a comparison in sentences: one that ranks the groups, and one for each exception to the ranking."""

from collections.abc import Sequence

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.formats import interval, listed, percent, points
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import Interval
from fcnlab.comparison.pairs import Pair

MOST_NAMED = 5  # groups or pairs in one sentence


def ranks(comparison: Comparison) -> dict[str, int]:
    """Return the rank of each group by name; empty if not all pairs of groups were compared.

    Groups are in the order of their mIoU. A rank ends before the first group that is significantly worse than the first
    group of the rank.
    """
    groups = comparison.groups
    if len(comparison.pairs) < len(groups) * (len(groups) - 1) // 2 or not any(map(_tested, comparison.pairs)):
        return {}
    differing = {frozenset((pair.first.name, pair.second.name)) for pair in comparison.pairs if pair.better}
    found, first = {groups[0].name: 1}, groups[0]
    for group in groups[1:]:
        ends = frozenset((first.name, group.name)) in differing
        found[group.name] = len(found) + 1 if ends else found[first.name]
        first = group if ends else first
    return found


def _tested(pair: Pair) -> bool:
    return pair.over_images is not None


def answers(comparison: Comparison) -> list[str]:
    """Return the result as sentences."""
    pairs = comparison.pairs
    if not pairs:
        return ["Only one group: there is nothing to compare."]
    if not any(map(_tested, pairs)):
        return [f"No verdict: {pairs[0].verdict.removeprefix('no verdict: ')}."]
    if len(pairs) == 1:
        return [_answer(pairs[0], comparison)]
    return _ranking(comparison) if ranks(comparison) else _against_baseline(comparison)


def _answer(pair: Pair, comparison: Comparison) -> str:
    """Return one sentence on a pair, from the side of the leading group."""
    sign = 1 if pair.leader is pair.first else -1
    leader, trailing = (comparison.label(group) for group in (pair.first, pair.second)[::sign])
    if pair.significant_over:
        result = f"{leader} is better than {trailing}, significant over {pair.significant_over}"
    else:
        result = f"No significant difference between {leader} and {trailing}"
    return f"{result}: {_size(pair, sign)}; {pair.of_seeds}."


def _size(pair: Pair, sign: int) -> str:
    """Format the difference and its interval over images."""
    value, over_images = f"{points(sign * pair.difference)} points of mIoU", pair.over_images
    if over_images is None:
        return value
    low, high = sorted((sign * over_images.low, sign * over_images.high))
    return f"{value}, {interval(Interval(0, low, high, 1))} over {pair.images} images"


def _ranking(comparison: Comparison) -> list[str]:
    """Return the ranked sentence, and a sentence for pairs that it does not describe."""
    by_rank: dict[int, list[Group]] = {}
    ranked = ranks(comparison)
    for group in comparison.groups:
        by_rank.setdefault(ranked[group.name], []).append(group)
    places = [f"{rank}. {_and([_scored(group, comparison) for group in groups])}" for rank, groups in by_rank.items()]
    sentences = [f"Ranking by mIoU: {'; '.join(places)}."]
    if any(len(groups) > 1 for groups in by_rank.values()):
        sentences[0] += " Groups that share a rank do not differ significantly."
    across = [pair for pair in comparison.pairs if ranked[pair.first.name] != ranked[pair.second.name]]
    within = [pair for pair in comparison.pairs if ranked[pair.first.name] == ranked[pair.second.name]]
    return [
        *sentences,
        *_exceptions([pair for pair in across if not pair.better], "do not differ significantly", comparison),
        *_exceptions([pair for pair in within if pair.better], "differ significantly", comparison),
        *_scopes([pair for pair in comparison.pairs if pair.better], comparison),
    ]


def _exceptions(pairs: Sequence[Pair], state: str, comparison: Comparison) -> list[str]:
    if not pairs:
        return []
    names = [f"{comparison.label(pair.first)} and {comparison.label(pair.second)}" for pair in pairs]
    return [f"Except: {listed(names, MOST_NAMED)} {state}."]


def _scopes(pairs: Sequence[Pair], comparison: Comparison) -> list[str]:
    """Return what the significant differences are significant over; by name where it is not the same for all."""
    by_scope: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_scope.setdefault(pair.significant_over or "", []).append(pair)
    if len(by_scope) == 1:
        return [f"The significant differences are significant over {next(iter(by_scope))}."]
    return [
        f"Significant over {scope}:"
        f" {listed([f'{comparison.label(p.first)} and {comparison.label(p.second)}' for p in found], MOST_NAMED)}."
        for scope, found in by_scope.items()
    ]


def _against_baseline(comparison: Comparison) -> list[str]:
    """Return how many groups are better and worse than the baseline, with names and differences of a few."""
    assert comparison.baseline is not None
    pairs = comparison.pairs
    better = [pair for pair in pairs if pair.better is pair.first]
    worse = [pair for pair in pairs if pair.better is pair.second]
    others = [pair for pair in pairs if not pair.better]
    parts = [
        part
        for part in (
            _part(better, "is better", "are better", comparison),
            _part(others, "does not differ significantly", "do not differ significantly", comparison),
            _part(worse, "is worse", "are worse", comparison),
        )
        if part
    ]
    sentence = f"Compared with {_scored(comparison.baseline, comparison)}, {'; '.join(parts)}."
    return [sentence, *_scopes([*better, *worse], comparison)]


def _part(pairs: Sequence[Pair], singular: str, plural: str, comparison: Comparison) -> str:
    names = [f"{comparison.label(pair.first)} ({points(pair.difference)})" for pair in pairs]
    state = singular if len(names) == 1 else plural
    return f"{len(names)} {state}: {listed(names, MOST_NAMED)}" if names else ""


def _scored(group: Group, comparison: Comparison) -> str:
    return f"{comparison.label(group)} ({percent(group.mean())} %)"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
