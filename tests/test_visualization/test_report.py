"""The report: what it says, and how it behaves in a browser."""

import base64
import json
import os
import re
import shutil
import time
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from mmkdx.metrics import Score
from mmkdx.metrics.about import About
from mmkdx.visualization import report
from mmkdx.visualization.curves import COLORS, FIXED, SHAPES, Mark, scatter
from mmkdx.visualization.records import score_table
from mmkdx.visualization.report import REASONS, GalleryItem, Tile, write_report
from mmkdx.visualization.score_groups import Table
from mmkdx.visualization.sections import PictureSection

NAN = float('nan')
EVIL = '<b>&"\'$title</b></script><script>document.title = 1</script><!--'

SCORES = {
    'deletion': Score(0.25, 0.2, 0.3, 12, 'lower'),
    'teacher/deletion': Score(0.125, 0.1, 0.15, 16, 'lower'),
    'base/deletion': Score(-0.5, -0.625, -0.375, 16, 'lower'),
    'pearson': Score(0.5, 0.25, 0.75, 12, 'higher'),
    'base/pearson': Score(NAN, NAN, NAN, 0, 'higher'),
    'entropy': Score(4.125, NAN, NAN, 1),
    'teacher/entropy': Score(3.5, 3, 4, 16),
    'degenerate': Score(4, NAN, NAN, 16, 'lower'),
    'teacher/degenerate': Score(0, NAN, NAN, 16, 'lower'),
    'base/degenerate': Score(1, NAN, NAN, 16, 'lower'),
}
CURVES = {
    'loss/val': {'cat': [(10, 1.0), (20, 1.0)]},
    'explain/deletion': {'cat': [(10, 0.5), (20, 0.25), (30, NAN)], 'alone': [(10, 0.75)]},
    'accuracy/top1': {'cat': [(20, 60.0), (10, 20.0), (30, 80.0)], 'kd': [(10, 40.0), (30, 70.0)]},
    'explain/nothing': {'cat': [(10, NAN)]},
}


def picture(seed=0):
    """A smooth picture whose channels differ."""
    noise = np.random.RandomState(seed).rand(5, 12, 3) * [255, 120, 40]
    return cv2.resize(noise.astype(np.uint8), (360, 120), interpolation=cv2.INTER_LINEAR)


def item(index, label, student, teacher, **scores):
    scores['tie'] = 1.0
    return GalleryItem(picture(index), index, label, dict(student=student, teacher=teacher), scores)


def gallery():
    return [
        item(3, 'cat', 'cat', 'cat', deletion=0.3, pearson=NAN),
        item(5, 'dog', 'dog', 'cat', deletion=0.1, pearson=0.5),
        item(20, 'cat', 'dog', 'cat', deletion=0.2, pearson=-0.5),
        item(100, 'dog', 'cat', 'cat', deletion=0.4, pearson=0.0),
        item(101, None, 'cat', 'dog', deletion=0.0, pearson=0.75),
    ]


def write(folder, **changes):
    values = dict(title='run', facts={}, scores=SCORES, curves=CURVES, gallery=gallery())
    return write_report(folder / 'report.html', **{**values, **changes})


def text(html):
    return unescape(re.sub('<.*?>', '', html))


def charts(page):
    """Each chart's root by its metric, in the order of the page."""
    found = re.findall(r'data-metric="(.*?)".*?(<svg class="chart".*?</svg>)', page, re.DOTALL)
    return {unescape(name): ElementTree.fromstring(svg) for name, svg in found}


# What it says


def test_facts_without_empty_ones(tmp_path):
    path = write(tmp_path, title='my run', facts={'config': 'a.py', 'checkpoint': ''})
    page = path.read_text(encoding='utf-8')
    assert path == tmp_path / 'report.html'
    assert '<title>my run</title>' in page and '<h1>my run</h1>' in page
    assert '<dt>config</dt><dd>a.py</dd>' in page
    assert 'checkpoint' not in page


def test_table_says_what_the_log_says(tmp_path):
    page = write(tmp_path).read_text(encoding='utf-8')
    rows = re.findall('<tr>(.*?)</tr>', page)
    cells = [[text(cell) for cell in re.findall('<t[hd].*?</t[hd]>', row)] for row in rows]
    # the table of the log, whose rows are independent of this page
    log = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in score_table(SCORES).splitlines()
        if line.startswith('|')
    ]
    words = {'lower': '↓', 'higher': '↑', '-': '–'}
    assert cells[0] == log[0]
    assert cells[1:] == [[words.get(cell, cell) for cell in row] for row in log[1:]]
    assert cells[1] == [
        'deletion',
        '↓',
        '0.2500 ± 0.0500',
        '0.1250 ± 0.0250',
        '-0.5000 ± 0.1250',
        '',
        '',
        '12 / 16',
    ]
    assert cells[2][5:] == ['0.5000 ± 0.2500', '–', '12 / 0']
    assert cells[3][:4] == ['entropy', '', '4.125', '3.5000 ± 0.5000']
    assert page.count('<th scope="col">') == len(log[0])
    assert page.count('<th scope="row">') == len(log) - 1


@pytest.mark.parametrize('teacher', [True, False])
def test_columns_are_those_there_are(tmp_path, teacher):
    names = ['deletion', 'teacher/deletion'] if teacher else ['deletion']
    page = write(tmp_path, scores={name: SCORES[name] for name in names}).read_text('utf-8')
    heads = re.findall('<th scope="col">(.*?)</th>', page)
    assert heads == ['score', 'better', 'student', *(['teacher'] if teacher else []), 'n']


def test_maps_that_say_nothing_are_noticed(tmp_path):
    notice = re.search('<p class="notice.*?</p>', write(tmp_path).read_text('utf-8'))[0]
    assert ': student 4 of 16, base 1 of 16.' in text(notice)
    scores = {**SCORES, 'degenerate': SCORES['teacher/degenerate']}
    scores['base/degenerate'] = scores['degenerate']
    assert '<p class="notice' not in write(tmp_path, scores=scores).read_text('utf-8')


def test_curves_stand_at_their_values(tmp_path):
    page = write(tmp_path).read_text('utf-8')
    found = charts(page)
    assert list(found) == ['accuracy/top1', 'explain/deletion', 'loss/val']
    for name, chart in found.items():
        for group in chart.iter('g'):
            run = group.get('data-run')
            marks = [(float(c.get('cx')), float(c.get('cy'))) for c in group.iter('circle')]
            line = [p.split(',') for p in group.find('polyline').get('points').split()]
            assert marks == [(float(x), float(y)) for x, y in line]
            points = sorted((x, y) for x, y in CURVES[name][run] if y == y)
            assert [c.get('data-tip') for c in group.iter('circle')] == [
                f'epoch {x}: {y:g}' for x, y in points
            ]
    chart = found['accuracy/top1']
    places = {mark.get('data-tip'): mark for mark in chart.iter('circle')}
    y_ticks = {
        float(label.text): float(line.get('y1'))
        for line, label in zip(chart.iter('line'), chart.iter('text'))
        if line.get('y1') == line.get('y2')
    }
    x_ticks = {
        int(label.text): float(label.get('x'))
        for label in chart.iter('text')
        if label.get('text-anchor') == 'middle' and label.text != 'epoch'
    }
    assert {20.0, 40.0, 60.0, 80.0} <= set(y_ticks) and {10, 20, 30} <= set(x_ticks)
    # the larger, the higher: y goes down the page
    assert y_ticks[80.0] < y_ticks[20.0] and x_ticks[10] < x_ticks[30]
    for x, y in CURVES['accuracy/top1']['cat']:
        mark = places[f'epoch {x}: {y:g}']
        assert float(mark.get('cx')) == pytest.approx(x_ticks[x], abs=0.06)
        assert float(mark.get('cy')) == pytest.approx(y_ticks[y], abs=0.06)
    assert 'cat: 80 at epoch 30; kd: 70 at epoch 30' in chart.get('aria-label')


@pytest.mark.parametrize(
    'points', [[(4, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -1e-9), (100, 1e9)], [(0, 5.0), (1, 5.0)]]
)
def test_any_curve_stays_within_its_axes(tmp_path, points):
    page = write(tmp_path, curves={'accuracy/top1': {'a': points}}).read_text('utf-8')
    (chart,) = charts(page).values()
    marks = list(chart.iter('circle'))
    assert len(marks) == len(points)
    for mark in marks:
        assert 46 <= float(mark.get('cx')) <= 372 and 12 <= float(mark.get('cy')) <= 206
    labels = [label.text for label in chart.iter('text')]
    assert labels[-1] == 'epoch' and len(labels) >= 4
    ends = [label for label in chart.iter('text') if label.get('text-anchor') == 'middle'][:-1]
    assert all(label.text == str(int(label.text)) for label in ends)


@pytest.mark.parametrize(
    'values, ticks',
    [
        ([0.0, 0.0], ['-1', '0', '1']),
        ([0.5], ['0.45', '0.5', '0.55']),
        ([-50.0, -50.0, -50.0], ['-55', '-50', '-45']),
        # the same but for rounding
        ([0.3, 0.1 + 0.2], ['0.27', '0.3', '0.33']),
    ],
)
def test_equal_values_stand_in_the_middle(tmp_path, values, ticks):
    points = list(enumerate(values, 4))
    page = write(tmp_path, curves={'accuracy/top1': {'a': points}}).read_text('utf-8')
    (chart,) = charts(page).values()
    assert {mark.get('cy') for mark in chart.iter('circle')} == {'109.0'}
    labels = [each for each in chart.iter('text') if each.get('text-anchor') == 'end']
    assert [each.text for each in labels] == ticks
    assert [float(each.get('y')) for each in labels] == [206 + 4, 109 + 4, 12 + 4]
    epochs = [each.text for each in chart.iter('text') if each.get('text-anchor') == 'middle']
    assert epochs == [*(str(x) for x, _ in points), 'epoch']
    if len(points) == 1:
        assert next(chart.iter('circle')).get('cx') == '209.0'


def test_counts_of_maps_that_say_nothing_come_last(tmp_path):
    names = ['explain/teacher/degenerate', 'explain/degenerate', 'loss', 'explain/deletion']
    curves = {name: {'a': [(1, 0.0)]} for name in (*names, 'accuracy/top1')}
    assert list(charts(write(tmp_path, curves=curves).read_text('utf-8'))) == [
        'accuracy/top1',
        'explain/deletion',
        'loss',
        'explain/teacher/degenerate',
        'explain/degenerate',
    ]


def test_runs_keep_one_style_in_all_charts_and_differ(tmp_path):
    runs = {f'run {i}': [(1, i)] for i in range(12)}
    last = {'run 11': [(1, 0.5)]}
    page = write(tmp_path, curves={'accuracy/top1': runs, 'b': last}).read_text('utf-8')
    styles = [
        {g.get('data-run'): (g.get('color'), g.get('stroke-dasharray')) for g in chart.iter('g')}
        for chart in charts(page).values()
    ]
    assert len(set(styles[0].values())) == 12
    assert styles[1]['run 11'] == styles[0]['run 11']
    assert styles[0]['run 0'] == ('#0072b2', 'none')


def test_unit_of_the_curves(tmp_path):
    page = write(tmp_path, unit='iter').read_text('utf-8')
    assert 'data-tip="iter 10: 20"' in page and '>iter</text>' in page and 'epoch' not in page


def test_pictures_are_inside(tmp_path):
    page = write(tmp_path).read_text('utf-8')
    images = re.findall('<img width="360" height="120" alt="(.*?)" src="(.*?)">', page)
    assert images[0][0] == 'Image 3: cat, with the explanations of student, teacher'
    assert images[4][0] == 'Image 101, with the explanations of student, teacher'
    for entry, (_, source) in zip(gallery(), images, strict=True):
        kind, data = source.split(',')
        assert kind == 'data:image/webp;base64'
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(decoded[..., ::-1].astype(int) - entry.picture).mean() < 4


def test_what_is_not_there_is_left_out(tmp_path):
    page = write(tmp_path, scores={}, curves={}, gallery=[]).read_text('utf-8')
    assert 'No log of a training was found.' in page
    assert 'id="scores"' not in page and 'id="gallery"' not in page
    page = write(tmp_path, gallery=[GalleryItem(picture(), 0, None, {'student': 'x'}, {})])
    page = page.read_text('utf-8')
    assert [name for name in re.findall('select id="(.*?)"', page)] == ['order', 'metric']


def test_a_name_that_is_no_text(tmp_path):
    page = write(tmp_path, facts={'config': 'a\udcff.py'}).read_text('utf-8')
    assert '<dd>a?.py</dd>' in page


@pytest.mark.parametrize(
    'shape, dtype', [((4, 5, 3), 'float32'), ((4, 5), 'uint8'), ((4, 5, 4), 'uint8')]
)
def test_picture_of_a_wrong_kind(tmp_path, shape, dtype):
    bad = GalleryItem(np.zeros(shape, dtype), 7, None, {}, {})
    message = f'GalleryItem.picture of image 7 is {dtype} of shape {shape}; it must be RGB, uint8'
    with pytest.raises(ValueError, match=re.escape(message)):
        write(tmp_path, gallery=[bad])
    assert not (tmp_path / 'report.html').exists()


def test_sections_of_further_pictures(tmp_path):
    first = PictureSection(EVIL, EVIL, [('one', picture(1)), (EVIL, picture(2))])
    page = write(tmp_path, sections=[first, PictureSection('more', '', [('three', picture(3))])])
    page = page.read_text('utf-8')
    ids = re.findall('<section id="(.*?)"', page)
    assert ids == ['gallery', 'curves', 'scores', 'pictures-0', 'pictures-1', 'about']
    assert EVIL not in page
    body = page[page.index('<section id="pictures-0"') :]
    assert unescape(re.search('<h2.*?>(.*?)</h2>', body)[1]) == EVIL
    assert unescape(re.search('<p class="quiet">(.*?)</p>', body)[1]) == EVIL
    found = re.findall('<img width="(.*?)" height="(.*?)" alt="(.*?)" src="(.*?)">', body)
    assert [unescape(alt) for _, _, alt, _ in found] == ['one', EVIL, 'three']
    for seed, (width, height, _, url) in enumerate(found, 1):
        data = np.frombuffer(base64.b64decode(url.split(',')[1]), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
        assert image.shape == picture(seed).shape == (int(height), int(width), 3)
        assert np.abs(image.astype(int) - picture(seed)).mean() < 4


def test_a_page_of_pictures_alone(tmp_path):
    section = PictureSection('a', 'b', [('c', picture())])
    path = write_report(tmp_path / 'page.html', title='t', facts={}, sections=[section])
    assert re.findall('<section id="(.*?)"', path.read_text('utf-8')) == ['pictures-0', 'about']


def test_picture_of_a_section_of_a_wrong_kind(tmp_path):
    section = PictureSection('a', 'b', [('c', picture()), ('d', np.zeros((4, 5), 'uint8'))])
    message = r"PictureSection.pictures\[1\] of 'a' is uint8 of shape \(4, 5\); it must be RGB"
    with pytest.raises(ValueError, match=message):
        write(tmp_path, sections=[section])


# In a browser


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """A headless browser that is already installed; where CI is set, it must be there."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        webdriver = None
    program = shutil.which('chromium') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if not (webdriver and program and driver):
        missing = 'selenium, chromium (or google-chrome) or chromedriver is missing'
        pytest.fail(missing) if 'CI' in os.environ else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    for flag in (
        'headless',
        'no-sandbox',
        'disable-gpu',
        'disable-quic',
        'no-first-run',
        'disable-background-networking',
        'disable-component-update',
        'disable-sync',
        'hide-scrollbars',
        f'user-data-dir={tmp_path_factory.mktemp("browser")}',
    ):
        options.add_argument(f'--{flag}')
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, tmp_path):
    """Opens a report; afterwards there must be no complaint and no request but for the file."""
    width(browser, 1280)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media='', features=[]))
    browser.get('about:blank')
    # What the browser loaded for itself
    browser.get_log('performance')

    def open_page(**changes):
        path = write(tmp_path, **changes)
        browser.get(path.as_uri())
        return browser

    yield open_page
    assert browser.get_log('browser') == []
    urls = [
        event['params']['request']['url']
        for entry in browser.get_log('performance')
        if (event := json.loads(entry['message'])['message'])['method']
        == 'Network.requestWillBeSent'
    ]
    assert any(url.startswith('file:') for url in urls)
    assert [url for url in urls if not url.startswith(('file:', 'data:'))] == []
    assert len([url for url in urls if url.startswith('file:')]) == 1


def width(browser, pixels):
    browser.execute_cdp_cmd(
        'Emulation.setDeviceMetricsOverride',
        dict(width=pixels, height=900, deviceScaleFactor=1, mobile=False),
    )


def media(browser, kind, scheme):
    feature = dict(name='prefers-color-scheme', value=scheme)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=kind, features=[feature]))


def choose(browser, name, option):
    from selenium.webdriver.support.select import Select

    Select(browser.find_element('id', name)).select_by_visible_text(option)


def shown(browser):
    """The indices of the pictures, in their order on the page."""
    cards = [c for c in browser.find_elements('css selector', 'article') if c.is_displayed()]
    return [int(card.get_attribute('data-index')) for card in cards]


def figures(browser):
    found = browser.find_elements('css selector', '.curves figure')
    return [each.get_attribute('data-metric') for each in found if each.is_displayed()]


@pytest.mark.parametrize(
    'chosen, indices',
    [
        ({}, [3, 5, 20, 100, 101]),
        ({'class': 'cat'}, [3, 20]),
        ({'class': 'dog'}, [5, 100]),
        ({'verdict': 'student and teacher agree'}, [3, 100]),
        ({'verdict': 'student and teacher differ'}, [5, 20, 101]),
        ({'verdict': 'teacher wrong'}, [5, 100]),
        ({'verdict': 'student wrong'}, [20, 100]),
        ({'class': 'cat', 'verdict': 'student and teacher differ'}, [20]),
        ({'class': 'cat', 'verdict': 'teacher wrong'}, []),
        ({'order': 'highest first'}, [101, 100, 20, 5, 3]),
        ({'sort': 'deletion'}, [101, 5, 20, 3, 100]),
        # image 3 has no value, and stands last
        ({'sort': 'pearson'}, [20, 100, 5, 101, 3]),
        ({'sort': 'pearson', 'order': 'highest first'}, [101, 5, 100, 20, 3]),
        ({'order': 'highest first', 'sort': 'tie'}, [3, 5, 20, 100, 101]),
        ({'sort': 'deletion', 'class': 'dog'}, [5, 100]),
    ],
)
def test_gallery(page, chosen, indices):
    browser = page()
    for name, option in chosen.items():
        choose(browser, name, option)
    assert shown(browser) == indices
    assert browser.find_element('id', 'count').text == f'{len(indices)} of 5 images'
    for name in chosen:
        choose(browser, name, {'sort': 'index', 'order': 'lowest first'}.get(name, 'all'))
    assert shown(browser) == [3, 5, 20, 100, 101]


def test_metric_is_chosen_beside_the_accuracy(page):
    browser = page()
    assert figures(browser) == ['accuracy/top1', 'explain/deletion']
    choose(browser, 'metric', 'loss/val')
    assert figures(browser) == ['accuracy/top1', 'loss/val']
    assert len(browser.find_elements('css selector', '[data-metric="loss/val"] circle')) == 2


def test_pointer_tells_values(page):
    from selenium.webdriver import ActionChains

    browser = page()
    tip = browser.find_element('id', 'tip')
    assert not tip.is_displayed()
    mark = browser.find_element('css selector', '[data-run="kd"] circle[data-tip$=": 70"]')
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center'}); return new Promise(requestAnimationFrame)",
        mark,
    )
    ActionChains(browser).move_to_element_with_offset(mark, 4, 3).perform()
    assert tip.text == 'kd, epoch 30: 70'
    ActionChains(browser).move_to_element(browser.find_element('id', 'curves-head')).perform()
    assert not tip.is_displayed()


def test_nothing_is_lost_without_scripts(page, browser, tmp_path):
    path = write(tmp_path)
    bare = re.sub('<script>.*</script>', '', path.read_text('utf-8'), flags=re.DOTALL)
    path.write_text(bare, encoding='utf-8')
    browser.get(path.as_uri())
    assert figures(browser) == ['accuracy/top1', 'explain/deletion', 'loss/val']
    assert shown(browser) == [3, 5, 20, 100, 101]
    assert browser.find_element('tag name', 'table').is_displayed()
    assert not any(e.is_displayed() for e in browser.find_elements('tag name', 'select'))


@pytest.mark.parametrize('pixels', [360, 1280])
def test_only_boxes_scroll_sideways(page, pixels):
    browser = page(
        title='long' * 30,
        facts={'checkpoint': 'work_dirs/' + 'x' * 200},
        curves={'accuracy/' + 'm' * 90: {'r' * 90: [(1, 2.0)]}, 'b' * 90: {'r' * 90: [(1, 2.0)]}},
        gallery=[item(1, 'c' * 90, 'p' * 90, 'p' * 90, **{'s' * 90: 0.5})],
        scores={**SCORES, 's' * 90: SCORES['deletion']},
    )
    width(browser, pixels)
    assert browser.execute_script('return document.documentElement.scrollWidth') == pixels
    inner, outer = browser.execute_script(
        "const box = document.querySelector('.scroll'); return [box.scrollWidth, box.clientWidth]"
    )
    assert inner > outer and outer < pixels


def test_a_print_is_light_and_complete(page):
    browser = page()
    media(browser, 'print', 'dark')
    width(browser, 718)  # A4 without margins of 1 cm
    assert not browser.find_element('id', 'sort').is_displayed()
    colors, inner, outer = browser.execute_script(
        """const box = document.querySelector('.scroll');
        const {color, backgroundColor} = getComputedStyle(document.body);
        return [[color, backgroundColor], box.scrollWidth, box.clientWidth];"""
    )
    assert colors == ['rgb(27, 31, 36)', 'rgb(255, 255, 255)'] and inner <= outer


def test_names_are_only_text(page):
    plain = EVIL.replace('/', '')
    scores = {plain: SCORES['deletion'], f'teacher/{plain}': SCORES['teacher/deletion']}
    browser = page(
        title=EVIL,
        facts={EVIL: EVIL},
        scores=scores,
        curves={metric: {EVIL: [(1, 2.0)]} for metric in (EVIL, 'accuracy/top1', 'c')},
        gallery=[
            item(1, EVIL, EVIL, EVIL, **{EVIL: 0.5}),
            item(2, 'x', EVIL, 'x', **{EVIL: 0.25}),
        ],
    )
    assert browser.title == EVIL
    words = browser.execute_script(
        "return [...document.querySelectorAll('h1, .facts dt, .facts dd, .choice figcaption,"
        " tbody th, .legend span:first-of-type, .cards dt')].map(each => each.textContent)"
    )
    # headline, fact, scores' row, charts' names and legends, values of two cards
    assert words.count(EVIL) == 1 + 2 + 1 + 3 + 2 and words.count(plain) == 1
    for tag, count in (('script', 1), ('b', 0)):
        assert len(browser.find_elements('tag name', tag)) == count
    choose(browser, 'metric', EVIL)
    assert figures(browser) == ['accuracy/top1', EVIL]
    choose(browser, 'sort', EVIL)
    assert shown(browser) == [2, 1]
    choose(browser, 'class', EVIL)
    assert shown(browser) == [1]
    image = browser.find_element('css selector', 'article:not([hidden]) img')
    assert (
        image.get_attribute('alt') == f'Image 1: {EVIL}, with the explanations of student, teacher'
    )
    assert browser.execute_script('return arguments[0].naturalWidth', image) == 360


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read(page, scheme):
    """WCAG 2.2, 1.4.3: a contrast of 4.5 at least."""
    browser = page()
    media(browser, '', scheme)
    colors = browser.execute_script(
        """const value = name => {
          document.body.style.color = 'var(--' + name + ')';
          return getComputedStyle(document.body).color.match(/\\d+/g).map(Number);
        };
        return Object.fromEntries(arguments[0].map(name => [name, value(name)]));""",
        ['page', 'card', 'notice', 'text', 'quiet', 'good', 'bad'],
    )

    def luminance(name):
        share = np.array(colors[name]) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    assert (luminance('page') < 0.5) == (scheme == 'dark')
    pairs = [(a, b) for a in ('text', 'quiet') for b in ('page', 'card')]
    pairs += [('good', 'card'), ('bad', 'card'), ('text', 'notice')]
    for front, back in pairs:
        low, high = sorted(map(luminance, (front, back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


def test_further_pictures_fit_and_leave_the_gallery_alone(page):
    section = PictureSection('a', 'b', [('c', picture()), ('d', np.tile(picture(1), (1, 6, 1)))])
    browser = page(sections=[section])
    choose(browser, 'class', 'dog')
    assert shown(browser) == [5, 100]
    images = browser.find_elements('css selector', '.sheets img')
    assert [each.size['width'] for each in images][0] == 360
    assert 360 < images[1].size['width'] < 1280
    width(browser, 400)
    assert browser.execute_script('return document.documentElement.scrollWidth') <= 400


@pytest.mark.parametrize('batches', [4, None])
def test_means_over_batches_are_explained(tmp_path, batches):
    scores = {'rs': Score(0.5, 0.4, 0.6, 256, 'higher', batches, 0.05)}
    page = write_report(tmp_path / 'r.html', title='t', facts={}, scores=scores).read_text()
    assert ('<td>256 in 4</td>' in page) == (batches == 4)
    assert ('is of 4 batches whose values are averaged' in page) == (batches == 4)


# The first screen

TILES = [
    Tile('Accuracy', '96.8 %', '95.1 to 98.0, n = 600', 'teacher 97.5 %', 'good'),
    Tile(EVIL, EVIL, tone='bad'),
]
ABOUT = {'deletion': About('faithfulness', EVIL, 'guide'), 'pearson': About('agreement', 'P.')}
TABLE = Table(['class', 'flips'], [[EVIL, '3']], 'classes that changed', 'n is 600', 'accuracy')


def test_the_answer_comes_first(page):
    browser = page(answer=['It agrees.', EVIL], tiles=TILES)
    first = browser.find_element('css selector', 'main > section')
    assert first.find_element('css selector', '.answer').text == f'It agrees. {EVIL}'
    values = [each.text for each in first.find_elements('css selector', '.tiles .value')]
    assert values == ['96.8 %', EVIL]
    assert first.find_element('css selector', '.good').text.split('\n') == [
        'Accuracy',
        '96.8 %',
        '95.1 to 98.0, n = 600',
        'teacher 97.5 %',
    ]


def test_a_link_opens_the_group_where_the_score_is(page):
    browser = page(about=ABOUT, tiles=TILES, tables=[TABLE])
    groups = browser.find_elements('css selector', 'details.group')
    assert [each.get_attribute('id') for each in groups] == [
        'q-accuracy',
        'q-agreement',
        'q-faithfulness',
        'q-other',
    ]
    assert [each.get_attribute('open') for each in groups] == ['true', 'true', None, None]
    assert EVIL not in groups[0].text
    groups[0].find_element('css selector', 'details details > summary').click()
    assert EVIL in groups[0].text and 'n is 600' in groups[0].text
    browser.execute_script("location.hash = '#faithfulness-deletion'")
    meaning = browser.find_element('id', 'faithfulness-deletion')
    deadline = time.monotonic() + 5
    while not meaning.is_displayed() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert meaning.text == f'deletion\n{EVIL} Guide: docs/en/user_guides/guide.md'
    link = browser.find_element('css selector', 'th a[href="#faithfulness-deletion"]')
    assert link.get_attribute('title') == EVIL and link.is_displayed()


# Several methods

MARKS = [
    Mark('KD', Score(90, 88, 92), Score(0.6, 0.5, 0.7), 'accuracy 90, maps 0.6', '3 seeds'),
    Mark(EVIL, Score(80, 75, 85), Score(0.2), EVIL),
    Mark('nowhere', Score(80), Score(NAN), 'no maps'),
    Mark('teacher', Score(95, 94, 96), Score(1.0), 'accuracy 95', fixed='teacher'),
]
COMPARED = Table(
    ['method', 'parameters', 'accuracy, %', 'maps'],
    [
        ['KD 10', '44,622', '90.0 (88.0 to 92.0)', '0.60 (0.50 to 0.70)'],
        ['KD 9', '1,000,000', '100.0 (99.0 to 100.0)', '−0.20'],
        [EVIL, '900', '80.0', '-'],
        ['teacher', '-', '95.0 (94.0 to 96.0)', '-'],
        ['alone', '44,622', '9.5', '−0.30'],
    ],
    note='n is 600',
)


def compared(**changes):
    plots = [scatter(MARKS, 'accuracy, %', 'maps')]
    return dict(plots=plots, compared=COMPARED, **changes)


def test_methods_stand_at_their_values(tmp_path):
    page = write(tmp_path, scores={}, curves=None, gallery=[], **compared()).read_text('utf-8')
    assert re.findall('<section id="(.*?)"', page) == ['methods', 'about']
    chart = ElementTree.fromstring(re.search('<svg class="chart".*?</svg>', page, re.DOTALL)[0])
    assert chart.get('aria-label') == (
        f'maps against accuracy, %; KD: accuracy 90, maps 0.6; {EVIL}: {EVIL}; teacher: accuracy 95'
    )
    groups = {g.get('data-run'): g for g in chart.iter('g') if g.get('data-run')}
    assert list(groups) == ['KD', EVIL, 'teacher']
    y_ticks = {
        float(label.text): float(label.get('y')) - 4
        for label in chart.iter('text')
        if label.get('text-anchor') == 'end'
    }
    x_ticks = {
        float(label.text): float(label.get('x'))
        for label in chart.iter('text')
        if label.get('text-anchor') == 'middle' and label.text != 'accuracy, %'
    }

    def place(ticks, value):
        (a, b), (c, d) = sorted(ticks.items())[0], sorted(ticks.items())[-1]
        return b + (value - a) / (c - a) * (d - b)

    for mark in (MARKS[0], MARKS[1], MARKS[3]):
        group = groups[mark.name]
        x, y = place(x_ticks, mark.x.value), place(y_ticks, mark.y.value)
        circle = next(group.iter('circle'))
        assert (float(circle.get('cx')), float(circle.get('cy'))) == pytest.approx((x, y), abs=0.1)
        assert circle.get('data-tip') == mark.text
        bars = list(group.iter('line'))
        assert len(bars) == (2 if mark is MARKS[0] else 1)
        ends = [float(bars[0].get(key)) for key in ('x1', 'x2', 'y1', 'y2')]
        low, high = place(x_ticks, mark.x.low), place(x_ticks, mark.x.high)
        assert ends == pytest.approx([low, high, y, y], abs=0.11)
        names = [each.text for each in group.iter('text')]
        assert names == ([] if mark.name == EVIL else [mark.name])  # which is too long
    kd = groups['KD']
    ends = [float(list(kd.iter('line'))[1].get(key)) for key in ('y1', 'y2')]
    assert ends == pytest.approx([place(y_ticks, 0.5), place(y_ticks, 0.7)], abs=0.11)
    paths = [next(group.iter('path')) for group in groups.values()]
    assert [each.get('d') for each in paths] == [SHAPES[0], SHAPES[1], FIXED['teacher']]
    assert [each.get('fill') for each in paths] == [COLORS[0], COLORS[1], None]


def test_names_of_marks_hide_nothing():
    many = [Mark(f'method {i}', Score(50 + i / 9), Score(0.5), '') for i in range(8)]
    points = scatter([*many, Mark('far', Score(90), Score(0.9), '')], 'x', 'y')['points']
    labels = [point['label'] for point in points if 'label' in point]
    assert 1 < len(labels) < 9 and 'label' in points[-1]
    for i, one in enumerate(labels):
        for two in labels[:i]:
            assert abs(one['y'] - two['y']) >= 11 or abs(one['x'] - two['x']) >= 6.2 * len(
                'method 0'
            )
    styles = {(p['color'], p['shape']) for p in scatter(many * 3, 'x', 'y')['points']}
    assert len(styles) == 24


def test_a_plot_without_a_place_is_left_out(tmp_path):
    assert scatter([Mark('a', Score(NAN), Score(0.5), '')], 'x', 'y') == {}
    page = write(tmp_path, scores={}, curves=None, gallery=[], plots=[{}], compared=COMPARED)
    assert '<figure' not in page.read_text('utf-8')


def column(browser, i=0):
    rows = browser.find_elements('css selector', '.sortable tbody tr')
    return [row.find_elements('css selector', 'th, td')[i].text for row in rows]


def test_a_table_is_sorted_by_its_heads_from_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    browser = page(**compared())
    first = [row[0] for row in COMPARED.rows]
    assert column(browser) == first
    buttons = browser.find_elements('css selector', '.sortable thead th button')
    heads = browser.find_elements('css selector', '.sortable thead th')
    assert [each.text for each in buttons] == COMPARED.head

    def press(i, key):
        buttons[i].send_keys(key)
        states = [head.get_attribute('aria-sort') for head in heads]
        assert [k for k, state in enumerate(states) if state] == [i]
        return column(browser), states[i]

    # Highest first, and what has no number last
    assert press(1, Keys.ENTER) == (['KD 9', 'KD 10', 'alone', EVIL, 'teacher'], 'descending')
    assert press(1, Keys.SPACE) == ([EVIL, 'KD 10', 'alone', 'KD 9', 'teacher'], 'ascending')
    assert press(2, Keys.ENTER) == (['KD 9', 'teacher', 'KD 10', EVIL, 'alone'], 'descending')
    assert press(3, Keys.ENTER) == (['KD 10', 'KD 9', 'alone', EVIL, 'teacher'], 'descending')
    assert press(3, Keys.ENTER) == (['alone', 'KD 9', 'KD 10', EVIL, 'teacher'], 'ascending')
    assert press(0, Keys.ENTER) == ([EVIL, 'alone', 'KD 9', 'KD 10', 'teacher'], 'ascending')
    assert press(0, Keys.ENTER)[0] == ['teacher', 'KD 10', 'KD 9', 'alone', EVIL]
    assert browser.find_elements('css selector', 'b') == []


def test_a_table_of_methods_is_whole_without_scripts(browser, tmp_path):
    path = write(tmp_path, **compared())
    bare = re.sub('<script>.*</script>', '', path.read_text('utf-8'), flags=re.DOTALL)
    path.write_text(bare, encoding='utf-8')
    browser.get(path.as_uri())
    assert column(browser) == [row[0] for row in COMPARED.rows]
    assert browser.find_elements('css selector', '.sortable button') == []
    assert len([e for e in browser.find_elements('css selector', '#methods svg.chart')]) == 1


def test_telling_images_are_shown_first_and_a_choice_looks_in_all(page):
    items = gallery()
    items[3].reason, items[0].reason = 'differ', 'typical'
    browser = page(gallery=items)
    assert shown(browser) == [100, 3]
    badges = [each.text for each in browser.find_elements('css selector', '.reason')]
    assert badges == [REASONS['differ'], REASONS['typical']]
    choose(browser, 'class', 'dog')
    assert shown(browser) == [100, 5]
    choose(browser, 'class', 'all')
    assert shown(browser) == [100, 3, 5, 20, 101]
    choose(browser, 'show', 'most telling')
    assert shown(browser) == [100, 3]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('pixels', [390, 1280])
def test_the_page_is_accessible(page, scheme, pixels):
    """By the rules of axe, which check names, roles, contrast, order and targets."""
    rules = Path(pytest.importorskip('axe_core_python').__file__).with_name('axe.min.js')
    items = gallery()
    items[0].reason = 'typical'
    section = PictureSection('more', 'b', [(f'c{i}', picture(i)) for i in range(3)])
    stage = {f'rs_stage{i}': Score(0.1 * i, 0, 0.5, 9, 'higher') for i in (1, 2)}
    browser = page(
        answer=['It agrees.'],
        tiles=TILES,
        about=ABOUT,
        tables=[TABLE],
        gallery=items,
        sections=[section],
        scores=SCORES | stage,
        stages=['stage1', 'stage2'],
        models={'student': 'ResNet, 4 M parameters'},
        **compared(),
    )
    media(browser, '', scheme)
    width(browser, pixels)
    browser.execute_script(
        "document.querySelectorAll('details').forEach(each => { each.open = true; });"
    )
    browser.execute_script(rules.read_text('utf-8'))
    found = browser.execute_async_script(
        'axe.run().then(arguments[0], error => arguments[0]({violations: [String(error)]}))'
    )
    assert len(found['passes']) > 20
    assert [
        (each['id'], [node['html'] for node in each['nodes']]) for each in found['violations']
    ] == []


def test_a_page_of_many_pictures_stays_below_eight_megabytes(tmp_path, monkeypatch):
    noise = np.random.RandomState(0).rand(30, 90, 3) * 255
    photo = cv2.resize(noise.astype('uint8'), (952, 300), interpolation=cv2.INTER_CUBIC)
    items = [item(i, 'a', 'a', 'a') for i in range(10)]
    for each in items:
        each.picture = photo
    assert report.PICTURE_BYTES * 4 / 3 < 7_500_000
    # A twentieth of the 200 images for which there is room
    monkeypatch.setattr(report, 'PICTURE_BYTES', report.PICTURE_BYTES // 20)
    assert 200_000 < write(tmp_path, gallery=items).stat().st_size < 8_000_000 / 20
