import hashlib
import subprocess
import sys
import typing

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxunlearn.data import sampling
from jaxunlearn.data.sampling import EMPTY, SAMPLERS, Pool
from jaxunlearn.errors import UserError

samplers = pytest.mark.parametrize("name", SAMPLERS)
orders = pytest.mark.parametrize("order", sampling.ORDERS)
seeds = st.integers(0, 2**31 - 1)

# Section 12.A of the paper's notes: f0 to f2, r0 to r7.
EIGHT = Pool(
    np.array(["A", "A", "B"]),
    np.array(["A", "", "B", "A", "A", "B", "", "B"]),
    np.array([
        "indirect", "general", "direct", "direct", "indirect", "indirect", "general", "direct",
    ]),
)  # fmt: skip


def sized(facts, direct, indirect, general):
    """A pool with so many rows of each entity, its retain rows shuffled; entity by number."""
    owners = np.concatenate([
        np.repeat(np.arange(len(direct)), direct), np.repeat(np.arange(len(indirect)), indirect),
    ]).astype(str)  # fmt: skip
    retain = np.concatenate([owners, np.full(general, "")])
    kinds = np.repeat(["direct", "indirect", "general"], [sum(direct), sum(indirect), general])
    order = np.random.default_rng(0).permutation(len(retain))
    return Pool(np.repeat(np.arange(len(facts)), facts).astype(str), retain[order], kinds[order])


# The sizes of the paper's data: 98 forget, 364 direct, 1144 indirect and 293 general rows.
PAPER = sized(
    facts=[8, 7, 7, 6, 6, *[5] * 6, *[4] * 7, *[3] * 2],
    direct=[5, 20, *[19] * 15, *[18] * 3],
    indirect=[27, 79, *[58] * 12, *[57] * 6],
    general=293,
)


@st.composite
def pools(draw):
    """At least two entities, each with neighbours."""
    facts = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    counts = st.lists(st.integers(0, 3), min_size=len(facts), max_size=len(facts))
    direct, indirect = draw(counts), [1 + count for count in draw(counts)]
    return sized(facts, direct, indirect, draw(st.integers(0, 5)))


def make(name="cyclic", pool=EIGHT, *, epochs=1, batch_size=3, seed=0, **settings):
    return sampling.schedule(
        name, pool, epochs=epochs, batch_size=batch_size, seed=seed, **settings
    )


def rows_of(schedule):
    """The pairs in the order of their slots, [n_pairs, 1 + ratio]; checks that EMPTY agree."""
    forget = schedule.forget.reshape(-1, 1)
    table = np.concatenate([forget, schedule.retain.reshape(len(forget), -1)], axis=1)
    real = forget[:, 0] != EMPTY
    assert (table[real] >= 0).all() and (table[~real] == EMPTY).all()
    return table[real]


def modules_of(pool, pairs):
    general = (pool.kinds[pairs[:, 1:]] == "general").all(axis=1)
    return np.where(general, "general", pool.forget[pairs[:, 0]])


def digest(schedule):
    tables = schedule.forget.astype("<i4").tobytes() + schedule.retain.astype("<i4").tobytes()
    return hashlib.sha256(tables).hexdigest()


# --- the paper's settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subset", "pairs", "steps"),
    [
        ("sequential", "full", 98, 13),
        ("random", "full", 98, 13),
        ("cyclic", "full", 1801, 226),
        ("melu", "full", 1801, 226),
        ("cross_wired", "full", 1801, 226),
        ("exposure_matched", "full", 1801, 226),
        ("cyclic", "direct", 657, 83),
        ("cyclic", "indirect", 1437, 180),
        ("cyclic", "balanced", 1021, 128),
    ],
)
def test_pairs_and_steps_of_the_paper(name, subset, pairs, steps):
    for epochs in (1, 4):
        made = make(name, PAPER, subset=subset, epochs=epochs, batch_size=8)
        found = sampling.describe(PAPER, made)
        assert (found["pairs"], found["steps"]) == (epochs * pairs, epochs * steps)


def test_cyclic_exposures_of_the_paper():
    shown = np.bincount(rows_of(make("cyclic", PAPER, batch_size=8))[:, 0])
    assert sorted(shown) == [18] * 61 + [19] * 37


def test_melu_exposures_of_the_paper():
    found = rows_of(make("melu", PAPER, order="contiguous", batch_size=8))[:1508]
    shown = np.bincount(found[:, 0])
    for entity in set(PAPER.forget.tolist()):
        facts = PAPER.forget == entity
        near = (PAPER.retain == entity).sum()
        assert shown[facts].sum() == near
        assert shown[facts].max() - shown[facts].min() <= 1


# --- subsets --------------------------------------------------------------------------------------


def test_subsets_on_eight_rows():
    assert sampling.subset(EIGHT, "full", 0).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert sampling.subset(EIGHT, "direct", 0).tolist() == [1, 2, 3, 6, 7]
    assert sampling.subset(EIGHT, "indirect", 0).tolist() == [0, 1, 4, 5, 6]
    # A has one direct row, so one of its two indirect ones is drawn.
    balanced = {tuple(sampling.subset(EIGHT, "balanced", seed)) for seed in range(20)}
    assert balanced == {(0, 1, 2, 3, 5, 6, 7), (1, 2, 3, 4, 5, 6, 7)}


def test_schedules_of_a_subset_hold_rows_of_the_whole_table():
    def pairs(subset):
        return rows_of(make("cyclic", subset=subset, order="contiguous")).tolist()

    assert pairs("direct") == [[0, 1], [1, 2], [2, 3], [0, 6], [1, 7]]
    assert pairs("indirect") == [[0, 0], [1, 1], [2, 4], [0, 5], [1, 6]]


@given(pool=pools(), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_balanced_keeps_as_many_indirect_as_direct_rows(pool, seed):
    assume((pool.kinds != "indirect").any())
    kept = sampling.subset(pool, "balanced", seed)
    assert kept.tolist() == sorted(set(kept))
    for entity in set(pool.forget.tolist()):
        own = pool.retain == entity
        n_direct = (own & (pool.kinds == "direct")).sum()
        n_indirect = (own & (pool.kinds == "indirect")).sum()
        mine = pool.kinds[kept[own[kept]]]
        assert (mine == "direct").sum() == n_direct
        assert (mine == "indirect").sum() == min(n_direct, n_indirect)
    assert (pool.kinds[kept] == "general").sum() == (pool.kinds == "general").sum()


@pytest.mark.parametrize(
    ("subset", "kind"), [("direct", "indirect"), ("indirect", "direct"), ("balanced", "indirect")]
)
def test_a_subset_without_rows_is_refused(subset, kind):
    pool = Pool(np.array(["A"]), np.array(["A", "A"]), np.array([kind, kind]))
    with pytest.raises(UserError, match=f"subset: {subset} leaves none of the 2 retain rows"):
        make("cyclic", pool, subset=subset)


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "forget", "retain"),
    [
        (
            (5, 7, 2, 2, 3),
            [[0, 1], [2, 4], [3, -1], [3, 0], [1, 2], [4, -1]],
            [[6, 4], [3, 5], [2, -1], [5, 1], [0, 4], [3, -1]],
        ),
        (
            (4, 2, 2, 3, 11),
            [[0, 2, 1], [3, -1, -1], [3, 0, 1], [2, -1, -1]],
            [[1, 1, 0], [0, -1, -1], [0, 1, 0], [1, -1, -1]],
        ),
        ((6, 9, 1, 6, 0), [[0, 3, 5, 1, 2, 4]], [[4, 6, 2, 7, 8, 1]]),
    ],
)
def test_random_draws_of_a_seed_are_fixed(counts, forget, retain):
    # Published numbers were made with these draws.
    schedule = random_of(*counts)
    assert schedule.forget.tolist() == forget
    assert schedule.retain.tolist() == retain


def test_random_draws_of_the_papers_size_are_fixed():
    expected = "e905a5649ee8bec62908ff10341dc7c72212206e823a91f04ee9def1f0993858"
    assert digest(random_of(98, 1801, 4, 8, 42)) == expected


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("random", {"replacement": True}, "80dd1c8ba895"),
        ("melu", {}, "f222e25a0bb9"),
        ("melu", {"general": "per_epoch", "general_weight": "exposure"}, "f222e25a0bb9"),
        ("exposure_matched", {}, "3c3115dd14aa"),
        ("cyclic", {"subset": "balanced"}, "06780953404c"),
        ("cyclic", {"order": "entity_batch"}, "73acdaa369f5"),
        ("cyclic", {"order": "round_robin"}, "ee14e9851973"),
    ],
)
def test_other_draws_of_a_seed_are_fixed(name, settings, expected):
    made = make(name, epochs=3, batch_size=2, seed=8, **settings)
    assert digest(made)[:12] == expected


def random_of(n_forget, n_retain, epochs, batch_size, seed):
    pool = Pool(np.full(n_forget, ""), np.full(n_retain, ""), np.full(n_retain, "general"))
    return make("random", pool, epochs=epochs, batch_size=batch_size, seed=seed)


@orders
@samplers
@given(pool=pools(), batch_size=st.integers(1, 9), seed=seeds, ratio=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_batches_hold_the_pairs_of_each_epoch(name, order, pool, batch_size, seed, ratio):
    key = {"batch_size": batch_size, "seed": seed, "ratio": ratio, "order": order}
    one, two = (make(name, pool, epochs=epochs, **key) for epochs in (1, 2))
    steps = len(one.forget)
    assert two.forget.shape == (len(two.forget), batch_size)
    assert two.retain.shape == (len(two.forget), batch_size * ratio)
    assert two.forget.dtype == two.retain.dtype == np.int32
    np.testing.assert_array_equal(one.forget, two.forget[:steps])
    np.testing.assert_array_equal(one.retain, two.retain[:steps])
    second = sampling.Schedule(two.forget[steps:], two.retain[steps:])
    for epoch, part in enumerate((one, second)):
        expected = SAMPLERS[name](pool, epoch, seed, ratio)
        if order == "contiguous":
            np.testing.assert_array_equal(rows_of(part), expected)
        assert sorted(rows_of(part).tolist()) == sorted(expected.tolist())
        if order != "entity_batch":
            assert len(part.forget) == -(-len(expected) // batch_size)
            assert (part.forget.ravel()[: len(expected)] != EMPTY).all()
    assert sampling.steps_of(name, pool, epochs=2, **key) == len(two.forget)


@pytest.mark.parametrize("order", ["shuffle", "contiguous", "round_robin"])
@samplers
@given(
    pool=pools(),
    batch_size=st.integers(1, 9),
    other_size=st.integers(1, 9),
    ratio=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_pairs_do_not_depend_on_the_batch_size(name, order, pool, batch_size, other_size, ratio):
    first, second = (
        rows_of(make(name, pool, epochs=2, batch_size=size, order=order, ratio=ratio))
        for size in (batch_size, other_size)
    )
    np.testing.assert_array_equal(first, second)


@samplers
@given(pool=pools(), batch_size=st.integers(1, 9), steps=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_steps_are_exact_and_go_on_into_further_epochs(name, pool, batch_size, steps):
    made = make(name, pool, batch_size=batch_size, steps=steps, order="entity_batch")
    long = make(name, pool, batch_size=batch_size, epochs=40, order="entity_batch")
    assert len(made.forget) == len(made.retain) == steps
    np.testing.assert_array_equal(made.forget, long.forget[:steps])
    np.testing.assert_array_equal(made.retain, long.retain[:steps])


def test_a_step_matched_control():
    steps = sampling.steps_of("melu", PAPER, epochs=4, batch_size=8, seed=0)
    made = make("random", PAPER, epochs=1, batch_size=8, steps=steps)
    assert steps == len(made.forget) == 904
    # 69 epochs of 13 steps, and 7 steps more.
    assert sampling.describe(PAPER, made)["pairs"] == 69 * 98 + 7 * 8


def test_steps_are_those_of_the_subset_and_options():
    count = {"epochs": 3, "batch_size": 8, "seed": 0}
    assert sampling.steps_of("cyclic", PAPER, subset="balanced", **count) == 3 * 128
    nobody = Pool(np.array(["A"] * 9), np.array([""]), np.array(["general"]))
    assert sampling.steps_of("melu", nobody, on_missing="general", **count) == 3 * 2


def test_partners_stand_beside_their_forget_row():
    made = make("sequential", ratio=3, order="contiguous", batch_size=2)
    assert made.forget.tolist() == [[0, 1], [2, EMPTY]]
    assert made.retain.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 0, EMPTY, EMPTY, EMPTY]]


def test_options_reach_the_sampler():
    pool = Pool(np.array(["A"] * 30), np.array([""] * 30), np.array(["general"] * 30))
    assert len(np.unique(rows_of(make("random", pool))[:, 1])) == 30
    assert len(np.unique(rows_of(make("random", pool, replacement=True))[:, 1])) < 30
    with pytest.raises(UserError, match="no neighbours"):
        make("melu", pool)
    assert len(rows_of(make("melu", pool, on_missing="general"))) == 30


@pytest.mark.parametrize("order", ["shuffle", "entity_batch", "round_robin"])
def test_seed_and_epoch_change_the_order(order):
    made = make("cyclic", PAPER, epochs=2, batch_size=8, order=order)
    first, second = np.split(made.forget, 2)
    assert first.tolist() != second.tolist()
    other = make("cyclic", PAPER, epochs=2, batch_size=8, seed=1, order=order)
    assert first.tolist() != other.forget[: len(first)].tolist()


def test_another_process_makes_the_same_schedules():
    code = (
        "from tests.data.test_sampling import SAMPLERS, PAPER, digest, make, sampling\n"
        "print([digest(make(n, PAPER, batch_size=8, epochs=2, ratio=2, order=o, subset=s))"
        " for n in SAMPLERS for o in sampling.ORDERS for s in ('full', 'balanced')])\n"
        "print(sampling.epochs(9, 2, 4, 5).tolist())\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = [
        digest(make(name, PAPER, batch_size=8, epochs=2, ratio=2, order=order, subset=subset))
        for name in SAMPLERS
        for order in sampling.ORDERS
        for subset in ("full", "balanced")
    ]
    assert len(set(mine)) == len(mine)
    assert out.stdout == f"{mine}\n{sampling.epochs(9, 2, 4, 5).tolist()}\n"


# --- orders ---------------------------------------------------------------------------------------


@samplers
@given(pool=pools(), batch_size=st.integers(1, 5), seed=seeds, ratio=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_entity_batches_hold_one_module_each(name, pool, batch_size, seed, ratio):
    made = make(name, pool, batch_size=batch_size, seed=seed, ratio=ratio, order="entity_batch")
    batches = [
        set(modules_of(pool, rows_of(sampling.Schedule(f[None], r[None]))))
        for f, r in zip(made.forget, made.retain, strict=True)
    ]
    assert all(len(modules) == 1 for modules in batches)
    taken = [module for modules in batches for module in modules]
    _, sizes = np.unique(modules_of(pool, rows_of(made)), return_counts=True)
    _, used = np.unique(taken, return_counts=True)
    np.testing.assert_array_equal(used, -(-sizes // batch_size))


def test_entity_batches_come_in_mixed_order():
    found = modules_of(PAPER, rows_of(make("melu", PAPER, batch_size=8, order="entity_batch")))
    # One module after the other would change 20 times.
    assert (found[1:] != found[:-1]).sum() > 100


def test_the_order_of_entity_batches_differs_by_epoch():
    made = make("melu", PAPER, batch_size=1000, epochs=2, order="entity_batch")
    first, second = np.split(PAPER.forget[made.forget[:, 0]], 2)
    assert first.tolist() != second.tolist()


@samplers
@given(pool=pools(), seed=seeds, ratio=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_round_robin_takes_one_pair_of_each_module_in_turn(name, pool, seed, ratio):
    pairs = rows_of(make(name, pool, seed=seed, ratio=ratio, order="round_robin"))
    found = modules_of(pool, pairs).tolist()
    modules = [*dict.fromkeys(pool.forget.tolist()), "general"]
    left = {module: found.count(module) for module in modules}
    expected = []
    while any(left.values()):
        for module in modules:
            if left[module]:
                expected.append(module)
                left[module] -= 1
    assert found == expected


@pytest.mark.parametrize("order", ["entity_batch", "round_robin"])
def test_pairs_are_shuffled_within_a_module(order):
    made = rows_of(make("melu", PAPER, batch_size=1000, order=order))
    for module in {*PAPER.forget.tolist(), "general"}:
        partners = made[modules_of(PAPER, made) == module, 1]
        assert partners.tolist() != sorted(partners)


# --- in turn --------------------------------------------------------------------------------------


@samplers
@settings(deadline=None, max_examples=25)
@given(
    pools(), seeds, st.sampled_from(list(sampling.ORDERS)), st.integers(1, 3),
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 4),
)  # fmt: skip
def test_rows_in_turn_are_those_of_the_epochs(
    name, pool, seed, order, epochs, forget_epochs, batch_size, ratio
):
    """Each epoch comes as its forget rows alone, while they are to come, and its retain rows."""
    options = {"batch_size": batch_size, "seed": seed, "order": order, "ratio": ratio}
    both = make(name, pool, epochs=epochs, **options)
    made = make(name, pool, epochs=epochs, forget_epochs=forget_epochs, **options)
    parts = [make(name, pool, epochs=n, **options).forget.shape[0] for n in range(1, epochs + 1)]
    start = first = 0
    for epoch, end in enumerate(parts):
        steps = end - first
        if epoch < forget_epochs:
            shown = slice(start, start + steps)
            np.testing.assert_array_equal(made.forget[shown], both.forget[first:end])
            assert (made.retain[shown] == EMPTY).all()
            start += steps
        kept = slice(start, start + steps)
        np.testing.assert_array_equal(made.retain[kept], both.retain[first:end])
        assert (made.forget[kept] == EMPTY).all()
        start, first = start + steps, end
    assert start == len(made.forget) == len(made.retain)


def test_rows_in_turn_take_exactly_as_many_steps_as_asked():
    """Of 3 in each half of an epoch: forget, retain, retain, retain."""
    made = make("cyclic", steps=11, forget_epochs=1)
    shown = (made.forget != EMPTY).any(axis=1)
    assert shown.tolist() == [True] * 3 + [False] * 8
    assert ((made.retain != EMPTY).any(axis=1) == ~shown).all()


# --- what a schedule shows ------------------------------------------------------------------------


def test_description_of_eight_rows():
    # (0,0) (1,1) (2,2) (0,3) (1,4) (2,5) (0,6) (1,7): only the last neighbour is another's.
    assert sampling.describe(EIGHT, make("cyclic", epochs=2)) == {
        "steps": 6,
        "pairs": 16,
        "forget_rows": 3,
        "forget_exposures": {"min": 4, "mean": 16 / 3, "max": 6},
        "retain_exposures": {"min": 2, "mean": 2.0, "max": 2},
        "retain_never_seen": 0,
        "neighbours_met": 12,
        "same_entity_rate": 5 / 6,
    }
    # (0,0 1) (1,2 3) (2,4 5), and 0 - 0, 1 - 3 and 2 - 5 agree.
    assert sampling.describe(EIGHT, make("sequential", ratio=2, batch_size=2)) == {
        "steps": 2,
        "pairs": 3,
        "forget_rows": 3,
        "forget_exposures": {"min": 1, "mean": 1.0, "max": 1},
        "retain_exposures": {"min": 0, "mean": 6 / 8, "max": 1},
        "retain_never_seen": 2,
        "neighbours_met": 5,
        "same_entity_rate": 3 / 5,
    }


def test_rows_in_turn_meet_nobody():
    """Of the neighbours of the last row, which an empty slot must not stand for."""
    made = make("cyclic", epochs=2, forget_epochs=1)
    found = sampling.describe(EIGHT, made)
    assert found["neighbours_met"] == 0 and found["same_entity_rate"] is None
    assert (found["steps"], found["pairs"]) == (9, 8)
    assert found["retain_exposures"] == {"min": 2, "mean": 2.0, "max": 2}


def test_without_neighbours_there_is_no_rate():
    pool = Pool(np.array(["A"]), np.array(["", ""]), np.array(["general", "general"]))
    assert sampling.describe(pool, make("cyclic", pool))["same_entity_rate"] is None


@pytest.mark.parametrize(("name", "rate"), [("melu", 1.0), ("cross_wired", 0.0)])
@orders
def test_same_entity_rate_of_melu_and_of_its_control(name, rate, order):
    made = make(name, PAPER, batch_size=8, order=order)
    assert sampling.describe(PAPER, made)["same_entity_rate"] == rate


# --- counts and rows for ordinary training --------------------------------------------------------


@given(n=st.integers(1, 50), batch_size=st.integers(1, 16), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_epochs_cover_all_rows(n, batch_size, seed):
    table = sampling.epochs(n, 3, batch_size, seed)
    assert table.dtype == np.int32
    for epoch in table.reshape(3, -1):
        assert sorted(epoch[epoch >= 0]) == list(range(n))
        assert (epoch[n:] == EMPTY).all()


def test_epochs_of_a_seed_are_fixed():
    expected = [[3, 1, 4], [2, 0, -1], [2, 1, 3], [4, 0, -1]]
    assert sampling.epochs(5, 2, 3, 8).tolist() == expected


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_epochs_refuse_counts_below_one(counts):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sampling.epochs(*counts, seed=0)


@pytest.mark.parametrize("count", ["epochs", "batch_size", "ratio", "steps"])
def test_counts_below_one_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} must be at least 1, got 0"):
        make(**{count: 0})


def test_names_of_subsets_and_orders():
    assert list(sampling.ORDERS) == list(typing.get_args(sampling.Order))
    for name in typing.get_args(sampling.Subset):
        assert len(sampling.subset(PAPER, name, 0)) in (1801, 657, 1437, 1021)


def test_schedules_after_one_another_by_hand():
    def part(steps, rows, low, mean, high, met, rate):
        exposures = {"min": low, "mean": mean, "max": high}
        pairs = round(mean * rows)
        return {
            "steps": steps, "pairs": pairs, "forget_rows": rows, "forget_exposures": exposures,
            "neighbours_met": met, "same_entity_rate": rate,
        }  # fmt: skip

    first, second = part(10, 4, 2, 2.5, 3, 9, 1.0), part(5, 2, 1, 5.0, 9, 3, 1 / 3)
    nobody = part(5, 2, 1, 5.0, 9, 0, None)
    assert sampling.together([first]) == first
    assert sampling.together([first, second]) == part(15, 6, 1, 20 / 6, 9, 12, 10 / 12)
    assert sampling.together([nobody]) == nobody
    assert sampling.together([first, nobody])["same_entity_rate"] == 1.0
