"""Writes golden.json: series and what statsmodels makes of them.

    pip install statsmodels==0.14.5 && python golden.py > golden.json
"""

import json

import numpy as np
from statsmodels.tsa.seasonal import STL

cases = []


def add(name, y, **config):
    fit = {k: config.pop(k) for k in ("inner_iter", "outer_iter") if k in config}
    y = np.round(y, 6)
    result = STL(y, **config).fit(**fit)
    cases.append({
        "name": name, "config": config | fit, "y": y.tolist(),
        "trend": result.trend.tolist(), "seasonal": result.seasonal.tolist(), "weights": result.weights.tolist(),
    })


rng = np.random.default_rng(1)
t = np.arange(150)
wave = 10 + t / 30 + 3 * np.sin(t / 12 * 2 * np.pi) + rng.normal(0, 0.5, len(t))
spiked = wave.copy()
spiked[[20, 77, 78, 79, 140]] += [25, 12, 14, 11, -20]

add("defaults", wave, period=12)
add("robust", spiked, period=12, robust=True)
add("robust, few passes", spiked, period=12, robust=True, inner_iter=1, outer_iter=3)
add("long smoothers", wave, period=12, seasonal=301, trend=25, low_pass=13)
add("robust and longer than the series", spiked, period=12, seasonal=301, trend=201, robust=True)
add("constant fits", wave, period=12, seasonal_deg=0, trend_deg=0, low_pass_deg=0)
add("jumps", wave, period=12, seasonal=13, seasonal_jump=2, trend_jump=4, low_pass_jump=5)
add("jumps, robust", spiked, period=12, seasonal=35, seasonal_jump=3, trend_jump=3, low_pass_jump=2, robust=True)
add("jumps beyond the end", wave[:101], period=12, seasonal=7, seasonal_jump=50, trend_jump=60, low_pass_jump=70)
add("period 2", wave[:40], period=2)
add("two seasons and no more", wave[:24], period=12)
add("a season that changes", wave * np.linspace(1, 3, len(t)), period=12, seasonal=7)
add("constant series", np.full(60, 4.25), period=6, robust=True)

print(json.dumps(cases, separators=(",", ":")))
