"""A method of a user's own: refused with one line where the update step could not run it."""

import jax
import jax.numpy as jnp
import pytest
import yaml

import jaxunlearn as ju
from jaxunlearn import config_file
from jaxunlearn.config import MethodConfig
from jaxunlearn.errors import UserError
from jaxunlearn.experiment import resolve
from jaxunlearn.methods import losses, own, registry
from jaxunlearn.runs import RunFolder
from jaxunlearn.unlearning_job import check_method


def fault_of(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def try_out(loss):
    own.try_out("mine", loss, vocab_size=11, hidden_size=5)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("retain", "mse", "'nll', 'kl', 'jsd', 'nll_kl', 'hidden_mse', 'none'"),
        ("answers", "mine", "'own', 'refusal', 'random'"),
        ("labels", "random", "'refusal', None"),
        ("alternative", "other", "'refusal', 'generated', None"),
    ],
)
def test_options_of_the_decorator(option, value, allowed):
    def mine(log_probs):
        return log_probs

    message = fault_of(ju.method(**{option: value}), mine)
    assert f"method mine: {option} is {value!r}; it can be: {allowed}" in message
    assert "mine" not in registry.METHODS


@pytest.mark.parametrize("name", sorted(own.RESERVED))
def test_reserved_names_are_no_hyper_parameters(name, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(f"def f(log_probs, *, {name}: float = 1.0):\n    return log_probs\n")
    message = fault_of(registry.lookup, f"{path}:f")
    assert f"hyper-parameter {name!r} has the name of something else" in message


def test_reserved_names_cover_all_that_is_not_the_methods_own():
    common = set(registry.defaults("grad_diff")) | {"layer"}
    assert common | {"name"} | set(config_file.METHOD_KEYS) <= own.RESERVED


@pytest.mark.parametrize("default", [True, "x", None, (1.0,)])
def test_defaults_are_numbers(default):
    def mine(log_probs, *, power: float = default):
        return power * log_probs

    message = fault_of(own.check_parameters, "mine", mine, has_alternative=False)
    assert f"default of hyper-parameter 'power' must be a number, found {default!r}" in message


def test_a_second_answer_must_be_asked_for():
    def mine(alternative_seq_log_prob):
        return -alternative_seq_log_prob

    own.check_parameters("mine", mine, has_alternative=True)
    message = fault_of(own.check_parameters, "mine", mine, has_alternative=False)
    assert "alternative_seq_log_prob is of a second answer" in message
    assert 'alternative="refusal"' in message


def scalar(log_probs):
    return log_probs.mean()


def per_vocabulary(logits):
    return logits


def per_position(log_probs):
    return log_probs.sum(0)


def nothing(log_probs):
    return None


def pair(log_probs):
    return log_probs, log_probs


def whole_numbers(targets):
    return targets


def failing(log_probs, hidden):
    return log_probs + hidden


def comparing(log_probs, *, power: float = 1.0):
    return log_probs if power > 1 else -log_probs


def sized(logits, *, k: int = 2):
    return jax.lax.top_k(logits, k)[0].sum(-1)


def without_gradient(log_probs):
    return jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x / 2, log_probs)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (scalar, "gives float32[] for B = 3, T = 17"),
        (per_vocabulary, "gives float32[3, 17, 11]"),
        (per_position, "gives float32[17]"),
        (nothing, "gives a NoneType"),
        (pair, "gives a tuple"),
        (whole_numbers, "gives int32[3, 17]"),
        (failing, "fails: ValueError: Incompatible shapes"),
        (comparing, "hyper-parameters are traced numbers: they cannot be sizes"),
        (sized, "hyper-parameters are traced numbers: they cannot be sizes"),
        (without_gradient, "fails: ValueError"),
    ],
)
def test_a_function_that_cannot_be_trained_with(loss, words):
    message = fault_of(try_out, loss)
    assert words in message
    assert "expected one float per token, [B, T], or per sequence, [B]" in message


def test_the_trial_knows_every_statistic():
    """Every built-in term passes: shapes and dtypes are those that the update step has."""
    for name in registry.METHODS:
        for term in registry.objective(MethodConfig(name))[0].terms:
            try_out(term.loss)


def test_the_trial_is_before_any_training(tiny, tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def f(log_probs):\n    return log_probs.mean()\n")
    message = fault_of(check_method, tiny, MethodConfig(f"{path}:f"))
    assert "float32[]" in message
    # Sizes of the model at hand may stand in the function.
    size = tiny.config.vocab_size
    path.write_text(
        f"import jax\ndef f(logits):\n    return (logits + jax.numpy.zeros({size}))[..., 0]\n"
    )
    check_method(tiny, MethodConfig(f"{path}:f"))


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "own.py"
    name = f"{path}:f"
    experiment = config_file.load(
        None, {"method.name": name, "output": str(tmp_path), "name": "run"}
    )

    def write(sign):
        path.write_text(f"def f(log_probs):\n    return {sign}log_probs\n")
        return resolve(experiment)

    first = write("+")
    RunFolder(first).create()
    kept = tmp_path / "run" / "config.yaml"
    version = yaml.safe_load(kept.read_text())["method"]["version"]
    assert len(version) == 16 and first.method.version == version
    assert resolve(config_file.load(kept)) == first
    RunFolder(first)

    second = write("-")
    assert registry.lookup(name).forget(jnp.ones(())) == -1
    assert "differs in method.version" in fault_of(RunFolder, second)
    assert resolve(config_file.load(kept)).method.version == second.method.version != version
    # The terms of the two are not one to a checkpoint either.
    modules = {write(sign) and registry.lookup(name).forget.__module__ for sign in "+-"}
    assert len(modules) == 2
    assert registry.resolve(MethodConfig("npo", version="x")).version is None


@pytest.mark.parametrize(
    ("name", "hyper", "words"),
    [
        ("pdu", {"retain_loss": "none"}, "retain_loss must not be none"),
        ("gru", {"retain_loss": "none"}, "retain_loss must not be none"),
        ("retain_finetune", {"retain_loss": "none"}, "retain_loss must not be none"),
        ("ceu", {"compat": "open-unlearning"}, "compat: open-unlearning changes nothing here"),
        ("npo", {"compat": "open-unlearning"}, "only the terms kl, undial, simnpo, dpo"),
        ("rmu", {"seed": 1.5}, "seed: input should be a valid integer"),
        ("rmu", {"seed": -1}, "seed: input should be greater than or equal to 0"),
        ("rmu", {"seed": 2**24 + 1}, "seed: input should be less than or equal to 16777216"),
    ],
)
def test_settings_that_a_method_cannot_have(name, hyper, words):
    assert words in fault_of(registry.objective, MethodConfig(name, hyper))


def test_compat_of_a_retain_term_is_allowed():
    hyper = {"retain_loss": "kl", "compat": "open-unlearning"}
    registry.resolve(MethodConfig("npo", hyper))
    assert fault_of(registry.resolve, MethodConfig("kl", {**hyper, "retain_loss": "jsd"}))


def test_the_largest_seed_survives_tracing():
    h, mask, length = jnp.zeros((1, 2, 8)), jnp.ones((1, 2), bool), jnp.array([2.0])

    def value(seed):
        call = jax.jit(lambda seed: losses.rmu(h + 1, mask, length, steering=3.0, seed=seed))
        return float(call(jnp.float32(seed))[0])

    assert value(2**24) != value(2**24 - 1)
