"""Which images of an evaluation a report shows first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

#: Scores of the agreement of maps; the first measured one counts.
AGREEMENT = ('pearson', 'cosine', 'spearman', 'ssim')


def telling_images(rows: Mapping[int, Mapping[str, Any]], count: int = 3) -> dict[int, str]:
    """Chooses the images that say most about a student: by disagreement, mistakes, and typical ones.

    - 'differ': the maps of student and teacher agree least.
    - 'lost': the student is wrong and its teacher right, 'won' the other way round; without a teacher
      'wrong': the student is wrong. The clearest mistakes come first, by the probability of the
      prediction less that of the label.
    - 'typical': both predict the same, and the agreement of the maps is nearest to the median.

    Args:
        rows (Mapping[int, Mapping]): The values of each image, as in ``Evaluation.rows``.
        count (int): The most images for each reason. Defaults to 3.

    Returns:
        dict[int, str]: A reason for each chosen image, a key of
        ``mmkdx.visualization.report.REASONS``; an image has one.
    """
    names = {name for row in rows.values() for name in row}
    score = next((name for name in AGREEMENT if name in names), None)

    def agreement(i: int) -> float:
        value = rows[i].get(score, math.nan)
        return math.nan if rows[i].get('degenerate') or rows[i].get('teacher/degenerate') else value

    def right(i: int, model: str = '') -> bool | None:
        label, prediction = rows[i].get('label'), rows[i].get(f'{model}prediction')
        return None if label is None or prediction is None else label == prediction

    def margin(i: int, model: str = '') -> float:
        row = rows[i]
        return row.get(f'{model}label_probability', 0) - row[f'{model}confidence']

    chosen: dict[int, str] = {}

    def choose(reason: str, found: Iterable[int], key: Callable[[int], float]) -> None:
        left = [i for i in found if i not in chosen]
        chosen.update((i, reason) for i in sorted(left, key=lambda i: (key(i), i))[:count])

    known = [i for i in rows if not math.isnan(agreement(i))]
    choose('differ', known, agreement)
    taught = 'teacher/prediction' in names
    wrong = [i for i in rows if right(i) is False and (not taught or right(i, 'teacher/'))]
    choose('lost' if taught else 'wrong', wrong, margin)
    won = [i for i in rows if taught and right(i) and right(i, 'teacher/') is False]
    choose('won', won, lambda i: margin(i, 'teacher/'))
    if known:
        middle = float(np.median([agreement(i) for i in known]))
        same = [i for i in known if rows[i]['prediction'] == rows[i].get('teacher/prediction')]
        choose('typical', same, lambda i: abs(agreement(i) - middle))
    return chosen
