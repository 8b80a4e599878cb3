"""What certificates come to: the lines that certify.py prints, draws and puts on its page."""

from typing import Any

from common import cli

import numpy as np

from selfens_jax import certificates, counting, coverage, exact, metrics, plots, report_page
from selfens_jax.runs import records
from selfens_jax.runs.records import Counts


def summary(counted: Counts, certified: certificates.Certificates) -> list[tuple[str, float, str]]:
    """(what, value, its format); radii in the series' units. Without labels, nothing is correct."""
    prediction, radius, labels = certified.prediction, certified.radius, counted.labels
    radii = np.array([0.25, 0.5, 1.0, 1.5, 2.0]) * counted.settings["sigma"]
    cost = float(counted.forwards.mean() / counted.settings["num_draws"])

    def in_truth(so: np.ndarray) -> list[tuple[str, float]]:
        """The share that is so even if as many certificates are false as may be."""
        if not certified.valid:
            return []
        share = metrics.surely_true(int(so.sum()), len(so), certified.alpha)
        return [(f"truly so, with probability {1 - metrics.RHO:g}, at least", share)]

    if (labels < 0).all():
        known = prediction >= 0
        shares = [
            ("certified", float(known.mean())),
            *in_truth(known),
            ("abstentions", metrics.abstention_rate(prediction)),
        ]
        means = [
            ("mean radius", metrics.mean_radius(prediction, radius)),
            ("median radius", float(np.median(np.where(known, radius, 0.0)))),
        ]
        at_radii = [float((known & (radius >= r)).mean()) for r in radii]
        curve = [(f"certified at r = {r:g}", at) for r, at in zip(radii, at_radii, strict=True)]
    else:
        shares = [
            (
                "accuracy of the most voted class",
                metrics.accuracy(counted.counts.argmax(axis=1), labels),
            ),
            ("certified and correct", metrics.accuracy(prediction, labels)),
            *in_truth(prediction == labels),
            ("abstentions", metrics.abstention_rate(prediction)),
            ("series of the most frequent class", metrics.most_frequent_share(labels)),
        ]
        means = [
            (
                "ACR (wrong or abstained = 0)",
                metrics.average_certified_radius(prediction, radius, labels),
            ),
            ("mean radius, all predictions", metrics.mean_radius(prediction, radius)),
            (
                "mean radius, correct predictions",
                metrics.mean_radius_of_correct(prediction, radius, labels),
            ),
        ]
        certified_accuracy = metrics.certified_accuracy(prediction, radius, labels, radii)
        curve = [
            (f"certified accuracy at r = {r:g}", float(share))
            for r, share in zip(radii, certified_accuracy, strict=True)
        ]
    lines = [(what, value, ".2%") for what, value in shares]
    for what, value in means:
        lines += [(what, value, ".4f"), *in_own_units(value, counted.settings)]
    lines += [(what, value, ".2%") for what, value in curve]
    return [*lines, ("forward passes a draw", cost, ".2f")]


def in_own_units(radius: float, settings: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What a radius is in each channel's own units, where channels were scaled."""
    own = coverage.channel_radii(radius, settings["data"].get("units", ()))
    told = list(enumerate(own.tolist()))[:MOST_CHANNELS]
    return [(f"  in channel {channel} alone", size, ".4g") for channel, size in told]


def curve(counted: Counts, certified: certificates.Certificates) -> bytes:
    """A PNG of the share of series that are certified (and correct) against the radius."""
    labelled = (counted.labels >= 0).all()
    credited = certified.prediction == counted.labels if labelled else certified.prediction >= 0
    return plots.certified_accuracy_curve(
        {f"n = {counted.settings['num_draws']}": (certified.radius, credited)},
        counting.title(counted.settings, len(counted.indices)),
        note=f"{certified.statement}; series: {cli.provenance(counted.settings)}",
        what="certified accuracy" if labelled else "series certified",
    )


MOST_CHANNELS = 6  # that are told of one by one
IN_SHORT = ("offset", "gain", "sample", "samples", "drift", "delay")  # of `coverage`


def covered_in_short(
    counted: Counts, covered: list[coverage.Coverage], drawn: str = ""
) -> list[str]:
    """Lines on what the median radius of those that are not 0 covers; at least half reach it.

    drawn: the flag that gives the noise again, if its seed was drawn at random.
    """
    radii = np.array([found.radius for found in covered])
    certified = np.flatnonzero(radii > 0)
    if not certified.size:
        return []
    place = certified[np.argsort(radii[certified], kind="stable")[(len(certified) - 1) // 2]]
    found, index = covered[place], counted.indices[place]
    rows = dict(zip((*coverage.SIZES, *coverage.COUNTS), found.rows(), strict=True))
    median = f"the median radius, {exact.shown(found.radius, 3)} of series {index},"
    lines = [f"  {median} covers each of these (all: --explain={index}{drawn}):"]
    return lines + [f"    {what:<42} {how}" for what, how in (rows[name] for name in IN_SHORT)]


def covered_in_full(
    counted: Counts,
    certified: certificates.Certificates,
    covered: list[coverage.Coverage],
    index: int,
) -> list[str]:
    """Lines on all that the radius of the series of this index covers."""
    (place,) = np.flatnonzero(counted.indices == index)
    radius = certificates.format_radius(certified.radius[place])
    if certified.prediction[place] < 0:
        return [f"  series {index}: the classifier abstains, and no change is covered"]
    name = records.class_names(counted.settings["data"])[certified.prediction[place]]
    lines = [f"  series {index}: {name}, radius {radius}, which covers each of these by itself:"]
    return lines + [f"    {what:<42} {how}" for what, how in covered[place].rows(6)]


def page(counted: Counts, certified: certificates.Certificates, series: np.ndarray) -> bytes:
    """The HTML page of a certification; series: (N, T, C) of its examples."""
    settings = counted.settings
    names = records.class_names(settings["data"])
    versions = settings["versions"]
    own = settings.get("series", settings["data"])
    classifier = {
        name: settings[name]
        for name in (
            "model",
            "ensemble",
            "sigma",
            "num_masks",
            "mask_design",
            "hidden_as",
            "keep",
            "num_members",
            "consensus",
        )
        if name in settings
    }
    how = {
        "noise draws a series (n)": settings["num_draws"],
        "alpha": f"{certified.alpha:g}",
        "interval and bound": f"{certified.interval}, {certified.bound}",
        "noise seed": settings["noise_seed"],
    }
    rests_on = {
        "series": cli.provenance(settings),
        "radius": records.radius_units(settings["data"]),
        "sha256 of the series": own["sha256"],
        "sha256 of the weights": settings["weights_sha256"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "platform": settings["platform"],
    }
    return report_page.certification_page(
        title=counting.title(settings, len(counted.indices)),
        statement=certified.statement,
        valid=certified.valid,
        summary_rows=[
            (what, format(value, form)) for what, value, form in summary(counted, certified)
        ],
        settings_rows=[(what, str(value)) for what, value in (classifier | how).items()],
        record_rows=[(what, str(value)) for what, value in rests_on.items()],
        classes=names[:-1],
        abstain_name=names[-1],
        index=counted.indices,
        label=counted.labels,
        prediction=certified.prediction,
        radius=certified.radius,
        series=series,
    )
