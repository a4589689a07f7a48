"""J&F of `sfc/sfc_toy` before its first step: what training has to beat.

python benchmarks/sfc_untrained.py --seeds 0 1 2
vss2 train --config-file sfc/sfc_toy train.seed=0 train.output_dir=output/sfc_toy_0
"""

from __future__ import annotations

import argparse

from vss2.config import apply_overrides, load_config
from vss2.d2.config import instantiate
from vss2.d2.utils import seed_all_rng
from vss2.engine import complete_config, do_eval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        cfg = complete_config(load_config("sfc/sfc_toy"))
        apply_overrides(cfg, ["dataloader.test.num_workers=0"])
        seed_all_rng(seed)
        results = do_eval(cfg, instantiate(cfg.model).eval())
        print(f"seed {seed}: J&F {results['vos']['J&F-Mean']:.2f}")


if __name__ == "__main__":
    main()
