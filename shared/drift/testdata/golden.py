"""Makes golden.json: what scipy and Evidently's rules give for samples of many kinds.

    .local/training-venv/bin/python shared/drift/testdata/golden.py

from the root of the repository, with scipy 1.17.1 and numpy. The same versions give the
same file. What is Evidently's (binning, zeros in PSI, the norm of the Wasserstein
distance, the z-test) is written down here again from its source, in a line each.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import scipy
from scipy import stats
from scipy.spatial import distance

warnings.simplefilter("error")
rng = np.random.default_rng(20261122)


def binned(a, b):
    if len(np.unique(a)) > 20:
        edges = np.histogram_bin_edges(np.concatenate([a, b]), bins="sturges")
        return np.histogram(a, edges)[0], np.histogram(b, edges)[0]
    keys = np.unique(np.concatenate([a, b]))
    return np.array([(a == k).sum() for k in keys]), np.array([(b == k).sum() for k in keys])


def fill(share):
    share = share.copy()
    least = share[share != 0].min()
    share[share == 0] = least / 10**6 if least <= 0.0001 else 0.0001
    return share


def psi(x, y):
    x, y = fill(x / x.sum()), fill(y / y.sum())
    return float(((x - y) * np.log(x / y)).sum())


def chisquare(x, y):
    x, y = x[(x > 0) | (y > 0)], y[(x > 0) | (y > 0)]  # 0/0 else
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")
        r = stats.chisquare(y, x * (y.sum() / x.sum()))
    if len(x) < 2:
        return [0.0, 1.0]  # scipy's p is nan: there is no degree of freedom
    return [float(r[0]) if np.isfinite(r[0]) else None, float(r[1])]


def case(name, a, b, keep=True):
    a, b = np.asarray(a, float), np.asarray(b, float)
    x, y = binned(a, b)
    ks = stats.ks_2samp(a, b)
    out = {
        "name": name,
        "ks": [float(ks.statistic), float(ks.pvalue)],
        "wasserstein": float(stats.wasserstein_distance(a, b)),
        "normed": float(stats.wasserstein_distance(a, b) / max(np.std(a), 0.001)),
        "jensenshannon": float(distance.jensenshannon(x, y, 2)),
        "psi": psi(x, y),
        "chisquare": chisquare(x, y),
    }
    if keep:
        out |= {"reference": a.tolist(), "current": b.tolist()}
    return out


def walk(n, seed):
    """What both sides can make alike without keeping it: a linear congruence."""
    out = np.empty(n)
    x = seed
    for i in range(n):
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        out[i] = (x >> 11) / 2**53
    return out


samples = []
for n1, n2 in [(1, 1), (2, 1), (3, 5), (10, 10), (30, 20), (100, 100), (200, 150), (333, 500), (1000, 997)]:
    a = np.round(rng.normal(0, 1, n1), 6)
    samples.append(case(f"normal {n1} {n2}", a, np.round(rng.normal(0, 1, n2), 6)))
    samples.append(case(f"shifted {n1} {n2}", a, np.round(rng.normal(0.3, 1.1, n2), 6)))
    samples.append(case(f"far {n1} {n2}", a, np.round(rng.normal(9, 1, n2), 6)))
    samples.append(case(f"heavy {n1} {n2}", np.round(rng.pareto(1.5, n1), 6), np.round(rng.pareto(1.2, n2), 6)))
    samples.append(case(f"whole {n1} {n2}", rng.poisson(3, n1), rng.poisson(4, n2)))
    samples.append(case(f"many whole {n1} {n2}", rng.poisson(300, n1), rng.poisson(310, n2)))
    samples.append(case(f"constant {n1} {n2}", np.full(n1, 7.25), np.full(n2, 7.25)))
    samples.append(case(f"two values {n1} {n2}", rng.integers(0, 2, n1), rng.integers(0, 2, n2)))
samples.append(case("zeros of both signs", [0.0, -0.0, 1.0, -1.0], [0.0, 0.0, 2.0, -0.0]))

# Large samples are made on both sides: values of walk, b's moved.
walks = []
for n1, n2, shift, scale in [
    (5000, 4000, 0.0, 1.0),
    (5000, 5000, 0.01, 1.0),
    (10000, 9999, 0.0, 1.0),
    (10000, 10000, 0.02, 1.0),
    (10001, 300, 0.0, 1.0),
    (20000, 70, 0.05, 1.0),
    (20000, 12, 0.1, 1.0),
    (20000, 3, 0.2, 1.0),
    (40000, 30000, 0.003, 1.0),
    (60000, 2000, 0.03, 1.0),
    (100000, 100000, 0.002, 1.0),
    (200000, 150000, 0.0, 1.01),
    (200000, 200000, 0.02, 1.0),
]:
    c = case("", walk(n1, 1), walk(n2, 2) * scale + shift, keep=False)
    c |= {"name": f"{n1} {n2} {shift} {scale}", "n1": n1, "n2": n2, "shift": shift, "scale": scale}
    walks.append(c)

# Distributions of the single-sample statistic, in all branches of its methods.
kolmogorov = []
for n in [1, 2, 3, 5, 10, 20, 50, 100, 140, 141, 200, 500, 1000, 5000, 20000, 100000, 100001, 500000]:
    xs = {0.4 / n, 0.7 / n, 1.0 / n, 1.3 / n, 0.5, 0.7, 0.99, 1 - 0.5 / n}
    xs |= {z / np.sqrt(n) for z in (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.86, 1.0, 1.2, 1.4, 1.49, 1.7, 1.99, 2.1, 3, 5, 18)}
    xs |= {(1.3 / n) ** (2 / 3), (1.39 / n) ** (2 / 3)}
    for x in sorted(xs):
        if 0 < x < 1:
            kolmogorov.append([n, float(x), float(stats.kstwo.sf(x, n))])

counts = []
for k in [1, 2, 3, 5, 20, 109, 1000]:
    for total in [50, 1000, 100000]:
        share = rng.dirichlet(np.ones(k))
        a, b = rng.multinomial(total, share), rng.multinomial(total * 2, share)
        for name, b2 in [("same", b), ("other", rng.multinomial(total, rng.dirichlet(np.ones(k))))]:
            seen = (a > 0) | (b2 > 0)
            x, y = a[seen], b2[seen]
            counts.append(
                {
                    "name": f"{name} {k} {total}",
                    "reference": a.tolist(),
                    "current": b2.tolist(),
                    "jensenshannon": float(distance.jensenshannon(x, y, 2)),
                    "psi": psi(x, y),
                    "chisquare": chisquare(x, y),
                }
            )

chi2 = [[df, float(x), float(stats.chi2.sf(x, df))] for df in [1, 2, 3, 7, 19, 40, 108, 999, 20000] for x in
        [0.0, df * 0.01, df * 0.5, df * 0.9, df, df * 1.01, df * 1.1, df * 1.5, df * 2, df * 5, df * 30]]

z = []
for x1, n1, x2, n2 in [(5, 10, 7, 20), (0, 10, 3, 20), (10, 10, 20, 20), (500, 1000, 620, 1100), (1, 1000, 900, 1000), (3, 7, 6, 14)]:
    p1, p2, p = x1 / n1, x2 / n2, (x1 + x2) / (n1 + n2)
    s = 0.0 if p in (0, 1) else (p1 - p2) / np.sqrt(p * (1 - p) * (1 / n1 + 1 / n2))
    z.append([x1, n1, x2, n2, float(s), float(2 * stats.norm.sf(abs(s)))])

Path(__file__).with_name("golden.json").write_text(
    json.dumps({"scipy": scipy.__version__, "numpy": np.__version__, "samples": samples, "walks": walks,
                "kolmogorov": kolmogorov, "counts": counts, "chi2": chi2, "z": z}, separators=(",", ":"), allow_nan=False) + "\n"
)
