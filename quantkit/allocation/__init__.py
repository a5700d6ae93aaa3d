"""Which scheme each group gets: solvers over tables of floats. numpy and scipy only; independent of networks.

plan.py       Plan, Edge, Resource, Limit, Shortage
front.py      solve, cheapest, front, shortage: least predicted loss within a cost budget and other limits
quality.py    hypervolume, each plan's distance to the front, what is undominated on several axes
fitting.py    predicted losses fitted to measured plans  drawing.py   random plans of one cost
ordering.py   order: the sequence that a guided bisection walks
neighbours.py the plans one or two changes away
problem.py    the tables as options; predict: any allocation's loss and cost

greedy.py     the quick descent                  pareto.py      the whole front by dynamic programming
milp.py       any mix of limits, proven optimal  quadratic.py   the same under interactions
relaxation.py the bound behind its gap           program.py     the rows of both, for highs.py, which calls the solver
"""

from quantkit.allocation.drawing import draw
from quantkit.allocation.fitting import MeasuredLoss, fit_losses, predicted_loss
from quantkit.allocation.front import SOLVERS, cheapest, front, shortage, solve, undominated
from quantkit.allocation.neighbours import neighbours
from quantkit.allocation.ordering import order
from quantkit.allocation.plan import Binding, Edge, Limit, Plan, Resource, Shortage
from quantkit.allocation.quality import distances, hypervolume, undominated_points
from quantkit.allocation.translation import pin, predict

__all__ = [
    "SOLVERS",
    "Binding",
    "Edge",
    "Limit",
    "MeasuredLoss",
    "Plan",
    "Resource",
    "Shortage",
    "cheapest",
    "distances",
    "draw",
    "fit_losses",
    "front",
    "hypervolume",
    "neighbours",
    "order",
    "pin",
    "predict",
    "predicted_loss",
    "shortage",
    "solve",
    "undominated",
    "undominated_points",
]
