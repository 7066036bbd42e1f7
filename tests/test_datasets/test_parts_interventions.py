"""Birds that are drawn again without a part, with another variant of it, or with another mark."""

import cv2
import numpy as np
import pytest

from mmkdx.datasets import Parts, bird_drawing

PARTS = ('tail', 'wing', 'beak', 'crest', 'legs')
REGIONS = Parts.METAINFO['regions']


@pytest.fixture(scope='module')
def plain():
    return Parts(split='val', num_samples=45)


@pytest.fixture(scope='module')
def marked():
    return Parts(split='val', num_samples=45, mark='class')


def same(first, second):
    arrays = [(a.pop('img'), a.pop('gt_seg_map')) for a in (first, second)]
    return first == second and all((a == b).all() for a, b in zip(*arrays))


def changed(data, index, part, variant=None):
    """The new sample, which pixels are others, and whose label is another."""
    old, new = data.get_data_info(index), data.intervene(index, part, variant)
    return new, (old['img'] != new['img']).any(-1), old['gt_seg_map'] != new['gt_seg_map']


def around(*maps, part):
    """The pixels of a part in some label maps, with two pixels around."""
    mask = np.any([each == REGIONS.index(part) for each in maps], 0)
    return cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) > 0


@pytest.mark.parametrize('mark', ['none', 'class', 'random'])
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_without_a_change_the_image_is_the_same_bit_for_bit(split, mark):
    for seed in (0, 1):
        data = Parts(split=split, num_samples=18, mark=mark, seed=seed, missing=0.5)
        assert all(same(data.intervene(i), data.get_data_info(i)) for i in range(18))


def test_an_intervention_draws_the_same_random_numbers(marked, monkeypatch):
    """The generators end in the same state."""
    new = np.random.default_rng

    def states(*args):
        generators = []
        monkeypatch.setattr(
            np.random, 'default_rng', lambda key: generators.append(new(key)) or generators[-1]
        )
        marked.intervene(*args)
        monkeypatch.undo()
        return [each.bit_generator.state for each in generators]

    for index in range(9):
        expected = states(index)
        for part in (*PARTS, 'mark'):
            found = states(index, part)
            # Without a mark nothing draws its place, last of its own generator
            assert len(found) == 3 and found[part == 'mark' : 1] == expected[part == 'mark' : 1]
            assert found[0] == expected[0] and (part == 'mark' or found == expected)


def test_a_removal_changes_pixels_of_the_part_alone(plain):
    for index in range(45):
        old = plain.get_data_info(index)
        for part in PARTS:
            new, pixels, labels = changed(plain, index, part)
            near = around(old['gt_seg_map'], part=part)
            assert pixels.any() and not (pixels | labels)[~near].any()
            assert not (new['gt_seg_map'] == REGIONS.index(part)).any()
            assert new['gt_label'] == old['gt_label']
            assert new['variants'] == {**old['variants'], part: None}


def test_a_swap_changes_pixels_of_both_variants_alone(plain):
    for index in range(45):
        old = plain.get_data_info(index)
        for part, variants in plain.interventions(index, 'swap').items():
            for variant in variants:
                new, pixels, labels = changed(plain, index, part, variant)
                near = around(old['gt_seg_map'], new['gt_seg_map'], part=part)
                assert pixels.any() and not (pixels | labels)[~near].any()
                assert new['variants'] == {**old['variants'], part: variant}


def test_pinned_pixels(plain):
    """Visible and changed pixels of each part; other versions of OpenCV may move them by a few."""
    pinned = [
        (202, 208, 263, 263, 111, 116, 138, 148, 38, 40),
        (84, 88, 191, 191, 83, 86, 95, 102, 57, 61),
        (122, 125, 202, 202, 134, 137, 124, 134, 45, 49),
    ]
    for index, expected in enumerate(pinned):
        mask = plain.get_data_info(index)['gt_seg_map']
        found = []
        for part in PARTS:
            found += [(mask == REGIONS.index(part)).sum(), changed(plain, index, part)[1].sum()]
        assert found == pytest.approx(expected, abs=5)


def test_a_swap_has_the_label_of_the_new_bird(plain):
    points_to = dict(spiked='tail', bobbled='wing', plumed='beak')
    classes = plain.metainfo['classes']
    for index in range(9):
        old = plain.get_data_info(index)
        for part, choices in bird_drawing.VARIANTS.items():
            for variant in set(choices) - {old['variants'][part]}:
                new = plain.intervene(index, part, variant)
                has = {**old['variants'], part: variant}
                decides = points_to[has['crest']]
                assert classes[new['gt_label']] == f'{has["crest"]} crest, {has[decides]} {decides}'
                decided = part == 'crest' or REGIONS.index(part) in old['deciding_labels']
                assert (new['gt_label'] != old['gt_label']) == decided
                names = [REGIONS[each] for each in new['deciding_labels']]
                assert names == ['crest', decides]
    first = plain.get_data_info(0)['variants']
    assert plain.intervene(0, 'tail', 'forked')['gt_label'] == 1
    wing = list(bird_drawing.VARIANTS['wing']).index(first['wing'])
    assert plain.intervene(0, 'crest', 'bobbled')['gt_label'] == 3 + wing


def test_swaps_that_would_leave_the_image_are_not_offered():
    data = Parts(split='val', num_samples=300)
    shares = dict.fromkeys(PARTS, 0)
    for index in range(300):
        offered = data.interventions(index, 'swap')
        assert list(offered) == list(data.interventions(index, 'remove'))
        for part, variants in offered.items():
            assert data.get_data_info(index)['variants'][part] not in variants
            shares[part] += 1 - len(variants) / 2
    found = [round(shares[part] / 300, 2) for part in PARTS]
    assert found == pytest.approx([0.32, 0, 0.2, 0.05, 0], abs=0.01)


# The mark


def test_a_removed_part_does_not_move_the_mark(marked):
    for index in range(45):
        mark = marked.get_data_info(index)['gt_seg_map'] == bird_drawing.MARK
        for part in PARTS:
            new = marked.intervene(index, part)['gt_seg_map'] == bird_drawing.MARK
            assert (new == mark).all()


def test_the_image_without_its_mark_is_that_of_a_data_set_without_marks(plain, marked):
    assert all(same(marked.intervene(i, 'mark'), plain.get_data_info(i)) for i in range(45))


def test_another_mark_is_at_the_same_place(marked):
    classes = marked.metainfo['classes']
    for index in range(9):
        old, offered = marked.get_data_info(index), marked.interventions(index, 'swap')['mark']
        assert offered == [name for name in classes if name != classes[index]]
        for variant in offered:
            new, pixels, labels = changed(marked, index, 'mark', variant)
            assert new['mark_label'] == classes.index(variant) and new['gt_label'] == index
            inside = old['gt_seg_map'] == bird_drawing.MARK
            assert pixels.any() and not pixels[~inside].any() and not labels.any()


# Missing parts


def test_training_images_may_lack_parts_that_do_not_decide(plain):
    data = Parts(split='val', num_samples=450, image_size=32, missing=0.5)
    counts = np.zeros(4)
    for index in range(450):
        info = data.get_data_info(index)
        lacks = [part for part, variant in info['variants'].items() if variant is None]
        counts[len(lacks)] += 1
        ids = [REGIONS.index(part) for part in lacks]
        assert not set(ids) & set(info['deciding_labels']) and info['gt_label'] == index % 9
        assert not np.isin(info['gt_seg_map'], ids).any()
        assert set(data.interventions(index, 'swap')) == set(PARTS) - set(lacks)
    # 225 and 75 each, five standard deviations
    assert abs(counts - [225, 75, 75, 75]).max() < 53
    assert all(same(Parts(split='val', num_samples=9, missing=0.0).intervene(i),
                    plain.get_data_info(i)) for i in range(9))  # fmt: skip


def test_what_is_missing_moves_neither_bird_nor_mark(marked):
    data = Parts(split='val', num_samples=45, mark='class', missing=1.0)
    for index in range(45):
        whole, info = marked.get_data_info(index), data.get_data_info(index)
        lacks = [part for part, variant in info['variants'].items() if variant is None]
        near = np.any([around(whole['gt_seg_map'], part=part) for part in lacks], 0)
        assert lacks and not (whole['img'] != info['img']).any(-1)[~near].any()


def test_images_are_found_by_their_own_number():
    data = Parts(split='val', num_samples=45, indices=[29, 3])
    assert same(data.intervene(0), data.get_data_info(0))
    assert [data.intervene(i, 'tail')['drawing'] for i in (0, 1, -1)] == [29, 3, 3]
    assert [data.intervene(i, 'tail')['sample_idx'] for i in (0, 1, -1)] == [0, 1, 1]


# Errors


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('body',), "part is 'body'; it must be one of tail, wing, beak, crest, legs, mark"),
        ((None, 'forked'), 'part is None; it must be one of tail'),
        (('tail', 'spotted'), "variant is 'spotted'; it must be one of fanned, forked, long"),
        (('tail', 'fanned'), "the tail of image 0 is 'fanned' already"),
        (('mark',), 'image 0 has no mark'),
        (('mark', 'spiked crest, long tail'), 'image 0 has no mark'),
    ],
)
def test_refused_interventions(plain, arguments, message):
    with pytest.raises(ValueError, match=f'^Parts.intervene: {message}'):
        plain.intervene(0, *arguments)


def test_refused_interventions_on_marks_and_missing_parts(marked):
    with pytest.raises(ValueError, match="mark of image 0 is 'spiked crest, fanned tail' already"):
        marked.intervene(0, 'mark', 'spiked crest, fanned tail')
    with pytest.raises(ValueError, match="variant is 'red'; it must be one of spiked crest, fan"):
        marked.intervene(0, 'mark', 'red')
    with pytest.raises(ValueError, match="kind is 'add'; it must be one of remove, swap"):
        marked.interventions(0, 'add')
    data = Parts(split='val', num_samples=90, image_size=32, missing=1.0)
    lacking = [i for i in range(90) if data.get_data_info(i)['variants']['wing'] is None]
    index = next(i for i in lacking if data.get_data_info(i)['variants']['crest'] != 'bobbled')
    with pytest.raises(ValueError, match=f'image {index} has no wing'):
        data.intervene(index, 'wing')
    with pytest.raises(ValueError, match='lacks the wing, which a bobbled crest points to'):
        data.intervene(index, 'crest', 'bobbled')
    assert 'bobbled' not in data.interventions(index, 'swap')['crest']
