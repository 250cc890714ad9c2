"""Test the count of multiply-adds: it watches steps by their names, and must notice a change."""

import pytest

from benchmarks.multiply_adds import counted, in_full
from tests.test_projector import CPU, LAYER, TRANSFORM, hits_on, network, projected
from workers.projector import Projector


@pytest.mark.parametrize("reuse", [1.0, 50.0])
def test_projections_are_counted_whole_or_on_their_cones(reuse: float) -> None:
    net = network()
    hits = hits_on([0, 1, 2], net)
    with counted() as done:
        projected(Projector(net, TRANSFORM, CPU), net, hits, reuse=reuse)
    layer = net.layer(LAYER)
    # An adjoint costs what its filter does, so of three whole images it is at most twice that.
    assert 0 < sum(done) < 3 * 2 * in_full(net, layer)


def test_nothing_is_counted_once_it_is_closed() -> None:
    net = network()
    with counted() as done:
        pass
    projected(Projector(net, TRANSFORM, CPU), net, hits_on([0], net), reuse=1.0)
    assert done == []
