"""Some of many, evenly spread: what is looked at where looking at everything would take too long."""


def spread(count: int, most: int | None) -> list[int]:
    """Return at most `most` of the indices 0 ... count - 1, evenly spread and in order; None returns all of them."""
    if most is None or count <= most:
        return list(range(count))
    return [k * count // most for k in range(most)]
