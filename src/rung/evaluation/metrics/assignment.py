"""The best one-to-one assignment of rows to columns: which item of one list is which of another."""

from __future__ import annotations

import math
from collections.abc import Sequence


def best_assignment(gains: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Return pairs (row, column), each used at most once, whose gains sum to the most.

    The Hungarian method with potentials (Kuhn 1955; Jonker and Volgenant 1987), O(rows² columns) after turning the
    matrix so that it has no more rows than columns. scipy, which has it too, is no dependency of the core.

    Args:
        gains: a full matrix, rows by columns.
    """
    if not gains or not gains[0]:
        return []
    if len(gains) > len(gains[0]):
        turned = [list(column) for column in zip(*gains, strict=True)]
        return sorted((row, column) for column, row in best_assignment(turned))
    rows, columns = len(gains), len(gains[0])
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)  # 1-based row that holds each column; column 0 stands for the row being placed
    for row in range(1, rows + 1):
        owner[0] = row
        column, came_from = 0, [0] * (columns + 1)
        slack, done = [math.inf] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            done[column] = True
            held, nearest, step = owner[column], 0, math.inf
            for j in range(1, columns + 1):
                if not done[j]:
                    reduced = -gains[held - 1][j - 1] - row_price[held] - column_price[j]
                    if reduced < slack[j]:
                        slack[j], came_from[j] = reduced, column
                    if slack[j] < step:
                        step, nearest = slack[j], j
            for j in range(columns + 1):
                if done[j]:
                    row_price[owner[j]] += step
                    column_price[j] -= step
                else:
                    slack[j] -= step
            column = nearest
        while column:  # hand the columns of the alternating path on
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    return sorted((owner[j] - 1, j - 1) for j in range(1, columns + 1) if owner[j])
