"""Attacks that look inside: the logit lens and a linear probe, layer by layer."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.attacks.case import Case, measured
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.data.tokens import Encoded
from jaxunlearn.evaluation import layers, suite
from jaxunlearn.evaluation.entries import summarise
from jaxunlearn.evaluation.probe import fit_ridge, retrieval_ranks
from jaxunlearn.evaluation.robustness import Measured
from jaxunlearn.tables import encode_rows, max_length

PROBE_ROWS = 2000  # most retain rows that a probe is fitted on, spread evenly over them


def lens(case: Case) -> list[Measured]:
    """Probability of the answers as if each layer were the last one (`layers.lens_probability`)."""
    encoded = _encoded(case, case.forget)
    size = case.experiment.evaluation.batch_size
    found = np.full((case.model.config.num_layers, len(case.forget)), np.nan)
    found[:, encoded.kept] = layers.lens_probability(case.model, encoded.table, batch_size=size)
    return [
        measured(f"layer {number}", {"probability": values}) | {"layer": number}
        for number, values in enumerate(found, 1)
    ]


def probe(case: Case) -> list[Measured]:
    """Whether a linear map of the hidden state tells which of the forget rows' answers is right.

    Input is the residual stream after a layer at the last token of the prompt, output the mean of
    the model's own embeddings of the answer's tokens. The map is a ridge regression fitted on
    retain rows; on each forget row the answers of all of them are ranked by the cosine to what it
    predicts, both less the mean over retain rows. `top_1` is how often the true one is first and
    `reciprocal_rank` the mean of 1 / its place; `chance` is what `top_1` is for a guess. What the
    questions alone give away, such as the kind of the answer, the retrained model shows as well.
    Nothing is found with fewer than two retain rows.
    """
    if len(case.retain) < 2:
        return []
    few = suite.limit_sets({"": EvalSet("retain", tuple(case.retain))}, PROBE_ROWS)[""].rows
    known, asked = _encoded(case, few), _encoded(case, case.forget)
    size = case.experiment.evaluation.batch_size
    fitted, tested = (
        layers.prompt_states(case.model, part.table, batch_size=size) for part in (known, asked)
    )
    truth, target = (layers.answer_embeddings(case.model, part.table) for part in (known, asked))
    answers = [case.forget[i].answer for i in asked.kept]
    found = []
    for number, (x, of_forget) in enumerate(zip(fitted, tested, strict=True), 1):
        ridge = fit_ridge(x, truth)
        predicted = ridge(of_forget) - ridge.outputs
        ranks, among = retrieval_ranks(predicted, target - ridge.outputs, answers)
        found.append(
            {
                "name": f"layer {number}",
                "layer": number,
                "chance": 1 / among,
                "top_1": summarise(ranks == 1),
                "reciprocal_rank": summarise(1 / ranks),
            }
        )
        case.stage.update(number, len(fitted), "layers")
    return found


def _encoded(case: Case, rows: Sequence[Row]) -> Encoded:
    limit = max_length(case.model, case.experiment)
    return encode_rows(case.model, rows, case.experiment, limit, "rows", lambda text: None)
