"""Table 1 of the paper: every model it compares, at its global optimum, side by side.

K = 3 classes in d = 3 dimensions, so that the vectors can be seen. Run it:
`python examples/table1.py`; it takes a few seconds once the kernels are compiled.
"""

from pathlib import Path

from fastnc.paper import table1
from fastnc.plots import geometry, save

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    table = list(table1.fit(n_classes=3, n_per_class=10, dim=3, seed=0))
    RESULTS.mkdir(exist_ok=True)
    written = [table1.to_csv(table, RESULTS / "table1.csv")]
    print("written:", *written, *save(geometry(table), RESULTS / "table1_geometry"))

    ulpm, *rows = table
    print(
        f"{'ULPM':>32}: paper: the infimum 0 is not attained, the margin ratio tends to 1; here: "
        f"loss {ulpm.solution.value:.1e}, margin ratio {ulpm.metrics['margin_ratio']:.4f}"
    )
    assert 0.0 < ulpm.solution.value < 1e-5
    assert 0.8 < ulpm.metrics["margin_ratio"] < 1.0

    for row in rows:
        found = row.solution
        print(
            f"{row.name:>32}: paper: {found.optimum.value:.10g} ({row.paper}); here: "
            f"{found.value:.10g}, relative gap {found.gap:.0e}"
        )
        assert abs(found.gap) < 1e-8

    # (NC1) holds at every optimum, balanced or not; the softmax code has one sample a class.
    spreads = [row.metrics["within_class"] for row in rows]
    worst = max(spread for spread in spreads if spread is not None)
    print(f"paper: features collapse to their class means; here: within-class {worst:.0e} at most")
    assert worst < 1e-4

    # (NC2), (NC3): a simplex ETF and self-duality at every balanced optimum.
    balanced = [row for row in rows if "unequal" not in row.name]
    angles = max(row.metrics["equiangular_classifier"] for row in balanced)
    duality = max(row.metrics["self_duality"] for row in balanced)
    print(f"paper: classifiers form a simplex ETF; here: angles off by {angles:.0e} at most")
    print(f"paper: features and classifiers align; here: {duality:.0e} apart at most")
    assert angles < 1e-4 and duality < 1e-4

    # Without balance the simplex is lost, and the angles are those of other closed forms.
    uneven = min(row.metrics["equiangular_classifier"] for row in rows if row not in balanced)
    print(
        f"literature: unequal classes bend the simplex; here: angles off by {uneven:.2g} at least"
    )
    assert uneven > 0.01


if __name__ == "__main__":
    main()
