"""The report: what it says, that nothing on it can run or load, and that it is one whole page."""

import copy
import io
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import columns, report, statement
from jaxunlearn.evaluation.entities import heat_maps
from jaxunlearn.evaluation.same_rows import Comparisons, within_run
from jaxunlearn.evaluation.samples import samples
from jaxunlearn.evaluation.suite import Evaluation

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'
VOID = {"meta", "br", "img", "link", "input", "hr"}


def entry(value, n=40):
    return {"value": value, "n": n, "ci": None if value is None else [value * 0.9, value]}


def model(quality, utility, probability, rouge):
    return {
        "forget_quality": entry(quality),
        "model_utility": entry(utility, 9),
        "forget_probability": entry(probability),
        "forget_rouge": entry(rouge),
        "forget_extraction_strength": entry(0.1),
        "retain_rouge": entry(0.9, 300),
        "real_authors_truth_ratio": entry(0.6, 100),
        "my_new_metric": entry(0.123),
    }


@pytest.fixture
def summary():
    return {
        "name": "quickstart",
        "primary": "npo",
        "models": {
            "target": model(1.2e-5, 0.60, 0.98, 0.98),
            "retrained": model(None, 0.61, 0.15, 0.25),
            "grad_diff": model(3e-40, 0.30, 0.01, 0.05),
            "npo": model(0.71, 0.582, 0.12, 0.21),
        },
        "timing": {"target training": 72.3, "npo": 12.0},
        "training": {"npo": {"steps": 60, "tokens_per_second": 51234}},
        "config": {"seed": 0, "method": {"name": "npo", "hyper": {"beta": 0.1}}, "baselines": ()},
        "environment": {"jax": "0.10.2", "device": "cpu"},
        "notes": ["3 rows longer than 512 tokens were left out"],
    }


@pytest.fixture
def curves():
    return [
        {"model": name, "step": step, "loss": 2.0 / (step + 1)} | extra
        for name, extra in (
            ("target", {}),
            ("retrained", {}),
            ("grad_diff", {"forget_loss": -1.0, "learning_rate": 1e-5}),
            ("npo", {"forget_loss": 1.0, "learning_rate": 1e-5}),
        )
        for step in range(5)
    ]


def sample(text, which="forget"):
    return {
        "set": which,
        "question": "Who?",
        "answer": "Basil",
        "generations": {"npo": text, "target": "Basil"},
    }


class Page(HTMLParser):
    """Fails on a tag that is not closed in order; collects tags, attributes and text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def page(tmp_path, *args):
    report.write_report(tmp_path / "report.html", *args)
    return Page(tmp_path / "report.html")


def printed(summary):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(summary))
    return console.export_text()


def test_table_fits_a_hundred_columns_on_one_line_each(summary):
    lines = printed(summary).rstrip().splitlines()
    rows = [line for line in lines if re.match(r" *(target|retrained|grad_diff|npo)", line)]
    assert len(rows) == 4 and max(map(len, lines)) <= 100
    assert "1.2e-05" in rows[0] and "—" in rows[1] and "0.710" in rows[3]
    assert "…" not in "".join(lines)


def test_a_narrow_terminal_has_whole_names_and_fewer_numbers(summary):
    """Names are folded before a key, not within a number; what has no room is named."""
    summary["models"]["npo learning_rate-1e-05-beta-0.3214-retain_weight-5.0"] = {}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(summary, console.width))
    lines = [line.strip() for line in console.export_text().splitlines()]
    for part in ("npo learning_rate-1e-05-", "beta-0.3214-", "retain_weight-5.0"):
        assert any(line.startswith(part) for line in lines), part
    text = " ".join(lines)
    assert "…" not in text and "retrained" in text and "1.2e-05" in text
    assert "no room for" in text and "tokens per second" in text
    assert "no room" not in printed(summary)


def test_table_takes_markup_in_names_literally(summary):
    summary["models"]["[red]x[/red]"] = {}
    assert "[red]x[/red]" in printed(summary)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("forget_quality", 1.2e-5, "1.2e-05"),
        ("forget_quality", 0.7134, "0.713"),
        ("forget_quality", 0.0, "0.000"),
        ("forget_rouge", 1.2e-5, "0.000"),
        ("forget_rouge", None, "—"),
        ("forget_rouge", math.nan, "—"),
    ],
)
def test_format_value(metric, value, text):
    assert columns.format_value(metric, value) == text


@pytest.mark.parametrize(
    ("metric", "group", "label"),
    [
        ("forget_rouge", "forget", "ROUGE‑L"),
        ("real_authors_truth_ratio", "real authors", "truth ratio"),
        ("forget_perplexity_median", "forget", "median perplexity"),
        ("forget_generation_perplexity", "forget", "median perplexity of what is said"),
        ("forget_paraphrased_probability", "forget", "probability of the paraphrase"),
        ("my_new_metric", "other", "my new metric"),
    ],
)
def test_a_heading_is_that_of_the_longest_ending(metric, group, label):
    found = columns.column(metric, [])
    assert (found["group"], found["label"]) == (group, label)


def test_statement(summary):
    text = statement.statement(summary)
    assert "npo: forget ROUGE-L fell from 0.98 to 0.21 (retrained: 0.25)" in text
    assert "kept 97% of the target's" in text
    assert "cannot tell it from a model that never saw them (p = 0.71)" in text
    summary["primary"] = "grad_diff"
    assert "rows can tell it" in statement.statement(summary)


def test_statement_without_reference_or_target(summary):
    del summary["models"]["retrained"]
    summary["models"]["npo"]["forget_quality"] = entry(None)
    assert "no retrained model to compare with" in statement.statement(summary)
    del summary["models"]["target"]
    assert "forget ROUGE-L is 0.21." in statement.statement(summary)
    summary["models"]["npo"] = {}
    assert statement.statement(summary).startswith("npo was measured.")
    summary["primary"] = "absent"
    assert statement.statement(summary) == "Measured: grad_diff, npo."


def test_page_holds_everything(tmp_path, summary, curves):
    samples = [sample("a teacher"), sample("", "retain"), *[sample("more")] * 5]
    found = page(tmp_path, summary, curves, samples)
    for text in (
        "quickstart", "fell from 0.98", "1.2e-05", "3.0e-40", "my new metric", "0.123",
        "real authors", "fine-tuning: loss", "a teacher", "(nothing)", "2 more",
        "3 rows longer than 512", "beta: 0.1", "0.10.2", "1 min 12 s", "12.0 s", "n = 40",
    ):  # fmt: skip
        assert text in found.text, text
    assert found.tags.count("svg") == 4  # plane, forget loss, loss, fine-tuning loss
    assert found.text.index("Forget rows") < found.text.index("Retain rows")


def test_page_runs_and_loads_nothing_of_others(tmp_path, summary, curves):
    summary["name"] = summary["primary"] = EVIL
    summary["models"][EVIL] = summary["models"].pop("npo") | {EVIL: entry(0.5)}
    summary["notes"] = [EVIL]
    summary["config"] = {EVIL: EVIL}
    summary["environment"] = {EVIL: EVIL}
    summary["timing"] = {EVIL: 1.0}
    curves.append({"model": EVIL, "step": 0, EVIL: 1.0, "loss": 1.0})
    samples = [
        {"set": EVIL, "question": EVIL, "answer": EVIL, "generations": {EVIL: EVIL}},
        sample("</p></div></main>\u0000{{ 7 * 7 }}"),
        sample(f"<mark>Basil</mark>{EVIL}"),
        {**sample(f"1{EVIL}"), "answer": EVIL},
    ]
    maps = [
        {"title": EVIL, "measure": EVIL, "models": [EVIL], "others": 0,
         "rows": [{"entity": EVIL, "n": 2, "values": [0.5]}]},
    ]  # fmt: skip
    line = {"first": EVIL, "second": EVIL, "metric": EVIL, "p_adjusted": 0.5, "p": 0.5}
    pairs = Comparisons([{**line, **entry(0.5)}], EVIL)
    found = page(tmp_path, summary, curves, samples, maps, pairs)
    assert found.tags.count("script") == 1 and "img" not in found.tags
    # The legend, Basil of the target twice and of npo once, and eight words of the last answer.
    assert found.tags.count("mark") == 1 + 3 + 8
    assert "<mark>Basil</mark><script>" in found.text.replace(" ", "")
    assert "<script" not in (tmp_path / "report.md").read_text()
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "default-src 'none'" in found.source and "49" not in found.text.split()
    loads = [v for name, v in found.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(value.startswith("#") for value in loads)
    assert not re.search(r"url\((?!#)|@import", found.source)


def test_leaked_words_are_marked_in_answers_to_forget_rows(tmp_path, summary):
    samples = [sample("It is basil."), sample("It is Basil.", "retain")]
    found = page(tmp_path, summary, (), samples)
    assert found.source.count("<mark>") == 3  # the legend, npo and target
    assert "It is <mark>basil</mark>." in found.source and "It is Basil." in found.source


def heat_map(entities, models, others=0):
    rows = [{"entity": f"e{i}", "n": 5, "values": [0.25] * len(models)} for i in range(entities)]
    kept = {"title": "Kept", "measure": "ROUGE-L", "models": models, "rows": rows, "others": others}
    return kept


def test_a_heat_map_prints_its_numbers_with_n(tmp_path, summary):
    found = page(tmp_path, summary, (), (), [heat_map(2, ["npo"], 7)])
    assert "e1 n = 5" in found.text.replace("\xa0", " ")
    assert found.source.count('<td style="--v: 12%">0.25</td>') == 2
    assert "The first 2 entities; 7 more are not shown." in found.text
    assert "Entity by entity" not in page(tmp_path, summary).text


def test_paired_comparisons_stand_in_a_closed_table(tmp_path, summary):
    line = {"first": "npo", "second": "target", "metric": "forget_rouge", "value": -0.75, "n": 40,
            "ci": [-0.8, -0.7], "p": 0.0001, "p_adjusted": 0.0003}  # fmt: skip
    found = page(tmp_path, summary, (), (), (), Comparisons([line, {**line, "p": None}]))
    text = "npo − target forget rouge 40 -0.75 -0.8 to -0.7 0.0001 0.0003"
    assert text in found.text and "2 paired comparisons" in found.text
    assert "details" in found.tags and ("open", None) not in found.attributes


def test_a_large_run_stays_small(tmp_path, summary):
    """400 forget rows, 10 models, 200 entities, long answers."""
    numbers = summary["models"]["npo"] | {f"forget_{i}_rouge": entry(0.5, 400) for i in range(20)}
    models = ["target", "retrained", *(f"method_{i}" for i in range(8))]
    summary |= {"models": dict.fromkeys(models, numbers), "primary": "method_0"}
    rng = np.random.default_rng(0)
    evaluations = {
        model: Evaluation(
            {}, {f"forget_{i}": rng.random(400).tolist() for i in range(6)}
            | {"forget_rouge": rng.random(400).tolist()},
            {"forget": "forget"}, {"forget": ["word " * 200] * 400}, 0, 0,
        )
        for model in models
    }  # fmt: skip
    rows = tuple(Row("Who?", "A word " * 200, entity=f"e{i // 2}") for i in range(400))
    sets = {"forget": EvalSet("forget", rows)}
    curves = [
        {"model": model, "step": step, "loss": rng.random(), "forget_loss": rng.random()}
        for model in models
        for step in range(3000)
    ]
    found = page(
        tmp_path, summary, curves, samples(sets, evaluations), heat_maps(sets, evaluations),
        within_run(evaluations, "method_0"),
    )  # fmt: skip
    assert len(found.source.encode()) < 5e6
    assert "160 more are not shown" in found.text and "63 paired comparisons" in found.text


def test_page_is_the_same_each_time(tmp_path, summary, curves):
    first = page(tmp_path, summary, curves, [sample("x")]).source
    assert page(tmp_path, summary, curves, [sample("x")]).source == first
    names = ["report.csv", "report.html", "report.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_ids_are_unique_where_they_are_used(tmp_path, summary, curves):
    found = page(tmp_path, summary, curves)
    ids = [value for name, value in found.attributes if name == "id"]
    used = {value[1:] for name, value in found.attributes if name == "xlink:href"}
    assert len(ids) == len(set(ids)) and used <= set(ids)


def test_a_failed_write_leaves_the_old_page(tmp_path, summary, monkeypatch):
    page(tmp_path, summary)
    before = (tmp_path / "report.html").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report.write_report(tmp_path / "report.html", summary | {"name": "second"})
    assert (tmp_path / "report.html").read_text() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_plane_falls_back_to_rouge_without_a_retrained_model(tmp_path, summary):
    del summary["models"]["retrained"]
    for values in summary["models"].values():
        values["forget_quality"] = {"value": None, "n": 0, "ci": None}
    found = page(tmp_path, summary)
    assert "forget ROUGE-L (inverted)" in found.text and "p = 0.05" not in found.text


def test_page_of_a_bare_summary(tmp_path):
    bare = {"name": "x", "primary": "npo", "models": {"npo": {"forget_rouge": entry(0.2)}}}
    found = page(tmp_path, bare)
    assert "svg" not in found.tags and "0.200" in found.text
    assert (
        "0.200" in page(tmp_path, bare | {"models": {"npo": bare["models"]["npo"], "a": {}}}).text
    )


def test_comparison(tmp_path, summary):
    other = copy.deepcopy(summary)
    other["config"]["method"]["hyper"]["beta"] = 0.5
    other["models"]["npo"] = model(0.3, 0.5, 0.1, 0.1)
    report.write_comparison(tmp_path / "c.html", [summary, other])
    found = Page(tmp_path / "c.html")
    assert "quickstart (2)" in found.text and "method.hyper.beta" in found.text
    assert "npo · quickstart (2)" in found.text and "target · quickstart" not in found.text
    assert found.source.count("<tr") == 2 + 8 + 2


def test_comparison_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        report.write_comparison(tmp_path / "c.html", [])


def test_what_training_took_stands_beside_the_numbers(summary, tmp_path):
    text = printed(summary)
    assert "tokens/s" in text and "51234" in text
    report.write_report(tmp_path / "report.html", summary)
    page = (tmp_path / "report.html").read_text()
    assert "tokens per second" in page and "51234" in page and ">60<" in page.replace("\n", "")
    del summary["training"]
    assert "tokens/s" not in printed(summary)


def test_layers_have_panels_of_their_own(tmp_path, summary):
    rows = [
        {"model": model, "step": layer, "lens": layer / 10, "probe": None if layer == 1 else 0.5}
        for model in ("target", "npo")
        for layer in (1, 2, 3)
    ]
    path = tmp_path / "report.html"
    report.write_report(path, summary, layers=rows)
    section = re.search(r"<h2>Layer by layer</h2>(.*?)</section>", path.read_text(), re.DOTALL)[1]
    assert re.findall(r"<figcaption>(\w+)<", section) == ["lens", "probe"]
    legend = section[: section.index("</ul>")]
    assert "target" in legend and "npo" in legend and "grad_diff" not in legend
    report.write_report(path, summary)
    assert "Layer by layer" not in path.read_text()


def test_every_page_says_how_many_seeds(summary, tmp_path):
    found = page(tmp_path, summary)
    assert "Unlearning report · 1 seed (0)" in found.text
    assert "n = 40; 1 seed (0)." in found.text  # under the first numbers
    over = {"value": 0.25, "n": 40, "seeds": 3, "ci": [0.125, 0.5], "sd": 0.1}
    several = {"name": "s", "primary": "npo", "seeds": ["0", "1", "2"],
               "models": {"npo": {"forget_rouge": over, "model_utility": {**over, "seeds": 1}}},
               "config": {"seed": 2}}  # fmt: skip
    found = page(tmp_path, several)
    assert "Unlearning report · 3 seeds (0, 1, 2)" in found.text
    assert "n = 40, 3 seeds" in found.text and "n = 40, 1 seed" in found.text
    assert "least and greatest value of the seeds" in found.text
    assert "npo,forget_rouge,0.25,40,0.125,0.5,3\n" in (tmp_path / "report.csv").read_text()
    text = (tmp_path / "report.md").read_text()
    assert "| forget rouge ↓ | 40, 3 seeds | 0.250 (0.125–0.500) |" in text
    assert "Numbers of 3 seeds (0, 1, 2)" in text


def test_what_followed_requests_says_how_many_rows(summary, tmp_path):
    known = {"requests": ["a", "b"], "evaluated_rows": [12, 8], "model_utility": [0.5, 0.5, 0.5],
             "rouge": [[1.0, 1.0], [0.5, 1.0], [0.5, 0.5]]}  # fmt: skip
    found = page(tmp_path, summary | {"requests": {"npo": known}})
    assert "by request n = 12, 8; 1 seed (0)" in found.text


def test_a_comparison_says_why_runs_are_not_paired(tmp_path, summary):
    report.write_comparison(tmp_path / "c.html", [summary, summary], [None, None])
    found = Page(tmp_path / "c.html")
    assert "Not compared row by row: quickstart: no numbers of its rows are kept" in found.text
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "run,model,metric,value,n,low,high,seeds"
    assert len({line.split(",")[0] for line in lines[1:]}) == 2
