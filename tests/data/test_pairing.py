import inspect
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from jaxunlearn.data import pairing
from jaxunlearn.data.pairing import SAMPLERS, Pool
from jaxunlearn.errors import UserError

MODULAR = ("melu", "cross_wired", "exposure_matched")
samplers = pytest.mark.parametrize("name", SAMPLERS)
modular = pytest.mark.parametrize("name", MODULAR)
RARE = 0.001
"""A p-value below it fails a test of a distribution."""
seeds = st.integers(0, 2**31 - 1)
ratios = st.integers(1, 4)


def pool_of(forget, retain):
    """From entities of the forget rows and "entity/kind" of the retain rows ("/g": general)."""
    kinds = {"d": "direct", "i": "indirect", "g": "general"}
    entities, letters = zip(*(row.split("/") for row in retain.split()), strict=True)
    return Pool(np.array(forget.split()), np.array(entities), np.array([kinds[k] for k in letters]))


# Section 12.A of the paper's notes: r0 to r7.
EIGHT = pool_of("A A B", "A/i /g B/d A/d A/i B/i /g B/d")


def pairs(name, pool, *, epoch=0, seed=0, ratio=1, **options):
    return SAMPLERS[name](pool, epoch, seed, ratio, **options)


@st.composite
def pools(draw, least_neighbours=1, least_entities=1, least_facts=1, least_general=0):
    """Random sizes and a random order of the rows in their files."""
    sizes = st.tuples(st.integers(least_facts, 4), st.integers(0, 4), st.integers(0, 4)).filter(
        lambda size: size[1] + size[2] >= least_neighbours
    )
    entities = draw(st.lists(sizes, min_size=least_entities, max_size=5))
    n_general = draw(st.integers(least_general, 6))
    forget = [f"e{e}" for e, size in enumerate(entities) for _ in range(size[0])]
    retain = [(f"e{e}", "direct") for e, size in enumerate(entities) for _ in range(size[1])]
    retain += [(f"e{e}", "indirect") for e, size in enumerate(entities) for _ in range(size[2])]
    retain = draw(st.permutations([*retain, *[("", "general")] * n_general]))
    owners, kinds = zip(*retain, strict=True)
    return Pool(np.array(draw(st.permutations(forget))), np.array(owners), np.array(kinds))


def blocks(pool):
    """MELU's blocks, as printed in the authors' notebook."""
    found = []
    for entity in dict.fromkeys(pool.forget.tolist()):
        f = [i for i, name in enumerate(pool.forget) if name == entity]
        r = [j for j, name in enumerate(pool.retain) if name == entity]
        found += [[f[k % len(f)], r[k % len(r)]] for k in range(max(len(f), len(r)))]
    return found


def counts(rows, n):
    return np.bincount(np.ravel(rows), minlength=n)


def neighbour_pairs(pool, found):
    """Entities of both sides of the pairs whose partner is a neighbour; ratio 1."""
    near = pool.kinds[found[:, 1]] != "general"
    return pool.forget[found[near, 0]], pool.retain[found[near, 1]]


# --- the eight rows -------------------------------------------------------------------------------


def test_sequential_on_eight_rows():
    assert pairs("sequential", EIGHT).tolist() == [[0, 0], [1, 1], [2, 2]]
    expected = [[0, 0, 1, 2], [1, 3, 4, 5], [2, 6, 7, 0]]
    assert pairs("sequential", EIGHT, ratio=3, epoch=4, seed=9).tolist() == expected


def test_cyclic_on_eight_rows():
    expected = [[0, 0], [1, 1], [2, 2], [0, 3], [1, 4], [2, 5], [0, 6], [1, 7]]
    assert pairs("cyclic", EIGHT).tolist() == expected
    expected = [[0, 0, 1, 2], [1, 3, 4, 5], [2, 6, 7, 0]]
    assert pairs("cyclic", EIGHT, ratio=3).tolist() == expected
    # More forget rows than groups of partners: these start over.
    expected = [[0, 0, 1, 2, 3, 4], [1, 5, 6, 7, 0, 1], [2, 2, 3, 4, 5, 6]]
    assert pairs("cyclic", EIGHT, ratio=5).tolist() == expected


def test_sequential_and_cyclic_with_more_forget_than_retain_rows():
    pool = pool_of("A A A A A", "A/d /g")
    expected = [[0, 0], [1, 1], [2, 0], [3, 1], [4, 0]]
    assert pairs("sequential", pool).tolist() == pairs("cyclic", pool).tolist() == expected


@pytest.mark.parametrize("weight", ["uniform", "exposure"])
def test_melu_on_eight_rows(weight):
    found = pairs("melu", EIGHT, seed=3, general_weight=weight)
    assert found[:6].tolist() == [[0, 0], [1, 3], [0, 4], [2, 2], [2, 5], [2, 7]]
    assert found[6:, 1].tolist() == [1, 6]
    assert set(found[6:, 0]) <= {0, 1, 2}
    for epoch in range(5):
        again = pairs("melu", EIGHT, seed=3, epoch=epoch, general_weight=weight)
        np.testing.assert_array_equal(found, again)


def test_melu_takes_several_partners():
    found = pairs("melu", EIGHT, ratio=2)
    assert found[:4].tolist() == [[0, 0, 3], [1, 4, 0], [2, 2, 5], [2, 7, 2]]
    assert found[4:, 1:].tolist() == [[1, 6]]
    assert pairs("melu", EIGHT, ratio=3)[3:, 1:].tolist() == [[1, 6, 1]]


def test_cross_wired_on_eight_rows():
    found = pairs("cross_wired", EIGHT)
    assert found[:6].tolist() == [[0, 2], [1, 5], [0, 7], [2, 0], [2, 3], [2, 4]]
    assert found[6:, 1].tolist() == [1, 6]


def test_cross_wired_goes_to_the_next_entity_and_from_the_last_to_the_first():
    pool = pool_of("C A B", "A/d B/d C/d")
    assert pairs("cross_wired", pool).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert pairs("melu", pool).tolist() == [[0, 2], [1, 0], [2, 1]]


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", [False, True])
@given(pool=pools(), seed=seeds, epoch=st.integers(0, 50), ratio=ratios)
@settings(max_examples=40, deadline=None)
def test_random_shows_each_forget_row_once(replacement, pool, seed, epoch, ratio):
    n_forget, n_retain = len(pool.forget), len(pool.retain)
    found = pairs("random", pool, seed=seed, epoch=epoch, ratio=ratio, replacement=replacement)
    assert found[:, 0].tolist() == list(range(n_forget))
    assert found[:, 1:].min() >= 0 and found[:, 1:].max() < n_retain
    if not replacement:
        seen = counts(found[:, 1:], n_retain)
        assert seen.max() == -(-n_forget * ratio // n_retain)
        assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize("replacement", [False, True])
def test_random_draws_are_uniform_over_epochs(replacement):
    drawn = np.concatenate([
        pairs("random", EIGHT, epoch=epoch, seed=5, replacement=replacement)[:, 1:]
        for epoch in range(2000)
    ]).reshape(2000, 3)  # fmt: skip
    for partner in drawn.T:
        assert chisquare(counts(partner, 8)).pvalue > RARE
    repeats = np.mean([len(set(row)) < 3 for row in drawn.tolist()])
    # Three draws of eight: 1 - 7/8 * 6/8 = 34 %.
    assert abs(repeats - 0.344) < 0.03 if replacement else repeats == 0


def test_general_rows_meet_uniformly_drawn_forget_rows():
    pool = pool_of("A A B", "A/d B/d B/d B/d B/d B/d B/d /g /g")
    drawn = np.stack([
        pairs("melu", pool, epoch=epoch, general="per_epoch")[-2:, 0] for epoch in range(2000)
    ])  # fmt: skip
    for forget in drawn.T:
        assert chisquare(counts(forget, 3)).pvalue > RARE


def test_general_rows_meet_forget_rows_by_their_exposure():
    # Blocks show the facts 1, 1 and 6 times.
    pool = pool_of("A A B", "A/d B/d B/d B/d B/d B/d B/d /g /g")
    options = {"general": "per_epoch", "general_weight": "exposure"}
    drawn = np.stack([pairs("melu", pool, epoch=e, **options)[-2:, 0] for e in range(2000)])
    for forget in drawn.T:
        assert chisquare(counts(forget, 3), [250, 250, 1500]).pvalue > RARE


@samplers
@given(pool=pools(least_entities=2), seed=seeds, ratio=ratios)
@settings(max_examples=25, deadline=None)
def test_pairs_are_a_function_of_seed_and_epoch(name, pool, seed, ratio):
    first = pairs(name, pool, seed=seed, epoch=1, ratio=ratio)
    assert first.dtype == np.int32 and first.shape[1] == 1 + ratio
    assert first.min() >= 0
    np.testing.assert_array_equal(first, pairs(name, pool, seed=seed, epoch=1, ratio=ratio))
    if name != "random":
        np.testing.assert_array_equal(first, pairs(name, pool, seed=seed, epoch=2, ratio=ratio))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random", {}),
        ("random", {"replacement": True}),
        *((name, {"general": "per_epoch"}) for name in MODULAR),
        *((name, {"general": "per_epoch", "general_weight": "exposure"}) for name in MODULAR),
    ],
)
def test_what_is_drawn_per_epoch_differs_by_epoch_and_seed(name, options):
    pool = pool_of("A A A B B B", "A/d B/d " + "/g " * 40)
    made = [
        pairs(name, pool, epoch=epoch, seed=seed, **options).tolist()
        for epoch in range(3)
        for seed in range(3)
    ]
    assert len({str(found) for found in made}) == 9


@modular
def test_static_draws_differ_by_seed(name):
    pool = pool_of("A A A B B B", "A/d B/d " + "/g " * 40)
    assert len({str(pairs(name, pool, seed=seed).tolist()) for seed in range(5)}) == 5


# --- MELU and its controls ------------------------------------------------------------------------


@given(pool=pools(), seed=seeds, epoch=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_melu_blocks_and_general_rows(pool, seed, epoch):
    found = pairs("melu", pool, seed=seed, epoch=epoch)
    expected = blocks(pool)
    assert found[: len(expected)].tolist() == expected
    general = np.flatnonzero(pool.kinds == "general")
    np.testing.assert_array_equal(found[len(expected) :, 1], general)


@given(pool=pools(), seed=seeds, ratio=ratios)
@settings(max_examples=100, deadline=None)
def test_melu_properties(pool, seed, ratio):
    found = pairs("melu", pool, seed=seed, ratio=ratio)
    shown = counts(found[:, 0], len(pool.forget))
    seen = counts(found[:, 1:], len(pool.retain))
    assert shown.min() >= 1 and seen.min() >= 1
    partner_kinds = pool.kinds[found[:, 1:]] == "general"
    np.testing.assert_array_equal(partner_kinds.all(axis=1), partner_kinds.any(axis=1))
    n_general = (pool.kinds == "general").sum()
    assert partner_kinds[:, 0].sum() == -(-n_general // ratio)
    near = found[~partner_kinds[:, 0]]
    for column in near[:, 1:].T:
        np.testing.assert_array_equal(pool.forget[near[:, 0]], pool.retain[column])
    for entity in set(pool.forget.tolist()):
        facts, rows = pool.forget == entity, pool.retain == entity
        in_block = counts(near[:, 0], len(pool.forget))[facts]
        assert in_block.max() - in_block.min() <= 1
        assert seen[rows].max() - seen[rows].min() <= 1
        if ratio == 1 and rows.sum() >= facts.sum():
            assert (seen[rows] == 1).all()
        if ratio == 1 and rows.sum() < facts.sum():
            assert (in_block == 1).all()


@given(pool=pools(least_entities=2), seed=seeds)
@settings(max_examples=100, deadline=None)
def test_cross_wired_never_pairs_an_entity_with_its_own(pool, seed):
    found = pairs("cross_wired", pool, seed=seed)
    forget, retain = neighbour_pairs(pool, found)
    following = dict.fromkeys(pool.forget.tolist())
    following = dict(zip(following, [*list(following)[1:], next(iter(following))], strict=True))
    assert [following[entity] for entity in forget.tolist()] == retain.tolist()
    assert counts(found[:, 0], len(pool.forget)).min() >= 1
    assert counts(found[:, 1], len(pool.retain)).min() >= 1


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), ratios)
@settings(max_examples=40, deadline=None)
def test_cross_wired_is_as_long_as_melu_where_sizes_match(entities, facts, near, general, ratio):
    names = "ABCDE"[:entities]
    pool = pool_of(
        " ".join(names * facts), " ".join([f"{e}/i" for e in names * near]) + " /g" * general
    )
    wired, plain = (pairs(name, pool, ratio=ratio) for name in ("cross_wired", "melu"))
    np.testing.assert_array_equal(wired[:, 0], plain[:, 0])


def test_cross_wired_needs_a_second_entity():
    with pytest.raises(UserError, match=r"about one entity.*use melu, or forget more"):
        pairs("cross_wired", pool_of("A A", "A/d /g"))


@pytest.mark.parametrize("general", typing.get_args(pairing.Draw))
@pytest.mark.parametrize("general_weight", typing.get_args(pairing.Weight))
@given(pool=pools(), seed=seeds, epoch=st.integers(0, 9), ratio=ratios)
@settings(max_examples=30, deadline=None)
def test_exposure_matched_shows_every_row_as_often_as_melu(
    general, general_weight, pool, seed, epoch, ratio
):
    key = {"seed": seed, "epoch": epoch, "ratio": ratio}
    options = {"general": general, "general_weight": general_weight}
    plain, matched = (pairs(n, pool, **key, **options) for n in ("melu", "exposure_matched"))
    np.testing.assert_array_equal(plain[:, 0], matched[:, 0])
    assert sorted(plain[:, 1:].ravel()) == sorted(matched[:, 1:].ravel())


def test_exposure_matched_meets_at_random():
    names = "ABCDEFGHIJ"
    pool = pool_of(" ".join(names), " ".join(f"{e}/d" for e in names * 100))
    forget, retain = neighbour_pairs(pool, pairs("exposure_matched", pool))
    # A tenth by chance: 100 of 1000, standard deviation 9.5.
    assert 70 < (forget == retain).sum() < 130


# --- entities without neighbours ------------------------------------------------------------------


@modular
def test_an_entity_without_neighbours_is_refused(name):
    message = r"entity 'B' has no neighbours.*\(1 of 3 entities.*on_missing to general"
    with pytest.raises(UserError, match=message):
        pairs(name, pool_of("A B C", "A/d C/d /g"))


@modular
def test_without_general_rows_nothing_stands_in(name):
    with pytest.raises(UserError, match=r"entity 'B' has no neighbours.*no general rows"):
        pairs(name, pool_of("A B", "A/d"), on_missing="general")


def test_facts_without_neighbours_meet_general_rows():
    pool = pool_of("A B A B", "A/d /g /g /g /g")
    for seed in range(20):
        found = pairs("melu", pool, seed=seed, on_missing="general")
        assert found[:2].tolist() == [[0, 0], [2, 0]]
        assert found[2:, 1].tolist() == [1, 2, 3, 4]
        assert {1, 3} <= set(found[2:, 0])
    # B's facts meet A's neighbour, and A's are left with the general rows.
    found = pairs("cross_wired", pool, on_missing="general")
    assert found[:2].tolist() == [[1, 0], [3, 0]]
    assert {0, 2} <= set(found[2:, 0])


def test_which_general_row_stands_in_is_drawn():
    pool = pool_of("A A A B", "A/d " + "/g " * 6)
    options = {"general": "per_epoch", "on_missing": "general", "general_weight": "exposure"}
    drawn = np.stack([pairs("melu", pool, epoch=e, **options)[3:, 0] for e in range(2000)])
    assert (drawn == 3).any(axis=1).all()
    # Once surely and five times with one chance in four: 3/8 of each general row's draws.
    for forget in drawn.T:
        assert chisquare(counts(forget, 4), [1250 / 3] * 3 + [750]).pvalue > RARE


def test_general_rows_start_over_when_more_facts_need_one():
    found = pairs("melu", pool_of("A A B B B", "/g /g"), on_missing="general")
    assert sorted(found[:, 0]) == [0, 1, 2, 3, 4]
    assert found[:, 1].tolist() == [0, 1, 0, 1, 0]
    found = pairs("melu", pool_of("A A B", "/g /g"), on_missing="general", ratio=3)
    assert found[:, 1:].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("weight", typing.get_args(pairing.Weight))
@given(pool=pools(least_neighbours=0, least_general=1, least_entities=2), seed=seeds, ratio=ratios)
@settings(max_examples=80, deadline=None)
def test_no_row_is_dropped_where_general_rows_stand_in(weight, pool, seed, ratio):
    options = {"on_missing": "general", "general_weight": weight}
    for name in MODULAR:
        found = pairs(name, pool, seed=seed, ratio=ratio, **options)
        assert counts(found[:, 0], len(pool.forget)).min() >= 1
        assert counts(found[:, 1:], len(pool.retain)).min() >= 1


@modular
def test_rows_without_an_entity_are_refused(name):
    pool = Pool(np.array(["A", "", ""]), np.array(["A", ""]), np.array(["direct", "general"]))
    with pytest.raises(UserError, match="2 of 3 forget rows name no entity"):
        pairs(name, pool, on_missing="general")


@modular
def test_neighbours_of_strangers_are_refused(name):
    with pytest.raises(UserError, match="2 retain rows are neighbours of 'X', whom no forget row"):
        pairs(name, pool_of("A B", "A/d X/i X/d B/d"))


# --- what is registered ---------------------------------------------------------------------------


def test_names():
    assert list(SAMPLERS) == [
        "sequential", "random", "cyclic", "melu", "cross_wired", "exposure_matched",
    ]  # fmt: skip


@samplers
def test_first_docstring_line_is_a_sentence(name):
    line = inspect.getdoc(SAMPLERS[name]).splitlines()[0]
    assert line.endswith(".") and len(line) < 100


@samplers
def test_options_have_a_type_and_a_default_of_it(name):
    hints = typing.get_type_hints(SAMPLERS[name])
    for p in inspect.signature(SAMPLERS[name]).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            allowed = typing.get_args(hints[p.name]) or {bool: (True, False)}[hints[p.name]]
            assert p.default in allowed


@pytest.mark.parametrize(
    ("forget", "retain", "kinds", "message"),
    [
        ([], ["A"], ["direct"], "n_forget must be at least 1, got 0"),
        (["A"], [], [], "n_retain must be at least 1, got 0"),
        (["A"], ["A"], ["direct", "general"], "1 retain rows, but 2 kinds"),
        (["A"], ["A"], ["domain"], "kind 'domain' is not one of: direct, indirect, general"),
    ],
)
def test_impossible_pools_are_refused(forget, retain, kinds, message):
    with pytest.raises(ValueError, match=message):
        Pool(np.array(forget, str), np.array(retain, str), np.array(kinds, str))
