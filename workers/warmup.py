"""Run a network of one filter through all compiled loops once.

Loading a loop takes tenths of a second, and compiling it for the first time on a machine some
seconds: a worker does both before it says that it is ready, so that neither counts as the time of
its first lease, nor of what ``plan`` measures.
"""

from functools import cache

import torch
from torch import nn

from workers.deconvnet import project
from workers.graph import Network
from workers.scan import ShardScan


@cache
def warm_up(device: torch.device) -> None:
    """Once a process and device."""
    shape = (1, 8, 8)
    with torch.random.fork_rng(devices=[]):  # in a notebook the random numbers are the user's
        model = nn.Sequential(
            nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1), nn.ReLU()
        )
    network = Network(model, shape).to(device)
    units = sum(layer.units for layer in network.layers)
    scan = ShardScan(network, network.layers, 1, torch.full((units,), -torch.inf, device=device))
    images, one = torch.zeros(1, *shape, device=device), torch.ones(1, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    scan.add(images, zero, one.bool())
    scan.hits()
    layer = network.layers[-1]
    with torch.no_grad():
        switches = network.switches(images, network.path_to(layer))
        project(network, layer, switches, zero, zero, torch.zeros(1, 2, dtype=torch.int64), one)
