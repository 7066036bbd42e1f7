"""What a machine can check of our prose: sentences, links, and that the code of each page runs.

Where the prose of a page is hard to read, the test names the sentence.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from mmengine.registry import STRATEGIES, Registry
from torch import nn

from mmkdx import registry
from mmkdx.apis.config_types import check_types
from mmkdx.models import named_taps

ROOT = Path(__file__).parents[1]
GUIDES = ('docs/en/get_started.md', 'docs/en/user_guides/*.md', 'docs/en/advanced_guides/*.md')
PAGES = ('README.md', 'CONTRIBUTING.md', 'docs/en/*.md', *GUIDES[1:], 'docs/en/notes/*.md')
PAGES += ('configs/*/README.md', 'projects/*/README.md', 'docs/en/tutorials/*.ipynb')

#: Blocks that do not run here: the page, a line of the block (the first if no other has it), the reason.
NOT_RUN = {
    ('configs/self_distillation/README.md', 'import mmengine'): 'needs the results of two tests',
    (
        'docs/en/user_guides/audit.md',
        'from mmkdx.evaluation.verdict import paragraph, study, tiles',
    ): ('needs trained models; tests/test_evaluation/test_verdict.py runs it'),
    ('docs/en/user_guides/evaluate.md', 'from torch.utils.data import DataLoader'): (
        'needs ImageNet and weights; tests/test_apis/test_evaluate.py runs its functions'
    ),
    ('docs/en/user_guides/explain.md', 'from mmkdx.apis import ExplainInferencer'): 'needs weights',
    (
        'docs/en/user_guides/explainers.md',
        'from torchvision.models.segmentation import fcn_resnet50',
    ): ('tests/test_explain/test_targets.py runs it'),
    (
        'docs/en/user_guides/explainers.md',
        'from torchvision.models.detection import fasterrcnn_resnet50_fpn',
    ): ('tests/test_explain/test_targets.py runs it'),
    ('docs/en/user_guides/metrics_faithfulness.md', 'import timm'): 'needs weights and 47 seconds',
    ('docs/en/user_guides/prototypes.md', 'from mmkdx.apis import PrototypeAnalysis'): (
        'needs a trained model'
    ),
    ('docs/en/user_guides/scale.md', '#!/usr/bin/env bash'): 'a job script of Slurm',
    (
        'projects/example_plugin/README.md',
        "terms = dict(fit=dict(type='CharbonnierLoss', at='features', weight=1.0))",
    ): ('needs the plugin; tests/test_plugins.py builds its parts'),
    ('docs/en/user_guides/your_own.md', 'from mmkdx.apis import new_config'): (
        'needs images; tests/test_apis/test_new_config.py runs it'
    ),
}
#: What a page's Python needs beside :func:`given`.
PREPARED = {
    'docs/en/user_guides/distiller.md': 'train_pipeline = []',
    'docs/en/user_guides/explainers.md': """
import types
vectors, texts = torch.rand(4), None
image_tower, text_tower = model, lambda texts: torch.rand(len(images), 4)
class VisionModel(type(model)):
    def forward(self, images):
        return types.SimpleNamespace(image_embeds=super().forward(images))
vision_model = VisionModel(*model)
activations = model[:2](images)
logits = output = model[2:](activations)
""",
    'docs/en/user_guides/pictures.md': """
import timm
torch.save(timm.create_model('tf_efficientnet_lite0').state_dict(), 'lite0.pth')
""",
    'docs/en/user_guides/what_was_distilled.md': """
from mmkdx.registry import MODELS
classifier = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
)
student, base = MODELS.build(classifier).eval(), MODELS.build(classifier).eval()
images = torch.rand(16, 3, 64, 64)
labels = torch.arange(16) % 4
x = z = torch.rand(16, 3)
""",
}
#: Where the tests or CI execute what a bash block calls, with small data: a file, and what it runs.
EXECUTED = {
    '.ci/run': 'tools/run_tests.sh tools/test_wheel.sh',
    'tools/test_wheel.sh': 'mim',
    'tests/test_apis/test_audit.py': 'tools/analysis_tools/audit.py',
    'tests/test_apis/test_explain.py': 'tools/explain.py',
    'tests/test_apis/test_prototypes.py': 'tools/analysis_tools/prototypes.py',
    'tests/test_dataset_converters.py': 'tools/dataset_converters/prototype_folders.py',
    'tests/test_dataset_converters_unicam.py': 'tools/dataset_converters/image_list.py',
    'tests/test_efficientnet_lite0.py': 'tests/efficientnet_lite0.py',
    'tests/test_tools/test_benchmarks/test_explainers.py': 'tools/benchmarks/explainers.py',
    'tests/test_tools/test_benchmarks/test_introspective.py': 'tools/benchmarks/introspective.py',
    'tests/test_tools/test_benchmarks/test_prototype_transfer.py': (
        'tools/benchmarks/prototype_transfer.py'
    ),
    'tests/test_tools/test_benchmarks/test_step.py': 'tools/benchmarks/step.py',
    'tests/test_tools/test_benchmarks/test_unicam.py': 'tools/benchmarks/unicam.py',
    'tests/test_tools/test_cache_teacher.py': 'tools/cache_teacher.py',
    'tests/test_tools/test_compare_explainers.py': 'tools/analysis_tools/compare_explainers.py',
    'tests/test_tools/test_compare_methods.py': 'tools/analysis_tools/compare_methods.py',
    'tests/test_tools/test_component_experiment.py': (
        'tools/analysis_tools/component_experiment.py tools/analysis_tools/teacher_statistics.py'
    ),
    'tests/test_tools/test_convert_mdistiller.py': 'tools/model_converters/convert_mdistiller.py',
    'tests/test_tools/test_export_student.py': 'tools/model_converters/export_student.py',
    'tests/test_tools/test_misc_tools.py': (
        'tools/misc/check_config.py tools/misc/collect_env.py tools/misc/print_config.py'
    ),
    'tests/test_tools/test_new_config.py': 'tools/new_config.py tests/drawn_images.py',
    'tests/test_tools/test_publish_model.py': 'tools/model_converters/publish_model.py',
    'tests/test_tools/test_repeat_runs.py': 'tools/analysis_tools/repeat_runs.py',
    'tests/test_tools/test_runs.py': (
        'tools/train.py tools/test.py tools/analysis_tools/compare_runs.py'
    ),
    'tests/test_tools/test_tune_weights.py': 'tools/analysis_tools/tune_weights.py',
    'tests/test_tools_env.py': (
        'tools/dist_train.sh tools/dist_test.sh tools/slurm_train.sh tools/slurm_test.sh '
        'tools/benchmarks/gpu.sh'
    ),
}
#: What nothing executes, and why.
NOT_EXECUTED = {
    '.ci/run': 'is what runs the tests',
    'tools/quickstart.sh': 'trains for minutes; tests/test_quickstart.py (slow) trains the same',
    'docs/en/make_gallery.py': 'needs minutes and weights; the page shows what it made',
    'projects/example_plugin/tests': 'tests/test_plugins.py tests the plugin',
    '-m': 'runs one of the slow tests',
    'install': 'tools/setup_env.sh installs',
    **dict.fromkeys(('sudo', 'mkdir', 'cp', 'gunzip', '.venv/bin/activate'), 'is of the system'),
}
#: Options of a term or a metric, beside those of what is built.
COMMON = {'at', 'weight', 'schedule', 'adapter', 'teacher_target', 'teacher', 'augment', 'name'}

MAX_WORDS = 30
#: What makes a sentence hard wherever it stands.
CHAINS = r'\b(of|by) (which|whose|whom)\b|\b(of|by) what\b'
#: What does so from its third use in one sentence, or, for the last ones, from the second.
RELATIVES = (r'\b(which|what|whose|where)\b', 2), (r'\bwhose\b', 1), (r'\bwhere\b', 1)
RELATIVES += ((r'\b(those|that) of\b', 1),)
MARKDOWN = MarkdownIt('commonmark').enable('table')


def files(*patterns: str) -> list[str]:
    """Paths of pages below the root, but the changelog."""
    found = {path.relative_to(ROOT).as_posix() for each in patterns for path in ROOT.glob(each)}
    return sorted(found - {'docs/en/notes/changelog.md'})


def pages(*patterns: str) -> pytest.MarkDecorator:
    """Runs a test for each page."""
    return pytest.mark.parametrize('page', files(*patterns))


def markdown(page: str) -> str:
    """The text of a page; of a notebook, the cells of text."""
    text = (ROOT / page).read_text()
    if not page.endswith('.ipynb'):
        return text
    cells = json.loads(text)['cells']
    return '\n\n'.join(''.join(each['source']) for each in cells if each['cell_type'] == 'markdown')


@cache
def tokens(page: str) -> list:
    """What the page consists of; its blocks of code must begin and end with a line of their own."""
    text = markdown(page)
    found, lines = MARKDOWN.parse(text), text.splitlines()
    for each in (token for token in found if token.type == 'fence'):
        closed = lines[each.map[1] - 1].strip() == each.markup
        assert closed and (' ' not in each.info or each.info[0] == '{'), lines[each.map[0]]
    return found


def prose(page: str) -> list:
    """The inline tokens of paragraphs and lists, without headings and tables."""
    found, skipped = [], 0
    for token in tokens(page):
        if token.type.partition('_')[0] in ('heading', 'table'):
            skipped += token.nesting
        elif token.type == 'inline' and not skipped:
            found.append(token)
    return found


def sentences(text: str) -> list[str]:
    text = re.sub(r'\b(e\.g|i\.e|et al|vs|Fig|Eq|cf)\.', r'\1', text)
    return re.split(r'(?<=[.!?])["\')\]]*\s+|(?<=:)\s+(?=["(\[]*[^a-z\s])', text)


def plain(token) -> str:
    """The text of a paragraph, without code and pictures."""
    parts = dict(softbreak=' ', hardbreak=' ', code_inline='§', image='', html_inline='')
    return ''.join(parts.get(each.type, each.content) for each in token.children)


def faults(text: str) -> list[str]:
    """What is wrong with the sentences of a paragraph."""
    found = []
    for sentence in sentences(text):
        words = len(re.findall(r"[^\W_][\w'’.,/%×+-]*", sentence))
        if words > MAX_WORDS:
            found.append(f'{words} words: {sentence}')
        chains = [match[0] for match in re.finditer(CHAINS, sentence, re.I)]
        for pattern, most in RELATIVES:
            matches = [match[0] for match in re.finditer(pattern, sentence, re.I)]
            chains += matches if len(matches) > most else []
        if chains:
            found.append(f'"{", ".join(chains)}": {sentence}')
    return found


@pages(*PAGES)
def test_sentences_are_short_and_have_no_chains(page):
    found = [fault for token in prose(page) for fault in faults(plain(token))]
    assert not found, '\n' + '\n'.join(found)


@pytest.mark.parametrize(
    'text, found',
    [
        (' '.join(['word'] * 30) + '. ' + 'Short.', 0),
        (' '.join(['word'] * 31) + '.', 1),
        ('The layer of which it is part. The rule by which it is found.', 2),
        ('A model whose layer is named, and whose head is not.', 1),
        ('A model whose layer is named. One whose head is not.', 0),
        ('It shows what was learned, which is where it looks.', 1),
    ],
)
def test_hard_sentences_are_found(text, found):
    assert len(faults(text)) == found


@pages('README.md')
def test_paragraphs_are_short(page):
    """At most four lines; a bullet has two."""
    long, in_list = [], 0
    for token in tokens(page):
        if 'list' in token.type and token.type != 'list_item':
            in_list += token.nesting
        most = 2 if in_list else 4
        if token.type == 'paragraph_open' and token.map[1] - token.map[0] > most:
            long.append(f'line {token.map[0] + 1}: {token.map[1] - token.map[0]} lines')
    assert not long
    lines = (ROOT / page).read_text().splitlines()
    assert not [line for line in lines if len(line) > 140 and line[0] not in '|![']


@pages(*GUIDES)
def test_guides_begin_with_an_example(page):
    """A block, a picture or a table in the first 12 lines below the title."""
    shown = ('fence', 'table_open')
    starts = [each.map[0] for each in tokens(page) if each.type in shown]
    starts += [
        each.map[0]
        for each in tokens(page)
        if each.type == 'inline' and any(child.type == 'image' for child in each.children)
    ]
    title = next(each.map[0] for each in tokens(page) if each.type == 'heading_open')
    assert starts and min(starts) - title <= 12


# Links


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page, as GitHub and Sphinx make them."""
    found, each = set(re.findall(r'^\(([\w-]+)\)=$', path.read_text(), re.M)), []
    parsed = MARKDOWN.parse(path.read_text())
    for opening, inline in zip(parsed, parsed[1:]):
        if opening.type == 'heading_open':
            text = ''.join(child.content for child in inline.children)
            each.append(re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-'))
    return found | set(each) | {f'{name}-{i}' for name in each for i in range(1, each.count(name))}


@pytest.mark.parametrize('page', files(*PAGES, 'docs/en/api/*.md', 'CHANGELOG.md'))
def test_links_lead_somewhere(page):
    dead = []
    for inline in (token for token in tokens(page) if token.type == 'inline'):
        for child in inline.children:
            link = child.attrs.get('href') or child.attrs.get('src')
            if not link or re.match('https?:|mailto:', link):
                continue
            name, _, anchor = link.partition('#')
            target = (ROOT / page).parent / name if name else ROOT / page
            named = anchor and target.suffix == '.md'
            if not target.exists() or named and anchor not in anchors(target.resolve()):
                dead.append(link)
    assert not dead


# Code


def blocks(page: str, language: str) -> list[str]:
    """The blocks of one language that are to run."""
    found = [
        each.content for each in tokens(page) if each.type == 'fence' and each.info == language
    ]
    listed = [line for each, line in NOT_RUN if each == page]
    return [text for text in found if not any(line in text.splitlines() for line in listed)]


def test_the_blocks_that_do_not_run_are_there():
    for page, line in NOT_RUN:
        fences = [each.content for each in tokens(page) if each.type == 'fence']
        assert any(line in text.splitlines() for text in fences), (page, line)


@pytest.mark.parametrize('file, programs', EXECUTED.items())
def test_what_bash_blocks_call_is_executed_elsewhere(file, programs):
    text = (ROOT / file).read_text()
    for program in programs.split():
        assert re.search(rf'\b{Path(program).stem}\b', text), program


def network() -> nn.Sequential:
    """A classifier of 4 classes for images of 32 x 32 pixels."""
    layers = nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval()


def given() -> dict:
    """The names that a page may use without defining them."""
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    data = torch.utils.data.TensorDataset(images, labels)
    model = network()
    return dict(
        torch=torch,
        **dict(images=images, labels=labels, targets=labels, maps=torch.rand(8, 8, 8)),
        **dict(model=model, network=model, student=model),
        **dict(teacher=network(), base=network()),
        loader=torch.utils.data.DataLoader(data, batch_size=4),
    )


class Base(dict):
    """What a page takes of a base config, which it does not show: ``_base_.x.y``."""

    def __getattr__(self, name: str) -> Base:
        return Base(inherited=True)


@cache
def registries() -> list[Registry]:
    """All registries, with what they find by themselves."""
    found = [each for each in vars(registry).values() if isinstance(each, Registry)]
    for each in found:
        each.import_from_location()
    return [*found, STRATEGIES]


def unknown_options(config: dict, options: set[str]) -> str:
    """Which options nothing takes that is registered under a config's type; '' if all are taken."""
    name = config['type'].removeprefix('mmkdx.')
    classes = {kind for each in registries() if (kind := each.get(name)) is not None}
    if not classes:
        return f'no {name}'
    refused = []
    for kind in classes:
        taken = set(COMMON)
        for owner in inspect.getmro(kind) if inspect.isclass(kind) else (kind,):
            function = vars(owner).get('__init__') if inspect.isclass(owner) else owner
            if function is None:
                continue
            parameters = inspect.signature(function).parameters.values()
            taken |= {each.name for each in parameters}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                refused.append(sorted(options - taken))
                break
        else:  # it passes its options on
            return ''
    return '' if [] in refused else f'{name} takes no {", ".join(min(refused, key=len))}'


#: Types in configs that are no registered classes, or whose options are those of another one.
FREE_TYPES = ('linear', 'cosine', 'auto', 'constant', 'CachedTeacher', 'PlainClassifier')


@pages(*PAGES)
def test_python_runs(page, monkeypatch, tmp_path):
    """Code is executed; of configs, the types and their options are looked up, too."""
    configs = []

    class Recorded(dict):
        def __init__(self, *args, **options) -> None:
            super().__init__(*(each for each in args if each is not ...), **options)
            configs.append(self)

    monkeypatch.chdir(tmp_path)
    for folder in ('configs', 'tests'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for each in registries():
        monkeypatch.setattr(each, '_module_dict', each._module_dict.copy())
    monkeypatch.setattr(named_taps, 'NAMED_TAPS', named_taps.NAMED_TAPS.copy())
    names, prepared = {}, given()
    exec(PREPARED.get(page, ''), prepared)
    for text in blocks(page, 'python'):
        names.update(prepared)
        code = re.sub(r'\{\{(.*?)\}\}', r'\1', text).replace('_base_.', '_inherited_.')
        is_config = 'import ' not in code and 'dict(' in code
        if is_config:  # without the dots for what the page leaves out
            code = re.sub(r'^\s*\.\.\.,.*$|,\s*\.\.\.(?=\))', '', code, flags=re.M)
        scope = names | dict(dict=Recorded, _inherited_=Base()) if is_config else names
        exec(compile(code, f'{page}: {code.splitlines()[0]}', 'exec'), scope)
        if is_config:
            new = {key: scope[key] for key in scope.keys() - names.keys() - {'__builtins__'}}
            check_types({key: each for key, each in new.items() if isinstance(each, (dict, list))})
    wrong = [
        fault
        for config in configs
        if isinstance(kind := config.get('type'), str) and '::' not in kind
        if kind not in FREE_TYPES
        if (fault := unknown_options(config, set(config) - {'type', '_delete_', '_scope_'}))
    ]
    assert not wrong


FILE_COMMANDS = ('sudo', 'mkdir', 'cp', 'gunzip')
#: What the commands of a page call: they are written down, one argument a line, and not run.
RECORD = ''.join(
    f'{name}() {{ printf "%s\\0" {name} "$@"; echo; }}\n'
    for name in ('python', 'bash', 'pip', 'mim', 'pre-commit', 'pytest', 'source', *FILE_COMMANDS)
)


class Parsed(BaseException):
    """The arguments of a script are right."""


def parse(monkeypatch, script: str, arguments: list[str]) -> None:
    """Lets a script read its arguments, and ends it then."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(parser, *args, **options):
        read(parser, *args, **options)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / script), run_name='__main__')


@pages(*PAGES)
def test_commands_can_be_called(page, monkeypatch, capsys):
    """Bash runs the blocks of a page, and each script of ours reads the arguments that it gets."""
    written = blocks(page, 'bash')
    if not written:
        return
    command = ['bash', '-euo', 'pipefail', '-c', RECORD + '\n'.join(written)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in dict.fromkeys(done.stdout.splitlines()):
        program, *arguments = line.split('\0')[:-1]
        known = {*' '.join(EXECUTED.values()).split(), *NOT_EXECUTED}
        assert known & {program, *arguments[:1]}, f'nothing executes {line}'
        ours = re.compile(r'(configs|mmkdx|projects|tests|tools)/|\.ci/|requirements/')
        for path in filter(ours.match, arguments):
            assert (ROOT / path).exists(), line.replace('\0', ' ')
        if line == 'python\0tools/misc/collect_env.py\0':  # it has no options
            continue
        if program == 'python' and arguments[0].startswith('tools/'):
            with monkeypatch.context() as patch:
                try:
                    parse(patch, arguments[0], arguments[1:])
                except SystemExit as leave:
                    pytest.fail(f'{" ".join(arguments)}: {leave} {capsys.readouterr().err[-500:]}')
