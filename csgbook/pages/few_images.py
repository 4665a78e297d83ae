"""What mutual information sees with few images per class or many classes, as tools/few_images.py simulated it."""

from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from csgbook import measured
from csgbook.pages.figures import BLUE, GREY, ORANGE, styled
from csgbook.pages.tables import commit, percent

TITLES = {"mis": "MIS / H(1/C)", "mis_balanced": "balanced MIS / ln 2"}
LINES = {
    "perfect": (BLUE, "a perfect filter"),
    "shifted": (ORANGE, "a filter shifted on its class"),
    "null": (GREY, "no signal"),
}


def rows(metric: str, classes: int) -> list[dict]:
    """By the number of images per class."""
    found = measured.read("few-images").get("rows", [])
    return sorted((r for r in found if (r["metric"], r["classes"]) == (metric, classes)), key=lambda r: r["images"])


def sizes() -> list[int]:
    return sorted({r["classes"] for r in measured.read("few-images").get("rows", [])})


@styled
def simulated() -> Figure:
    """Estimates as shares of the bound by images per class: one row per metric, one column per number of classes."""
    told = sizes()
    fig, axes = plt.subplots(2, len(told), figsize=(6.8, 3.9), sharex=True, sharey=True, layout="constrained", squeeze=False)
    for line, metric in zip(axes, TITLES, strict=True):
        for ax, C in zip(line, told, strict=True):
            found = rows(metric, C)
            n = [r["images"] for r in found]
            for name, (color, label) in LINES.items():
                ax.plot(n, [r[name] / r["bound"] for r in found], "o-", color=color, ms=3, lw=1, label=label)
            ax.axhline(
                found[0]["truth"] / found[0]["bound"], color=ORANGE, ls=":", lw=1, label="that filter, infinitely many images"
            )
            ax.axvline(10, color=GREY, lw=0.5, alpha=0.5)
            ax.set(xscale="log", ylim=(0, 1.25), title=f"{C:,} classes" if metric == "mis" else "")
            ax.set_xticks([2, 10, 50, 200], ["2", "10", "50", "200"], minor=False)
            ax.minorticks_off()
        line[0].set_ylabel(TITLES[metric])
    for ax in axes[-1]:
        ax.set_xlabel("images per class")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=7.5)
    return fig


def sentences() -> Markdown:
    """What follows, in numbers: how far chance is from a filter with signal, at ten images and at ImageNet's fifty."""
    kept, told = measured.read("few-images"), sizes()
    if not told:
        return Markdown("This has not been simulated yet: `python tools/few_images.py` does it.")
    C = told[-1]

    def at(metric: str, n: int) -> dict:
        return next(r for r in rows(metric, C) if r["images"] == n)

    plain, balanced, imagenet = at("mis", 10), at("mis_balanced", 10), at("mis_balanced", 50)
    two = at("mis_balanced", 2)
    return Markdown(
        f"With {C:,} classes and ten images of each, filters without signal reach {share(plain, 'null')} of MIS's bound and "
        f"{share(balanced, 'null')} of the balanced one's, filters that lie {kept['shift']:g} standard deviations higher on "
        f"their class {share(plain, 'shifted')} and {share(balanced, 'shifted')} "
        f"(with infinitely many images {share(plain, 'truth')} and {share(balanced, 'truth')}). With fifty images, as in "
        f"ImageNet's validation set, the balanced score's chance level is {imagenet['null']:.2f} nats, "
        f"{share(imagenet, 'null')} of ln 2. "
        f"With two it is {two['null']:.2f} nats and a perfect filter's estimate {two['perfect']:.2f}.\n\n"
        f"{kept['filters']} normal filters per point, simulated at commit {commit(kept)} in {kept['seconds']:.0f} s."
    )


def share(row: dict, name: str) -> str:
    return percent(row[name] / row["bound"])
