"""Noisy multi-objective refinement of the front: qNEHVI (Daulton et al., arXiv 2105.08195) over a few numbers instead of a scheme a group.

A point of the space is a budget of cost, how much of the interactions counts, and how sharply losses are distinguished; the tables solved
under them give a plan. After the walk along the front, ROUNDS of such plans are asked for by BoTorch through Optuna (the extra
`quantkit[refine]`), each reported back with its measured damage and its cost, so that both objectives, noise included, shape the next one.
The budgets asked for lie about the place where the promise begins to be kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.allocation import Plan, solve
from quantkit.allocation.search.budget import front_trials, walk_front
from quantkit.allocation.search.measured import NOBODY, Measure, Outlook, SearchResult, Space, Trials
from quantkit.allocation.search.repair import repair
from quantkit.core.errors import RequestError

ROUNDS = 14
FIRST = 5  # of them drawn, before there is anything to learn from
REACH = 3  # plans of the front on either side of the cut
BETWEEN, SHARPNESS = (0.0, 1.5), (0.7, 1.4)


def search_refined(measure: Measure, space: Space, *, repairs: int, outlook: Outlook = NOBODY) -> SearchResult:
    """As the walk along the front, then the refinement, then the greedy pass. Raises RequestError where the extra is not installed."""
    study = _study()
    trials = Trials(measure, space, outlook)
    with trials.while_there_is_time():
        cut = walk_front(trials, space, ROUNDS, repairs)
        costs = [plan.predicted_cost for plan in space.front[max(0, cut - REACH) : cut + REACH + 1]] or [space.front[-1].predicted_cost]
        for left in range(ROUNDS if min(costs) < max(costs) else 0, 0, -1):
            trials.outlook.expect([], left + repairs)
            asked = study.ask()
            budget = asked.suggest_float("budget", min(costs), max(costs))
            between, sharpness = asked.suggest_float("between", *BETWEEN), asked.suggest_float("sharpness", *SHARPNESS)
            plan = _solved(space, budget, between, sharpness)
            if plan is None:
                study.tell(asked, (float(max(space.loss.values[np.isfinite(space.loss.values)].max(), 1.0)), max(costs)))
                continue
            trial = trials.of(plan)
            study.tell(asked, (min(trial.measured.damage, 1e3), plan.predicted_cost))
        repair(trials, space, repairs)
    return trials.result()


def refined_trials(space: Space, repairs: int) -> int:
    """How many plans `search_refined` measures, if all that are asked for are new."""
    return front_trials(space, repairs) + ROUNDS


def _solved(space: Space, budget: float, between: float, sharpness: float) -> Plan | None:
    """The plan of the bent tables, predicted by the straight ones."""
    loss = replace(space.loss, values=_bent(space.loss.values, sharpness))
    interactions = space.interactions
    if interactions is not None:
        own = np.diag(interactions.matrix)
        bent = _bent(own, sharpness)
        matrix = between * interactions.matrix
        np.fill_diagonal(matrix, bent)
        interactions = replace(interactions, matrix=matrix)
    found = solve(
        loss, space.cost, budget, groups=space.groups, interactions=interactions, edges=space.edges, limits=space.limits, fixed=space.fixed
    )
    return found and space.plan(found.allocation)


def _bent(values: Any, sharpness: float) -> Any:
    """|v|^sharpness with v's sign, scaled so that the greatest stays what it is."""
    top = float(np.nanmax(np.abs(values))) or 1.0
    return np.sign(values) * top * np.abs(values / top) ** sharpness


def _study() -> Any:
    try:
        import optuna
        from optuna_integration.botorch import BoTorchSampler, qnehvi_candidates_func
    except ImportError as error:
        got = f"--search refine, which needs BoTorch and Optuna ({error})"
        raise RequestError(got, "the extra installed", "pip install 'quantkit[refine]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = BoTorchSampler(candidates_func=qnehvi_candidates_func, n_startup_trials=FIRST, seed=0)
    settings: Mapping[str, Any] = {"directions": ["minimize", "minimize"], "sampler": sampler}
    return optuna.create_study(**settings)
