"""Damage to valid files."""

from hypothesis import strategies as st


@st.composite
def damaged(draw, sound: bytes) -> bytes:
    """Flip some bits, cut the end, or leave out, double or overwrite a piece."""
    first = draw(st.integers(0, len(sound) - 1))
    last = min(first + draw(st.integers(1, 40)), len(sound))
    match draw(st.sampled_from(("flipped", "truncated", "left out", "doubled", "overwritten"))):
        case "flipped":
            flipped = bytearray(sound)
            for place in draw(st.lists(st.integers(0, len(sound) - 1), min_size=1, max_size=3)):
                flipped[place] ^= 1 << draw(st.integers(0, 7))
            return bytes(flipped)
        case "truncated":
            return sound[:first]
        case "left out":
            return sound[:first] + sound[last:]
        case "doubled":
            return sound[:last] + sound[first:]
    return sound[:first] + draw(st.binary(min_size=1, max_size=40)) + sound[last:]
