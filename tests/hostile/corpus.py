"""All inputs, by format."""

from __future__ import annotations

from tests.hostile import bundles, graphs, pickles, pipelines, programs, records, scripts, weights

CORPORA = [
    each.CORPUS
    for each in (pickles, weights, scripts, programs, graphs, bundles, records, pipelines)
]
