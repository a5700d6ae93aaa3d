import numpy as np
import pytest

from quantkit.allocation import distances, hypervolume, undominated_points

BOX = ((0.0, 1.0), (4.0, 5.0))


def on_a_grid(points, steps=400):
    """The share of cells in the box whose middle some point beats."""
    cells = (np.arange(steps) + 0.5) / steps
    loss, cost = np.meshgrid(cells * 4, 1 + cells * 4)
    beaten = np.zeros_like(loss, dtype=bool)
    for point_loss, point_cost in points:
        beaten |= (point_loss <= loss) & (point_cost <= cost)
    return beaten.mean()


@pytest.mark.parametrize("seed", range(20))
def test_hypervolume_is_the_beaten_share_of_the_box(seed):
    random = np.random.default_rng(seed)
    points = list(zip(random.uniform(-1, 5, 6), random.uniform(0, 6, 6), strict=True))

    assert hypervolume(points, *BOX) == pytest.approx(on_a_grid(points), abs=0.01)


def test_hypervolume_of_nothing_is_0_and_of_the_ideal_1():
    assert hypervolume([], *BOX) == 0
    assert hypervolume([BOX[0]], *BOX) == 1
    assert hypervolume([(1.0, 2.0)], (1.0, 2.0), (1.0, 2.0)) >= 0  # a box without sides


@pytest.mark.parametrize("seed", range(20))
def test_a_distance_is_the_least_step_to_where_nothing_of_the_front_beats_the_point(seed):
    random = np.random.default_rng(seed)
    front = list(zip(random.uniform(0, 4, 4), random.uniform(1, 5, 4), strict=True))
    points = list(zip(random.uniform(0, 5, 5), random.uniform(1, 6, 5), strict=True))
    grid = np.linspace(0, 1.6, 321)
    down, left = np.meshgrid(grid, grid)
    for point, found in zip(points, distances(points, front, *BOX), strict=True):
        loss, cost = point[0] - 4 * down, point[1] - 4 * left
        free = np.ones_like(loss, dtype=bool)
        for front_loss, front_cost in front:
            free &= ~((front_loss < loss - 1e-9) & (front_cost < cost - 1e-9))
        assert found == pytest.approx(np.hypot(down, left)[free].min(), abs=0.01)


def test_the_front_itself_and_what_is_better_is_at_no_distance():
    front = [(3.0, 1.0), (1.0, 3.0)]

    assert distances([*front, (0.0, 1.0)], front, *BOX) == (0, 0, 0)
    assert distances([(2.0, 2.0)], [], *BOX) == (0,)
    assert distances([(3.0, 3.0)], front, *BOX) == (pytest.approx(0.0),)
    assert distances([(3.0, 4.0)], front, *BOX) == (pytest.approx(0.25),)


@pytest.mark.parametrize("seed", range(5))
def test_undominated_on_three_axes_is_what_comparing_each_pair_gives(seed):
    points = np.random.default_rng(seed).integers(0, 5, (20, 3)).tolist()

    def beats(one, other):
        return all(a <= b for a, b in zip(one, other, strict=True)) and one != other

    assert undominated_points(points) == tuple(not any(beats(other, point) for other in points) for point in points)
