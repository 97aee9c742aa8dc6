"""A stretch of torchsde's steps as one CUDA graph.

A step of a small state takes a GPU less time than launching its operations does. So the steps of a
stretch are recorded once, as torchsde takes them, and replayed for every further stretch with new
increments and coefficients in the same memory: one launch for hundreds of steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from lesde.simulation.brownian import StepIncrements
from lesde.simulation.mean_sde import MeanSDE
from lesde.simulation.steps import global_numbers_kept, solve

__all__ = ["captured_steps"]

LARGEST_STATES = 2**24
"""Numbers of a stretch's states; larger ones keep a GPU busy without a graph."""

Replay = Callable[[torch.Tensor], torch.Tensor]


def captured_steps(
    sde: MeanSDE, brownian: StepIncrements, method: str, length: int, state: torch.Tensor
) -> Replay | None:
    """A function from a state to the states (step, row, channel) of a full stretch, or None.

    None where there is nothing to gain: on the CPU, for large states, and for runs shorter than two
    stretches. Before each call the stretch's increments and tables must have been filled.
    """
    few = int(sde.grid.saved[-1]) < 2 * length
    if state.device.type != "cuda" or few or state.numel() * length > LARGEST_STATES:
        return None
    return _Captured(sde, brownian, method, length, state)


class _Captured:
    def __init__(
        self,
        sde: MeanSDE,
        brownian: StepIncrements,
        method: str,
        length: int,
        state: torch.Tensor,
    ):
        self.sde, self.brownian, self.method, self.length = sde, brownian, method, length
        self.state = state.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        self.state.copy_(state)
        if self.failed:
            return self._solve()
        if self.graph is None:
            try:
                self._capture()
            except RuntimeError as error:
                self.failed, self.graph = True, None
                warnings.warn(
                    f"the steps could not be recorded as a CUDA graph ({error}); they run one by one, "
                    f"which is slower and gives the same numbers.",
                    UserWarning,
                    stacklevel=2,
                )
                return self._solve()
        # The recorded steps read the memory of the first stretch's tables.
        self._refresh()
        assert self.graph is not None
        self.graph.replay()
        return self.states.clone()

    def _solve(self) -> torch.Tensor:
        first = self.brownian.first
        outputs = list(range(first, first + self.length + 1))
        with torch.no_grad(), global_numbers_kept(self.state.device):
            return solve(self.sde, self.state, outputs, self.brownian, self.method)

    def _capture(self) -> None:
        device = self.state.device
        first = self.brownian.first
        outputs = list(range(first, first + self.length + 1))
        self.tables = (self.sde.drift_table, self.sde.noise_table)
        with torch.no_grad(), global_numbers_kept(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                solve(self.sde, self.state, outputs, self.brownian, self.method)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.states = solve(self.sde, self.state, outputs, self.brownian, self.method)
        self.graph = graph

    def _refresh(self) -> None:
        for recorded, current in zip(
            self.tables, (self.sde.drift_table, self.sde.noise_table), strict=True
        ):
            if recorded is not None and current is not None and recorded is not current:
                recorded.overwrite(current)
