"""Curves with fewer points, for the page."""

from __future__ import annotations

import itertools


def downsample(points: list[tuple[int, float]], max_points: int) -> list[tuple[int, float]]:
    """At most `max_points` points: means over equal parts, each at the last step of its part."""
    if len(points) <= max_points:
        return points
    edges = [len(points) * i // max_points for i in range(max_points + 1)]
    parts = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]
