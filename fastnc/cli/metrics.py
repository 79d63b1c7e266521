"""`fastnc metrics`: the neural collapse of saved features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastnc.cli._folder import HELP as OUT

if TYPE_CHECKING:
    from fastnc.collapse.features_file import FeaturesFile


def metrics(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Keys features (N, d), labels (N,), optional weight (K, d), bias (K,): .npz, "
            ".pt, .safetensors; or features.npy beside labels.npy. Several files, or a quoted "
            "pattern, are parts of one set. Without features, each array is a layer.",
            show_default=False,
        ),
    ],
    labels: Annotated[Path | None, typer.Option(help="Labels: .npy, .pt or .csv.")] = None,
    weight: Annotated[Path | None, typer.Option(help="Classifier's rows: .npy or .pt.")] = None,
    bias: Annotated[Path | None, typer.Option(help="Classifier's bias: .npy or .pt.")] = None,
    features_key: Annotated[str | None, typer.Option(help="Name of the features.")] = None,
    labels_key: Annotated[str | None, typer.Option(help="Name of the labels.")] = None,
    about: Annotated[
        Path | None,
        typer.Option(help="Training samples: FILE is held out, measured about their class means."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Held-out samples, measured about the class means of FILE.")
    ] = None,
    ood: Annotated[
        Path | None, typer.Option(help="Features of another distribution, for NC5.")
    ] = None,
    ignore_index: Annotated[
        int | None, typer.Option(help="Samples with this label are left out, such as -100.")
    ] = None,
    min_count: Annotated[
        int, typer.Option(help="Classes with fewer samples are left out.", min=1)
    ] = 1,
    convention: Annotated[
        Literal["paper", "papyan", "papyan-notebook", "zhu", "rhubarbwu"] | None,
        typer.Option(help="That source's metrics, under its names and in its forms."),
    ] = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/metrics"),
) -> None:
    """Neural-collapse metrics of saved features: table, JSON and figure.

    Reads the files twice, in pieces; features that are mapped need not fit in memory. Writes
    metrics.json, metrics.tex (a booktabs tabular), metrics.png and metrics.pdf to --out; of several
    layers layers.json, layers.png and layers.pdf.
    """
    import json
    from dataclasses import replace

    from fastnc._core.environment import provenance_line
    from fastnc._core.files import atomic_write
    from fastnc._core.progress import progress_bar
    from fastnc.cli._models import check_different
    from fastnc.cli._results import drawn
    from fastnc.collapse.labels import IGNORED
    from fastnc.collapse.layer_table import LayerTable
    from fastnc.collapse.measurement import measure

    if about is not None and test is not None:
        raise ValueError("`--about` and `--test` must not both be given: each names the other set.")
    if ood is not None and convention is not None and not _has_nc5(convention):
        raise ValueError(
            f"`--ood` must be shown as NC5, which --convention {convention} does not have. Leave "
            "out one of them."
        )
    if labels is not None and labels_key is not None and about is None and test is None:
        raise ValueError(
            "`--labels` and `--labels-key` must not both be given: each says where the labels are."
        )
    keys = {"features_key": features_key, "labels_key": labels_key}
    paths = [path for given in files for path in _matching(given)]
    more = {"labels": labels, "weight": weight, "bias": bias}
    check_different(FILE=[path.resolve() for path in paths])
    if len(paths) > 1 and labels is not None:
        raise ValueError("`--labels` must belong to one FILE; several have labels of their own.")
    held = [_read(path, keys, more) for path in paths]
    classifier = {"weight": weight, "bias": bias}
    train = held if about is None else [_read(about, keys, classifier)]
    held = held if test is None else [_read(test, keys, classifier)]
    apart = about is not None or test is not None
    found, figures = LayerTable(), {}
    layers = _layers(held)
    if layers != [""] and (weight is not None or bias is not None):
        raise ValueError(
            "`--weight` and `--bias` must belong to features; the file holds layers. Name one of "
            "them by --features-key."
        )
    sources = [*paths, *(path for path in (about, test, ood) if path is not None)]
    if any(keys.values()) and all(path.suffix == ".npy" for path in sources):
        raise ValueError(
            "`--features-key` and `--labels-key` must name arrays of a file that has names; a .npy "
            "file has none. Leave them out."
        )
    total = 2 * sum(len(part.labels) for part in [*held, *(train if apart else [])]) * len(layers)
    with progress_bar(total, "samples", "metrics") as bar, _words_of_files():
        for name in layers:
            W, b = _classifier([*held, *train]) if name == "" else (None, None)
            given = (W, b, None, ignore_index, min_count, None, bar.update)
            if apart:
                _, statistics, names = measure(_parts(train, name), *given)
                parts = _numbered(_parts(held, name), names, ignore_index)
                measured, _, _ = measure(
                    parts, W, b, statistics, IGNORED, min_count, None, bar.update
                )
            else:
                measured, statistics, names = measure(_parts(held, name), *given)
            if ood is not None:
                key = name or features_key
                value = _nc5(_parts(train, name), ood, key, ignore_index, min_count)
                measured = replace(measured, nc5=value)
            found[name], figures[name] = measured, (statistics, names)
    from fastnc.cli._results import noted

    if len(layers) > 1:
        lines = ",\n".join(f"{json.dumps(n)}: {m.json(convention)}" for n, m in found.items())
        text = f"{{\n{lines}\n}}\n"
        print(found, flush=True)
        if convention is not None:
            print(f"The table has fastnc's own forms; layers.json has those of {convention}.")
        written = [atomic_write(out / "layers.json", lambda f: f.write(text.encode()))]
        from fastnc.plots import layers as profile

        written += drawn(lambda: profile(found), out / "layers")
    else:
        measured, (statistics, names) = next(iter(found.values())), next(iter(figures.values()))
        print(measured.table(convention), flush=True)
        text = measured.json(convention) + "\n"
        written = [atomic_write(out / "metrics.json", lambda f: f.write(text.encode()))]
        tabular = f"{measured.to_latex(convention)}% {provenance_line()}\n"
        written += [atomic_write(out / "metrics.tex", lambda f: f.write(tabular.encode()))]
        from fastnc.plots import collapse_figure

        named = names[statistics.counts > 0]
        written += drawn(lambda: collapse_figure(measured, statistics, named), out / "metrics")
    print("\nWritten:", *noted(out, written), sep="\n  ")


def _matching(path: Path) -> list[Path]:
    """The file itself, or those that a pattern matches, in the order of their names."""
    if path.exists() or not any(sign in path.name for sign in "*?["):
        return [path]
    found = sorted(path.parent.glob(path.name))
    if not found:
        raise FileNotFoundError(f"no file matches {str(path)!r}.")
    return found


def _read(path: Path, keys: dict[str, str | None], more: dict[str, Path | None]) -> FeaturesFile:
    from fastnc.collapse.features_file import read_features

    return read_features(
        path,
        more.get("labels"),
        more.get("weight"),
        more.get("bias"),
        keys["features_key"],
        keys["labels_key"],
    )


def _layers(held: list[FeaturesFile]) -> list[str]:
    """The names of the layers; one without a name where a file has features."""
    first = held[0].features
    return list(first) if isinstance(first, dict) else [""]


def _parts(held: list[FeaturesFile], name: str) -> list[tuple[Any, Any]]:
    """Features and labels of a layer, part by part."""
    parts = []
    for part in held:
        features = part.features
        if isinstance(features, dict) != bool(name):
            raise ValueError(
                "the files must all hold features, or all hold layers; some hold each. Measure "
                "them apart, or name one array by --features-key."
            )
        if name:
            if name not in features:
                raise ValueError(f"every file must hold the layer {name!r}; one does not.")
            features = features[name]
        parts.append((features, part.labels))
    return parts


def _numbered(
    parts: list[tuple[Any, Any]], names: Any, ignore_index: int | None
) -> list[tuple[Any, Any]]:
    """Held-out samples with the class numbers of the training labels `names`, and `IGNORED`."""
    import numpy as np

    from fastnc.collapse.labels import IGNORED

    numbered = []
    for H, y in parts:
        y = np.asarray(y).reshape(-1)
        ignored = np.zeros(len(y), bool) if ignore_index is None else y == ignore_index
        unknown = ~ignored & ~np.isin(y, names)
        if unknown.any():
            raise ValueError(
                f"held-out labels must occur among the training labels; got {y[unknown][0]}."
            )
        numbered.append((H, np.where(ignored, IGNORED, np.searchsorted(names, y))))
    return numbered


def _classifier(held: list[FeaturesFile]) -> tuple[Any, Any]:
    """The weight and bias of the files that have them, which must be the same ones."""
    import numpy as np

    from fastnc._core.arrays import real_numbers

    found: dict[str, Any] = {"weight": None, "bias": None}
    for part in held:
        for name, value in (("weight", part.weight), ("bias", part.bias)):
            if value is None or value is found[name]:
                continue
            if found[name] is None:
                found[name] = value
            # In float64: NumPy has no bfloat16.
            elif not np.array_equal(real_numbers(name, found[name]), real_numbers(name, value)):
                raise ValueError(
                    f"the files must have one classifier; two of them hold different `{name}`. "
                    f"Give the right one by --{name}."
                )
    return found["weight"], found["bias"]


def _has_nc5(convention: str) -> bool:
    from fastnc.collapse.conventions import CONVENTIONS

    return any(name == "nc5" for name, _ in CONVENTIONS[convention].values())


def _nc5(
    parts: list[tuple[Any, Any]],
    ood: Path,
    key: str | None,
    ignore_index: int | None,
    min_count: int,
) -> float:
    import numpy as np

    from fastnc._core.arrays import as_numpy
    from fastnc.collapse.features_file import read_unlabelled
    from fastnc.collapse.out_of_distribution import nc5

    if len(parts) > 1:
        raise ValueError("`--ood` must be measured with one FILE; got several.")
    other = read_unlabelled(ood, key)
    H, y = parts[0]
    labels = np.asarray(as_numpy(y))
    return nc5(H, labels, other, ignore_index=ignore_index, min_count=min_count)


@contextmanager
def _words_of_files() -> Iterator[None]:
    """Errors with the names of the files' arrays: features and labels, not H and y."""
    words = {
        "`H`": "`features`", "`y`": "`labels`", "`W`": "`weight`",
        "`ignore_index=": "`--ignore-index=",
        "pass `numpy.unique(y, return_inverse=True)[1]`": "write classes from 0 on to the file",
    }  # fmt: skip
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        for ours, theirs in words.items():
            text = text.replace(ours, theirs)
        raise type(error)(text) from None
