"""What can happen to a sound file."""

from hypothesis import strategies as st


@st.composite
def damaged(draw, sound: bytes) -> bytes:
    """A few bits flipped, the end missing, a piece left out, doubled or overwritten."""
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
