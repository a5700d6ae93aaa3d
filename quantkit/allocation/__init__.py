"""Which scheme each group gets: solvers over tables of floats. numpy and scipy only; no network in sight.

plan.py       Plan, Edge
pareto.py     solve, cheapest, front: least predicted loss within a cost budget
ordering.py   order: the sequence that a guided bisection walks
problem.py    the tables as options; predict: any allocation's loss and cost
linear.py     the exact knapsack                 quadratic.py  the same under interactions
highs.py      the solver's one door
"""

from quantkit.allocation.ordering import order
from quantkit.allocation.pareto import cheapest, front, solve
from quantkit.allocation.plan import Edge, Plan
from quantkit.allocation.problem import pin, predict

__all__ = ["Edge", "Plan", "cheapest", "front", "order", "pin", "predict", "solve"]
