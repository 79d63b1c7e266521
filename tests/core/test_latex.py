"""Tables as LaTeX: rules, numbers, and letters that LaTeX takes for commands."""

import numpy as np

import fastnc
from fastnc._core.latex import tabular


def test_a_tabular():
    rows = [["a_b & 50%", "1.5", "-2e-07"], ["K > d", "-", "1e+20"]]
    assert tabular(["what", "x", "y"], rows).splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"what & x & y \\",
        r"\midrule",
        r"a\_b \& 50\% & $1.5$ & $-2 \times 10^{-7}$ \\",
        r"K \textgreater{} d & - & $10^{20}$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_metrics():
    H = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    m = fastnc.collapse_metrics(H, np.array([0, 0, 1, 1]))
    own, papyan = m.to_latex().splitlines(), m.to_latex("papyan").splitlines()
    assert own[2] == r"metric & value & at collapse \\"
    assert r"nc1\_quotient & $0.01$ & $0$ \\" in own
    assert r"margin & - & grows \\" in own
    assert len(own) == 6 + len(m.as_dict()) and len(papyan) == 6 + len(m.as_dict("papyan"))
    assert papyan[4].startswith("NC1: tr(Sw Sb\\textasciicircum{}+)/C & $")
