"""Bars of a run's stages."""

import io

from rich.console import Console

from jaxunlearn.progress import Bars


def shown(work):
    console = Console(file=io.StringIO(), width=79)
    with Bars(console) as bars:
        work(bars)
    return console.file.getvalue()


def test_a_stage_whose_work_was_done_before_leaves_no_bar():
    def work(bars):
        with bars.stage("trained before"):
            pass
        with bars.stage("trained now") as stage:
            stage.update(3, 3, "loss 1")
        with bars.stage("a look", passing=True) as stage:
            stage.update(1, 1)

    text = shown(work)
    assert "trained now" in text and "3/3" in text
    assert "before" not in text and "look" not in text and "preparing" not in text
