"""Learning-rate schedules: factors over the progress of a run."""

from vss2.d2.config import LazyCall as L
from vss2.solver import PolyWarmup

poly_160k = L(PolyWarmup)(max_iter=160000, power=1.0, warmup_iters=1500, warmup_ratio=1e-6)
