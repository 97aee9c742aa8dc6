"""Engines, which turn an LE-SDE into a process. Each carries its own settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lesde.checks import check_choice, check_real, shown
from lesde.derivation import derive
from lesde.laws.system import MeanSystem
from lesde.model.lesde import LESDE, read_initial
from lesde.processes.exact import ExactPaths
from lesde.processes.integration import METHODS
from lesde.processes.particles import IntegratedParticles, ParticleSGD
from lesde.processes.process import Process
from lesde.processes.sgd import SGDPaths
from lesde.processes.torchsde import NOISES, IntegratedPaths

ENGINES = ("auto", "exact", "torchsde", "sgd")


@dataclass(frozen=True)
class Exact:
    """Draw from the Gaussian law of the LE-SDE at the saved times: no steps, no discretisation error.

    For kernels that depend on classes and time. The law is the limit of small learning rates: with several
    of them the results are independent copies. Models that need dense matrices beyond n_classes·n_features =
    2,000 are refused; integrate them by :class:`lesde.TorchSDE`.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=2)
    >>> lesde.simulate(model, [0, 1], replicates=4, engine=lesde.Exact()).attrs["engine"]
    'exact'
    """

    def process(self, model: LESDE, initial: Any = None, replicates: int | None = None) -> Process:
        """The model from an initial state as a process."""
        if model.kernel.depends_on_features:
            raise ValueError(
                "engine='exact' draws from a Gaussian law, which a kernel that depends on features does "
                "not have; use engine='torchsde' or engine='sgd'."
            )
        return ExactPaths(model, read_initial(model, initial, replicates), "exact")


@dataclass(frozen=True)
class TorchSDE:
    """Integrate the LE-SDE step by step with torchsde.

    Parameters
    ----------
    method : {"euler", "milstein", "srk"}
        Noise of ``noise="plain"`` is additive, so "euler" and "milstein" are the same scheme, of strong
        order 1; "srk" (Rößler's SRA1) has strong order 1.5, for linear drifts 2, and weak order 2. Other
        noise depends on the state and needs "euler".
    dt : float, optional
        Largest integration step; every saved interval is divided evenly. Default: the learning rate, where
        there is one; else a hundredth of the run, or what makes the growth of the class means accurate to
        about 1 %, where that is less (not for kernels that depend on features).
    noise : {"plain", "sampling", "modified"}
        The SDE that is integrated. "plain": the LE-SDE, the limit of small learning rates. "sampling":
        with the sampling noise √(hC) of SGD at learning rate h as a further diffusion; an Euler step of
        length h, the default where saved times are multiples of h apart, has the first two moments of an
        iteration. "modified": also with drift and diffusion corrected at first order in h, so that
        moments differ from those of the discrete process by O(h²); give a ``dt`` well below h. It is for
        kernels of classes and time, and needs kernel and noise as numbers or formulas. See
        :func:`lesde.moments`. The last two need a ``learning_rate``.

    Notes
    -----
    Class means are integrated alone and the samples' deviations from them drawn at the saved times, which has
    the law of stepping every sample with the same steps (at every step, where samples are kept with other noise
    than "plain"). Where the kernel depends on features every sample is stepped, by the same schemes.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=2)
    >>> srk = lesde.TorchSDE(method="srk", dt=0.1)
    >>> lesde.simulate(model, [0, 1], replicates=4, engine=srk).attrs["dt"]
    0.1
    """

    method: str = "euler"
    dt: float | None = None
    noise: str = "plain"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("noise", self.noise, NOISES)
        if self.dt is not None:
            dt = check_real("dt", self.dt, 0.0, open_minimum=True)
            object.__setattr__(self, "dt", dt)
        if self.noise != "plain" and self.method != "euler":
            raise ValueError(
                f"method={self.method!r} needs a diffusion that does not depend on the state; that of "
                f"noise={self.noise!r} does. Use method='euler'."
            )

    def process(self, model: LESDE, initial: Any = None, replicates: int | None = None) -> Process:
        """The model from an initial state as a process."""
        start = read_initial(model, initial, replicates)
        if model.kernel.depends_on_features and self.noise == "modified":
            raise ValueError(
                "noise='modified' is derived for kernels of classes and time; this one depends on "
                "features. Use noise='sampling'."
            )
        kind = IntegratedParticles if model.kernel.depends_on_features else IntegratedPaths
        return kind(model, start, self.method, self.dt, self.noise)


@dataclass(frozen=True)
class SGD:
    """Run the discrete process that the LE-SDE approximates.

    At every iteration one sample J is drawn, and every sample i moves by h E φ(X_J) + √h σ ζ_i, with the
    learning rate h that ``simulate`` is given. The state is saved at the iteration nearest to each time,
    whose time is ``time`` of the result. With a kernel of classes and time σ must be constant or one number per
    class.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=2)
    >>> paths = lesde.simulate(model, [0, 1], replicates=4, learning_rate=0.1, engine=lesde.SGD())
    >>> paths.iteration.values.tolist()
    [0, 10]
    """

    def process(self, model: LESDE, initial: Any = None, replicates: int | None = None) -> Process:
        """The model from an initial state as a process."""
        start, noise = read_initial(model, initial, replicates), model.noise_table
        if model.kernel.depends_on_features:
            return ParticleSGD(model, start, "sgd")
        if not (noise.is_constant or noise.is_isotropic):
            raise ValueError(
                "engine='sgd' needs noise that is constant or one number per class, with a kernel of classes; "
                "got a matrix that changes in time. Use engine='torchsde'."
            )
        return SGDPaths(model, start, "sgd")


Engine = Exact | TorchSDE | SGD


def read_engine(engine: Any, model: LESDE, has_rates: bool) -> Engine:
    """The engine of a name, "auto" among them, or as it was given."""
    named: dict[str, Engine] = {"exact": Exact(), "torchsde": TorchSDE(), "sgd": SGD()}
    if isinstance(engine, Exact | TorchSDE | SGD):
        return engine
    if not isinstance(engine, str):
        raise TypeError(
            f"engine must be one of {', '.join(map(repr, ENGINES))}, or lesde.Exact(), lesde.TorchSDE(...) "
            f"or lesde.SGD(); got {shown(engine)}."
        )
    if check_choice("engine", engine, ENGINES) != "auto":
        return named[engine]
    if has_rates or model.kernel.depends_on_features:
        return named["sgd" if has_rates else "torchsde"]
    try:
        MeanSystem(derive(model).coefficients())
    except ValueError:  # matrices too large to form
        return named["torchsde"]
    return named["exact"]
