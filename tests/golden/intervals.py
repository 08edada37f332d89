"""Intervals of fractions and of paired differences, for src/measure/intervals.rs, and McNemar's exact test and paired standard
errors, for src/measure/paired_scores.rs. Needs scipy.

Run: python tests/golden/intervals.py
"""

import json
import math
import random
from pathlib import Path

from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm, sem

Z = norm.ppf(0.975)


def wilson(count, n):
    interval = binomtest(count, n).proportion_ci(0.95, "wilson")
    return [interval.low, interval.high]


def paired(lost, gained, n):
    """Inverts the score test of a paired difference. Its variance has the most likely probabilities for that difference, which
    are searched for here instead of solved for."""
    same = n - lost - gained

    def score(d):
        def negative_log_likelihood(q):
            p = q + d
            terms = [(lost, p), (gained, q), (same, 1 - p - q)]
            if any(x < 0 or (k > 0 and x == 0) for k, x in terms):
                return math.inf
            return -sum(k * math.log(x) for k, x in terms if k > 0)

        low, high = max(0.0, -d), (1 - d) / 2
        found = minimize_scalar(negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
        q = min([found.x, low, high], key=negative_log_likelihood)
        variance = (2 * q + d - d * d) / n
        return ((lost - gained) / n - d) / math.sqrt(max(variance, 1e-300))

    observed = (lost - gained) / n
    edge = 1 - 1e-12
    low = brentq(lambda d: score(d) - Z, -edge, observed - 1e-9, xtol=1e-12) if observed > -1 else -1.0
    high = brentq(lambda d: score(d) + Z, observed + 1e-9, edge, xtol=1e-12) if observed < 1 else 1.0
    return [low, high]


def paired_scores(n, random):
    """Scores such as F1, of two models."""
    before = [round(random.random(), 3) for _ in range(n)]
    after = [round(min(1.0, b + random.gauss(0.05, 0.2)), 3) for b in before]
    differences = [a - b for a, b in zip(after, before)]
    mean, error = sum(differences) / n, sem(differences)
    return {"before": before, "after": after, "difference": mean, "standard_error": error,
            "interval": [mean - Z * error, mean + Z * error]}


def main():
    splits = [(0, 0), (1, 0), (0, 5), (3, 3), (9, 1), (40, 4), (44, 12), (12, 44), (163, 92), (1200, 1000), (30000, 30500)]
    seeded = random.Random(7)
    fractions = [(0, 19), (0, 1), (1, 1), (1, 2), (9, 19), (81, 263), (44, 296), (296, 296), (1, 1000)]
    pairs = [(0, 0, 2), (0, 0, 19), (0, 0, 296), (9, 0, 19), (1, 0, 19), (19, 0, 19), (12, 2, 50), (2, 12, 50)]
    pairs += [(9, 1, 32), (1, 1, 44), (44, 12, 296), (0, 5, 40), (40, 0, 40), (3, 3, 6), (25, 5, 100), (0, 30, 30)]
    pairs += [(1, 0, 1000), (163, 92, 1600), (2, 1, 3), (7, 25, 500)]
    golden = {
        "wilson": [{"counts": list(c), "interval": wilson(*c)} for c in fractions],
        "paired": [{"counts": list(c), "interval": paired(*c)} for c in pairs],
        "mcnemar": [{"counts": list(c), "p": float(binomtest(min(c), sum(c)).pvalue) if sum(c) else 1.0} for c in splits],
        "paired_scores": [paired_scores(n, seeded) for n in [2, 9, 60]],
    }
    path = Path(__file__).resolve().parent / "intervals.json"
    path.write_text(json.dumps(golden, indent=1) + "\n")


main()
