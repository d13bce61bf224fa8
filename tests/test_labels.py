"""What a run calls its methods: distinct, and never what something else is called."""

import pytest

from jaxunlearn.config import Experiment, MethodConfig, SamplingConfig, sampling_of
from jaxunlearn.config_file import load
from jaxunlearn.errors import UserError
from jaxunlearn.experiment import labels, resolve


def names(*methods):
    """Labels of methods given as name or (name, label), in this order."""
    made = [MethodConfig(m) if isinstance(m, str) else MethodConfig(m[0], label=m[1])
            for m in methods]  # fmt: skip
    return list(labels(Experiment(baselines=tuple(made[:-1]), method=made[-1])))


def test_methods_without_a_label_are_numbered():
    assert names("npo", "wga", "npo", "npo") == ["npo", "wga", "npo_2", "npo_3"]
    assert names("own.py:odds", "other.py:odds") == ["odds", "odds_2"]


@pytest.mark.parametrize("order", [1, -1])
def test_numbering_spares_labels_that_are_given(order):
    methods = ["npo", ("wga", "npo_2"), "npo"][::order]
    assert sorted(names(*methods)) == ["npo", "npo_2", "npo_3"]
    assert names("npo", ("wga", "npo")) == ["npo_2", "npo"]
    # A label that only looks numbered takes no number away.
    assert names(("wga", "npo_7"), "npo") == ["npo_7", "npo"]


@pytest.mark.parametrize("name", ["target", "retrained", "reinforced"])
def test_names_of_other_models_are_refused(name):
    for method in (("npo", name), f"own.py:{name}"):
        with pytest.raises(UserError, match=f"label '{name}' is reserved"):
            names(method, "npo")


def test_a_label_given_twice_is_refused_before_anything_loads():
    with pytest.raises(UserError, match="method wga: label 'x' is given twice"):
        names(("wga", "x"), "npo", ("npo", "x"))
    with pytest.raises(UserError, match="label 'target' is reserved"):
        resolve(load(None, {"method.label": "target"}))


def test_another_sampler_forgets_the_first_ones_options():
    sampling = SamplingConfig("melu", general="per_epoch", ratio=2)
    experiment = Experiment(sampling=sampling)
    own = sampling_of(experiment, MethodConfig("npo", sampling={"name": "random"}))
    assert (own.name, own.general, own.ratio) == ("random", "static", 2)
    same = sampling_of(experiment, MethodConfig("npo", sampling={"ratio": 3}))
    assert (same.name, same.general, same.ratio) == ("melu", "per_epoch", 3)
    with pytest.raises(UserError, match="nme"):
        resolve(load(None, {"method.sampling": {"nme": "melu"}}))
