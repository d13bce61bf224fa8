"""Losses: value and gradient against NumPy in float64, their limits and identities."""

import doctest
import functools
import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import MethodConfig
from jaxunlearn.errors import UserError
from jaxunlearn.methods import logit_losses, losses, registry

# Three rows of unequal prompts, answers and padding; one answer is a single token.
SPANS = [(2, 5), (1, 2), (3, 7)]
B, T, V, D = 3, 7, 5, 4
MASK = np.array([[start <= t < end for t in range(T)] for start, end in SPANS])
LN2 = np.log(2.0)


def make_batch(seed=0):
    """What trains, and what does not, in float64."""
    draw = np.random.default_rng(seed).normal
    trained = {
        "logits": draw(0, 2, (B, T, V)),
        "alternative_logits": draw(0, 2, (B, T, V)),
        "hidden": draw(0, 1, (B, T, D)),
    }
    fixed = {
        "reference_logits": draw(0, 2, (B, T, V)),
        "reinforced_logits": draw(0, 2, (B, T, V)),
        "alternative_reference_logits": draw(0, 2, (B, T, V)),
        "reference_hidden": draw(0, 1, (B, T, D)),
    }
    return trained, fixed, np.random.default_rng(seed).integers(0, V, (B, T))


# ------------------------------------------------------------------ what the update step does


def statistics(trained, fixed, tokens, mask):
    """All that a term can ask for; the other answer has the same tokens under other logits."""
    known = {**trained, **fixed, "targets": tokens, "mask": mask}
    known["answer_length"] = mask.sum(-1).astype(trained["logits"].dtype)
    for name in [n for n in known if n.endswith("logits")]:
        picked = jnp.take_along_axis(jax.nn.log_softmax(known[name]), tokens[..., None], -1)
        log_probs = picked[..., 0].at[:, 0].set(0.0)
        known[name.replace("logits", "log_probs")] = log_probs
        known[name.replace("logits", "seq_log_prob")] = jnp.where(mask, log_probs, 0.0).sum(-1)
    return known


def apply(loss, known, hyper):
    names = [
        p.name for p in inspect.signature(loss).parameters.values() if p.kind != p.KEYWORD_ONLY
    ]
    return loss(*(known[name] for name in names), **hyper)


def reduced(loss, trained, fixed, tokens, mask, hyper):
    values = apply(loss, statistics(trained, fixed, tokens, mask), hyper)
    if values.ndim == 1:
        return values.mean()
    return jnp.where(mask, values, 0.0).sum() / mask.sum()


# ------------------------------------------------------------------ the same, by hand


def log_softmax(z):
    return z - z.max() - np.log(np.sum(np.exp(z - z.max())))


def divergence(p, q):
    """Sum of p ln(p / q); nothing where p is 0."""
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jensen_shannon(p, q):
    middle = (np.asarray(p) + np.asarray(q)) / 2
    return (divergence(p, middle) + divergence(q, middle)) / 2


def nll(t):
    return -log_softmax(t.z)[t.y]


def wga(t, beta):
    return np.exp(log_softmax(t.held)[t.y]) ** beta * log_softmax(t.z)[t.y]


def satimp(t, beta1, beta2):
    p = np.exp(log_softmax(t.held)[t.y])
    return p**beta1 * (1 - p) ** beta2 * log_softmax(t.z)[t.y]


def undial(t, beta):
    lowered = t.reference.copy()
    lowered[t.y] -= beta
    return -np.sum(np.exp(log_softmax(lowered)) * log_softmax(t.z))


def ceu(t, skip):
    if t.place < skip:
        return 0.0
    goal = np.exp(t.held - t.held.max())
    goal[t.y] = 0.0
    return t.length / (t.length - skip) * -np.sum(goal / goal.sum() * log_softmax(t.z))


def pdu(t):
    return (max(t.z) - sum(t.z) / V) ** 2


def jensun(t):
    return jensen_shannon(np.exp(log_softmax(t.z)), np.eye(V)[t.y])


def whp(t, alpha):
    generic = [b - alpha * max(r - b, 0) for b, r in zip(t.reference, t.reinforced, strict=True)]
    return -log_softmax(t.z)[int(np.argmax(generic))]


def kl(t):
    return divergence(np.exp(log_softmax(t.reference)), np.exp(log_softmax(t.z)))


def jsd(t):
    return jensen_shannon(np.exp(log_softmax(t.reference)), np.exp(log_softmax(t.z)))


def nll_kl(t, nll_weight, kl_weight):
    return nll_weight * nll(t) + kl_weight * kl(t)


def negated_log_sigmoid(x):
    return np.log1p(np.exp(-x))


def npo(s, beta):
    return 2 / beta * negated_log_sigmoid(-beta * (s.total - s.reference))


def simnpo(s, beta, gamma):
    return 2 / beta * negated_log_sigmoid(-beta / s.length * s.total - gamma)


def dpo(s, beta):
    gain = (s.alternative - s.alternative_reference) - (s.total - s.reference)
    return negated_log_sigmoid(beta * gain)


def rmu(s, steering, seed):
    u = np.asarray(jax.random.uniform(jax.random.key(int(seed)), (D,), jnp.float32), np.float64)
    u *= steering / np.sqrt(np.sum(u**2))
    return sum(np.mean((h - u) ** 2) for h in s.hidden) / s.length


def hidden_mse(s):
    pairs = zip(s.hidden, s.reference_hidden, strict=True)
    return sum(np.mean((h - r) ** 2) for h, r in pairs) / s.length


# Name: (by hand, hyper-parameters, one value per).
CASES = {
    "nll": (nll, {}, "token"),
    "grad_ascent": (lambda t: -nll(t), {}, "token"),
    "wga": (wga, {"beta": 0.7}, "token"),
    "satimp": (satimp, {"beta1": 2.0, "beta2": 1.5}, "token"),
    "undial": (undial, {"beta": 3.0}, "token"),
    "ceu": (ceu, {"skip": 1.0}, "token"),
    "pdu": (pdu, {}, "token"),
    "jensun": (jensun, {}, "token"),
    "whp": (whp, {"alpha": 5.0}, "token"),
    "kl": (kl, {}, "token"),
    "jsd": (jsd, {}, "token"),
    "nll_kl": (nll_kl, {"nll_weight": 0.99, "kl_weight": 0.3}, "token"),
    "scrub": (lambda t: -kl(t), {}, "token"),
    "npo": (npo, {"beta": 0.3}, "sequence"),
    "simnpo": (simnpo, {"beta": 2.5, "gamma": 0.4}, "sequence"),
    "dpo": (dpo, {"beta": 0.3}, "sequence"),
    "rmu": (rmu, {"steering": 6.5, "seed": 3.0}, "sequence"),
    "hidden_mse": (hidden_mse, {}, "sequence"),
}


def by_hand(name, trained, held, fixed, tokens):
    """The batch loss; `held` are the logits that a detached weight sees."""
    function, hyper, per = CASES[name]
    values = []
    for b, (start, end) in enumerate(SPANS):

        def total(logits, b=b, start=start, end=end):
            return sum(log_softmax(logits[b, t])[tokens[b, t]] for t in range(start, end))

        if per == "sequence":
            s = SimpleNamespace(
                total=total(trained["logits"]),
                reference=total(fixed["reference_logits"]),
                alternative=total(trained["alternative_logits"]),
                alternative_reference=total(fixed["alternative_reference_logits"]),
                hidden=trained["hidden"][b, start:end],
                reference_hidden=fixed["reference_hidden"][b, start:end],
                length=end - start,
            )
            values.append(function(s, **hyper))
            continue
        for t in range(start, end):
            token = SimpleNamespace(
                z=trained["logits"][b, t],
                held=held["logits"][b, t],
                reference=fixed["reference_logits"][b, t],
                reinforced=fixed["reinforced_logits"][b, t],
                y=tokens[b, t],
                place=t - start,
                length=end - start,
            )
            values.append(function(token, **hyper))
    return sum(values) / len(values)


def slope(value, x, step=1e-5):
    """Central differences of value() with respect to each entry of x, which it reads."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + step
        above = value()
        x[i] = kept - step
        gradient[i] = (above - value()) / (2 * step)
        x[i] = kept
    return gradient


@functools.cache
def expected(name):
    """Value and gradients by hand."""
    trained, fixed, tokens = make_batch()
    held = {key: x.copy() for key, x in trained.items()}

    def value():
        return by_hand(name, trained, held, fixed, tokens)

    return value(), {key: slope(value, x) for key, x in trained.items()}


def loss_named(name):
    return getattr(losses, name, None) or getattr(logit_losses, name)


def computed(name, dtype, hyper=None):
    """Value and gradients as JAX has them, with traced hyper-parameters."""
    with jax.enable_x64(dtype == "float64"):
        trained, fixed, tokens = make_batch()
        trained, fixed = jax.tree.map(lambda x: jnp.asarray(x, dtype), (trained, fixed))
        hyper = {key: jnp.asarray(x, dtype) for key, x in (hyper or CASES[name][1]).items()}
        loss = functools.partial(reduced, loss_named(name))
        value, gradient = jax.jit(jax.value_and_grad(loss))(
            trained, fixed, jnp.asarray(tokens), jnp.asarray(MASK), hyper
        )
        return float(value), {key: np.asarray(x, np.float64) for key, x in gradient.items()}


def test_every_loss_has_a_case():
    assert set(CASES) == {
        name
        for name, function in (vars(losses) | vars(logit_losses)).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("float64", 1e-7)])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_by_hand(name, dtype, tolerance):
    value, gradient = computed(name, dtype)
    by_hand_value, by_hand_gradient = expected(name)
    np.testing.assert_allclose(value, by_hand_value, rtol=tolerance)
    for key, slopes in by_hand_gradient.items():
        np.testing.assert_allclose(gradient[key], slopes, rtol=tolerance, atol=tolerance)
    # Most of the batch is prompt or padding: nothing there may pull, not even a little.
    assert any(np.any(x != 0) for x in gradient.values())
    assert all(np.all(x[~MASK] == 0) for x in gradient.values())


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_rows_changes_nothing(name):
    trained, fixed, tokens = make_batch()
    known = statistics(*jax.tree.map(jnp.asarray, (trained, fixed, tokens, MASK)))
    order = jnp.array([2, 0, 1])
    loss, hyper = loss_named(name), CASES[name][1]
    shuffled = apply(loss, {key: x[order] for key, x in known.items()}, hyper)
    np.testing.assert_array_equal(shuffled, apply(loss, known, hyper)[order])


@pytest.mark.parametrize("module", [losses, logit_losses])
def test_doctests(module):
    failures, count = doctest.testmod(module)
    assert failures == 0 and count > 0


def test_npo_by_hand():
    # (2 / 0.5) ln(1 + exp(0.5 * (-4 - -2))) = 4 ln(1 + e^-1) = 1.2530469
    value = losses.npo(jnp.array([-4.0]), jnp.array([-2.0]), beta=0.5)
    np.testing.assert_allclose(value, [1.2530468], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
def test_npo_at_the_reference(beta):
    seq = jnp.array([-3.0, -70.0])
    value, pull = jax.vjp(lambda s: losses.npo(s, seq, beta=beta), seq)
    np.testing.assert_allclose(value, 2 / beta * np.log(2), rtol=1e-6)
    # The gradient of the sequence log-prob itself: gradient ascent on sequence sums.
    np.testing.assert_allclose(pull(jnp.ones(2))[0], 1.0, rtol=1e-6)


def test_npo_becomes_gradient_ascent_as_beta_falls():
    seq, reference = jnp.array([-9.0]), jnp.array([-4.0])
    gradient = jax.grad(lambda s: losses.npo(s, reference, beta=1e-4).sum())(seq)
    np.testing.assert_allclose(gradient, 1.0, rtol=1e-3)


def test_npo_stays_finite_far_from_the_reference():
    value, gradient = jax.value_and_grad(lambda s: losses.npo(s, jnp.zeros(()), beta=0.1))(-1e5)
    assert value == 0 and gradient == 0
    assert jnp.isfinite(losses.npo(jnp.array(0.0), jnp.array(-1e5), beta=0.1))


def test_kl_by_hand():
    q = jnp.log(jnp.array([[[0.25, 0.75]]]))
    p = jnp.log(jnp.array([[[0.5, 0.5]]]))
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(logit_losses.kl(q, p), [[by_hand]], rtol=1e-6)


def test_simnpo_is_npo_of_the_mean_against_zero():
    total, length = jnp.array([-9.0, -2.0]), jnp.array([3.0, 1.0])
    np.testing.assert_allclose(
        losses.simnpo(total, length, beta=2.0), losses.npo(total / length, jnp.zeros(2), beta=2.0)
    )


def test_dpo_at_the_reference():
    forget, other = jnp.array([-3.0, -70.0]), jnp.array([-9.0, -1.0])
    np.testing.assert_allclose(losses.dpo(forget, forget, other, other, beta=0.7), LN2, rtol=1e-6)


def test_undial_without_strength_leaves_the_start_model_alone():
    z = jnp.asarray(make_batch()[0]["logits"])
    targets = jnp.zeros((B, T), jnp.int32)
    gradient = jax.grad(lambda x: logit_losses.undial(x, z, targets, beta=0.0).sum())(z)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize(("name", "hyper"), [("wga", {"beta": 0.0}),
                                             ("satimp", {"beta1": 0.0, "beta2": 0.0})])  # fmt: skip
def test_without_weights_it_is_gradient_ascent(name, hyper):
    value, gradient = computed(name, "float32", hyper)
    plain_value, plain = computed("grad_ascent", "float32")
    np.testing.assert_allclose(value, plain_value, rtol=1e-6)
    np.testing.assert_allclose(gradient["logits"], plain["logits"], atol=1e-7)


def test_satimp_stays_finite_where_rounding_makes_a_probability_exceed_one():
    assert losses.satimp(jnp.array([[1e-7, 0.0]]), beta2=0.5).max() == 0


@pytest.mark.parametrize("skip", [0.0, 1.0, 2.0])
def test_ceu_scales_up_what_it_does_not_skip(skip):
    # An even prediction over V tokens costs ln V at every position.
    mask = jnp.asarray(MASK)
    targets = jnp.zeros((B, T), jnp.int32)
    values = logit_losses.ceu(jnp.zeros((B, T, V)), targets, mask, skip=skip)
    lengths = MASK.sum(-1)
    np.testing.assert_allclose(
        values.sum(-1), np.where(lengths > skip, lengths, 0) * np.log(V), rtol=1e-6
    )
    assert np.all(np.asarray(values)[~MASK] == 0)


def test_pdu_does_not_see_a_shift():
    z = jnp.asarray(make_batch()[0]["logits"])
    np.testing.assert_allclose(logit_losses.pdu(z + 3.0), logit_losses.pdu(z), rtol=1e-5)
    np.testing.assert_allclose(logit_losses.pdu(jnp.full((1, 1, V), 7.0)), 0, atol=1e-12)


def test_rmu_target_depends_on_the_seed_alone():
    h, mask, length = jnp.zeros((1, 2, 64)), jnp.ones((1, 2), bool), jnp.array([2.0])

    def target(seed):
        pull = jax.grad(lambda x: losses.rmu(x, mask, length, steering=3.0, seed=seed).sum())(h)
        return np.asarray(-pull[0] * 64)  # h = 0: the gradient is -2 c u / (D |y|)

    np.testing.assert_allclose(np.linalg.norm(target(0.0), axis=-1), 3.0, rtol=1e-5)
    assert np.all(target(0.0) >= 0)
    np.testing.assert_array_equal(target(0.0)[0], target(0.0)[1])
    assert np.abs(target(0.0) - target(1.0)).max() > 0.1


def test_whp_without_strength_asks_for_the_start_models_choice():
    trained, fixed, _ = jax.tree.map(jnp.asarray, make_batch())
    value = logit_losses.whp(
        trained["logits"], fixed["reference_logits"], fixed["reinforced_logits"], alpha=0.0
    )
    choice = fixed["reference_logits"].argmax(-1)
    by_hand = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(trained["logits"])), np.asarray(choice)[..., None], -1
    )
    np.testing.assert_allclose(value, by_hand[..., 0], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 1000.0])
def test_jsd_is_symmetric_and_bounded_with_a_finite_gradient(scale):
    z, other = (scale * jnp.asarray(make_batch(seed)[0]["logits"]) for seed in (0, 1))
    value = logit_losses.jsd(z, other)
    np.testing.assert_allclose(value, logit_losses.jsd(other, z), atol=1e-6)
    assert value.min() >= -1e-6 and value.max() <= LN2 + 1e-6
    gradient = jax.grad(lambda x: logit_losses.jsd(x, other).sum())(z)
    assert jnp.all(jnp.isfinite(gradient)) and jnp.abs(gradient).max() < 1
    at_equality = jax.grad(lambda x: logit_losses.jsd(x, z).sum())(z)
    np.testing.assert_allclose(at_equality, 0, atol=1e-6)


def test_jensun_falls_from_ln2_to_0_and_is_jsd_from_certainty():
    log_p = jnp.linspace(-60.0, 0.0, 200)
    value = np.asarray(losses.jensun(log_p))
    np.testing.assert_allclose(value[[0, -1]], [LN2, 0], atol=1e-6)
    assert np.all(np.diff(value) <= 1e-6)
    z = jnp.array([[[1.0, 0.0, -1.0]]])
    certain = jnp.array([[[200.0, 0.0, 0.0]]])
    np.testing.assert_allclose(
        losses.jensun(jax.nn.log_softmax(z)[..., 0]), logit_losses.jsd(z, certain), rtol=1e-6
    )


def test_registry_fills_in_the_papers_defaults():
    assert registry.defaults("npo") == {
        "beta": 0.1, "retain_loss": "nll", "forget_weight": 1.0, "retain_weight": 1.0,
        "compat": "paper",
    }  # fmt: skip
    assert registry.defaults("grad_ascent")["retain_loss"] == "none"


def test_scrub_has_the_hyper_parameters_of_its_retain_term_and_of_its_schedule():
    assert registry.defaults("scrub") == {
        "nll_weight": 0.99, "kl_weight": 0.001, "forget_epochs": 3, "retain_loss": "nll_kl",
        "forget_weight": 1.0, "retain_weight": 1.0, "compat": "paper",
    }  # fmt: skip
    objective, hyper = registry.objective(MethodConfig("scrub", {"kl_weight": 0.5}))
    assert [term.group for term in objective.terms] == ["forget", "retain"]
    assert hyper["kl_weight"] == 0.5 and "forget_epochs" not in hyper
    assert "kl_weight" not in registry.defaults("npo")
    with pytest.raises(UserError, match="retain_loss must not be none"):
        registry.objective(MethodConfig("scrub", {"retain_loss": "none"}))


def test_objective_names_groups_and_needs():
    objective, hyper = registry.objective(MethodConfig(name="npo", hyper={"retain_loss": "kl"}))
    assert objective.groups == ("forget", "retain")
    assert objective.needs("reference_logits") and "retain_loss" not in hyper
    objective, _ = registry.objective(MethodConfig(name="grad_ascent"))
    assert objective.groups == ("forget",)
    assert not objective.needs("reference_seq_log_prob")


@pytest.mark.parametrize(
    ("name", "hyper", "words"),
    [
        ("npoo", {}, "npo"),
        ("npo", {"beta": 0}, "beta: input should be greater than 0, found 0"),
        ("npo", {"beta": -1}, "beta"),
        ("npo", {"beta": "inf"}, "beta"),
        ("npo", {"betta": 1}, "unknown key betta; the closest known key is beta"),
        ("grad_diff", {"beta": 1}, "unknown key beta"),
        ("grad_diff", {"forget_epochs": 1}, "unknown key forget_epochs"),
        ("scrub", {"forget_epochs": 0}, "forget_epochs: input should be greater than or equal to"),
        ("scrub", {"kl_weight": -1}, "kl_weight: input should be greater than or equal to 0"),
        ("npo", {"retain_loss": "mse"}, "'nll', 'kl', 'jsd', 'nll_kl', 'hidden_mse' or 'none'"),
    ],
)
def test_registry_refuses(name, hyper, words):
    with pytest.raises(UserError) as caught:
        registry.resolve(MethodConfig(name=name, hyper=hyper))
    assert words in str(caught.value)
