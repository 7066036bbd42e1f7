"""Writes the page of an experiment."""

from __future__ import annotations

import time
from pathlib import Path

from mmkdx.apis.experiment import LOGGED, MARKS, Experiment
from mmkdx.datasets.wrappers import class_text
from mmkdx.evaluation.methods import LIMITS, MEASURES, Method
from mmkdx.metrics.scores import Score
from mmkdx.visualization.curves import Mark, scatter
from mmkdx.visualization.panel import methods_panel
from mmkdx.visualization.report import GalleryItem, write_report
from mmkdx.visualization.score_groups import Table


def write_experiment(path: str | Path, found: Experiment) -> Path:
    """Writes the page of an experiment: a paragraph, scatter plots, a table and pictures.

    Raises:
        WriteError: If the file cannot be written; an earlier one stays.
    """
    measures = {key: each for key, each in MEASURES.items() if key != 'maps' or found.mapped}
    marks = found.methods | found.marks
    plots = []
    for key in ('maps', 'predictions'):
        if key in measures:
            points = [_mark(name, each, key) for name, each in marks.items()]
            plots.append(scatter(points, MEASURES['accuracy'].axis, measures[key].axis))
    logged = [key for key in LOGGED if any(key in each for each in found.logged.values())]
    head = ['method', 'seeds', 'parameters', *(each.head for each in measures.values())]
    rows = []
    for name, method in marks.items():
        known, count = found.logged.get(name, {}), found.parameters.get(name)
        cells = [
            '-' if name == 'teacher' and key != 'accuracy' else each.cell(method.score(key))
            for key, each in measures.items()
        ]
        cells += [f'{known[key]:.3f}' if key in known else '-' for key in logged]
        cells.append(f'{known["seconds"]:.0f}' if known else '-')
        size = '-' if count is None else f'{count:,}'
        rows.append([name, '-' if name in MARKS else str(method.seeds), size, *cells])
    note = (
        'Means with 95 % intervals over seeds, or over images for a single run. A star marks the '
        'teacher, a cross the base model. Seconds are the training time, evaluations included.'
    )
    if logged:
        note += (
            f' The log of each run gives {" and ".join(logged)}, by its own explainer and images.'
        )
    return write_report(
        path,
        title='Methods compared',
        answer=[each.text for each in found.answer],
        details=[*(each.text for each in found.details), *LIMITS],
        plots=plots,
        compared=Table([*head, *logged, 'seconds'], rows, note=note),
        gallery=[_gallery_item(found, index) for index in sorted(found.pictures)],
        facts={
            **found.facts,
            **{f'runs of {name}': ', '.join(runs) for name, runs in found.groups.items()},
            'pictures': "each method's first run" if found.pictures else '',
            'made': time.strftime('%Y-%m-%d %H:%M'),
        },
    )


def _mark(name: str, method: Method, key: str) -> Mark:
    """A method's mark in a scatter plot; the teacher fully agrees with itself."""
    accuracy, measure = MEASURES['accuracy'], MEASURES[key]
    x, fixed = method.score('accuracy'), name if name in MARKS else ''
    text = f'{accuracy.head} {accuracy.cell(x)}'
    if name == 'teacher':
        one = 100.0 if measure.percent else 1.0
        return Mark(name, _percent(x), Score(one), text, '', fixed)
    y = method.score(key)
    runs = f'{method.seeds} seeds' if method.seeds > 1 else '1 run'
    over = '' if method.seeds > 1 else ', intervals over images'
    text = f'{text}, {measure.head} {measure.cell(y)}, {runs}{over}'
    return Mark(name, _percent(x), _percent(y) if measure.percent else y, text, runs, fixed)


def _percent(score: Score) -> Score:
    return score._replace(value=100 * score.value, low=100 * score.low, high=100 * score.high)


def _gallery_item(found: Experiment, index: int) -> GalleryItem:
    """A picture with the maps of the teacher, the base model and the methods, in this order."""
    picture = found.pictures[index]
    order = [name for name in (*MARKS, *found.methods) if name in picture.maps]
    captions = {
        name: [
            f'predicts {class_text(picture.predictions[name], found.classes)}',
            *([f'Pearson {picture.agreement[name]:.2f}'] if name in picture.agreement else []),
        ]
        for name in order
    }
    captions['input'] = [
        f'label: {class_text(picture.label, found.classes)}',
        f'explained: {class_text(picture.predictions["teacher"], found.classes)}',
    ]
    return GalleryItem(
        picture=methods_panel(
            picture.image, {name: picture.maps[name] for name in order}, captions
        ),
        index=index,
        label=class_text(picture.label, found.classes),
        predictions={n: class_text(picture.predictions[n], found.classes) for n in order},
        scores={f'maps of {name}, Pearson': v for name, v in picture.agreement.items()},
    )
