"""The table, the files and the page of a comparison of explainers."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkdx.datasets.wrappers import class_text
from mmkdx.evaluation.comparison import TARGETS, Comparison
from mmkdx.evaluation.floor import agreement_sentence
from mmkdx.files import write_file, written_together
from mmkdx.functional import degenerate_maps
from mmkdx.metrics.scores import Score
from mmkdx.visualization.rendering import enlarged, grid, label_text, overlay
from mmkdx.visualization.report import write_report
from mmkdx.visualization.score_groups import Table
from mmkdx.visualization.sections import PictureSection


def comparison_table(found: Comparison) -> list[list[str]]:
    """The head and a row for each explainer, the best mean rank first, then the noise.

    'above floor' counts the scores whose paired 95 % interval is above the noise.
    """
    rows = [['explainer', 'map', 'mean rank', 'above floor', *found.better]]
    for each in (*found.entrants, *found.noise):
        rank, floors = '-', ''
        if each not in found.noise:
            known = [each.floors[name].low for name in found.better if name in each.floors]
            floors = f'{sum(low > 0 for low in known)} of {len(known)}'
            if each.mean_rank.value == each.mean_rank.value:
                rank = '{:.1f} ({:.1f} to {:.1f})'.format(*each.mean_rank)
        size = '{}x{}'.format(*each.size)
        rows.append(
            [each.name, size, rank, floors, *(_cell(each.scores[name]) for name in found.better)]
        )
    return rows


def comparison_notes(found: Comparison) -> list[str]:
    """The notes below the table: agreement, empty maps, explainers that do not fit."""
    notes = _agreement(found)
    if empty := [f'{each.name} {each.empty}' for each in found.entrants if each.empty]:
        notes.append(f'Maps that say nothing and do not count: {", ".join(empty)}.')
    notes += [f'{name} was left out: {reason}' for name, reason in found.left_out.items()]
    return notes


def _agreement(found: Comparison) -> list[str]:
    """The agreement of scores in words."""
    if len(found.entrants) < 3:
        return ['With fewer than three explainers there is no agreement of scores on their ranks.']
    taus = found.agreement.taus if found.agreement else {}
    sentence = agreement_sentence(taus, 'explainers')
    if not sentence:
        return []
    taus = [score.value for score in found.image_taus.values() if score.value == score.value]
    single = f'; on single images tau is {np.mean(taus):.2f} on average' if taus else ''
    return [sentence, f"Kendall's W of all scores is {found.agreement.w:.2f}{single}."]


def write_comparison(folder: str | Path, found: Comparison) -> Path:
    """Writes ``explainers.csv``, ``explainers.json`` and ``report.html`` in place of earlier ones.

    Returns:
        Path: The path of the page.

    Raises:
        WriteError: If a file cannot be written; the earlier ones stay.
    """
    rows = _records(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with written_together(folder) as place:
        write_file(place / 'explainers.csv', text.getvalue())
        write_file(place / 'explainers.json', json.dumps(_as_json(found, rows), indent=1) + '\n')
        _write_page(place, found)
    return Path(folder) / 'report.html'


def _records(found: Comparison) -> list[dict[str, Any]]:
    """A record for each explainer and score."""
    records = []
    for each in (*found.entrants, *found.noise):
        for name, better in found.better.items():
            score, floor, rank = each.scores[name], each.floors.get(name), each.ranks.get(name)
            records.append(
                dict(
                    explainer=each.name,
                    map='{}x{}'.format(*each.size),
                    empty_maps=each.empty,
                    score=name,
                    better=better,
                    **{key: getattr(score, key) for key in ('value', 'low', 'high', 'n')},
                    floor=floor and floor.value,
                    above_floor=floor and floor.difference,
                    above_floor_low=floor and floor.low,
                    above_floor_high=floor and floor.high,
                    rank=rank and rank.value,
                    rank_low=rank and rank.low,
                    rank_high=rank and rank.high,
                )
            )
    return [{key: _finite(value) for key, value in record.items()} for record in records]


def _as_json(found: Comparison, rows: list[dict[str, Any]]) -> dict[str, Any]:
    taus = found.agreement.taus if found.agreement else {}
    agreement = [
        dict(
            scores=list(pair),
            **{key: _finite(value) for key, value in tau._asdict().items()},
            image_tau=_finite(found.image_taus[pair].value),
        )
        for pair, tau in taus.items()
    ]
    return dict(
        model=found.model,
        target=found.target,
        sample=found.sample,
        left_out=found.left_out,
        mean_ranks={each.name: list(map(_finite, each.mean_rank)) for each in found.entrants},
        w=_finite(found.agreement.w) if found.agreement else None,
        agreement=agreement,
        scores=rows,
    )


def _write_page(folder: Path, found: Comparison) -> None:
    order = [each.name for each in found.entrants]
    pictures = []
    for number, picture, maps, label in found.pictures:
        words = class_text(label, found.classes)
        lines = ['input', f'image {number}', f'explained: {label_text(label, found.classes)}']
        drawn = _row(picture, {name: maps[name] for name in order}, lines)
        pictures.append((f'Image {number}, explained: {words}', drawn))
    note = (
        'Each map is in its own range, without negative evidence. The best mean rank comes first.'
    )
    head, *rows = comparison_table(found)
    how = (
        'Ranks with 95 % bootstrap intervals over the images. Above floor: scores whose paired interval '
        'is above that of noise of the same size.'
    )
    write_report(
        folder / 'report.html',
        title=f'Explainers of {found.model}',
        answer=_first(found),
        details=comparison_notes(found)[len(_agreement(found)) :],
        facts={
            'explained class': TARGETS[found.target],
            'images': found.sample,
            'made': time.strftime('%Y-%m-%d %H:%M'),
        },
        tables=[Table(head, rows, note=how, question='faithfulness')],
        sections=[PictureSection('Side by side', note, pictures)] if pictures else [],
    )


def _first(found: Comparison) -> list[str]:
    """The first paragraph of the page."""
    ranked = [each for each in found.entrants if each.mean_rank.value == each.mean_rank.value]
    if len(ranked) < 2:
        return _agreement(found)
    best, *others = ranked
    near = [each.name for each in others if each.mean_rank.low <= best.mean_rank.high]
    text = (
        f'Over {len(found.better)} scores {best.name} has the best mean rank, '
        f'{best.mean_rank.value:.1f} of {len(ranked)} '
        f'({best.mean_rank.low:.1f} to {best.mean_rank.high:.1f}).'
    )
    if near:
        shown = ', '.join(near[:3]) + (f' and {len(near) - 3} more' if len(near) > 3 else '')
        text += f' The intervals of {shown} reach into this one.'
    return [text, *_agreement(found)]


def _row(picture: np.ndarray, maps: dict[str, Tensor], lines: list[str]) -> np.ndarray:
    """An image with its lines of text and the maps of all explainers over it, beside each other."""
    side = 168
    canvas = torch.from_numpy(enlarged(picture, side))[None]
    pictures, captions = [picture], [lines]
    for name, values in maps.items():
        values = values[None].float()
        pictures.append(overlay(canvas, values)[0].numpy())
        empty = bool(degenerate_maps(values.relu())[0])
        captions.append([name, *(['no positive evidence'] if empty else [])])
    return grid(pictures, captions, min(len(pictures), 8), side)


def _cell(score: Score) -> str:
    if score.value != score.value:
        return '-'
    half = (score.high - score.low) / 2
    return f'{score.value:.3f}' + (f' ± {half:.3f}' if half == half else '')


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
