"""Neural collapse measured: a first pass over features, a second one, and what their sums say."""
